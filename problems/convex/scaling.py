"""Units in which the data of a cone program are of order one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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
    solved. The minimizer is the same in all units, and what a tolerance means is not.

    Parameters
    ----------
    P, c, A, b, pattern
        As in `normal_map`.

    Returns
    -------
    Units

    Notes
    -----
    Source: Sinkhorn and Knopp, "Concerning nonnegative matrices and doubly stochastic matrices"
    (1967), of the square roots of the entries.

    Examples
    --------
    >>> pattern = ProgramPattern.dense(1, Cones(nonnegative=1))
    >>> units = program_units(*(1024 * torch.ones(4, 1)), pattern)
    >>> [t.item() for t in units.scaled(*(1024 * torch.ones(4, 1)), pattern)]
    [1.0, 1.0, 1.0, 1.0]
    """
    P, c, A, b = (_root(t) for t in (P, c, A, b))
    (m, n), cones = pattern.A.shape, pattern.cones
    lanes = torch.broadcast_shapes(*(t.shape[:-1] for t in (P, c, A, b)))
    D, E, length, cost = (P.new_ones(*lanes, size) for size in (n, m, 1, 1))

    def across(A: Tensor, b: Tensor) -> Tensor:
        return _shared(E * (pattern.A.times(A, D) + b), cones)

    def slope(P: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        bend = pattern.P.times(P, D)
        return D * bend, D * (bend + c)

    def prices(A: Tensor) -> Tensor:
        return D * pattern.A.times(A, E, transposed=True)

    in_P, in_c, in_A, in_b = ((t != 0).to(t) for t in (P, c, A, b))
    in_slope = slope(in_P, in_c)[1]
    of_rows, of_columns = _mean(across(in_A, in_b)), _mean(in_slope + prices(in_A))
    of_right, of_cost = _mean(in_b.sum(-1, True)), _mean(in_slope.sum(-1, True))
    for _ in range(_PASSES):
        right = of_right((E * b).sum(-1, True) / length)
        D, length = D * right, length * right
        cost = cost * of_cost(slope(P, c)[1].sum(-1, True) / cost)
        E = E / of_rows(across(A, b) / length)
        bend, lines = slope(P, c)
        columns = lines / cost + prices(A) / length
        # what P contributes is quadratic
        share = bend / (cost * columns).clamp(min=_TINY)
        D = D / of_columns(columns) ** (1 / (1 + share))
    return Units(*(torch.exp2((2 * torch.log2(t)).round()) for t in (D, E, length, cost)))


def _root(t: Tensor) -> Tensor:
    t = t.detach()
    return torch.where(t.isfinite(), t, 0.0).abs().sqrt()


def _mean(count: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function that makes means of so many entries out of sums: one of no entries."""
    none = (count == 0).to(count)
    share = (1 - none) / (count + none)
    return lambda total: torch.addcmul(none, total, share)


def _shared(rows: Tensor, cones: Cones) -> Tensor:
    """Return the sum over each curved cone in the place of each of its rows."""
    parts = [rows[..., : cones.linear]]
    for _, _, place, count, size in cones.blocks():
        block = rows[..., place].unflatten(-1, (count, size))
        parts.append(block.sum(-1, keepdim=True).expand(block.shape).flatten(-2))
    return torch.cat(parts, -1)
