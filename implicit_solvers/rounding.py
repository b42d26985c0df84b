"""Fixed patterns of signs and sizes, which stand for rounding errors. It knows no function."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling

__all__ = ["patterns"]


def patterns(like: Tensor) -> tuple[Tensor, ...]:
    """Return three rows of fixed signs and sizes, for vectors like ``(N, n)``.

    They are parts of numbers of length one whose phases grow by no regular step: plain signs could
    equal those of a singular vector, and cancel it. Source: Tisseur, "Newton's method in floating
    point arithmetic and iterative refinement of generalized eigenvalue problems" (2001).
    """
    n = like.shape[-1]
    rows = _rows(n) if compiling() else torch.tensor(_known(n), device=like.device)
    return rows.to(like.device, like.real.dtype).unbind()


@lru_cache(maxsize=64)
def _known(n: int) -> list[list[float]]:
    rows: list[list[float]] = _rows(n).tolist()
    return rows


def _rows(n: int) -> Tensor:
    step = math.sqrt(math.pi * (3 - math.sqrt(5)))
    phase = (step * torch.arange(1, n + 1, dtype=torch.float64)).square()
    return torch.stack([phase.cos(), phase.sin(), (phase + math.pi / 4).cos()])
