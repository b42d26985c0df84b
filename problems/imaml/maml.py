"""MAML: gradients through the steps of the inner loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

import implicit_solvers as ims
from implicit_solvers.problems.imaml.definition import proximal_loss
from implicit_solvers.problems.imaml.inner_loop import check_inner_loop, gradient_steps, rms_norm
from implicit_solvers.problems.imaml.meta_gradient import (
    Evaluate,
    OverTasks,
    TaskGradients,
    gradient_of_each,
    without_solver,
)
from implicit_solvers.problems.imaml.method import Criterion, Method, Model, Predictor, task_loss

__all__ = ["FirstOrderMaml", "Maml", "unrolled_meta_loss"]

Loss = Callable[[Any, Any], Tensor]


def unrolled_meta_loss(
    loss: Loss,
    theta: Any,
    support: Any,
    query: Any,
    *,
    steps: int,
    lr: float,
    strength: float,
) -> Tensor:
    """Return `meta_loss` as a chain of gradient steps, to be differentiated through.

    ``L(phi_K, query)`` with ``phi_0 = theta`` and ``phi_(k+1) = phi_k - lr d(L(phi_k, support) +
    strength/2 |phi_k - theta|²)/dphi``.

    Parameters
    ----------
    loss
        ``loss(phi, data)`` returns a 0-d tensor.
    theta
        The meta-parameters: a tensor, or a pytree of tensors of any shapes and one floating dtype.
    support, query
        The data of one task, in the form that ``loss`` takes: any pytrees.
    steps, lr
        The number ``K`` of gradient steps and their length.
    strength
        Of the proximal term; 0 for none.

    Returns
    -------
    Tensor
        0-d, differentiable in ``theta`` and the data to any order.

    Raises
    ------
    ValueError
        If ``lr``, ``steps`` or ``strength`` is invalid.
    RuntimeError
        If ``loss`` does not return a 0-d tensor (torch refuses).

    Notes
    -----
    Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning" (2017); with iMAML's proximal
    term, both methods adapt to the same parameters.

    Examples
    --------
    >>> loss = lambda phi, x: (phi - x) ** 2 / 2
    >>> theta, x, y = torch.tensor(0.0), torch.tensor(4.0), torch.tensor(0.0)
    >>> unrolled_meta_loss(loss, theta, x, y, steps=1, lr=0.5, strength=0.0)
    tensor(2.)
    """
    check_inner_loop("unrolled_meta_loss", lr, steps, strength)
    return loss(gradient_steps(_inner(loss, theta, support, strength), theta, lr, steps), query)


def _inner(loss: Loss, theta: Any, support: Any, strength: float) -> Callable[[Any], Tensor]:
    if strength == 0:
        return lambda phi: loss(phi, support)
    return lambda phi: proximal_loss(loss, phi, theta, support, strength)


@dataclass(frozen=True)
class Maml(Method):
    """MAML: ``theta`` descends the query loss after ``steps`` gradient steps, through the steps.

    The meta-gradient is the mean of ``d/dtheta L(phi_K(theta), query)``, where ``phi_0 = theta``
    and ``phi_(k+1) = phi_k - lr dL(phi_k, support)/dphi``. Memory grows with the steps; with
    ``checkpoint``, with their square root, at the price of making them again.

    Parameters
    ----------
    lr, steps
        The inner loop: ``steps`` steps ``phi <- phi - lr grad`` from ``theta``.
    checkpoint
        Keep only some iterates and compute the others again in the backward pass: True, or every
        how many steps one is kept (True: the square root of ``steps``).
    proximal
        The strength of a term ``proximal/2 |phi - theta|²`` in the inner loop; MAML has none.

    Raises
    ------
    ValueError
        If ``lr`` or ``steps`` is no step length or number of steps, or ``checkpoint`` or
        ``proximal`` is negative.

    Notes
    -----
    ``theta`` is a tensor, or a pytree of tensors of any shapes and one floating dtype; supports and
    queries have the tasks in front (`Method.meta_gradient`).

    Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning" (2017); checkpoints: Chen, Xu,
    Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost" (2016).

    Examples
    --------
    >>> model, criterion = lambda theta, x: theta * x, lambda out, y: (out - y).square().sum() / 2
    >>> support, query = (torch.ones(1, 1), torch.ones(1, 1)), (torch.ones(1, 1), torch.zeros(1, 1))
    >>> Maml(0.5, 1).meta_gradient(model, criterion, torch.tensor(0.0), support, query).gradient
    tensor(0.2500)
    """

    lr: float = 0.1
    steps: int = 5
    checkpoint: bool | int = False
    proximal: float = 0.0

    def __post_init__(self) -> None:
        check_inner_loop("Maml", self.lr, self.steps, self.proximal)
        if not isinstance(self.checkpoint, int) or self.checkpoint < 0:
            raise ValueError(
                f"Maml has checkpoint={self.checkpoint!r}: pass True, False, or a number of steps"
            )

    def adapt(self, model: Model, criterion: Criterion, theta: Any, support: Any) -> Predictor:
        """Return the predictor after the steps; as in `Method`."""
        phi = self._phi(task_loss(model, criterion), theta, support)
        return lambda x: model(phi, x)

    def _tasks(self, model: Model, criterion: Criterion, theta: Any) -> Evaluate:
        """Return the gradients through the steps."""
        loss = task_loss(model, criterion)

        def query_loss(theta: Any, support: Any, query: Any) -> tuple[Tensor, ...]:
            phi = self._phi(loss, theta, support)
            with torch.no_grad():
                residual = rms_norm(grad(_inner(loss, theta, support, self.proximal))(phi))
            return loss(phi, query), residual

        def evaluate(over_tasks: OverTasks, supports: Any, queries: Any) -> TaskGradients:
            return without_solver(
                *gradient_of_each(over_tasks, query_loss, theta, supports, queries)
            )

        return evaluate

    def _phi(self, loss: Loss, theta: Any, support: Any) -> Any:
        if not self.checkpoint or not self.steps:
            return gradient_steps(
                _inner(loss, theta, support, self.proximal), theta, self.lr, self.steps
            )
        every = round(math.sqrt(self.steps)) if self.checkpoint is True else self.checkpoint

        def objective(phi: Any, theta: Any, support: Any) -> Tensor:
            return _inner(loss, theta, support, self.proximal)(phi)

        with warnings.catch_warnings():
            # a task that overflows is left out of the mean, and reported there
            warnings.simplefilter("ignore", ims.ConvergenceWarning)
            return ims.minimize(
                objective,
                theta,
                (theta, support),
                solver=ims.GradientDescent(self.lr, max_steps=self.steps, rtol=None),
                adjoint=ims.UnrolledAdjoint(checkpoint=every),
                on_failure="warn",
            ).value


@dataclass(frozen=True)
class FirstOrderMaml(Method):
    """First-order MAML: the query loss's gradient at ``phi``, as if ``phi`` moved with ``theta``.

    It is `Maml` with the gradients of the inner loop taken to be constant: ``dphi/dtheta = I``, and
    the meta-gradient is the mean of ``dL(phi, query)/dphi``.

    Parameters
    ----------
    lr, steps, proximal
        As in `Maml`.

    Raises
    ------
    ValueError
        As `Maml`.

    Notes
    -----
    ``theta``, supports and queries are as for `Maml`, of the same shapes and dtypes.

    Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning" (2017), section 5.2.

    Examples
    --------
    >>> model, criterion = lambda theta, x: theta * x, lambda out, y: (out - y).square().sum() / 2
    >>> support, query = (torch.ones(1, 1), torch.ones(1, 1)), (torch.ones(1, 1), torch.zeros(1, 1))
    >>> method = FirstOrderMaml(0.5, 1)
    >>> method.meta_gradient(model, criterion, torch.tensor(0.0), support, query).gradient
    tensor(0.5000)
    """

    lr: float = 0.1
    steps: int = 5
    proximal: float = 0.0

    def __post_init__(self) -> None:
        check_inner_loop("FirstOrderMaml", self.lr, self.steps, self.proximal)

    def adapt(self, model: Model, criterion: Criterion, theta: Any, support: Any) -> Predictor:
        """Return the predictor after the steps; as in `Method`."""
        inner = _inner(task_loss(model, criterion), theta, support, self.proximal)
        phi = gradient_steps(inner, theta, self.lr, self.steps, detach=True)
        return lambda x: model(phi, x)

    def _tasks(self, model: Model, criterion: Criterion, theta: Any) -> Evaluate:
        """Return the query losses' gradients at ``phi``."""
        loss = task_loss(model, criterion)

        def adapted(support: Any) -> tuple[Any, Tensor]:
            inner = _inner(loss, theta, support, self.proximal)
            phi = gradient_steps(inner, theta, self.lr, self.steps, detach=True)
            return phi, rms_norm(grad(inner)(phi))

        def query_loss(phi: Any, support: Any, query: Any) -> tuple[Tensor, ...]:
            return (loss(phi, query),)

        def evaluate(over_tasks: OverTasks, supports: Any, queries: Any) -> TaskGradients:
            phi, residual = over_tasks(adapted)(supports)
            gradient, value = gradient_of_each(
                over_tasks, query_loss, phi, supports, queries, shared=False
            )
            return without_solver(gradient, value, residual.detach())

        return evaluate
