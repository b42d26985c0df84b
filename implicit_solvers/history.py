"""The residuals of lanes, step by step, as the loop saw them. It knows nothing of who asks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["History"]


class History:
    """What the residual of each lane was whenever the loop looked at it.

    Parameters
    ----------
    lanes
        How many lanes the solve has.
    unit
        What residuals are divided by, ``(lanes,)`` or a number.
    order
        The places of the lanes among those that the loop sees.
    """

    def __init__(self, lanes: int, unit: Any = 1.0, order: Tensor | None = None) -> None:
        self._lanes, self._unit, self._order = lanes, unit, order
        self._places: Any = slice(None)
        self._looks: list[tuple[int, Any, Any, Any]] = []

    def take(self, index: Tensor) -> History:
        """Return the same history for some of the lanes."""
        part = History(self._lanes)
        part._looks = self._looks
        part._places = index if isinstance(self._places, slice) else self._places[index]
        return part

    def note(self, step: Any, residual: Any, running: Any) -> None:
        """Add a look after some steps: the residuals ``(N,)``, and which lanes made the last."""
        if isinstance(residual, Tensor):
            residual = residual.detach().clone()  # the memory of a state may be used again
        step = step.max() if isinstance(step, Tensor) else step
        self._looks.append((int(step), self._places, residual, running))

    def residuals(self) -> tuple[Tensor, Tensor]:
        """Return after how many steps it was looked, ``(K,)``, and the residuals ``(K, lanes)``.

        They are NaN in lanes that had ended before. A number of steps stands there again if a lane
        was looked at again after it, as where one goes on from its proposed end.
        """
        rows: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        order = slice(None) if self._order is None else self._order.cpu()
        everyone = torch.arange(self._lanes)
        for step, places, residual, running in self._looks:
            lanes = everyone[places.cpu() if isinstance(places, Tensor) else places]
            values = torch.as_tensor(residual, dtype=torch.float64, device="cpu").expand_as(lanes)
            ran = torch.as_tensor(running, device="cpu").expand_as(lanes)
            lanes, again = lanes[ran], 0
            while (step, again) in rows and bool(rows[step, again][1][lanes].any()):
                again += 1
            if (step, again) not in rows:
                blank = torch.full((self._lanes,), torch.nan, dtype=torch.float64)
                rows[step, again] = blank, torch.zeros_like(blank, dtype=torch.bool)
            row, seen = rows[step, again]
            row[lanes], seen[lanes] = values[ran], True
        unit = torch.as_tensor(self._unit, dtype=torch.float64, device="cpu")
        found = torch.empty(len(rows), self._lanes, dtype=torch.float64)
        for place, key in enumerate(sorted(rows)):
            found[place] = rows[key][0] / unit
        steps = torch.tensor([step for step, _ in sorted(rows)], dtype=torch.int64)
        return steps, found[:, order]
