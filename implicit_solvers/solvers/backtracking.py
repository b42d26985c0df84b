"""Backtracking: shorter steps along a direction until the residual falls."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from implicit_solvers.problem import EquationProblem
from implicit_solvers.tolerance import Norm

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
    z, residual, error = start
    limit = error if limit is None else limit
    length = torch.ones_like(error)
    accepted = torch.zeros_like(searching)
    for _ in range(solver.halvings + 1):
        trial = start[0] + length.unsqueeze(-1) * direction
        new_residual = problem.residual(trial)
        new_error = solver.norm(new_residual)
        good = searching
        if solver.halvings > 0:
            good = searching & (new_error <= limit - 1e-4 * length * start[2])
        if bool(good.all()):
            return Found(trial, new_residual, new_error, good)
        take = good.unsqueeze(-1)
        z, residual = torch.where(take, trial, z), torch.where(take, new_residual, residual)
        error = torch.where(good, new_error, error)
        accepted = accepted | good
        searching = searching & ~good
        if once is not None:
            searching = searching & ~once
        if not bool(searching.any()):
            break
        length = torch.where(searching, 0.5 * length, length)
    return Found(z, residual, error, accepted)
