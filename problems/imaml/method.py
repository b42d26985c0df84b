"""What every meta-learning method offers."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from torch import Tensor

from implicit_solvers.problems.imaml.batching import Batching
from implicit_solvers.problems.imaml.meta_gradient import (
    Evaluate,
    MetaGradient,
    average_over_tasks,
    warn_of_failures,
)

__all__ = ["Criterion", "Method", "Model", "Predictor", "task_loss"]

Model = Callable[[Any, Any], Tensor]
"""``model(parameters, x)`` returns the outputs for the inputs ``x`` of one task.

``parameters`` is a tensor or a pytree of floating tensors, like ``theta``; ``x`` has the examples
in front, ``(n, ...)``, and so have the outputs. ``lambda theta, x: x @ theta`` is one, and
`functional_model` makes one of a ``torch.nn.Module``.
"""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""``criterion(outputs, targets)`` returns the loss of one task, a 0-d floating tensor.

``torch.nn.functional.cross_entropy`` is one, for outputs ``(n, classes)`` and integer targets
``(n,)``, and ``torch.nn.functional.mse_loss``, for outputs and targets of one shape.
"""

Predictor = Callable[[Any], Tensor]
"""``predict(x)`` returns the outputs of a task's adapted model for inputs ``(n, ...)``."""


def task_loss(model: Model, criterion: Criterion) -> Callable[[Any, Any], Tensor]:
    """Return the loss of one task, as the definition takes it: of parameters and ``(x, y)``."""
    return lambda phi, data: criterion(model(phi, data[0]), data[1])


class Method(abc.ABC):
    """A way to learn meta-parameters ``theta`` from many tasks, and to adapt them to a new one.

    The methods are frozen dataclasses whose fields are the hyperparameters; they are exchangeable.
    One of your own is a subclass with `adapt` and `meta_gradient`. A *support* or *query* is a pair
    ``(x, y)`` of a task: inputs ``(n, ...)`` and targets, a tensor or a pytree of tensors, of the
    dtypes that model and criterion take. All methods descend ``F(theta) = 1/M sum_i L(phi_i(theta),
    query_i)`` or something near it; they differ in how ``phi_i`` is found from ``theta`` and the
    support, and in how its derivative is taken.

    Notes
    -----
    Source: each method names its own.

    Examples
    --------
    One step of training with any of the methods, and a task adapted to:

    >>> import torch
    >>> from implicit_solvers.problems import imaml
    >>> model, criterion = lambda theta, x: theta * x, lambda out, y: (out - y).square().mean()
    >>> x, theta = torch.ones(2, 1), torch.tensor(0.0)  # two tasks, of one example each
    >>> supports, queries = (x, torch.tensor([[1.0], [3.0]])), (x, torch.tensor([[1.0], [3.0]]))
    >>> def train(method: imaml.Method, theta):
    ...     found = method.meta_gradient(model, criterion, theta, supports, queries)
    ...     return theta - 0.1 * found.gradient
    >>> theta = train(imaml.FirstOrderMaml(lr=0.25, steps=1), theta)
    >>> theta
    tensor(0.2000)
    >>> imaml.Maml(lr=0.25, steps=1).adapt(model, criterion, theta, (x[0], torch.ones(1)))(x[0])
    tensor([0.6000])
    """

    @abc.abstractmethod
    def adapt(self, model: Model, criterion: Criterion, theta: Any, support: Any) -> Predictor:
        """Adapt to one task, and return its predictor; ``vmap`` adapts to many.

        Parameters
        ----------
        model, criterion
            The network as a function of its parameters, and the loss.
        theta
            The meta-parameters.
        support
            ``(x, y)`` of the task.

        Returns
        -------
        Predictor
            ``predict(x)``, differentiable in what the method differentiates.
        """

    def meta_gradient(
        self,
        model: Model,
        criterion: Criterion,
        theta: Any,
        supports: Any,
        queries: Any,
        *,
        tasks_at_once: int | None = None,
        batching: Batching = Batching.VMAP,
    ) -> MetaGradient:
        """Return the direction that ``theta`` descends, from a batch of tasks.

        Parameters
        ----------
        model, criterion, theta
            As in `adapt`.
        supports, queries
            Pairs ``(x, y)`` whose tensors have the tasks as first dimension.
        tasks_at_once
            How many tasks are held in memory together; all, if left out. `lanes_that_fit` finds
            the number for a memory limit.
        batching
            ``vmap``, or a loop where that is faster: `faster_batching` measures.

        Returns
        -------
        MetaGradient
            The mean over the tasks, and what became of each. Once, where a method left out more
            than a twentieth of all its tasks, a `ConvergenceWarning` counts them by `Status`.

        Raises
        ------
        ValueError
            If tensors have different numbers of tasks, or ``tasks_at_once`` is not positive.
        """
        evaluate = self._tasks(model, criterion, theta)
        found = average_over_tasks(
            evaluate, theta, supports, queries, tasks_at_once=tasks_at_once, batching=batching
        )
        warn_of_failures(self, found)
        return found

    def _tasks(self, model: Model, criterion: Criterion, theta: Any) -> Evaluate:
        """Return what finds the gradients of some tasks, for `average_over_tasks`."""
        raise NotImplementedError
