"""An operator on `DTensor`s, as one on the rows of each rank. It knows no solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from implicit_solvers.linear.linear_operator import LinearOperator, operator_pytree
from implicit_solvers.sharding import Parts, Spread
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import tree_unflatten

__all__ = ["SpreadOperator", "spread_operator"]


@operator_pytree("tree")
@dataclass(frozen=True, eq=False)
class SpreadOperator(LinearOperator):
    """The map of local parts of vectors, by a product of DTensors.

    ``tree`` is the operator with its local tensors in the places of DTensors.
    """

    tree: Any
    parts: Parts
    spread: Spread
    vectors: Parts
    products: Parts

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether the operator is."""
        return bool(self.tree.symmetric)

    @property
    def positive_definite(self) -> bool:  # type: ignore[override]
        """Whether the operator is."""
        return bool(self.tree.positive_definite)

    @property
    def structure(self) -> Structure:
        """The structure of a local part of a vector."""
        return Structure.of(self.vectors.tree, "b")

    @property
    def out_structure(self) -> Structure:
        """The structure of a local part of a product."""
        return Structure.of(self.products.tree, "b")

    def mv(self, v: Any) -> Any:
        """Return the local part of ``A v``."""
        A = self.parts.whole(self.tree)
        layouts: Any = self.products.layouts
        return self.spread.returned(A.mv(self.vectors.whole(v)), layouts, "the product of A")


def spread_operator(A: LinearOperator, b: Any, spread: Spread, name: str) -> LinearOperator:
    """Return an operator on local parts of vectors like ``b``, a DTensor or a pytree of them."""
    parts, products = spread.parts(A, name), spread.parts(b, "b")
    if spread.lanes:
        operator: LinearOperator = parts.tree
        return operator
    vectors, shapes = products, [k.shape for k in products.layouts if k is not None]
    if A.out_structure is not None and list(A.out_structure.shapes) != shapes:
        raise ValueError(
            f"b has the shapes {[tuple(s) for s in shapes]} and {name} returns "
            f"{[tuple(s) for s in A.out_structure.shapes]}: give b the shapes of its products"
        )
    if A.rectangular and A.structure is not None:
        made = [spread.first.zeros(s, A.structure.dtype) for s in A.structure.shapes]
        vectors = spread.parts(tree_unflatten(made, A.structure.tree), name)
    return SpreadOperator(parts.tree, parts, spread, vectors, products)
