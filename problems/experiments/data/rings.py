"""Points that run around a circle, one way or the other."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

__all__ = ["CLASSES", "rings"]

CLASSES = ("clockwise", "counterclockwise")


def rings(count: int, steps: int, noise: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return noisy sequences of points that run around a circle, left or right.

    Which points there are does not tell the class, their order does.

    Parameters
    ----------
    count, steps
        The number of sequences and their length.
    noise
        The standard deviation of what is added to a point.
    generator
        Draws starts, directions and noise.

    Returns
    -------
    x
        ``(count, steps, 2)``.
    y
        Classes, ``(count,)``: 1 runs counterclockwise.

    Examples
    --------
    >>> x, y = rings(3, 12, 0.0, Generator().manual_seed(0))
    >>> x.shape, bool(torch.allclose(x.norm(dim=-1), torch.ones(3, 12)))
    (torch.Size([3, 12, 2]), True)
    """
    y = torch.randint(len(CLASSES), (count,), generator=generator)
    start = 2 * torch.pi * torch.rand(count, 1, generator=generator)
    angles = start + (2 * y.unsqueeze(-1) - 1) * torch.arange(steps) * 2 * torch.pi / steps
    x = torch.stack([angles.cos(), angles.sin()], -1)
    return x + noise * torch.randn(x.shape, generator=generator), y
