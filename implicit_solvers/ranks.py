"""Vectors whose rows are spread over processes: what is summed over rows is summed over these.

Every sum, norm and maximum over the entries of a vector goes through here. Outside of a solve over
ranks it costs nothing. It knows no solver, and nothing of how tensors are distributed.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling

__all__ = [
    "Ranks",
    "alone",
    "columns",
    "entries",
    "failures",
    "norm",
    "once",
    "over",
    "peak",
    "rms",
    "safe_norm",
    "some",
    "summed",
]


@dataclass(frozen=True)
class Ranks:
    """The process groups of a solve, if it has any.

    Each of those in ``rows`` holds some rows of every vector; those in ``together`` have lanes of
    their own, and tell each other which failed before one of them raises.
    """

    rows: Any = None
    together: Any = None


def failures(ranks: Ranks | None, bad: Tensor) -> list[int]:
    """Return how many lanes failed on each rank; nothing where nobody tells."""
    if ranks is None or ranks.together is None:
        return []
    found: list[int] = _gathered(bad.sum(), ranks.together).tolist()
    return found


class _Thread(threading.local):
    """The groups of the solves that run in this thread, innermost last."""

    def __init__(self) -> None:
        self.groups: list[Any] = [None]


_THREAD, _LOCK = _Thread(), threading.Lock()
_ACTIVE = 0  # how many such solves all threads have


def over(ranks: Ranks | None) -> Any:
    """Let sums within go over the rows of all ranks; over no others' if there are none."""
    rows = None if ranks is None else ranks.rows
    return contextlib.nullcontext() if rows is None and alone() else _over(rows)


@contextlib.contextmanager
def _over(rows: Any) -> Iterator[None]:
    global _ACTIVE
    with _LOCK:
        _ACTIVE += 1
    _THREAD.groups.append(rows)
    try:
        yield
    finally:
        _THREAD.groups.pop()
        with _LOCK:
            _ACTIVE -= 1


def alone() -> bool:
    """Tell whether vectors are whole here."""
    return _ACTIVE == 0 or compiling() or _THREAD.groups[-1] is None


def _gathered(part: Tensor, group: Any) -> Tensor:
    """Return what each rank of a group has, ``(ranks, ...)``."""
    part = part.contiguous()
    parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, part, group=group)
    return torch.stack(parts)


def _reduced(part: Tensor, op: Any) -> Tensor:
    whole = part.contiguous().clone()
    torch.distributed.all_reduce(whole, op=op, group=_THREAD.groups[-1])
    return whole


def summed(part: Tensor) -> Tensor:
    """Return the sum over ranks of what each has summed over its rows."""
    return part if alone() else _reduced(part, torch.distributed.ReduceOp.SUM)


def peak(part: Tensor) -> Tensor:
    """Return the largest over ranks, infinite where it is not a number."""
    if alone():
        return part
    return _reduced(part.nan_to_num(math.inf, math.inf), torch.distributed.ReduceOp.MAX)


def some(mask: Tensor) -> bool:
    """Tell whether a mask of entries holds anywhere."""
    return bool(summed(mask.sum()) if not alone() else mask.any())


def once(term: Tensor) -> Tensor:
    """Return on the first rank what all have, and zeros elsewhere: a term of a sum over ranks."""
    if alone() or torch.distributed.get_rank(_THREAD.groups[-1]) == 0:
        return term
    return torch.zeros_like(term)


def norm(vectors: Tensor, keepdim: bool = False) -> Tensor:
    """Return the Euclidean norm of each lane."""
    if alone():
        return torch.linalg.vector_norm(vectors, dim=-1, keepdim=keepdim)
    size = safe_norm(vectors)
    return size.unsqueeze(-1) if keepdim else size


def safe_norm(vectors: Tensor) -> Tensor:
    """Return the Euclidean norm of each lane, where squares may under- or overflow."""
    size = _safe_norm(vectors)
    return size if alone() else _safe_norm(_gathered(size, _THREAD.groups[-1]).movedim(0, -1))


def rms(vectors: Tensor) -> Tensor:
    """Return the root mean square of each lane."""
    if alone():
        size = torch.linalg.vector_norm(vectors, dim=-1)
        return size / math.sqrt(max(vectors.shape[-1], 1))
    size = _safe_norm(vectors)
    parts = torch.stack([size, torch.full_like(size, vectors.shape[-1])])
    sizes, counts = _gathered(parts, _THREAD.groups[-1]).movedim(0, -1)
    return _safe_norm(sizes) / counts.sum(-1).clamp(min=1).sqrt()


def _safe_norm(vectors: Tensor) -> Tensor:
    """Return the Euclidean norm in the unit of the largest entry, whose square is moderate."""
    if vectors.is_complex():
        vectors = torch.view_as_real(vectors.resolve_conj()).flatten(-2)
    if vectors.shape[-1] == 0:
        return vectors.sum(-1)
    unit = vectors.abs().amax(-1, keepdim=True)
    unit = torch.where((unit > 0) & (unit < math.inf), unit, 1.0)
    return torch.linalg.vector_norm(vectors / unit, dim=-1) * unit.squeeze(-1)


def entries(vectors: Tensor) -> int:
    """Return the number of entries of each lane."""
    n = vectors.shape[-1]
    return n if alone() else int(summed(torch.tensor(n, device=vectors.device)))


def columns(n: float) -> float:
    """Return how many columns a matrix has; what is spread over ranks is too large for one."""
    return n if alone() else math.inf
