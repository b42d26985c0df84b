"""Masks and numbers that all lanes agree on cost nothing.

A mask is True, False, or a tensor ``(N,)``; a number is Python's or a tensor ``(N,)``. The same
lines are host arithmetic for one problem, none at all for lanes that agree, and ``torch.where``
for lanes that do not and in compiled graphs, where nobody can be asked. Nothing here knows what the
numbers mean.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Mask",
    "along",
    "between",
    "both",
    "divide",
    "either",
    "everywhere",
    "implies",
    "larger",
    "no",
    "nowhere",
    "pick",
    "settle",
    "smaller",
    "spread",
]

Mask = bool | Tensor


def pick(mask: Mask, a: Any, b: Any) -> Any:
    """Return ``a`` in lanes where ``mask`` holds and ``b`` in the others.

    Both are numbers, tensors ``(N, ...)``, or tuples of these.
    """
    if not isinstance(mask, Tensor):
        return a if mask else b
    if isinstance(a, tuple):
        parts = [pick(mask, x, y) for x, y in zip(a, b, strict=True)]
        return type(a)(*parts) if hasattr(a, "_fields") else tuple(parts)
    if not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b:
        return a
    if isinstance(a, Tensor) and a is b:
        return a
    if isinstance(a, float) and isinstance(b, float):
        # (of numbers torch makes the default dtype, which need not be that of the problem)
        a = torch.full_like(mask, a, dtype=torch.float64)
    rank = max(t.dim() if isinstance(t, Tensor) else 0 for t in (a, b))
    if rank > 1:
        mask = mask.reshape(-1, *(1,) * (rank - 1))
    return torch.where(mask, a, b)


def everywhere(mask: Mask) -> bool:
    """Tell whether a mask is known to hold in all lanes."""
    return not isinstance(mask, Tensor) and mask


def nowhere(mask: Mask) -> bool:
    """Tell whether a mask is known to hold in none."""
    return not isinstance(mask, Tensor) and not mask


def both(a: Mask, b: Mask) -> Mask:
    """Tell where both masks hold."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a & b
    if isinstance(a, Tensor):
        return a if b else False
    return b if a else False


def either(a: Mask, b: Mask) -> Mask:
    """Tell where at least one of the masks holds."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a | b
    if isinstance(a, Tensor):
        return True if b else a
    return True if a else b


def implies(a: Mask, b: Mask) -> Mask:
    """Tell where ``b`` holds, or ``a`` does not."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a <= b
    return either(no(a), b)


def no(mask: Mask) -> Mask:
    """Tell where a mask does not hold."""
    return ~mask if isinstance(mask, Tensor) else not mask


def divide(a: Any, b: Any) -> Any:
    """Return ``a / b``, of numbers as tensors do it."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a / b
    return a / b if b != 0 else math.copysign(math.inf, a) if a != 0 else math.nan


def larger(a: Any, b: Any) -> Any:
    """Return the larger of two numbers in each lane."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    if isinstance(a, Tensor):
        return a.clamp(min=b)
    return b.clamp(min=a) if isinstance(b, Tensor) else max(a, b)


def smaller(a: Any, b: float) -> Any:
    """Return the smaller of two numbers in each lane."""
    return a.clamp(max=b) if isinstance(a, Tensor) else min(a, b)


def between(a: Any, b: Any, share: float) -> Any:
    """Return ``a + share (b - a)``."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.lerp(a, b, share)
    return a + share * (b - a)


def along(z: Tensor, length: Any, direction: Tensor) -> Tensor:
    """Return ``z + length direction``, for vectors ``(N, n)``."""
    if isinstance(length, Tensor):
        return torch.addcmul(z, length.to(z.dtype).reshape(-1, 1), direction)
    return torch.add(z, direction, alpha=length)


def settle(lanes: int, *masks: Mask) -> tuple[list[int], list[Mask]]:
    """Ask once in how many lanes each mask holds; one that holds in all or none becomes a bool."""
    asked = [mask for mask in masks if isinstance(mask, Tensor)]
    if len(asked) == 1:
        counts = [int(asked[0].sum())]
    else:
        counts = torch.stack(asked).sum(-1).tolist() if asked else []
    found = [counts.pop(0) if isinstance(mask, Tensor) else lanes * mask for mask in masks]
    settled = [
        mask if 0 < count < lanes else count > 0 for mask, count in zip(masks, found, strict=True)
    ]
    return found, settled


def spread(value: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return what all lanes share as a real tensor ``(N,)`` beside ``like (N, ...)``."""
    dtype = dtype or like.real.dtype
    if isinstance(value, Tensor):
        return value.to(dtype)
    return torch.full(like.shape[:1], value, dtype=dtype, device=like.device)
