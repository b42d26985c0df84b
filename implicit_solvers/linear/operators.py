"""Operators made of a matrix, a function, a derivative, a diagonal. It knows nothing of solves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit_solvers.autodiff import differentiable, vjp
from implicit_solvers.compiling import compiling
from implicit_solvers.guarded_call import unwritten
from implicit_solvers.linear.linear_operator import LinearOperator, operator_pytree
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import is_batched, tree_map, tree_structure

__all__ = [
    "DiagonalOperator",
    "FunctionOperator",
    "HessianOperator",
    "IdentityOperator",
    "JacobianOperator",
    "MatrixOperator",
]


def _imply_symmetry(operator: Any) -> None:
    if operator.positive_definite and not operator.symmetric:
        object.__setattr__(operator, "symmetric", True)


@operator_pytree("matrix")
@dataclass(frozen=True, eq=False)
class MatrixOperator(LinearOperator):
    """The operator of a matrix, ``(A v)_i = sum_j a_ij v_j``.

    Parameters
    ----------
    matrix
        ``(*batch, m, n)``, floating, real or complex.
    symmetric, positive_definite
        What is known of the matrix.

    Raises
    ------
    TypeError
        If ``matrix`` is not a floating tensor.
    ValueError
        If it has fewer than two dimensions, or is said to be symmetric and is not square.

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
        if not isinstance(matrix, Tensor) or not differentiable(matrix):
            kind = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise TypeError(f"matrix is {kind}: pass a floating tensor")
        if matrix.layout != torch.strided:
            raise TypeError(f"matrix is {matrix.layout}: use SparseOperator(matrix)")
        if matrix.dim() < 2:
            raise ValueError(f"matrix has shape {tuple(matrix.shape)}: pass one (*batch, m, n)")
        _imply_symmetry(self)
        if self.symmetric and matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(
                f"matrix has shape {tuple(matrix.shape)}, and a symmetric one is square: leave "
                "symmetric and positive_definite out"
            )

    @property
    def structure(self) -> Structure:
        """Vectors of n entries."""
        m = self.matrix
        return Structure(tree_structure(m), (m.shape[-1:],), tuple(m.shape[:-2]), m.dtype, m.device)

    @property
    def out_structure(self) -> Structure:
        """Vectors of m entries."""
        m = self.matrix
        rows = torch.Size((m.shape[-2],))
        return Structure(tree_structure(m), (rows,), tuple(m.shape[:-2]), m.dtype, m.device)

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v``."""
        if self.matrix.dim() == 2 and v.dim() == 1 and not _one_for_each_lane(self.matrix):
            return self.matrix @ v
        # a batch of products with rows is several times as fast as one with columns
        return (v.unsqueeze(-2) @ self.matrix.mT).squeeze(-2)

    def rmv(self, v: Tensor) -> Tensor:
        """Return ``A^T v``, of a complex matrix ``A^H v``."""
        return (v.unsqueeze(-2) @ self.matrix.conj()).squeeze(-2)

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the matrix."""
        return self.matrix


@operator_pytree()
@dataclass(frozen=True, eq=False, init=False)
class FunctionOperator(LinearOperator):
    """The operator of a function that multiplies, ``A v = fn(v)``.

    Parameters
    ----------
    fn
        ``fn(v) -> A v``, linear in ``v``, written in torch; tensors that it captures get
        gradients. Its transpose comes from its pullback.
    like
        A vector of the shape, structure and dtype of those that ``fn`` takes; its values are not
        used. With ``batch_dims`` of a solve it may be one of the whole batch, if ``fn`` keeps
        problems apart.
    symmetric, positive_definite
        What is known of the operator.
    out_like
        A vector like those that ``fn`` returns, if they are not like ``like``.

    Raises
    ------
    TypeError, ValueError
        If ``like`` is not a tensor or pytree of tensors of one dtype; at a product, if ``fn``
        returns another structure, shape or dtype than it should.

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
    products: Structure
    symmetric: bool
    positive_definite: bool

    def __init__(
        self,
        fn: Callable[[Any], Any],
        like: Any,
        symmetric: bool = False,
        positive_definite: bool = False,
        out_like: Any = None,
    ) -> None:
        vectors = Structure.of(like, "like")
        products = vectors if out_like is None else Structure.of(out_like, "out_like")
        object.__setattr__(self, "fn", fn)
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "products", products)
        object.__setattr__(self, "symmetric", symmetric or positive_definite)
        object.__setattr__(self, "positive_definite", positive_definite)

    @property
    def structure(self) -> Structure:
        """The structure of ``like``."""
        return self.vectors

    @property
    def out_structure(self) -> Structure:
        """The structure of ``out_like``."""
        return self.products

    def mv(self, v: Any) -> Any:
        """Return ``fn(v)``."""
        return unwritten(self.fn, (v,), "the product of an operator or preconditioner", "v")


def _one_for_each_lane(matrix: Tensor) -> bool:
    return not compiling() and is_batched(matrix)


@operator_pytree("z", "args")
@dataclass(frozen=True, eq=False)
class JacobianOperator(LinearOperator):
    """The Jacobian of ``fn(z, *args)`` with respect to ``z``, by products.

    ``J v`` takes two pullbacks, ``J^T v`` one; no matrix is formed unless a solver needs it.
    Source: Townsend, "A new trick for calculating Jacobian vector products" (2017).

    Parameters
    ----------
    fn
        A function from ``z`` to the same structure, or to that of ``out_like``. If ``z`` is
        complex, it must be holomorphic: solves check their residual, which refutes one that is not.
    z
        The point: a tensor or pytree of tensors, of any shapes and one floating or complex dtype.
    args
        Further arguments, pytrees.
    symmetric, positive_definite
        What is known of the Jacobian.
    out_like
        What ``fn`` returns looks like this, if not like ``z``.
    detect
        Whether a solve looks for diagonal and tridiagonal structure first (`Structured`).

    Raises
    ------
    TypeError, ValueError
        If ``z`` is not a tensor or pytree of tensors of one dtype; at a product, if ``fn`` returns
        another structure, shape or dtype than it should.

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
    out_like: Any = None
    detect: bool = False
    costly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Structure.of(self.z, "z")
        if self.out_like is not None and not isinstance(self.out_like, Structure):
            object.__setattr__(self, "out_like", Structure.of(self.out_like, "out_like"))
        _imply_symmetry(self)

    @property
    def structure(self) -> Structure:
        """The structure of ``z``."""
        return Structure.of(self.z, "z")

    @property
    def out_structure(self) -> Structure:
        """The structure of what ``fn`` returns."""
        return self.structure if self.out_like is None else self.out_like

    def _flat(self) -> tuple[Structure, Callable[[Tensor], Tensor], Tensor]:
        structure = self.structure

        def flat(z: Tensor) -> Tensor:
            given = structure.unravel(z), *self.args
            out = unwritten(self.fn, given, "the function of JacobianOperator")
            return self.out_structure.check_like(out, (), "fn", "z")

        return structure, flat, structure.ravel(self.z)

    def mv(self, v: Any) -> Any:
        """Return ``J v``, by two pullbacks."""
        structure, flat, z = self._flat()
        out, pull = vjp(flat, z)
        _, push = vjp(pull, torch.zeros_like(out))
        return self.out_structure.unravel(push((structure.ravel(v),))[0])

    def rmv(self, v: Any) -> Any:
        """Return ``J^T v``, by a pullback."""
        structure, flat, z = self._flat()
        return structure.unravel(vjp(flat, z)[1](self.out_structure.ravel(v))[0])


