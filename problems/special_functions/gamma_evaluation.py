r"""The incomplete gamma functions by quadrature and by series, on plain tensors.

With ``u = ln z``, ``l = ln(z f(z)) = a u - z - lgamma(a)`` and ``g = du/da`` at a fixed value of
the CDF. For ``z >= 2``, with ``sigma = +1`` above ``exp(psi(a))`` and ``-1`` below, and
``h(s) = z expm1(sigma s) - sigma a s``, the moments ``K_j = int_0^inf s^j exp(-h(s)) ds`` give

    tail = exp(l) K_0,    g = e K_0 + K_1,    dg/da = sigma (e K_1 + K_2 - psi'(a) K_0)

with ``e = |u - psi(a)|``: the score ``ln t - psi(a)`` has one sign on that side, so that ``g`` is a
sum of positive terms however far the tail. For ``z < 2``: the power series in ``-z``.

Everywhere, ``z = exp(u)`` and ``u`` are both given: ``z`` for its precision, ``u`` where ``z``
underflows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from implicit_solvers.problems.special_functions.derivatives import in_double, piecewise
from implicit_solvers.problems.special_functions.interpolation import interpolant
from implicit_solvers.problems.special_functions.polygamma import (
    digamma_minus_log,
    log1p_minus,
    log_gamma_difference,
    stirling_error,
    trigamma,
)
from implicit_solvers.problems.special_functions.quadrature import quadrature

__all__ = ["curvature", "log_density", "score", "slope", "tails"]

SERIES_BELOW = 2.0
SERIES_TERMS = 26  # 2^26 / 26! = 2e-19
CUTOFF = 34.0  # the integrals end where the integrand has fallen by exp(-34)


def _regions(
    a: Tensor,
    z: Tensor,
    u: Tensor,
    count: int,
    series: Callable[..., tuple[Tensor, ...]],
    quadrature: Callable[..., tuple[Tensor, ...]],
    infinite: tuple[float, ...],
) -> tuple[Tensor, ...]:
    valid = (a > 0) & (a < torch.inf) & (z >= 0)
    return piecewise(
        count,
        (a, z, u),
        (valid & (z < SERIES_BELOW), series),
        (valid & (z >= SERIES_BELOW) & (z < torch.inf), quadrature),
        (valid & (z == torch.inf), lambda a, z, u: tuple(torch.full_like(a, v) for v in infinite)),
    )


def _series_sums(a: Tensor, z: Tensor, order: int) -> list[Tensor]:
    """Return ``S - 1`` for ``S = sum_n (-z)^n a / (n! (a + n))``, and derivatives of S by a."""
    sums = [torch.zeros_like(a) for _ in range(order + 1)]
    power = torch.ones_like(a)
    for n in range(1, SERIES_TERMS + 1):
        power = power.mul_(z).mul_(-1 / n)
        reciprocal = (a + n).reciprocal_()
        term = power * reciprocal
        sums[0].add_(term)
        for j in range(1, order + 1):
            term = term.mul_(reciprocal)
            sums[j].add_(term, alpha=n if j == 1 else -2 * n)
    sums[0].mul_(a)
    return sums


def _moments(a: Tensor, z: Tensor, sigma: Tensor, nodes: int, order: int) -> list[Tensor]:
    """Return ``K_0, ..., K_order``."""
    start = sigma * (z - a)
    end = 2 * CUTOFF / (start + torch.hypot(start, (2 * CUTOFF * z).sqrt()))
    for _ in range(2):  # Newton's method for ln h(end) = ln CUTOFF
        growth = (sigma * end).expm1_()
        h = z * growth - sigma * a * end
        end = end + h / (sigma * z * growth + start) * (CUTOFF / h).log_()

    def integrands(
        x: Tensor, signed: Tensor, linear: Tensor, minus_z: Tensor
    ) -> tuple[Tensor, ...]:
        density = (signed * x).expm1_().mul_(minus_z).addcmul_(linear, x).exp_()  # exp(-h)
        return density, *(density * x**j for j in range(1, order + 1))

    signed = sigma * end
    moments = quadrature(integrands, nodes, signed, signed * a, -z)
    scale = end
    for moment in moments:
        moment.mul_(scale)
        scale = scale * end
    return moments


def _near(a: Tensor, z: Tensor) -> Tensor:
    """Tell where ``ln z - ln a`` is to be computed from ``z - a``."""
    return (z > 0.5 * a) & (z < 2 * a)


@in_double(0)
def score(a: Tensor, z: Tensor, u: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    """Return ``u - psi(a)``, without cancellation for large ``a``."""
    near = _near(a, z) & (a > 10)
    ratio = torch.where(near, (z - a) / a, 0.0)
    return (torch.where(near, ratio.log1p() - digamma_minus_log(a), u - a.digamma()),)


@in_double(0)
def log_density(a: Tensor, z: Tensor, u: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    """Return ``l``; NaN where ``a <= 0``: by the deviance, which does not cancel near ``z = a``."""
    normal = 0.5 * (a / (2 * torch.pi)).log() - stirling_error(a)
    near = _near(a, z)
    ratio = torch.where(near, (z - a) / a, 0.0)
    far = a * (u - a.log()) + (a - z)
    return (torch.where(near, a * log1p_minus(ratio), far) + normal,)


def _complement(log_p: Tensor) -> Tensor:
    """Return ``ln(1 - exp(log_p))`` for small ``exp(log_p)``."""
    return (-log_p.exp()).log1p()


@in_double(24)
def tails(a: Tensor, z: Tensor, u: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    """Return ``P, Q, ln P, ln Q``."""

    def series(a: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        (rest,) = _series_sums(a, z, 0)
        lead = a * u - log_gamma_difference(torch.ones_like(a), a)
        p, log_p = lead.exp() * (1 + rest), lead + rest.log1p()
        q = -lead.expm1() - lead.exp() * rest
        return p, q, log_p, torch.where(q < 0.5, q.log(), (-p).log1p())

    def integral(a: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        upper = u >= a.digamma()
        sigma = 2.0 * upper - 1.0
        (k0,) = _moments(a, z, sigma, nodes, 0)
        log_small = log_density(a, z, u)[0] + k0.log()
        small, log_large = log_small.exp(), _complement(log_small)
        large = 1 - small
        return (
            torch.where(upper, large, small),
            torch.where(upper, small, large),
            torch.where(upper, log_large, log_small),
            torch.where(upper, log_small, log_large),
        )

    return _regions(a, z, u, 4, series, integral, (1.0, 0.0, 0.0, -torch.inf))


def _slope(a: Tensor, z: Tensor, u: Tensor, nodes: int) -> tuple[Tensor, ...]:
    """Return ``g`` by series and quadrature."""

    def series(a: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        rest, first = _series_sums(a, z, 1)
        return (-z.exp() * ((u - (1 + a).digamma()) * (1 + rest) + first) / a,)

    def integral(a: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        offset = u - a.digamma()
        sigma = 2.0 * (offset >= 0) - 1.0
        k0, k1 = _moments(a, z, sigma, nodes, 1)
        return (offset.abs() * k0 + k1,)

    return _regions(a, z, u, 1, series, integral, (0.0,))


def _by_ratio(v: Tensor, reciprocal: Tensor) -> tuple[Tensor, ...]:
    a = 1 / reciprocal
    u = v + a.log()
    return (a * _slope(a, u.exp(), u, 44)[0],)


def _by_log(u: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    a = 2 / s - 2
    return (a * _slope(a, u.exp(), u, 44)[0],)


def _by_place(z: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    a = 2 / s - 2
    rest, first = _series_sums(a, z, 1)
    rest.add_(1)
    return z.exp() * rest, z.exp() * ((1 + a).digamma() * rest - first)


# a g, in the bulk of the distribution: for a >= 2 a function of ln(z / a) and 1 / a, for a < 2 of
# u and s = 2 / (2 + a), for z < 2 of z and s and linear in u
BULK = (-6.5, 2.6)
FAR = (math.log(SERIES_BELOW), math.log(60.0))
SMALL_SHAPE = (0.5, 1.0 - 1e-14)
of_ratio = interpolant(_by_ratio, BULK, (1e-9, 0.5), 29, 14)
of_log = interpolant(_by_log, FAR, SMALL_SHAPE, 20, 17)
of_place = interpolant(_by_place, (0.0, SERIES_BELOW), SMALL_SHAPE, 15, 17)


@in_double(20)
def slope(a: Tensor, z: Tensor, u: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    """Return ``g = du/da``."""
    ratio, large = u - a.log(), a >= 2
    bulk = large & (ratio > BULK[0]) & (ratio < BULK[1])
    small = functools.cache(lambda: (a > 0) & ~large & (u < FAR[1]) & (z >= 0))

    def near(a: Tensor, z: Tensor, u: Tensor, ratio: Tensor) -> tuple[Tensor, ...]:
        factor, rest = of_place(z, 2 / (2 + a))
        return (rest.sub_(factor.mul_(u)).div_(a),)

    return piecewise(
        1,
        (a, z, u, ratio),
        (bulk, lambda a, z, u, ratio: (of_ratio(ratio, 1 / a)[0].div_(a),)),
        (lambda: small() & (z < SERIES_BELOW), near),
        (
            lambda: small() & (z >= SERIES_BELOW),
            lambda a, z, u, ratio: (of_log(u, 2 / (2 + a))[0].div_(a),),
        ),
        (lambda: ~(bulk | small()), lambda a, z, u, ratio: _slope(a, z, u, nodes)),
    )


@in_double(24)
def curvature(a: Tensor, z: Tensor, u: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    """Return ``dg/da`` at a fixed ``u``."""

    def series(a: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        rest, first, second = _series_sums(a, z, 2)
        offset = u - (1 + a).digamma()
        bracket = offset * (1 + rest) + first
        by_shape = -trigamma(1 + a) * (1 + rest) + offset * first + second
        return (z.exp() * (bracket / a - by_shape) / a,)

    def integral(a: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        offset = u - a.digamma()
        sigma = 2.0 * (offset >= 0) - 1.0
        k0, k1, k2 = _moments(a, z, sigma, nodes, 2)
        return (sigma * (offset.abs() * k1 + k2 - trigamma(a) * k0),)

    return _regions(a, z, u, 1, series, integral, (0.0,))
