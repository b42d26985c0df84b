"""Euclidean norms of rows that neither overflow nor lose their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["norm_beyond"]


def norm_beyond(x: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether rows have a norm of at most ``bound (..., 1)``, and the norms of the others.

    The norm is 1 where it is within the bound, also where that is zero and has no derivative. A row
    with NaN or infinite entries is not within.
    """
    largest = torch.nn.functional.pad(x.detach(), (1, 0)).abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    squares = (x / scale).square().sum(-1, keepdim=True)  # of one at least: no overflow
    within = squares.sqrt() * scale <= bound
    return within, torch.where(within, 1.0, squares).sqrt() * scale
