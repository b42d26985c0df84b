"""Preconditioners: cheap approximations of an operator's inverse. It knows no solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_number
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.sparsity import (
    Ordering,
    check_device,
    check_ordering,
    csc_arrays,
    on_host,
)

__all__ = ["ILU", "DiagonalMap", "HostMap", "Jacobi", "Preconditioner", "SparsePreconditioner"]


class Preconditioner:
    """What makes a cheap approximation of an operator's inverse."""

    traceable: ClassVar[bool] = True

    def of(self, A: LaneMap) -> Any:
        """Return the approximate inverse of each lane of ``A``, a map with a product ``mv``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Jacobi(Preconditioner):
    """Divide by the operator's diagonal: ``(M r)_i = r_i / |a_ii|``; zeros in it are left alone.

    For square operators ``(*batch, n, n)`` of every floating and complex dtype. One without a
    closed form is probed with ``n`` products for its diagonal. Source: Saad, "Iterative Methods for
    Sparse Linear Systems" (2003), section 10.2.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.diag(torch.tensor([1.0, 100.0])), positive_definite=True)
    >>> b = torch.tensor([1.0, 1.0])
    >>> int(ims.linear_solve(A, b, solver=ims.CG(), preconditioner=Jacobi()).iterations)
    1
    """

    def of(self, A: LaneMap) -> DiagonalMap:
        """Return the inverse of the diagonal of each lane of ``A``."""
        entries = A.diagonal_entries().abs()
        inverse = (entries == 0).to(entries.dtype) + entries
        return DiagonalMap((1 / inverse).repeat(A.columns, 1))


class SparsePreconditioner(Preconditioner):
    """The base class of preconditioners made of a sparse matrix, yours among them, on the CPU.

    A subclass has ``inverse(matrix)``, which takes a ``scipy.sparse.csc_array`` and returns a
    function of NumPy vectors, or SciPy's ``LinearOperator``, near the inverse of the matrix. It is
    made for each problem of a `SparseOperator`, or of the Jacobian of an equation whose
    ``jac_sparsity`` is given, and for the transpose in a backward pass. A problem whose matrix is
    not finite, or for which ``inverse`` raises ``RuntimeError``, has none.

    Raises
    ------
    ValueError
        When a solve begins with another operator.

    Examples
    --------
    Multiplication with the inverse of the triangle below the diagonal (Gauss and Seidel):

    >>> import scipy.sparse, implicit_solvers as ims
    >>> class GaussSeidel(ims.SparsePreconditioner):
    ...     def inverse(self, matrix):
    ...         lower = scipy.sparse.tril(matrix, format="csr")
    ...         return lambda v: scipy.sparse.linalg.spsolve_triangular(lower, v)
    >>> A = torch.tensor([[2.0, 0.0], [1.0, 4.0]], dtype=torch.float64).to_sparse()
    >>> b = torch.tensor([2.0, 5.0], dtype=torch.float64)
    >>> sol = ims.linear_solve(A, b, solver=ims.GMRES(), preconditioner=GaussSeidel())
    >>> int(sol.iterations)
    1
    """

    traceable: ClassVar[bool] = False

    def inverse(self, matrix: Any) -> Callable[[np.ndarray], np.ndarray]:
        """Return what multiplies with an approximate inverse of a matrix."""
        raise NotImplementedError

    def of(self, A: LaneMap) -> HostMap:
        """Return the approximate inverse of each lane of ``A``."""
        sparse = A.entries()
        if sparse is None:
            raise ValueError(
                f"preconditioner={self!r} is made of a sparse matrix: give the operator as a "
                "SparseOperator, or the pattern of the Jacobian as jac_sparsity, or use Jacobi()"
            )
        entries, pattern = sparse
        check_device(f"preconditioner={self!r}", entries.device)
        lanes = csc_arrays(entries, pattern, A.transposed)
        return HostMap(tuple(map(self._lane, lanes)), A.like)

    def _lane(self, matrix: Any) -> Callable[[np.ndarray], np.ndarray]:
        try:
            return self.inverse(matrix) if np.isfinite(matrix.data).all() else _unchanged
        except RuntimeError:
            return _unchanged


@dataclass(frozen=True)
class ILU(SparsePreconditioner):
    """Incomplete LU factors: those of SuperLU without what is small.

    For sparse operators, and sparse Jacobians, in float32, float64 and their complex counterparts;
    see `SparsePreconditioner`. Source: Li and Shao, "A supernodal approach to incomplete LU
    factorization with partial pivoting", ACM Trans. Math. Softw. 37 (2011).

    Parameters
    ----------
    drop_tol
        What is smaller than this part of its column is dropped.
    fill_factor
        How many times as many entries as the matrix the factors may have.
    ordering
        How columns are ordered to keep the factors sparse: SuperLU's ``permc_spec``. For matrices
        whose pattern is far from symmetric, ``"COLAMD"``.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; when a solve begins with an operator that is not sparse.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = torch.tensor([[2.0, 0.0], [1.0, 4.0]]).to_sparse()
    >>> b = torch.tensor([2.0, 5.0])
    >>> ims.linear_solve(A, b, solver=ims.GMRES(), preconditioner=ims.ILU()).value
    tensor([1., 1.])
    """

    drop_tol: float = 1e-4
    fill_factor: float = 10.0
    ordering: Ordering = "MMD_AT_PLUS_A"

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_number(self, "drop_tol", least=0)
        check_number(self, "fill_factor", least=1)
        check_ordering(self)

    def inverse(self, matrix: Any) -> Callable[[np.ndarray], np.ndarray]:
        """Return what solves with the incomplete factors."""
        import scipy.sparse.linalg

        how = {"drop_tol": self.drop_tol, "fill_factor": self.fill_factor}
        factors = scipy.sparse.linalg.spilu(matrix, permc_spec=self.ordering, **how)
        solve: Callable[[np.ndarray], np.ndarray] = factors.solve
        return solve


@dataclass(frozen=True)
class HostMap:
    """Functions of NumPy vectors, one for each operator, in the place of a `LaneMap`."""

    products: tuple[Callable[[np.ndarray], np.ndarray], ...]
    like: Tensor
    separable: bool = True

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with each lane of ``v (N, n)``."""
        given, count = on_host(v), len(self.products)
        out = [self.products[i % count](lane) for i, lane in enumerate(given)]
        return torch.as_tensor(np.stack(out), dtype=v.dtype)

    def aliased(self) -> HostMap:
        """Return the map itself."""
        return self

    def to_compile(self) -> None:
        """Return nothing: it is not for graphs."""

    def take(self, index: Tensor) -> HostMap:
        """Return the map of some of the lanes."""
        places = (index % len(self.products)).tolist()
        return HostMap(tuple(self.products[i] for i in places), self.like)


def _unchanged(v: np.ndarray) -> np.ndarray:
    return v


@dataclass(frozen=True)
class DiagonalMap:
    """A diagonal map of each lane, ``entries (N, n)``, in the place of a `LaneMap`."""

    entries: Tensor
    separable: bool = True

    def mv(self, v: Tensor) -> Tensor:
        """Return the product."""
        return self.entries * v

    def aliased(self) -> DiagonalMap:
        """Return the map itself: no transform reads its entries."""
        return self

    def to_compile(self) -> DiagonalMap:
        """Return the map itself."""
        return self

    def take(self, index: Tensor) -> DiagonalMap:
        """Return the map of some of the lanes."""
        return DiagonalMap(self.entries[index])