@operator_pytree("z", "args")
@dataclass(frozen=True, eq=False)
class HessianOperator(LinearOperator):
    """The Hessian of a scalar ``fn(z, *args)`` with respect to ``z``, by products.

    ``H v`` is the derivative of the gradient along ``v``. Source: Pearlmutter, "Fast exact
    multiplication by the Hessian", Neural Computation 6 (1994).

    Parameters
    ----------
    fn
        A function from ``z`` to a 0-d tensor.
    z
        The point: a tensor or pytree of tensors, of any shapes and one real floating dtype.
    args
        Further arguments, pytrees.
    positive_definite
        Whether the Hessian is known to be positive definite.

    Raises
    ------
    TypeError, ValueError
        If ``z`` is not a tensor or pytree of tensors of one real dtype; at a product, if ``fn``
        does not return one number.

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
        if Structure.of(self.z, "z").dtype.is_complex:
            raise TypeError(
                "z is complex, and a Hessian is not linear over complex numbers: take that of a "
                "function of torch.view_as_real(z)"
            )

    @property
    def structure(self) -> Structure:
        """The structure of ``z``."""
        return Structure.of(self.z, "z")

    def mv(self, v: Any) -> Any:
        """Return ``H v``."""

        def gradient(z: Any) -> Any:
            who = "the function of HessianOperator"
            value, pull = vjp(lambda z: unwritten(self.fn, (z, *self.args), who), z)
            if not isinstance(value, Tensor) or value.dim() > 0:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"fn returned {shape}: a Hessian needs a scalar, a 0-d tensor")
            return pull(torch.ones_like(value))[0]

        return JacobianOperator(gradient, self.z).rmv(v)


@operator_pytree("entries")
@dataclass(frozen=True, eq=False)
class DiagonalOperator(LinearOperator):
    """The operator that multiplies each unknown by its own number, ``(A v)_i = a_i v_i``.

    Parameters
    ----------
    entries
        The diagonal: a tensor, or a pytree of tensors, of the vectors' structure, shapes and
        floating or complex dtype; with ``batch_dims`` of a solve, of the whole batch or of one
        problem.
    positive_definite
        Whether all entries are known to be positive, of complex entries too.

    Raises
    ------
    TypeError, ValueError
        If ``entries`` is not a tensor or pytree of tensors of one floating or complex dtype.

    Examples
    --------
    >>> DiagonalOperator(torch.tensor([1.0, 2.0])) @ torch.ones(2)
    tensor([1., 2.])
    """

    entries: Any
    positive_definite: bool = False
    diagonal: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        Structure.of(self.entries, "entries")

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether the entries are known to be real."""
        return self.positive_definite or not self.structure.dtype.is_complex

    @property
    def structure(self) -> Structure:
        """The structure of ``entries``."""
        return Structure.of(self.entries, "entries")

    def mv(self, v: Any) -> Any:
        """Return the product entry by entry."""
        return tree_map(torch.mul, self.entries, v)

    def rmv(self, v: Any) -> Any:
        """Return the product with the conjugate of each entry."""
        return tree_map(lambda e, u: e.conj() * u, self.entries, v)

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the diagonal matrix."""
        return torch.diag_embed(self.diagonal_entries(structure))


@operator_pytree()
@dataclass(frozen=True, eq=False)
class IdentityOperator(LinearOperator):
    """The operator that returns its argument, ``I v = v``.

    It takes vectors of every structure, shape and dtype. It cannot be written out on its own
    (``dense`` raises a ValueError): it does not know their number.

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
