"""Linear operators, what can be asked of them, and their algebra. It knows nothing of solves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from implicit_solvers.autodiff import vjp
from implicit_solvers.closures import bound
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import register_pytree_node, tree_flatten, tree_map

__all__ = [
    "LinearOperator",
    "ProductOperator",
    "ScaledOperator",
    "SumOperator",
    "TransposedOperator",
    "as_read",
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
    with a vector, ``A.T`` the transpose, ``A.H`` the conjugate transpose, ``A.dense()`` the matrix
    ``(*batch, m, n)`` over the raveled vectors.

    It is what `MatrixOperator`, `FunctionOperator`, `JacobianOperator` and the others have in
    common: annotate with it, and make one of those.

    Attributes
    ----------
    symmetric, positive_definite, diagonal
        What the caller knows of the operator; solvers trust it. Positive definite implies
        symmetric. A complex operator is called symmetric if it equals its conjugate transpose.
    structure, out_structure
        The shapes, dtype (floating, real or complex) and device of ``v`` and of ``A v``.

    Raises
    ------
    ValueError
        If operators on different vectors are added or multiplied, or one is scaled by a tensor
        that is not 0-d.
    TypeError
        If one is scaled by what is no number.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    >>> B = 2.0 * A + ims.IdentityOperator()
    >>> isinstance(B, LinearOperator), B @ torch.ones(2), B.T @ torch.ones(2)
    (True, tensor([3., 5.]), tensor([5., 3.]))
    >>> (A @ A).dense()
    tensor([[2., 0.],
            [0., 2.]])
    """

    symmetric: bool
    positive_definite: bool
    diagonal: bool = False
    costly: ClassVar[bool] = False

    @property
    def bands(self) -> tuple[int, int] | None:
        """How many diagonals below and above the main one may hold anything, if that is known."""
        return (0, 0) if self.diagonal else None

    @property
    def structure(self) -> Structure | None:
        """The structure of the vectors, or None if the operator takes any."""
        raise NotImplementedError

    @property
    def out_structure(self) -> Structure | None:
        """The structure of the products: another one if the operator is rectangular."""
        return self.structure

    def mv(self, v: Any) -> Any:
        """Return ``A v``."""
        raise NotImplementedError

    def rmv(self, v: Any) -> Any:
        """Return ``A^T v``; ``A^H v`` if the operator is complex."""
        if self.symmetric:
            return self.mv(v)
        zeros = tree_map(torch.zeros_like, v)
        if self.structure is not None and self.out_structure is not None:
            first = tree_flatten(v)[0][0]
            lanes = first.shape[: first.dim() - len(self.out_structure.shapes[0])]
            zeros = self.structure.unravel(first.new_zeros(*lanes, self.structure.size))
        return vjp(self.mv, zeros)[1](v)[0]

    @property
    def T(self) -> LinearOperator:
        """The transpose."""
        complex_ = self.structure is not None and self.structure.dtype.is_complex
        return self if self.symmetric and not complex_ else TransposedOperator(self)

    @property
    def H(self) -> LinearOperator:
        """The conjugate transpose."""
        return self if self.symmetric else TransposedOperator(self, conjugate=True)

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the matrix ``(*lanes, m, n)`` over the raveled vectors.

        Parameters
        ----------
        structure
            The structure of the vectors, for an operator that takes any.
        """
        structure = structure or self.structure
        if structure is None:
            raise ValueError(f"{type(self).__name__}.dense() needs the structure of its vectors")
        out = self.out_structure if self.rectangular else structure
        assert out is not None
        eye = torch.eye(structure.size, dtype=structure.dtype, device=structure.device)

        def column(e: Tensor) -> Tensor:
            v = structure.unravel(e.expand(*structure.native, structure.size).contiguous())
            name = f"the product of {type(self).__name__}"
            return out.check_like(self.mv(v), structure.native, name, "its vector")

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

    @property
    def rectangular(self) -> bool:
        """Whether products have another structure than vectors."""
        return not _alike(self.structure, self.out_structure)

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

    def __mul__(self, scale: complex | Tensor) -> LinearOperator:
        if isinstance(scale, LinearOperator):
            return NotImplemented
        return ScaledOperator(self, scale)

    __rmul__ = __mul__

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, LinearOperator):
            return ProductOperator(self, other)
        return self.mv(other)


def _alike(a: Structure | None, b: Structure | None) -> bool:
    """Tell whether vectors of two structures, lanes aside, are interchangeable."""
    if a is None or b is None or a is b:
        return True
    return (a.tree, a.shapes, a.dtype, a.device) == (b.tree, b.shapes, b.dtype, b.device)


def _same_vectors(a: Structure | None, b: Structure | None, verb: str) -> None:
    """Refuse to combine operators on different vectors."""
    if not _alike(a, b):
        assert a is not None and b is not None
        raise ValueError(
            f"cannot {verb} operators on vectors of shapes {[tuple(s) for s in a.shapes]} "
            f"({a.dtype}, {a.device}) and {[tuple(s) for s in b.shapes]} ({b.dtype}, {b.device}): "
            "both must take the same vectors"
            + (", that is, what the right one returns" if verb == "multiply" else "")
        )


@dataclass(frozen=True, eq=False)
class _OfTwo(LinearOperator):
    """What sums and products have in common."""

    left: LinearOperator
    right: LinearOperator

    @property
    def diagonal(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.left.diagonal and self.right.diagonal

    @property
    def costly(self) -> bool:  # type: ignore[override]
        """Whether one is."""
        return self.left.costly or self.right.costly

    @property
    def out_structure(self) -> Structure | None:
        """The structure of the products of ``left``, or whatever ``right`` says of them."""
        return self.left.out_structure or self.right.out_structure


@operator_pytree("left", "right")
@dataclass(frozen=True, eq=False)
class SumOperator(_OfTwo):
    """``left + right``; symmetric, positive definite or diagonal if both are."""

    def __post_init__(self) -> None:
        _same_vectors(self.left.structure, self.right.structure, "add")
        _same_vectors(self.left.out_structure, self.right.out_structure, "add")

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.left.symmetric and self.right.symmetric

    @property
    def positive_definite(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.left.positive_definite and self.right.positive_definite

    @property
    def bands(self) -> tuple[int, int] | None:
        """The wider ones of either."""
        a, b = self.left.bands, self.right.bands
        return None if a is None or b is None else (max(a[0], b[0]), max(a[1], b[1]))

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
class ProductOperator(_OfTwo):
    """``left @ right``: first ``right``, then ``left``."""

    positive_definite: ClassVar[bool] = False  # type: ignore[misc]

    def __post_init__(self) -> None:
        _same_vectors(self.left.structure, self.right.out_structure, "multiply")

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether both are diagonal, and symmetric."""
        return self.diagonal and self.left.symmetric and self.right.symmetric

    @property
    def bands(self) -> tuple[int, int] | None:
        """The sum of both."""
        a, b = self.left.bands, self.right.bands
        return None if a is None or b is None else (a[0] + b[0], a[1] + b[1])

    @property
    def structure(self) -> Structure | None:
        """The structure of the vectors of ``right``."""
        return self.right.structure or self.left.structure

    def mv(self, v: Any) -> Any:
        """Return ``left right v``."""
        return self.left.mv(self.right.mv(v))

    def rmv(self, v: Any) -> Any:
        """Return ``right^T left^T v``."""
        return self.right.rmv(self.left.rmv(v))

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the product of the matrices."""
        structure = structure or self.structure
        right = self.right.dense(structure)
        between = self.right.out_structure if self.right.rectangular else structure
        return self.left.dense(between) @ right


@dataclass(frozen=True, eq=False)
class OfOneOperator(LinearOperator):
    """What operators made of one other have in common."""

    operator: LinearOperator

    @property
    def diagonal(self) -> bool:  # type: ignore[override]
        """Whether the operator is."""
        return self.operator.diagonal

    @property
    def costly(self) -> bool:  # type: ignore[override]
        """Whether the operator is."""
        return self.operator.costly


@operator_pytree("operator", "scale")
@dataclass(frozen=True, eq=False)
class ScaledOperator(OfOneOperator):
    """``scale * operator``, with a number or a 0-d tensor."""

    scale: complex | Tensor

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, (Tensor, complex)) or hasattr(self.scale, "__float__")):
            raise TypeError(
                f"an operator was multiplied by a {type(self.scale).__name__}: scale by a number "
                "or a 0-d tensor"
            )
        if isinstance(self.scale, Tensor) and self.scale.dim() > 0:
            raise ValueError(
                f"an operator was multiplied by a tensor of shape {tuple(self.scale.shape)}: "
                "scale by a number or a 0-d tensor, or use DiagonalOperator(entries) @ A"
            )

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether the operator is, and the scale is real."""
        scale = self.scale
        real = not (scale.is_complex() if isinstance(scale, Tensor) else isinstance(scale, complex))
        return real and self.operator.symmetric

    @property
    def positive_definite(self) -> bool:  # type: ignore[override]
        """Whether the operator is, and the scale is a positive number."""
        known = not isinstance(self.scale, (Tensor, complex)) and self.scale > 0
        return known and self.operator.positive_definite

    @property
    def bands(self) -> tuple[int, int] | None:
        """Those of the operator."""
        return self.operator.bands

    @property
    def structure(self) -> Structure | None:
        """The structure of the operator."""
        return self.operator.structure

    @property
    def out_structure(self) -> Structure | None:
        """The structure of the operator's products."""
        return self.operator.out_structure

    def mv(self, v: Any) -> Any:
        """Return ``scale * (operator v)``."""
        return tree_map(lambda t: self.scale * t, self.operator.mv(v))

    def rmv(self, v: Any) -> Any:
        """Return ``scale * (operator^T v)``, the scale conjugated."""
        scale = self.scale.conj() if isinstance(self.scale, Tensor) else self.scale.conjugate()
        return tree_map(lambda t: scale * t, self.operator.rmv(v))

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the scaled matrix."""
        return self.scale * self.operator.dense(structure)


@operator_pytree("operator")
@dataclass(frozen=True, eq=False)
class TransposedOperator(OfOneOperator):
    """The transpose of an operator, or its conjugate transpose."""

    conjugate: bool = False
    symmetric: ClassVar[bool] = False  # type: ignore[misc]
    positive_definite: ClassVar[bool] = False  # type: ignore[misc]

    @property
    def bands(self) -> tuple[int, int] | None:
        """Those of the operator, exchanged."""
        bands = self.operator.bands
        return None if bands is None else (bands[1], bands[0])

    @property
    def structure(self) -> Structure | None:
        """The structure of the operator's products."""
        return self.operator.out_structure

    @property
    def out_structure(self) -> Structure | None:
        """The structure of the operator's vectors."""
        return self.operator.structure

    @property
    def T(self) -> LinearOperator:
        """The operator itself, conjugated if this is a conjugate transpose."""
        return super().T if self.conjugate else self.operator

    @property
    def H(self) -> LinearOperator:
        """The operator itself, conjugated if this is a plain transpose."""
        return self.operator if self.conjugate else super().H

    def _conjugated(self, product: Callable[[Any], Any], v: Any) -> Any:
        if self.conjugate:
            return product(v)
        return tree_map(torch.conj, product(tree_map(torch.conj, v)))

    def mv(self, v: Any) -> Any:
        """Return ``operator^T v``."""
        return self._conjugated(self.operator.rmv, v)

    def rmv(self, v: Any) -> Any:
        """Return ``operator v``, conjugated if this is a plain transpose."""
        return self._conjugated(self.operator.mv, v)

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the transposed matrix."""
        matrix = self.operator.dense(None if self.rectangular else structure)
        return matrix.mH if self.conjugate else matrix.mT


def as_read(A: LinearOperator) -> LinearOperator:
    """Return an operator whose functions go on reading what the variables around them are now."""
    held = {
        name: as_read(value) if isinstance(value, LinearOperator) else bound(value)
        for name, value in vars(A).items()
    }
    if all(held[name] is value for name, value in vars(A).items()):
        return A
    made = copy.copy(A)
    vars(made).update(held)
    return made
