"""A linear map of every lane, at concrete tensors: what the linear solvers multiply with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from implicit_solvers.autodiff import no_saved_tensor_hooks, vjp
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.linear_operator import LinearOperator
from implicit_solvers.structure import Structure

__all__ = ["JacobianTemplate", "LaneMap", "OperatorTemplate", "Template"]

Products = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class Template(Protocol):
    """A linear map of raveled vectors as a function of the tensors that it is made of."""

    @property
    def symmetric(self) -> bool:
        """Whether the map is known to be symmetric."""

    @property
    def positive_definite(self) -> bool:
        """Whether the map is known to be positive definite."""

    @property
    def diagonal(self) -> bool:
        """Whether the map is known to be diagonal."""

    def mv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``A(*tensors) v`` for one lane."""

    def rmv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``A(*tensors)^T v`` for one lane."""

    def dense(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the matrix of one lane."""

    def diagonal_entries(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the diagonal of one lane."""

    def products(self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor]) -> Products:
        """Return ``mv`` and ``rmv`` for all lanes, with what they share computed once."""


@dataclass(frozen=True)
class OperatorTemplate:
    """A user's operator on vectors of a given structure; ``build`` makes it of its tensors."""

    build: Callable[[Sequence[Tensor]], LinearOperator]
    within: Callable[[Sequence[Tensor]], Any]
    structure: Structure
    symmetric: bool
    positive_definite: bool
    diagonal: bool
    costly: bool
    name: str

    def mv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``A v``."""
        with self.within(tensors):
            out = self.build(tensors).mv(self.structure.unravel(v))
        return self.structure.check_like(out, v.shape[:-1], self.name, "b")

    def rmv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``A^T v``."""
        if self.symmetric:
            return self.mv(v, *tensors)
        with self.within(tensors):
            return self.structure.ravel(self.build(tensors).rmv(self.structure.unravel(v)))

    def dense(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the matrix; closed forms stay as they are, the rest is probed."""
        n = self.structure.size
        with self.within(tensors):
            matrix = self.build(tensors).dense(self._structure_like(like))
        return matrix.expand((*like.shape[:-1], n, n))

    def diagonal_entries(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the diagonal."""
        with self.within(tensors):
            return self.build(tensors).diagonal_entries(self._structure_like(like))

    def _structure_like(self, like: Tensor) -> Structure:
        # selected lanes come in another grid than the whole
        old = self.structure
        return Structure(old.tree, old.shapes, tuple(like.shape[:-1]), old.dtype, old.device)

    def products(self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor]) -> Products:
        """Return ``mv`` and ``rmv``; a costly operator is linearized once."""
        mv, rmv = lanes.over(self.mv), lanes.over(self.rmv)
        if not self.costly:
            return (lambda v: mv(v, *tensors)), (lambda v: rmv(v, *tensors))
        zeros = torch.zeros_like(like)
        _, pull = vjp(lambda v: mv(v, *tensors), zeros)
        if self.symmetric:
            return (lambda v: pull(v)[0]), (lambda v: pull(v)[0])
        _, push = vjp(pull, zeros)
        return (lambda v: push((v,))[0]), (lambda v: pull(v)[0])


@dataclass(frozen=True)
class JacobianTemplate:
    """The Jacobian of a raveled ``fn(z, *operands)``; its tensors are ``z`` and the operands."""

    fn: Callable[..., Tensor]
    symmetric: bool = False
    positive_definite: bool = False
    diagonal: bool = False

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
        z, *operands = tensors
        out, pull = vjp(lambda u: self.fn(u, *operands), z)
        _, push = vjp(pull, torch.zeros_like(out))
        eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        columns = vmap(lambda e: push((e.expand(z.shape).contiguous(),))[0], out_dims=-1)
        return columns(eye)

    def diagonal_entries(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the diagonal of ``J``."""
        return self.dense(like, *tensors).diagonal(dim1=-2, dim2=-1)

    def products(self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor]) -> Products:
        """Return ``mv`` and ``rmv`` on one linearization."""
        z, *operands = tensors
        fn = lanes.keep(range(1, len(tensors))).over(self.fn)
        out, pull = vjp(lambda u: fn(u, *operands), z)

        def rmv(v: Tensor) -> Tensor:
            return pull(v)[0]

        if self.symmetric:
            return rmv, rmv
        _, push = vjp(pull, torch.zeros_like(out))
        return (lambda v: push((v,))[0]), rmv


class LaneMap:
    """The linear map ``A`` (or its transpose) of each of ``N`` lanes.

    Lanes that share one operator are its ``columns``: lane ``c * len(grid) + g`` is column ``c``
    of the operator at place ``g`` of the grid.

    Parameters
    ----------
    template
        The map of one lane as a function of tensors.
    lanes
        The lanes that the tensors carry.
    shape
        The grid of operators.
    n
        The number of unknowns of a lane.
    tensors
        What the operators are made of.
    columns
        How many lanes share each operator.
    transposed
        Whether ``mv`` multiplies with the transpose.
    like
        A tensor of the dtype and device of the vectors.
    """

    def __init__(
        self,
        template: Template,
        lanes: Lanes,
        shape: tuple[int, ...],
        n: int,
        tensors: Sequence[Tensor],
        *,
        like: Tensor,
        columns: int = 1,
        transposed: bool = False,
    ) -> None:
        self.template, self.lanes, self.shape, self.n = template, lanes, shape, n
        self.tensors: Sequence[Tensor] = tuple(tensors)
        self.columns, self.transposed = columns, transposed
        self.like = like
        self._products: Products | None = None

    @property
    def grid(self) -> int:
        """The number of different operators."""
        return math.prod(self.shape)

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.lanes.separable

    @property
    def symmetric(self) -> bool:
        """Whether the operator is known to be symmetric."""
        return self.template.symmetric

    def _like(self) -> Tensor:
        return self.like.new_zeros(*self.shape, self.n)

    def _apply(self, which: int, v: Tensor) -> Tensor:
        if self._products is None:
            self._products = self.template.products(self.lanes, self._like(), self.tensors)
        product = self._products[which]
        if self.columns == 1:
            return product(v.reshape((*self.shape, self.n))).reshape(-1, self.n)
        stacked = v.reshape(self.columns, *self.shape, self.n)
        with no_saved_tensor_hooks():
            return vmap(product, randomness="different")(stacked).reshape(-1, self.n)

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with each lane of ``v (N, n)``."""
        return self._apply(int(self.transposed), v)

    def rmv(self, v: Tensor) -> Tensor:
        """Return the product with the transpose."""
        return self._apply(1 - int(self.transposed), v)

    def dense(self) -> Tensor:
        """Return the matrices ``(grid, m, n)``, never transposed."""
        matrices = self._on_grid(self.template.dense)
        return matrices.reshape(self.grid, *matrices.shape[-2:])

    def diagonal_entries(self) -> Tensor:
        """Return the diagonals ``(grid, n)``."""
        return self._on_grid(self.template.diagonal_entries).reshape(self.grid, self.n)

    def _on_grid(self, fn: Callable[..., Tensor]) -> Tensor:
        return self.lanes.over(fn)(self._like(), *self.tensors)

    def take(self, index: Tensor) -> LaneMap:
        """Return the map of some of the lanes."""
        lanes, shape, tensors, columns = self.lanes, self.shape, self.tensors, len(index)
        if shape:
            lanes, shape, tensors = lanes.take(index % self.grid, shape, tensors)
            columns = 1
        return LaneMap(
            self.template,
            lanes,
            shape,
            self.n,
            tensors,
            like=self.like,
            columns=columns,
            transposed=self.transposed,
        )
