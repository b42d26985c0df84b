r"""The incomplete beta function by quadrature and by series, on plain tensors.

With ``t = logit x``, ``y = 1 - x``, ``n = a + b``, the log-density ``l = ln(x^a y^b / B(a, b))`` of
``t``, and the scores ``ln x - psi(a) + psi(n)`` and ``ln y - psi(b) + psi(n)``. The side is chosen
so that ``x <= 1/2``, by exchanging the variable with its complement.

Where ``b x >= 2``: with ``sigma = +1`` where the first score is positive and ``-1`` where it is
negative, ``L = ln(1 + x expm1(sigma s))``, ``h(s) = n L - sigma a s``, ``alpha = s - sigma L`` and
``beta = -sigma L``, the moments ``<q> = int_0^inf q exp(-h(s)) ds`` give

    tail  = exp(l) <1>
    dt/da = e_a <1> + <alpha>,    dt/db = e_b <1> + <beta>,    e = sigma score
    d/da (dt/da) = sigma (e_a <alpha> + <alpha^2> - (psi'(a) - psi'(n)) <1>)
    d/db (dt/da) = sigma (e_a <beta> + <alpha beta> + psi'(n) <1>)

and the same with a and b, alpha and beta exchanged. Where ``b x < 2``: the power series in ``x``
with the coefficients ``(1 - b)_k / k!``.

Everywhere, ``x`` and ``t`` are both given, and ``w = b x - a y``, which cancels at the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from implicit_solvers.problems.special_functions.derivatives import in_double, piecewise
from implicit_solvers.problems.special_functions.polygamma import (
    digamma_difference,
    digamma_excess,
    log1p_minus,
    log_gamma_difference,
    stirling_error,
    trigamma,
    trigamma_difference,
)
from implicit_solvers.problems.special_functions.quadrature import quadrature

__all__ = [
    "curvatures",
    "imbalance",
    "imbalance_of_logit",
    "log_density",
    "scores",
    "slopes",
    "tails",
]

SERIES_BELOW = 2.0
CUTOFF = 34.0  # the integrals end where the integrand has fallen by exp(-34)
Values = tuple[Tensor, ...]


def _oriented(
    a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return where the complement takes the variable's place, and the arguments with x <= 1/2."""
    mirrored = t > 0
    args = (
        torch.where(mirrored, b, a),
        torch.where(mirrored, a, b),
        torch.where(mirrored, (-t).sigmoid(), x),
        -t.abs(),
        torch.where(mirrored, -w, w),
    )
    return mirrored, args


def _regions(
    count: int,
    args: tuple[Tensor, ...],
    series: Callable[..., Values],
    integral: Callable[..., Values],
) -> Values:
    a, b, x, _, _ = args
    valid = (a > 0) & (a < torch.inf) & (b > 0) & (b < torch.inf)
    small = b * x < SERIES_BELOW
    return piecewise(
        count,
        args,
        (lambda: valid & ~small & (x >= 0), integral),
        # the number of terms grows with the largest x
        (lambda: valid & small & (x < 0.2), series),
        (lambda: valid & small & (x >= 0.2), series),
    )


