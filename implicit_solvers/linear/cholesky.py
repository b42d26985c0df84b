"""Cholesky factorization. It knows a matrix, not whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors

__all__ = ["Cholesky"]


@dataclass(frozen=True)
class Cholesky(DirectSolver):
    """Cholesky factorization, for symmetric positive definite operators.

    It reads the lower triangle. Source: Golub and Van Loan, "Matrix Computations", section 4.2.

    For square operators ``(*batch, n, n)`` in float32, float64 and their complex counterparts;
    operators known by products are formed first.

    Raises
    ------
    ValueError
        When a solve begins with an operator that is not known to be symmetric.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[4.0, 2.0], [2.0, 5.0]]), positive_definite=True)
    >>> ims.linear_solve(A, torch.tensor([6.0, 7.0]), solver=Cholesky()).value
    tensor([1., 1.])
    """

    symmetric_only: ClassVar[bool] = True

    def factor(self, A: LaneMap) -> Factors:
        """Return the triangles and what LAPACK said of each; -1 for a matrix with NaN or inf."""
        if not A.symmetric:
            raise ValueError(
                "solver=Cholesky() needs a symmetric positive definite operator, and this one is "
                "not known to be symmetric: pass symmetric=True or positive_definite=True to the "
                "operator if it is, or use LU()"
            )
        matrix = A.dense()
        triangle, info = torch.linalg.cholesky_ex(matrix)
        # the sum of finite entries may overflow: only where it is not finite, every entry counts
        finite = torch.isfinite(matrix.sum((-2, -1)))
        eager = matrix.device.type == "cpu" and not compiling()
        if not eager or not bool(finite.all()):
            finite = torch.isfinite(matrix).flatten(1).all(-1)
        return triangle, torch.where(finite, info, -1)

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b``."""
        # cholesky_solve would copy the triangles at each call
        L = factors[0]
        y = torch.linalg.solve_triangular(L, b, upper=False)
        return torch.linalg.solve_triangular(L.mH, y, upper=True)

    def unfit(self, factors: Factors) -> Tensor:
        """Tell where the factorization broke down."""
        return factors[1] != 0

    def status(self, factors: Factors) -> Tensor:
        """Return INDEFINITE where the factorization broke down."""
        _, info = factors
        status = torch.where(info == 0, 0, int(Status.INDEFINITE))
        return torch.where(info >= 0, status, int(Status.NONFINITE))
