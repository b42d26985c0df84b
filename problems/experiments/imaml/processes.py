"""Several processes of one run, as ``torchrun`` starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Decision = TypeVar("Decision")


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that ``torchrun`` started; nothing happens without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def first_rank() -> bool:
    """Return whether this process is the only one, or the first, which writes files."""
    return not _started() or dist.get_rank() == 0


def decided_by_first(decide: Callable[[], Decision]) -> Decision:
    """Return what the first process's function returns, on all of them."""
    if not _started():
        return decide()
    decision: list[Decision | None] = [decide() if first_rank() else None]
    dist.broadcast_object_list(decision)
    assert decision[0] is not None
    return decision[0]


def share_of(tasks: Sequence[int]) -> Sequence[int]:
    """Return the tasks that are this process's."""
    if not _started():
        return tasks
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return tasks[rank * len(tasks) // ranks : (rank + 1) * len(tasks) // ranks]


def gathered(scores: Tensor) -> Tensor:
    """Return the scores of all processes, in the order of the tasks, on each of them."""
    if not _started():
        return scores
    parts: list[list[float]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, scores.tolist())
    return torch.tensor([value for part in parts for value in part], dtype=scores.dtype)
