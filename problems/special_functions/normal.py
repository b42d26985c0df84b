"""The tails of the normal distribution, in logarithms."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

import implicit_solvers as ims

__all__ = ["LOG_ROOT", "legendre_nodes", "log_normal_tails", "mills_ratio"]

LOG_ROOT = 0.5 * math.log(2 * math.pi)
ASYMPTOTIC_ABOVE = 25.0


@functools.cache
def legendre_nodes(count: int) -> tuple[tuple[float, float], ...]:
    """Return pairs of node and weight of the Gauss-Legendre rule on [0, 1].

    Examples
    --------
    >>> round(sum(w * x**5 for x, w in legendre_nodes(3)), 12)
    0.166666666667
    """
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return tuple((float(x), float(w)) for x, w in zip((nodes + 1) / 2, weights / 2, strict=True))


def _hazard_value(x: Tensor) -> Tensor:
    below = math.sqrt(2 / math.pi) / torch.special.erfcx(-x / math.sqrt(2))
    above = (-0.5 * x * x - LOG_ROOT - torch.special.log_ndtr(x)).exp()
    return torch.where(x < 0, below, above)


_hazard = ims.elementwise_function(
    _hazard_value, lambda h, x: [-h * (x + h)], name="slope of log_normal_tails"
)


def _tails_value(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both from the smaller tail, which torch computes fast where it does not underflow."""
    place = -x.abs()
    small = 0.5 * torch.erfc(place.mul(-math.sqrt(0.5)))
    log_small = small.log()
    far = place < 0.97 * -math.sqrt(-2 * math.log(torch.finfo(x.dtype).tiny))
    if bool(far.any()):
        log_small[far] = torch.special.log_ndtr(place[far])
    log_large, upper = small.neg().log1p_(), x >= 0
    return torch.where(upper, log_large, log_small), torch.where(upper, log_small, log_large)


_log_tails = ims.elementwise_function(
    _tails_value,
    lambda _, x: [lambda: (_hazard(x), -_hazard(-x))],
    name="log_normal_tails",
)


def log_normal_tails(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``ln Phi(x)`` and ``ln Phi(-x)``, both tails of the standard normal distribution.

    The derivatives ``phi(x) / Phi(x)`` are taken without cancellation, to any order, and under
    ``vmap``.

    Parameters
    ----------
    x
        Real tensor of any shape.

    Returns
    -------
    tuple of Tensor
        Of the same shape.

    Examples
    --------
    >>> log_normal_tails(torch.tensor([0.0, -10.0]))
    (tensor([ -0.6931, -53.2313]), tensor([-6.9315e-01, -7.6199e-24]))
    """
    below, above = _log_tails(x)
    return below, above


def _mills_value(x: Tensor) -> Tensor:
    return math.sqrt(math.pi / 2) * torch.special.erfcx(x / math.sqrt(2))


def _mills_slope_value(x: Tensor) -> Tensor:
    """Return ``x M(x) - 1``, for large ``x`` by its asymptotic series."""
    inverse = 1 / (x * x)
    series, term = torch.zeros_like(x), torch.ones_like(x)
    for n in range(1, 9):
        term = -(2 * n - 1) * inverse * term
        series = series + term
    return torch.where(x > ASYMPTOTIC_ABOVE, series, x * _mills_value(x) - 1)


_mills_slope = ims.elementwise_function(
    _mills_slope_value, lambda d, x: [mills_ratio(x) + x * d], name="slope of mills_ratio"
)
_mills_ratio = ims.elementwise_function(
    _mills_value, lambda _, x: [_mills_slope(x)], name="mills_ratio"
)


def mills_ratio(x: Tensor) -> Tensor:
    """Return the Mills ratio ``(1 - Phi(x)) / phi(x)``, differentiable to any order.

    Below -37 it overflows in float64.

    Examples
    --------
    >>> mills_ratio(torch.tensor([0.0, 100.0]))
    tensor([1.2533, 0.0100])
    """
    return _mills_ratio(x)
