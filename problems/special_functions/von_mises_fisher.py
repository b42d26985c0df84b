r"""How far a von Mises-Fisher variable lies from its mean direction.

On the unit sphere of ``d`` dimensions the angle ``t`` in [0, pi] between them has the density
``exp(k (cos t - 1) - N) sin(t)^(d - 2)``, with the logarithm of its integral ``N(k)``. Hence, of
``1 - cos t``, the mean ``-N'``, the variance ``N''`` and the third central moment ``-N'''``; and
``A = E[cos t] = k E[sin(t)^2] / (d - 1)``, the quotient of the Bessel functions ``I_(d/2)`` and
``I_(d/2 - 1)``. All are integrals on both sides of the mode, of positive terms but for the third
moment, for any ``k`` and ``d``: no Bessel function is evaluated.

With ``sigma = -1`` where ``cos t > A`` and ``+1`` beyond, ``q(s) = |cos t - cos s|`` and
``e = |cos t - A|``, the moments ``K_j = int q^j g(s) / g(t) ds``, of the density ``g`` from ``t``
inwards to 0 or outwards to pi, give

    dt/dk = -(e K_0 + K_1),    d(dt/dk)/dk = sigma (e K_1 + K_2 - A' K_0)

at a fixed value of the CDF, as in `von_mises`, the case of ``d = 2``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.special_functions.derivatives import in_double
from implicit_solvers.problems.special_functions.log_gamma import bregman
from implicit_solvers.problems.special_functions.normal import legendre_nodes

__all__ = ["Angle", "angle"]

CUTOFF = 40.0  # the integrals end where the integrand has fallen by exp(-40)
NODES, TOGETHER = 36, 12  # evaluated at once: large against the cost of a call
HALVINGS = 15  # of the interval in which an end is looked for

Function = Callable[..., Tensor]


def _log_fall(t: Tensor, step: Tensor, k: Tensor, power: int) -> Tensor:
    """Return ``ln(g(t) / g(t + step))``."""
    half = (0.5 * step).sin()
    fall = 2 * k * (t + 0.5 * step).sin() * half
    if not power:
        return fall
    growth = step.sin() / t.tan() - 2 * half * half  # sin(t + step) / sin t - 1
    return fall - power * growth.clamp(min=-1).log1p()


def _length(t: Tensor, k: Tensor, power: int, sign: float) -> Tensor:
    """Return the distance to where the density has fallen by the cutoff, or to the end."""
    end = math.pi - t if sign > 0 else t
    # the logarithm of the share of the interval
    low, high = torch.full_like(t, -360.0), torch.zeros_like(t)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        below = _log_fall(t, sign * end * middle.exp(), k, power) < CUTOFF
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return end * high.exp()


def _moments(
    t: Tensor, k: Tensor, power: int, sign: float, order: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the moments ``K_0, ..., K_order`` on one side, of ``cos t - cos s`` with its sign.

    And the integrals of ``sin(s)^2`` and of ``1 - cos s``.
    """
    length = _length(t, k, power, sign)
    moments = [torch.zeros_like(t) for _ in range(order + 1)]
    squares, versines = torch.zeros_like(t), torch.zeros_like(t)
    pairs = torch.tensor(legendre_nodes(NODES), dtype=t.dtype, device=t.device)
    for nodes, weights in (part.T.unsqueeze(-1) for part in pairs.split(TOGETHER)):
        step = sign * nodes * length
        density = (-_log_fall(t, step, k, power)).exp_().mul_(weights * length)
        s = t + step
        squares.add_((density * s.sin().square()).sum(0))
        versines.add_((density * (2 * (0.5 * s).sin().square())).sum(0))
        gap = 2 * (t + 0.5 * step).sin() * (0.5 * step).sin()
        for moment in moments:
            moment.add_(density.sum(0))
            density.mul_(gap)
    return moments, squares, versines


def _mode(k: Tensor, power: int) -> Tensor:
    root = torch.hypot(torch.full_like(k, power), 2 * k)
    if not power:
        return torch.zeros_like(k)
    return 2 * ((power + power * power / (root + 2 * k)) / (power + root + 2 * k)).sqrt().atan()


def _integrals(k: Tensor, *, nodes: int, dim: int) -> tuple[Tensor, ...]:
    """Return ``N``, ``1 - A``, ``A``, ``A'`` and ``A''``."""
    power = dim - 2
    t = _mode(k, power)
    (above, *outer), (below, *inner) = (_moments(t, k, power, sign, 3) for sign in (1.0, -1.0))
    mass, *raw = (a + b for a, b in zip(above, below, strict=True))
    first, second, third = (moment / mass for moment in raw)
    squares, versines = ((a + b) / mass for a, b in zip(outer, inner, strict=True))
    log_mass = mass.log() - 2 * k * (0.5 * t).sin().square()
    if power:
        log_mass = log_mass + power * t.sin().log()
    return (
        log_mass,
        versines,
        k * squares / (dim - 1),
        second - first.square(),
        -(third - 3 * first * second + 2 * first**3),
    )


