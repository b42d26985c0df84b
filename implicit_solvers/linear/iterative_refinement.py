"""Iterative refinement: cycles of a solver in a lower precision, residuals in the working one.

It knows no concrete solver.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.iterate import iterate
from implicit_solvers.linear.mixed_precision import rounded
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from implicit_solvers.outcome import Outcome
from implicit_solvers.solution import Status, failed
from implicit_solvers.tolerance import rms

__all__ = ["RefinementState", "begin_refinement", "refine"]

_ROUNDINGS = 32  # a cycle ends at a residual of so many roundings of the lower precision
_MARGIN = 0.8  # the last cycle aims below the tolerance, which its own rounding may exceed
_GAIN = 0.01  # what a cycle in the lower precision must gain to be worth another


class RefinementState(NamedTuple):
    """How far `refine` has come; ``exact`` lanes go on in the working precision.

    Cycles have made ``spent`` steps; ``steps_before`` are those that the loop, which counts
    cycles, does not count.
    """

    z: Tensor
    residual: Tensor
    error: Tensor
    flag: Tensor
    exact: Tensor
    spent: Tensor
    steps_before: Tensor


def begin_refinement(solver: Any, problem: LinearProblem, x: Tensor) -> RefinementState:
    """Return the state at ``x``, in float64 or complex128."""
    r = problem.first_residual(x)
    error, none = rms(r), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    flag = torch.where(error == 0, _out_of_steps(solver), 0)
    return RefinementState(x, r, error, flag, none > 0, none, none)


def refine(solver: Any, problem: LinearProblem, state: RefinementState) -> RefinementState:
    """Make a step ``x <- x + d``, where ``A d = b - A x`` is solved in a lower precision.

    It is a cycle, which ends when the solver says that the residual has fallen by a factor that the
    lower precision can carry, or after ``solver.restart`` steps; then the residual is computed in
    the working precision, and it alone decides whether a lane has converged. A lane that a cycle
    gains less than two digits, and less than it promised, goes on with cycles in the working
    precision: its matrix is too ill-conditioned for the lower one, or out of its range.

    Source: Turner and Walker, "Efficient high accuracy solutions with GMRES(m)", SIAM J. Sci. Stat.
    Comput. 13 (1992); Carson and Higham, "Accelerating the solution of linear systems by iterative
    refinement in three precisions", SIAM J. Sci. Comput. 40 (2018).
    """
    running = state.flag == 0
    for exact, turn in ((False, running & ~state.exact), (True, running & state.exact)):
        if bool(turn.any()):
            state = _cycle(solver, problem, state, turn, exact)
    return state


def _cycle(
    solver: Any, problem: LinearProblem, state: RefinementState, turn: Tensor, exact: bool
) -> RefinementState:
    """Make a cycle in the lanes whose ``turn`` it is, in the lower precision or ``exact``."""
    x, r, error, flag = state[:4]
    budget = solver.rtol is None
    goal = torch.full_like(error, -1.0) if budget else problem.tolerance(solver, x)
    size = torch.where(turn, error, 1.0)
    rhs = torch.where(turn.unsqueeze(-1), r / size.unsqueeze(-1), 0.0)
    forcing, inner = _MARGIN * goal / size, problem
    if not exact:
        inner = rounded(problem, solver.inner_dtype)
        forcing = forcing.clamp(min=_ROUNDINGS * torch.finfo(solver.inner_dtype).eps)
    left = (solver.max_steps - state.spent)[turn]
    steps = max(1, min(solver.restart, x.shape[-1], int(left.min())))
    out = _solved(solver, inner, rhs.to(inner.b.dtype), forcing, steps)
    trial = x + size.unsqueeze(-1) * out.z
    trial_r = problem.residual(trial)
    trial_error = rms(trial_r)

    better = turn & (trial_error < error)
    gained = trial_error <= (0.5 if exact else _GAIN) * error
    kept_promise = trial_error <= 2 * out.residual * size
    slow = kept_promise & (out.status == int(Status.MAX_STEPS))
    stops = turn & ~(gained | slow)
    x = torch.where(better.unsqueeze(-1), trial, x)
    r = torch.where(better.unsqueeze(-1), trial_r, r)
    error = torch.where(better, trial_error, error)
    made = torch.where(turn, out.iterations, 0)
    spent = state.spent + made
    over = turn & ((spent >= solver.max_steps) | (error == 0))
    flag = torch.where(over, _out_of_steps(solver), flag)
    if exact:
        unable = failed(out.status) & (out.status != int(Status.MAX_STEPS))
        stops = stops & unable if budget else stops
        flag = torch.where(stops, torch.where(unable, out.status, int(Status.STALLED)), flag)
    before = state.steps_before + made - turn.to(made.dtype)
    return RefinementState(x, r, error, flag, state.exact | stops, spent, before)


def _out_of_steps(solver: Any) -> int:
    return int(Status.MAX_STEPS if solver.rtol is not None else Status.BUDGET)


def _solved(
    solver: Any, problem: LinearProblem, rhs: Tensor, forcing: Tensor, steps: int
) -> Outcome:
    """Solve ``A d = rhs`` to ``forcing``, in the precision of ``rhs``, without a restart."""
    cycle = replace(solver, inner_dtype=None, restart=steps, max_steps=steps, rtol=0.0, atol=0.0)
    inner = LinearProblem(problem.A, rhs, problem.M)
    forced = ForcedProblem(inner, forcing.to(rhs.real.dtype))
    return iterate(cycle, forced, torch.zeros_like(rhs))
