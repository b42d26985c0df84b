"""The verdict: how far a lane may be from a solution, in units of the unknown.

A lane has converged when the estimate ``e`` of its error is small, ``e <= max(atol + rtol s, 20
e0)`` and ``e + e0 <= 0.1 s``, where ``s`` is the size of ``z`` (of the start, if ``z`` is nothing
beside it), and ``e0`` the error that the rounding of the function makes. What a solver knows at
every step proposes an end; one step of Newton's method from there decides. Nothing here knows a
concrete solver of equations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, either, larger, no, pick
from implicit_solvers.evaluations import added
from implicit_solvers.examination import Examination
from implicit_solvers.linear.lu import LU
from implicit_solvers.outcome import DIGIT, LEAVING, ROUNDINGS, RUNNING, Outcome
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver
from implicit_solvers.tolerance import equation_tolerance

__all__ = ["examiner", "judged", "made_by"]

_COARSE = 5.0


def examiner(solver: Any, n: float) -> DirectSolver | None:
    """Return what factors the Jacobian where a solve ends; None if nothing does."""
    if solver.rtol is None or not solver.examined(n):
        return None
    own: DirectSolver | None = solver.factorization(n)
    return LU() if own is None else own


def made_by(solver: Any, n: float) -> DirectSolver | None:
    """Return the direct solver that made the factors that a solve returns, if there are any."""
    made: DirectSolver | None = examiner(solver, n) or solver.factorization(n)
    return made


def judged(
    solver: Any, problem: Any, found: Outcome, direct: DirectSolver | None
) -> tuple[Outcome, Tensor]:
    """Return how lanes ended, RUNNING where they go on, and from where those do."""
    z, eps, counter = found.z, torch.finfo(found.z.dtype).eps, problem.counter
    before = None if counter is None else counter.read()
    seen: Examination = problem.equation.examine(problem, z, direct)
    counts = () if counter is None else added(found.evaluations, counter.since(before))
    residual, size, e, *rounding, probe = problem.sizes(
        solver.norm, seen.residual, z, seen.step, *seen.noise
    )
    e0 = rounding[0]
    for other in rounding[1:]:
        e0 = larger(e0, other)
    tolerance = equation_tolerance(solver.rtol, solver.atol, eps, problem.scaled(size, 0.75))
    scale = problem.scaled(size, 0.5)
    digit = DIGIT * pick(scale > 0, scale, e)
    error = e + larger(e0, probe)
    # what is so coarse is not smooth: nothing that the Jacobian says of it holds
    digits = both(e + e0 <= digit, probe <= _COARSE * digit)
    bent: Mask = False if seen.kick is None else problem.number((seen.kick != 0).any(-1))
    # (zero has no digits, and may be a saddle)
    digits = either(digits, both(bent, scale == 0))
    near = both(either(e <= tolerance, both(e <= ROUNDINGS * e0, seen.drowned)), digits)
    status = found.status
    proposed = status == int(Status.CONVERGED)
    if solver.f_atol > 0:
        near = either(near, both(proposed, residual <= solver.f_atol))
    near = both(near, no(seen.wrong))
    judges = both(status != int(Status.NONFINITE), status <= int(Status.SINGULAR))
    start = pick(e <= digit, z - seen.step, z)
    failed = pick(e0 <= digit, pick(proposed, RUNNING, status), int(Status.SINGULAR))
    status = pick(judges, pick(near, int(Status.CONVERGED), failed), status)
    if seen.kick is not None:
        status, bent = _curved(found, status, either(near, e <= digit), bent)
        start = pick(bent, z + seen.kick, start)
        # (of a saddle nothing says how far a minimum is)
        error = pick(either(bent, status == int(Status.SADDLE)), torch.inf, error)
    error = pick(both(error < torch.inf, not seen.coarse), error, torch.inf)
    return Outcome(z, status, found.iterations, residual, error, seen.factors, counts), start


def _curved(found: Outcome, status: Any, close: Mask, bent: Mask) -> tuple[Any, Mask]:
    """Return the statuses of minima, of which a saddle is none, and which lanes leave one.

    A lane that is ``close`` to a stationary point goes on if it has stalled, and if the curvature
    is negative there, unless it has made no step or has none left.
    """
    status = pick(both(close, status == int(Status.STALLED)), RUNNING, status)
    bent = both(both(bent, close), either(status == RUNNING, status == int(Status.CONVERGED)))
    ends = either(found.iterations == 0, found.status == int(Status.MAX_STEPS))
    return pick(bent, pick(ends, int(Status.SADDLE), LEAVING), status), both(bent, no(ends))
