"""Lanes: many problems of one shape, and the tensors that belong to each of them.

One call of the user's function handles one problem, or, with ``batch_dims``, a grid of them
(*native* lanes). Each ``torch.func.vmap`` around a solve adds a level of lanes. A tensor carries a
level if it has one entry for each lane of that level; otherwise the lanes share it. It knows
neither equations nor solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from implicit_solvers.autodiff import no_saved_tensor_hooks
from implicit_solvers.compiling import compiling
from implicit_solvers.ranks import Ranks

__all__ = ["Lanes", "lifted"]

T = TypeVar("T")


def lifted(size: int, dim: int | None, tensor: Tensor) -> Tensor:
    """Move a dimension to the front, or make one of that size there."""
    head = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return head.contiguous()


@dataclass(frozen=True)
class Lanes:
    """The lanes of a problem and which operands carry them.

    Parameters
    ----------
    sizes
        The sizes of the ``vmap`` levels, outermost first.
    carried
        For each operand and each level, whether the operand carries it. An operand's leading
        dimensions are the levels that it carries, in their order.
    native
        The number of dimensions after the levels that the function treats as lanes itself.
    native_carried
        For each operand, whether its dimensions after the levels begin with the native lanes;
        ``None`` if that is not known (no ``in_dims`` were given).
    ranks
        The processes that share the work.
    """

    sizes: tuple[int, ...] = ()
    carried: tuple[tuple[bool, ...], ...] = ()
    native: int = 0
    native_carried: tuple[bool, ...] | None = ()
    ranks: Ranks | None = None

    @staticmethod
    def of(
        operands: int,
        native: int = 0,
        native_carried: Sequence[bool] | None = None,
        ranks: Ranks | None = None,
    ) -> Lanes:
        """Return the lanes of a solve outside of any ``vmap``."""
        if native == 0:
            native_carried = (False,) * operands
        known = None if native_carried is None else tuple(native_carried)
        return Lanes((), ((),) * operands, native, known, ranks)

    def lift(
        self, size: int, dims: Sequence[int | None], operands: Sequence[Tensor]
    ) -> tuple[Lanes, list[Tensor]]:
        """Add an outermost level, which is that dimension of each operand, or none."""
        moved = [
            t if d is None else t.movedim(d, 0).contiguous()
            for t, d in zip(operands, dims, strict=True)
        ]
        carried = tuple(
            (d is not None, *levels) for d, levels in zip(dims, self.carried, strict=True)
        )
        return replace(self, sizes=(size, *self.sizes), carried=carried), moved

    def over(self, fn: Callable[..., T]) -> Callable[..., T]:
        """Make ``fn(z, *operands)`` of one lane a function of all lanes."""
        for level in reversed(range(len(self.sizes))):
            dims = (0, *(0 if levels[level] else None for levels in self.carried))
            fn = vmap(fn, in_dims=dims, randomness="different")
        if not self.sizes or compiling():
            return fn

        def on_all_lanes(*tensors: Tensor) -> T:
            if compiling():
                return fn(*tensors)
            with no_saved_tensor_hooks():
                return fn(*tensors)

        return on_all_lanes

    def keep(self, operands: Sequence[int]) -> Lanes:
        """Return the lanes for a selection of the operands."""
        known = self.native_carried
        return replace(
            self,
            carried=tuple(self.carried[i] for i in operands),
            native_carried=None if known is None else tuple(known[i] for i in operands),
        )

    def insert(self, place: int, count: int, levels: Sequence[bool], native: bool) -> Lanes:
        """Return the lanes with ``count`` more operands at a place, which carry those levels."""
        carried, known = self.carried, self.native_carried
        more = (native,) * count
        return replace(
            self,
            carried=(*carried[:place], *(tuple(levels),) * count, *carried[place:]),
            native_carried=None if known is None else (*known[:place], *more, *known[place:]),
        )

    def prepend(self, place: int = 0) -> Lanes:
        """Return the lanes with one more operand, at a place, that carries every lane."""
        return self.insert(place, 1, (True,) * len(self.sizes), True)

    def shared(self, count: int) -> Lanes:
        """Return the lanes with ``count`` more operands in front that all of them share."""
        return self.insert(0, count, (False,) * len(self.sizes), False)

    def shared_levels(self) -> tuple[int, ...]:
        """Return the levels that no operand carries."""
        return tuple(
            i for i in range(len(self.sizes)) if not any(levels[i] for levels in self.carried)
        )

    def without(self, levels: Sequence[int]) -> Lanes:
        """Drop ``levels``, which no operand carries."""
        kept = [i for i in range(len(self.sizes)) if i not in levels]
        return replace(
            self,
            sizes=tuple(self.sizes[i] for i in kept),
            carried=tuple(tuple(c[i] for i in kept) for c in self.carried),
        )

    @property
    def separable(self) -> bool:
        """Whether single lanes can be evaluated without the others."""
        return self.native_carried is not None

    def key(self, where: Sequence[Tensor], place: int) -> tuple[Tensor, ...]:
        """Return where an operand has the entries of the lanes that are ``where`` in their grid."""
        assert self.native_carried is not None
        levels = [i for i, carries in enumerate(self.carried[place]) if carries]
        native = where[len(self.sizes) :] if self.native_carried[place] else ()
        return (*(where[i] for i in levels), *native)

    def carriers(self, operands: Sequence[Tensor]) -> list[Tensor]:
        """Return the operands that have entries for lanes, or may have."""
        native = self.native_carried or (self.native_carried is None,) * len(operands)
        known = zip(operands, native, self.carried, strict=True)
        return [operand for operand, own, levels in known if own or any(levels)]

    def take(
        self, index: Tensor, shape: Sequence[int], operands: Sequence[Tensor]
    ) -> tuple[Lanes, tuple[int, ...], list[Tensor]]:
        """Select lanes by their flat ``index`` into a grid of lanes of the given ``shape``.

        Returns the lanes of the selection, the shape of their grid, and the operands gathered.
        """
        if self.native_carried is None:
            raise ValueError("lanes of batch_dims without in_dims cannot be selected")
        levels = len(self.sizes)
        where = (index,) if len(shape) == 1 else torch.unravel_index(index, tuple(shape))
        gathered = []
        for place, operand in enumerate(operands):
            key = self.key(where, place)
            if not key:
                gathered.append(operand)
                continue
            picked = operand[key]
            # the native lanes of a selected lane are a grid of ones
            native = self.native if levels else self.native - 1
            ones = (1,) * native if self.native_carried[place] else ()
            gathered.append(picked.reshape(len(index), *ones, *picked.shape[1:]))
        if levels == 0:
            return self, (len(index), *(1,) * (self.native - 1)), gathered
        carried = tuple(
            (any(c) or n,) for c, n in zip(self.carried, self.native_carried, strict=True)
        )
        lanes = replace(self, sizes=(len(index),), carried=carried)
        return lanes, (len(index), *(1,) * self.native), gathered
