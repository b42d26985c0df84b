"""Sparse operators. It knows nothing of solves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.autodiff import differentiable
from implicit_solvers.linear.linear_operator import LinearOperator, operator_pytree
from implicit_solvers.linear.sparsity import scattered
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import tree_structure

__all__ = ["SparseOperator"]


@operator_pytree("values", "rows", "columns")
@dataclass(frozen=True, eq=False, init=False)
class SparseOperator(LinearOperator):
    """The operator of a sparse matrix, ``(A v)_i = sum_j a_ij v_j`` over its entries.

    Products take time proportional to the number of entries; by default `SuperLU` solves on the
    CPU. Derivatives are with respect to the entries on the pattern: a sparse tensor of the same
    pattern for ``matrix``, a dense tensor for the ``values`` of `with_values`.

    Parameters
    ----------
    matrix
        A sparse tensor ``(m, n)``, COO, CSR, CSC, BSR or BSC, floating, real or complex. Torch does
        not let ``torch.func`` transforms see sparse tensors: make the operator outside of them, and
        use `with_values` inside. It does not accumulate ``grad`` in leaves that are CSC, BSR or
        BSC: let ``requires_grad`` be of what they are made of.
    symmetric, positive_definite
        What is known of the matrix.

    Raises
    ------
    TypeError
        If ``matrix`` is not a floating sparse tensor.
    ValueError
        If the matrix has batch dimensions, or is said to be symmetric and is not square.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> matrix = torch.tensor([[2.0, 0.0], [1.0, 4.0]]).to_sparse_csr().requires_grad_()
    >>> x = ims.linear_solve(SparseOperator(matrix), torch.tensor([2.0, 5.0])).value
    >>> x
    tensor([1., 1.], grad_fn=<...>)
    >>> x.sum().backward()
    >>> matrix.grad.values()
    tensor([-0.3750, -0.2500, -0.2500])
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]
    symmetric: bool
    positive_definite: bool

    def __init__(
        self,
        matrix: Tensor,
        symmetric: bool = False,
        positive_definite: bool = False,
    ) -> None:
        if not isinstance(matrix, Tensor) or matrix.layout == torch.strided:
            what = str(matrix.layout) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise TypeError(f"matrix is {what}: pass a sparse tensor, as matrix.to_sparse_csr()")
        if matrix.dim() != 2:
            raise ValueError(
                f"matrix has shape {tuple(matrix.shape)}: pass one matrix, and a batch of entries "
                "to its with_values"
            )
        if not differentiable(matrix):
            raise TypeError(f"matrix is {matrix.dtype}: pass a floating tensor")
        values, rows, columns = _entries(matrix)
        fields = {
            # a copy: torch refuses to conjugate a view of a sparse tensor
            "values": values.clone(),
            "rows": rows,
            "columns": columns,
            "shape": tuple(matrix.shape),
            "symmetric": symmetric or positive_definite,
            "positive_definite": positive_definite,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if self.symmetric and self.shape[0] != self.shape[1]:
            raise ValueError(
                f"matrix has shape {self.shape}, and a symmetric one is square: leave symmetric "
                "and positive_definite out"
            )

    def _vectors(self, size: int) -> Structure:
        values = self.values
        lanes = tuple(values.shape[:-1])
        tree = tree_structure(values)
        return Structure(tree, (torch.Size((size,)),), lanes, values.dtype, values.device)

    @property
    def structure(self) -> Structure:
        """Vectors of n entries."""
        return self._vectors(self.shape[1])

    @property
    def out_structure(self) -> Structure:
        """Vectors of m entries."""
        return self._vectors(self.shape[0])

    def with_values(self, values: Tensor) -> SparseOperator:
        """Return the operator with other entries on the same pattern, ``(*lanes, entries)``.

        They are sorted by rows, and in a row by columns, as ``matrix.values()`` of a CSR tensor
        are; those of a tensor of blocks too.
        """
        if not isinstance(values, Tensor) or not differentiable(values):
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"values is {kind}: pass a floating tensor")
        if values.dim() == 0 or values.shape[-1] != self.rows.shape[-1]:
            raise ValueError(
                f"values has shape {tuple(values.shape)}, and the pattern has "
                f"{self.rows.shape[-1]} entries: pass one value for each"
            )
        return self._changed(values=values)

    def _changed(self, **fields: Any) -> SparseOperator:
        changed: SparseOperator = object.__new__(SparseOperator)
        for name, value in (vars(self) | fields).items():
            object.__setattr__(changed, name, value)
        return changed

    def _flipped(self, values: Tensor) -> SparseOperator:
        m, n = self.shape
        return self._changed(values=values, rows=self.columns, columns=self.rows, shape=(n, m))

    @property
    def T(self) -> LinearOperator:
        """The transpose, sparse too."""
        return self._flipped(self.values)

    @property
    def H(self) -> LinearOperator:
        """The conjugate transpose, sparse too."""
        return self if self.symmetric else self._flipped(self.values.conj())

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v``."""
        return scattered(self.values, self.rows, self.columns, self.shape[0], v)

    def rmv(self, v: Tensor) -> Tensor:
        """Return ``A^T v``, of a complex matrix ``A^H v``."""
        return scattered(self.values.conj(), self.columns, self.rows, self.shape[1], v)

    def diagonal_entries(self, structure: Structure | None = None) -> Tensor:
        """Return the diagonal of the matrix."""
        on = torch.where(self.rows == self.columns, self.values, 0.0)
        none = on.new_zeros(*on.shape[:-1], min(self.shape))
        return none.index_add(-1, self.rows.clamp(max=none.shape[-1] - 1), on)

    def dense(self, structure: Structure | None = None) -> Tensor:
        """Return the matrix."""
        m, n = self.shape
        places = self.rows * n + self.columns
        flat = self.values.new_zeros(*self.values.shape[:-1], m * n)
        return flat.index_add(-1, places, self.values).unflatten(-1, (m, n))


def _entries(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries of a sparse tensor, their rows and their columns."""
    if matrix.layout == torch.sparse_csr and matrix.is_complex():
        # torch does not differentiate what follows; the values have a first derivative
        crow = matrix.crow_indices().long()
        rows = torch.arange(matrix.shape[0], device=crow.device).repeat_interleave(crow.diff())
        return matrix.values(), rows, matrix.col_indices().long()
    coo = matrix.to_sparse_coo().coalesce()
    return coo.values(), *coo.indices()
