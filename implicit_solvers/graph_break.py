"""What cannot be part of a compiled graph runs outside of it, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.utils._pytree import tree_leaves

from implicit_solvers.autodiff import is_batchedtensor

__all__ = ["COMPILES", "common_obstacle", "frames_compiled", "outside_of_graphs", "solver_obstacle"]

COMPILES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Whether torch is recent enough: what is older has not been seen to trace a solve."""


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
    for part in (solver, getattr(solver, "linear_solver", None)):
        if part is not None and not getattr(part, "traceable", False):
            name = type(part).__name__
            return (
                f"implicit_solvers: {where} in a compiled graph cannot use {name}(), which is not "
                "traceable: use Newton(), LBFGS(), LU() or GMRES(), or another solver, or other "
                "settings of it, with traceable=True"
            )
    return None


def frames_compiled() -> bool:
    """Tell whether Dynamo compiles the functions that are called from here, one by one.

    It does where it could not put a call in a graph. A solve is not made for that: parts of it
    would take themselves to be in a graph.
    """
    return get_eval_frame_callback() not in (None, False)


def outside_of_graphs(why: str, fn: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Break the graph, and call ``fn`` outside of it; refuse where no break is allowed."""
    if torch.compiler.is_exporting():
        raise ValueError(why)
    torch._dynamo.graph_break(msg=why)
    return torch.compiler.disable(fn)(*arguments, **options)
