"""Time step after time step."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problems.ernn.cell import ERNNCell
from implicit_solvers.problems.ernn.definition import Coefficients
from implicit_solvers.problems.ernn.modes import Equilibrium
from implicit_solvers.problems.ernn.time_steps import TimeSteps

__all__ = ["run_sequentially"]


def run_sequentially(
    cell: ERNNCell, rows: Tensor, first: Tensor, steps: TimeSteps, c: Coefficients
) -> Tensor:
    """Return all states of a cell, each from the one before.

    In `Equilibrium` mode each solve begins at the equilibrium before, that is, where
    ``h_k + b h_{k-1}`` has not changed. The inputs ``rows (N, I)`` and the states ``(N, H)`` are
    arranged as ``steps`` says; ``first`` are the states before, ``(B, H)``.

    Examples
    --------
    >>> cell, steps = ERNNCell(3, 4), TimeSteps((2, 2, 1))
    >>> first, c = torch.zeros(2, 4), cell.coefficients()
    >>> run_sequentially(cell, torch.randn(5, 3), first, steps, c).shape
    torch.Size([5, 4])
    """
    warm = isinstance(cell.mode, Equilibrium)
    states: list[Tensor] = []
    h = first
    settled: Tensor | None = None
    for drive in steps.split(cell.drive(rows)):
        count = len(drive)
        before = h[:count]  # longer sequences come first
        start = settled[:count] - (c.b * before).detach() if settled is not None else None
        new = cell.advance(drive, before, c, start)
        settled = (new + c.b * before).detach() if warm else None
        states.append(new)
        h = new
    return torch.cat(states)
