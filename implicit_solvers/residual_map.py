"""The Jacobian of a fit's residuals, as its solvers multiply with it. It knows no solver."""

from __future__ import annotations

from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.linear.lane_map import LaneMap

__all__ = ["ResidualMap"]


class ResidualMap:
    """The Jacobian ``J``, ``m x n``, of the residuals of each of N lanes.

    Its columns are zero for unknowns that are not ``free``, ``(N, n)``; all are if that is None.
    """

    def __init__(self, jacobian: LaneMap, free: Tensor | None = None) -> None:
        self.jacobian, self.free = jacobian, free

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.jacobian.separable

    def _here(self) -> LaneMap:
        # in a graph, wherever this is called may be the body of a loop
        return self.jacobian.aliased() if compiling() else self.jacobian

    def mv(self, v: Tensor) -> Tensor:
        """Return ``J v`` for ``v (N, n)``, ``(N, m)``."""
        return self._here().mv(v if self.free is None else v * self.free)

    def rmv(self, w: Tensor) -> Tensor:
        """Return ``J^T w`` for ``w (N, m)``, ``(N, n)``."""
        out = self._here().rmv(w)
        return out if self.free is None else out * self.free

    def dense(self) -> Tensor:
        """Return the matrices ``(N, m, n)``."""
        matrix = self.jacobian.dense()
        return matrix if self.free is None else matrix * self.free.unsqueeze(-2)

    def aliased(self) -> ResidualMap:
        """Return the map as the body of a loop in a graph has to see it."""
        return ResidualMap(self.jacobian.aliased(), self.free)

    def take(self, index: Tensor) -> ResidualMap:
        """Return the map of some of the lanes."""
        free = None if self.free is None else self.free[index]
        return ResidualMap(self.jacobian.take(index), free)
