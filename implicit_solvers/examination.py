"""What is known of a point: Newton's step from it, and the error that rounding makes there.

It knows no tolerance: `verdict` judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask
from implicit_solvers.rounding import patterns

__all__ = ["ULPS", "Examination", "by_newton", "roundings"]

ULPS = 4.0


class Examination(NamedTuple):
    """What is known of points ``z (N, n)``: the residual, Newton's step, and what rounding makes.

    Newton's next point is ``z - step``. ``noise`` are errors that the rounding of ``F`` may make
    in ``z``; the last of them was seen in ``F``, the others are what to expect of it. ``kick``
    leads down where the curvature is negative, and is zero elsewhere; ``jacobian`` is that of the
    condition. Where it is not ``drowned``, ``F`` is larger than its rounding, however small the
    step is beside the noise. A point that is ``wrong`` is none, however short the step is. A
    ``coarse`` step does not say how large the error is.
    """

    residual: Tensor
    step: Tensor
    noise: Sequence[Tensor]
    factors: tuple[Tensor, ...]
    kick: Tensor | None = None
    drowned: Mask = True
    jacobian: Any = None
    wrong: Mask = False
    coarse: bool = False


def by_newton(problem: Any, z: Tensor, direct: Any) -> Examination:
    """Examine points by the factors of the Jacobian of the condition."""
    F, A = problem.residual_to_factor(z), problem.linearize(z)
    free, kept = problem.free(z), ()
    if free is None:
        factors = kept = direct.factor(A)
    else:
        # what is held makes no step: pivots among the others do not depend on units
        across = free.unsqueeze(-1) & free.unsqueeze(-2)
        held = torch.diag_embed((~free).to(z.dtype))
        factors = direct.factor_dense(torch.where(across, A.dense(), held))
    A.matrices = A.formed
    w = direct.sizes(A, factors, z) + F.abs()
    if problem.equation.subtracts:
        w = w + z.abs()
    columns = torch.stack([F, *roundings(problem, z, F, A, w)], -1)
    step, *noise = direct.solve_with(A.memory, factors, columns, False).unbind(-1)
    if kept:
        kept = (*kept, z.new_empty(len(z), 0) if A.formed is None else A.formed)
    return Examination(F, step, noise, kept, jacobian=A)


def roundings(
    problem: Any, z: Tensor, F: Tensor, A: Any, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return three samples of what rounding does to ``F`` at ``z``.

    Two are a rounding of every term, of the sizes ``w``, by patterns of signs; the last is how far
    ``F`` is from its linear model after a step of a few roundings of ``z``.
    """
    eps = torch.finfo(z.dtype).eps
    first, second, third = patterns(z)
    w = eps * w
    there = problem.within(torch.addcmul(z, problem.reach(z), third, value=ULPS * eps))
    seen, free = problem.residual(there), problem.free(z)
    if free is not None:
        # (rounding may release an unknown from its bound, in the units of a slope)
        seen = torch.where(free, seen, F)
    return w * first, w * second, seen - F - A.mv(there - z)
