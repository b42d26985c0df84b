"""Linear operators, what can be asked of them, and their algebra."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import register_pytree_node, tree_map

from implicit_solvers.autodiff import vjp
from implicit_solvers.structure import Structure

__all__ = [
    "LinearOperator",
    "ProductOperator",
    "ScaledOperator",
    "SumOperator",
    "TransposedOperator",
    "operator_pytree",
]

C = TypeVar("C", bound=type)


def operator_pytree(*data: str) -> Callable[[C], C]:
    """Register an operator as a pytree: ``data`` are its tensors, other fields are static."""

    def register(cls: C) -> C:
        static = [f.name for f in fields(cls) if f.name not in data]

        def flatten(operator: Any) -> tuple[list[Any], tuple[Any, ...]]:
            return (
                [getattr(operator, name) for name in data],
                tuple(getattr(operator, name) for name in static),
            )

        def unflatten(children: Iterable[Any], context: tuple[Any, ...]) -> Any:
            operator: Any = object.__new__(cls)
            values = [*children, *context]
            for name, value in zip([*data, *static], values, strict=True):
                object.__setattr__(operator, name, value)
            return operator

        register_pytree_node(cls, flatten, unflatten, serialized_type_name=f"ims.{cls.__name__}")
        return cls

    return register


class LinearOperator:
    """A linear map ``v -> A v`` on tensors or pytrees of one structure, known by its products.

    Operators add, subtract, multiply (``A @ B``) and scale (``2 * A``); ``A @ v`` is the product
    with a vector, ``A.T`` the transpose, ``A.dense()`` the matrix.

    Attributes
    ----------
    symmetric, positive_definite, diagonal
        What the caller knows of the operator; solvers trust it. Positive definite implies
        symmetric.
    """

    symmetric: bool
    positive_definite: bool
    diagonal: bool = False
    costly: ClassVar[bool] = False

    @property
    def structure(self) -> Structure | None:
        """The structure of the vectors, or None if the operator takes any."""
        raise NotImplementedError

    def mv(self, v: Any) -> Any:
        """Return ``A v``."""
        raise NotImplementedError

    def rmv(self, v: Any) -> Any:
        """Return ``A^T v``."""
        if self.symmetric:
            return self.mv(v)
        return vjp(self.mv, tree_map(torch.zeros_like, v))[1](v)[0]

    @property
    def T(self) -> LinearOperator:
        """The transpose."""
        return self if self.symmetric else TransposedOperator(self)

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the matrix ``(*lanes, n, n)`` over the raveled vectors.

        Parameters
        ----------
        structure
            The structure of the vectors, for an operator that takes any.
        """
        structure = structure or self.structure
        if structure is None:
            raise ValueError(f"{type(self).__name__}.dense() needs the structure of its vectors")
        eye = torch.eye(structure.size, dtype=structure.dtype, device=structure.device)

        def column(e: Tensor) -> Tensor:
            v = structure.unravel(e.expand(*structure.native, structure.size).contiguous())
            name = f"the product of {type(self).__name__}"
            return structure.check_like(self.mv(v), structure.native, name, "its vector")

        return vmap(column, out_dims=-1)(eye)

    def diagonal_entries(self, structure: Structure | None = None) -> Tensor:
        """Return the diagonal of the matrix, ``(*lanes, n)``, over the raveled vectors."""
        if not self.diagonal:
            return self.dense(structure).diagonal(dim1=-2, dim2=-1)
        structure = structure or self.structure
        if structure is None:
            raise ValueError(f"{type(self).__name__} needs the structure of its vectors")
        ones = torch.ones(
            *structure.native, structure.size, dtype=structure.dtype, device=structure.device
        )
        return structure.ravel(self.mv(structure.unravel(ones)))

    def __add__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return SumOperator(self, other)

    def __neg__(self) -> LinearOperator:
        return ScaledOperator(self, -1.0)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return SumOperator(self, -other)

    def __mul__(self, scale: float | Tensor) -> LinearOperator:
        if isinstance(scale, LinearOperator):
            return NotImplemented
        return ScaledOperator(self, scale)

    __rmul__ = __mul__

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, LinearOperator):
            return ProductOperator(self, other)
        return self.mv(other)


def _same_vectors(left: LinearOperator, right: LinearOperator, verb: str) -> None:
    """Refuse to combine operators on different vectors."""
    a, b = left.structure, right.structure
    if a is None or b is None:
        return
    if (a.tree, a.shapes, a.dtype, a.device) != (b.tree, b.shapes, b.dtype, b.device):
        raise ValueError(
            f"cannot {verb} operators on vectors of shapes {[tuple(s) for s in a.shapes]} "
            f"({a.dtype}, {a.device}) and {[tuple(s) for s in b.shapes]} ({b.dtype}, {b.device}): "
            "both must take the same vectors"
        )


