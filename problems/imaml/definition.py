"""Implicit MAML: meta-learning whose inner loop is an equation.

Task ``i`` has a support set and a query set. From meta-parameters ``theta`` that all tasks share,
it finds its own parameters ``phi_i`` on the support set, and is judged by them on the query set::

    phi_i(theta) = argmin_phi L(phi, support_i) + strength/2 |phi - theta|²            (eq. 3)
    F(theta)     = 1/M sum_i L(phi_i(theta), query_i)                                  (eq. 4)

``theta`` descends ``F``. How ``phi_i`` moves with it follows from the equation that it solves, and
not from the steps that led there::

    dphi_i/dtheta = (I + 1/strength d²L(phi_i, support_i)/dphi²)^-1                 (lemma 1)

Source: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients" (2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.imaml.inner_problem import minimum
from implicit_solvers.problems.imaml.proximal import Strength, check_proximal, proximal_term

__all__ = ["adapt", "meta_loss", "meta_objective", "proximal_loss"]

Loss = Callable[[Any, Any], Tensor]

SOLVER = ims.GradientDescent(lr=0.1, max_steps=16, rtol=None)
ADJOINT = ims.ImplicitAdjoint(ims.CG(max_steps=5, rtol=None))


def proximal_loss(loss: Loss, phi: Any, theta: Any, support: Any, strength: Strength) -> Tensor:
    """Return ``L(phi, support) + strength/2 |phi - theta|²``, which a task minimizes over ``phi``.

    With a strength for each parameter, the second term is ``1/2 sum_k strength_k (phi_k -
    theta_k)²``.

    Parameters
    ----------
    loss
        ``loss(phi, data)`` returns a 0-d tensor.
    phi, theta
        Pytrees of floating tensors of one structure and the same shapes, of any rank: the task's
        and the meta-parameters.
    support
        The data from which the task learns, in the form that ``loss`` takes.
    strength
        A number, a 0-d tensor, or tensors that broadcast to the leaves of ``theta``, in the same
        pytree. Its sign is not checked here; `adapt` does.

    Returns
    -------
    Tensor
        0-d, differentiable in all arguments.

    Raises
    ------
    ValueError
        If ``strength`` is a pytree of another structure than ``theta``, or ``phi`` and ``theta``
        have different numbers of leaves.
    RuntimeError
        If their shapes do not broadcast (torch refuses).

    Notes
    -----
    Source: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients" (2019),
    equation 3; its ``lambda`` is ``strength``.

    Examples
    --------
    >>> phi, theta = torch.tensor(1.0), torch.tensor(0.0)
    >>> proximal_loss(lambda phi, x: (phi - x) ** 2, phi, theta, torch.tensor(3.0), strength=2.0)
    tensor(5.)
    """
    return loss(phi, support) + proximal_term(phi, theta, strength)


def adapt(
    loss: Loss,
    theta: Any,
    support: Any,
    *,
    strength: Strength = 2.0,
    solver: Any = SOLVER,
    adjoint: ims.ImplicitAdjoint = ADJOINT,
    damping: float = 0.0,
    on_failure: Any = "raise",
    many_tasks: bool = False,
) -> ims.Solution:
    """Find a task's parameters ``phi`` from ``theta``, differentiably in ``theta``.

    ``phi(theta) = argmin_phi L(phi, support) + strength/2 |phi - theta|²``, with the derivative
    ``dphi/dtheta = (I + 1/strength d²L(phi, support)/dphi²)^-1``.

    Parameters
    ----------
    loss
        ``loss(phi, data)`` returns the loss ``L`` of one task, a 0-d tensor.
    theta
        The meta-parameters: a tensor, or a pytree (a dict, say) of tensors of one floating dtype
        and any shapes. Its gradient is lemma 1's.
    support
        The data of the task, in the form that ``loss`` takes: any pytree.
    strength
        The regularization towards ``theta``, the paper's ``lambda``: a number, a 0-d tensor, or
        tensors that broadcast to the leaves of ``theta``, in the same pytree. Tensors get
        gradients by the same rule; their values cannot be checked where ``vmap`` batches them.
        Where the strength exceeds the most negative curvature of ``L``, the equation has one
        solution near ``theta``, and CG is applicable.
    solver
        How ``phi`` is found: a solver of `implicit_solvers.minimize`, or a function
        ``solver(objective, theta) -> phi``. With ``rtol=None`` a solver makes ``max_steps`` steps
        and does not judge them, as the paper's algorithm 2 does; the derivative is an estimate
        then, as it is wherever ``phi`` is not the minimum.
    adjoint
        How lemma 1's system is solved; the paper's 5 steps of CG. `MINRES` where the strength is
        below the most negative curvature, `neumann_adjoint` for the series.
    damping
        A share of the strength that is added in lemma 1's system only: ``(1 + damping) I +
        1/strength d²L/dphi²``. It shrinks the gradient, and makes CG applicable at more negative
        curvature. First derivatives only.
    on_failure
        As in `implicit_solvers.minimize`; under ``"warn"``, a task in which CG meets negative
        curvature keeps the estimate that it had.
    many_tasks
        Whether ``support`` holds many tasks, each tensor in it with the tasks as its first
        dimension. They are the batch of one solve, which can be compiled as a whole, ``loss`` is
        batched by ``torch.func.vmap``, and the result has the tasks in front.

    Returns
    -------
    Solution
        ``value`` is ``phi``, like ``theta``; ``residual`` the norm of the gradient there.

    Raises
    ------
    TypeError
        If ``theta`` has a leaf that is not a floating tensor, or none at all, or ``strength`` is
        neither a number nor floating tensors.
    ValueError
        If ``strength`` is not positive and finite or does not fit ``theta``, ``damping`` is
        negative, or ``loss`` does not return a 0-d tensor.
    ConvergenceError
        If a solve fails and ``on_failure="raise"``; out of ``backward()`` too.

    Notes
    -----
    Source: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients" (2019),
    equation 3, lemma 1 and algorithm 2.

    Examples
    --------
    For ``L = |phi - x|²/2`` the solution is ``(x + strength theta) / (1 + strength)``:

    >>> theta = torch.tensor([0.0, 3.0], requires_grad=True)
    >>> support = torch.tensor([3.0, 0.0])
    >>> quadratic = lambda phi, x: (phi - x).square().sum() / 2
    >>> exact = {"solver": ims.NewtonCG(), "adjoint": ims.ImplicitAdjoint(ims.CG())}
    >>> phi = adapt(quadratic, theta, support, strength=2.0, **exact).value
    >>> phi
    tensor([1., 2.], grad_fn=<...>)
    >>> torch.autograd.grad(phi.sum(), theta)[0]
    tensor([0.6667, 0.6667])
    """
    check_proximal(strength, damping, theta)

    def task_objective(phi: Any, theta: Any, support: Any, strength: Any) -> Tensor:
        return proximal_loss(loss, phi, theta, support, strength)

    args, how = (theta, support, strength), {"adjoint": adjoint, "on_failure": on_failure}
    return minimum(task_objective, args, solver, damping=damping, many_tasks=many_tasks, **how)


def meta_loss(loss: Loss, theta: Any, support: Any, query: Any, **adaptation: Any) -> Tensor:
    """Return ``L(phi(theta), query)``, what one task contributes to the meta-objective.

    ``phi(theta) = argmin_phi L(phi, support) + strength/2 |phi - theta|²``, and the derivative is
    ``(I + 1/strength d²L(phi, support)/dphi²)^-1 dL(phi, query)/dphi``.

    Parameters
    ----------
    loss
        ``loss(phi, data)`` returns the loss ``L`` of one task, a 0-d tensor.
    theta
        The meta-parameters: a tensor, or a pytree of tensors of any shapes and one floating dtype.
    support, query
        The data from which the task learns, and those on which it is judged, in the form that
        ``loss`` takes: any pytrees.
    **adaptation
        The keywords of `adapt`: ``strength``, ``solver``, ``adjoint``, ``damping``,
        ``on_failure``.

    Returns
    -------
    Tensor
        0-d, of the dtype of the loss, differentiable in ``theta`` and in every floating tensor of
        ``support``, ``query`` and ``strength``.

    Raises
    ------
    TypeError, ValueError
        As `adapt`, if an argument is invalid; the message names it.
    ConvergenceError
        If a solve fails and ``on_failure="raise"``; out of ``backward()`` too.

    Notes
    -----
    Source: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients" (2019),
    equations 4 to 6.

    Examples
    --------
    >>> theta, x, y = torch.tensor(0.0), torch.tensor(3.0), torch.tensor(0.0)
    >>> quadratic = lambda phi, x: (phi - x) ** 2 / 2
    >>> exact = {"solver": ims.NewtonCG(), "adjoint": ims.ImplicitAdjoint(ims.CG())}
    >>> F = lambda theta: meta_loss(quadratic, theta, x, y, strength=2.0, **exact)
    >>> F(theta), torch.func.grad(F)(theta)
    (tensor(0.5000), tensor(0.6667))
    """
    return loss(adapt(loss, theta, support, **adaptation).value, query)


def meta_objective(
    loss: Loss, theta: Any, supports: Any, queries: Any, **adaptation: Any
) -> Tensor:
    """Return ``F(theta)``, the mean of `meta_loss` over tasks, which are batched.

    ``F(theta) = 1/M sum_i L(phi_i(theta), query_i)`` for ``M`` tasks. With ``on_failure="mask"`` it
    can be part of a graph: ``torch.compile(fullgraph=True)``.

    Parameters
    ----------
    loss, theta
        As in `meta_loss`; all tasks share ``theta``.
    supports, queries
        The data of all tasks: every tensor in them, of any dtype, has the tasks as its first
        dimension, ``(M, ...)``.
    **adaptation
        The keywords of `adapt`, ``many_tasks`` excepted.

    Returns
    -------
    Tensor
        0-d, differentiable as `meta_loss` is.

    Raises
    ------
    TypeError, ValueError
        As `adapt`, if an argument is invalid, or if tensors have different numbers of tasks.
    ConvergenceError
        If the solve of a task fails and ``on_failure="raise"``; out of ``backward()`` too.

    Notes
    -----
    Source: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients" (2019),
    equation 4.

    Examples
    --------
    >>> theta, x, y = torch.tensor(0.0), torch.tensor([3.0, -3.0]), torch.tensor([0.0, 0.0])
    >>> quadratic = lambda phi, x: (phi - x) ** 2 / 2
    >>> exact = {"solver": ims.NewtonCG(), "adjoint": ims.ImplicitAdjoint(ims.CG())}
    >>> meta_objective(quadratic, theta, x, y, strength=2.0, **exact)
    tensor(0.5000)
    """
    phi = adapt(loss, theta, supports, many_tasks=True, **adaptation).value
    return torch.func.vmap(loss, randomness="different")(phi, queries).mean()
