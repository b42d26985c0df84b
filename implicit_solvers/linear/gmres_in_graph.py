"""Generalized minimal residuals in a compiled graph: all shapes are those of the full space."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.compiled_step import bucket, compiled_step, in_own_memory, padded
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.outcome import ENDED, RUNNING, Departed, Outcome, select
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import rms
from implicit_solvers.traced_loop import loop_in_graph

__all__ = ["gmres_compiled", "gmres_in_graph"]


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


class Progress(NamedTuple):
    """The iterate between cycles, and how far each lane has come."""

    x: Tensor
    status: Tensor
    iterations: Tensor
    error: Tensor


def gmres_in_graph(solver: Any, problem: LinearProblem, x: Tensor) -> Outcome:
    """Iterate in a compiled graph.

    It does what `GMRES` does, at the cost of its last column in every step of a cycle.
    """
    progress = loop_in_graph(
        lambda progress: _unfinished(solver, progress.status, progress.iterations).any(),
        lambda progress: _cycle(solver, problem.aliased(), progress),
        _begun(solver, problem, x),
    )
    return _ended(solver, progress)


def gmres_compiled(solver: Any, problem: LinearProblem, x: Tensor) -> Outcome:
    """Iterate by compiled cycles, between which lanes leave."""
    advance = compiled_step(_cycle, solver, problem)
    progress = in_own_memory(_begun(solver, problem, x))
    departed = Departed()
    while True:
        unfinished = _unfinished(solver, progress.status, progress.iterations)
        left = int(unfinished.sum())
        if left == 0:
            return departed.joined(_ended(solver, progress))
        if solver.compact and problem.separable and 2 * bucket(left) <= len(unfinished):
            keep = unfinished.nonzero().squeeze(-1)
            departed.leave(_ended(solver, progress), keep)
            keep = padded(keep, bucket(left))
            problem, progress = problem.take(keep), select(progress, keep)
            progress.status[left:] = ENDED
        progress = advance(problem, progress)


def _begun(solver: Any, problem: LinearProblem, x: Tensor) -> Progress:
    r = problem.residual(x)
    none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    status = _judged(_goal(solver, problem, x), rms(r), none, none + RUNNING)
    return Progress(x, status, none, rms(r))


def _unfinished(solver: Any, status: Tensor, iterations: Tensor) -> Tensor:
    return (status == RUNNING) & (iterations < solver.max_steps)


def _ended(solver: Any, progress: Progress) -> Outcome:
    out_of_steps = Status.BUDGET if solver.rtol is None else Status.MAX_STEPS
    status = torch.where(progress.status == RUNNING, int(out_of_steps), progress.status)
    return Outcome(progress.x, status, progress.iterations, progress.error)


def _goal(solver: Any, problem: LinearProblem, x: Tensor) -> Tensor:
    if solver.rtol is None:
        return torch.full_like(x[:, 0].abs(), -1.0)
    return problem.tolerance(solver, x)


def _judged(goal: Tensor, error: Tensor, flag: Tensor, status: Tensor) -> Tensor:
    new = torch.where(flag != 0, flag, RUNNING)
    new = torch.where(error <= goal, int(Status.CONVERGED), new)
    new = torch.where(torch.isfinite(error), new, int(Status.NONFINITE))
    return torch.where(status == RUNNING, new, status)


def _cycle(solver: Any, problem: LinearProblem, progress: Progress) -> Progress:
    """Go on from the iterate until the Krylov space is full, or no lane is left."""
    x, status, iterations, _ = progress
    m = max(1, min(solver.restart, x.shape[-1], solver.max_steps))
    goal = _goal(solver, problem, x)
    r = problem.residual(x)
    beta = torch.linalg.vector_norm(r, dim=-1).reshape(-1, 1, 1)

    def on(state: Cycle) -> Tensor:
        return _unfinished(solver, state.status, state.iterations)

    state = loop_in_graph(
        lambda state: on(state).any() & (state.j < m).all(),
        lambda state: _column(problem.aliased(), state, beta, on(state), goal),
        _start(problem, r, beta, m, status, iterations),
    )
    x = x + _correction(problem, state, beta)
    return Progress(x, state.status, state.iterations, state.error)


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


def _column(problem: LinearProblem, state: Cycle, beta: Tensor, on: Tensor, goal: Tensor) -> Cycle:
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
    status = _judged(goal, error, torch.where(stuck, int(Status.BREAKDOWN), 0), state.status)
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