@operator_pytree("left", "right")
@dataclass(frozen=True, eq=False)
class SumOperator(LinearOperator):
    """``left + right``; symmetric, positive definite or diagonal if both are."""

    left: LinearOperator
    right: LinearOperator

    def __post_init__(self) -> None:
        _same_vectors(self.left, self.right, "add")

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.left.symmetric and self.right.symmetric

    @property
    def positive_definite(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.left.positive_definite and self.right.positive_definite

    @property
    def diagonal(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.left.diagonal and self.right.diagonal

    @property
    def costly(self) -> bool:  # type: ignore[override]
        """Whether one is."""
        return self.left.costly or self.right.costly

    @property
    def structure(self) -> Structure | None:
        """The structure of either."""
        return self.left.structure or self.right.structure

    def mv(self, v: Any) -> Any:
        """Return ``left v + right v``."""
        return tree_map(torch.add, self.left.mv(v), self.right.mv(v))

    def rmv(self, v: Any) -> Any:
        """Return ``left^T v + right^T v``."""
        return tree_map(torch.add, self.left.rmv(v), self.right.rmv(v))

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the sum of the matrices."""
        structure = structure or self.structure
        return self.left.dense(structure) + self.right.dense(structure)


@operator_pytree("left", "right")
@dataclass(frozen=True, eq=False)
class ProductOperator(LinearOperator):
    """``left @ right``: first ``right``, then ``left``."""

    left: LinearOperator
    right: LinearOperator
    positive_definite: ClassVar[bool] = False  # type: ignore[misc]

    def __post_init__(self) -> None:
        _same_vectors(self.left, self.right, "multiply")

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether both are diagonal."""
        return self.diagonal

    @property
    def diagonal(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.left.diagonal and self.right.diagonal

    @property
    def costly(self) -> bool:  # type: ignore[override]
        """Whether one is."""
        return self.left.costly or self.right.costly

    @property
    def structure(self) -> Structure | None:
        """The structure of either."""
        return self.left.structure or self.right.structure

    def mv(self, v: Any) -> Any:
        """Return ``left right v``."""
        return self.left.mv(self.right.mv(v))

    def rmv(self, v: Any) -> Any:
        """Return ``right^T left^T v``."""
        return self.right.rmv(self.left.rmv(v))

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the product of the matrices."""
        structure = structure or self.structure
        return self.left.dense(structure) @ self.right.dense(structure)


@operator_pytree("operator", "scale")
@dataclass(frozen=True, eq=False)
class ScaledOperator(LinearOperator):
    """``scale * operator``, with a number or a 0-d tensor."""

    operator: LinearOperator
    scale: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.scale, Tensor) and self.scale.dim() > 0:
            raise ValueError(
                f"an operator was multiplied by a tensor of shape {tuple(self.scale.shape)}: "
                "scale by a number or a 0-d tensor, or use DiagonalOperator(entries) @ A"
            )

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether the operator is."""
        return self.operator.symmetric

    @property
    def positive_definite(self) -> bool:  # type: ignore[override]
        """Whether the operator is, and the scale is a positive number."""
        known = not isinstance(self.scale, Tensor) and self.scale > 0
        return known and self.operator.positive_definite

    @property
    def diagonal(self) -> bool:  # type: ignore[override]
        """Whether the operator is."""
        return self.operator.diagonal

    @property
    def costly(self) -> bool:  # type: ignore[override]
        """Whether the operator is."""
        return self.operator.costly

    @property
    def structure(self) -> Structure | None:
        """The structure of the operator."""
        return self.operator.structure

    def mv(self, v: Any) -> Any:
        """Return ``scale * (operator v)``."""
        return tree_map(lambda t: self.scale * t, self.operator.mv(v))

    def rmv(self, v: Any) -> Any:
        """Return ``scale * (operator^T v)``."""
        return tree_map(lambda t: self.scale * t, self.operator.rmv(v))

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the scaled matrix."""
        return self.scale * self.operator.dense(structure)


@operator_pytree("operator")
@dataclass(frozen=True, eq=False)
class TransposedOperator(LinearOperator):
    """The transpose of an operator."""

    operator: LinearOperator
    symmetric: ClassVar[bool] = False  # type: ignore[misc]
    positive_definite: ClassVar[bool] = False  # type: ignore[misc]

    @property
    def costly(self) -> bool:  # type: ignore[override]
        """Whether the operator is."""
        return self.operator.costly

    @property
    def structure(self) -> Structure | None:
        """The structure of the operator."""
        return self.operator.structure

    @property
    def T(self) -> LinearOperator:
        """The operator itself."""
        return self.operator

    def mv(self, v: Any) -> Any:
        """Return ``operator^T v``."""
        return self.operator.rmv(v)

    def rmv(self, v: Any) -> Any:
        """Return ``operator v``."""
        return self.operator.mv(v)

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the transposed matrix."""
        return self.operator.dense(structure).mT
