"""A linear map of every lane, at concrete tensors: what the linear solvers multiply with.

It knows no solver, and nothing of derivatives with respect to what it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from implicit_solvers.autodiff import (
    Pushforward,
    batched,
    no_saved_tensor_hooks,
    products_by,
    pullback_of_subtrahend,
    pullback_on_graph,
    rows,
    unwatched,
)
from implicit_solvers.compiled_step import apart
from implicit_solvers.compiling import compiling
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.jacobian_template import MANY_ENTRIES, JacobianTemplate
from implicit_solvers.linear.solve_memory import SolveMemory
from implicit_solvers.linear.template import Products, Template
from implicit_solvers.rounding import patterns
from implicit_solvers.traced_loop import alias

__all__ = ["LaneMap"]

MANY_PROBES = 1 << 24
"""How many numbers the vectors may have that are multiplied at once."""


@dataclass(eq=False, repr=False)
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
    graph
        Of a Jacobian: a point, and the function's value there with its graph, on which products
        are made then. `take` leaves it behind.
    memory
        What the solve keeps that the map is of; one of its own if left out.
    places
        What numbers the factorizations in the memory get, ``(grid,)``; new ones if left out.
    local
        In a compiled graph: whether the map is used in the body that makes it only. A
        linearization cannot be carried into the body of a loop.
    counter
        Counts Jacobians that are formed, and products with what is not, if it is told.
    """

    template: Template
    lanes: Lanes
    shape: tuple[int, ...]
    tensors: Sequence[Tensor]
    like: Tensor
    columns: int = 1
    transposed: bool = False
    basis: Tensor | None = None
    graph: tuple[Tensor, Tensor] | None = None
    memory: Any = None
    local: bool = False
    counter: Any = None
    places: Tensor | None = None
    matrices: Tensor | None = field(default=None, init=False)
    formed: Tensor | None = field(default=None, init=False)
    _products: Products | None = field(default=None, init=False)
    _rest: Callable[[Tensor], Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.tensors = tuple(self.tensors)
        self.memory = SolveMemory() if self.memory is None else self.memory
        self.n = self.like.shape[-1] if self.template.shape is None else self.template.shape[1]

    @property
    def grid(self) -> int:
        """The number of different operators."""
        return math.prod(self.shape)

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        if getattr(self.template, "has_lanes", False) and not any(self.lanes.native_carried or ()):
            return False  # some of its tensors carry lanes, and it is not known which
        return self.lanes.separable

    @property
    def symmetric(self) -> bool:
        """Whether the operator is known to be symmetric."""
        return self.template.symmetric

    def _like(self) -> Tensor:
        return self.like.new_zeros(*self.shape, self.n)

    def _make_products(self) -> Products:
        if compiling() and not self.local:
            return self.template.products(self.lanes, self._like(), self.tensors)
        products = self._products  # Dynamo reads None of what it has just stored
        if products is None and self.graph is not None:
            pull = pullback_on_graph(*self.graph)
            products = products_by(pull, self.graph[1], self.symmetric)
        elif products is None:
            products = self.template.products(self.lanes, self._like(), self.tensors)
        self._products = products
        return products

    def _apply(self, which: int, v: Tensor) -> Tensor:
        if self.matrices is not None:
            return self._times(self.matrices, v, bool(which))
        if self.counter is not None:
            self.counter.products += 1
        product = self._make_products()[which]
        if self.columns == 1:
            if len(self.shape) == 1:
                return product(v)
            return product(v.reshape((*self.shape, v.shape[-1]))).reshape(v.shape[0], -1)
        if isinstance(product, Pushforward):
            product.ready()
        stacked = v.reshape(self.columns, *self.shape, v.shape[-1])
        with no_saved_tensor_hooks():
            return vmap(product, randomness="different")(stacked).reshape(len(v), -1)

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with each lane of ``v (N, n)``."""
        return self._apply(int(self.transposed), v)

    def rmv(self, v: Tensor) -> Tensor:
        """Return the product with the transpose."""
        return self._apply(1 - int(self.transposed), v)

    def remainder(self, v: Tensor) -> Tensor:
        """Return ``v - A v``: of a fixed point's equation ``z - g(z)``, the product with ``g'``."""
        if not self.transposed or self.matrices is not None or self.columns != 1:
            return v - self.mv(v)
        kind = getattr(getattr(self.template, "equation", None), "kind", None)
        if self._rest is None and self.graph is not None and kind == "fixed_point" and unwatched():
            self._rest = pullback_of_subtrahend(*self.graph)
        if self._rest is None:
            return v - self.mv(v)
        if self.counter is not None:
            self.counter.products += 1
        return self._rest(v.reshape((*self.shape, v.shape[-1]))).reshape(v.shape)

    def _times(self, matrices: Tensor, v: Tensor, transposed: bool) -> Tensor:
        """Return the products with what was formed: matrices, or entries of sparse ones."""
        if matrices.dim() == 3:
            return _times(matrices.mH if transposed else matrices, v)
        pattern: Any = self.template.pattern_of(self.tensors)
        columns = v.reshape(-1, len(matrices), v.shape[-1])
        products: Tensor = pattern.times(matrices, columns, transposed)
        return products.reshape(len(v), -1)

    def entries(self) -> Any:
        """Return the entries ``(grid, nnz)``, never transposed, and their pattern, if it is known.

        Those of a Jacobian come from one product for each color of its pattern, and one more, which
        tells whether the pattern may miss anything. It multiplies by them from now on.

        Raises
        ------
        ValueError
            If the pattern of a Jacobian misses an entry.
        """
        template, pattern = self.template, self.template.pattern_of(self.tensors)
        if pattern is None:
            return None
        if not isinstance(template, JacobianTemplate):
            entries: Any = template.entries  # type: ignore[attr-defined]
            return self.on_grid(entries).reshape(self.grid, -1), pattern
        if self.formed is None or self.formed.dim() == 3:
            self._count()
            entries = pattern.picked(self.probe(pattern.seeds(self.like), pattern.by_rows))
            weights = pattern.weights(entries)
            seen = self.probe(weights, pattern.by_rows)
            if len(suspects := pattern.suspects(entries, seen, weights)):
                units = weights.new_zeros(len(suspects), self.n)
                units.scatter_(1, suspects.unsqueeze(-1), 1.0)
                exact = self.probe(units, transposed=not pattern.by_rows)
                pattern.refuse_missing(suspects, exact, weights)
            self.formed = self.matrices = entries
        return self.formed, pattern

    def _count(self) -> None:
        if self.counter is not None:
            self.counter.jacobian += 1

    def dense(self) -> Tensor:
        """Return the matrices ``(grid, m, n)``, never transposed."""
        formed = self.formed
        if formed is None or formed.dim() == 2:
            formed = self._dense()
        self.formed = formed
        return formed

    def _dense(self) -> Tensor:
        if isinstance(self.template, JacobianTemplate) and (sparse := self.entries()) is not None:
            entries, pattern = sparse
            return pattern.filled(entries)
        self._count()
        if self.graph is not None:
            point, value = self.graph
            if value.shape[-1] > 2 * self.n:
                basis = torch.eye(self.n, dtype=value.dtype, device=value.device)
                return self.probe(basis).movedim(0, -1)
            matrices = rows(pullback_on_graph(point, value), value, self.n, self.basis)
        else:
            matrices = self.template.matrices(self.lanes, self._like(), self.tensors, self.basis)
        return matrices.reshape(self.grid, *matrices.shape[-2:])

    def sizes(self, v: Tensor) -> Tensor:
        """Return ``|A| |v|`` for each lane of ``v (N, n)``, by absolute values of all entries.

        Of an operator that has not been formed, it is estimated by two products.
        """
        if self.formed is not None:
            return self._times(self.formed.abs(), v.abs(), self.transposed)
        first, second, _ = patterns(v)
        return torch.maximum(self.mv(v * first).abs(), self.mv(v * second).abs())

    def flipped(self) -> LaneMap:
        """Return the map of the transpose."""
        other = replace(self, transposed=not self.transposed)
        other.matrices, other.formed = self.matrices, self.formed
        return other

    def form(self) -> None:
        """Form small Jacobians, and multiply with them from now on: that takes less Python."""
        few = self.like.numel() * self.n <= MANY_ENTRIES
        dense = isinstance(self.template, JacobianTemplate) and self.template.pattern is None
        if few and dense and unwatched():
            self.matrices = self.dense()

    def diagonal_entries(self) -> Tensor:
        """Return the diagonals ``(grid, n)``."""
        if isinstance(self.template, JacobianTemplate) and (sparse := self.entries()) is not None:
            entries, pattern = sparse
            return pattern.diagonal_of(entries)
        return self.on_grid(self.template.diagonal_entries).reshape(self.grid, self.n)

    def probe(self, probes: Tensor, transposed: bool = False) -> Tensor:
        """Return the products with vectors ``(k, n)`` that all operators share, ``(k, grid, m)``.

        They are those of the transpose if that is asked for here.
        """
        product = self._make_products()[int(transposed)]
        if isinstance(product, Pushforward):
            product.ready()

        def of(v: Tensor) -> Tensor:
            return product(v.expand(*self.shape, v.shape[-1]).contiguous())

        some = max(1, MANY_PROBES // (self.grid * self.n))
        parts = [probes] if len(probes) <= some else probes.split(some)
        products = [batched(of, part) for part in parts]
        out = products[0] if len(products) == 1 else torch.cat(products)
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

    def _like_this(self, **changes: Any) -> LaneMap:
        return replace(self, graph=None, memory=None, **{"local": False, **changes})

    def aliased(self) -> LaneMap:
        """Return the map as the body of a loop in a graph has to see it."""
        tensors = [alias(t) for t in self.tensors]
        # what a loop reads may share no memory: one view serves as both
        first = bool(tensors) and self.like is self.tensors[0]
        return self._like_this(
            tensors=tensors,
            like=tensors[0] if first else self.like,
            basis=None if self.basis is None else alias(self.basis),
            local=True,
        )

    def to_compile(self) -> LaneMap | None:
        """Return the map as steps are compiled for it; None if they cannot be."""
        found = self.template.reading_by_itself(self.tensors)
        if found is None:
            return None
        template, count = found
        return self._like_this(
            counter=None,
            tensors=apart(self.tensors[:count]),
            template=template,
            lanes=self.lanes.keep(range(count)),
            like=torch.empty_like(self.like),
        )

    def take(self, index: Tensor) -> LaneMap:
        """Return the map of some of the lanes."""
        lanes, shape, tensors, columns = self.lanes, self.shape, self.tensors, len(index)
        if shape:
            lanes, shape, tensors = lanes.take(index % self.grid, shape, tensors)
            columns = 1
        return self._like_this(tensors=tensors, lanes=lanes, shape=shape, columns=columns)


def _times(matrices: Tensor, v: Tensor) -> Tensor:
    """Return the products with vectors ``(columns * grid, n)``."""
    if len(v) == len(matrices):
        return torch.bmm(matrices, v.unsqueeze(-1)).squeeze(-1)
    columns = v.reshape(-1, len(matrices), v.shape[-1]).permute(1, 2, 0)
    return torch.bmm(matrices, columns).permute(2, 0, 1).reshape(len(v), -1)
