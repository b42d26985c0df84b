"""The memory of live tensors, counted exactly; it knows nothing of solvers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, UntypedStorage

from implicit_solvers.torch_internals import TorchDispatchMode

__all__ = ["LiveMemory"]


class LiveMemory(TorchDispatchMode):
    """Count the bytes of the tensors that are made inside the context and still alive.

    It sees every operation below autograd and ``torch.func``, so that what they keep for a
    backward pass counts until it is freed. A storage counts once, however many views it has, and
    not at all if it was there before. What a kernel allocates and frees by itself is not seen.

    Attributes
    ----------
    live, peak
        Bytes now, and at most.

    Examples
    --------
    >>> import torch
    >>> with LiveMemory() as memory:
    ...     x = torch.zeros(1000)
    ...     y = (2 * x).view(10, 100)
    ...     del x
    >>> memory.live, memory.peak
    (4000, 8000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if id(storage) not in self._known:
                there_before = any(t.untyped_storage() is storage for t in _tensors([args, kwargs]))
                self._add(storage, 0 if there_before else storage.nbytes())
        return out

    def _add(self, storage: UntypedStorage, size: int) -> None:
        key = id(storage)

        def freed(_: object) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Return the tensors among the arguments or results of an operation; faster than pytrees."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
