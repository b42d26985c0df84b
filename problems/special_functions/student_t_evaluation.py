r"""Plain evaluation of Student's t CDF and of how a t variable moves with its degrees of freedom.

Everything is a function of ``n``, the degrees of freedom, and of ``y = ln(1 + t^2 / n)``, in which
the density of ``t`` is ``B exp(-(n + 1) y / 2) / sqrt(n)``, ``B = Gamma((n + 1) / 2) / (sqrt(pi)
Gamma(n / 2))``. With ``r = 1 - exp(-y) = t^2 / (n + t^2)`` and ``c = exp(-y) - 1 + y`` the score is

    s = d ln f/dn = (digamma((n + 1) / 2) - digamma(n / 2) - 1 / n) / 2 - c / 2 + r / (2 n).

For ``t > 0`` let ``sigma = -1`` in the centre, where ``s > 0``, and ``sigma = +1`` in the tail. The
variable ``x = sqrt(y)`` makes the integrands smooth: with ``h = n |x^2 - y| / 2`` the means
``<u> = int u exp(-sigma h) x / sqrt(r(x^2)) dx``, inwards to 0 or outwards to infinity, give

    P(T > t) = B exp(-n y / 2) <1> (tail), 1/2 - B exp(-n y / 2) <1> (centre),
    d = d ln t/dn = sigma <s> / sqrt(r),
    dd/dn at a fixed t = sigma <s(x^2) (s(x^2) - s(y)) + s'> / sqrt(r),   s' = ds/dn at a fixed t,

where ``dt/dn = -(dF/dn) / f = t d`` at a fixed value of the CDF: ``s`` has one sign on that side of
``t``, so that no digits cancel however far the tail. For ``n <= 1`` and ``t > 2.13 sqrt(n)``: the
power series of the incomplete beta function in ``exp(-y)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from implicit_solvers.problems.special_functions.derivatives import piecewise
from implicit_solvers.problems.special_functions.gamma_ratio import (
    digamma_excess,
    log_gamma_ratio,
    trigamma_excess,
)
from implicit_solvers.problems.special_functions.interpolation import interpolant
from implicit_solvers.problems.special_functions.quadrature import clustered_nodes

__all__ = [
    "curvature",
    "growth",
    "growth_of_log",
    "log_mass",
    "relative_slope",
    "score",
    "tail_and_slope",
    "tails",
]

Values = tuple[Tensor, ...]

CUTOFF = 36.0  # the integrals end where the integrand has fallen by exp(-36)
SERIES_DF = 1.0  # the power series serves smaller degrees of freedom, where
SERIES_ABOVE = 1.711  # y is larger
SERIES_TERMS = 20  # exp(-20 y) = 1e-15
FLAT_BELOW = 0.06  # where all y are smaller, c is computed by its power series
FLAT_COEFFICIENTS = tuple((-1) ** j / math.factorial(j + 2) for j in range(8))


def growth(t: Tensor, df: Tensor) -> Tensor:
    """Return ``y = ln(1 + t^2 / df)``."""
    ratio = t * t / df
    if bool((ratio < 1e100).all()):
        return ratio.log1p()
    far = 2 * t.abs().log() - df.log()
    return torch.where(ratio < 1e100, ratio.log1p(), far)


def growth_of_log(log_t: Tensor, df: Tensor) -> Tensor:
    """Return ``y`` for ``log_t = ln |t|``."""
    log_ratio = 2 * log_t - df.log()
    return torch.where(
        log_ratio > 0, log_ratio + (-log_ratio).exp().log1p(), log_ratio.exp().log1p()
    )


def _shape(y: Tensor, flat: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``c``, ``r`` and ``r / y``."""
    if not flat:
        r = (-y).expm1_().neg_()
        return y - r, r, r / y
    p = torch.full_like(y, FLAT_COEFFICIENTS[-1])
    for coefficient in reversed(FLAT_COEFFICIENTS[:-1]):
        p.mul_(y).add_(coefficient)
    p.mul_(y)
    c = p * y
    return c, y - c, p.neg_().add_(1)


def score(y: Tensor, df: Tensor) -> Tensor:
    """Return ``s``."""
    return _score(y, df, _score_at_zero(df))


