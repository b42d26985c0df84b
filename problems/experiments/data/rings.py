"""Points that run around a circle, one way or the other."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

__all__ = ["CLASSES", "rings"]

CLASSES = ("clockwise", "counterclockwise")


def rings(count: int, steps: int, noise: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return noisy sequences of points that run around a circle, left or right.

    Which points there are does not tell the class, their order does: class 1 runs
    counterclockwise. Points
    are ``(count, steps, 2)``; ``noise`` is the standard deviation of what is added to one.
    """
    y = torch.randint(len(CLASSES), (count,), generator=generator)
    start = 2 * torch.pi * torch.rand(count, 1, generator=generator)
    angles = start + (2 * y.unsqueeze(-1) - 1) * torch.arange(steps) * 2 * torch.pi / steps
    x = torch.stack([angles.cos(), angles.sin()], -1)
    return x + noise * torch.randn(x.shape, generator=generator), y
