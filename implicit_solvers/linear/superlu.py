"""Sparse LU factorization. It knows entries, not whose they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.sparsity import (
    Ordering,
    check_device,
    check_ordering,
    csc_arrays,
    on_host,
)
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors

__all__ = ["SuperLU", "factored", "solved_lanes"]


@dataclass(frozen=True)
class SuperLU(DirectSolver):
    """Sparse LU factorization with partial pivoting, on the CPU alone.

    It is for a `SparseOperator`, and for Jacobians of equations whose ``jac_sparsity`` is given.
    SciPy's SuperLU factors ``n x n`` matrices in float32, float64 and their complex counterparts,
    each of a batch of entries, ``(*batch, entries)``, once; the backward pass, and every further
    derivative, uses the factors again. Source: Demmel, Eisenstat, Gilbert, Li and Liu, "A
    supernodal approach to sparse partial pivoting", SIAM J. Matrix Anal. Appl. 20 (1999).

    Parameters
    ----------
    ordering
        How columns are ordered to keep the factors sparse: SuperLU's ``permc_spec``.

    Raises
    ------
    ValueError
        If ``ordering`` is none of them; when a solve begins with another operator than a square
        sparse one, or on another device than the CPU, or under a ``vmap`` over the pattern of the
        matrix.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.SparseOperator(torch.tensor([[2.0, 0.0], [1.0, 4.0]]).to_sparse_csr())
    >>> ims.linear_solve(A, torch.tensor([2.0, 5.0]), solver=SuperLU()).value
    tensor([1., 1.])
    """

    ordering: Ordering = "COLAMD"
    traceable: ClassVar[bool] = False
    keepable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse an ordering that SuperLU does not know."""
        check_ordering(self)

    def factor(self, A: LaneMap) -> Factors:
        """Return the number of each factorization among those kept, and its status."""
        return factored(A, self._factor_lane)

    def _factor_lane(self, matrix: Any) -> tuple[Any, int]:
        import scipy.sparse.linalg

        if not np.isfinite(matrix.data).all():
            return None, int(Status.NONFINITE)
        try:
            factors = scipy.sparse.linalg.splu(matrix, permc_spec=self.ordering)
        except RuntimeError:  # SuperLU: "Factor is exactly singular"
            return None, int(Status.SINGULAR)
        return factors, 0

    def solve_with(self, memory: Any, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b`` or ``A^-T b``, by the factorizations that the solve keeps."""
        return solved_lanes(memory, factors, b, transposed)

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where a pivot is zero, NONFINITE where an entry is not finite."""
        return factors[1]


def factored(A: LaneMap, factor: Callable[[Any], tuple[Any, int]]) -> Factors:
    """Return the numbers that sparse factorizations get in the memory of a map, and a status each.

    ``factor`` takes a SciPy matrix, and returns what has a ``solve`` and a status.
    """
    sparse = A.entries()
    if sparse is None or sparse[1].shape[0] != sparse[1].shape[1]:
        raise ValueError(
            "solver=SuperLU() solves with a square SparseOperator, or the Jacobian of an "
            "equation with jac_sparsity, only: wrap a sparse tensor in one (scale its values, "
            "not the operator), give the pattern of a Jacobian, or use GMRES() or LU()"
        )
    entries, pattern = sparse
    check_device("solver=SuperLU()", entries.device)
    if pattern.rows.dim() > 1 or pattern.columns.dim() > 1:
        raise ValueError(
            "solver=SuperLU() under vmap over the pattern of a sparse matrix: a batch must share "
            "the pattern; pass their entries as values"
        )
    kept, status = A.memory.factorizations, []
    first = torch.arange(A.grid, device=entries.device) + len(kept)
    numbers = first if A.places is None else A.places
    for number, matrix in zip(numbers.tolist(), csc_arrays(entries, pattern), strict=True):
        kept[number], how = factor(matrix)
        status.append(how)
    return numbers, torch.tensor(status, dtype=torch.int64, device=entries.device)


def solved_lanes(memory: Any, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
    """Return ``A^-1 b`` or ``A^-T b``, by what was factored."""
    rhs, trans = on_host(b), "H" if transposed else "N"
    x = np.full_like(rhs, np.nan)
    for lane, (number, how) in enumerate(zip(*(t.tolist() for t in factors), strict=True)):
        if how == 0:
            x[lane] = memory.factorizations[number].solve(rhs[lane], trans=trans)
    return torch.from_numpy(x)
