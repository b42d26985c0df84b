"""A function of lanes that says, where it fails, which of its tensors is likely to be wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.solution import ConvergenceError
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import tree_leaves

__all__ = ["ExplainedCall", "is_of_devices"]


class _Explained(ValueError, RuntimeError):
    """What torch refused: whoever goes on without what raises a RuntimeError still does."""


class ExplainedCall:
    """Call a raveled ``fn(z, *tensors)``; what it raises is explained, where that can be told.

    ``join`` puts the tensors back into the user's arguments, and ``in_dims`` is what the user said
    of those.
    """

    def __init__(
        self,
        fn: Callable[..., Tensor],
        structure: Structure,
        join: Callable[[Sequence[Tensor]], Any],
        in_dims: Any,
    ) -> None:
        self.fn, self.structure, self.join, self.in_dims = fn, structure, join, in_dims
        self.__wrapped__ = fn

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """Return what the function returns."""
        if compiling():
            return self.fn(z, *tensors)
        try:
            return self.fn(z, *tensors)
        except ConvergenceError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            why = next(self._reasons(error, z, tensors), None)
            if why is None:
                raise
            raised = _Explained if isinstance(error, RuntimeError) else ValueError
            raise raised(f"{why} ({type(error).__name__}: {error})") from error

    def _reasons(self, error: Exception, z: Tensor, tensors: Sequence[Tensor]) -> Iterator[str]:
        for i, arg in enumerate(self.join(tensors)):
            for leaf in tree_leaves(arg):
                if isinstance(leaf, Tensor) and leaf.device != z.device and _matters(leaf):
                    yield (
                        f"args[{i}] is on {leaf.device} and z0 on {z.device}: move it, as "
                        f'.to("{z.device}")'
                    )
        if is_of_devices(error):
            yield (
                f"a tensor that the function uses is on another device than z0, {z.device}: move "
                f'it, as .to("{z.device}")'
            )
        lanes = z.shape[:-1]
        if self.in_dims is not None and lanes != self.structure.native:
            yield (
                f"the function fails on {lanes.numel()} of {_count(self.structure.native)} lanes, "
                "which go on when the others have ended. A tensor with an entry for each lane that "
                "it captures is not cut to those: pass it in args, with 0 in in_dims"
            )


def is_of_devices(error: Exception) -> bool:
    """Tell whether torch refused tensors of several devices."""
    return re.search("not on the expected device|tensors to be on the same", str(error)) is not None


def _matters(leaf: Tensor) -> bool:
    """Tell whether torch minds the device of a tensor: numbers of the CPU go with any."""
    return leaf.dim() > 0 or leaf.device.type != "cpu"


def _count(lanes: tuple[int, ...]) -> int:
    return torch.Size(lanes).numel()
