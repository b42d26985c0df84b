"""How tasks are evaluated together: by ``vmap``, or one after the other."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.torch_internals import tree_flatten, tree_map, tree_unflatten

__all__ = ["Batching", "BatchingChoice", "faster_batching"]


class Batching(enum.Enum):
    """Whether tasks are batched by ``torch.func.vmap`` or take turns in a loop.

    Both give the same up to rounding. ``vmap`` turns the convolutions of tasks with weights of
    their own into one grouped convolution, which is slow on CPUs; for most else it is faster.
    `faster_batching` measures.

    Examples
    --------
    >>> Batching.LOOP.over_tasks(torch.sin)(torch.zeros(3))
    tensor([0., 0., 0.])
    """

    VMAP = "vmap"
    LOOP = "loop"

    def over_tasks(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``fn`` over a first dimension of the tensors in its arguments and results."""
        if self is Batching.VMAP:
            return torch.func.vmap(fn, randomness="different")

        def looped(*args: Any) -> Any:
            leaves, tree = tree_flatten(args)
            results = []
            for task in zip(*leaves, strict=True):
                results.append(tree_flatten(fn(*tree_unflatten(task, tree))))
            stacked = [torch.stack(column) for column in zip(*(r[0] for r in results), strict=True)]
            return tree_unflatten(stacked, results[0][1])

        return looped


class BatchingChoice(NamedTuple):
    """The faster `Batching`, and the seconds for a task of each that were measured.

    Attributes
    ----------
    batching
        `Batching.VMAP` or `Batching.LOOP`.
    vmap_seconds, loop_seconds
        Wall-clock time of a meta-gradient, divided by its tasks; Python numbers.

    Examples
    --------
    >>> choice = BatchingChoice(Batching.LOOP, vmap_seconds=0.25, loop_seconds=0.125)
    >>> choice.batching.over_tasks(torch.cos)(torch.zeros(2))
    tensor([1., 1.])
    """

    batching: Batching
    vmap_seconds: float
    loop_seconds: float


def faster_batching(
    meta_gradient: Callable[..., Any], supports: Any, queries: Any, *, rounds: int = 2
) -> BatchingChoice:
    """Measure which batching is faster on the tasks given.

    The two differ in the last bits: a run that is to be reproduced chooses once, and keeps the
    choice with its configuration.

    Parameters
    ----------
    meta_gradient
        ``meta_gradient(supports, queries, batching=...)`` does the work, a `Method`'s with all
        else bound.
    supports, queries
        A few tasks (as many as are evaluated together): pytrees of tensors, of any dtype, with the
        tasks in front, ``(tasks, ...)``.
    rounds
        Timed calls of each, by turns, after one that is not timed; the fastest counts.

    Returns
    -------
    BatchingChoice
        The faster one, and what was measured.

    Raises
    ------
    ValueError
        If ``rounds`` is not positive, or ``supports`` have no tensor.

    Examples
    --------
    >>> def work(supports, queries, batching):
    ...     return batching.over_tasks(lambda s, q: (s @ q).cos())(supports, queries)
    >>> s, q = torch.zeros(2, 8, 8), torch.zeros(2, 8, 8)
    >>> choice = faster_batching(work, s, q)
    >>> (choice.batching is Batching.VMAP) == (choice.vmap_seconds <= choice.loop_seconds)
    True
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: pass a positive number")
    seconds = {Batching.VMAP: float("inf"), Batching.LOOP: float("inf")}
    leaves = [leaf for leaf in tree_flatten(supports)[0] if isinstance(leaf, Tensor)]
    if not leaves:
        raise ValueError("supports have no tensor: pass tensors with the tasks in front")
    for attempt in range(rounds + 1):
        for batching in seconds:
            start = time.perf_counter()
            meta_gradient(supports, queries, batching=batching)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if attempt:
                seconds[batching] = min(seconds[batching], time.perf_counter() - start)
    each = tree_map(lambda s: s / max(len(leaves[0]), 1), seconds)
    return BatchingChoice(min(seconds, key=lambda b: seconds[b]), *each.values())
