"""Linear operators: what a linear solve needs to know of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import register_pytree_node, tree_map, tree_structure

from implicit_solvers.autodiff import vjp
from implicit_solvers.structure import Structure

__all__ = [
    "DiagonalOperator",
    "FunctionOperator",
    "HessianOperator",
    "IdentityOperator",
    "JacobianOperator",
    "LinearOperator",
    "MatrixOperator",
    "ProductOperator",
    "ScaledOperator",
    "SumOperator",
    "TransposedOperator",
]

C = TypeVar("C", bound=type)


def _pytree(*data: str) -> Callable[[C], C]:
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


def _imply_symmetry(operator: Any) -> None:
    if operator.positive_definite and not operator.symmetric:
        object.__setattr__(operator, "symmetric", True)


@_pytree("matrix")
@dataclass(frozen=True, eq=False)
class MatrixOperator(LinearOperator):
    """The operator of a matrix.

    Parameters
    ----------
    matrix
        ``(*lanes, n, n)``, real floating.
    symmetric, positive_definite
        What is known of the matrix.

    Raises
    ------
    TypeError
        If ``matrix`` is no real floating tensor.
    ValueError
        If it is not square.

    Examples
    --------
    >>> A = MatrixOperator(torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    >>> A @ torch.ones(2), A.T @ torch.ones(2)
    (tensor([3., 3.]), tensor([2., 4.]))
    """

    matrix: Tensor
    symmetric: bool = False
    positive_definite: bool = False

    def __post_init__(self) -> None:
        matrix = self.matrix
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            kind = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise TypeError(f"matrix is {kind}: pass a real floating tensor")
        if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(
                f"matrix has shape {tuple(matrix.shape)}: pass a square one, (*lanes, n, n)"
            )
        _imply_symmetry(self)

    @property
    def structure(self) -> Structure:
        """Vectors of n entries."""
        m = self.matrix
        return Structure(tree_structure(m), (m.shape[-1:],), tuple(m.shape[:-2]), m.dtype, m.device)

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v``."""
        if self.matrix.dim() == 2 and v.dim() == 1:
            return self.matrix @ v
        return (v.unsqueeze(-2) @ self.matrix.mT).squeeze(-2)

    def rmv(self, v: Tensor) -> Tensor:
        """Return ``A^T v``."""
        return (v.unsqueeze(-2) @ self.matrix).squeeze(-2)

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the matrix."""
        return self.matrix


@_pytree()
@dataclass(frozen=True, eq=False, init=False)
class FunctionOperator(LinearOperator):
    """The operator of a function that multiplies.

    Parameters
    ----------
    fn
        ``fn(v) -> A v``, linear in ``v``, written in torch; tensors that it captures get
        gradients. Its transpose comes from its pullback.
    like
        A vector of the shape, structure and dtype of those that ``fn`` takes; its values are not
        used.
    symmetric, positive_definite
        What is known of the operator.

    Examples
    --------
    >>> A = FunctionOperator(lambda v: v.cumsum(0), like=torch.ones(3))
    >>> A.dense()
    tensor([[1., 0., 0.],
            [1., 1., 0.],
            [1., 1., 1.]])
    >>> A.T @ torch.ones(3)
    tensor([3., 2., 1.])
    """

    fn: Callable[[Any], Any]
    vectors: Structure
    symmetric: bool
    positive_definite: bool

    def __init__(
        self,
        fn: Callable[[Any], Any],
        like: Any,
        symmetric: bool = False,
        positive_definite: bool = False,
    ) -> None:
        object.__setattr__(self, "fn", fn)
        object.__setattr__(self, "vectors", Structure.of(like, "like"))
        object.__setattr__(self, "symmetric", symmetric or positive_definite)
        object.__setattr__(self, "positive_definite", positive_definite)

    @property
    def structure(self) -> Structure:
        """The structure of ``like``."""
        return self.vectors

    def mv(self, v: Any) -> Any:
        """Return ``fn(v)``."""
        return self.fn(v)


@_pytree("z", "args")
@dataclass(frozen=True, eq=False)
class JacobianOperator(LinearOperator):
    """The Jacobian of ``fn(z, *args)`` with respect to ``z``, by products: ``n x n``.

    Parameters
    ----------
    fn
        A function from ``z`` to the same structure.
    z
        The point: a tensor or pytree of tensors of one floating dtype.
    args
        Further arguments, pytrees.
    symmetric, positive_definite
        What is known of the Jacobian.

    Examples
    --------
    >>> A = JacobianOperator(lambda z: z**3, torch.tensor([1.0, 2.0]))
    >>> A @ torch.ones(2)
    tensor([ 3., 12.])
    """

    fn: Callable[..., Any]
    z: Any
    args: tuple[Any, ...] = ()
    symmetric: bool = False
    positive_definite: bool = False
    costly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Structure.of(self.z, "z")
        _imply_symmetry(self)

    @property
    def structure(self) -> Structure:
        """The structure of ``z``."""
        return Structure.of(self.z, "z")

    def _flat(self) -> tuple[Structure, Callable[[Tensor], Tensor], Tensor]:
        structure = self.structure

        def flat(z: Tensor) -> Tensor:
            out = self.fn(structure.unravel(z), *self.args)
            return structure.check_like(out, (), "fn", "z")

        return structure, flat, structure.ravel(self.z)

    def mv(self, v: Any) -> Any:
        """Return ``J v``, by two pullbacks."""
        structure, flat, z = self._flat()
        out, pull = vjp(flat, z)
        _, push = vjp(pull, torch.zeros_like(out))
        return structure.unravel(push((structure.ravel(v),))[0])

    def rmv(self, v: Any) -> Any:
        """Return ``J^T v``, by a pullback."""
        structure, flat, z = self._flat()
        return structure.unravel(vjp(flat, z)[1](structure.ravel(v))[0])


@_pytree("z", "args")
@dataclass(frozen=True, eq=False)
class HessianOperator(LinearOperator):
    """The Hessian of a scalar ``fn(z, *args)`` with respect to ``z``, by products.

    Parameters
    ----------
    fn
        A function from ``z`` to a 0-d tensor.
    z
        The point: a tensor or pytree of tensors of one floating dtype.
    args
        Further arguments, pytrees.
    positive_definite
        Whether the Hessian is known to be positive definite.

    Examples
    --------
    >>> A = HessianOperator(lambda z: (z**3).sum(), torch.tensor([1.0, 2.0]))
    >>> A @ torch.ones(2)
    tensor([ 6., 12.])
    """

    fn: Callable[..., Tensor]
    z: Any
    args: tuple[Any, ...] = ()
    positive_definite: bool = False
    symmetric: ClassVar[bool] = True  # type: ignore[misc]
    costly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Structure.of(self.z, "z")

    @property
    def structure(self) -> Structure:
        """The structure of ``z``."""
        return Structure.of(self.z, "z")

    def mv(self, v: Any) -> Any:
        """Return ``H v``."""

        def gradient(z: Any) -> Any:
            value, pull = vjp(lambda z: self.fn(z, *self.args), z)
            if not isinstance(value, Tensor) or value.dim() > 0:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"fn returned {shape}: a Hessian needs a scalar, a 0-d tensor")
            return pull(torch.ones_like(value))[0]

        return JacobianOperator(gradient, self.z).rmv(v)


@_pytree("entries")
@dataclass(frozen=True, eq=False)
class DiagonalOperator(LinearOperator):
    """The operator that multiplies each unknown by a number of its own.

    Parameters
    ----------
    entries
        The diagonal: a tensor, or a pytree of tensors, of the vectors' structure and shapes.
    positive_definite
        Whether all entries are known to be positive.

    Examples
    --------
    >>> DiagonalOperator(torch.tensor([1.0, 2.0])) @ torch.ones(2)
    tensor([1., 2.])
    """

    entries: Any
    positive_definite: bool = False
    symmetric: ClassVar[bool] = True  # type: ignore[misc]
    diagonal: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        Structure.of(self.entries, "entries")

    @property
    def structure(self) -> Structure:
        """The structure of ``entries``."""
        return Structure.of(self.entries, "entries")

    def mv(self, v: Any) -> Any:
        """Return the product entry by entry."""
        return tree_map(torch.mul, self.entries, v)

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the diagonal matrix."""
        return torch.diag_embed(self.diagonal_entries(structure))


@_pytree()
@dataclass(frozen=True, eq=False)
class IdentityOperator(LinearOperator):
    """The operator that returns its argument.

    Examples
    --------
    >>> A = 2.0 * IdentityOperator() + MatrixOperator(torch.eye(2))
    >>> A @ torch.ones(2)
    tensor([3., 3.])
    """

    symmetric: ClassVar[bool] = True  # type: ignore[misc]
    positive_definite: ClassVar[bool] = True  # type: ignore[misc]
    diagonal: ClassVar[bool] = True  # type: ignore[misc]

    @property
    def structure(self) -> None:
        """Any."""
        return None

    def mv(self, v: Any) -> Any:
        """Return ``v``."""
        return v

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the identity matrix."""
        if structure is None:
            raise ValueError("IdentityOperator.dense() needs the structure of its vectors")
        eye = torch.eye(structure.size, dtype=structure.dtype, device=structure.device)
        return eye.expand(*structure.native, structure.size, structure.size)


@_pytree("left", "right")
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


@_pytree("left", "right")
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


@_pytree("operator", "scale")
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


@_pytree("operator")
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
