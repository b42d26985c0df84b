"""Pullbacks that do not walk through what a function's tensors were made of.

Before torch's engine pulls back, it walks through the graph, and leaves out only nodes that are too
low to lead to what it was asked for: a node stands one higher than the highest that it was made of.
On the way to a leaf, which is lowest, it walks through all there is: in a recurrent network through
all steps before, for each product with a Jacobian. A `point` stands higher than what `above` was
told of.

This file knows of graphs only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.torch_internals import forward_level, transforms_active

__all__ = ["above", "ends_at", "point"]


class _Above(torch.autograd.Function):
    """A tensor whose node stands above those of others. Nothing flows to these."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, *_: Tensor) -> Tensor:
        """Return the tensor."""
        ctx.set_materialize_grads(False)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """End here."""
        return (None,) * len(ctx.needs_input_grad)


class _Thread(threading.local):
    """What points stand above in this thread."""

    below: tuple[Tensor, ...] = ()


_THREAD = _Thread()


@contextlib.contextmanager
def above(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let every `point` that is made inside stand above the nodes of ``tensors``."""
    before = _THREAD.below
    if _plain():
        _THREAD.below = (*before, *(t for t in tensors if t.grad_fn))
    try:
        yield
    finally:
        _THREAD.below = before


def point(tensor: Tensor) -> Tensor:
    """Return a tensor where graphs that are recorded from here on end, as at a leaf."""
    if not (_plain() and _THREAD.below):
        return tensor.detach().requires_grad_()
    with torch.enable_grad():
        made: Tensor = _Above.apply(tensor, *_THREAD.below)
    return made


def _plain() -> bool:
    return not (compiling() or transforms_active() or forward_level())


def ends_at(node: Any) -> bool:
    """Tell whether a graph ends at a node: it is that of a `point`."""
    return node.name() == "_AboveBackward"
