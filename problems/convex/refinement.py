"""Newton's method on the normal map, from a point that is near a solution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from implicit_solvers.problems.convex.normal_map import linearize
from implicit_solvers.problems.convex.normal_map_lu import NormalMapLU

__all__ = ["Programs", "Refined", "refine"]

_WITHOUT_PROGRESS = 3
_CONTRACTION = 1e-2


class Programs(NamedTuple):
    """The data of N programs: matrices and vectors with N in front, or shared, without."""

    P: Tensor
    c: Tensor
    A: Tensor
    b: Tensor

    def take(self, index: Tensor) -> Programs:
        """Return those of some of the lanes."""
        ranks = (2, 1, 2, 1)
        return Programs(*(t[index] if t.dim() > k else t for t, k in zip(self, ranks, strict=True)))


class Refined(NamedTuple):
    """The best points, their relative errors, and the steps made."""

    z: Tensor
    error: Tensor
    steps: Tensor


def refine(data: Programs, z: Tensor, solver: NormalMapLU, steps: int, goal: float) -> Refined:
    """Make Newton steps in each lane until its error is at most ``goal``.

    The projections are piecewise smooth, and a step uses the Jacobian of the piece that it starts
    on, or an earlier one while each step makes the errors of all lanes a hundred times smaller. A
    lane ends when three steps have not improved on the best point, which is returned. At least one
    Jacobian is factored, for the derivatives that may follow.

    Parameters
    ----------
    data
        The programs.
    z
        The points ``(N, n + m)``, of the `normal_map`.
    solver
        Factors and solves.
    steps
        How many steps a lane may make; with zero nothing is factored.
    goal
        The relative error to reach.

    Returns
    -------
    Refined

    Notes
    -----
    Source: Busseti, Moursi and Boyd, "Solution refinement at regular points of conic problems"
    (2019); Qi and Sun, "A nonsmooth version of Newton's method" (1993).

    Examples
    --------
    >>> from implicit_solvers.problems.convex.cones import Cones
    >>> one = torch.ones(1).double()  # minimize x^2 / 2 - 3 x, where x <= 1
    >>> cones = Cones(nonnegative=1)
    >>> data = Programs(one[:, None], -3 * one, one[:, None], one)
    >>> near = torch.tensor([[0.9, 1.9]]).double()
    >>> refine(data, near, NormalMapLU(cones), 5, 1e-12).z
    tensor([[1., 2.]], dtype=torch.float64)
    """
    cones, count = solver.cones, len(z)
    counts, idle = (torch.zeros(count, dtype=torch.int64, device=z.device) for _ in range(2))
    best, least = z, torch.full((count,), torch.inf, dtype=z.dtype, device=z.device)
    left = torch.arange(count, device=z.device)
    before = least
    for step in range(steps + 1):
        residual, error, jacobian = linearize(z, *data, cones)
        better = error < least[left]
        best = best.index_copy(0, left, torch.where(better.unsqueeze(-1), z, best[left]))
        least = least.index_copy(0, left, torch.minimum(error, least[left]))
        idle[left] = torch.where(better, 0, idle[left] + 1)
        if step == 0 and steps > 0:
            made = solver.factor_dense(jacobian())
        again = (error > goal) & (idle[left] < _WITHOUT_PROGRESS) & (step < steps)
        if not bool(again.any()):
            break
        if 2 * int(again.sum()) <= len(left):
            index = again.nonzero().squeeze(-1)
            left, data, z, again = left[index], data.take(index), z[index], again[index]
            residual, error, before = residual[index], error[index], before[index]
            made = tuple(t[index] for t in made)
            _, _, jacobian = linearize(z, *data, cones)
        slow = again & ~(error < _CONTRACTION * before)
        if step > 0 and bool(slow.any()):
            made = solver.factor_dense(jacobian())
        before = error
        z = z - solver.solve(made, residual.unsqueeze(-1), False).squeeze(-1)
        counts[left] += again
    return Refined(best, least, counts)
