"""Which entries of a matrix may be other than zero, and how few products show them all.

It knows places, and no solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.torch_internals import numbers

__all__ = [
    "Ordering",
    "SparsityPattern",
    "check_device",
    "check_ordering",
    "csc_arrays",
    "greedy_colors",
    "on_host",
    "scattered",
]


Ordering = Literal["NATURAL", "MMD_ATA", "MMD_AT_PLUS_A", "COLAMD"]


def check_ordering(solver: Any) -> None:
    """Refuse an ordering that SuperLU does not know."""
    if solver.ordering not in get_args(Ordering):
        raise ValueError(
            f"{type(solver).__name__} has ordering={solver.ordering!r}: use NATURAL, MMD_ATA, "
            "MMD_AT_PLUS_A or COLAMD"
        )


_ROUNDINGS = 1000


@dataclass(frozen=True, eq=False, init=False, repr=False)
class SparsityPattern:
    """The entries of a matrix that may be nonzero, and a coloring of its rows or columns.

    Rows of one color have no column in common, so one product with the transpose gives all of their
    entries; for columns, one with the matrix does. Rows or columns are colored, whichever need
    fewer colors. Make a pattern once for many solves. Source: Curtis, Powell and Reid, "On the
    estimation of sparse Jacobian matrices", J. Inst. Maths Applics 13 (1974); Gebremedhin, Manne
    and Pothen, "What color is your Jacobian?", SIAM Review 47 (2005), section 3 (greedy, distance
    two).

    Parameters
    ----------
    pattern
        ``(m, n)``: a sparse tensor (COO, CSR, CSC, BSR, BSC) or a SciPy sparse matrix, whose stored
        entries count, of any dtype; or a dense tensor or array, whose entries count that are not
        zero.

    Attributes
    ----------
    rows, columns
        Where the entries are, sorted by rows.
    shape
        The numbers of rows and columns.
    colors
        The color of each row, or of each column.
    by_rows
        Whether rows are colored.
    symmetric
        Whether the transpose has the same pattern.

    Raises
    ------
    TypeError, ValueError
        If ``pattern`` is not a matrix.

    Examples
    --------
    >>> SparsityPattern(torch.ones(6, 6).tril(1).triu(-1))
    SparsityPattern(6 x 6, 16 entries, 3 colors)
    """

    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]
    colors: Tensor
    by_rows: bool
    symmetric: bool
    _random: Tensor

    def __init__(self, pattern: Any) -> None:
        rows, columns, shape = _places(pattern)
        places = torch.unique(rows * shape[1] + columns)
        rows, columns = places // shape[1], places % shape[1]
        colors, by_rows = _colored(rows, columns, shape)
        other = (columns * shape[1] + rows).sort().values
        symmetric = shape[0] == shape[1] and torch.equal(other, places)
        self._keep(rows=rows, columns=columns, shape=shape, colors=colors)
        # not by torch, which draws nothing inside of a vmap
        draw = torch.from_numpy(np.random.default_rng(0).standard_normal(len(colors)))
        self._keep(by_rows=by_rows, symmetric=symmetric, _random=draw)

    def _keep(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        m, n = self.shape
        entries, colors = len(self.rows), self.products
        return f"SparsityPattern({m} x {n}, {entries} entries, {colors} colors)"

    @property
    def products(self) -> int:
        """How many products show all entries: the number of colors."""
        return int(self.colors.max()) + 1 if len(self.rows) else 0

    def dense(self) -> Tensor:
        """Return the pattern as a dense tensor of bools."""
        full = torch.zeros(self.shape, dtype=torch.bool, device=self.rows.device)
        full[self.rows, self.columns] = True
        return full

    def _united(self, rows: Tensor, columns: Tensor) -> SparsityPattern:
        import scipy.sparse

        rows, columns = (torch.cat(ab).cpu() for ab in ((self.rows, rows), (self.columns, columns)))
        places = (np.ones(len(rows)), (rows.numpy(), columns.numpy()))
        return SparsityPattern(scipy.sparse.coo_array(places, shape=self.shape))

    def with_diagonal(self) -> SparsityPattern:
        """Return the pattern with the whole diagonal."""
        every = torch.arange(min(self.shape), device=self.rows.device)
        if int((self.rows == self.columns).sum()) == len(every):
            return self
        return self._united(every, every)

    def symmetrized(self) -> SparsityPattern:
        """Return the pattern with that of the transpose."""
        return self if self.symmetric else self._united(self.columns, self.rows)

    def on(self, device: torch.device) -> SparsityPattern:
        """Return the pattern on a device."""
        if self.rows.device == device:
            return self
        moved: SparsityPattern = object.__new__(SparsityPattern)
        own = {name: t.to(device) for name, t in vars(self).items() if isinstance(t, Tensor)}
        moved._keep(**(vars(self) | own))
        return moved

    def seeds(self, like: Tensor) -> Tensor:
        """Return the vectors ``(colors, m or n)`` that products are made with."""
        every = torch.arange(self.products, device=self.colors.device).unsqueeze(-1)
        return (self.colors == every).to(like)

    def picked(self, products: Tensor) -> Tensor:
        """Return the entries ``(grid, nnz)`` out of products ``(colors, grid, n or m)``."""
        line, other = self._places
        return products[self.colors[line], :, other].T.contiguous()

    @property
    def _places(self) -> tuple[Tensor, Tensor]:
        """The row and the column of each entry, that first to which colors belong."""
        return (self.rows, self.columns) if self.by_rows else (self.columns, self.rows)

    def weights(self, entries: Tensor) -> Tensor:
        """Return random vectors ``(2, m or n)``, the products with which tell what is missing.

        One is in units in which the entries of all rows are of one size, where colors belong to
        rows; the other in such after those of all columns are.
        """
        line, other = self._places
        sizes, length = entries.abs().nan_to_num(0.0, 0.0, 0.0).amax(0), len(self._random)

        def largest(place: Tensor, sizes: Tensor) -> Tensor:
            most = sizes.new_zeros(max(self.shape)).scatter_reduce(0, place, sizes, "amax")
            return torch.where(most > 0, most, 1.0)

        units = largest(line, sizes), largest(line, sizes / largest(other, sizes)[other])
        return self._random.to(sizes) / torch.stack(units)[:, :length]

    def suspects(self, entries: Tensor, found: Tensor, weights: Tensor) -> Tensor:
        """Return columns (or rows), of which products have more than the entries explain.

        The products ``(2, grid, n or m)`` are those with the `weights`. At most eight are returned.
        """
        w = weights.unsqueeze(1)
        explained = self.times(entries, w, self.by_rows)
        size = self.times(entries.abs(), w.abs(), self.by_rows)
        off = torch.where(found.abs() < torch.inf, (found - explained).abs(), 0.0)
        excess = (off / size).nan_to_num(0.0, posinf=torch.inf).amax((0, 1))
        worst = excess.topk(min(8, len(excess))).indices
        return worst[excess[worst] > _ROUNDINGS * torch.finfo(size.dtype).eps]

    def refuse_missing(self, suspects: Tensor, exact: Tensor, weights: Tensor) -> None:
        """Refuse a pattern without an entry of columns (or rows) ``exact (k, grid, m or n)``."""
        line, other = self._places
        size = torch.where(exact.abs() < torch.inf, exact.abs(), 0.0)
        for suspect, sizes in zip(suspects.tolist(), size, strict=True):
            weighed = sizes * weights.abs().unsqueeze(1)
            outside = weighed.index_fill(-1, line[other == suspect], 0.0)
            limit = _ROUNDINGS * torch.finfo(sizes.dtype).eps * weighed.amax(-1, keepdim=True)
            missing = (outside > limit).flatten(0, 1).any(0)
            if bool(missing.any()):
                place = (int(missing.nonzero()[0]), suspect)
                raise ValueError(
                    f"jac_sparsity misses the entry {place if self.by_rows else place[::-1]} of "
                    "the Jacobian, which is not zero: pass a pattern that has all entries which "
                    "may be other than zero, as jacobian_sparsity(fn, z0, args) finds, or leave it "
                    "out"
                )

    def times(self, entries: Tensor, v: Tensor, transposed: bool = False) -> Tensor:
        """Return the products ``A v`` of matrices with these entries ``(..., nnz)``."""
        to, of = (self.columns, self.rows) if transposed else (self.rows, self.columns)
        return scattered(entries, to, of, self.shape[int(transposed)], v)

    def diagonal_of(self, entries: Tensor) -> Tensor:
        """Return the diagonals ``(grid, n)``."""
        on = self.rows == self.columns
        none = entries.new_zeros(len(entries), self.shape[0])
        return none.index_copy(1, self.rows[on], entries[:, on])

    def filled(self, entries: Tensor) -> Tensor:
        """Return dense matrices ``(..., m, n)`` with these entries."""
        m, n = self.shape
        flat = entries.new_zeros(*entries.shape[:-1], m * n)
        places = self.rows * n + self.columns
        return flat.index_add(-1, places, entries).unflatten(-1, (m, n))


def scattered(values: Tensor, rows: Tensor, columns: Tensor, size: int, v: Tensor) -> Tensor:
    """Return ``A v``, of ``size`` entries, by the entries of ``A``."""
    terms = values * v[..., columns]  # (index_select takes ten times as long in a batch)
    return terms.new_zeros(*terms.shape[:-1], size).index_add(-1, rows, terms)


def on_host(t: Tensor) -> np.ndarray:
    """Return a tensor, on whatever device and conjugated or not, as a NumPy array."""
    array: np.ndarray = t.detach().cpu().resolve_conj().resolve_neg().numpy()
    return array


def check_device(what: str, device: torch.device) -> None:
    """Refuse tensors that are not where SciPy factors."""
    if device.type != "cpu":
        raise ValueError(
            f"{what} factors on the CPU alone, through SciPy, and this system is on {device}: use "
            "GMRES() or another iterative solver, LU() if it is small, or move the problem to the "
            "CPU"
        )


def csc_arrays(entries: Tensor, pattern: Any, transposed: bool = False) -> list[Any]:
    """Return SciPy matrices, one for each lane of ``entries (grid, nnz)``, or their ``A^H``."""
    import scipy.sparse

    rows, columns = on_host(pattern.rows), on_host(pattern.columns)
    m, n = pattern.shape
    if transposed:
        entries, rows, columns, m, n = entries.conj(), columns, rows, n, m
    lanes = on_host(entries)
    return [scipy.sparse.coo_array((lane, (rows, columns)), (m, n)).tocsc() for lane in lanes]


def _places(pattern: Any) -> tuple[Tensor, Tensor, tuple[int, int]]:
    import scipy.sparse

    if scipy.sparse.issparse(pattern):
        pattern = pattern.tocoo()
        rows, columns = pattern.row, pattern.col
    elif isinstance(pattern, np.ndarray):
        rows, columns = np.nonzero(pattern) if pattern.ndim == 2 else ((), ())
    elif isinstance(pattern, Tensor):
        pattern = pattern.detach().cpu()
        if pattern.layout == torch.strided or pattern.dim() != 2:
            places = pattern.nonzero() if pattern.dim() == 2 else pattern.new_empty(0, 2)
            rows, columns = places.unbind(-1)
        else:
            rows, columns = pattern.to_sparse_coo().coalesce().indices()
    else:
        raise TypeError(
            f"jac_sparsity is a {type(pattern).__name__}: pass a SparsityPattern, a tensor "
            "(sparse, or dense with bools) or a SciPy sparse matrix"
        )
    if len(pattern.shape) != 2:
        raise ValueError(
            f"jac_sparsity has shape {tuple(pattern.shape)}: pass one matrix (m, n), which all "
            "problems share"
        )
    m, n = pattern.shape
    return torch.as_tensor(rows).long(), torch.as_tensor(columns).long(), (int(m), int(n))


def _colored(rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> tuple[Tensor, bool]:
    """Return colors of what needs fewer, and whether that is rows.

    Those that cross in one line differ in color, so that its length is the least number.
    """
    fullest_column, fullest_row = (
        int(places.bincount(minlength=1).max()) if len(places) else 0 for places in (columns, rows)
    )
    found = []
    if fullest_column <= 2 * fullest_row:
        found.append((greedy_colors(rows, columns, shape), True))
    if not found or max(numbers(found[0][0]), default=0) >= fullest_row:
        order = torch.argsort(columns, stable=True)
        found.append((greedy_colors(columns[order], rows[order], shape[::-1]), False))
    return min(found, key=lambda colored: max(numbers(colored[0]), default=0))


def greedy_colors(lines: Tensor, crossing: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the first color of each of the sorted lines that no earlier one has which crosses it.

    They cross where they have an entry ``crossing`` in common. The bits of a number say which
    colors there are along a crossing line.
    """
    ends = numbers(torch.searchsorted(lines.cpu(), torch.arange(shape[0] + 1)))
    places, taken = numbers(crossing), [0] * shape[1]
    colors = [0] * shape[0]
    for line in range(shape[0]):
        crossed = places[ends[line] : ends[line + 1]]
        used = 0
        for place in crossed:
            used |= taken[place]
        free = ~used & (used + 1)
        for place in crossed:
            taken[place] |= free
        colors[line] = free.bit_length() - 1
    return torch.tensor(colors, dtype=torch.int64)