def _logs(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``ln x`` and ``ln y`` for ``x <= 1/2``."""
    log_y = (-x).log1p()
    return t + log_y, log_y


class _Series:
    """``S = sum_k c_k a / (a + k)`` with ``c_k = (1 - b)_k x^k / k!``, and its derivatives."""

    def __init__(self, a: Tensor, b: Tensor, x: Tensor, order: int) -> None:
        zero = torch.zeros_like(a)
        self.rest, self.a, self.b = zero.clone(), zero.clone(), zero.clone()  # S - 1, S_a, S_b
        self.aa, self.ab, self.bb = zero.clone(), zero.clone(), zero.clone()
        c, c_b, c_bb = torch.ones_like(a), zero.clone(), zero.clone()
        largest = float(x.max()) if len(x) else 0.0
        terms = max(26, math.ceil(40 / -math.log(max(largest, 1e-300))))
        for k in range(1, terms + 1):
            shift = x / k
            factor = (k - b).mul_(shift)
            if order >= 2:
                c_bb.mul_(factor).addcmul_(c_b, shift, value=-2)
            if order >= 1:
                c_b.mul_(factor).addcmul_(c, shift, value=-1)
            c.mul_(factor)
            r = (a + k).reciprocal_()
            self.rest.addcmul_(c, r)
            if order >= 1:
                r2 = r * r
                self.a.addcmul_(c, r2, value=k)
                self.b.addcmul_(c_b, r)
            if order >= 2:
                self.ab.addcmul_(c_b, r2, value=k)
                self.bb.addcmul_(c_bb, r)
                self.aa.addcmul_(c, r2 * r, value=-2 * k)
        for total in (self.rest, self.b, self.bb):
            total.mul_(a)


def _moments(
    a: Tensor, b: Tensor, x: Tensor, w: Tensor, sigma: Tensor, nodes: int, order: int
) -> list[Tensor]:
    """Return ``<1>``; ``<alpha>, <beta>``; ``<alpha^2>, <alpha beta>, <beta^2>``."""
    n = a + b
    start = sigma * w
    end = 2 * CUTOFF / (start + (start * start + 2 * CUTOFF * n * x * (1 - x)).sqrt())
    for _ in range(3):  # Newton's method for ln h(end) = ln CUTOFF
        growth = (sigma * end).expm1_().mul_(x)
        h = n * growth.log1p() - sigma * a * end
        slope = sigma * (n * (x + growth) / (1 + growth) - a)
        end = end + h / slope * (CUTOFF / h).log_()

    def integrands(
        node: Tensor, signed: Tensor, a: Tensor, n: Tensor, x: Tensor
    ) -> tuple[Tensor, ...]:
        h = signed * node
        log = h.expm1().mul_(x).log1p_()
        alpha = h - log if order else h  # sigma alpha
        density = h.mul_(a) if order else h * a
        density = density.addcmul_(log, n, value=-1).exp_()
        if not order:
            return (density,)
        of_alpha, of_beta = alpha * density, log.neg() * density
        if order == 1:
            return density, of_alpha, of_beta
        return density, of_alpha, of_beta, of_alpha * alpha, of_beta * alpha, of_beta * -log

    signed = sigma * end
    moments = quadrature(integrands, nodes, signed, a, n, x)
    for place, moment in enumerate(moments):
        moment.mul_(signed if place in (1, 2) else end)
    return moments


@in_double(0)
def imbalance(a: Tensor, b: Tensor, x: Tensor, *, nodes: int) -> Values:
    """Return ``w = b x - a y`` from ``x``, without the rounding of ``x (a + b) - a``.

    The sum and the product are exact as pairs of numbers. Source: T. J. Dekker, "A floating-point
    technique for extending the available precision" (1971).
    """
    n = a + b
    rest = torch.where(a > b, b - (n - a), a - (n - b))  # a + b - n, exactly

    def halves(t: Tensor) -> tuple[Tensor, Tensor]:
        scaled = 134217729.0 * t  # 2^27 + 1
        high = scaled - (scaled - t)
        return high, t - high

    product = x * n
    (x1, x2), (n1, n2) = halves(x), halves(n)
    error = ((x1 * n1 - product) + x1 * n2 + x2 * n1) + x2 * n2
    return ((product - a) + (error + x * rest),)


@in_double(0)
def imbalance_of_logit(a: Tensor, b: Tensor, t: Tensor, *, nodes: int) -> Values:
    """Return ``w = b x - a y`` from ``t``."""
    distance = t - (a / b).log()
    near = distance.abs() < 1
    growth = torch.where(near, distance, 0.0).expm1()
    mean = a / (a + b)
    return (
        torch.where(
            near, b * mean * growth / (1 + mean * growth), b * t.sigmoid() - a * (-t).sigmoid()
        ),
    )


@in_double(0)
def scores(a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor, *, nodes: int) -> Values:
    """Return the derivatives of the log-density by a and b, at the mean without cancellation."""

    def score(a: Tensor, b: Tensor, log_x: Tensor, distance: Tensor) -> Tensor:
        near = (distance.abs() < 0.5) & (a > 10)
        from_mean = torch.where(near, distance, 0.0).log1p()
        from_mean += digamma_excess(torch.where(near, a, 10.0), b)
        return torch.where(near, from_mean, log_x + digamma_difference(a, b))

    zero = torch.zeros_like(t)
    return (
        score(a, b, -torch.logaddexp(zero, -t), w / a),
        score(b, a, -torch.logaddexp(zero, t), -w / b),
    )


@in_double(0)
def log_density(
    a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor, *, nodes: int
) -> tuple[Tensor, ...]:
    """Return ``l``: by the deviance, which does not cancel near the mean."""
    _, (a, b, x, t, w) = _oriented(a, b, x, t, w)
    return (_log_density(a, b, x, t, w),)


def _log_density(a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    n = a + b
    normal = stirling_error(n) - stirling_error(a) - stirling_error(b)
    normal += 0.5 * ((a / n).log() + b.log() - math.log(2 * math.pi))
    log_x, _ = _logs(x, t)
    mean = a / n
    # far below the mean, w / a + 1 would forget x
    first = torch.where(x < 0.5 * mean, a * (log_x - mean.log()) - w, a * log1p_minus(w / a))
    return normal + first + b * log1p_minus(-w / b)


@in_double(26)
def tails(
    a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor, *, nodes: int
) -> tuple[Tensor, ...]:
    """Return ``I, 1 - I, ln I, ln(1 - I)``."""

    def series(a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor) -> Values:
        rest = _Series(a, b, x, 0).rest
        one = torch.ones_like(a)
        lead = a * _logs(x, t)[0] + log_gamma_difference(b, a) - log_gamma_difference(one, a)
        p, log_p = lead.exp() * (1 + rest), lead + rest.log1p()
        q = -lead.expm1() - lead.exp() * rest
        return p, q, log_p, torch.where(q < 0.5, q.log(), (-p).log1p())

    def integral(a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor) -> Values:
        upper = _logs(x, t)[0] + digamma_difference(a, b) >= 0
        sigma = 2.0 * upper - 1.0
        (total,) = _moments(a, b, x, w, sigma, nodes, 0)
        log_small = _log_density(a, b, x, t, w) + total.log()
        small = log_small.exp()
        large, log_large = 1 - small, (-small).log1p()
        return (
            torch.where(upper, large, small),
            torch.where(upper, small, large),
            torch.where(upper, log_large, log_small),
            torch.where(upper, log_small, log_large),
        )

    mirrored, args = _oriented(a, b, x, t, w)
    p, q, log_p, log_q = _regions(4, args, series, integral)
    return (
        torch.where(mirrored, q, p),
        torch.where(mirrored, p, q),
        torch.where(mirrored, log_q, log_p),
        torch.where(mirrored, log_p, log_q),
    )


@in_double(22)
def slopes(
    a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor, *, nodes: int
) -> tuple[Tensor, ...]:
    """Return ``dt/da`` and ``dt/db``."""

    def series(a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor) -> Values:
        log_x, log_y = _logs(x, t)
        S = _Series(a, b, x, 1)
        scale = -(-b * log_y).exp() / a
        by_a = log_x + _slope_of_lead(a, b)
        by_b = digamma_difference(b, a)
        return (
            scale * (by_a * (1 + S.rest) + S.a),
            scale * (by_b * (1 + S.rest) + S.b),
        )

    def integral(a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor) -> Values:
        log_x, log_y = _logs(x, t)
        score_a, score_b = log_x + digamma_difference(a, b), log_y + digamma_difference(b, a)
        sigma = 2.0 * (score_a >= 0) - 1.0
        one, alpha, beta = _moments(a, b, x, w, sigma, nodes, 1)
        return score_a.mul_(sigma) * one + alpha, score_b.mul_(sigma) * one + beta

    mirrored, args = _oriented(a, b, x, t, w)
    by_a, by_b = _regions(2, args, series, integral)
    return torch.where(mirrored, -by_b, by_a), torch.where(mirrored, -by_a, by_b)


def _slope_of_lead(a: Tensor, b: Tensor) -> Tensor:
    """Return ``psi(a + b) - psi(a + 1)``."""
    difference = digamma_difference(a + b.clamp(max=1.0), (b - 1).abs())
    return torch.where(b < 1, -difference, difference)


@in_double(26)
def curvatures(
    a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor, *, nodes: int
) -> tuple[Tensor, ...]:
    """Return the derivatives by (a, b) of ``dt/da``, then those of ``dt/db``, at a fixed ``t``."""

    def series(a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor) -> Values:
        log_x, log_y = _logs(x, t)
        S = _Series(a, b, x, 2)
        total, scale = 1 + S.rest, -(-b * log_y).exp() / a
        lead_a, lead_b = log_x + _slope_of_lead(a, b), digamma_difference(b, a)
        both = trigamma(a + b)
        in_a, in_b = lead_a * total + S.a, lead_b * total + S.b
        in_aa = (both - trigamma(1 + a)) * total + lead_a * S.a + S.aa
        in_ab = both * total + lead_a * S.b + S.ab
        in_ba = both * total + lead_b * S.a + S.ab
        in_bb = trigamma_difference(b, a) * total + lead_b * S.b + S.bb
        return (
            scale * (in_aa - in_a / a),
            scale * (in_ab - log_y * in_a),
            scale * (in_ba - in_b / a),
            scale * (in_bb - log_y * in_b),
        )

    def integral(a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor) -> Values:
        log_x, log_y = _logs(x, t)
        score_a, score_b = log_x + digamma_difference(a, b), log_y + digamma_difference(b, a)
        sigma = 2.0 * (score_a >= 0) - 1.0
        one, alpha, beta, aa, ab, bb = _moments(a, b, x, w, sigma, nodes, 2)
        e_a, e_b = sigma * score_a, sigma * score_b
        both = trigamma(a + b)
        return (
            sigma * (e_a * alpha + aa + trigamma_difference(a, b) * one),
            sigma * (e_a * beta + ab + both * one),
            sigma * (e_b * alpha + ab + both * one),
            sigma * (e_b * beta + bb + trigamma_difference(b, a) * one),
        )

    mirrored, args = _oriented(a, b, x, t, w)
    aa, ab, ba, bb = _regions(4, args, series, integral)
    return (
        torch.where(mirrored, -bb, aa),
        torch.where(mirrored, -ba, ab),
        torch.where(mirrored, -ab, ba),
        torch.where(mirrored, -aa, bb),
    )
