"""What a fixed-point iteration knows of its error: the step over one minus the contraction."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import both, divide, larger, pick
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


_SHARE, _REMEMBERED, _NOISE, _LEAST = 0.2, 0.98, 100.0, 1e-3


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
    ``|g(z) - g(y)| / |z - y|``, or that of ``count`` steps. The contraction is a geometric mean of
    the recent ones, in which a new one has a fifth; what a step of a hundred roundings of ``z``
    shows is noise. The error is the step over one minus the contraction, and may be
    that by the worst contraction that was seen. Source: Hairer and
    Wanner, "Solving Ordinary Differential Equations II" (1996), section IV.8.
    """
    eps, size = torch.finfo(z.dtype).eps, problem.scale(solver, z)
    kept = (1 - _SHARE) ** count
    seen = both(step > _NOISE * eps * size, ratio < torch.inf)
    ratio = larger(pick(seen, ratio, 1.0), _LEAST**count) ** (1 / count)
    mean = pick(seen, before.mean**kept * ratio ** (1 - kept), before.mean)
    worst = larger(mean, mean + _REMEMBERED**count * (before.worst - mean))
    worst = pick(both(both(seen, ratio < 1), ratio > worst), ratio, worst)
    gap, least = (1 - pick(rate < 1, rate, 1.0) for rate in (mean, worst))
    rounding = divide(eps * size, gap)
    estimate = pick(step == 0, 0.0, divide(step, gap))
    return Rates(mean, worst), estimate, rounding, divide(step + eps * size, least)
