"""Differentiation through a solver's steps, for comparison with the implicit way.

It knows no concrete solver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from implicit_solvers.autodiff import (
    differentiable,
    nested_jvp,
    pushforward,
    recorded_if_asked,
    vjp,
)
from implicit_solvers.problem import EquationProblem
from implicit_solvers.structure import replaced
from implicit_solvers.torch_internals import Function

__all__ = ["unroll"]


class Segment(Function):
    """Evaluate ``fn`` without a graph, and again when its derivative is asked for."""

    @staticmethod
    def forward(fn: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Return ``fn(*tensors)``."""
        return fn(*tensors).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs."""
        ctx.spec, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @recorded_if_asked
    def backward(ctx: Any, saved: tuple[Tensor, ...], g: Tensor) -> tuple[Any, ...]:
        """Evaluate again and pull back."""
        tensors = list(saved)
        places = [i for i, t in enumerate(tensors) if differentiable(t)]
        pull = vjp(_at(ctx.spec, tensors, places), *(tensors[i] for i in places))[1]
        result: list[Any] = [None] * len(tensors)
        for place, slope in zip(places, pull(g), strict=True):
            result[place] = slope
        return (None, *result)

    @nested_jvp
    def jvp(spec: Any, saved: tuple[Tensor, ...], tangents: tuple[Any, ...]) -> Any:
        """Push forward."""
        places = [i for i, t in enumerate(saved) if differentiable(t)]
        fn = _at(spec, list(saved), places)
        return pushforward(fn, [saved[i] for i in places], [tangents[i + 1] for i in places])

    @staticmethod
    def vmap(info: Any, in_dims: Any, fn: Callable[..., Tensor], *tensors: Tensor) -> Any:
        """Batch the function."""
        batched = vmap(fn, in_dims=in_dims[1:], randomness="different")
        return Segment.apply(batched, *tensors), 0


def _at(
    fn: Callable[..., Tensor], tensors: list[Tensor], places: list[int]
) -> Callable[..., Tensor]:
    return lambda *values: fn(*replaced(tensors, places, values))


def unroll(
    solver: Any,
    problem_at: Callable[..., EquationProblem],
    z: Tensor,
    operands: list[Tensor],
    steps: int,
    counts: Tensor | None,
    checkpoint: int | None,
) -> Tensor:
    """Make ``steps`` steps from ``z (N, n)`` with a graph; return the last iterate.

    ``problem_at(*operands)`` is the problem; a lane that needed fewer steps, by ``counts``, stands
    still after those. With ``checkpoint``, the graph of that many steps is dropped and made again
    in the backward pass; between such segments a solver's memory (momentum, a window) has to be
    kept in the iterate alone, so that only solvers without memory can have them.
    """

    def run(first: int, last: int) -> Callable[..., Tensor]:
        def segment(flat: Tensor, *operands: Tensor) -> Tensor:
            problem = problem_at(*operands)
            state = solver.init(problem, flat)
            for step in range(first, last):
                new = solver.step(problem, state)
                state = new if counts is None else _stand_still(step < counts, new, state)
            return state.z

        return segment

    if checkpoint is None:
        return run(0, steps)(z, *operands)
    for first in range(0, steps, checkpoint):
        z = Segment.apply(run(first, min(first + checkpoint, steps)), z, *operands)
    return z


def _stand_still(moves: Tensor, new: Any, old: Any) -> Any:
    fields = []
    for a, b in zip(new, old, strict=True):
        if isinstance(a, Tensor):
            a = torch.where(moves.reshape((-1, *(1,) * (a.dim() - 1))), a, b)
        fields.append(a)
    return type(new)(*fields)
