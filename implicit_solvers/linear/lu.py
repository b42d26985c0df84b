"""LU factorization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors

__all__ = ["LU"]

_MANY_ENTRIES = 1 << 20


@dataclass(frozen=True)
class LU(DirectSolver):
    """LU factorization with partial pivoting, rows scaled to equal size.

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
        """Factor matrices ``(grid, n, n)`` with their rows scaled to equal size."""
        if matrix.shape[-1] == 0:
            return *_factor(matrix), matrix
        scale = matrix.abs().amax(-1, keepdim=True).reciprocal()
        scale = scale.clamp(max=torch.finfo(scale.dtype).max)
        return *_factor(matrix * scale), scale

    def factor_for_a_step(self, A: LaneMap) -> Factors:
        """Factor the operators as they are."""
        return _factor(A.dense())

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b`` or ``A^-T b``."""
        packed, pivots, _, *scale = factors
        if scale and not transposed:
            b = scale[0] * b
        x = torch.linalg.lu_solve(packed.mT, pivots, b, adjoint=transposed)
        return scale[0] * x if scale and transposed else x

    def unfit(self, factors: Factors) -> Tensor:
        """Tell where a pivot is zero."""
        return factors[2] != 0

    def regular(self, factors: Factors) -> Tensor:
        """Tell where no pivot vanishes."""
        size, n = factors[0].abs(), factors[0].shape[-1]
        pivot = size.diagonal(dim1=-2, dim2=-1)
        least = n * torch.finfo(size.dtype).eps
        if size.numel() > _MANY_ENTRIES and size.device.type == "cpu" and not compiling():
            # no sum below is larger than n times the largest entry
            clear = pivot.amin(-1) > least * n * size.amax((-2, -1)).clamp(min=1)
            if bool(clear.all()):
                return clear
        return (pivot > least * (size * size.mT).triu(1).sum(-2)).all(-1)

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where a pivot vanishes, NONFINITE where the matrix is not finite."""
        packed, _, _, *scale = factors
        # a row that is not finite has no scale
        finite = (scale[0].squeeze(-1) > 0 if scale else torch.isfinite(packed).flatten(-2)).all(-1)
        status = torch.where(finite, int(Status.SINGULAR), int(Status.NONFINITE))
        return torch.where(self.regular(factors) & finite, 0, status)


def _factor(matrix: Tensor) -> Factors:
    """Return the packed factors, the pivots, and what LAPACK said of each.

    The packed factors are transposed: LAPACK wants columns that are contiguous, and copies of a
    tensor keep its rows so.
    """
    if matrix.shape[-1] == 0:
        none = matrix.new_empty(*matrix.shape[:-1], dtype=torch.int32)
        return matrix, none, none.sum(-1)
    packed, pivots, info = torch.linalg.lu_factor_ex(matrix)
    return packed.mT, pivots, info
