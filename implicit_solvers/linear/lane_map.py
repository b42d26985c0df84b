"""A linear map of every lane, at concrete tensors: what the linear solvers multiply with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from implicit_solvers.autodiff import no_saved_tensor_hooks, slope, unwatched, vjp
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.linear_operator import LinearOperator
from implicit_solvers.structure import Structure
from implicit_solvers.traced_loop import alias

__all__ = ["JacobianTemplate", "LaneMap", "OperatorTemplate", "Template"]

_MANY_ENTRIES = 1 << 16

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

    @property
    def bands(self) -> tuple[int, int] | None:
        """How many diagonals below and above the main one may hold anything, if that is known."""

    @property
    def shape(self) -> tuple[int, int] | None:
        """The numbers of rows and columns, or None for a square map of whatever it is given."""

    def mv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``A(*tensors) v`` for one lane."""

    def rmv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``A(*tensors)^T v`` for one lane."""

    def dense(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the matrix of one lane."""

    def matrices(
        self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor], basis: Tensor | None
    ) -> Tensor:
        """Return the matrices of all lanes; ``basis`` is the identity, if it is at hand."""

    def diagonal_entries(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the diagonal of one lane."""

    def products(self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor]) -> Products:
        """Return ``mv`` and ``rmv`` for all lanes, with what they share computed once."""


@dataclass(frozen=True)
class OperatorTemplate:
    """A user's operator on vectors of a given structure; ``build`` makes it of its tensors.

    It is used ``within`` a context, which does nothing where the tensors let it go ``bare``.
    ``functionless`` tells whether it is known by its tensors alone, with no function in it.
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

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        return self.out.size, self.structure.size

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


@dataclass(frozen=True)
class JacobianTemplate:
    """The Jacobian of a raveled ``fn(z, *operands)``; its tensors are ``z`` and the operands.

    The ``potential``, if there is one, is the scalar function whose gradient ``fn`` is.
    """

    fn: Callable[..., Tensor]
    symmetric: bool = False
    positive_definite: bool = False
    diagonal: bool = False
    bands: tuple[int, int] | None = None
    potential: Callable[..., Tensor] | None = None
    shape: ClassVar[None] = None

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
        if torch.compiler.is_compiling():
            if out.shape[-1] != len(basis):
                basis = torch.eye(out.shape[-1], dtype=z.dtype, device=z.device)
            return vmap(lambda e: pull(e.expand(out.shape).contiguous())[0], out_dims=-2)(basis)
        _, push = vjp(pull, torch.zeros_like(out))
        columns = vmap(lambda e: push((e.expand(z.shape).contiguous(),))[0], out_dims=-1)
        return columns(basis)

    def matrices(
        self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor], basis: Tensor | None
    ) -> Tensor:
        """Return ``J`` of all lanes; where nothing watches, and few are asked for, by rows.

        That takes half of the calls. For large batches what is computed decides, and columns of a
        basis that the lanes share take less of it; so native lanes are taken one by one.
        """
        if unwatched() and like.numel() * like.shape[-1] <= _MANY_ENTRIES:
            # some of torch's derivatives have no batching rule at first order, and one at second
            with contextlib.suppress(RuntimeError):
                return self._rows(lanes, tensors)
        elif unwatched() and lanes.native and lanes.separable and not lanes.sizes:
            # what a function refuses here it may do for the batch; if not, it says so again
            with contextlib.suppress(Exception), no_saved_tensor_hooks():
                # one that captures a tensor of all lanes answers for all: of one it must not
                if self.fn(*lanes.first(tensors)).shape[: lanes.native].numel() == 1:
                    return lanes.one_by_one(partial(self.dense, like))(*tensors)
        if basis is not None:
            # a compiler that saw how it is made would make it anew in every loop over it
            return lanes.over(lambda like, *tensors: self._columns(basis, *tensors))(like, *tensors)
        return lanes.over(self.dense)(like, *tensors)

    def _rows(self, lanes: Lanes, tensors: Sequence[Tensor]) -> Tensor:
        fn = lanes.keep(range(1, len(tensors))).over(self.fn)
        with torch.enable_grad(), no_saved_tensor_hooks():
            leaf = tensors[0].detach().requires_grad_()
            out = fn(leaf, *tensors[1:])
            m, n = out.shape[-1], leaf.shape[-1]
            if not out.requires_grad:
                return out.new_zeros(*out.shape, n)

            def row(e: Tensor) -> Tensor:
                return torch.autograd.grad(
                    out, leaf, e.expand(out.shape), retain_graph=True, materialize_grads=True
                )[0]

            eye = torch.eye(m, dtype=out.dtype, device=out.device)
            return vmap(row, out_dims=-2)(eye)

    def diagonal_entries(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the diagonal of ``J``."""
        return self.dense(like, *tensors).diagonal(dim1=-2, dim2=-1)

    def products(self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor]) -> Products:
        """Return ``mv`` and ``rmv`` on one linearization."""
        z, *operands = tensors
        others = lanes.keep(range(1, len(tensors)))
        if self.potential is not None and unwatched():
            leaf, gradient = slope(others.over(self.potential), z, operands, again=True)

            def product(v: Tensor) -> Tensor:
                if not gradient.requires_grad:
                    return torch.zeros_like(v)
                with no_saved_tensor_hooks():
                    return torch.autograd.grad(
                        gradient, leaf, v, retain_graph=True, materialize_grads=True
                    )[0]

            return product, product
        fn = others.over(self.fn)
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
    tensors
        What the operators are made of.
    columns
        How many lanes share each operator.
    transposed
        Whether ``mv`` multiplies with the transpose.
    like
        A vector: a tensor of their dtype and device, and of their size if the map is square.
    basis
        The identity, if it is at hand.
    """

    def __init__(
        self,
        template: Template,
        lanes: Lanes,
        shape: tuple[int, ...],
        tensors: Sequence[Tensor],
        *,
        like: Tensor,
        columns: int = 1,
        transposed: bool = False,
        basis: Tensor | None = None,
    ) -> None:
        self.basis = basis
        self.template, self.lanes, self.shape = template, lanes, shape
        self.tensors: Sequence[Tensor] = tuple(tensors)
        self.columns, self.transposed = columns, transposed
        self.like = like
        self.n = like.shape[-1] if template.shape is None else template.shape[1]
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

    def _make_products(self) -> Products:
        if torch.compiler.is_compiling():
            # a linearization cannot be carried into the body of a loop
            return self.template.products(self.lanes, self._like(), self.tensors)
        if self._products is None:
            self._products = self.template.products(self.lanes, self._like(), self.tensors)
        return self._products

    def _apply(self, which: int, v: Tensor) -> Tensor:
        product = self._make_products()[which]
        if self.columns == 1:
            return product(v.reshape((*self.shape, v.shape[-1]))).reshape(v.shape[0], -1)
        stacked = v.reshape(self.columns, *self.shape, v.shape[-1])
        with no_saved_tensor_hooks():
            return vmap(product, randomness="different")(stacked).reshape(len(v), -1)

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with each lane of ``v (N, n)``."""
        return self._apply(int(self.transposed), v)

    def rmv(self, v: Tensor) -> Tensor:
        """Return the product with the transpose."""
        return self._apply(1 - int(self.transposed), v)

    def dense(self) -> Tensor:
        """Return the matrices ``(grid, m, n)``, never transposed."""
        matrices = self.template.matrices(self.lanes, self._like(), self.tensors, self.basis)
        return matrices.reshape(self.grid, *matrices.shape[-2:])

    def diagonal_entries(self) -> Tensor:
        """Return the diagonals ``(grid, n)``."""
        return self.on_grid(self.template.diagonal_entries).reshape(self.grid, self.n)

    def probe(self, probes: Tensor) -> Tensor:
        """Return the products with vectors ``(k, n)`` that all operators share, ``(k, grid, m)``.

        They are never those of the transpose.
        """
        product = self._make_products()[0]
        with no_saved_tensor_hooks():
            out = vmap(lambda v: product(v.expand(*self.shape, self.n).contiguous()))(probes)
        return out.reshape(len(probes), self.grid, out.shape[-1])

    def bands(self, below: int, above: int) -> Tensor:
        """Return the diagonals of banded operators, ``(grid, below + above + 1, n)``, by probing.

        Row ``above + i - j`` and column ``j`` hold the entry in row ``i`` and column ``j``; one
        product serves every ``below + above + 1``-th column. Source: Curtis, Powell and Reid, "On
        the estimation of sparse Jacobian matrices", J. Inst. Maths Applics 13 (1974).
        """
        width, n = below + above + 1, self.n
        column = torch.arange(n, device=self.like.device)
        color = column % width
        probes = (color == torch.arange(width, device=column.device).unsqueeze(-1)).to(self.like)
        products = self.probe(probes)
        row = column + torch.arange(-above, below + 1, device=column.device).unsqueeze(-1)
        inside = (row >= 0) & (row < n)
        entries = products[color.expand(width, n), :, row.clamp(0, n - 1)].permute(2, 0, 1)
        return torch.where(inside, entries, 0.0)

    def on_grid(self, fn: Callable[..., Tensor]) -> Tensor:
        """Return ``fn(like, *tensors)`` of each operator, where ``like`` is a vector of zeros."""
        return self.lanes.over(fn)(self._like(), *self.tensors)

    def aliased(self) -> LaneMap:
        """Return the map as the body of a loop in a graph has to see it."""
        return LaneMap(
            self.template,
            self.lanes,
            self.shape,
            [alias(t) for t in self.tensors],
            like=self.like,
            columns=self.columns,
            transposed=self.transposed,
            basis=None if self.basis is None else alias(self.basis),
        )

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
            tensors,
            like=self.like,
            columns=columns,
            transposed=self.transposed,
            basis=self.basis,
        )
