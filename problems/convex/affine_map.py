"""A CVXPY problem as a cone program whose data are affine in the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

__all__ = ["AffineMap", "Reading"]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """Entries as an affine function of the parameters, ``constant + M theta``.

    ``rows``, ``columns`` and ``coefficients`` are the nonzero entries of ``M``; ``theta`` is made
    of the parameters at the places ``parameters``, one after the other.
    """

    constant: Tensor
    rows: Tensor
    columns: Tensor
    coefficients: Tensor
    parameters: tuple[int, ...]

    @staticmethod
    def of(matrix: Any, offsets: Sequence[int], sizes: Sequence[int]) -> AffineMap:
        """Read a sparse matrix whose last column is the constant.

        Parameter ``i`` has the columns from ``offsets[i]`` on, ``sizes[i]`` of them.
        """
        entries = scipy.sparse.coo_array(matrix)
        entries.sum_duplicates()
        last = entries.shape[1] - 1
        constant = np.zeros(entries.shape[0])
        fixed = entries.col == last
        constant[entries.row[fixed]] = entries.data[fixed]
        rows, columns, data = (
            t[~fixed & (entries.data != 0)] for t in (entries.row, entries.col, entries.data)
        )
        place = np.full(last + 1, -1)
        used: list[int] = []
        first = 0
        for i, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            own = np.arange(offset, offset + size)
            if np.isin(columns, own).any():
                place[own] = first + np.arange(size)
                used.append(i)
                first += size
        return AffineMap(
            torch.from_numpy(constant),
            torch.from_numpy(rows.astype(np.int64)),
            torch.from_numpy(place[columns].astype(np.int64)),
            torch.from_numpy(data.astype(np.float64)),
            tuple(used),
        )

    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the entries ``(..., size)`` for all parameters, each ``(..., size_i)``."""
        if not self.parameters:
            return self.constant
        chosen = [parameters[i] for i in self.parameters]
        lanes = torch.broadcast_shapes(*(t.shape[:-1] for t in chosen))
        theta = torch.cat([t.expand(*lanes, t.shape[-1]) for t in chosen], -1)
        terms = self.coefficients * theta[..., self.columns]
        zero = terms.new_zeros(*terms.shape[:-1], len(self.constant))
        return self.constant + zero.index_add(-1, self.rows, terms)


@dataclass(frozen=True, eq=False)
class Reading:
    """Entries of an expression, read off a vector: ``coefficient * vector[place]``."""

    place: Tensor
    coefficient: Tensor

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the expression ``(..., *shape)`` for a vector ``(..., n)``."""
        return vector[..., self.place] * self.coefficient
