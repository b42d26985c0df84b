"""What a fixed-point iteration knows of its error: the step over one minus the contraction.

It knows no Jacobian.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import between, divide, larger, pick, smaller
from implicit_solvers.problem import EquationProblem

__all__ = ["Rates", "after_step"]


class Rates(NamedTuple):
    """The mean contraction of the recent steps, and the worst, which is forgotten slowly."""

    mean: Any
    worst: Any

    @classmethod
    def unknown(cls, like: Any) -> Rates:
        """Return what to begin with."""
        return cls(0 * like + 0.5, 0 * like + 0.5)


_SHARE, _REMEMBERED, _NOISE = 0.2, 0.98, 100.0


def after_step(
    problem: EquationProblem,
    solver: Any,
    z: Tensor,
    step: Any,
    ratio: Any,
    before: Rates,
    count: int = 1,
) -> tuple[Rates, Any, Any, Any]:
    """Return the contraction, the estimated error of ``z``, its rounding, and what it may be.

    ``step`` is the size of the plain step from ``z``, ``ratio`` the last secant contraction,
    ``|g(z) - g(y)| / |z - y|``, or that of ``count`` steps. The contraction is a mean of the recent
    ones, in which a new one has a fifth; what a step of a hundred roundings of ``z`` shows is
    noise. The error is the step over one minus the contraction, infinite where the last ratio was
    none, and may be that by the worst contraction that was seen. Source: Hairer and Wanner,
    "Solving Ordinary Differential Equations II" (1996), section IV.8.
    """
    rounding = torch.finfo(z.dtype).eps * problem.scale(solver, z)
    ratio = ratio if count == 1 else ratio ** (1 / count)
    last = pick(step > _NOISE * rounding, ratio, before.mean)
    kept, remembered = (1 - _SHARE) ** count, _REMEMBERED**count
    least = smaller(last, 1.0)
    mean = between(least, before.mean, kept)
    worst = larger(between(mean, before.worst, remembered), least)
    left = 1 - mean
    estimate = pick(last < 1, divide(step, left), torch.inf)
    bound = divide(step + rounding, 1 - worst)
    return Rates(mean, worst), estimate, divide(rounding, left), bound
