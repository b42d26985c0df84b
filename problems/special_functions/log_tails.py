r"""The logarithms of both tails of a distribution, from one evaluation.

With the density ``f`` and the derivative ``s = dx/dphi`` of a variable at a fixed value of its CDF,

    d ln F = f / F (dx - s dphi),    d ln(1 - F) = -f / (1 - F) (dx - s dphi),

where the quotients come from differences of logarithms, so that no tail underflows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.special_functions import (
    beta,
    beta_evaluation,
    beta_partials,
    gamma,
    gamma_evaluation,
    student_t,
    student_t_evaluation,
    von_mises,
)
from implicit_solvers.problems.special_functions.derivatives import doubles, in_double

__all__ = [
    "log_beta_tails",
    "log_gamma_tails",
    "student_t_log_tails",
    "student_t_motion",
    "von_mises_log_arcs",
    "von_mises_log_tails",
]

Pair = tuple[Tensor, Tensor]


def _rates(log_density: Tensor, tails: Pair) -> Pair:
    """Return ``f / F`` and ``-f / (1 - F)``."""
    below, above = tails
    return (log_density - below).exp(), -(log_density - above).exp()


def _times(pair: Pair, factor: Tensor) -> Pair:
    return pair[0] * factor, pair[1] * factor


# ---------------------------------------------------------------------------------------- gamma


def _gamma_partials(tails: Pair, a: Tensor, z: Tensor, u: Tensor) -> list[Any]:
    rates = functools.cache(lambda: _rates(gamma.log_density(a, z, u), tails))
    return [lambda: _times(rates(), -gamma.slope(a, z, u)), None, lambda: rates()]


_gamma = ims.elementwise_function(
    lambda a, z, u: gamma_evaluation.tails(a, z, u)[2:], _gamma_partials, name="log_gamma_tails"
)


def log_gamma_tails(a: Tensor | float, z: Tensor | float) -> Pair:
    """Return ``ln P(a, z)`` and ``ln Q(a, z)`` of the incomplete gamma functions.

    Domain and errors are those of `log_gammainc` and `log_gammaincc`.
    """
    at = gamma.point("log_gamma_tails", a, z, None)
    below, above = _gamma(at.a, at.z, at.u)
    return (
        at.evaluate(lambda *_: below, at.a * at.low.log() - (at.a + 1).lgamma(), at.nothing),
        at.evaluate(lambda *_: above, at.nothing - at.first_term, at.nothing - at.exponential),
    )


# ----------------------------------------------------------------------------------------- beta


def _beta_partials(tails: Pair, a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor) -> list[Any]:
    args = (a, b, x, t, w)
    rates = functools.cache(lambda: _rates(beta_partials.log_density(*args), tails))
    both = functools.cache(lambda: beta_partials.slopes(*args))
    return [
        lambda: _times(rates(), -both()[0]),
        lambda: _times(rates(), -both()[1]),
        None,
        lambda: rates(),
        None,
    ]


_beta = ims.elementwise_function(
    lambda *args: beta_evaluation.tails(*args)[2:], _beta_partials, name="log_beta_tails"
)


def log_beta_tails(a: Tensor | float, b: Tensor | float, x: Tensor | float) -> Pair:
    """Return ``ln I_x(a, b)`` and ``ln(1 - I_x(a, b))`` of the incomplete beta function.

    Domain and errors are those of `log_betainc` and `log_betaincc`.
    """
    at = beta.point("log_beta_tails", a, b, x, None)
    below, above = _beta(at.a, at.b, at.x, at.t, at.w)
    return (
        at.join(below, at.first_term(True), at.nothing - at.first_term(False, upper=True)),
        at.join(above, at.nothing - at.first_term(False), at.first_term(True, upper=True)),
    )


# -------------------------------------------------------------------- distributions around zero


def _ordered(x: Tensor, log_small: Tensor, small: Tensor) -> Pair:
    """Return ``ln F(x)`` and ``ln(1 - F(x))``, of which ``small`` is the smaller."""
    upper, log_large = x >= 0, (-small).log1p()
    return torch.where(upper, log_large, log_small), torch.where(upper, log_small, log_large)


def _symmetric(
    tails: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    log_density: Callable[[Tensor, Tensor], Tensor],
    slope: Callable[[Tensor, Tensor], Tensor],
    name: str,
) -> Callable[..., Pair]:
    """Join ``P(X > |x|)`` and its logarithm, which ``tails`` returns first, to both tails."""

    def value(x: Tensor, phi: Tensor) -> Pair:
        small, log_small, *_ = tails(x.abs(), phi)
        return _ordered(x, log_small, small)

    def partials(pair: Pair, x: Tensor, phi: Tensor) -> list[Any]:
        rates = functools.cache(lambda: _rates(log_density(x, phi), pair))
        return [lambda: rates(), lambda: _times(rates(), -slope(x, phi))]

    pair: Callable[..., Pair] = ims.elementwise_function(value, partials, name=name)
    return pair


@in_double(0)
def _t_log_density_value(t: Tensor, df: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    y = student_t_evaluation.growth(t, df)
    return (student_t_evaluation.log_mass(y, df) - 0.5 * (y + df.log()),)


_t_log_density = ims.elementwise_function(
    lambda t, df: _t_log_density_value(t, df)[0],
    lambda _, t, df: [
        lambda: student_t.log_density_slope(t, df),
        lambda: student_t.score(t, df),
    ],
    name="logarithm of the student_t density",
)


@in_double(24)
def _motion_value(t: Tensor, df: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    y = student_t_evaluation.growth(t, df)
    log_small, relative = student_t_evaluation.tail_and_slope(y, df, nodes)
    return *_ordered(t, log_small, log_small.exp()), relative


def _motion_partials(motion: tuple[Tensor, ...], t: Tensor, df: Tensor) -> list[Any]:
    below, above, relative = motion
    rates = functools.cache(lambda: _rates(_t_log_density(t, df), (below, above)))
    return [
        lambda: (*rates(), student_t.drift(t, df)),
        lambda: (*_times(rates(), -t * relative), student_t.curvature(t, df)),
    ]


_motion = ims.elementwise_function(_motion_value, _motion_partials, name="student_t_motion")
_student_t = _symmetric(
    student_t.tails,
    _t_log_density,
    lambda t, df: t * student_t.relative_slope(t, df),
    "student_t_log_tails",
)


def _admissible(t: Tensor, df: Tensor) -> tuple[Tensor, Tensor]:
    """Return a finite ``t``, and ``df``: outside of (0, inf) it and its gradient are NaN."""
    freedom = df + torch.where((df > 0) & (df < torch.inf), 0.0, torch.nan)
    return torch.where(t.isinf(), 1.0, t), freedom


def _with_limits(tails: tuple[Tensor, ...], t: Tensor, df: Tensor, dtype: torch.dtype) -> Pair:
    """Return the tails, at an infinite ``t`` their limits, without derivatives."""
    below, above = (
        torch.where(t.isinf(), torch.where(s * t > 0, 0.0, -torch.inf) + 0 * df.detach(), tail)
        for s, tail in zip((1, -1), tails, strict=True)
    )
    return below.to(dtype), above.to(dtype)


def student_t_log_tails(t: Tensor | float, df: Tensor | float) -> Pair:
    """Return ``ln F(t)`` and ``ln(1 - F(t))`` of Student's t distribution.

    Domain and errors are those of `student_t_logcdf` and `student_t_logsf`. The derivatives, where
    a tail is ``exp(-m)``, have the relative error ``1e-11 + 1e-15 m``; they are 0 at an infinite
    ``t``.
    """
    dtype, place, freedom = doubles("student_t_log_tails", t=t, df=df)
    inside, freedom = _admissible(place, freedom)
    return _with_limits(_student_t(inside, freedom), place, freedom, dtype)


def student_t_motion(t: Tensor | float, df: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Return both tails as `student_t_log_tails`, and ``dt/dn`` as `student_t_sample_derivative`.

    All are from one evaluation, with derivatives of first order.
    """
    dtype, place, freedom = doubles("student_t_motion", t=t, df=df)
    inside, freedom = _admissible(place, freedom)
    *tails, relative = _motion(inside, freedom)
    slope = torch.where(place.isinf(), -place, inside * relative).to(dtype)
    return *_with_limits(tuple(tails), place, freedom, dtype), slope


