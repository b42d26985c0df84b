"""How many tasks fit into a memory limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.testing.live_memory import LiveMemory
from implicit_solvers.torch_internals import tree_map

__all__ = ["tasks_that_fit"]


def tasks_that_fit(
    memory_limit: float, meta_gradient: Callable[[Any, Any], Any], supports: Any, queries: Any
) -> int:
    """Return how many tasks can be evaluated together within ``memory_limit`` bytes.

    The memory of live tensors is measured for one task and for two, which gives what a further
    task needs. It does not count the data, what was there before, or what a kernel of torch
    allocates for itself: leave a margin.

    Parameters
    ----------
    memory_limit
        In bytes, positive.
    meta_gradient
        ``meta_gradient(supports, queries)`` does the work on all tasks given together, a
        `Method`'s with all else bound.
    supports, queries
        Pytrees of tensors, of any dtype, with the tasks as first dimension, ``(tasks, ...)``; the
        first task is measured.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        If one task alone needs more, or there is none.

    Examples
    --------
    >>> def work(supports, queries):
    ...     return (supports * queries).exp().sum()
    >>> tasks = torch.zeros(2, 1000)
    >>> tasks_that_fit(1e6, work, tasks, tasks)  # two products and exponentials of 4 kB a task
    125
    """

    def peak(tasks: int) -> int:
        first = [
            tree_map(lambda t: _repeat(t, tasks) if isinstance(t, Tensor) else t, data)
            for data in (supports, queries)
        ]
        with LiveMemory() as memory:
            meta_gradient(*first)
        return memory.peak

    one = peak(1)
    if one > memory_limit:
        raise ValueError(
            f"memory_limit={memory_limit:.3g} bytes, and one task needs {one:.3g}: raise the "
            "limit, or take a method or network that needs less"
        )
    another = max(peak(2) - one, 1)
    return 1 + int((memory_limit - one) // another)


def _repeat(data: Tensor, tasks: int) -> Tensor:
    if len(data) == 0:
        raise ValueError("supports and queries hold no task: pass at least one to measure")
    return torch.cat([data[:1]] * tasks)
