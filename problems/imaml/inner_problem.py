"""The inner problem of one task or of many, solved by a solver or by a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.imaml.meta_gradient import task_count
from implicit_solvers.problems.imaml.proximal import proximal_term
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
    args: tuple[Any, Any, Any],
    solver: Any,
    *,
    damping: float = 0.0,
    many_tasks: bool = False,
    **how: Any,
) -> ims.Solution:
    """Return ``argmin_phi objective(phi, theta, support, strength)``, with its derivatives.

    The arguments are those of `adapt`; the objective is of one task.

    Examples
    --------
    >>> pull = lambda phi, theta, x, s: (phi - x) ** 2 / 2 + s / 2 * (phi - theta) ** 2
    >>> args = (torch.tensor(0.0), torch.tensor(3.0), 0.5)
    >>> minimum(pull, args, lambda objective, theta: theta + 2)
    Solution(BUDGET after 0 iterations; error inf, residual 0)
    """

    def each(fn: Callable[..., Any], *in_dims: int | None) -> Callable[..., Any]:
        return torch.func.vmap(fn, in_dims, randomness="different") if many_tasks else fn

    def by_function(theta: Any, support: Any, strength: Any) -> Any:
        return solver(lambda phi: objective(phi, theta, support, strength), theta)

    def damped(phi: Any, theta: Any, support: Any, strength: Any) -> Tensor:
        # what is added has no value and no gradient at phi, only curvature
        more = damping * proximal_term(phi, detached(phi), strength)
        return objective(phi, theta, support, strength) + more

    damped.__name__ = objective.__name__  # what a monitor calls it
    shared = (None, 0, None)
    if many_tasks:
        how |= {"batch_dims": 1, "in_dims": shared}
    if not hasattr(solver, "step"):
        phi = each(by_function, *shared)(*detached(args))
        found = ims.Solution.unjudged(phi, int(many_tasks))
    else:
        # the start gets no gradient: theta acts through the proximal term, so it is an argument too
        start = args[0]
        if many_tasks:
            tasks = task_count(args[1], ())
            start = tree_map(lambda t: t.expand(tasks, *t.shape), start)
        found = ims.minimize(each(objective, 0, *shared), start, args, solver=solver, **how)
        if not damping:
            return found
    fn = each(damped if damping else objective, 0, *shared)
    return ims.attach(fn, found, args, equation=ims.minimize, **how)
