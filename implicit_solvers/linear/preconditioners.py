"""Preconditioners: cheap approximations of an operator's inverse."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from implicit_solvers.linear.lane_map import LaneMap

__all__ = ["DiagonalMap", "Jacobi"]


@dataclass(frozen=True)
class Jacobi:
    """Divide by the operator's diagonal: ``(M r)_i = r_i / |a_ii|``; zeros in it are left alone.

    For square operators ``(*lanes, n, n)`` of every floating and complex dtype. One without a
    closed form is probed with ``n`` products for its diagonal. Source: Saad, "Iterative Methods for
    Sparse Linear Systems" (2003), section 10.2.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.diag(torch.tensor([1.0, 100.0])), positive_definite=True)
    >>> b = torch.tensor([1.0, 1.0])
    >>> int(ims.linear_solve(A, b, solver=ims.CG(), preconditioner=Jacobi()).iterations)
    1
    """

    def of(self, A: LaneMap) -> DiagonalMap:
        """Return the inverse of the diagonal of each lane of ``A``."""
        entries = A.diagonal_entries().abs()
        inverse = (entries == 0).to(entries.dtype) + entries
        return DiagonalMap((1 / inverse).repeat(A.columns, 1))


@dataclass(frozen=True)
class DiagonalMap:
    """A diagonal map of each lane, ``entries (N, n)``, in the place of a `LaneMap`."""

    entries: Tensor
    separable: bool = True

    def mv(self, v: Tensor) -> Tensor:
        """Return the product."""
        return self.entries * v

    def aliased(self) -> DiagonalMap:
        """Return the map itself: no transform reads its entries."""
        return self

    def to_compile(self) -> DiagonalMap:
        """Return the map itself."""
        return self

    def take(self, index: Tensor) -> DiagonalMap:
        """Return the map of some of the lanes."""
        return DiagonalMap(self.entries[index])
