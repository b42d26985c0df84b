"""The linear solver for the Jacobian of the normal map."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.convex.cones import Cones
from implicit_solvers.problems.convex.normal_map import linearize

__all__ = ["NormalMapLU"]


@dataclass(frozen=True)
class NormalMapLU(ims.DirectSolver):
    """LU factorization of the Jacobian of `normal_map`; where it is singular, the pseudo-inverse.

    Equations that depend on one another leave the multipliers undetermined, and the Jacobian
    singular, while ``x`` has derivatives: the system for them has solutions, of which the one of
    least norm is taken. Where a system has no solution, because what was asked for has no
    derivative, the lane ends as SINGULAR. Singular is a matrix, rows scaled to equal size, with a
    pivot of at most ``t`` times the largest entry of its column, and singular values up to ``t``
    times the largest count as zero. With equations and inequalities alone the matrix is known up to
    rounding, and ``t`` is ``10 n eps``; with other cones ``eps**(2/3)``.

    Parameters
    ----------
    cones
        The cones of the program; `ConvexLayer` fills them in.

    Notes
    -----
    Source: Golub and Van Loan, "Matrix Computations", sections 3.4 and 5.5.

    Examples
    --------
    >>> twice = torch.tensor([[1.0, 2.0], [1.0, 2.0]]).double()
    >>> solver = NormalMapLU()
    >>> solver.solve(solver.factor_dense(twice[None]), twice[None, :, 1:], False)[0, :, 0]
    tensor([0.4000, 0.8000], dtype=torch.float64)
    """

    cones: Cones = field(default_factory=Cones)
    exact: ClassVar[bool] = False
    traceable: ClassVar[bool] = False

    def factor(self, A: ims.LinearOperator) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Factor the Jacobian, written out."""

        def jacobian(like: Tensor, z: Tensor, P: Tensor, c: Tensor, A: Tensor, b: Tensor) -> Tensor:
            return linearize(z, P, c, A, b, self.cones).jacobian()

        matrix = A.on_grid(jacobian)  # type: ignore[attr-defined]
        return self.factor_dense(matrix.reshape(-1, *matrix.shape[-2:]))

    def factor_dense(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Factor matrices ``(grid, n, n)``; pseudo-inverses stand in the place of factors.

        Both are transposed.
        """
        packed, pivots, _, scale = ims.LU().factor_dense(matrix)
        tol = self._tolerance(matrix)
        pivot = packed.diagonal(dim1=-2, dim2=-1).abs()
        # scaled entries are at most 1: where every pivot is large, no column needs to be looked at
        regular = (pivot > tol).all(-1)
        index = (~regular & (scale.abs() > 0).flatten(1).all(-1)).nonzero().squeeze(-1)
        if len(index):
            scaled = matrix[index] * scale[index]
            fine = (pivot[index] > tol * scaled.abs().amax(-2)).all(-1)
            regular = regular.index_copy(0, index, fine)
            index, scaled = index[~fine], scaled[~fine]
            packed = packed.index_copy(0, index, torch.linalg.pinv(scaled, rtol=tol).mT)
        return scale, packed, pivots, regular

    def _tolerance(self, matrix: Tensor) -> float:
        eps = torch.finfo(matrix.dtype).eps
        return eps ** (2 / 3) if self.cones.curved else 10 * matrix.shape[-1] * eps

    def solve(self, factors: tuple[Tensor, ...], b: Tensor, transposed: bool) -> Tensor:
        """Return ``J^-1 b`` or ``J^-T b``, for ``b (grid, n, columns)``."""
        scale, packed, pivots, regular = factors
        x = ims.LU().solve((packed, pivots, regular, scale), b, transposed)
        if bool(regular.all()):
            return x
        other = scale * (packed @ b) if transposed else packed.mT @ (scale * b)
        return torch.where(regular[:, None, None], x, other)

    def status(self, factors: tuple[Tensor, ...]) -> Tensor:
        """Return NONFINITE where the matrix is not finite."""
        finite = (factors[0].abs() > 0).flatten(1).all(-1)
        return torch.where(finite, 0, int(ims.Status.NONFINITE))
