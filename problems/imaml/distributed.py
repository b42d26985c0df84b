"""A meta-batch split over the processes of ``torch.distributed``."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from implicit_solvers.problems.imaml.batching import Batching
from implicit_solvers.problems.imaml.meta_gradient import MetaGradient, of_tasks, task_count
from implicit_solvers.problems.imaml.method import Criterion, Method, Model
from implicit_solvers.torch_internals import tree_flatten, tree_unflatten

__all__ = ["distributed_meta_gradient"]


def distributed_meta_gradient(
    method: Method,
    model: Model,
    criterion: Criterion,
    theta: Any,
    supports: Any,
    queries: Any,
    *,
    tasks_at_once: int | None = None,
    batching: Batching = Batching.VMAP,
    group: Any = None,
) -> MetaGradient:
    """Return ``method.meta_gradient`` of the whole meta-batch, with its tasks split over ranks.

    Every rank calls it with the same arguments, evaluates its share of the tasks (shares differ by
    one at most, and may be empty), and gets the whole result. Sums and counts of the tasks that
    were not left out are reduced, in one collective operation, so that the result is one process's
    up to rounding, and bitwise the same on all ranks.

    Parameters
    ----------
    method, model, criterion, theta, supports, queries
        As in `Method.meta_gradient`, of the same shapes and dtypes; the same on every rank. Tensors
        are on the device that the backend reduces: CPU for gloo, this rank's GPU for nccl.
    tasks_at_once, batching
        As in `Method.meta_gradient`, for the rank's own share.
    group
        The process group; the default one, if left out. Where none is initialized, one process
        does everything.

    Returns
    -------
    MetaGradient
        Of all tasks, on every rank: ``gradient = sum_r K_r g_r / sum_r K_r`` for the means ``g_r``
        of the ranks, over ``K_r`` tasks each.

    Raises
    ------
    ValueError
        If the tensors do not have the same number of tasks, or ``tasks_at_once`` is not positive.

    Examples
    --------
    >>> from implicit_solvers.problems import imaml
    >>> model, criterion = lambda theta, x: theta * x, lambda out, y: (out - y).square().mean() / 2
    >>> x, theta = torch.ones(2, 1), torch.tensor(0.0)
    >>> data = (x, torch.tensor([[3.0], [6.0]]))
    >>> method = imaml.Maml(0.5, 1)
    >>> distributed_meta_gradient(method, model, criterion, theta, data, data).gradient
    tensor(-1.1250)
    """
    options: Any = {"tasks_at_once": tasks_at_once, "batching": batching}
    if not (dist.is_available() and dist.is_initialized()):
        return method.meta_gradient(model, criterion, theta, supports, queries, **options)
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    count = task_count(supports, queries)
    share = slice(rank * count // ranks, (rank + 1) * count // ranks)
    mine = of_tasks(share, (supports, queries))
    own = method.meta_gradient(model, criterion, theta, *mine, **options)

    kept = (~own.left_out).sum()
    leaves, tree = tree_flatten(own.gradient)
    columns = leaves[0].new_zeros(len(own) - 1, count)
    for row, values in enumerate(own[1:]):
        columns[row, share] = values.to(columns.dtype)
    parts = [*(leaf * kept for leaf in leaves), kept.to(columns.dtype), columns]
    packed = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(packed, group=group)

    pieces = packed.split([part.numel() for part in parts])
    total = pieces[len(leaves)].clamp(min=1)
    gradient = [(g / total).reshape(t.shape) for g, t in zip(pieces, leaves, strict=False)]
    whole = [
        c.to(t, copy=True) for c, t in zip(pieces[-1].reshape(columns.shape), own[1:], strict=True)
    ]
    return MetaGradient(tree_unflatten(gradient, tree), *whole)
