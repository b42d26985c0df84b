"""Sparse LU factorization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.sparse import SparseOperator
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors

__all__ = ["SuperLU"]


@dataclass(frozen=True)
class SuperLU(DirectSolver):
    """Sparse LU factorization with partial pivoting, for a `SparseOperator`, on the CPU.

    SciPy's SuperLU factors ``n x n`` matrices in float32, float64 and their complex kin, each lane
    of entries, ``(*lanes, entries)``, once;
    the backward pass, and every further derivative, uses the factors again. Source: Demmel,
    Eisenstat, Gilbert, Li and Liu, "A supernodal approach to sparse partial pivoting", SIAM J.
    Matrix Anal. Appl. 20 (1999).

    Parameters
    ----------
    ordering
        How columns are ordered to keep the factors sparse: SuperLU's ``permc_spec``.

    Raises
    ------
    ValueError
        If ``ordering`` is none of them; when a solve begins with another operator than a square
        `SparseOperator`, or under a ``vmap`` over the pattern of the matrix.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.SparseOperator(torch.tensor([[2.0, 0.0], [1.0, 4.0]]).to_sparse_csr())
    >>> ims.linear_solve(A, torch.tensor([2.0, 5.0]), solver=SuperLU()).value
    tensor([1., 1.])
    """

    ordering: Literal["NATURAL", "MMD_ATA", "MMD_AT_PLUS_A", "COLAMD"] = "COLAMD"
    traceable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse an ordering that SuperLU does not know."""
        if self.ordering not in ("NATURAL", "MMD_ATA", "MMD_AT_PLUS_A", "COLAMD"):
            raise ValueError(
                f"SuperLU has ordering={self.ordering!r}: use NATURAL, MMD_ATA, MMD_AT_PLUS_A or "
                "COLAMD"
            )

    def factor(self, A: LaneMap) -> Factors:
        """Return the number of each factorization among those kept, and its status."""
        build: Any = getattr(A.template, "build", lambda tensors: None)
        operator = build(A.tensors)
        if not isinstance(operator, SparseOperator) or operator.shape[0] != operator.shape[1]:
            raise ValueError(
                "solver=SuperLU() solves with a square SparseOperator only: wrap a sparse CSR "
                "tensor in one (scale its values, not the operator), or use GMRES() or LU()"
            )
        if operator.rows.dim() > 1 or operator.columns.dim() > 1:
            raise ValueError(
                "solver=SuperLU() under vmap over the pattern of a sparse matrix: lanes must share "
                "the pattern; pass their entries as values"
            )

        def entries(like: Tensor, *tensors: Tensor) -> Tensor:
            values: Tensor = build(tensors).values
            return values.expand(*like.shape[:-1], values.shape[-1])

        values = A.on_grid(entries)
        places = (_array(operator.rows), _array(operator.columns))
        kept = A.memory.factorizations
        number, status = len(kept), []
        for lane in _array(values.reshape(A.grid, -1)):
            matrix = scipy.sparse.coo_array((lane, places), shape=operator.shape).tocsc()
            factors, how = self._factor_lane(matrix)
            kept.append(factors)
            status.append(how)
        numbers = torch.arange(number, len(kept), device=values.device)
        return numbers, torch.tensor(status, dtype=torch.int64, device=values.device)

    def _factor_lane(self, matrix: Any) -> tuple[Any, int]:
        if not np.isfinite(matrix.data).all():
            return None, int(Status.NONFINITE)
        try:
            factors = scipy.sparse.linalg.splu(matrix, permc_spec=self.ordering)
        except RuntimeError:  # SuperLU: "Factor is exactly singular"
            return None, int(Status.SINGULAR)
        return factors, 0

    def solve_lanes(self, A: LaneMap, factors: Factors, b: Tensor) -> Tensor:
        """Return the solution in all lanes, by the factorizations that the solve keeps."""
        x = np.full(b.shape, np.nan, dtype=_array(b.new_zeros(0)).dtype)
        rhs, trans = _array(b), "H" if A.transposed else "N"
        for i, (number, how) in enumerate(zip(*(t.tolist() for t in factors), strict=True)):
            if how == 0:
                lanes = slice(i, None, A.grid)
                x[lanes] = A.memory.factorizations[number].solve(rhs[lanes].T, trans=trans).T
        return torch.from_numpy(x).to(b.device)

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where a pivot is zero, NONFINITE where an entry is not finite."""
        return factors[1]


def _array(t: Tensor) -> np.ndarray:
    array: np.ndarray = t.detach().resolve_conj().cpu().numpy()
    return array
