"""``compile=True``: a solver's step as one compiled graph, in the loop that stays in Python."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from implicit_solvers import graph_break
from implicit_solvers.autodiff import saved_tensor_hooks_restored

__all__ = ["bucket", "compilable", "compiled_step", "in_own_memory", "padded"]

LIMIT = 64
"""How many graphs one step of one function may have: for dtypes, shapes, changed closures."""

_BUCKET = 8

# The step of each solver for each user's function, or for the code of it.
_STEPS: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def compilable(solver: Any, problem: Any) -> bool:
    """Tell whether a solve's steps are to be compiled, and can be.

    Where captured tensors are substituted, under transforms, Dynamo would not see that.
    """
    return getattr(solver, "compile", False) and not getattr(problem, "substitutes", False)


def compiled_step(solver: Any, problem: Any) -> Callable[[Any, Any], Any]:
    """Return ``step(problem, state)`` of a solver, compiled for the function of a problem.

    Each pair of a solver and a function has a code object of its own: Dynamo counts the graphs of
    a code object, and would fall back to eager execution, silently, after a few.
    """
    if not graph_break.COMPILES:
        raise RuntimeError(
            f"{type(solver).__name__}(compile=True) needs torch 2.13 or later, and this is "
            f"{torch.__version__}: leave compile out"
        )
    anchor = _anchor(problem.source)
    steps = _STEPS.setdefault(anchor, {})
    if solver not in steps:
        code = _step.__code__.replace(co_name=f"{type(solver).__name__}_step")
        own = types.FunctionType(code, _step.__globals__)
        steps[solver] = _guarded(
            torch.compile(own, fullgraph=True), f"{type(solver).__name__}(compile=True)"
        )
    return partial(steps[solver], solver)


def _step(solver: Any, problem: Any, state: Any) -> Any:
    new = solver.step(problem, state)
    # factors come with strides of their own, at which the next call would compile again
    return tree_map_only(Tensor, lambda t: t.contiguous(), new)


def _guarded(step: Callable[..., Any], name: str) -> Callable[..., Any]:
    config = torch._dynamo.config

    def call(*args: Any) -> Any:
        # config.patch would take three times as long
        before = config.recompile_limit, config.fail_on_recompile_limit_hit
        config.recompile_limit, config.fail_on_recompile_limit_hit = LIMIT, True
        try:
            with saved_tensor_hooks_restored():
                return step(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            error.add_note(
                f"{name} compiles its step together with the function that it solves for, "
                "which could not be traced: leave compile out of it"
            )
            raise
        finally:
            config.recompile_limit, config.fail_on_recompile_limit_hit = before

    return call


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


def bucket(lanes: int) -> int:
    """Return the number of lanes to compute with: a power of two, so that few are compiled for."""
    return max(_BUCKET, 1 << (lanes - 1).bit_length())


def padded(keep: Tensor, size: int) -> Tensor:
    """Return ``size`` indices: the first is repeated after the others."""
    return torch.cat([keep, keep[:1].expand(size - len(keep))])
