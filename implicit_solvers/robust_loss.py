"""Robust fits: residuals transformed such that half of their squares is the robust objective.

``r~ = r sqrt(rho(s) / s)`` with ``s = (r / f_scale)^2``, so that ``|r~|^2 / 2`` is
``f_scale^2 / 2 sum_i rho(s_i)``. Source: Hartley and Zisserman, "Multiple View Geometry in Computer
Vision" (2004), appendix 6.8. It knows no solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.autodiff import vjp
from implicit_solvers.task import name_of
from implicit_solvers.torch_internals import tree_leaves, tree_map

__all__ = ["check_loss", "robust"]

Function = Callable[[Tensor], Tensor]

# the five points of Gauss and Legendre in [0, 1], and their weights
_ROOTS = [math.sqrt(5 + sign * 2 * math.sqrt(10 / 7)) / 3 for sign in (-1, 1)]
_SHARES = [(322 + sign * 13 * math.sqrt(70)) / 1800 for sign in (1, -1)]
_NODES = [(0.5, 64 / 225)]
_NODES += [
    ((1 + sign * x) / 2, w) for x, w in zip(_ROOTS, _SHARES, strict=True) for sign in (-1, 1)
]
_ROUNDINGS = 8.0


class _Loss(NamedTuple):
    """``rho(s) / s``, and beyond ``x = sqrt(s) = edge`` the function ``far(x)`` that is ``rho``.

    The latter overflows for no ``x``.
    """

    ratio: Function
    far: Function
    edge: float


def _mean(slope: Function, low: Tensor, high: Tensor) -> Tensor:
    """Return the mean of the slope between two ends, by quadrature."""
    points = (w * slope(low + t * (high - low)) for t, w in _NODES)
    return sum(points, torch.zeros_like(high))


def _ratio(rho: Function, slope: Function, is_small: Function) -> Function:
    """Return ``rho(s) / s``; near zero, where that cancels, the mean of the slope up to ``s``."""

    def ratio(s: Tensor) -> Tensor:
        small = is_small(s)
        near, far = torch.where(small, s, 0.0), torch.where(small, 1.0, s)
        mean = _mean(slope, torch.zeros_like(near), near)
        return torch.where(small, mean, rho(far) / far)

    return ratio


_LOSSES = {
    "soft_l1": _Loss(
        lambda s: 2 / (1 + (1 + s).sqrt()),
        lambda x: 2 * x * ((1 + (1 / x) ** 2).sqrt() - 1 / x),
        10.0,
    ),
    "huber": _Loss(torch.ones_like, lambda x: 2 * x - 1, 1.0),
    "cauchy": _Loss(
        _ratio(torch.log1p, lambda s: 1 / (1 + s), lambda s: s < 0.1),
        lambda x: 2 * x.log() + torch.log1p((1 / x) ** 2),
        10.0,
    ),
    "arctan": _Loss(
        _ratio(torch.atan, lambda s: 1 / (1 + s**2), lambda s: s < 0.1),
        lambda x: math.pi / 2 - torch.atan((1 / x) ** 2),
        10.0,
    ),
}


def _of_callable(rho: Function) -> Function:
    """Return ``rho(s) / s`` of the user's function; its value at zero counts for nothing."""

    def checked(s: Tensor) -> Tensor:
        out = rho(s)
        if not isinstance(out, Tensor) or out.shape != s.shape or out.dtype != s.dtype:
            given = (
                f"{out.dtype} of shape {tuple(out.shape)}"
                if isinstance(out, Tensor)
                else f"a {type(out).__name__}"
            )
            raise ValueError(
                f"loss returned {given} for squares that are {s.dtype} of shape {tuple(s.shape)}: "
                "return rho(s), a tensor like s, one entry for each"
            )
        return out

    def slope(s: Tensor) -> Tensor:
        value, pull = vjp(checked, s)
        pulled: Tensor = pull(torch.ones_like(value))[0]
        return pulled

    def is_small(s: Tensor) -> Tensor:
        """Tell where quadrature is exact: on the loss's own scale, which nobody has told."""
        s = s.detach()
        zero, middle = torch.zeros_like(s), 0.5 * s
        whole = _mean(slope, zero, s)
        halves = 0.5 * (_mean(slope, zero, middle) + _mean(slope, middle, s))
        near = (whole - halves).abs() < _ROUNDINGS * torch.finfo(s.dtype).eps * whole.abs()
        return near | (s == 0)

    return _ratio(lambda s: checked(s) - checked(torch.zeros_like(s)), slope, is_small)


