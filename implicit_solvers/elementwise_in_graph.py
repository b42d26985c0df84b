"""Elementwise functions as operators, which a compiled graph calls without looking inside.

Values and partial derivatives loop, ask the host, and work in place: nothing for a tracer. A graph
cannot hold them, but their number. In it there is one value, not several, and its derivatives are
of first order. Nothing here knows what a function computes.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

__all__ = ["drawn_in_graph", "evaluated_in_graph", "in_graphs"]

_NUMBERS = itertools.count()
_SPECS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def in_graphs(spec: Any) -> int:
    """Return the number under which graphs know an elementwise function while it lives."""
    number = next(_NUMBERS)
    _SPECS[number] = spec
    return number


def _evaluate(place: int, args: list[Tensor]) -> Tensor:
    spec: Any = _SPECS[place]
    value = spec.value(*args)
    if isinstance(value, tuple):
        raise NotImplementedError(f"{spec.label} in a compiled graph has several values")
    return value


def _like(place: int, args: list[Tensor]) -> Tensor:
    return torch.empty_like(args[0], memory_format=torch.contiguous_format)


@torch.library.custom_op("implicit_solvers::elementwise", mutates_args=())
def evaluated_in_graph(place: int, args: list[Tensor]) -> Tensor:
    """Evaluate an elementwise function."""
    return _evaluate(place, args).contiguous()


@torch.library.custom_op(
    "implicit_solvers::draw", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def drawn_in_graph(place: int, args: list[Tensor]) -> Tensor:
    """Evaluate an elementwise function that draws random numbers."""
    return _evaluate(place, args).contiguous()


@torch.library.custom_op("implicit_solvers::elementwise_slopes", mutates_args=())
def slopes_in_graph(
    place: int, value: Tensor, args: list[Tensor], wanted: list[bool]
) -> list[Tensor]:
    """Return the partial derivatives that are wanted, zero where there is none."""
    spec: Any = _SPECS[place]
    columns = spec.columns((value, *args), wanted)
    pairs = zip(columns, wanted, strict=True)
    return [torch.zeros_like(value) if c is None else 1 * c[0] for c, w in pairs if w]


evaluated_in_graph.register_fake(_like)
drawn_in_graph.register_fake(_like)
slopes_in_graph.register_fake(
    lambda place, value, args, wanted: [torch.empty_like(value) for w in wanted if w]
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.place, args = inputs
    ctx.wanted = [t.requires_grad for t in args]
    ctx.save_for_backward(output, *args)


def _pull(ctx: Any, cotangent: Tensor) -> tuple[None, list[Tensor | None]]:
    value, *args = ctx.saved_tensors
    slopes = iter(slopes_in_graph(ctx.place, value, args, ctx.wanted))
    return None, [cotangent * next(slopes) if w else None for w in ctx.wanted]


evaluated_in_graph.register_autograd(_pull, setup_context=_keep)
