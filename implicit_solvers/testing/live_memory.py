"""The memory of live tensors, counted exactly; it knows nothing of solvers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from implicit_solvers.torch_internals import TorchDispatchMode, tree_map

__all__ = ["LiveMemory", "lanes_that_fit"]


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


def lanes_that_fit(memory_limit: float, work: Callable[..., Any], *data: Any) -> int:
    """Return for how many problems ``work(*data)`` fits into ``memory_limit`` bytes.

    The memory of live tensors is measured for one, two and four problems, which gives what a
    further one needs. It does not count the data, what was there before, or what a kernel of torch
    allocates for itself: leave a margin. Use the result as ``chunk_size`` of a solver, or of
    ``torch.func.vmap``.

    Parameters
    ----------
    memory_limit
        In bytes, positive.
    work
        A function of many problems, such as a solve and its backward pass.
    *data
        Pytrees of tensors, of any dtype, with the problems as first dimension, ``(problems, ...)``;
        the first one is measured.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        If one problem alone needs more, or there is none.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(2, 1000)
    >>> lanes_that_fit(1e6, lambda x: (x * x).exp().sum(), x)  # two tensors of 4 kB a lane
    125
    """

    def peak(lanes: int) -> int:
        own = [
            tree_map(lambda t: _repeat(t, lanes) if isinstance(t, Tensor) else t, part)
            for part in data
        ]
        with LiveMemory() as memory:
            work(*own)
        return memory.peak

    one = peak(1)
    if one > memory_limit:
        raise ValueError(
            f"memory_limit={memory_limit:.3g} bytes, and one alone needs {one:.3g}: raise the "
            "limit, or do the work in a way that needs less"
        )
    two = peak(2)  # one alone may go another way
    another = max((peak(4) - two) // 2, 1)
    return max(1, 2 + int((memory_limit - two) // another))


def _repeat(data: Tensor, lanes: int) -> Tensor:
    if len(data) == 0:
        raise ValueError("data hold no problem: pass at least one to measure")
    return torch.cat([data[:1]] * lanes)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Return the tensors among the arguments or results of an operation; faster than pytrees."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
