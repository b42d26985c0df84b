"""The Jacobian of an equation, as a linear map of one lane.

It knows a raveled condition, and no solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import vmap

from implicit_solvers.autodiff import products_by, rows, unwatched, vjp
from implicit_solvers.compiling import compiling
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.sparsity import SparsityPattern
from implicit_solvers.linear.template import Products, Template

__all__ = ["MANY_ENTRIES", "JacobianTemplate"]

MANY_ENTRIES = 1 << 16
"""Jacobians with fewer entries in all lanes take more Python than arithmetic."""


@dataclass(frozen=True)
class JacobianTemplate:
    """The Jacobian of a raveled ``fn(z, *operands)``; its tensors are ``z`` and the operands.

    The ``equation``, if there is one, is that whose condition ``fn`` is. The ``pattern``, if it is
    known, are the entries that may be other than zero.
    """

    fn: Callable[..., Tensor]
    symmetric: bool = False
    positive_definite: bool = False
    diagonal: bool = False
    bands: tuple[int, int] | None = None
    equation: Any = None
    pattern: SparsityPattern | None = None
    shape: ClassVar[None] = None

    @property
    def source(self) -> Any:
        """The function that the user wrote."""
        return self.equation.source

    def reading_by_itself(self, tensors: Sequence[Tensor]) -> tuple[Template, int] | None:
        """Return the Jacobian of a function that need not be given what it captured."""
        if self.equation is None:
            return None
        found = self.equation.reading_by_itself(tensors[1:])
        return None if found is None else (found[0].jacobian(), 1 + found[1])

    def pattern_of(self, tensors: Sequence[Tensor]) -> SparsityPattern | None:
        """Return the pattern."""
        return self.pattern

    def mv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``J v``, by two pullbacks."""
        if self.symmetric:
            return self.rmv(v, *tensors)
        z, *operands = tensors
        out, pull = vjp(lambda u: self.fn(u, *operands), z)
        return vjp(pull, torch.zeros_like(out))[1]((v,))[0]

    def rmv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``J^T v``, by a pullback."""
        z, *operands = tensors
        return vjp(lambda u: self.fn(u, *operands), z)[1](v)[0]

    def dense(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``J``: by columns, of a basis that the lanes share; rectangular too."""
        z = tensors[0]
        return self._columns(torch.eye(z.shape[-1], dtype=z.dtype, device=z.device), *tensors)

    def _columns(self, basis: Tensor, *tensors: Tensor) -> Tensor:
        z, *operands = tensors
        out, pull = vjp(lambda u: self.fn(u, *operands), z)
        if compiling():
            if out.shape[-1] != len(basis):
                basis = torch.eye(out.shape[-1], dtype=z.dtype, device=z.device)
            return vmap(lambda e: pull(e.expand(out.shape).contiguous())[0], out_dims=-2)(basis)
        _, push = vjp(pull, torch.zeros_like(out))
        columns = vmap(lambda e: push((e.expand(z.shape).contiguous(),))[0], out_dims=-1)
        return columns(basis)

    def value_and_dense(self, z: Tensor, basis: Tensor, *operands: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``fn`` and ``J`` of one lane, of one evaluation."""
        out, pull = vjp(lambda u: self.fn(u, *operands), z)
        _, push = vjp(pull, torch.zeros_like(out))
        return out, vmap(lambda e: push((e,))[0], out_dims=-1)(basis)

    def matrices(
        self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor], basis: Tensor | None
    ) -> Tensor:
        """Return ``J`` of all lanes; where nothing watches, and few are asked for, by rows.

        That takes half of the calls. For large batches what is computed decides, and columns of a
        basis that the lanes share take less of it; native lanes are one batch all the same.
        """
        if unwatched() and (lanes.native or like.numel() * like.shape[-1] <= MANY_ENTRIES):
            value, pull = self._linearized(lanes, tensors)
            return rows(pull, value, tensors[0].shape[-1])
        if basis is not None:
            # a compiler that saw how it is made would make it anew in every loop over it
            return lanes.over(lambda like, *tensors: self._columns(basis, *tensors))(like, *tensors)
        return lanes.over(self.dense)(like, *tensors)

    def _linearized(
        self, lanes: Lanes, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        z, *operands = tensors
        own = lanes.keep(range(1, len(tensors)))
        fn = own.over(self.fn) if self.equation is None else self.equation.condition_over(own)
        value, pull = vjp(lambda u: fn(u, *operands), z)
        return value, lambda w: pull(w)[0]

    def diagonal_entries(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the diagonal of ``J``."""
        return self.dense(like, *tensors).diagonal(dim1=-2, dim2=-1)

    def products(self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor]) -> Products:
        """Return ``mv`` and ``rmv`` on one linearization."""
        value, pull = self._linearized(lanes, tensors)
        return products_by(pull, value, self.symmetric)
