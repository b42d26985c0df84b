"""Derivatives of a minimum that was found elsewhere, with damping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.torch_internals import tree_map

__all__ = ["attach_minimum", "detached"]

# No step: the solution is where the search starts, and the derivatives are those of the equation.
STAY = ims.GradientDescent(max_steps=0, rtol=None)


def detached(tree: Any) -> Any:
    """Return a pytree with its tensors detached, and what is no tensor as it is.

    Examples
    --------
    >>> detached((torch.ones(1, requires_grad=True), "name"))
    (tensor([1.]), 'name')
    """
    return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, tree)


def attach_minimum(
    objective: Callable[..., Tensor],
    found: Any,
    args: tuple[Any, ...],
    *,
    distance: Callable[[Any, Any], Tensor] | None = None,
    adjoint: Any = None,
    on_failure: Any = "raise",
    batch_dims: int = 0,
    in_dims: tuple[Any, ...] | None = None,
) -> ims.Solution:
    """Return a minimum ``phi`` of ``objective(phi, *args)`` with its implicit derivatives.

    With a ``distance``, the derivatives are those of the damped objective
    ``objective(phi, *args) + distance(phi, phi*)`` around the minimum ``phi*`` found: the same
    point, and a Hessian with that of the distance added.

    Parameters
    ----------
    objective
        ``objective(phi, *args)`` returns a 0-d tensor; with ``batch_dims``, one value a lane.
    found
        The minimum, a pytree of tensors; or the `Solution` of a solver, whose failures stay
        failures.
    args
        What the minimum is differentiated by, pytrees.
    distance
        ``distance(phi, center)``, least where they are equal; like the objective.
    adjoint, on_failure, batch_dims, in_dims
        As in `implicit_solvers.minimize`.

    Returns
    -------
    Solution
        ``residual`` is the norm of the objective's gradient.

    Raises
    ------
    ConvergenceError
        If the gradient is not finite there and ``on_failure="raise"``.

    Examples
    --------
    >>> a = torch.tensor(3.0, requires_grad=True)
    >>> parabola = lambda phi, a: (phi - a) ** 2 / 2
    >>> attach_minimum(parabola, torch.tensor(3.0), (a,)).value.backward()
    >>> a.grad
    tensor(1.)
    """
    before = found if isinstance(found, ims.Solution) else None
    point = detached(found if before is None else before.value)
    failed = None
    start = point
    if before is not None:
        failed = before.status > int(ims.Status.BUDGET)
        # a lane that failed has to fail here too: its derivatives are left out then
        start = tree_map(lambda t: torch.where(_over(failed, t), torch.nan, t), point)

    def damped(phi: Any, center: Any, *args: Any) -> Tensor:
        value = objective(phi, *args)
        return value if distance is None else value + distance(phi, center)

    damped.__name__ = getattr(objective, "__name__", "objective")  # what the monitor calls it
    solution = ims.minimize(
        damped,
        start,
        (start, *args),
        solver=STAY,
        adjoint=adjoint,
        on_failure=on_failure,
        batch_dims=batch_dims,
        in_dims=None if in_dims is None else (0, *in_dims),
    )
    if before is None or failed is None:
        return solution
    value = tree_map(lambda t, p: torch.where(_over(failed, t), p, t), solution.value, point)
    return replace(before, value=value)


def _over(lanes: Tensor, like: Tensor) -> Tensor:
    """Return what is known of each lane, to be broadcast over the tensors of the lanes."""
    return lanes.reshape((*lanes.shape, *(1,) * (like.dim() - lanes.dim())))
