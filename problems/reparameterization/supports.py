"""Supports of distributions on an interval, as torch's own have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Transform,
    biject_to,
    constraints,
    transform_to,
)
from torch.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform

from implicit_solvers.problems.reparameterization.inversion import place
from implicit_solvers.torch_internals import is_batched

__all__ = ["between"]


class _LessThanEq(constraints.Constraint):
    """Numbers up to ``upper_bound``; torch has this for lower bounds only."""

    def __init__(self, upper_bound: Tensor | float) -> None:
        self.upper_bound = upper_bound
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Return which values are not larger."""
        return value <= self.upper_bound

    def __repr__(self) -> str:
        return f"LessThanEq(upper_bound={self.upper_bound})"


class _LaneInterval(constraints.interval):
    """Intervals of which some have infinite ends, and others not."""


class PlaceTransform(Transform):
    """The real line onto intervals, as `place` does it."""

    domain, bijective, sign = constraints.real, True, 1

    def __init__(self, support: Any) -> None:
        super().__init__()
        self.codomain = support
        self.low, self.high = support.lower_bound, support.upper_bound

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlaceTransform) and self.codomain is other.codomain

    def _call(self, x: Tensor) -> Tensor:
        return place(x, self.low, self.high)

    def _inverse(self, y: Tensor) -> Tensor:
        below, above = (y - self.low).log(), (self.high - y).log()
        return self._by_lane(below - above, below, -above, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of the slope."""
        both = (self.high - self.low).log() - torch.nn.functional.softplus(x)
        both = both - torch.nn.functional.softplus(-x)
        return self._by_lane(both, x, -x, torch.zeros_like(x))

    def _by_lane(self, both: Tensor, from_low: Tensor, from_high: Tensor, none: Tensor) -> Tensor:
        low, high = self.low.isfinite(), self.high.isfinite()
        one = torch.where(low, from_low, torch.where(high, from_high, none))
        return torch.where(low & high, both, one)


biject_to.register(_LaneInterval, PlaceTransform)
transform_to.register(_LaneInterval, PlaceTransform)


@biject_to.register(_LessThanEq)
@transform_to.register(_LessThanEq)
def _to_less_than(support: Any) -> Transform:
    return ComposeTransform([ExpTransform(), AffineTransform(support.upper_bound, -1)])


def between(low: Tensor | float, high: Tensor | float) -> Any:
    """Return the support of a distribution on a closed interval.

    Its ends may be infinite: if all intervals are half-open it is ``greater_than_eq`` or its mirror
    image, if none has an end the real numbers. Where that differs between lanes, and under
    ``vmap``, it is an interval with infinite ends.

    Examples
    --------
    >>> between(torch.tensor(1.0), torch.tensor(torch.inf))
    GreaterThanEq(lower_bound=1.0)
    """
    ends: list[Tensor] = torch.broadcast_tensors(*map(torch.as_tensor, (low, high)))
    if any(map(is_batched, ends)):
        return _LaneInterval(*ends)
    from_low, from_high = (end.isfinite() for end in ends)
    if bool(from_low.all()) and bool(from_high.all()):
        return constraints.interval(low, high)
    if not bool(from_high.any()):
        if not bool(from_low.any()):
            return constraints.real
        if bool(from_low.all()):
            return constraints.greater_than_eq(low)
    elif not bool(from_low.any()) and bool(from_high.all()):
        return _LessThanEq(high)
    return _LaneInterval(low, high)
