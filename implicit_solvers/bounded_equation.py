"""Equations between bounds: what holds at a minimum that some of them stop. It knows no solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from implicit_solvers.bounds import bounds_of, projected
from implicit_solvers.lanes import Lanes
from implicit_solvers.outcome import ROUNDINGS
from implicit_solvers.problem import Equation, EquationProblem

__all__ = ["Bounded"]


class Bounded(Equation):
    """The condition of a minimum between bounds, ``lo <= z <= hi``, the first two operands.

    It is ``z = P(z - t slope)`` for a small ``t``, with the projection ``P``: an unknown at a bound
    that its slope holds it to follows that bound, and the slope of the others vanishes. So no
    units enter. Source: Bertsekas, "Projected Newton Methods for Optimization Problems with Simple
    Constraints", SIAM J. Control Optim. 20 (1982).
    """

    symmetric: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    own: ClassVar[int] = 2

    def slope(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return the condition without bounds."""
        return super().condition(z, *operands)

    def condition(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return the condition."""
        return projected(z, self.slope(z, *operands), *operands[:2])

    def condition_over(self, lanes: Lanes) -> Callable[..., Tensor]:
        """Return `condition` as a function of all lanes."""
        slope, bounds = self.slope_over(lanes), lanes.over(bounds_of)

        def condition(z: Tensor, *operands: Tensor) -> Tensor:
            return projected(z, slope(z, *operands), *bounds(z, *operands))

        return condition

    def slope_over(self, lanes: Lanes) -> Callable[..., Tensor]:
        """Return `slope` as a function of all lanes."""
        return replace(self, fn=lanes.over(self.fn)).slope

    def degenerate(self, problem: EquationProblem, z: Tensor, error: Tensor) -> Tensor:
        """Tell in which lanes an unknown is at a bound without being held to it, or next to it.

        That is what rounding, or the ``error`` of ``z``, can make of either: there the solution has
        two derivatives, one to each side.
        """
        assert problem.bounds is not None
        eps, (lo, hi) = torch.finfo(z.dtype).eps, problem.bounds
        slope, A = problem.slope(z), problem.linearize_slope(z)
        size, known = problem.largest(z), error < torch.inf
        doubt = ROUNDINGS * eps + torch.where(known & (size > 0), error / size, 0.0)
        doubt = doubt.unsqueeze(-1)
        flat = slope.abs() <= doubt * (A.sizes(z) + slope.abs())
        at, near = (z <= lo) | (z >= hi), torch.minimum(z - lo, hi - z) <= doubt * problem.reach(z)
        return ((lo < hi) & ((at & flat) | (~at & near))).any(-1)