def robust(fn: Callable[..., Any], loss: str | Function, has_aux: bool) -> Callable[..., Any]:
    """Return the transformed residuals of ``fn``, a function of ``f_scale`` too, its last argument.

    The scale is a number, or a tensor: 0-d, or with one entry for each lane.
    """
    chosen = _LOSSES[loss] if isinstance(loss, str) else _of_callable(loss)

    def residuals(z: Any, *args: Any) -> Any:
        *own, scale = args
        out = fn(z, *own)
        if not has_aux:
            return tree_map(partial(_transformed, loss=chosen, scale=scale), out)
        if isinstance(out, tuple) and len(out) == 2:
            return tree_map(partial(_transformed, loss=chosen, scale=scale), out[0]), out[1]
        return out

    residuals.__name__ = name_of(fn)
    residuals.__wrapped__ = fn  # type: ignore[attr-defined]
    return residuals


def _transformed(r: Any, loss: _Loss | Function, scale: Any) -> Any:
    """Return ``r~``; a complex residual keeps its argument, and has its modulus transformed."""
    if not isinstance(r, Tensor) or not (r.is_floating_point() or r.is_complex()):
        return r  # which is refused
    if isinstance(scale, Tensor):
        scale = scale.to(r.real.dtype).reshape((*scale.shape, *(1,) * (r.dim() - scale.dim())))
        scale = torch.where(scale > 0, scale, torch.nan)
    x = r / scale
    if not isinstance(loss, _Loss):
        return scale * x * loss(_squares(x)).sqrt()
    far = x.abs() > loss.edge
    near = torch.where(far, 0.0, x)
    x = torch.where(far, x, 1.0)
    size = x.abs()
    beyond = x / size * loss.far(torch.where(far, size, loss.edge)).sqrt()
    return scale * torch.where(far, beyond, near * loss.ratio(_squares(near)).sqrt())


def _squares(x: Tensor) -> Tensor:
    return x.real**2 + x.imag**2 if x.is_complex() else x**2


def check_loss(loss: Any, f_scale: Any, z0: Any, batch_dims: int) -> None:
    """Refuse a loss that is none, and a scale that is none or has other lanes than the start."""
    names = '"linear", ' + ", ".join(f'"{name}"' for name in _LOSSES)
    if not isinstance(loss, str) and (not callable(loss) or isinstance(loss, type)):
        raise TypeError(
            f"loss is a {type(loss).__name__}: pass {names}, or a function rho(s) of the squares"
        )
    if isinstance(loss, str) and loss != "linear" and loss not in _LOSSES:
        raise ValueError(f"loss is {loss!r}: pass {names}, or a function rho(s) of the squares")
    if not isinstance(f_scale, Tensor):
        if isinstance(f_scale, bool) or not isinstance(f_scale, Real):
            raise TypeError(
                f"f_scale is a {type(f_scale).__name__}: pass a number > 0, or a floating tensor"
            )
        if not 0 < float(f_scale) < math.inf:
            raise ValueError(f"f_scale is {f_scale!r}: pass a number > 0")
        return
    if not f_scale.is_floating_point():
        raise TypeError(f"f_scale is {f_scale.dtype}: pass a number > 0, or a floating tensor")
    lanes = [tuple(t.shape[:batch_dims]) for t in tree_leaves(z0)[:1] if isinstance(t, Tensor)]
    if tuple(f_scale.shape) not in ((), *lanes):
        raise ValueError(
            f"f_scale has the shape {tuple(f_scale.shape)}: pass one number, or one for each "
            f"problem{f' {lanes[0]}' if lanes and batch_dims else ' of batch_dims'}"
        )
