"""Division by a diagonal. It knows a diagonal, not whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors

__all__ = ["Diagonal"]


@dataclass(frozen=True)
class Diagonal(DirectSolver):
    """Division by the diagonal, for operators that are diagonal: ``x_i = b_i / a_i``.

    For square operators ``(*batch, n, n)`` of every floating and complex dtype, known to be
    diagonal: `DiagonalOperator`, `IdentityOperator`, and what is made of them. A problem with a
    zero on its diagonal is SINGULAR.

    Raises
    ------
    ValueError
        When a solve begins with an operator that is not known to be diagonal.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.DiagonalOperator(torch.tensor([2.0, 4.0]))
    >>> ims.linear_solve(A, torch.tensor([2.0, 2.0]), solver=Diagonal()).value
    tensor([1.0000, 0.5000])
    """

    diagonal_only: ClassVar[bool] = True

    def factor(self, A: LaneMap) -> Factors:
        """Return the diagonals."""
        if not A.template.diagonal:
            raise ValueError(
                "solver=Diagonal() solves with diagonal operators only, and this one is not known "
                "to be diagonal: use LU() or GMRES()"
            )
        return (A.diagonal_entries(),)

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``b`` divided by the diagonal, or by its conjugate."""
        entries = factors[0].unsqueeze(-1)
        return b / (entries.conj() if transposed else entries)

    def sizes(self, A: LaneMap, factors: Factors, x: Tensor) -> Tensor:
        """Return ``|A| |x|``, by the entries."""
        return (x.reshape(-1, *factors[0].shape) * factors[0]).reshape(x.shape).abs()

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where an entry is zero."""
        entries = factors[0]
        status = torch.where((entries == 0).any(-1), int(Status.SINGULAR), 0)
        return torch.where(torch.isfinite(entries).all(-1), status, int(Status.NONFINITE))
