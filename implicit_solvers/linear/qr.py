"""QR factorization. It knows a matrix, not whose it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors

__all__ = ["QR", "scaled_rows"]


@dataclass(frozen=True)
class QR(DirectSolver):
    """QR factorization, for operators of full rank, square or rectangular.

    With more rows than columns the solution has the least ``norm(b - A x)``; with fewer, it is
    that of ``A x = b`` with the least norm. Unless there are more rows than columns, rows are
    scaled to equal size. Source: Golub and Van Loan, "Matrix Computations", sections 5.3 and 5.6.

    For operators ``(*batch, m, n)`` in float32, float64 and their complex counterparts;
    operators known by products are formed first.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]))
    >>> fit = ims.linear_solve(A, torch.tensor([1.0, 3.0, 5.0]), solver=QR()).value  # of a line
    >>> fit.round(decimals=3)
    tensor([1., 2.])
    """

    def nullspaces(self, rows: int, columns: int) -> tuple[bool, bool]:
        """Whether ``A^T`` and ``A`` have a null space."""
        return rows > columns, columns > rows

    def factor(self, A: LaneMap) -> Factors:
        """Return ``Q``, ``R`` and the scales of rows; of ``A^H`` if there are fewer rows."""
        matrix = A.dense()
        m, n = matrix.shape[-2:]
        if m > n:
            return *torch.linalg.qr(matrix), torch.ones_like(matrix[..., :1].abs())
        matrix, scale = scaled_rows(matrix)
        return *torch.linalg.qr(matrix.mH if m < n else matrix), scale

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^+ b`` or ``A^+T b``."""
        q, r, scale = factors
        tall = not transposed if q.shape[-2] == q.shape[-1] else b.shape[-2] == q.shape[-2]
        if not transposed:
            b = scale * b
        if tall:
            x = torch.linalg.solve_triangular(r, q.mH @ b, upper=True)
        else:
            x = q @ torch.linalg.solve_triangular(r.mH, b, upper=False)
        return scale * x if transposed else x

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where a pivot is zero, NONFINITE where the matrix is not finite."""
        r = factors[1]
        regular = (r.diagonal(dim1=-2, dim2=-1) != 0).all(-1)
        status = torch.where(regular, 0, int(Status.SINGULAR))
        return torch.where(torch.isfinite(r).flatten(1).all(-1), status, int(Status.NONFINITE))


def scaled_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return matrices with rows scaled to equal size, and the scales."""
    if matrix.shape[-1] == 0:
        return matrix, matrix.abs().sum(-1, keepdim=True)
    scale = matrix.abs().amax(-1, keepdim=True).reciprocal()
    scale = scale.clamp(max=torch.finfo(scale.dtype).max)
    return matrix * scale, scale
