"""Gradients over the lanes that did not fail.

Zero times NaN is NaN: a lane whose derivatives are not finite poisons the gradient of whatever it
shares with other lanes, even if its cotangent is zero. So failed lanes are left out by indexing,
before any product is formed. Nothing here knows a solver.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from implicit_solvers.autodiff import (
    differentiable,
    legacy_batch,
    live,
    nested_jvp,
    pushforward,
    vjp,
)
from implicit_solvers.graph_height import above
from implicit_solvers.lanes import Lanes
from implicit_solvers.solution import ConvergenceWarning
from implicit_solvers.structure import replaced
from implicit_solvers.torch_internals import Function

__all__ = ["LaneSum", "lane_gradient", "pull_back", "push_forward"]


@dataclass(frozen=True)
class LaneSum:
    """The sum over lanes of ``fn(first, *rest)``, to be differentiated in some of its tensors.

    ``first`` carries every lane, ``lanes`` says which the rest carries. ``outer`` are levels that
    were added later, over which the choice of lanes is the same; ``outer_carried`` tells for each
    of them and each tensor whether the tensor carries it. Those dimensions come before the lanes.
    """

    fn: Callable[..., Tensor]
    lanes: Lanes
    wrt: tuple[int, ...]
    outer: tuple[int, ...] = ()
    outer_carried: tuple[tuple[bool, ...], ...] = ()

    def directional(
        self, places: tuple[int, ...], wrt: tuple[int, ...], *, outputs: bool
    ) -> LaneSum:
        """Return the sum's derivative along directions that are appended to its tensors.

        Directions for ``outputs`` (cotangents) carry every outer level, tangents those of theirs.
        """
        fn, count = self.fn, 1 + len(self.lanes.carried)

        def derivative(*tensors: Tensor) -> Tensor:
            own, directions = tensors[:count], tensors[count:]

            def total(*moving: Tensor) -> Tensor:
                return fn(*replaced(own, places, moving)).sum()

            value, pull = vjp(total, *(own[place] for place in places))
            slopes = pull(torch.ones_like(value))
            return torch.stack(
                [(s.conj() * d).real.sum() for s, d in zip(slopes, directions, strict=True)]
            ).sum()

        return replace(
            self,
            fn=derivative,
            wrt=wrt,
            lanes=self.lanes.prepend().keep((*range(1, count), *places)),
            outer_carried=tuple(
                (*levels, *(outputs or levels[p] for p in places)) for levels in self.outer_carried
            ),
        )


class LaneGradient(Function):
    """The gradient of a `LaneSum` over the lanes to ``keep``; its derivatives are such again."""

    @staticmethod
    def forward(spec: LaneSum, keep: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Gather the lanes, differentiate, and scatter."""
        out = legacy_batch(LaneGradient.vmap, spec, keep, *tensors)
        return _gradient(spec, keep, tensors) if out is None else out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the inputs."""
        ctx.spec, keep, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(keep, *tensors)
        ctx.save_for_forward(keep, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the derivative along the cotangents."""
        spec = ctx.spec
        keep, *tensors = live(*ctx.saved_tensors)
        given = [(p, c) for p, c in zip(spec.wrt, live(*cotangents), strict=True) if c is not None]
        wrt = tuple(i for i, t in enumerate(tensors) if differentiable(t))
        nothing = [None] * len(tensors)
        if not given:
            return (None, None, *nothing)
        along = spec.directional(tuple(p for p, _ in given), wrt, outputs=True)
        out = LaneGradient.apply(along, keep, *tensors, *(c for _, c in given))
        return (None, None, *replaced(nothing, wrt, out))

    @nested_jvp
    def jvp(spec: LaneSum, saved: tuple[Tensor, ...], tangents: tuple[Any, ...]) -> Any:
        """Differentiate the derivative along the tangents."""
        keep, *tensors = saved
        given = [(i, t) for i, t in enumerate(tangents[2:]) if t is not None]
        if not given:
            return tuple(torch.zeros_like(tensors[p]) for p in spec.wrt)
        along = spec.directional(tuple(i for i, _ in given), spec.wrt, outputs=False)
        return LaneGradient.apply(along, keep, *tensors, *(t for _, t in given))

    @staticmethod
    def vmap(info: Any, in_dims: Any, spec: LaneSum, keep: Tensor, *tensors: Tensor) -> Any:
        """Add a level: outside of the choice of lanes if that does not depend on it, else in it."""
        _, keep_dim, *dims = in_dims
        size, depth = info.batch_size, len(spec.outer)
        if keep_dim is None:
            moved = [
                t if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)
            ]
            levels = (tuple(d is not None for d in dims), *spec.outer_carried)
            wider = replace(spec, outer=(size, *spec.outer), outer_carried=levels)
            out = LaneGradient.apply(wider, keep, *moved)
            return out, (0,) * len(out)
        keep = keep.movedim(keep_dim, 0)
        moved = []
        for i, (t, d) in enumerate(zip(tensors, dims, strict=True)):
            place = sum(levels[i] for levels in spec.outer_carried)
            if d is not None:
                moved.append(t.movedim(d, place))
            elif i == 0 or i in spec.wrt:
                # its gradient is one for each lane of the new level
                shape = (*t.shape[:place], size, *t.shape[place:])
                moved.append(t.unsqueeze(place).expand(shape).contiguous())
            else:
                moved.append(t)
        has = [d is not None or i == 0 or i in spec.wrt for i, d in enumerate(dims)]
        lanes = spec.lanes
        carried = tuple((h, *c) for h, c in zip(has[1:], lanes.carried, strict=True))
        lanes = replace(lanes, sizes=(size, *lanes.sizes), carried=carried)
        out = LaneGradient.apply(replace(spec, lanes=lanes), keep, *moved)
        return out, (depth,) * len(out)


