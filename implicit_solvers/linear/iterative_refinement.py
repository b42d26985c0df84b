"""Iterative refinement: cycles of a solver in a lower precision, residuals in the working one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.iterate import Outcome, iterate
from implicit_solvers.linear.mixed_precision import RoundedTensors, rounded
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from implicit_solvers.solution import Status, failed
from implicit_solvers.tolerance import rms

__all__ = ["refine"]

_RUNNING = -1
_ROUNDINGS = 32  # a cycle ends at a residual of so many roundings of the lower precision
_MARGIN = 0.8  # the last cycle aims below the tolerance, which its own rounding may exceed
_GAIN = 0.01  # what a cycle in the lower precision must gain to be worth another


def refine(
    solver: Any, problem: LinearProblem, x: Tensor, dtype: torch.dtype, tensors: RoundedTensors
) -> Outcome:
    """Iterate ``x <- x + d``, where ``A d = b - A x`` is solved in a lower precision.

    A cycle ends when the solver says that the residual has fallen by a factor that the lower
    precision can carry, or after ``solver.restart`` steps; then the residual is computed in the
    working precision, and it alone decides whether a lane has converged. A lane that a cycle gains
    less than two digits, and less than it promised, goes on with cycles in the working precision:
    its matrix is too ill-conditioned for the lower one, or out of its range.

    Source: Turner and Walker, "Efficient high accuracy solutions with GMRES(m)", SIAM J. Sci. Stat.
    Comput. 13 (1992); Carson and Higham, "Accelerating the solution of linear systems by iterative
    refinement in three precisions", SIAM J. Sci. Comput. 40 (2018).

    Parameters
    ----------
    solver
        A solver with ``inner_dtype`` and ``restart``.
    problem
        ``A x = b`` in the working precision, float64 or complex128.
    x
        The start ``(N, n)``.
    dtype
        The lower precision, real.
    tensors
        The operators' tensors that were rounded before.

    Returns
    -------
    Outcome
        ``error`` is that of the residual itself; ``iterations`` are the steps of all cycles.
    """
    low = rounded(problem, dtype, tensors)
    floor = _ROUNDINGS * torch.finfo(dtype).eps
    longest = max(1, min(solver.restart, x.shape[-1]))
    budget = solver.rtol is None
    r = problem.first_residual(x)
    error = rms(r)
    goal = torch.full_like(error, -1.0) if budget else problem.tolerance(solver, x)
    out_of_steps = int(Status.BUDGET if budget else Status.MAX_STEPS)
    iterations = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    status, exact = iterations + _RUNNING, iterations > 0

    while True:
        left = solver.max_steps - iterations
        settled = torch.where((left <= 0) | (error == 0), out_of_steps, status)
        settled = torch.where(error <= goal, 0, settled)
        settled = torch.where(torch.isfinite(error + goal), settled, int(Status.NONFINITE))
        status = torch.where(status == _RUNNING, settled, status)
        turn = status == _RUNNING
        if not bool(turn.any()):
            return Outcome(x, status, iterations, error)
        lower = bool((turn & ~exact).any())
        turn = turn & ~exact if lower else turn
        # lanes that may make as many steps go together
        steps = left.clamp(max=longest)
        most = int(steps[turn].max())
        turn = turn & (steps == most)

        forcing = _MARGIN * goal / error
        size = torch.where(turn, error, 1.0).unsqueeze(-1)
        rhs = torch.where(turn.unsqueeze(-1), r / size, 0.0)
        if lower:
            out = _cycle(solver, low, rhs.to(low.b.dtype), forcing.clamp(min=floor), most)
        else:
            out = _cycle(solver, problem, rhs, forcing, most)
        trial = x + size * out.z
        trial_r = _residual(problem, trial, turn, solver.compact)
        trial_error = rms(trial_r)

        better = turn & (trial_error < error)
        gained = trial_error <= (_GAIN if lower else 0.5) * error
        kept_promise = trial_error <= 2 * out.error * size.squeeze(-1)
        slow = kept_promise & (out.status == int(Status.MAX_STEPS))
        stops = turn & ~(gained | slow)
        iterations = iterations + torch.where(turn, out.iterations, 0)
        x = torch.where(better.unsqueeze(-1), trial, x)
        r = torch.where(better.unsqueeze(-1), trial_r, r)
        error = torch.where(better, trial_error, error)
        if lower:
            exact = exact | stops
            continue
        unable = failed(out.status) & (out.status != int(Status.MAX_STEPS))
        stops = stops & unable if budget else stops
        why = torch.where(unable, out.status, int(Status.STALLED))
        status = torch.where(stops & ~(error <= goal), why, status)


def _cycle(
    solver: Any, problem: LinearProblem, rhs: Tensor, forcing: Tensor, steps: int
) -> Outcome:
    """Solve ``A d = rhs`` to ``forcing``, in the precision of ``rhs``, without a restart."""
    cycle = replace(solver, inner_dtype=None, restart=steps, max_steps=steps, rtol=0.0, atol=0.0)
    inner = LinearProblem(problem.A, rhs, problem.M)
    forced = ForcedProblem(inner, forcing.to(rhs.real.dtype))
    return iterate(cycle, forced, torch.zeros_like(rhs))


def _residual(problem: LinearProblem, x: Tensor, turn: Tensor, compact: bool) -> Tensor:
    """Return ``b - A x``, computed for the lanes whose turn it is if they are few."""
    if compact and problem.separable and not bool(turn.all()):
        index = turn.nonzero().squeeze(-1)
        if 2 * len(index) <= len(x):
            part = problem.take(index).residual(x[index])
            return torch.zeros_like(x).index_copy(0, index, part)
    return problem.residual(x)
