"""Modules that ``fully_shard`` sharded: their hooks must be around a solve, never inside of it.

It knows no solver.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["refusing_sharded_modules"]

F = TypeVar("F", bound=Callable[..., Any])


def refusing_sharded_modules(fn: F) -> F:
    """Return a function whose derivatives are asked for, as one that calls no sharded module.

    Such a module reduces gradients by hooks that plain autograd reaches, once for each call. The
    rule of a solve pulls back through the function by itself, and would pass them by. Where
    nothing can be sharded, the function is returned as it is.
    """
    kinds = _sharded_kinds()
    if not kinds or not torch.is_grad_enabled():
        return fn

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        thread = threading.get_ident()

        def refuse(module: nn.Module, _: Any) -> None:
            if isinstance(module, kinds) and threading.get_ident() == thread:
                raise RuntimeError(_refusal(module))

        handle = register_module_forward_pre_hook(refuse)
        try:
            return fn(*args)
        finally:
            handle.remove()

    return call  # type: ignore[return-value]


def _sharded_kinds() -> tuple[type, ...]:
    # whoever has sharded something has imported it, and begun a process group
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not torch.distributed.is_initialized():
        return ()
    return fsdp.FSDPModule, fsdp.FullyShardedDataParallel


def _refusal(module: nn.Module) -> str:
    # fully_shard() makes a subclass, FSDPLinear of Linear
    name = type(module).__name__.removeprefix("FSDP")
    return (
        f"the function of a solve calls a module of class {name} that fully_shard() has sharded "
        "by itself: the derivative of the solve would pass by its hooks, and leave gradients None "
        "or unreduced. Shard what is around the solve: the layer, not the cell, as in "
        "fully_shard(ims.nn.FixedPoint(cell)), or the module whose forward calls the solver"
    )
