"""Generalized minimal residuals in a compiled graph: all shapes are those of the full space."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import rms
from implicit_solvers.traced_loop import loop_in_graph

__all__ = ["gmres_in_graph"]

_RUNNING = -1


class Cycle(NamedTuple):
    """A Krylov space in the making, as in `GMRESState`; ``j`` is a tensor, and rows past it zero.

    ``columns`` counts those of a lane's own: a lane that ended gets columns of the identity.
    """

    basis: Tensor
    directions: Tensor
    rotation: Tensor
    triangle: Tensor
    columns: Tensor
    j: Tensor
    error: Tensor
    status: Tensor
    iterations: Tensor


def gmres_in_graph(
    solver: Any, problem: LinearProblem, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the solution ``(N, n)``, and the status, iterations and error of each lane ``(N,)``.

    It does what `GMRES` does, at the cost of its last column in every step of a cycle.
    """
    n = x.shape[-1]
    m = max(1, min(solver.restart, n, solver.max_steps))
    budget = solver.rtol is None
    goal = torch.full_like(x[:, 0].abs(), -1.0) if budget else problem.tolerance(solver, x)

    def judged(error: Tensor, flag: Tensor, status: Tensor) -> Tensor:
        new = torch.where(flag != 0, flag, _RUNNING)
        new = torch.where(error <= goal, int(Status.CONVERGED), new)
        new = torch.where(torch.isfinite(error), new, int(Status.NONFINITE))
        return torch.where(status == _RUNNING, new, status)

    def running(status: Tensor, iterations: Tensor) -> Tensor:
        return (status == _RUNNING) & (iterations < solver.max_steps)

    def cycle(carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, status, iterations, _ = carry
        here = problem.aliased()
        r = here.residual(x)
        beta = torch.linalg.vector_norm(r, dim=-1).reshape(-1, 1, 1)

        def column(state: Cycle) -> Cycle:
            on = running(state.status, state.iterations)
            return _column(here.aliased(), state, beta, on, judged)

        def unfinished(state: Cycle) -> Tensor:
            return running(state.status, state.iterations).any() & (state.j < m).all()

        first = _start(here, r, beta, m, status, iterations)
        state = loop_in_graph(unfinished, column, first)
        x = x + _correction(here, state, beta)
        return x, state.status, state.iterations, state.error

    r = problem.residual(x)
    none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    status = judged(rms(r), none, none + _RUNNING)
    carry = (x, status, none, rms(r))
    x, status, iterations, error = loop_in_graph(
        lambda carry: running(carry[1], carry[2]).any(), cycle, carry
    )
    out_of_steps = Status.BUDGET if budget else Status.MAX_STEPS
    return x, torch.where(status == _RUNNING, int(out_of_steps), status), iterations, error


def _start(
    problem: LinearProblem, r: Tensor, beta: Tensor, m: int, status: Tensor, iterations: Tensor
) -> Cycle:
    lanes, n = r.shape
    first = torch.where(beta[:, 0] > 0, r / beta[:, 0], 0.0)
    basis = torch.cat([first.unsqueeze(1), r.new_zeros(lanes, m, n)], 1)
    directions = r.new_zeros(lanes, 0 if problem.M is None else m, n)
    eye = torch.eye(m + 1, dtype=r.dtype, device=r.device).expand(lanes, m + 1, m + 1)
    none = torch.zeros_like(status)
    j = torch.zeros(1, dtype=torch.int64, device=r.device)
    return Cycle(basis, directions, eye, eye[:, :m, :m], none, j, rms(r), status, iterations)


def _column(problem: LinearProblem, state: Cycle, beta: Tensor, on: Tensor, judged: Any) -> Cycle:
    """Add a vector to the basis and rotate its column of the Hessenberg matrix."""
    j, basis, directions = state.j, state.basis, state.directions
    direction = problem.precondition(basis.index_select(1, j).squeeze(1))
    if problem.M is not None:
        directions = directions.index_copy(1, j, direction.unsqueeze(1))
    w = problem.A.mv(direction)
    before = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    h = (basis.conj() @ w.unsqueeze(-1)).squeeze(-1)
    w = w - (h.unsqueeze(-2) @ basis).squeeze(-2)
    again = (basis.conj() @ w.unsqueeze(-1)).squeeze(-1)
    w = w - (again.unsqueeze(-2) @ basis).squeeze(-2)
    after = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    eps = torch.finfo(w.dtype).eps
    exhausted = after <= 10 * eps * before
    after = torch.where(exhausted, 0.0, after)
    adds = on.unsqueeze(-1) & ~exhausted
    basis = basis.index_copy(1, j + 1, torch.where(adds, w / after, 0.0).unsqueeze(1))

    column = (h + again).index_copy(1, j + 1, after.to(h.dtype))
    column = (state.rotation @ column.unsqueeze(-1)).squeeze(-1)
    a, b = column.index_select(1, j), column.index_select(1, j + 1)
    size = torch.linalg.vector_norm(torch.cat([a, b], -1), dim=-1, keepdim=True)
    singular = (size <= 10 * eps * before) | ~on.unsqueeze(-1)
    c, s = torch.where(singular, 1.0, a / size), torch.where(singular, 0.0, b / size)
    above = torch.arange(column.shape[1], device=j.device) < j
    column = torch.where(above & ~singular, column, 0.0)
    column = column.index_copy(1, j, torch.where(singular, 1.0, size).to(column.dtype))
    triangle = state.triangle.index_copy(2, j, column[:, :-1].unsqueeze(-1))
    upper = state.rotation.index_select(1, j).squeeze(1)
    lower = state.rotation.index_select(1, j + 1).squeeze(1)
    # a column that adds nothing gets no weight: its right-hand side is set to zero
    new_upper = torch.where(singular, 0.0, c.conj() * upper + s * lower)
    new_lower = torch.where(singular, upper, c * lower - s * upper)
    rotation = state.rotation.index_copy(1, j, new_upper.unsqueeze(1))
    rotation = rotation.index_copy(1, j + 1, new_lower.unsqueeze(1))

    error = (beta[:, 0, 0] * new_lower[:, 0]).abs() / basis.shape[-1] ** 0.5
    error = torch.where(torch.isfinite(before.squeeze(-1)), error, torch.nan)
    error = torch.where(on, error, state.error)
    stuck = on & exhausted.squeeze(-1) & (error > 0)
    status = judged(error, torch.where(stuck, int(Status.BREAKDOWN), 0), state.status)
    return Cycle(
        basis,
        directions,
        rotation,
        triangle,
        state.columns + on,
        j + 1,
        error,
        torch.where(on, status, state.status),
        state.iterations + on,
    )


def _correction(problem: LinearProblem, state: Cycle, beta: Tensor) -> Tensor:
    """Return ``M V y`` of each lane, where ``y`` solves the small triangular system."""
    m = state.triangle.shape[-1]
    own = torch.arange(m, device=beta.device) < state.columns.unsqueeze(-1)
    g = torch.where(own.unsqueeze(-1), beta * state.rotation[:, :m, :1], 0.0)
    y = torch.linalg.solve_triangular(state.triangle, g, upper=True)
    directions = state.basis if problem.M is None else state.directions
    return (directions[:, :m].mT @ y).squeeze(-1)
