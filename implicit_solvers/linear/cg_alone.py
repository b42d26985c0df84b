"""Conjugate gradients for one system, whose scalars are numbers of Python."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.iterate import Outcome
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.solution import Status

__all__ = ["cg_alone"]


def cg_alone(solver: Any, problem: LinearProblem, z: Tensor) -> Outcome:
    """Iterate as the steps of `CG` do, from ``z (1, n)``, real, on the CPU.

    What a step computes besides the product takes a fifth of the time that tensors of one lane
    take.
    """
    budget = solver.rtol is None
    goal = 0.0 if budget else float(problem.tolerance(solver, None))
    x, r, M = z[0], problem.first_residual(z)[0], problem.M

    def precondition(r: Tensor) -> Tensor:
        return r if M is None else problem.precondition(r.unsqueeze(0))[0]

    def size(r: Tensor, rho: float) -> float:
        square = rho if M is None else float(r.dot(r))
        return math.sqrt(square / len(r)) if square >= 0 else math.nan

    p = y = precondition(r)
    rho, curvature = float(r.dot(y)), 1.0
    error = size(r, rho)
    best, least = x, error
    status: Status | None = None
    for step in range(solver.max_steps + 1):
        if not math.isfinite(error + goal):
            status = Status.NONFINITE
        elif error <= goal and not budget:
            status = Status.CONVERGED
        elif curvature <= 0:
            status = Status.INDEFINITE
        elif step == solver.max_steps:
            status = Status.BUDGET if budget else Status.MAX_STEPS
        if status is not None:
            break
        Ap = problem.A.mv(p.unsqueeze(0))[0]
        curvature = float(p.dot(Ap))
        alpha = rho / curvature if curvature > 0 else 0.0
        x, r = torch.add(x, p, alpha=alpha), torch.add(r, Ap, alpha=-alpha)
        y, before = precondition(r), rho
        rho = float(r.dot(y))
        p = torch.add(y, p, alpha=rho / before if before != 0 else 0.0)
        error = size(r, rho) + 0.0 * curvature  # NaN where the curvature is not finite
        if before == 0:
            curvature = 1.0
        if budget or error < least:
            best, least = x, error
    if status not in (Status.CONVERGED, Status.BUDGET) and not error <= least:
        x, error = best, least
    assert status is not None
    flag, steps = (torch.tensor([k], device=z.device) for k in (int(status), step))
    return Outcome(x.unsqueeze(0), flag, steps, z.new_full((1,), error))
