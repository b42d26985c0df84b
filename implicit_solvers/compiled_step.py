"""``compile=True``: some steps of a solver as a compiled graph, in a loop that stays in Python.

It knows no solver: a step is a function of a state.
"""

from __future__ import annotations

import threading
import types
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.compiling import COMPILES
from implicit_solvers.torch_internals import (
    dynamo_limits,
    saved_tensor_hooks_restored,
    tree_map_only,
    untraced,
)

__all__ = [
    "apart",
    "bucket",
    "compiled_step",
    "in_own_memory",
    "padded",
    "to_compile",
]

LIMIT = 64
"""How many graphs one step of one function may have: for dtypes, shapes, changed closures."""

_BUCKET = 8

# Dynamo traces in one thread at a time.
_LOCK = threading.RLock()

# The step of each solver for each user's function, or for the code of it.
_STEPS: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def to_compile(solver: Any, problem: Any, z: Tensor) -> Any:
    """Return the problem as steps from ``z`` are compiled for it; None if they are not."""
    if not getattr(solver, "compile", False):
        return None
    form = getattr(problem, "to_compile", None)
    return None if form is None else form(z)


def compiled_step(
    step: Callable[[Any, Any, Any], Any], solver: Any, problem: Any
) -> Callable[[Any, Any], Any]:
    """Return ``step(solver, problem, state)`` compiled for the function of a problem.

    Each pair of a solver and a function has a code object of its own: Dynamo counts the graphs of
    a code object, and would fall back to eager execution, silently, after a few.
    """
    if not COMPILES:
        raise RuntimeError(
            f"{type(solver).__name__}(compile=True) needs torch 2.13 or later, and this is "
            f"{torch.__version__}: leave compile out"
        )
    anchor = _anchor(problem.source)
    with _LOCK:
        steps = _STEPS.setdefault(anchor, {})
        if solver not in steps:
            steps[solver] = _Compiled(step, type(solver).__name__)
    return partial(steps[solver], solver)


class _Compiled:
    """A step that is compiled when it is first called, or runs as it is if that cannot be."""

    def __init__(self, step: Callable[[Any, Any, Any], Any], name: str) -> None:
        self.step, self.name = step, name
        code = _contiguous.__code__.replace(co_name=f"{name}_step")
        own = types.FunctionType(code, _contiguous.__globals__)
        self.compiled = torch.compile(own, fullgraph=True)

    def __call__(self, solver: Any, problem: Any, state: Any) -> Any:
        try:
            with _LOCK, dynamo_limits(LIMIT), saved_tensor_hooks_restored():
                return self.compiled(self.step, solver, problem, state)
        except Exception as error:
            if not untraced(error):
                raise
            warnings.warn(
                f"{self.name}(compile=True) compiles its step together with the function that it "
                f"solves for, which could not be compiled, and goes on uncompiled: leave compile "
                f"out, or change the function ({str(error).strip().splitlines()[0]})",
                stacklevel=2,
            )
            self.compiled = _contiguous
            return _contiguous(self.step, solver, problem, state)


def _contiguous(step: Callable[[Any, Any, Any], Any], solver: Any, problem: Any, state: Any) -> Any:
    # factors come with strides of their own, at which the next call would compile again
    return tree_map_only(Tensor, lambda t: t.contiguous(), step(solver, problem, state))


def _anchor(source: Any) -> Any:
    """Return what stays the same when a function is defined anew: its code, or the object."""
    while isinstance(source, partial):
        source = source.func
    if isinstance(source, types.MethodType):
        source = source.__func__
    return getattr(source, "__code__", source)


def in_own_memory(state: Any) -> Any:
    """Return a state of contiguous tensors that share no memory, as its successors are."""
    return tree_map_only(Tensor, lambda t: t.clone(memory_format=torch.contiguous_format), state)


def apart(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the tensors, copied where they share memory with one before: a loop must see none."""
    seen: dict[int, Tensor] = {}
    return tuple(
        t if seen.setdefault(t.untyped_storage().data_ptr(), t) is t else t.clone() for t in tensors
    )


def bucket(lanes: int) -> int:
    """Return the number of lanes to compute with: a power of two, so that few are compiled for."""
    return max(_BUCKET, 1 << (lanes - 1).bit_length())


def padded(keep: Tensor, size: int) -> Tensor:
    """Return ``size`` indices: the first is repeated after the others."""
    return torch.cat([keep, keep[:1].expand(size - len(keep))])
