"""Tridiagonal operators. It knows nothing of solves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from implicit_solvers.linear.linear_operator import LinearOperator, operator_pytree
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import tree_structure

__all__ = ["TridiagonalOperator"]


@operator_pytree("lower", "main", "upper")
@dataclass(frozen=True, eq=False)
class TridiagonalOperator(LinearOperator):
    """The operator of a matrix with three diagonals: ``lower``, ``main``, ``upper``.

    ``(A v)_i = lower_(i-1) v_(i-1) + main_i v_i + upper_i v_(i+1)``; products and the default
    solve (`Banded`, on the CPU) take time and memory proportional to ``n``.

    Parameters
    ----------
    lower, upper
        The entries below and above the diagonal, ``(*batch, n - 1)``.
    main
        The diagonal, ``(*batch, n)``, floating, real or complex.
    symmetric, positive_definite
        What is known of the matrix.

    Raises
    ------
    TypeError
        If the three are not tensors of one floating dtype.
    ValueError
        If their shapes do not fit.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> off = -torch.ones(3)
    >>> A = TridiagonalOperator(off, 2 * torch.ones(4), off)  # minus the second difference
    >>> ims.linear_solve(A, torch.ones(4)).value.round(decimals=3)
    tensor([2., 3., 3., 2.])
    """

    lower: Tensor
    main: Tensor
    upper: Tensor
    symmetric: bool = False
    positive_definite: bool = False
    bands: ClassVar[tuple[int, int]] = (1, 1)

    def __post_init__(self) -> None:
        Structure.of((self.lower, self.main, self.upper), "TridiagonalOperator's argument")
        if self.main.dim() == 0 or self.main.shape[-1] == 0:
            raise ValueError(
                f"main has shape {tuple(self.main.shape)}: pass the diagonal, (*batch, n)"
            )
        wanted = (*self.main.shape[:-1], self.main.shape[-1] - 1)
        for name, entries in (("lower", self.lower), ("upper", self.upper)):
            if entries.shape != wanted:
                raise ValueError(
                    f"{name} has shape {tuple(entries.shape)} where main has "
                    f"{tuple(self.main.shape)}: pass one entry less, {wanted}"
                )
        if self.positive_definite and not self.symmetric:
            object.__setattr__(self, "symmetric", True)

    @property
    def structure(self) -> Structure:
        """Vectors of n entries."""
        m = self.main
        return Structure(tree_structure(m), (m.shape[-1:],), tuple(m.shape[:-1]), m.dtype, m.device)

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v``."""
        below = pad(self.lower * v[..., :-1], (1, 0))
        return below + self.main * v + pad(self.upper * v[..., 1:], (0, 1))

    def rmv(self, v: Tensor) -> Tensor:
        """Return ``A^T v``, of a complex matrix ``A^H v``."""
        below = pad(self.upper.conj() * v[..., :-1], (1, 0))
        above = pad(self.lower.conj() * v[..., 1:], (0, 1))
        return below + self.main.conj() * v + above

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the matrix."""
        sides = torch.diag_embed(self.lower, -1) + torch.diag_embed(self.upper, 1)
        return sides + torch.diag_embed(self.main)
