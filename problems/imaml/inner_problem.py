"""The inner problem of one task or of many, solved by a solver or by a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.imaml.meta_gradient import task_count
from implicit_solvers.torch_internals import tree_map

__all__ = ["detached", "minimum"]


def detached(tree: Any) -> Any:
    """Return a pytree with its tensors detached, and what is no tensor as it is.

    Examples
    --------
    >>> detached((torch.ones(1, requires_grad=True), "name"))
    (tensor([1.]), 'name')
    """
    return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, tree)


def minimum(
    objective: Callable[..., Tensor],
    theta: Any,
    args: tuple[Any, Any, Any],
    *,
    solver: Any,
    damped: Callable[..., Tensor] | None = None,
    many_tasks: bool = False,
    **how: Any,
) -> ims.Solution:
    """Return ``argmin_phi objective(phi, *args)`` near ``theta``, with its derivatives.

    Parameters
    ----------
    objective, args
        ``objective(phi, theta, support, strength)`` of one task, and its further arguments.
    theta, solver, many_tasks
        As in `adapt`.
    damped
        The objective whose equation is differentiated instead; it has the same gradient.
    **how
        ``adjoint`` and ``on_failure``, as in `adapt`.

    Examples
    --------
    >>> pull = lambda phi, theta, x, s: (phi - x) ** 2 / 2 + s / 2 * (phi - theta) ** 2
    >>> args = (torch.tensor(0.0), torch.tensor(3.0), 0.5)
    >>> minimum(pull, args[0], args, solver=lambda objective, theta: theta + 2)
    Solution(BUDGET after 0 iterations; error inf, residual 0)
    """

    def each(fn: Callable[..., Any], *in_dims: int | None) -> Callable[..., Any]:
        return torch.func.vmap(fn, in_dims, randomness="different") if many_tasks else fn

    def by_function(theta: Any, support: Any, strength: Any) -> Any:
        return solver(lambda phi: objective(phi, theta, support, strength), theta)

    shared = (None, 0, None)
    if many_tasks:
        how |= {"batch_dims": 1, "in_dims": shared}
    if not hasattr(solver, "step"):
        phi = each(by_function, *shared)(*detached(args))
        found = ims.Solution.unjudged(phi, int(many_tasks))
    else:
        # the start gets no gradient: theta acts through the proximal term, so it is an argument too
        start = theta
        if many_tasks:
            tasks = task_count(args[1], ())
            start = tree_map(lambda t: t.expand(tasks, *t.shape), theta)
        found = ims.minimize(each(objective, 0, *shared), start, args, solver=solver, **how)
        if damped is None:
            return found
    return ims.attach(
        each(damped or objective, 0, *shared), found, args, equation=ims.minimize, **how
    )