def _score_at_zero(df: Tensor) -> Tensor:
    return 0.5 * digamma_excess(0.5 * df)


def _score(y: Tensor, df: Tensor, at_zero: Tensor) -> Tensor:
    r = -(-y).expm1()
    flat = y < FLAT_BELOW
    near, *_ = _shape(torch.where(flat, y, 0.0), True)
    c = torch.where(flat, near, y - r)
    return at_zero - 0.5 * c + 0.5 * r / df


def _length(y: Tensor, df: Tensor, tail: bool) -> Tensor:
    """Return the length of the interval of ``x``."""
    if not tail:
        return y.sqrt()
    rise = 2 * CUTOFF / df
    return rise / ((y + rise).sqrt() + y.sqrt())


def _relative_length(y: Tensor, df: Tensor, tail: bool) -> Tensor:
    """Return ``sigma / sqrt(r)`` times the length."""
    r = -(-y).expm1()
    if tail:
        return _length(y, df, tail) / r.sqrt()
    return -torch.where(y > 0, y / r, 1.0).sqrt()


def _points(
    y: Tensor, df: Tensor, tail: bool, flat: bool, nodes: int
) -> Iterator[tuple[float, Tensor, Tensor, Tensor, Tensor]]:
    """Yield weight, density, ``|x^2 - y|``, ``c`` and ``r`` at the nodes of a mean.

    The weights add up to 1; the length of the interval is still to be multiplied.
    """
    sigma = 1.0 if tail else -1.0
    length, twice, rate = _length(y, df, tail), 2 * y.sqrt(), -0.5 * sigma * df
    for node, weight in clustered_nodes(nodes if tail else nodes // 2):
        step = length * node
        change = twice.add(step, alpha=sigma).mul_(step)
        c, r, ratio = _shape(y.add(change, alpha=sigma), flat)
        density = torch.mul(change, rate, out=step).exp_().mul_(ratio.rsqrt_())
        yield weight, density, change, c, r


def _series_sums(y: Tensor, a: Tensor, order: int) -> list[Tensor]:
    """Return ``R = sum_k (1/2)_k x^k / (k! (a + k))``, ``x = exp(-y)``, and derivatives by ``a``.

    Last comes ``sum_k (1/2)_k x^k / k!``; all sums begin with ``k = 1``.
    """
    x, power = (-y).exp(), torch.ones_like(y)
    sums = [torch.zeros_like(y) for _ in range(order + 2)]
    for k in range(1, SERIES_TERMS + 1):
        power = power.mul_(x).mul_((k - 0.5) / k)
        reciprocal = (a + k).reciprocal_()
        term = power
        sums[-1].add_(term)
        for j in range(order + 1):
            term = term * reciprocal
            sums[j].add_(term, alpha=(-1) ** j * math.factorial(j))
    return sums


def _regions(
    y: Tensor,
    df: Tensor,
    limits: tuple[Tensor | float, ...],
    series: Callable[..., tuple[Tensor, ...]],
    quadrature: Callable[..., tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Evaluate by ``series(y, df)`` or by ``quadrature(y, df, s(0), tail, flat)``.

    ``limits`` are the values at infinity.
    """
    at_zero = _score_at_zero(df)
    valid = (df > 0) & (df < torch.inf) & (y < torch.inf)
    power = valid & (df <= SERIES_DF) & (y > SERIES_ABOVE)
    tail = (df > SERIES_DF) & (_score(y, df, at_zero) <= 0)
    flat = torch.where(tail, y + 2 * CUTOFF / df, y) < FLAT_BELOW
    means = valid & ~power
    sides = [
        (means & (tail == t) & (flat == f), functools.partial(quadrature, tail=t, flat=f))
        for t in (False, True)
        for f in (False, True)
    ]
    ends = (df > 0) & (df < torch.inf) & (y == torch.inf)
    return piecewise(
        len(limits),
        (y, df, at_zero),
        (power, lambda y, df, _: series(y, df)),
        *sides,
        (ends, lambda y, df, _: tuple(torch.zeros_like(y) + v for v in limits)),
    )


def _series_offset(a: Tensor) -> Tensor:
    """Return ``digamma(a + 1/2) - digamma(a + 1)``."""
    return digamma_excess(a + 1) + 0.5 / (a + 1) - 1 / (a + 0.5)


def _series_offset_slope(a: Tensor) -> Tensor:
    return trigamma_excess(a + 1) - 0.5 / (a + 1) ** 2 + 1 / (a + 0.5) ** 2


def log_mass(y: Tensor, df: Tensor) -> Tensor:
    """Return ``ln(B exp(-n y / 2))``."""
    return log_gamma_ratio(0.5 * df) - 0.5 * math.log(math.pi) - 0.5 * df * y


def _tails_by_series(y: Tensor, df: Tensor, total: Tensor) -> Values:
    a = 0.5 * df
    rest = a * total
    lead = log_gamma_ratio(a + 1) - ((2 * math.sqrt(math.pi)) * (a + 0.5)).log()
    return lead - a * y + rest.log1p(), df / (1 + rest)


def _slope_by_series(y: Tensor, df: Tensor, total: Tensor, by_a: Tensor) -> Tensor:
    a = 0.5 * df
    q, q1 = 1 + a * total, total + a * by_a
    log_slope = -y + _series_offset(a) + q1 / q
    return 0.5 / df * (1 + q * log_slope / (-(-y).expm1()).sqrt())


def _tails_by_mean(y: Tensor, df: Tensor, total: Tensor, tail: bool) -> Values:
    total = total * _length(y, df, tail)
    log_factor = log_mass(y, df)
    if tail:
        return log_factor + total.log(), 1 / total
    rest = 0.5 - log_factor.exp() * total
    return rest.log(), log_factor.exp() / rest


def tails(y: Tensor, df: Tensor, nodes: int) -> Values:
    """Return ``ln P(T > t)`` and ``B exp(-n y / 2) / P(T > t)`` for ``t >= 0``."""

    def series(y: Tensor, df: Tensor) -> Values:
        return _tails_by_series(y, df, _series_sums(y, 0.5 * df, 0)[0])

    def quadrature(y: Tensor, df: Tensor, at_zero: Tensor, tail: bool, flat: bool) -> Values:
        total = torch.zeros_like(y)
        for weight, density, *_ in _points(y, df, tail, flat, nodes):
            total.add_(density, alpha=weight)
        return _tails_by_mean(y, df, total, tail)

    log_small, ratio = _regions(y, df, (-torch.inf, 0.0), series, quadrature)
    return log_small, torch.where(y == torch.inf, df, ratio)


def _relative_slope(y: Tensor, df: Tensor, nodes: int) -> Tensor:
    """Return ``d`` by series and quadrature."""

    def series(y: Tensor, df: Tensor) -> Values:
        total, by_a, _ = _series_sums(y, 0.5 * df, 1)
        return (_slope_by_series(y, df, total, by_a),)

    def quadrature(y: Tensor, df: Tensor, at_zero: Tensor, tail: bool, flat: bool) -> Values:
        half = 0.5 / df
        total = torch.zeros_like(y)
        for weight, density, _, c, r in _points(y, df, tail, flat, nodes):
            s = r.mul_(half).sub_(c, alpha=0.5).add_(at_zero)
            total.addcmul_(density, s, value=weight)
        return (total * _relative_length(y, df, tail),)

    return _regions(y, df, (-torch.inf,), series, quadrature)[0]


# In the bulk of the distribution: n^2 d as a function of ln(n y + 4) and 1 / n where n >= 8, and
# n d / (1 + y) of y / (y + 5) and 2 / (n + 2) where it is smaller
FEW, MANY = 0.1, 8.0
of_many = interpolant(
    lambda p, q: (_relative_slope((p.exp() - 4) * q, 1 / q, 64) / (q * q),),
    (math.log(4.0), math.log(40.0)),
    (1e-9, 1 / MANY),
    *(30, 16),
)


def _by_few(p: Tensor, q: Tensor) -> Values:
    y, df = 5 * p / (1 - p), 2 / q - 2
    return (_relative_slope(y, df, 64) * df / (1 + y),)


of_few = interpolant(_by_few, (0.0, 0.9), (2 / (MANY + 2), 2 / (FEW + 2)), 34, 16)


def relative_slope(y: Tensor, df: Tensor, nodes: int) -> Tensor:
    """Return ``d = d ln t / dn``."""

    def by_many(y: Tensor, df: Tensor) -> Values:
        q = df.reciprocal()
        return (of_many((y * df).add_(4).log_(), q)[0].mul_(q).mul_(q),)

    def by_few(y: Tensor, df: Tensor) -> Values:
        return (of_few(y / (y + 5), 2 / (df + 2))[0].mul_(y + 1).div_(df),)

    several = df >= MANY
    many = several & (y * df < 36.0)
    few = functools.cache(lambda: ~several & (df > FEW) & (y < 45.0))
    return piecewise(
        1,
        (y, df),
        (many, by_many),
        (few, by_few),
        (lambda: ~(many | few()), lambda y, df: (_relative_slope(y, df, nodes),)),
    )[0]


def tail_and_slope(y: Tensor, df: Tensor, nodes: int) -> Values:
    """Return ``ln P(T > t)`` for ``t >= 0`` and ``d``, from the same nodes."""

    def series(y: Tensor, df: Tensor) -> Values:
        total, by_a, _ = _series_sums(y, 0.5 * df, 1)
        return _tails_by_series(y, df, total)[0], _slope_by_series(y, df, total, by_a)

    def quadrature(y: Tensor, df: Tensor, at_zero: Tensor, tail: bool, flat: bool) -> Values:
        half = 0.5 / df
        total, moment = torch.zeros_like(y), torch.zeros_like(y)
        for weight, density, _, c, r in _points(y, df, tail, flat, nodes):
            total.add_(density, alpha=weight)
            s = r.mul_(half).sub_(c, alpha=0.5).add_(at_zero)
            moment.addcmul_(density, s, value=weight)
        log_small, _ = _tails_by_mean(y, df, total, tail)
        return log_small, moment * _relative_length(y, df, tail)

    return _regions(y, df, (-torch.inf, -torch.inf), series, quadrature)


def curvature(y: Tensor, df: Tensor, nodes: int) -> Tensor:
    """Return the derivative of ``d`` by ``n`` at a fixed ``t``."""

    def series(y: Tensor, df: Tensor) -> tuple[Tensor, ...]:
        a, half = 0.5 * df, 0.5 / df
        x, r = (-y).exp(), -(-y).expm1()
        total, first, second, plain = _series_sums(y, a, 2)
        # q and L = d ln P/da by a; by ln x in qx, q1x, lx
        q, q1, q2 = 1 + a * total, total + a * first, 2 * first + a * second
        qx = a * (plain - a * total)
        q1x = plain - a * total - a * q1
        log_slope = -y + _series_offset(a) + q1 / q
        by_a = _series_offset_slope(a) + q2 / q - (q1 / q) ** 2
        by_x = 1 + q1x / q - q1 * qx / q**2
        product, product_a = q * log_slope, q1 * log_slope + q * by_a
        product_x = qx * log_slope + q * by_x
        root = r.sqrt()
        inner = (2 * r * product_x - (2 - x) * product) / root - 2
        return (half * (half * inner + 0.5 * product_a / root),)

    def quadrature(
        y: Tensor, df: Tensor, at_zero: Tensor, tail: bool, flat: bool
    ) -> tuple[Tensor, ...]:
        half, sigma = 0.5 / df, 1.0 if tail else -1.0
        slope_at_zero = 0.25 * trigamma_excess(0.5 * df)
        c0, r0, _ = _shape(y, flat)
        total = torch.zeros_like(y)
        for weight, density, change, c, r in _points(y, df, tail, flat, nodes):
            s = at_zero - 0.5 * c + half * r
            if flat:
                difference = half * (r - r0) - 0.5 * (c - c0)
            else:
                difference = (0.5 + half) * (r - r0) - (0.5 * sigma) * change
            square = r * r
            by_df = slope_at_zero + half * square - (2 * half * half) * (2 * r - square)
            total.addcmul_(density, s * difference + by_df, value=weight)
        return (total * _relative_length(y, df, tail),)

    # the exact value overflows
    tiny = (df > 0) & (df < 1e-150)
    inside = _regions(y, torch.where(tiny, 1.0, df), (torch.inf,), series, quadrature)[0]
    return torch.where(tiny, torch.inf, inside)
