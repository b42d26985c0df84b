"""What every meta-learning method offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from implicit_solvers.problems.imaml.batching import Batching
from implicit_solvers.problems.imaml.meta_gradient import MetaGradient

__all__ = ["Criterion", "Method", "Model", "Predictor"]

Model = Callable[[Any, Any], Tensor]
"""``model(parameters, x)`` returns the outputs for the inputs ``x`` of one task."""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""``criterion(outputs, targets)`` returns the loss of one task, a 0-d tensor."""

Predictor = Callable[[Any], Tensor]
"""``predict(x)`` returns the outputs of a task's adapted model."""


class Method(Protocol):
    """A way to learn meta-parameters ``theta`` from many tasks, and to adapt them to a new one.

    The methods are frozen dataclasses whose fields are the hyperparameters; they are exchangeable.
    A *support* or *query* is a pair ``(x, y)`` of a task.
    """

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
            How many tasks are held in memory together; all, if left out. `tasks_that_fit` finds
            the number for a memory limit.
        batching
            ``vmap``, or a loop where that is faster: `faster_batching` measures.
        """
