"""Backtracking: shorter steps along a direction until the residual falls."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.problem import EquationProblem
from implicit_solvers.tolerance import Norm
from implicit_solvers.traced_loop import loop_in_graph

__all__ = ["Found", "backtrack"]


class Searching(Protocol):
    """What a search asks of a solver."""

    @property
    def norm(self) -> Norm:
        """What measures residuals."""

    @property
    def halvings(self) -> int:
        """How many times a step may be halved; 0 takes the full step, whatever it brings."""


class Found(NamedTuple):
    """Where a search ended, and in which lanes it found a step; the others stayed."""

    z: Tensor
    residual: Tensor
    error: Tensor
    accepted: Tensor


def backtrack(
    problem: EquationProblem,
    solver: Searching,
    start: tuple[Tensor, Tensor, Tensor],
    direction: Tensor,
    searching: Tensor,
    *,
    once: Tensor | None = None,
    limit: Tensor | None = None,
) -> Found:
    """Halve ``t`` from 1 until ``norm(F(z + t p)) <= limit - 1e-4 t norm(F(z))``.

    Parameters
    ----------
    problem, solver
        The equation, and the solver with its norm and number of halvings. A trial with NaN is
        too long.
    start
        ``z (N, n)``, the residual there ``(N, n)``, and its norm ``(N,)``.
    direction
        The full step ``p (N, n)``.
    searching
        The lanes that search ``(N,)``; the others stay.
    once
        The lanes that try the full step only ``(N,)``.
    limit
        ``(N,)``; left out, ``norm(F(z))``.

    Notes
    -----
    Source: Dennis and Schnabel, "Numerical Methods for Unconstrained Optimization and Nonlinear
    Equations", section 6.3.
    """
    limit = start[2] if limit is None else limit

    def attempt(problem: EquationProblem, searching: Tensor, length: Tensor) -> Found:
        trial = start[0] + length.unsqueeze(-1) * direction
        residual = problem.residual(trial)
        error = solver.norm(residual)
        good = searching
        if solver.halvings > 0:
            good = searching & (error <= limit - 1e-4 * length * start[2])
        return Found(trial, residual, error, good)

    def keep(found: Found, new: Found, searching: Tensor) -> tuple[Found, Tensor]:
        good, take = new.accepted, new.accepted.unsqueeze(-1)
        found = Found(
            torch.where(take, new.z, found.z),
            torch.where(take, new.residual, found.residual),
            torch.where(good, new.error, found.error),
            found.accepted | good,
        )
        searching = searching & ~good
        return found, searching if once is None else searching & ~once

    found, length = Found(*start, torch.zeros_like(searching)), torch.ones_like(start[2])
    if solver.halvings == 0 and (compiling() or searching.is_cuda):
        # nothing to ask, and a GPU would wait for the answer
        return keep(found, attempt(problem, searching, length), searching)[0]
    if compiling():

        def body(carry: tuple[Found, Tensor, Tensor]) -> tuple[Found, Tensor, Tensor]:
            found, searching, length = carry
            found, searching = keep(found, attempt(problem.aliased(), searching, length), searching)
            return found, searching, torch.where(searching, 0.5 * length, length)

        carry = (found, searching, length)
        return loop_in_graph(lambda c: c[1].any(), body, carry, solver.halvings + 1)[0]
    for _ in range(solver.halvings + 1):
        new = attempt(problem, searching, length)
        if bool(new.accepted.all()):
            return new
        found, searching = keep(found, new, searching)
        if not bool(searching.any()):
            break
        length = torch.where(searching, 0.5 * length, length)
    return found