def _sides(t: Tensor, k: Tensor, deficit: Tensor, *, nodes: int, dim: int) -> tuple[Tensor, ...]:
    """Return ``sigma``, ``e`` and ``K_0, K_1, K_2``, of the side where the score has one sign."""
    excess = deficit - 2 * (0.5 * t).sin().square()  # cos t - A
    inside = excess > 0
    results = [
        torch.where(inside, -torch.ones_like(t), 1.0),
        excess.abs(),
        *(torch.zeros_like(t) for _ in "KKK"),
    ]
    for where, sign in ((inside, -1.0), (~inside, 1.0)):
        index = where.nonzero().squeeze(-1)
        if len(index):
            moments, *_ = _moments(t[index], k[index], dim - 2, sign, 2)
            for j, moment in enumerate(moments):
                results[2 + j][index] = moment * sign**j
    return tuple(results)


@dataclass(frozen=True)
class Angle:
    """Functions of the concentration ``k``, and of the angle ``t``, in one dimension ``d``.

    ``log_normalizer`` is ``N``, ``deficit`` ``1 - A``, ``mean`` ``A``, ``variance`` ``A'``;
    ``divergence(l, k)`` is the Bregman divergence of ``N``; ``cdf(t, k, deficit(k))``;
    ``sample(t, k, deficit(k))`` is ``t`` with its implicit derivative, ``slope(t, k, deficit(k))``.
    """

    log_normalizer: Function
    deficit: Function
    mean: Function
    variance: Function
    divergence: Function
    cdf: Function
    slope: Function
    sample: Function


@functools.cache
def angle(dim: int) -> Angle:
    """Return the functions of a dimension ``d >= 2``, all differentiable to second order.

    Examples
    --------
    In three dimensions ``A = coth k - 1 / k``:

    >>> angle(3).mean(torch.tensor(2.0))
    tensor(0.5373)
    """
    integrals, sides = (
        in_double(NODES)(functools.partial(f, dim=dim)) for f in (_integrals, _sides)
    )
    power, name = dim - 2, f"von Mises-Fisher angle of dimension {dim}"

    def integral(i: int) -> Function:
        return lambda k: integrals(k)[i]

    def function(value: Function, partials: Callable[..., list[object]] | None) -> Function:
        made: Function = ims.elementwise_function(value, partials, name=name)
        return made

    third = function(integral(4), None)
    variance = function(integral(3), lambda _, k: [lambda: third(k)])
    mean = function(integral(2), lambda _, k: [lambda: variance(k)])
    deficit = function(integral(1), lambda _, k: [lambda: -variance(k)])
    log_normalizer = function(integral(0), lambda _, k: [lambda: -deficit(k)])
    # the Bessel function has its zeros on the imaginary axis, from about d / 2 on
    reach = lambda k: (k + 0.5 * dim) / 8  # noqa: E731
    divergence = bregman(log_normalizer, lambda k: -deficit(k), variance, reach, name)

    def slope_value(t: Tensor, k: Tensor, lack: Tensor) -> Tensor:
        _, e, zeroth, first, _ = sides(t, k, lack)
        return -(e * zeroth + first)

    def by_k_value(t: Tensor, k: Tensor, lack: Tensor) -> Tensor:
        sigma, e, _, first, second = sides(t, k, lack)
        return sigma * (e * first + second)

    def by_lack_value(t: Tensor, k: Tensor, lack: Tensor) -> Tensor:
        sigma, _, zeroth, _, _ = sides(t, k, lack)
        return sigma * zeroth

    by_k, by_lack = function(by_k_value, None), function(by_lack_value, None)

    def rise(t: Tensor, k: Tensor) -> Tensor:
        """Return the derivative of the log-density by ``t``."""
        return power * t.cos() / t.sin() - k * t.sin() if power else -k * t.sin()

    def slope_partials(y: Tensor, t: Tensor, k: Tensor, lack: Tensor) -> list[object]:
        return [
            lambda: 2 * (0.5 * t).sin().square() - lack - y * rise(t, k),
            lambda: by_k(t, k, lack),
            lambda: by_lack(t, k, lack),
        ]

    slope = function(slope_value, slope_partials)

    def density(t: Tensor, k: Tensor) -> Tensor:
        log_density = -2 * k * (0.5 * t).sin().square() - log_normalizer(k)
        return (log_density + power * t.sin().log() if power else log_density).exp()

    def cdf_value(t: Tensor, k: Tensor, lack: Tensor) -> Tensor:
        sigma, _, zeroth, _, _ = sides(t, k, lack)
        tail = density(t, k) * zeroth
        return torch.where(sigma < 0, tail, 1 - tail)

    cdf = function(
        cdf_value,
        lambda _, t, k, lack: [
            lambda: density(t, k),
            lambda: -density(t, k) * slope(t, k, lack),
            None,
        ],
    )
    sample = function(
        lambda t, k, lack: t.clone(),
        lambda t, _, k, lack: [None, lambda: slope(t, k, lack), None],
    )
    return Angle(log_normalizer, deficit, mean, variance, divergence, cdf, slope, sample)
