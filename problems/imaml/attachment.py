"""Derivatives of a task's minimum that was found elsewhere, with damping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.torch_internals import tree_leaves, tree_map

__all__ = ["attach_damped", "detached", "unjudged"]


def detached(tree: Any) -> Any:
    """Return a pytree with its tensors detached, and what is no tensor as it is.

    Examples
    --------
    >>> detached((torch.ones(1, requires_grad=True), "name"))
    (tensor([1.]), 'name')
    """
    return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, tree)


def unjudged(value: Any, lanes: int) -> ims.Solution:
    """Return what a function found, as after a budget; its leaves have so many ``lanes`` in front.

    Examples
    --------
    >>> unjudged(torch.ones(3), lanes=1).status
    tensor([1, 1, 1])
    """
    shape = tree_leaves(value)[0].shape[:lanes]
    none = torch.zeros(shape, dtype=torch.int64, device=tree_leaves(value)[0].device)
    return ims.Solution(value, none > 0, none, none, none, none + ims.Status.BUDGET)


def attach_damped(
    objective: Callable[..., Tensor],
    found: ims.Solution,
    args: tuple[Any, ...],
    distance: Callable[[Any, Any], Tensor],
    *,
    in_dims: tuple[Any, ...] | None = None,
    **options: Any,
) -> ims.Solution:
    """Return a minimum of ``objective(phi, *args)`` with the derivatives of a damped objective.

    That is ``objective(phi, *args) + distance(phi, phi*)`` around the minimum ``phi*`` found: the
    same point, and a Hessian with that of the distance added.

    Parameters
    ----------
    objective, found, args
        What was minimized, and what came of it.
    distance
        ``distance(phi, center)``, least where they are equal; like the objective.
    in_dims, **options
        As in `implicit_solvers.attach`.

    Examples
    --------
    >>> a, parabola = torch.tensor(3.0, requires_grad=True), lambda phi, a: (phi - a) ** 2 / 2
    >>> found = unjudged(torch.tensor(3.0), lanes=0)
    >>> attach_damped(parabola, found, (a,), lambda phi, c: (phi - c) ** 2 / 2).value.backward()
    >>> a.grad
    tensor(0.5000)
    """

    def damped(phi: Any, center: Any, *args: Any) -> Tensor:
        return objective(phi, *args) + distance(phi, center)

    damped.__name__ = objective.__name__  # what the monitor calls it
    around = (detached(found.value), *args)
    lanes = None if in_dims is None else (0, *in_dims)
    return ims.attach(damped, found, around, equation=ims.minimize, in_dims=lanes, **options)
