"""A user's operator, as a linear map of one lane. It knows no solver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.autodiff import vjp
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.linear_operator import LinearOperator
from implicit_solvers.linear.sparse import SparseOperator
from implicit_solvers.linear.template import Products, Template
from implicit_solvers.structure import Structure

__all__ = ["OperatorTemplate"]


def _always(tensors: Sequence[Tensor]) -> bool:
    return True


def _nothing(tensors: Sequence[Tensor]) -> Any:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class OperatorTemplate:
    """A user's operator on vectors of a given structure; ``build`` makes it of its tensors.

    It is used ``within`` a context, which does nothing where the tensors let it go ``bare``.
    ``functionless`` tells whether it is known by its tensors alone, with no function in it;
    ``source`` what it was written as, and ``has_lanes`` whether it is another in each native lane.
    """

    build: Callable[[Sequence[Tensor]], LinearOperator]
    bare: Callable[[Sequence[Tensor]], bool]
    within: Callable[[Sequence[Tensor]], Any]
    structure: Structure
    out: Structure
    symmetric: bool
    positive_definite: bool
    diagonal: bool
    bands: tuple[int, int] | None
    costly: bool
    name: str
    functionless: bool = False
    source: Any = None
    has_lanes: bool = False

    def reading_by_itself(self, tensors: Sequence[Tensor]) -> tuple[Template, int] | None:
        """Return the map where its function need not be given what it captured."""
        if not self.bare(tensors):
            return None
        return replace(self, bare=_always, within=_nothing), len(tensors)

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        return self.out.size, self.structure.size

    def pattern_of(self, tensors: Sequence[Tensor]) -> SparseOperator | None:
        """Return the operator, if it is sparse."""
        operator = self.build(tensors)
        return operator if isinstance(operator, SparseOperator) else None

    def entries(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the entries of a sparse operator."""
        values: Tensor = self.build(tensors).values  # type: ignore[attr-defined]
        return values.expand(*like.shape[:-1], values.shape[-1])

    def mv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``A v``."""
        with self.within(tensors):
            out = self.build(tensors).mv(self.structure.unravel(v))
        return self.out.check_like(out, v.shape[:-1], self.name, "b")

    def rmv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``A^T v``."""
        if self.symmetric:
            return self.mv(v, *tensors)
        with self.within(tensors):
            return self.structure.ravel(self.build(tensors).rmv(self.out.unravel(v)))

    def dense(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the matrix; closed forms stay as they are, the rest is probed."""
        with self.within(tensors):
            matrix = self.build(tensors).dense(self._structure_like(like))
        return matrix.expand((*like.shape[:-1], *self.shape))

    def matrices(
        self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor], basis: Tensor | None
    ) -> Tensor:
        """Return the matrices of all lanes."""
        return lanes.over(self.dense)(like, *tensors)

    def diagonal_entries(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the diagonal."""
        with self.within(tensors):
            entries = self.build(tensors).diagonal_entries(self._structure_like(like))
        return entries.expand((*like.shape[:-1], entries.shape[-1]))

    def _structure_like(self, like: Tensor) -> Structure:
        # selected lanes come in another grid than the whole
        return replace(self.structure, native=tuple(like.shape[:-1]))

    def products(self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor]) -> Products:
        """Return ``mv`` and ``rmv``; a costly operator is linearized once."""
        if not (self.costly or lanes.sizes) and self.bare(tensors):
            return self._direct_products(tensors)
        mv, rmv = lanes.over(self.mv), lanes.over(self.rmv)
        if not self.costly:
            return (lambda v: mv(v, *tensors)), (lambda v: rmv(v, *tensors))
        zeros = torch.zeros_like(like)
        out, pull = vjp(lambda v: mv(v, *tensors), zeros)
        if self.symmetric:
            return (lambda v: pull(v)[0]), (lambda v: pull(v)[0])
        _, push = vjp(pull, torch.zeros_like(out))
        return (lambda v: push((v,))[0]), (lambda v: pull(v)[0])

    def _direct_products(self, tensors: Sequence[Tensor]) -> Products:
        """Return ``mv`` and ``rmv`` of one operator that is built once."""
        operator, structure, out = self.build(tensors), self.structure, self.out
        if self.functionless and structure.is_vector and out.is_vector:
            # there is nothing to ravel, nor to check
            return operator.mv, operator.mv if self.symmetric else operator.rmv

        def mv(v: Tensor) -> Tensor:
            return out.check_like(operator.mv(structure.unravel(v)), v.shape[:-1], self.name, "b")

        def rmv(v: Tensor) -> Tensor:
            return structure.ravel(operator.rmv(out.unravel(v)))

        return mv, mv if self.symmetric else rmv
