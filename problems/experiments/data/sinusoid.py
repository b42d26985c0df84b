"""Regression on sine waves: the smallest problem of meta-learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.problems.experiments.data.episodes import (
    Tasks,
    require_positive,
    require_task_numbers,
)

__all__ = ["Sinusoids"]

LOWEST_AMPLITUDE, HIGHEST_AMPLITUDE = 0.1, 5.0
LAST_INPUT = 5.0


@dataclass(frozen=True)
class Sinusoids:
    """Tasks: learn ``y = a sin(x - b)`` from a few points.

    The amplitude ``a`` is uniform from 0.1 to 5, the phase ``b`` from 0 to π, and ``x`` from -5
    to 5. Task number i of a seed is always the same, in whatever order and batch.

    Source: Finn, Abbeel and Levine, "Model-agnostic meta-learning" (2017), section 5.1.

    Parameters
    ----------
    shots, queries
        The points to learn from and those of the test, in each task.
    seed
        The tasks' seed, 0 or more.

    Raises
    ------
    ValueError
        If a number is not positive, or the seed is negative.

    Examples
    --------
    >>> tasks = Sinusoids(shots=5, queries=10).batch(range(8))
    >>> tasks.support_x.shape, tasks.query_y.shape
    (torch.Size([8, 5, 1]), torch.Size([8, 10, 1]))
    """

    shots: int
    queries: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_positive(shots=self.shots, queries=self.queries)
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative: pass 0 or more")

    def batch(self, tasks: Sequence[int]) -> Tasks:
        """Return the tasks with these numbers; all tensors float32 ``(tasks, points, 1)``.

        Raises ``ValueError`` if there is no number, or a negative one.
        """
        amplitude, phase = self.waves(tasks)
        inputs = np.stack([self._draw(task)[1] for task in tasks])
        x = torch.from_numpy(inputs)[:, :, None]
        y = amplitude[:, None, None] * torch.sin(x - phase[:, None, None])
        x, y = x.float(), y.float()
        return Tasks(
            support_x=x[:, : self.shots],
            support_y=y[:, : self.shots],
            query_x=x[:, self.shots :],
            query_y=y[:, self.shots :],
        )

    def waves(self, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return amplitudes and phases (radians) of these tasks, float64 ``(tasks,)`` each."""
        require_task_numbers(tasks)
        amplitude, phase = np.stack([self._draw(task)[0] for task in tasks]).T
        return torch.from_numpy(amplitude.copy()), torch.from_numpy(phase.copy())

    def _draw(self, task: int) -> tuple[np.ndarray, np.ndarray]:
        """Return amplitude and phase, and the inputs."""
        random = np.random.default_rng([self.seed, task])
        wave = random.uniform([LOWEST_AMPLITUDE, 0], [HIGHEST_AMPLITUDE, math.pi])
        return wave, random.uniform(-LAST_INPUT, LAST_INPUT, self.shots + self.queries)
