"""QR factorization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors

__all__ = ["QR"]


@dataclass(frozen=True)
class QR(DirectSolver):
    """QR factorization, for operators of full rank, square or rectangular.

    With more rows than columns the solution has the least ``norm(b - A x)``; with fewer, it is
    that of ``A x = b`` with the least norm. An operator is reported as singular if its columns
    (rows, if there are fewer), scaled to equal length, have a condition number of at least
    ``1 / (n eps)``. Source: Golub and Van Loan, "Matrix Computations", sections 5.3 and 5.6.

    For operators ``(*lanes, m, n)`` in float32, float64 and their complex kin;
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
        """Return ``Q``, ``R`` and whether it is regular; of ``A^H`` if there are fewer rows."""
        matrix = A.dense()
        if matrix.shape[-2] < matrix.shape[-1]:
            matrix = matrix.mH
        q, r = torch.linalg.qr(matrix)
        n, eps = r.shape[-1], torch.finfo(r.dtype).eps
        if n == 0:
            return q, r, torch.ones(len(r), dtype=torch.bool, device=r.device)
        length = torch.linalg.vector_norm(r, dim=-2, keepdim=True)
        scaled = torch.where(length > 0, r / length, 0.0)
        eye = torch.eye(n, dtype=r.dtype, device=r.device)
        inverse = torch.linalg.solve_triangular(scaled, eye.expand_as(r), upper=True)
        condition = torch.linalg.matrix_norm(scaled, 1) * torch.linalg.matrix_norm(inverse, 1)
        return q, r, condition * n * eps < 1

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^+ b`` or ``A^+T b``."""
        q, r, _ = factors
        tall = not transposed if q.shape[-2] == q.shape[-1] else b.shape[-2] == q.shape[-2]
        if tall:
            return torch.linalg.solve_triangular(r, q.mH @ b, upper=True)
        return q @ torch.linalg.solve_triangular(r.mH, b, upper=False)

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where the rank is not full, NONFINITE where the matrix is not finite."""
        q, r, regular = factors
        finite = torch.isfinite(q).flatten(1).all(-1) & torch.isfinite(r).flatten(1).all(-1)
        status = torch.where(regular, 0, int(Status.SINGULAR))
        return torch.where(finite, status, int(Status.NONFINITE))
