"""What a meta-batch of tasks says about the meta-parameters, task by task and in the mean."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.imaml.batching import Batching
from implicit_solvers.torch_internals import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "MetaGradient",
    "TaskGradients",
    "average_over_tasks",
    "gradient_of_each",
    "failures",
    "of_tasks",
    "task_count",
    "warn_of_failures",
    "without_solver",
]


SHARE, MANY, SOLVE = 1 / 20, 20, "linear solve"
REMEDY = (
    "Where the linear solve failed, raise strength, add damping, or solve with MINRES(); where the "
    "inner loop failed, take shorter steps, or more of them."
)


class MetaGradient(NamedTuple):
    """The meta-gradient of a batch of tasks: ``1/K sum_i g_i`` over the ``K`` tasks not left out.

    Attributes
    ----------
    gradient
        The mean, like ``theta`` in structure, shapes and dtype; zero if no task is left.
    loss
        ``(tasks,)``, the query loss after adaptation, in the dtype of the loss; NaN where the task
        was left out.
    left_out
        ``(tasks,)`` bool: NaN or infinity in the loss or gradient of the task, or a failure of its
        inner loop or adjoint that the method does not let pass.
    inner_residual
        ``(tasks,)``, the norm (RMS over entries) of the inner objective's gradient at ``phi``; NaN
        where the method does not compute it.
    adjoint_residual
        ``(tasks,)``, the relative residual of the outer linear solve; NaN where there is none.
    inner_status, adjoint_status
        ``(tasks,)`` int64, the `implicit_solvers.Status` of the inner loop and of the outer linear
        solve: BUDGET where nothing is judged, as in a method without a solver. NONFINITE too where
        the loss or the gradient of the task is not finite.

    Examples
    --------
    The second task has no loss, and is left out:

    >>> from implicit_solvers.problems import imaml
    >>> model, criterion = lambda theta, x: theta * x, lambda out, y: (out - y).square().mean() / 2
    >>> x, y = torch.ones(2, 1), torch.tensor([[4.0], [float("nan")]])
    >>> method, theta = imaml.FirstOrderMaml(lr=0.5, steps=1), torch.tensor(0.0)
    >>> found = method.meta_gradient(model, criterion, theta, (x, y), (x, y))
    >>> found.gradient, found.loss, found.left_out
    (tensor(-2.), tensor([2., nan]), tensor([False,  True]))
    >>> [ims.Status(code).name for code in found.inner_status.tolist()]
    ['BUDGET', 'NONFINITE']
    """

    gradient: Any
    loss: Tensor
    left_out: Tensor
    inner_residual: Tensor
    adjoint_residual: Tensor
    inner_status: Tensor
    adjoint_status: Tensor


class TaskGradients(NamedTuple):
    """What some tasks contribute to a `MetaGradient`; every tensor has the tasks in front.

    ``failed`` tells that a solver reported a failure for which the task is left out; residuals and
    statuses are as in `MetaGradient`.
    """

    gradient: Any
    loss: Tensor
    failed: Tensor
    inner_residual: Tensor
    adjoint_residual: Tensor
    inner_status: Tensor
    adjoint_status: Tensor


def without_solver(
    gradient: Any, loss: Tensor, inner_residual: Tensor | None = None
) -> TaskGradients:
    """Return the contributions of tasks in which no solver can fail.

    Examples
    --------
    >>> without_solver(torch.ones(1), torch.ones(1)).adjoint_status
    tensor([1])
    """
    nothing = torch.full_like(loss, torch.nan)
    budget = torch.full_like(loss, ims.Status.BUDGET, dtype=torch.int64)
    failed = torch.zeros_like(loss, dtype=torch.bool)
    residual = nothing if inner_residual is None else inner_residual
    return TaskGradients(gradient, loss, failed, residual, nothing, budget, budget)


def failures(found: MetaGradient, left_out: bool) -> Counter[str]:
    """Count the tasks in which a solve failed, by how it ended: those left out, or those kept.

    Examples
    --------
    >>> none, code = torch.zeros(2), torch.tensor([1, 6])
    >>> left = torch.tensor([False, True])
    >>> failures(MetaGradient(none, none, left, none, none, torch.ones(2).long(), code), True)
    Counter({'INDEFINITE (linear solve)': 1})
    """
    names: Counter[str] = Counter()
    some = found.left_out == left_out
    pairs = (found.inner_status[some].tolist(), found.adjoint_status[some].tolist())
    for inner, adjoint in zip(*pairs, strict=True):
        code, where = (inner, "inner loop") if inner > ims.Status.BUDGET else (adjoint, SOLVE)
        if left_out or code > ims.Status.BUDGET:
            names[f"{ims.Status(code).name} ({where})"] += 1
    return names


@dataclass
class _Run:
    """What a method has seen: its tasks, and those that failed, left out (True) or kept."""

    method: weakref.ref[Any]
    tasks: int = 0
    failed: dict[bool, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    warned: set[bool] = field(default_factory=set)


class _Runs(threading.local):
    """The runs of this thread, by the identity of their methods."""

    def __init__(self) -> None:
        self.of: dict[int, _Run] = {}


_RUNS = _Runs()


def warn_of_failures(method: Any, found: MetaGradient) -> None:
    """Warn, once in the life of a method, of failures in more than a twentieth of all its tasks.

    Once of tasks that were left out, of which one alone is no reason, and once of those that were
    kept, if they are many.
    """
    run = _RUNS.of.get(id(method))
    if run is None or run.method() is not method:
        _RUNS.of = {key: run for key, run in _RUNS.of.items() if run.method() is not None}
        run = _RUNS.of[id(method)] = _Run(weakref.ref(method))
    run.tasks += len(found.loss)
    for left_out, what, few in (
        (True, "were left out of", 1),
        (False, "have an estimate of a solve that failed in", MANY),
    ):
        run.failed[left_out] += failures(found, left_out)
        count = run.failed[left_out].total()
        if count > max(few, SHARE * run.tasks) and left_out not in run.warned:
            run.warned.add(left_out)
            ends = ", ".join(f"{number} {name}" for name, number in run.failed[left_out].items())
            warnings.warn(
                f"{count} of {run.tasks} tasks so far {what} {type(method).__name__}'s "
                f"meta-gradients: {ends}. {REMEDY}",
                ims.ConvergenceWarning,
                stacklevel=3,
            )


OverTasks = Callable[[Callable[..., Any]], Callable[..., Any]]
Evaluate = Callable[[OverTasks, Any, Any], TaskGradients]


def task_count(supports: Any, queries: Any) -> int:
    """Return the number of tasks of a meta-batch, the first dimension of all of its tensors.

    Examples
    --------
    >>> x, y = torch.zeros(4, 2, 1), torch.zeros(4, 2)
    >>> task_count((x, y), (x, y))
    4
    """
    leaves = [leaf for leaf in tree_leaves((supports, queries)) if isinstance(leaf, Tensor)]
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
    if len(sizes) != 1 or None in sizes:
        shapes = [tuple(leaf.shape) for leaf in leaves]
        raise ValueError(
            f"supports and queries have shapes {shapes}: the first dimension of each tensor is "
            "the tasks, and must be the same"
        )
    return int(leaves[0].shape[0])


def of_tasks(some: Any, data: Any) -> Any:
    """Return the data of some tasks: what ``some`` indexes in the first dimension of each tensor.

    Examples
    --------
    >>> of_tasks(slice(1, 3), (torch.arange(4), "name"))
    (tensor([1, 2]), 'name')
    """
    return tree_map(lambda t: t[some] if isinstance(t, Tensor) else t, data)


def gradient_of_each(
    over_tasks: OverTasks,
    fn: Callable[[Any, Any, Any], tuple[Tensor, ...]],
    theta: Any,
    supports: Any,
    queries: Any,
    *,
    shared: bool = True,
) -> tuple[Any, ...]:
    """Return the gradient with respect to ``theta`` of each task's loss, and what ``fn`` returned.

    Every task has a copy of ``theta``, which has the tasks in front unless it is ``shared``, and
    one backward pass reaches them all. It keeps no graph of itself, as ``torch.func.grad`` would,
    whose memory checkpoints could not save. ``fn(theta, support, query)`` returns the loss of one
    task, 0-d, and further tensors, which are not differentiated.

    Examples
    --------
    >>> x, vmap = torch.tensor([1.0, 2.0]), torch.func.vmap
    >>> gradient_of_each(vmap, lambda t, s, q: (s * t**2, q), torch.tensor(3.0), x, x)
    (tensor([ 6., 12.]), tensor([ 9., 18.]), tensor([1., 2.]))
    """
    count = task_count(supports, queries)
    leaves, tree = tree_flatten(theta)
    if shared:
        leaves = [leaf.expand(count, *leaf.shape) for leaf in leaves]
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    with torch.enable_grad():
        loss, *more = over_tasks(fn)(tree_unflatten(copies, tree), supports, queries)
        if not loss.requires_grad:
            raise ValueError(
                "the query loss does not depend on theta: the model must use its first argument, "
                "and neither model nor criterion may detach or convert tensors"
            )
        slopes = torch.autograd.grad(loss.sum(), copies, allow_unused=True)
    gradient = [
        torch.zeros_like(c) if g is None else g for c, g in zip(copies, slopes, strict=True)
    ]
    return (tree_unflatten(gradient, tree), loss.detach(), *(t.detach() for t in more))


def average_over_tasks(
    evaluate: Evaluate,
    theta: Any,
    supports: Any,
    queries: Any,
    *,
    tasks_at_once: int | None = None,
    batching: Batching = Batching.VMAP,
) -> MetaGradient:
    """Evaluate tasks in chunks and average what was not left out.

    ``evaluate(over_tasks, supports, queries)`` returns the gradients of some tasks, where
    ``over_tasks(fn)`` is ``fn`` over a first dimension of its arguments. The others are those of
    `Method.meta_gradient`.

    Examples
    --------
    >>> def evaluate(over_tasks, supports, queries):
    ...     return without_solver(
    ...         *over_tasks(lambda s, q: (s - q, (s - q) ** 2))(supports, queries)
    ...     )
    >>> s, q = torch.tensor([1.0, float("nan"), 5.0]), torch.zeros(3)
    >>> mean = average_over_tasks(evaluate, torch.tensor(0.0), s, q, tasks_at_once=2)
    >>> mean.gradient, mean.loss, mean.left_out
    (tensor(3.), tensor([ 1., nan, 25.]), tensor([False,  True, False]))
    """
    count = task_count(supports, queries)
    if tasks_at_once is None:
        tasks_at_once = max(count, 1)
    if not isinstance(tasks_at_once, int) or tasks_at_once < 1:
        raise ValueError(
            f"tasks_at_once={tasks_at_once!r}: pass a positive number, or None for all tasks"
        )
    if batching is Batching.LOOP:
        tasks_at_once = 1
    total = tree_map(lambda t: torch.zeros_like(t.detach()), theta)
    parts = []
    for first in range(0, count, tasks_at_once):
        some = of_tasks(slice(first, first + tasks_at_once), (supports, queries))
        out = evaluate(batching.over_tasks, *some)
        unfit = ~torch.isfinite(out.loss) | ~_finite(out.gradient)
        left_out = out.failed | unfit
        status = torch.where(unfit & ~out.failed, int(ims.Status.NONFINITE), out.inner_status)
        total = tree_map(lambda t, g: t + _sum_of(g, ~left_out), total, out.gradient)  # noqa: B023
        loss = torch.where(left_out, torch.nan, out.loss)
        residuals = out.inner_residual, out.adjoint_residual
        parts.append((loss, left_out, *residuals, status, out.adjoint_status))
    if not parts:
        nothing = next(iter(tree_leaves(total))).new_zeros(0)
        none = (torch.zeros_like(nothing, dtype=torch.int64) for _ in range(2))
        residuals = nothing.clone(), nothing.clone()
        return MetaGradient(total, nothing, nothing.bool(), *residuals, *none)
    columns = [torch.cat(column).detach() for column in zip(*parts, strict=True)]
    kept = (~columns[1]).sum().clamp(min=1)
    return MetaGradient(tree_map(lambda t: (t / kept).detach(), total), *columns)


def _finite(gradient: Any) -> Tensor:
    leaves = [torch.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in tree_leaves(gradient)]
    return torch.stack(leaves).all(0)


def _sum_of(gradient: Tensor, kept: Tensor) -> Tensor:
    """Return the sum over the tasks kept, whatever the others hold."""
    mask = kept.reshape(-1, *(1,) * (gradient.dim() - 1))
    return torch.where(mask, gradient, 0.0).sum(0)
