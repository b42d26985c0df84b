"""What a linear solve keeps for its derivatives. It knows no solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.torch_internals import version

__all__ = ["SolveMemory"]


class SolveMemory:
    """What one linear solve keeps for its derivatives, beside the tensors that autograd saves.

    The solve makes it, and its maps (`LaneMap`) carry it to the solver: ``factorizations`` that are
    no tensors, by their numbers, and the operators' tensors in a lower precision.
    """

    def __init__(self) -> None:
        self.factorizations: dict[int, Any] = {}
        self._rounded: dict[tuple[str, int], tuple[Tensor, int, Tensor]] = {}

    def rounded(self, tensors: Sequence[Tensor], name: str, dtype: torch.dtype) -> list[Tensor]:
        """Return the tensors of the operator called ``name``; those of other kinds as they are.

        One is rounded again if it is another than before, or was written to.
        """
        return [self._round(t, (name, place), dtype) for place, t in enumerate(tensors)]

    def _round(self, tensor: Tensor, key: tuple[str, int], dtype: torch.dtype) -> Tensor:
        if tensor.dtype not in (torch.float64, torch.complex128):
            return tensor
        if tensor.is_complex():
            dtype = dtype.to_complex()
        if tensor.is_inference():  # it has no version
            return tensor.to(dtype)
        known = self._rounded.get(key)
        if known is not None and known[2].dtype == dtype and _unchanged(known[0], known[1], tensor):
            return known[2]
        source = tensor.detach()  # shares the version
        self._rounded[key] = source, version(source), source.to(dtype)
        return self._rounded[key][2]


def _unchanged(source: Tensor, before: int, tensor: Tensor) -> bool:
    same = source.data_ptr() == tensor.data_ptr() and source.dtype == tensor.dtype
    alike = source.shape == tensor.shape and source.stride() == tensor.stride()
    return same and alike and version(source) == before and source.is_conj() == tensor.is_conj()
