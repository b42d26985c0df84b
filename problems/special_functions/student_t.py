r"""Student's t CDF, and how a t variable moves with its degrees of freedom.

With ``n`` the degrees of freedom, ``f`` the density, ``s = d ln f/dn`` and ``d = d ln |t|/dn`` at a
fixed value of the CDF,

    dF/dn = -t f d,    dt/dn = t d,    t dd/dt = d ((n + 1) r - 1) - s,    r = t^2 / (n + t^2).

``t`` overflows for small ``n`` (in half of all draws for ``n = 1e-3``): what is named ``log`` takes
``ln |t|`` instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.special_functions import student_t_evaluation as evaluation
from implicit_solvers.problems.special_functions.derivatives import (
    doubles,
    in_double,
)

__all__ = [
    "student_t_cdf",
    "student_t_log_sample_derivative",
    "student_t_log_tail",
    "student_t_logcdf",
    "student_t_logsf",
    "student_t_sample_derivative",
    "student_t_sf",
]

Values = tuple[Tensor, ...]
Value = Callable[[Tensor, Tensor], Tensor]


# ------------------------------------------------------------------------------ plain evaluation


@in_double(24)
def tails(t: Tensor, df: Tensor, *, nodes: int) -> Values:
    """Return ``S = P(T > t)``, ``ln S``, ``f / S`` and ``t f / S``."""
    y = evaluation.growth(t, df)
    log_small, ratio = evaluation.tails(y, df, nodes)
    upper, small = t >= 0, log_small.exp()
    ratio = torch.where(upper, ratio, -evaluation.log_mass(y, df).exp() / (1 - small))
    return (
        torch.where(upper, small, 1 - small),
        torch.where(upper, log_small, (-small).log1p()),
        ratio.abs() * (-0.5 * y).exp() / df.sqrt(),
        ratio * (-(-y).expm1()).sqrt(),
    )


@in_double(24)
def _log_tails(log_t: Tensor, df: Tensor, *, nodes: int) -> Values:
    """Return ``ln S`` and ``t f / S``."""
    y = evaluation.growth_of_log(log_t, df)
    log_small, ratio = evaluation.tails(y, df, nodes)
    return log_small, ratio * (-(-y).expm1()).sqrt()


@in_double(0)
def _densities(t: Tensor, df: Tensor, *, nodes: int) -> Values:
    """Return ``f`` and ``t f``."""
    y = evaluation.growth(t, df)
    mass = evaluation.log_mass(y, df).exp()
    root = (-(-y).expm1()).sqrt()
    return mass * (-0.5 * y).exp() / df.sqrt(), torch.where(t < 0, -mass, mass) * root


def _of_growth(
    growth: Value, formula: Callable[[Tensor, Tensor, int], Tensor], nodes: int = 0
) -> Value:
    """Evaluate ``formula(y, df, nodes)``, where ``y`` is the growth at an argument."""

    @in_double(nodes)
    def value(place: Tensor, df: Tensor, *, nodes: int) -> Values:
        return (formula(growth(place, df), df, nodes),)

    return lambda place, df: value(place, df)[0]


def _score_value(y: Tensor, df: Tensor, nodes: int) -> Tensor:
    return evaluation.score(y, df)


def _tilt_value(y: Tensor, df: Tensor, nodes: int) -> Tensor:
    """Return ``d ln(t f)/d ln t = 1 - (n + 1) r``."""
    return 1 + (df + 1) * (-y).expm1()


@in_double(24)
def _drift_value(t: Tensor, df: Tensor, *, nodes: int) -> Values:
    """Return ``dd/dt``."""
    y = evaluation.growth(t, df)
    d, s = evaluation.relative_slope(y, df, nodes), evaluation.score(y, df)
    by_log = -d * _tilt_value(y, df, 0) - s
    # nearer to 0 the quotient would be of rounding errors
    return (torch.where(t.abs() < 1e-150, 0.0, by_log / t),)


# ------------------------------------------------------------------------- differentiable functions


def _last(value: Value, name: str) -> Value:
    return ims.elementwise_function(value, None, name=name)


score = _last(_of_growth(evaluation.growth, _score_value), "score of student_t")
_tilt = _last(_of_growth(evaluation.growth, _tilt_value), "d ln(t f)/d ln t of student_t")
curvature = _last(
    _of_growth(evaluation.growth, evaluation.curvature, 24),
    "second derivative of student_t_sample",
)
drift = _last(lambda t, df: _drift_value(t, df)[0], "derivative of d ln t/ddf of student_t")


def log_density_slope(t: Tensor, df: Tensor) -> Tensor:
    """Return ``d ln f/dt``."""
    return -(df + 1) * (t / (df + t * t))


relative_slope = ims.elementwise_function(
    _of_growth(evaluation.growth, evaluation.relative_slope, 22),
    lambda _, t, df: [lambda: drift(t, df), lambda: curvature(t, df)],
    name="d ln t/ddf of student_t",
)
_density = ims.elementwise_function(
    lambda t, df: _densities(t, df)[0],
    lambda f, t, df: [lambda: f * log_density_slope(t, df), lambda: f * score(t, df)],
    name="student_t_density",
)
_mass = ims.elementwise_function(
    lambda t, df: _densities(t, df)[1],
    lambda m, t, df: [lambda: _density(t, df) * _tilt(t, df), lambda: m * score(t, df)],
    name="t f(t) of student_t",
)
_hazard: Value = ims.elementwise_function(
    lambda t, df: tails(t, df)[2],
    lambda r, t, df: [
        lambda: r * (r + log_density_slope(t, df)),
        lambda: r * (score(t, df) - _relative_hazard(t, df) * relative_slope(t, df)),
    ],
    name="student_t_hazard",
)
_relative_hazard: Value = ims.elementwise_function(
    lambda t, df: tails(t, df)[3],
    lambda r, t, df: [
        lambda: _hazard(t, df) * (r + _tilt(t, df)),
        lambda: r * (score(t, df) - r * relative_slope(t, df)),
    ],
    name="t f(t) / P(T > t) of student_t",
)
_sf = ims.elementwise_function(
    lambda t, df: tails(t, df)[0],
    lambda _, t, df: [lambda: -_density(t, df), lambda: _mass(t, df) * relative_slope(t, df)],
    name="student_t_sf",
)
_log_sf = ims.elementwise_function(
    lambda t, df: tails(t, df)[1],
    lambda _, t, df: [
        lambda: -_hazard(t, df),
        lambda: _relative_hazard(t, df) * relative_slope(t, df),
    ],
    name="student_t_logsf",
)

# the same as functions of ln t
_score_of_log = _last(_of_growth(evaluation.growth_of_log, _score_value), "score of student_t")
_tilt_of_log = _last(
    _of_growth(evaluation.growth_of_log, _tilt_value), "d ln(t f)/d ln t of student_t"
)
_curvature_of_log = _last(
    _of_growth(evaluation.growth_of_log, evaluation.curvature, 24),
    "second derivative of student_t_log_sample",
)
_relative_of_log = ims.elementwise_function(
    _of_growth(evaluation.growth_of_log, evaluation.relative_slope, 22),
    lambda d, u, df: [
        lambda: -d * _tilt_of_log(u, df) - _score_of_log(u, df),
        lambda: _curvature_of_log(u, df),
    ],
    name="student_t_log_sample_derivative",
)
_hazard_of_log = ims.elementwise_function(
    lambda u, df: _log_tails(u, df)[1],
    lambda r, u, df: [
        lambda: r * (r + _tilt_of_log(u, df)),
        lambda: r * (_score_of_log(u, df) - r * _relative_of_log(u, df)),
    ],
    name="t f(t) / P(T > t) of student_t",
)
_log_tail = ims.elementwise_function(
    lambda u, df: _log_tails(u, df)[0],
    lambda _, u, df: [
        lambda: -_hazard_of_log(u, df),
        lambda: _hazard_of_log(u, df) * _relative_of_log(u, df),
    ],
    name="student_t_log_tail",
)


# ------------------------------------------------------------------------------------- public


def _evaluate(
    name: str,
    function: Value,
    t: Tensor | float,
    df: Tensor | float,
    at_infinity: Callable[[Tensor], Tensor],
    lower: bool = False,
) -> Tensor:
    """Evaluate in double, at ``-t`` for a lower tail; an infinite ``t`` has its limit.

    The limit has no derivative.
    """
    dtype, place, freedom = doubles(name, t=t, df=df)
    place = -place if lower else place
    infinite = place.isinf()
    # adding NaN keeps the gradient NaN too
    freedom = freedom + torch.where((freedom > 0) & (freedom < torch.inf), 0.0, torch.nan)
    inside = function(torch.where(infinite, 1.0, place), freedom)
    limit = at_infinity(torch.where(infinite, place, 0.0)) + 0 * freedom.detach()
    return torch.where(infinite, limit, inside).to(dtype)


def _mass_beyond(t: Tensor) -> Tensor:
    return (t < 0).to(t.dtype)


def _log_mass_beyond(t: Tensor) -> Tensor:
    return torch.where(t > 0, -torch.inf, 0.0)


def _evaluate_log(name: str, function: Value, log_t: Tensor | float, df: Tensor | float) -> Tensor:
    dtype, place, freedom = doubles(name, log_t=log_t, df=df)
    return function(place, freedom).to(dtype)


def student_t_cdf(t: Tensor | float, df: Tensor | float) -> Tensor:
    r"""Return the CDF of Student's t distribution.

    .. math:: F(t) = \frac{\Gamma(\frac{n+1}{2})}{\sqrt{n \pi} \, \Gamma(\frac{n}{2})}
              \int_{-\infty}^t \Bigl(1 + \frac{u^2}{n}\Bigr)^{-(n+1)/2} \, du

    Differentiable in both arguments, to second order, in every mode and under ``vmap``. In float64
    the relative error is at most 5e-14 where ``F > 1e-13`` and 5e-13 where ``F > 1e-300``, that of
    ``dF/dn`` 1e-11; of second derivatives, 1e-11 of the sum of their absolute terms. Lower
    precisions are computed in float64 and rounded.

    Parameters
    ----------
    t : Tensor or float
        The variable. At an infinite ``t`` the derivatives are 0.
    df : Tensor or float
        ``n``, degrees of freedom, ``0 < n < inf``; elsewhere the result is NaN. It is broadcast
        with ``t``.

    Returns
    -------
    Tensor
        ``F(t)``, with the common dtype of the arguments.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    >>> student_t_cdf(torch.tensor([-3.0, 0.0, 1.0]), 1.0)
    tensor([0.1024, 0.5000, 0.7500])
    >>> torch.func.grad(student_t_cdf, argnums=1)(torch.tensor(1.0), torch.tensor(2.0))
    tensor(0.0225)
    """
    return _evaluate("student_t_cdf", _sf, t, df, _mass_beyond, lower=True)


def student_t_sf(t: Tensor | float, df: Tensor | float) -> Tensor:
    """Return the survival function ``1 - F(t)`` of Student's t distribution.

    Computed where it is the smaller one, not by subtraction.

    Parameters
    ----------
    t, df : Tensor or float
        As in `student_t_cdf`.

    Returns
    -------
    Tensor
        ``1 - F(t)``, with the common dtype of the arguments, and the derivatives and errors of
        `student_t_cdf`.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    >>> student_t_sf(torch.tensor([1e3, torch.inf], dtype=torch.float64), 10.0)
    tensor([1.2304e-26, 0.0000e+00], dtype=torch.float64)
    """
    return _evaluate("student_t_sf", _sf, t, df, _mass_beyond)


def student_t_logcdf(t: Tensor | float, df: Tensor | float) -> Tensor:
    """Return ``ln F(t)`` of Student's t distribution, also where ``F`` underflows.

    Parameters
    ----------
    t, df : Tensor or float
        As in `student_t_cdf`.

    Returns
    -------
    Tensor
        ``ln F(t)``, with the common dtype of the arguments; the relative error in float64 is at
        most 1e-13 where ``F < 1/2``.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    >>> student_t_logcdf(torch.tensor(-1e3), 1e3)
    tensor(-3458.7...)
    """
    return _evaluate("student_t_logcdf", _log_sf, t, df, _log_mass_beyond, lower=True)


def student_t_logsf(t: Tensor | float, df: Tensor | float) -> Tensor:
    """Return ``ln(1 - F(t))`` of Student's t distribution, also where ``1 - F`` underflows.

    Parameters
    ----------
    t, df : Tensor or float
        As in `student_t_cdf`.

    Returns
    -------
    Tensor
        ``ln(1 - F(t))``, with the common dtype of the arguments, and the errors of
        `student_t_logcdf`.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    >>> student_t_logsf(torch.tensor(0.0), 3.0)
    tensor(-0.6931)
    """
    return _evaluate("student_t_logsf", _log_sf, t, df, _log_mass_beyond)


def student_t_log_tail(log_t: Tensor | float, df: Tensor | float) -> Tensor:
    """Return ``ln P(T > t)`` for ``t > 0``, from ``ln t``: where ``t`` itself overflows.

    Parameters
    ----------
    log_t : Tensor or float
        Logarithm of ``t``.
    df : Tensor or float
        ``n``, degrees of freedom, ``0 < n < inf``; elsewhere the result is NaN.

    Returns
    -------
    Tensor
        ``ln P(T > t)``, with the common dtype of the arguments, and the derivatives and errors of
        `student_t_logcdf`.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    Far out it is ``-n ln t``, up to a constant:

    >>> student_t_log_tail(torch.tensor([2e3, 4e3]), 1e-3)
    tensor([-2.6...])
    """
    return _evaluate_log("student_t_log_tail", _log_tail, log_t, df)


def student_t_sample_derivative(df: Tensor | float, t: Tensor | float) -> Tensor:
    """Return how a t variable moves with its degrees of freedom.

    ``dt/dn = -(dF/dn) / f`` at a fixed value of the CDF, computed as one integral of terms of one
    sign, so that it is accurate however far ``t`` is in a tail. Differentiable once more. Source:
    Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018), equation 6.

    Parameters
    ----------
    df : Tensor or float
        ``n``, degrees of freedom, ``0 < n < inf``; elsewhere the result is NaN.
    t : Tensor or float
        The variable, broadcast with ``df``.

    Returns
    -------
    Tensor
        ``dt/dn``, with the common dtype of the arguments. In float64 the relative error is at most
        1e-11; of its derivatives, 1e-11 of the sum of their absolute terms.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    It tends to ``-(t + t^3) / (4 n^2)``:

    >>> student_t_sample_derivative(1e3, torch.tensor([-2.0, 0.5]))
    tensor([ 2.4980e-06, -1.5626e-07])
    """

    def derivative(t: Tensor, df: Tensor) -> Tensor:
        return t * relative_slope(t, df)

    return _evaluate("student_t_sample_derivative", derivative, t, df, torch.neg)


def student_t_log_sample_derivative(df: Tensor | float, log_t: Tensor | float) -> Tensor:
    """Return ``d ln|t|/dn`` at a fixed value of the CDF, from ``ln|t|``: where ``t`` overflows.

    Otherwise as `student_t_sample_derivative`, of which it is the quotient by ``t``.

    Parameters
    ----------
    df : Tensor or float
        ``n``, degrees of freedom, ``0 < n < inf``; elsewhere the result is NaN.
    log_t : Tensor or float
        Logarithm of the absolute value of the variable, broadcast with ``df``.

    Returns
    -------
    Tensor
        ``d ln|t|/dn``, with the common dtype of the arguments.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    Far out ``P(T > t)`` falls like ``t^-n``, and ``d ln t/dn`` tends to ``-(ln t) / n``:

    >>> student_t_log_sample_derivative(1e-3, torch.tensor(1e4))
    tensor(-1000364...)
    """
    return _evaluate_log("student_t_log_sample_derivative", _relative_of_log, log_t, df)
