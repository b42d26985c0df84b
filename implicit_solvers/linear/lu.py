"""LU factorization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.linear.direct import DirectSolver, Factors
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.solution import Status
from implicit_solvers.traced_loop import repeat

__all__ = ["LU"]


@dataclass(frozen=True)
class LU(DirectSolver):
    """LU factorization with partial pivoting, rows scaled to equal size.

    An operator is reported as singular if a pivot is at most ``n eps`` times the largest entry of
    its column of ``U``, which no scaling of rows or columns changes. Source: Golub and Van
    Loan, "Matrix Computations", sections 3.4 and 3.5.

    For square operators ``(*lanes, n, n)`` in float32, float64 and their complex kin;
    operators known by products are formed first.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> ims.linear_solve(A, torch.tensor([2.0, 3.0]), solver=LU()).value
    tensor([3., 1.])
    """

    def factor(self, A: LaneMap) -> Factors:
        """Return the scaling, the packed factors, the pivots, and whether each is regular.

        The packed factors are transposed: LAPACK wants columns that are contiguous, and copies of
        a tensor keep its rows so.
        """
        return self.factor_dense(A.dense())

    def factor_dense(self, matrix: Tensor) -> Factors:
        """Factor matrices ``(grid, n, n)``."""
        n = matrix.shape[-1]
        if n == 0:
            return (matrix[..., 0, :], matrix, matrix[..., 0, :].int(), _regular(matrix))
        eager = matrix.device.type == "cpu" and not compiling()
        if matrix.is_complex() or not eager:
            scale = _scale(matrix.abs())
            scaled = matrix * scale.unsqueeze(-1)
            factors, pivots, _ = torch.linalg.lu_factor_ex(scaled)
        else:
            # one column-major buffer serves for all: fresh memory costs as much as the arithmetic
            factors = torch.empty_like(matrix.mT, memory_format=torch.contiguous_format).mT
            scale = _scale(torch.abs(matrix, out=factors))
            torch.mul(matrix, scale.unsqueeze(-1), out=factors)
            pivots = torch.empty(matrix.shape[:-1], dtype=torch.int32, device=matrix.device)
            info = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
            torch.linalg.lu_factor_ex(factors, out=(factors, pivots, info))
        packed = factors.mT
        pivot = packed.diagonal(dim1=-2, dim2=-1).abs()
        least = n * torch.finfo(matrix.dtype).eps
        # scaled entries are at most 1: where every pivot is large, no column needs to be looked at
        regular = (pivot > least).all(-1)

        def by_columns(_: Tensor) -> Tensor:
            return (pivot > least * packed.tril().abs().amax(-1)).all(-1)

        if matrix.device.type != "cpu" or torch.compiler.is_exporting():
            regular = by_columns(regular)  # (a GPU would have to be waited for)
        else:
            regular = repeat(lambda regular: ~regular.all(), by_columns, regular, 1)
        return scale, packed, pivots, regular

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b`` or ``A^-T b``."""
        scale, packed, pivots, _ = factors
        lu, scale = packed.mT, scale.unsqueeze(-1)
        if transposed:
            return scale * torch.linalg.lu_solve(lu, pivots, b, adjoint=True)
        return torch.linalg.lu_solve(lu, pivots, scale * b)

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where a pivot vanishes, NONFINITE where the matrix is not finite."""
        scale, _, _, regular = factors
        finite = (scale.abs() > 0).all(-1)
        status = torch.where(regular, 0, int(Status.SINGULAR))
        return torch.where(finite, status, int(Status.NONFINITE))


def _scale(sizes: Tensor) -> Tensor:
    """Return what makes the largest entry of each row 1; NaN for a row with NaN, 0 for inf."""
    largest = sizes.amax(-1)
    scale = torch.where(largest == 0, 1.0, 1 / largest)
    return scale.clamp(max=torch.finfo(sizes.dtype).max)


def _regular(matrix: Tensor) -> Tensor:
    return torch.ones(matrix.shape[:-2], dtype=torch.bool, device=matrix.device)
