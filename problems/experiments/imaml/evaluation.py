"""How well adapted models do: a score for each task, and its mean with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.problems.experiments.imaml.problem import Problem, TaskSource
from implicit_solvers.problems.experiments.imaml.processes import gathered, share_of
from implicit_solvers.problems.imaml import Batching

TASKS_AT_ONCE = 25


def task_scores(
    problem: Problem,
    theta: dict[str, Tensor],
    source: TaskSource,
    tasks: Sequence[int],
    *,
    batching: Batching = Batching.VMAP,
    tasks_at_once: int | None = None,
    report: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Adapt to each task's support and score its queries; processes share the tasks."""
    size = tasks_at_once or TASKS_AT_ONCE
    own = share_of(tasks)

    def score(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        support = (support_x, support_y)
        predict = problem.method.adapt(problem.model, problem.criterion, theta, support)
        return problem.score(predict(query_x), query_y)

    parts = []
    with torch.no_grad():
        for first in range(0, len(own), size):
            chunk = source.batch(own[first : first + size])
            parts.append(batching.over_tasks(score)(*chunk).double().cpu())
            report(len(chunk.query_y))
    scores = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    return gathered(scores)


def interval(scores: Tensor) -> dict[str, Any]:
    """Return the mean and its 95% interval, from the normal approximation.

    Examples
    --------
    >>> interval(torch.tensor([0.5, 0.5, 0.5]))
    {'mean': 0.5, 'low': 0.5, 'high': 0.5, 'tasks': 3}
    """
    mean = float(scores.mean())
    half = 1.96 * float(scores.std(correction=0)) / math.sqrt(len(scores))
    return {"mean": mean, "low": mean - half, "high": mean + half, "tasks": len(scores)}
