"""Loops inside a compiled graph: ``torch.while_loop`` over a solver's state. It knows no solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.torch_internals import tree_flatten, tree_unflatten

__all__ = ["alias", "inside", "loop_in_graph", "repeat"]


def loop_in_graph(
    going: Callable[[Any], Tensor], body: Callable[[Any], Any], carry: Any, most: int | None = None
) -> Any:
    """Return ``body`` applied to ``carry`` while ``going(carry)``, at most ``most`` times.

    ``carry`` is a pytree; what is no tensor in it must not change, nor may shapes and dtypes.
    """
    leaves, tree = tree_flatten(carry)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    device = leaves[places[0]].device

    def fill(tensors: Sequence[Tensor]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return tree_unflatten(filled, tree)

    def condition(count: Tensor, *tensors: Tensor) -> Tensor:
        on = going(fill(tensors))
        return on if most is None else on & (count < most)

    def advance(count: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        new, new_tree = tree_flatten(body(fill(tensors)))
        if new_tree != tree:
            raise RuntimeError(f"a step changed the form of its state from {tree} to {new_tree}")
        return count + 1, *(_own(new[place]) for place in places)

    count = torch.zeros((), dtype=torch.int64, device=device)
    _, *out = torch.while_loop(condition, advance, (count, *(_own(leaves[i]) for i in places)))
    return fill(out)


def repeat(
    going: Callable[[Any], Tensor], body: Callable[[Any], Any], carry: Any, most: int
) -> Any:
    """Return ``body`` applied to ``carry`` while ``going(carry)``, at most ``most`` times.

    In a compiled graph it is `loop_in_graph`; with ``most=1`` it is a branch.
    """
    if compiling():
        return loop_in_graph(going, body, carry, most)
    for _ in range(most):
        if not bool(going(carry)):
            break
        carry = body(carry)
    return carry


def inside(problem: Any) -> Any:
    """Return a problem as the body of `repeat` has to see it."""
    return problem.aliased() if compiling() else problem


def alias(tensor: Tensor) -> Tensor:
    """Return a view of all of a tensor.

    Dynamo cannot read attributes, as ``W.T``, of a tensor from outside of the body of a loop where
    ``torch.func`` transforms in it; a view that is made in the body is from inside.
    """
    return tensor.view_as(tensor)


def _own(tensor: Tensor) -> Tensor:
    """Return a copy: what goes around may share no memory, and keeps its strides."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)
