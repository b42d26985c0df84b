"""How the rows of a batch of sequences are arranged in time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TimeSteps"]


@dataclass(frozen=True)
class TimeSteps:
    """Rows ``(N, ...)`` that hold the first time step of all sequences, then the second, and so on.

    It is the arrangement of ``torch.nn.utils.rnn.PackedSequence``: longer sequences come first.
    ``sizes`` tells how many sequences have a first, a second, ... time step.

    Examples
    --------
    Two sequences, ``a b c`` and ``d``:

    >>> steps, rows = TimeSteps((2, 1, 1)), torch.tensor([1, 4, 2, 3])
    >>> steps.reverse(rows)  # c b a and d
    tensor([3, 4, 2, 1])
    >>> steps.grid(rows)
    tensor([[1, 4],
            [2, 0],
            [3, 0]])
    """

    sizes: tuple[int, ...]

    @property
    def batch(self) -> int:
        """The number of sequences."""
        return self.sizes[0]

    @property
    def uniform(self) -> bool:
        """Whether all sequences are of one length."""
        return self.sizes[-1] == self.sizes[0]

    def blocks(self, most: int) -> list[TimeSteps]:
        """Return consecutive parts, each of at most ``most`` rows, or of one time step.

        Examples
        --------
        >>> [block.sizes for block in TimeSteps((3, 2, 2, 1)).blocks(4)]
        [(3,), (2, 2), (1,)]
        """
        parts: list[list[int]] = []
        count = 0
        for size in self.sizes:
            count += size
            if not parts or count > most:
                parts.append([])
                count = size
            parts[-1].append(size)
        return [TimeSteps(tuple(part)) for part in parts]

    def split(self, rows: Tensor) -> Sequence[Tensor]:
        """Return the rows of each time step."""
        return rows.split(list(self.sizes))

    def reverse(self, rows: Tensor) -> Tensor:
        """Return the rows with each sequence from its end to its start; its own inverse."""
        if self.uniform:
            return rows.unflatten(0, (len(self.sizes), self.batch)).flip(0).flatten(0, 1)
        begin, time, place = self._positions(rows)
        return rows[begin[self._lengths(rows)[place] - 1 - time] + place]

    def last(self, rows: Tensor) -> Tensor:
        """Return the last row of each sequence, ``(batch, ...)``."""
        if self.uniform:
            return rows[len(rows) - self.batch :]
        begin, _, _ = self._positions(rows)
        lengths = self._lengths(rows)
        return rows[begin[lengths - 1] + torch.arange(self.batch, device=rows.device)]

    def grid(self, rows: Tensor) -> Tensor:
        """Return ``(time, batch, ...)`` with zeros where a sequence has ended."""
        if self.uniform:
            return rows.unflatten(0, (len(self.sizes), self.batch))
        _, time, place = self._positions(rows)
        shape = (len(self.sizes), self.batch, *rows.shape[1:])
        return rows.new_zeros(shape).index_put((time, place), rows)

    def rows(self, grid: Tensor) -> Tensor:
        """Return the rows of a grid: the inverse of `grid`."""
        if self.uniform:
            return grid.flatten(0, 1)
        _, time, place = self._positions(grid)
        return grid[time, place]

    def _positions(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where each time step begins, and the time and the sequence of each row."""
        sizes = torch.tensor(self.sizes, device=like.device)
        begin = torch.tensor([0, *itertools.accumulate(self.sizes)], device=like.device)
        time = torch.repeat_interleave(torch.arange(len(sizes), device=like.device), sizes)
        return begin, time, torch.arange(len(time), device=like.device) - begin[time]

    def _lengths(self, like: Tensor) -> Tensor:
        sizes = torch.tensor(self.sizes, device=like.device).unsqueeze(-1)
        return (sizes > torch.arange(self.batch, device=like.device)).sum(0)
