"""LU factorization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_solvers.linear.direct import DirectSolver, Factors
from implicit_solvers.solution import Status

__all__ = ["LU"]


@dataclass(frozen=True)
class LU(DirectSolver):
    """LU factorization with partial pivoting.

    An operator is reported as singular if a pivot is at most ``n eps`` times the sizes of what the
    elimination took from it, the diagonal of ``|L| |U|``: rounding may have left that of zero.
    Neither units of rows nor of columns enter. Source: Higham, "Accuracy and Stability of
    Numerical Algorithms" (2002), theorem 9.3.

    For square operators ``(*lanes, n, n)`` in float32, float64 and their complex kin;
    operators known by products are formed first.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> ims.linear_solve(A, torch.tensor([2.0, 3.0]), solver=LU()).value
    tensor([3., 1.])
    """

    def factor_dense(self, matrix: Tensor) -> Factors:
        """Return the packed factors, the pivots, and what LAPACK said of each.

        The packed factors are transposed: LAPACK wants columns that are contiguous, and copies of
        a tensor keep its rows so.
        """
        if matrix.shape[-1] == 0:
            none = torch.zeros(matrix.shape[:-1], dtype=torch.int32, device=matrix.device)
            return matrix, none, none.sum(-1)
        packed, pivots, info = torch.linalg.lu_factor_ex(matrix)
        return packed.mT, pivots, info

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b`` or ``A^-T b``."""
        packed, pivots, _ = factors
        return torch.linalg.lu_solve(packed.mT, pivots, b, adjoint=transposed)

    def unfit(self, factors: Factors) -> Tensor:
        """Tell where a pivot is zero."""
        return factors[2] != 0

    def regular(self, factors: Factors) -> Tensor:
        """Tell where no pivot vanishes."""
        size = factors[0].abs()
        n, pivot = size.shape[-1], size.diagonal(dim1=-2, dim2=-1)
        others = (size * size.mT).triu(1).sum(-2)
        return (pivot > n * torch.finfo(size.dtype).eps * others).all(-1)

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where a pivot vanishes, NONFINITE where the matrix is not finite."""
        finite = torch.isfinite(factors[0]).flatten(-2).all(-1)
        status = torch.where(finite, int(Status.SINGULAR), int(Status.NONFINITE))
        return torch.where(self.regular(factors) & finite, 0, status)