@in_double(0)
def _angle_log_density_value(x: Tensor, k: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    return (von_mises.log_density(x, k),)


_angle_log_density = ims.elementwise_function(
    lambda x, k: _angle_log_density_value(x, k)[0],
    lambda _, x, k: [lambda: -k * x.sin(), lambda: von_mises.score(x, k)],
    name="logarithm of the von_mises density",
)
_von_mises = _symmetric(
    von_mises.tails, _angle_log_density, von_mises.derivative, "von_mises_log_tails"
)


def von_mises_log_tails(x: Tensor | float, concentration: Tensor | float) -> Pair:
    """Return ``ln F(x)`` and ``ln(1 - F(x))`` of the von Mises distribution around 0.

    Domain and errors are those of `von_mises_logcdf` and `von_mises_logsf`.
    """
    return _von_mises(x, concentration)


def _log_arcs_value(x: Tensor, start: Tensor, k: Tensor) -> Pair:
    (below_x, above_x), (below_start, above_start) = _von_mises(x, k), _von_mises(start, k)
    # on one side lies the angle opposite to the location
    beyond = x < start
    around = torch.where(
        beyond, torch.logaddexp(below_x, above_start), torch.logaddexp(below_start, above_x)
    )
    left = x + start < 0
    first, second = (
        torch.where(left, below, above)
        for below, above in ((below_x, above_x), (below_start, above_start))
    )
    between = torch.maximum(first, second) + (-(-(first - second).abs()).expm1()).log()
    between = torch.where(x == start, -torch.inf, between)
    return torch.where(beyond, around, between), torch.where(beyond, between, around)


def _log_arcs_partials(pair: Pair, x: Tensor, start: Tensor, k: Tensor) -> list[Any]:
    at_x = functools.cache(lambda: _rates(_angle_log_density(x, k), pair))
    at_start = functools.cache(lambda: _rates(_angle_log_density(start, k), pair))

    def by_k() -> Pair:
        ends = ((at_x(), von_mises.derivative(x, k)), (at_start(), von_mises.derivative(start, k)))
        (of_x, slope_x), (of_start, slope_start) = ends
        below, above = (slope_start * s - slope_x * r for r, s in zip(of_x, of_start, strict=True))
        return below, above

    return [lambda: at_x(), lambda: _times(at_start(), -torch.ones_like(x)), by_k]


_log_arcs = ims.elementwise_function(_log_arcs_value, _log_arcs_partials, name="von_mises_log_arcs")


def von_mises_log_arcs(
    x: Tensor | float, start: Tensor | float, concentration: Tensor | float
) -> Pair:
    """Return the logarithms of the probabilities of the arcs from ``start`` to ``x`` and back.

    The von Mises distribution is that around 0; angles are in [-pi, pi], arcs run counterclockwise.
    Both results are differentiable in all arguments; one is a difference, with an absolute error of
    1e-16 times the larger term.

    Examples
    --------
    >>> there, back = von_mises_log_arcs(torch.tensor(0.0), -torch.pi, 2.0)
    >>> there.exp(), back.exp()
    (tensor(0.5000), tensor(0.5000))
    """
    return _log_arcs(x, start, concentration)
