"""LU factorization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_solvers.linear.direct import DirectSolver, Factors
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.solution import Status

__all__ = ["LU"]


@dataclass(frozen=True)
class LU(DirectSolver):
    """LU factorization with partial pivoting, rows scaled to equal size.

    An operator is reported as singular if a pivot is at most ``n eps`` times the largest entry of
    its column after scaling, which no scaling of rows or columns changes. Source: Golub and Van
    Loan, "Matrix Computations", sections 3.4 and 3.5.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> ims.linear_solve(A, torch.tensor([2.0, 3.0]), solver=LU()).value
    tensor([3., 1.])
    """

    def factor(self, A: LaneMap) -> Factors:
        """Return the scaling, the packed factors, the pivots, and whether each is regular."""
        return self.factor_dense(A.dense())

    def factor_dense(self, matrix: Tensor) -> Factors:
        """Factor matrices ``(grid, n, n)``."""
        n, eps = matrix.shape[-1], torch.finfo(matrix.dtype).eps
        if n == 0:
            return (matrix[..., 0, :], matrix, matrix[..., 0, :].int(), _regular(matrix))
        largest = matrix.abs().amax(-1)
        scale = torch.where(largest > 0, 1 / largest, 1.0)
        scaled = matrix * scale.unsqueeze(-1)
        factors, pivots, _ = torch.linalg.lu_factor_ex(scaled)
        pivot = factors.diagonal(dim1=-2, dim2=-1).abs()
        regular = (pivot > n * eps * scaled.abs().amax(-2)).all(-1)
        return scale, factors, pivots, regular

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b`` or ``A^-T b``."""
        scale, lu, pivots, _ = factors
        scale = scale.unsqueeze(-1)
        if transposed:
            return scale * torch.linalg.lu_solve(lu, pivots, b, adjoint=True)
        return torch.linalg.lu_solve(lu, pivots, scale * b)

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where a pivot vanishes, NONFINITE where the matrix is not finite."""
        _, lu, _, regular = factors
        finite = torch.isfinite(lu).flatten(1).all(-1)
        status = torch.where(regular, 0, int(Status.SINGULAR))
        return torch.where(finite, status, int(Status.NONFINITE))


def _regular(matrix: Tensor) -> Tensor:
    return torch.ones(matrix.shape[:-2], dtype=torch.bool, device=matrix.device)
