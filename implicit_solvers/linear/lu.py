"""LU factorization. It knows a matrix, not whose it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_solvers.linear.qr import QR, scaled_rows
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors

__all__ = ["LU"]


@dataclass(frozen=True)
class LU(DirectSolver):
    """LU factorization with partial pivoting, rows scaled to equal size.

    Where the factors grow so much that refinement does not help, `QR` solves. Source: Higham,
    "Accuracy and Stability of Numerical Algorithms" (2002), chapter 9.

    For square operators ``(*batch, n, n)`` in float32, float64 and their complex counterparts;
    operators known by products are formed first.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> ims.linear_solve(A, torch.tensor([2.0, 3.0]), solver=LU()).value
    tensor([3., 1.])
    """

    @property
    def backup(self) -> DirectSolver:
        """Nothing grows in it."""
        return QR()

    def factor_dense(self, matrix: Tensor) -> Factors:
        """Factor matrices ``(grid, n, n)`` with their rows scaled to equal size."""
        scaled, scale = scaled_rows(matrix)
        return *_factor(scaled), scale

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

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where a pivot is zero, NONFINITE where the matrix is not finite."""
        packed, _, info, *scale = factors
        # a row that is not finite has no scale
        finite = (scale[0] > 0 if scale else torch.isfinite(packed)).flatten(-2).all(-1)
        status = torch.where(info == 0, 0, int(Status.SINGULAR))
        return torch.where(finite, status, int(Status.NONFINITE))


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
