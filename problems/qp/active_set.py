"""The polish: solve on the set of constraints that seem active."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problems.qp.condensed import solve_condensed
from implicit_solvers.problems.qp.kkt import times
from implicit_solvers.problems.qp.standard_form import Program

__all__ = ["solve_on_active_set"]


def solve_on_active_set(
    program: Program,
    z: Tensor,
    slope: Tensor,
    excess: Tensor,
    L: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Make the rows with a weight equalities, drop the others, and solve.

    Returns where it starts from, the present iterate without the multipliers dropped, and the
    move from there: two steps of the method of multipliers.
    """
    Q, p, R = program.Q, program.p, program.R
    n = p.shape[-1]
    y = z[:, n:]
    kept = torch.where(weights > 0, y, 0.0)
    slope = slope + times(R.mT, kept - y)
    excess = torch.where(weights > 0, excess, 0.0)

    def step(slope: Tensor, excess: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dx = -solve_condensed(L, slope + times(R.mT, weights * excess))
        excess = torch.where(weights > 0, excess + times(R, dx), 0.0)
        return dx, weights * excess, excess

    dx, dy, excess_left = step(slope, excess)
    more_x, more_y, _ = step(slope + times(Q, dx) + times(R.mT, dy), excess_left)
    move = torch.cat([dx + more_x, dy + more_y], -1)
    return torch.cat([z[:, :n], kept], -1), move
