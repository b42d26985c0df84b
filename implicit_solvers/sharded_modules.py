"""Modules that ``fully_shard`` sharded: a solve that calls one is one forward pass of it.

Its parameters are gathered when the solve first calls it and stay until the solve is over; its
hooks are quiet meanwhile. What the solve returns is then its output, whose gradient gathers them
again, and the end of the backward pass reduces theirs. It knows no solver.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from implicit_solvers.torch_internals import ShardedForward, transforms_active

__all__ = ["Gathered", "gathering"]


_WRAPPED = (
    "the function of a solve calls a module that FullyShardedDataParallel has wrapped, and the "
    "derivative of the solve would pass by its hooks: use fully_shard()"
)
_TRANSFORMED = (
    "the function of a solve calls a module that fully_shard() has sharded, under a transform of "
    "torch.func, which its hooks do not go through: use backward(), and batch_dims for batches"
)


class Gathered:
    """The sharded modules that a solve has called, in their order."""

    def __init__(self) -> None:
        self.forwards: dict[nn.Module, ShardedForward] = {}

    def returned(self, value: Any) -> Any:
        """Return what the modules put out together, with a hook for the backward pass of each."""
        while self.forwards:
            value = self.forwards.popitem()[1].end(value)
        return value


def gathering(isolated: Any) -> Any:
    """Gather the parameters of each sharded module that is called within, once.

    Where nothing can be sharded, nothing happens. What gathers is ``isolated`` from recordings.
    """
    # whoever has sharded something has imported it, and begun a process group
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not torch.distributed.is_initialized():
        return contextlib.nullcontext(Gathered())
    return _gathering(fsdp, isolated)


@contextlib.contextmanager
def _gathering(fsdp: Any, isolated: Any) -> Iterator[Gathered]:
    gathered, thread = Gathered(), threading.get_ident()

    def gather(module: nn.Module, _: Any) -> None:
        if threading.get_ident() != thread:
            return
        if isinstance(module, fsdp.FullyShardedDataParallel) and torch.is_grad_enabled():
            raise RuntimeError(_WRAPPED)
        if isinstance(module, fsdp.FSDPModule) and module not in gathered.forwards:
            if transforms_active():
                raise RuntimeError(_TRANSFORMED)
            with isolated():
                if (forward := ShardedForward(module)).begin():
                    gathered.forwards[module] = forward

    handle = register_module_forward_pre_hook(gather)
    try:
        yield gathered
    finally:
        handle.remove()
        gathered.returned(None)