def _gradient(spec: LaneSum, keep: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    lanes, shape = spec.lanes, tuple(keep.shape)
    index = keep.reshape(-1).nonzero().squeeze(-1)
    whole = len(index) == math.prod(shape) or not lanes.separable
    where = torch.unravel_index(index, shape) if shape else ()
    every = lanes.prepend()

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        first, *rest = tensors
        chosen = lanes
        if not whole:
            n = first.shape[len(shape) :]
            chosen, grid, rest = lanes.take(index, shape, rest)
            first = first.reshape((-1, *n))[index].reshape((*grid, *n))
        used = [first, *rest]
        on_lanes = chosen.over(spec.fn)

        def total(*free: Tensor) -> Tensor:
            return on_lanes(*replaced(used, spec.wrt, free)).sum()

        value, pull = vjp(total, *(used[place] for place in spec.wrt))
        out = pull(torch.ones_like(value))
        if whole:
            return tuple(out)
        return tuple(
            _scatter(g, tensors[place], every.key(where, place), len(index))
            for place, g in zip(spec.wrt, out, strict=True)
        )

    if len(index) == 0 and lanes.separable:

        def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.zeros_like(tensors[place]) for place in spec.wrt)

    for levels in reversed(spec.outer_carried):
        gradient = vmap(
            gradient, in_dims=tuple(0 if c else None for c in levels), randomness="different"
        )
    out = tuple(t.clone() for t in gradient(*tensors))
    if len(index) < math.prod(shape) and not lanes.separable:
        _warn_of_what_is_not_finite(out)
    return out


def _warn_of_what_is_not_finite(gradients: Sequence[Tensor]) -> None:
    if all(bool(torch.isfinite(g).all()) for g in gradients):
        return
    warnings.warn(
        'a derivative is not finite where problems failed: on_failure="mask" cannot leave them out '
        "while it is not known which tensors have the batch. Pass in_dims, or make the batch by "
        "torch.func.vmap",
        ConvergenceWarning,
        stacklevel=2,
    )


def _scatter(gradient: Tensor, like: Tensor, key: tuple[Tensor, ...], count: int) -> Tensor:
    """Add the gradients of the lanes to the places that they came from."""
    if not key:
        return gradient
    full = torch.zeros_like(like)
    rows = gradient.reshape((count, *like.shape[len(key) :]))
    return full.index_put(key, rows, accumulate=True)


def _paired(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the real part of ``<w, fn(v, *tensors)>`` of one lane, as a function of all these."""
    return lambda v, w, *tensors: (w.conj() * fn(v, *tensors)).real.sum(-1)


def lane_gradient(
    fn: Callable[..., Tensor],
    lanes: Lanes,
    keep: Tensor,
    tensors: Sequence[Tensor],
    wrt: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return gradients of ``<w, fn(v, *rest)>``, summed over the lanes to keep.

    They are those for the places ``wrt`` among the ``tensors``, ``(v, w, *rest)``.
    """
    return LaneGradient.apply(LaneSum(_paired(fn), lanes.prepend(), tuple(wrt)), keep, *tensors)


def pull_back(
    fn: Callable[..., Tensor],
    lanes: Lanes,
    keep: Tensor | None,
    pairs: Sequence[tuple[Tensor, Tensor]],
    tensors: Sequence[Tensor],
    places: Sequence[int],
) -> Sequence[Tensor]:
    """Return the gradient, in the tensors at ``places``, of ``<w, fn(v, *tensors)>``.

    It is summed over the ``pairs`` ``(v, w)``, and over the lanes to ``keep``, or all.
    """
    if not places:
        return []
    if keep is not None:
        wrt = [i + 2 for i in places]
        parts = [lane_gradient(fn, lanes, keep, (v, w, *tensors), wrt) for v, w in pairs]
        return [sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True)]
    on_lanes = lanes.over(fn)

    def products(*free: Tensor) -> tuple[Tensor, ...]:
        filled = replaced(tensors, places, free)
        return tuple(on_lanes(v, *filled) for v, _ in pairs)

    with above([*(v for v, _ in pairs), *tensors]):
        pull = vjp(products, *(tensors[i] for i in places))[1]
    slopes: Sequence[Tensor] = pull(tuple(w for _, w in pairs))
    return slopes


def push_forward(
    fn: Callable[..., Tensor],
    lanes: Lanes,
    keep: Tensor | None,
    v: Tensor,
    out: Tensor,
    tensors: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    places: Sequence[int],
) -> Tensor:
    """Return the derivative of ``fn(v, *tensors)`` along the tangents at ``places``.

    It is like ``out``, and zero in lanes not to ``keep``, for which it is the gradient, in ``w``,
    of the derivative of ``<w, fn>``.
    """
    moving = [t.to(tensors[i].dtype) for i in places if (t := tangents[i]) is not None]
    if keep is None:
        on_lanes = lanes.over(fn)

        def product(*free: Tensor) -> Tensor:
            return on_lanes(v, *replaced(tensors, places, free))

        return pushforward(product, [tensors[i] for i in places], moving)
    spec = LaneSum(_paired(fn), lanes.prepend(), (1,))
    along = spec.directional(tuple(i + 2 for i in places), (1,), outputs=False)
    return LaneGradient.apply(along, keep, v, torch.zeros_like(out), *tensors, *moving)[0]
