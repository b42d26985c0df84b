"""What the direct solvers have in common: one factorization, many right-hand sides."""

from __future__ import annotations

from torch import Tensor

from implicit_solvers.linear.lane_map import LaneMap

__all__ = ["DirectSolver", "Factors"]

Factors = tuple[Tensor, ...]


class DirectSolver:
    """A solver that factors the operators once and then solves any number of systems.

    ``factor`` takes the operators of a grid of lanes, ``solve`` the factors and right-hand sides
    ``(grid, n, columns)``, and ``status`` tells which operators it could not factor.
    """

    def factor(self, A: LaneMap) -> Factors:
        """Return the factors of each operator, tensors ``(grid, ...)``."""
        raise NotImplementedError

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b`` or ``A^-T b``."""
        raise NotImplementedError

    def status(self, factors: Factors) -> Tensor:
        """Return a `Status` for each operator."""
        raise NotImplementedError
