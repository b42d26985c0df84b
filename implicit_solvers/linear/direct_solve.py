"""Direct solves, judged by their backward error and by what rounding leaves of the solution.

It knows factors, and no concrete solver.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import pick
from implicit_solvers.compiling import compiling
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.rounding import patterns
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import safe_rms

__all__ = ["DirectSolution", "judged", "solve_directly"]

_REFINEMENTS = 2
_DIGIT = 0.1  # where an error is a larger part of the solution, no digit is right


class DirectSolution(NamedTuple):
    """What factors gave in each lane, and what it is worth.

    ``rest`` is ``b - A x``, a refinement would add ``step``. The largest entries of ``x``, of it,
    and of what rounding may have made are ``size``, ``left`` and ``floor``; ``error`` estimates the
    root mean square of the error. ``exact`` tells where the backward error is that of rounding,
    ``solid`` where a digit is right.
    """

    x: Tensor
    rest: Tensor
    step: Tensor
    size: Tensor
    left: Tensor
    floor: Tensor
    error: Tensor
    exact: Tensor
    solid: Tensor


def solve_directly(
    solver: Any,
    A: LaneMap,
    b: Tensor,
    factors: tuple[Tensor, ...],
    nullspaces: tuple[bool, bool],
    say: bool = True,
) -> tuple[DirectSolution, Tensor | None]:
    """Solve in all lanes, refine where that helps, and judge.

    The backward error is ``max_i |b - A x|_i / w_i`` with ``w = eps (|A| |x| + |b|)``. If it
    exceeds ``10 sqrt(n)``, up to two steps of refinement follow; if it still does, the solver's
    ``backup`` (in a graph, none). The error is ``|A^-1 (b - A x)| + e0``, with the largest
    ``|A^-1 (w s)|`` for two patterns ``s`` as ``e0``. A lane is SINGULAR if the error exceeds a
    tenth of the solution, or if refinement does not bring the first term to what rounding makes.
    No unit of rows or of the right-hand side enters. Unless somebody is to ``say`` the error, its
    largest entry will do. The status is None if all lanes are known to be solved.

    Source: Higham, "Accuracy and Stability of Numerical Algorithms" (2002), chapters 7 and 12;
    Skeel, "Iterative refinement implies numerical stability for Gaussian elimination", Math. Comp.
    35 (1980).
    """
    eager, columns = not compiling(), len(b) // A.grid

    def judge(x: Tensor) -> DirectSolution:
        return judged(solver, A, b, factors, x, nullspaces, say)

    found = judge(solver.solve_lanes(A, factors, b))
    if eager:
        unfit = solver.unfit(factors)
        unfit = unfit if columns == 1 else unfit.repeat(columns)
        if bool((found.exact & found.solid & ~unfit).all()):
            return found, None
    for _ in range(_REFINEMENTS):
        if eager and bool(found.exact.all()):
            break
        refined = judge(found.x + found.step)
        found = pick(~found.exact & (refined.left <= found.left), refined, found)
    status = solver.status(factors).repeat(columns)
    failing = ~found.exact & (status == 0)
    if eager and solver.backup is not None and bool(failing.any()):
        other = solver.backup
        again, ends = solve_directly(other, A, b, other.factor(A), nullspaces, say)
        ends = torch.zeros_like(status) if ends is None else ends
        status, found = pick(failing, (ends, again), (status, found))
    goal = torch.maximum(20 * found.floor, torch.finfo(b.dtype).eps ** 0.75 * found.size)
    lost = ~(found.solid & (found.exact | (found.left <= goal)))
    lost = lost & (status == 0) & (found.size < torch.inf)
    return found, torch.where(lost, int(Status.SINGULAR), status)


def judged(
    solver: Any,
    A: LaneMap,
    b: Tensor,
    factors: tuple[Tensor, ...],
    x: Tensor,
    nullspaces: tuple[bool, bool] = (False, False),
    say: bool = False,
) -> DirectSolution:
    """Measure a solution ``x``; the other arguments are those of `solve_directly`."""
    eps, (left, right) = torch.finfo(b.dtype).eps, nullspaces
    r = b - A.mv(x)
    if not solver.exact:
        # it need not solve the system, nor is anything known of its error
        size, unknown = _largest(x), torch.full_like(b[:, 0].abs(), math.inf)
        solid = solver.accepts(factors, r, b, A.transposed)
        return DirectSolution(x, r, x, size, unknown, unknown, unknown, size < torch.inf, solid)
    w = solver.sizes(A, factors, x) + b.abs()
    noise = _sampled(w.amax(-1, keepdim=True).expand_as(w) if left else w)
    if left:
        # orthogonal factors keep sizes of columns alone; and columns turn against what is left
        turned = solver.solve_lanes(A.flipped(), factors, _sampled(A.flipped().sizes(r)).to(b))
        noise = noise + turned
    moved = solver.solve_lanes(A, factors, torch.cat([r, noise]))
    size, step, *floors = _largest(torch.cat([x, moved])).view(4, -1).unbind()
    floor = eps * torch.maximum(*floors)
    error = step + floor
    if say:
        parts = safe_rms(moved).view(3, -1)
        error = parts[0] + eps * parts[1:].amax(0)
    if right:
        # and it turns the rows
        shadow = A.flipped().sizes(solver.solve_lanes(A.flipped(), factors, x))
        error, floor = error + eps * safe_rms(shadow), floor + eps * _largest(shadow)
    if not left:
        exact = (r.abs() <= 10 * eps * math.sqrt(x.shape[-1]) * w).all(-1)
        solid = step + floor <= _DIGIT * size
    else:
        # the residual may be large, the solution zero: if anything, the rank is in question
        exact = solid = size < torch.inf
    if left and not right:
        y = moved[len(x) : 2 * len(x)]
        again = _sampled(A.sizes(y).amax(-1, keepdim=True).expand_as(r)).to(b)
        again = _largest(solver.solve_lanes(A, factors, again)).view(2, -1).amax(0)
        solid = eps * again <= _DIGIT * _largest(y)
    return DirectSolution(x, r, moved[: len(x)], size, step, floor, error, exact, solid)


def _largest(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, math.inf, dim=-1)


def _sampled(w: Tensor) -> Tensor:
    """Return two vectors ``(2 N, n)`` of the sizes ``w``, in units of ``eps``."""
    first, second, _ = patterns(w)
    return torch.cat([w * first, w * second])
