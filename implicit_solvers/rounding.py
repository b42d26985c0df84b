"""Fixed patterns of signs and sizes, which stand for rounding errors."""

from __future__ import annotations

import random
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["patterns"]


def patterns(like: Tensor) -> tuple[Tensor, ...]:
    """Return three rows of fixed random signs and sizes from 0.5 to 1.5.

    Plain signs could equal those of a singular vector. Source: Tisseur, "Newton's method in
    floating point arithmetic and iterative refinement of generalized eigenvalue problems" (2001).
    """
    rows = torch.tensor(_patterns(like.shape[-1]), dtype=like.real.dtype, device=like.device)
    return rows.unbind()


@lru_cache(maxsize=64)
@torch.compiler.assume_constant_result
def _patterns(n: int) -> tuple[tuple[float, ...], ...]:
    draw = random.Random(12345)
    return tuple(
        tuple(draw.choice((-1.0, 1.0)) * (0.5 + draw.random()) for _ in range(n)) for _ in range(3)
    )
