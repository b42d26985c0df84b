"""All time steps at once: one batched solve and a scan."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problems.ernn.cell import ERNNCell
from implicit_solvers.problems.ernn.definition import Coefficients, scan
from implicit_solvers.problems.ernn.modes import Equilibrium
from implicit_solvers.problems.ernn.time_steps import TimeSteps

__all__ = ["run_in_parallel"]


def run_in_parallel(
    cell: ERNNCell, rows: Tensor, first: Tensor, steps: TimeSteps, c: Coefficients
) -> Tensor:
    """Return all states of a cell with ``a = b``.

    ``s_k = h_k + a h_{k-1}`` depends on ``x_k`` alone, and so the ``s_k`` of many time steps are
    found together; then ``h_k = s_k - a h_{k-1}`` by a scan. As many steps make a block as fit in
    the processor's cache.

    The inputs ``rows (N, I)`` and the states ``(N, H)`` are arranged as ``steps`` says; ``first``
    are the states before, ``(B, H)``.

    Examples
    --------
    >>> cell, steps = ERNNCell(3, 4), TimeSteps((2, 2, 1))
    >>> first, c = torch.zeros(2, 4), cell.coefficients()
    >>> run_in_parallel(cell, torch.randn(5, 3), first, steps, c).shape
    torch.Size([5, 4])
    """
    assert isinstance(cell.mode, Equilibrium)
    blocks = steps.blocks(cell.mode.block)
    parts = rows.split([sum(block.sizes) for block in blocks])
    states, h = [], first
    for block, settled in zip(blocks, cell.settle(parts, c), strict=True):
        s = block.grid(settled)
        states.append(block.rows(scan(s, h[: block.batch], cell.leak.a)))
        h = block.last(states[-1])
    return torch.cat(states)
