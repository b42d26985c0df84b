"""Singular value decomposition. It knows a matrix, not whose it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_number
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors
from implicit_solvers.tolerance import AUTO, Auto

__all__ = ["SVD"]


@dataclass(frozen=True)
class SVD(DirectSolver):
    """Singular value decomposition, for every operator: square, rectangular, of any rank.

    The solution is ``A^+ b``, of all ``x`` with least ``norm(b - A x)`` the one of least norm, and
    never fails where ``A`` is finite. Its derivative is that of the pseudo-inverse among
    operators of the same rank: where the rank is not full, a change of ``A`` that raises it has no
    derivative, and counts by its part that does not. Source: Golub and Pereyra, "The
    differentiation of pseudo-inverses and nonlinear least squares problems whose variables
    separate", SIAM J. Numer. Anal. 10 (1973).

    For operators ``(*batch, m, n)`` in float32, float64 and their complex counterparts; operators
    known by products are formed first.

    Parameters
    ----------
    rcond
        Singular values of at most ``rcond`` times the largest count as zero. Left out,
        ``eps`` times the larger number of rows and columns.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    >>> ims.linear_solve(A, torch.tensor([1.0, 3.0]), solver=SVD()).value
    tensor([1.0000, 1.0000])
    """

    rcond: float | Auto = AUTO

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        if not isinstance(self.rcond, Auto):
            check_number(self, "rcond", least=0, below=1)

    def nullspaces(self, rows: int, columns: int) -> tuple[bool, bool]:
        """Whether ``A^T`` and ``A`` may have a null space."""
        return True, True

    def factor(self, A: LaneMap) -> Factors:
        """Return ``U``, the inverse singular values, ``V^H``, and which matrices are finite."""
        matrix = A.dense()
        finite = torch.isfinite(matrix).flatten(1).all(-1)
        # LAPACK refuses the whole batch for one entry that is not finite
        clean = torch.where(finite.reshape(-1, 1, 1), matrix, 0.0)
        u, s, vh = torch.linalg.svd(clean, full_matrices=False)
        rcond = self.rcond
        if isinstance(rcond, Auto):
            rcond = max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
        largest = s[..., :1] if s.shape[-1] else s
        inverse = torch.where(s > rcond * largest, 1 / s, 0.0)
        return u, inverse.to(u.dtype), vh, finite

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^+ b`` or ``A^+T b``."""
        u, inverse, vh, _ = factors
        if transposed:
            return u @ (inverse.unsqueeze(-1) * (vh @ b))
        return vh.mH @ (inverse.unsqueeze(-1) * (u.mH @ b))

    def status(self, factors: Factors) -> Tensor:
        """Return NONFINITE where the matrix is not finite."""
        return torch.where(factors[3], 0, int(Status.NONFINITE))
