"""Plain gradient steps on a task, which the unrolled and first-order methods share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from implicit_solvers.torch_internals import tree_leaves, tree_map

__all__ = ["check_inner_loop", "gradient_steps", "rms_norm"]


def gradient_steps(
    objective: Callable[..., Tensor], phi: Any, lr: float, steps: int, *, detach: bool = False
) -> Any:
    """Return ``phi`` after ``steps`` steps ``phi <- phi - lr grad objective(phi)``.

    They can be differentiated through, or are cut out of the graph (``detach``).

    Examples
    --------
    >>> gradient_steps(lambda phi: phi**2 / 2, torch.tensor(1.0), 0.5, 2)
    tensor(0.2500)
    """
    for _ in range(steps):
        gradient = grad(objective)(phi)
        phi = tree_map(lambda p, g: p - lr * g, phi, gradient)
        if detach:
            phi = tree_map(torch.Tensor.detach, phi)
    return phi


def rms_norm(tree: Any) -> Tensor:
    """Return the root mean square over all entries of a pytree.

    Examples
    --------
    >>> rms_norm([torch.tensor([3.0, 4.0]), torch.tensor(0.0)])
    tensor(2.8868)
    """
    return torch.cat([leaf.flatten() for leaf in tree_leaves(tree)]).square().mean().sqrt()


def check_inner_loop(name: str, lr: float, steps: int, proximal: float = 0.0) -> None:
    """Refuse an inner loop that makes no sense."""
    if not 0 < lr < math.inf:
        raise ValueError(f"{name} has lr={lr}: pass a positive step length, as 0.1")
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"{name} has steps={steps!r}: pass a number of gradient steps, 0 or more")
    if not 0 <= proximal < math.inf:
        raise ValueError(f"{name} has proximal={proximal}: pass a strength of at least zero")
