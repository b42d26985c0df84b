"""The Jacobian of the normal map of one program, factored."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from scipy.linalg import lapack

from implicit_solvers.problems.convex.cones import linearize_curved
from implicit_solvers.problems.convex.normal_map import ProgramPattern

__all__ = ["FactoredJacobian", "NormalMapJacobian", "Slope", "with_entries"]

# How far the factored matrix is from the Jacobian, in units of scaled programs.
_PROXIMAL = 1e-9
_NEAR = 1e-6
_REFINEMENTS = 10
_SMALL, _DENSITY = 128, 0.1


@dataclass(frozen=True, eq=False)
class Slope:
    """The projection ``y`` of ``u`` onto the dual cone, and its Jacobian ``D``.

    ``linear`` is its diagonal over equations and inequalities, ``curved`` the entries of the other
    blocks, one after another.
    """

    y: np.ndarray
    linear: np.ndarray
    curved: np.ndarray

    def near(self, other: Slope) -> bool:
        """Tell whether another Jacobian is so near that factors serve both."""
        if not np.array_equal(self.linear, other.linear):
            return False
        return bool(abs(self.curved - other.curved).max(initial=0.0) <= _NEAR)


@dataclass(frozen=True, eq=False)
class NormalMapJacobian:
    """Makes and factors ``J = [[P, A^T D], [A, D - I]]``, where ``D`` is that of the projection.

    ``upper`` and ``columns`` tell how the upper triangle of ``P``, and ``A``, are sparse matrices.

    Where cones are curved, the products ``dy = D du`` are unknowns too, so that every entry is one
    of the program, or of ``D``. A matrix with many entries is dense, another one sparse: LAPACK or
    SuperLU factors it. What is factored is the Jacobian of a proximal step, which has an inverse
    whatever the program: ``P + r I`` and ``(1 - r) D - I`` for a small ``r``. Refinement, which is
    the proximal point method for the linear system, leads from there to ``J``; where that is
    singular, to a solution of the system, if it has any.

    Source: Rockafellar, "Augmented Lagrangians and applications of the proximal point algorithm in
    convex programming" (1976); Friedlander and Orban, "A primal-dual regularized interior-point
    method for convex quadratic programs" (2012).
    """

    pattern: ProgramPattern
    upper: tuple[np.ndarray, Any]
    columns: tuple[np.ndarray, Any]
    size: int
    places: np.ndarray
    shifted: tuple[np.ndarray, ...]
    sparse: Any

    @staticmethod
    def of(pattern: ProgramPattern) -> NormalMapJacobian:
        """Find where the terms of the matrix go, once for all programs of a pattern."""
        cones, (m, n) = pattern.cones, pattern.A.shape
        first, last = n + cones.linear, n + m
        i, j = pattern.A.rows.numpy(), pattern.A.columns.numpy()
        linear = i < cones.linear
        flat, curved = np.arange(n, first), np.arange(first, last)
        block_rows, block_columns = cones.block_places()
        size, behind = last + len(curved), len(curved)
        parts = [
            (pattern.P.rows.numpy(), pattern.P.columns.numpy()),
            (np.arange(n), np.arange(n)),
            (j[linear], n + i[linear]),
            (j[~linear], n + behind + i[~linear]),
            (n + i, j),
            (flat, flat),
            (curved, curved),
            (curved, curved + behind),
            (curved + behind, curved + behind),
            (n + behind + block_rows, n + block_columns),
        ]
        rows, columns = (np.concatenate(side) for side in zip(*parts, strict=True))
        sparse, every = None, rows + columns * size
        unique, places = np.unique(every, return_inverse=True)
        if size <= _SMALL or len(unique) > _DENSITY * size**2:
            places = every
        else:
            ends = np.searchsorted(unique, size * np.arange(size + 1))
            parts_of = np.ones(len(unique)), unique % size, ends
            sparse = scipy.sparse.csc_array(parts_of, (size, size))
        starts = np.cumsum([0, *(len(part[0]) for part in parts)])
        shifted = tuple(places[starts[k] : starts[k + 1]] for k in (1, 5, 7))
        layouts = _by_columns(pattern.P, True), _by_columns(pattern.A, False)
        return NormalMapJacobian(pattern, *layouts, size, places.reshape(-1), shifted, sparse)

    def slope(self, u: np.ndarray) -> Slope:
        """Project ``u (m,)``, and differentiate."""
        cones = self.pattern.cones
        on = u[: cones.linear] > 0
        on[: cones.zero] = True
        y, curved = np.where(on, u[: cones.linear], 0.0), np.zeros(0)
        if cones.curved:
            with torch.no_grad():
                rest, entries = linearize_curved(torch.from_numpy(u), cones)
            y, curved = np.concatenate([y, rest.numpy()]), entries.numpy()
        return Slope(y, on.astype(np.float64), curved)

    def factor(
        self,
        P: np.ndarray,
        A: np.ndarray,
        slope: Slope,
        known: tuple[Slope, FactoredJacobian] | None = None,
    ) -> FactoredJacobian:
        """Factor the matrix with these entries of ``P``, ``A`` and ``D``.

        The factors that are ``known`` for a slope nearby serve again.
        """
        near_by = known is not None and known[0].near(slope)
        if known is not None and near_by and not len(slope.curved):
            return known[1]
        cones, rows = self.pattern.cones, self.pattern.A.rows.numpy()
        linear = rows < cones.linear
        one = np.ones(cones.size - cones.linear)
        terms = np.concatenate(
            [
                P,
                np.zeros(self.pattern.A.shape[1]),
                A[linear] * slope.linear[rows[linear]],
                A[~linear],
                A,
                slope.linear - 1,
                *(-one, one, -one, slope.curved),
            ]
        )
        count = self.size**2 if self.sparse is None else self.sparse.nnz
        entries = np.bincount(self.places, terms, count)
        shape = self.size, self.size
        J = entries.reshape(shape).T if self.sparse is None else with_entries(self.sparse, entries)
        behind = cones.size - cones.linear
        if known is not None and near_by:
            return FactoredJacobian(J, known[1].factors, behind)
        moved = entries.copy()
        variables, diagonal, across = self.shifted
        moved[variables] += _PROXIMAL
        moved[diagonal] -= _PROXIMAL * slope.linear
        moved[across] -= _PROXIMAL
        if self.sparse is None:
            return FactoredJacobian(J, lapack.dgetrf(moved.reshape(shape).T, True)[:2], behind)
        factors = scipy.sparse.linalg.splu(with_entries(self.sparse, moved))
        return FactoredJacobian(J, factors, behind)


def _by_columns(pattern: Any, upper: bool) -> tuple[np.ndarray, Any]:
    """Return the order of entries by columns, of the upper triangle only, and a matrix of those."""
    rows, columns = pattern.rows.numpy(), pattern.columns.numpy()
    order = np.lexsort((rows, columns))
    if upper:
        order = order[rows[order] <= columns[order]]
    ends = np.searchsorted(columns[order], np.arange(pattern.shape[1] + 1))
    parts = np.ones(len(order)), rows[order], ends
    return order, scipy.sparse.csc_array(parts, pattern.shape)


def with_entries(template: Any, entries: np.ndarray) -> Any:
    """Return a sparse matrix like another, with other entries."""
    matrix = copy(template)  # (making one anew checks its pattern again)
    matrix.data = entries
    return matrix


@dataclass(frozen=True, eq=False)
class FactoredJacobian:
    """Solves with ``J`` by the factors of a matrix near it."""

    matrix: Any
    factors: Any
    behind: int

    def nearly(self, r: np.ndarray, transposed: bool = False) -> np.ndarray:
        """Solve with the matrix that was factored, ``r`` having zeros for ``dy``."""
        if not isinstance(self.factors, tuple):
            return self.factors.solve(r, "T" if transposed else "N")
        return lapack.dgetrs(*self.factors, r, trans=int(transposed))[0]

    def solve(self, r: np.ndarray, transposed: bool = False) -> np.ndarray:
        """Return ``J^-1 r`` or ``J^-T r`` for ``r (n + m,)`` or ``(n + m, columns)``."""
        J = self.matrix.T if transposed else self.matrix
        r = np.concatenate([r, np.zeros((self.behind, *r.shape[1:]))])
        x = self.nearly(r, transposed)
        left = r - J @ x
        size, enough = abs(left).max(initial=0), 2 * np.finfo(r.dtype).eps * abs(r).max(initial=0)
        for _ in range(_REFINEMENTS):
            if not size > enough:
                break
            tried = x + self.nearly(left, transposed)
            rest = r - J @ tried
            now = abs(rest).max()
            if not now < size:
                break
            slow, x, left, size = now > 0.5 * size, tried, rest, now
            if slow:
                break
        return x[: len(x) - self.behind]
