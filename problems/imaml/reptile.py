"""Reptile: move towards the adapted parameters."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from implicit_solvers.problems.imaml.inner_loop import check_inner_loop, gradient_steps
from implicit_solvers.problems.imaml.meta_gradient import (
    Evaluate,
    OverTasks,
    TaskGradients,
    without_solver,
)
from implicit_solvers.problems.imaml.method import Criterion, Method, Model, Predictor
from implicit_solvers.torch_internals import tree_map

__all__ = ["Reptile"]


@dataclass(frozen=True)
class Reptile(Method):
    """Reptile: ``theta`` moves towards the ``phi`` that gradient steps on a task lead to.

    The meta-gradient is the mean of ``theta - phi``. As Reptile has no query set, a task's support
    and query examples are taken together to find ``phi`` in `meta_gradient`; the loss reported is
    the query's at that ``phi``, which has seen the query: it is lower than the other methods'.
    `adapt` sees the support alone.

    Parameters
    ----------
    lr, steps
        The inner loop: ``steps`` steps ``phi <- phi - lr grad`` from ``theta``.
    minibatch
        The examples of each step, drawn without replacement, in another order in every pass; all
        of them, if left out. Reptile of one step on all examples is joint training.
    seed
        Of that order, which is the same for all tasks.

    Raises
    ------
    ValueError
        If ``lr``, ``steps`` or ``minibatch`` is invalid.

    Notes
    -----
    ``theta`` is a tensor, or a pytree of tensors of any shapes and one floating dtype; supports and
    queries have the tasks in front, the examples next, and one structure, so that they can be
    taken together.

    Source: Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms" (2018).

    Examples
    --------
    >>> model, criterion = lambda theta, x: theta * x, lambda out, y: (out - y).square().mean() / 2
    >>> support, query = (torch.ones(1, 1), torch.ones(1, 1)), (torch.ones(1, 1), torch.zeros(1, 1))
    >>> Reptile(0.5, 1).meta_gradient(model, criterion, torch.tensor(0.0), support, query).gradient
    tensor(-0.2500)
    """

    lr: float = 0.1
    steps: int = 5
    minibatch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_inner_loop("Reptile", self.lr, self.steps)
        if self.minibatch is not None and self.minibatch < 1:
            raise ValueError(
                f"Reptile has minibatch={self.minibatch}: pass a number of examples, or None"
            )

    def adapt(self, model: Model, criterion: Criterion, theta: Any, support: Any) -> Predictor:
        """Return the predictor after steps on the support; as in `Method`."""
        phi = self._phi(model, criterion, theta, support)
        return lambda x: model(phi, x)

    def _tasks(self, model: Model, criterion: Criterion, theta: Any) -> Evaluate:
        """Return ``theta - phi``."""

        def task(support: Any, query: Any) -> tuple[Any, Tensor]:
            both = tree_map(lambda s, q: torch.cat([s, q]), support, query)
            phi = self._phi(model, criterion, theta, both)
            x, y = query
            gradient = tree_map(lambda t, p: t.detach() - p, theta, phi)
            return gradient, criterion(model(phi, x), y)

        def evaluate(over_tasks: OverTasks, supports: Any, queries: Any) -> TaskGradients:
            return without_solver(*over_tasks(task)(supports, queries))

        return evaluate

    def _phi(self, model: Model, criterion: Criterion, theta: Any, data: Any) -> Any:
        x, y = data
        if self.minibatch is None or self.minibatch >= len(y):
            return gradient_steps(
                lambda phi: criterion(model(phi, x), y), theta, self.lr, self.steps, detach=True
            )
        phi, order = theta, self._order(len(y))
        for step in range(self.steps):
            some = order[step * self.minibatch : (step + 1) * self.minibatch].to(y.device)
            part, targets = x[some], y[some]
            gradient = grad(lambda phi: criterion(model(phi, part), targets))(phi)  # noqa: B023
            phi = tree_map(lambda p, g: (p - self.lr * g).detach(), phi, gradient)
        return phi

    def _order(self, examples: int) -> Tensor:
        """Return the examples of all steps, one permutation after the other."""
        assert self.minibatch is not None
        passes = -(-self.steps * self.minibatch // examples)
        # Python's generator: under vmap, torch's would draw another order for each task
        generator = random.Random(self.seed)
        each = [generator.sample(range(examples), examples) for _ in range(passes)]
        return torch.tensor([i for order in each for i in order], dtype=torch.int64)
