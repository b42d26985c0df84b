"""Units in which the data of a cone program are of order one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.problems.convex.cones import Cones, linearize_curved, project_dual_cone
from implicit_solvers.problems.convex.normal_map import ProgramPattern

__all__ = ["Units", "program_units"]

_PASSES = 8
_TINY = 1e-300


class Units(NamedTuple):
    """Powers of two: ``x`` is in units of ``variables (..., n)``, rows are multiplied by ``rows``.

    Multipliers are in units of ``prices (..., m)`` then. Constants to every derivative.
    """

    variables: Tensor
    rows: Tensor
    length: Tensor
    cost: Tensor

    def scaled(
        self, P: Tensor, c: Tensor, A: Tensor, b: Tensor, pattern: ProgramPattern
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the program in these units."""
        D, E = self.variables, self.rows
        square = D[..., pattern.P.rows] * D[..., pattern.P.columns]
        across = E[..., pattern.A.rows] * (D / self.length)[..., pattern.A.columns]
        return P * (square / self.cost), c * (D / self.cost), A * across, b * (E / self.length)

    def multipliers(self, u: Tensor, cones: Cones) -> Tensor:
        """Return ``y`` in the user's units."""
        return self.cost / self.length * self.rows * project_dual_cone(u, cones)

    def point(self, z: Tensor, cones: Cones) -> Tensor:
        """Return a point ``(x, y - s)`` in the user's units, without derivatives."""
        found = z.isfinite().all(-1, True)
        z = torch.where(found, z, 0.0).detach()
        x, u = z.split([self.variables.shape[-1], cones.size], -1)
        y = torch.cat([u[..., : cones.zero], u[..., cones.zero : cones.linear].relu()], -1)
        if cones.curved:
            y = torch.cat([y, linearize_curved(u, cones)[0]], -1)
        prices, lengths = self.cost / self.length * self.rows, self.length / self.rows
        point = torch.cat([self.variables * x, prices * y - lengths * (y - u)], -1)
        return torch.where(found, point, torch.nan)

    def inverse(self) -> Units:
        """Return the units that lead back."""
        return Units(*(1 / t for t in self))


def program_units(P: Tensor, c: Tensor, A: Tensor, b: Tensor, pattern: ProgramPattern) -> Units:
    """Find units in which the entries of a program are of order one.

    The rows and the columns of ``[[P, A^T, c], [A, 0, b]]`` are divided in turn by the typical
    sizes of their entries, squares of means of square roots; rows of a curved cone have one in
    common. So are the right-hand sides and the objective, each as a whole. After a few passes all
    are near one. As the limit does not depend on the units of the data, neither does what is
    solved. The minimizer is the same in all units, and what a tolerance means is not. ``P`` and
    ``A`` are entries, as in `normal_map`.

    Source: Sinkhorn and Knopp, "Concerning nonnegative matrices and doubly stochastic matrices"
    (1967), of the square roots of the entries.

    Examples
    --------
    >>> pattern = ProgramPattern.dense(1, Cones(nonnegative=1))
    >>> units = program_units(*(1024 * torch.ones(4, 1)), pattern)
    >>> [t.item() for t in units.scaled(*(1024 * torch.ones(4, 1)), pattern)]
    [1.0, 1.0, 1.0, 1.0]
    """
    D, E, length, cost = _Factors.apply(pattern, *(t.detach() for t in (P, c, A, b)))
    return Units(D, E, length, cost)


class _Factors(torch.autograd.Function):
    """The factors, computed in NumPy, where small operations take a third of the time."""

    @staticmethod
    def forward(pattern: ProgramPattern, *data: Tensor) -> tuple[Tensor, ...]:
        lanes = torch.broadcast_shapes(*(t.shape[:-1] for t in data))
        count = math.prod(lanes)
        arrays = (t.expand(*lanes, t.shape[-1]).reshape(count, t.shape[-1]).numpy() for t in data)
        roots = (np.sqrt(np.abs(np.where(np.isfinite(t), t, 0.0))) for t in arrays)
        found = (np.exp2(np.round(2 * np.log2(t))) for t in _roots_of_factors(pattern, *roots))
        return tuple(torch.from_numpy(t).reshape(*lanes, t.shape[-1]) for t in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, ...]:
        return (None,) * 5

    @staticmethod
    def jvp(ctx: Any, *moves: Any) -> tuple[None, ...]:
        return (None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: Any, pattern: ProgramPattern, *data: Tensor) -> Any:
        fronted = (
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(data, in_dims[1:], strict=True)
        )
        most = max(t.dim() for t in data)
        aligned = (t.reshape(len(t), *(1,) * (most - t.dim()), *t.shape[1:]) for t in fronted)
        return _Factors.apply(pattern, *aligned), (0,) * 4


def _roots_of_factors(
    pattern: ProgramPattern, P: np.ndarray, c: np.ndarray, A: np.ndarray, b: np.ndarray
) -> list[np.ndarray]:
    """Divide in turn; all arrays have the lanes in front, and are roots of what they stand for."""
    (m, n), cones, lane = pattern.A.shape, pattern.cones, np.arange(len(c))[:, None]
    i, j = (np.asarray(t) for t in (pattern.A.rows, pattern.A.columns))
    row, column = (np.asarray(t) for t in (pattern.P.rows, pattern.P.columns))
    D, E, length, cost = (np.ones((len(c), size)) for size in (n, m, 1, 1))

    def summed(size: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        def of(terms: np.ndarray, places: np.ndarray) -> np.ndarray:
            flat = (lane * size + places).ravel()
            return np.bincount(flat, terms.ravel(), len(c) * size).reshape(len(c), size)

        return of

    to_rows, to_columns = summed(m), summed(n)

    def across(A: np.ndarray, b: np.ndarray) -> np.ndarray:
        return cones.shared(E * (to_rows(A * D[:, j], i) + b), np.sum)

    def slope(P: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bend = to_columns(P * D[:, column], row)
        return D * bend, D * (bend + c)

    def prices(A: np.ndarray) -> np.ndarray:
        return D * to_columns(A * E[:, i], j)

    in_P, in_c, in_A, in_b = ((t != 0).astype(t.dtype) for t in (P, c, A, b))
    in_slope = slope(in_P, in_c)[1]
    of_rows, of_columns = _mean(across(in_A, in_b)), _mean(in_slope + prices(in_A))
    of_right, of_cost = _mean(in_b.sum(-1, keepdims=True)), _mean(in_slope.sum(-1, keepdims=True))
    for _ in range(_PASSES):
        right = of_right((E * b).sum(-1, keepdims=True) / length)
        D, length = D * right, length * right
        cost = cost * of_cost(slope(P, c)[1].sum(-1, keepdims=True) / cost)
        E = E / of_rows(across(A, b) / length)
        bend, lines = slope(P, c)
        columns = lines / cost + prices(A) / length
        # what P contributes is quadratic
        share = bend / np.maximum(cost * columns, _TINY)
        D = D / of_columns(columns) ** (1 / (1 + share))
    return [D, E, length, cost]


def _mean(count: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that makes means of so many entries out of sums: one of no entries."""
    none = (count == 0).astype(count.dtype)
    share = (1 - none) / (count + none)
    return lambda total: none + share * total
