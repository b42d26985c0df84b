"""Whether what runs here becomes part of a graph; what cannot runs outside of it, or is refused.

It knows nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling  # noqa: TID251

from implicit_solvers.torch_internals import (
    break_graph,
    detect_fake_mode,
    is_batchedtensor,
    tree_leaves,
)

__all__ = [
    "COMPILES",
    "cached_property",
    "common_obstacle",
    "compiling",
    "outside_of_graphs",
    "solver_obstacle",
]

T = TypeVar("T")

COMPILES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Whether torch is recent enough: what is older has not been seen to trace a solve."""


def compiling() -> bool:
    """Tell whether ``torch.compile`` or ``torch.export`` traces what this thread runs.

    ``torch.compiler.is_compiling`` is true in every thread while one of them compiles: a solve in
    another would take itself to be in a graph. Dynamo evaluates the first two terms to constants.
    It compiles no function by itself that names neither a tensor nor the module ``torch``: from
    what it left out, this one is called as it is.
    """
    return is_compiling() and (is_dynamo_compiling() or detect_fake_mode() is not None)


def common_obstacle(what: str, on_failure: str, tensors: Any) -> str | None:
    """Say why a solve cannot be part of a graph, whatever the solver; None if nothing is known."""
    what = f"implicit_solvers: {what} in a compiled graph"
    if on_failure != "mask":
        return f'{what} needs on_failure="mask", and it is "{on_failure}"'
    if not COMPILES:
        return f"{what} needs torch 2.13 or later, and this is {torch.__version__}"
    if any(isinstance(leaf, Tensor) and is_batchedtensor(leaf) for leaf in tree_leaves(tensors)):
        return (
            f"{what} cannot be inside of torch.func.vmap, for which torch.while_loop has no rule: "
            "use batch_dims (and in_dims)"
        )
    return None


def solver_obstacle(where: str, solver: Any) -> str | None:
    """Say why a solver, or the linear solver in it, cannot be part of a graph; None if it can."""
    parts = (getattr(solver, name, None) for name in ("linear_solver", "preconditioner"))
    for part in (solver, *parts):
        if part is not None and not getattr(part, "traceable", False):
            name = type(part).__name__
            return (
                f"implicit_solvers: {where} in a compiled graph cannot use {name}(), which is not "
                "traceable: use Newton(), LBFGS(), LU() or GMRES(), or another solver, or other "
                "settings of it, with traceable=True"
            )
    return None


def outside_of_graphs(why: str, fn: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Break the graph, and call ``fn`` outside of it; refuse where no break is allowed."""
    if torch.compiler.is_exporting():
        raise ValueError(why)
    break_graph(why)
    return torch.compiler.disable(fn)(*arguments, **options)


class cached_property(Generic[T]):
    """``functools.cached_property`` that can be compiled.

    That takes a lock before Python 3.12, which Dynamo cannot trace.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        value = self.compute(instance)
        if not compiling():
            instance.__dict__[self.name] = value
        return value
