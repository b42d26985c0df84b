r"""The von Mises CDF, and how a von Mises variable moves with its concentration.

The angle ``z`` in [-pi, pi] has the density ``f = exp(k cos z) / (2 pi I0(k))`` and the score
``d ln f / dk = cos z - A``, with ``A = I1(k) / I0(k)``. For ``z >= 0`` let ``sigma = -1`` in the
centre, ``cos z > A``, and ``sigma = +1`` in the tail. With ``q(s) = |cos z - cos(z + sigma s)|``
and ``e = |cos z - A|`` the moments ``K_j = int q^j exp(-sigma k q) ds``, from ``z`` inwards to 0 or
outwards to pi, give

    P(Z > z) = f K_0 (tail), 1/2 - f K_0 (centre),
    dz/dk = -(e K_0 + K_1),    d(dz/dk)/dk = sigma (e K_1 + K_2 - A' K_0),

where ``dz/dk = -(dF/dk) / f`` at a fixed value of the CDF: the score has one sign on that side of
``z``, so that it is a sum of positive terms however far the tail. Both are odd in ``z``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.special_functions.derivatives import (
    check_real,
    differentiable_sample,
    in_double,
    piecewise,
)
from implicit_solvers.problems.special_functions.quadrature import clustered_nodes

__all__ = [
    "von_mises_cdf",
    "von_mises_logcdf",
    "von_mises_logsf",
    "von_mises_sample",
    "von_mises_sample_derivative",
    "von_mises_sf",
]

CUTOFF = 36.0  # the integrals end where the integrand has fallen by exp(-36)
PI_REST = 1.2246467991473532e-16  # pi - math.pi
ASYMPTOTIC_ABOVE = 50.0


# ------------------------------------------------------------------------------ plain evaluation


def _asymptotic_coefficients(count: int) -> tuple[float, ...]:
    """Return ``d_1, d_2, ...`` of ``1 - A = sum_n d_n / k^n``, from ``A' = 1 - A / k - A^2``."""
    d = [0.0, 0.5]
    for n in range(2, count + 1):
        d.append(((n - 2) * d[-1] + sum(d[i] * d[n - i] for i in range(1, n))) / 2)
    return tuple(d[1:])


COEFFICIENTS = _asymptotic_coefficients(12)


def _descending(k: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Return ``c_1 / k + c_2 / k^2 + ...``."""
    inverse = 1 / k
    total = torch.zeros_like(k)
    for c in reversed(coefficients):
        total.add_(c).mul_(inverse)
    return total


def _mean_deficit(k: Tensor) -> Tensor:
    """Return ``1 - A``; the relative error is 2e-14."""
    large = k > ASYMPTOTIC_ABOVE
    (deficit,) = piecewise(
        1,
        (k,),
        (large, lambda k: (_descending(k, COEFFICIENTS),)),
        (~large, lambda k: (1 - torch.special.i1e(k) / torch.special.i0e(k),)),
    )
    return deficit


def _mean_slope(k: Tensor) -> Tensor:
    """Return ``A'``, the variance of ``cos z``; the relative error is 5e-12 (at ``k = 50``)."""
    series = _descending(k, tuple(n * c for n, c in enumerate(COEFFICIENTS, 1))) / k
    deficit = _mean_deficit(k)
    direct = deficit * (2 - deficit) - (1 - deficit) / k
    direct = torch.where(k > 1e-3, direct, 0.5 - 0.1875 * k * k)
    return torch.where(k > ASYMPTOTIC_ABOVE, series, direct)


def _mean_curvature(k: Tensor) -> Tensor:
    """Return ``A''``; the relative error is 1e-10, at ``k = 0.03``."""
    series = _descending(k, tuple(n * (n + 1) * c for n, c in enumerate(COEFFICIENTS, 1)))
    mean, slope = 1 - _mean_deficit(k), _mean_slope(k)
    direct = -slope * (2 * mean + 1 / k) + mean / (k * k)
    flat = -k * (0.375 - k * k * (5 / 24 - 0.075195 * k * k))
    direct = torch.where(k > 0.03, direct, flat)
    return torch.where(k > ASYMPTOTIC_ABOVE, -series / (k * k), direct)


def _versine(z: Tensor) -> Tensor:
    """Return ``1 - cos z``."""
    half = (0.5 * z).sin()
    return 2 * half * half


def _tail_length(z: Tensor, k: Tensor) -> Tensor:
    """Return the distance from ``z`` to where the density has fallen by the cutoff, or to pi."""
    fall = 0.5 * CUTOFF / k  # sin(end/2)^2 - sin(z/2)^2
    end = (0.5 * _versine(z) + fall).clamp(max=1).sqrt().asin()
    length = 2 * (fall / (0.5 * z + end).sin()).clamp(max=1).asin()
    return torch.where(end < 0.5 * math.pi, length, (math.pi - z) + PI_REST)


def _moments(z: Tensor, k: Tensor, tail: bool, nodes: int, order: int) -> list[Tensor]:
    """Return ``K_0, ..., K_order``."""
    sigma = 1.0 if tail else -1.0
    length = _tail_length(z, k) if tail else z
    sine, cosine, rate = 2 * z.sin(), 2 * sigma * z.cos(), -sigma * k
    moments = [torch.zeros_like(z) for _ in range(order + 1)]
    for x, weight in clustered_nodes(nodes if tail else nodes // 2):
        s = (length * (0.5 * x)).sin_()
        c = (s * s).neg_().add_(1).sqrt_()
        # 2 sin(s/2) sin(z +- s/2)
        q = c.mul_(sine).addcmul_(s, cosine).mul_(s)
        density = torch.mul(q, rate, out=s).exp_()
        for j, moment in enumerate(moments):
            moment.add_(density, alpha=weight)
            if j < order:
                density = density.mul_(q)
    return [moment.mul_(length) for moment in moments]


def _both_sides(
    z: Tensor, k: Tensor, count: int, formula: Callable[..., tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Evaluate ``formula(|z|, k, A - cos z, tail=...)`` in the centre and in the tail."""
    distance = z.abs().clamp(max=math.pi)
    offset = _versine(distance) - _mean_deficit(k)
    valid = (k >= 0) & (k < torch.inf)
    return piecewise(
        count,
        (distance, k, offset),
        (valid & (offset < 0), functools.partial(formula, tail=False)),
        (valid & (offset >= 0), functools.partial(formula, tail=True)),
    )


def log_density(z: Tensor, k: Tensor) -> Tensor:
    """Return ``k cos(z) - ln(2 pi I0(k))`` without cancellation for large ``k``.

    Examples
    --------
    >>> log_density(torch.tensor(0.0), torch.tensor(0.0))  # -ln(2 pi)
    tensor(-1.8379)
    """
    return -k * _versine(z) - (2 * math.pi * torch.special.i0e(k)).log()


@in_double(24, 12)
def tails(z: Tensor, k: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    """Return ``P(Z > z)``, its logarithm, and the hazard ``f / P(Z > z)``."""

    def formula(z: Tensor, k: Tensor, offset: Tensor, tail: bool) -> tuple[Tensor, ...]:
        (k0,) = _moments(z, k, tail, nodes, 0)
        log_f = log_density(z, k)
        if tail:
            return log_f + k0.log(), 1 / k0, log_f
        rest = 0.5 - log_f.exp() * k0
        return rest.log(), log_f.exp() / rest, log_f

    log_small, ratio, log_f = _both_sides(z, k, 3, formula)
    upper, small = z >= 0, log_small.exp()
    return (
        torch.where(upper, small, 1 - small),
        torch.where(upper, log_small, (-small).log1p()),
        torch.where(upper, ratio, log_f.exp() / (1 - small)),
    )


@in_double(22, 12)
def _slope(z: Tensor, k: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    """Return ``g = dz/dk``."""

    def formula(z: Tensor, k: Tensor, offset: Tensor, tail: bool) -> tuple[Tensor, ...]:
        k0, k1 = _moments(z, k, tail, nodes, 1)
        return (offset.abs() * k0 + k1,)

    (size,) = _both_sides(z, k, 1, formula)
    return (torch.where(z < 0, size, -size),)


@in_double(24, 14)
def _curvature(z: Tensor, k: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    """Return ``dg/dk`` at a fixed ``z``."""

    def formula(z: Tensor, k: Tensor, offset: Tensor, tail: bool) -> tuple[Tensor, ...]:
        k0, k1, k2 = _moments(z, k, tail, nodes, 2)
        total = offset.abs() * k1 + k2 - _mean_slope(k) * k0
        return (total if tail else -total,)

    (size,) = _both_sides(z, k, 1, formula)
    return (torch.where(z < 0, -size, size),)


@in_double(0, 0)
def _density_value(z: Tensor, k: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    inside = log_density(z.clamp(-math.pi, math.pi), k).exp()
    return (torch.where(k >= 0, inside, torch.nan),)


@in_double(0, 0)
def _score_value(z: Tensor, k: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
    """Return ``cos z - A``."""
    z = z.clamp(-math.pi, math.pi)
    small = z.cos() - torch.special.i1e(k) / torch.special.i0e(k)
    return (torch.where(k < 1, small, _mean_deficit(k) - _versine(z)),)


# ------------------------------------------------------------------------- differentiable functions

# d ln f/dk, d^2 z/dk^2, f, dz/dk and f / P(Z > z) with what is known of their derivatives
score = ims.elementwise_function(lambda z, k: _score_value(z, k)[0], None, name="von_mises_score")
_second = ims.elementwise_function(
    lambda z, k: _curvature(z, k)[0], None, name="second derivative of von_mises_sample"
)
_density = ims.elementwise_function(
    lambda z, k: _density_value(z, k)[0],
    lambda f, z, k: [lambda: -k * z.sin() * f, lambda: score(z, k) * f],
    name="von_mises_density",
)
derivative = ims.elementwise_function(
    lambda z, k: _slope(z, k)[0],
    lambda g, z, k: [lambda: k * z.sin() * g - score(z, k), lambda: _second(z, k)],
    name="von_mises_sample_derivative",
)
_hazard = ims.elementwise_function(
    lambda z, k: tails(z, k)[2],
    lambda r, z, k: [
        lambda: r * (r - k * z.sin()),
        lambda: r * (score(z, k) - r * derivative(z, k)),
    ],
    name="von_mises_hazard",
)
_sf = ims.elementwise_function(
    lambda z, k: tails(z, k)[0],
    lambda _, z, k: [lambda: -_density(z, k), lambda: _density(z, k) * derivative(z, k)],
    name="von_mises_sf",
)
_log_sf = ims.elementwise_function(
    lambda z, k: tails(z, k)[1],
    lambda _, z, k: [lambda: -_hazard(z, k), lambda: _hazard(z, k) * derivative(z, k)],
    name="von_mises_logsf",
)


def _of_concentration(
    value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor] | None, name: str
) -> Callable[[Tensor], Tensor]:
    double = in_double(0)(lambda k, *, nodes: (value(k),))
    partials = None if slope is None else lambda _, k: [lambda: slope(k)]
    function: Callable[[Tensor], Tensor] = ims.elementwise_function(
        lambda k: double(k)[0], partials, name=name
    )
    return function


_curvature_of_mean = _of_concentration(_mean_curvature, None, "second derivative of I1 / I0")
_slope_of_mean = _of_concentration(_mean_slope, _curvature_of_mean, "derivative of I1 / I0")
# ``1 - I1(k) / I0(k)`` and ``ln(2 pi I0(k)) - k``, differentiable to second order
mean_deficit = _of_concentration(_mean_deficit, lambda k: -_slope_of_mean(k), "1 - I1 / I0")
log_scaled_normalizer = _of_concentration(
    lambda k: math.log(2 * math.pi) + torch.special.i0e(k).log(),
    lambda k: -mean_deficit(k),
    "normalizer of von_mises",
)


def von_mises_cdf(x: Tensor | float, concentration: Tensor | float) -> Tensor:
    r"""Return the CDF of the von Mises distribution around 0.

    .. math:: F(x) = \frac{1}{2 \pi I_0(k)} \int_{-\pi}^x e^{k \cos t} \, dt

    Differentiable in both arguments, to second order, in every mode and under ``vmap``.

    Parameters
    ----------
    x : Tensor or float
        Angle minus location, in radians, in [-pi, pi]. An angle outside counts as the nearer end;
        nothing is wrapped.
    concentration : Tensor or float
        ``k``, finite and not negative; 0 is the uniform distribution. Elsewhere the result is NaN.
        The arguments are broadcast; at least one is a tensor.

    Returns
    -------
    Tensor
        ``F(x)``, with the common dtype of the arguments. In float64 the relative error is at most
        5e-14 where ``F > 1e-13`` and 5e-13 where ``F > 1e-300``, that of ``dF/dk`` 1e-11; of
        second derivatives, 1e-11 of the sum of their absolute terms. In float32, 1e-5.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    >>> von_mises_cdf(torch.tensor([-3.0, 0.0, 1.0]), 2.0)
    tensor([0.0013, 0.5000, 0.8896])
    >>> torch.func.grad(von_mises_cdf, argnums=1)(torch.tensor(1.0), torch.tensor(0.0))
    tensor(0.1339)
    """
    check_real("von_mises_cdf", x=x, concentration=concentration)
    return _sf(-x, concentration)


def von_mises_sf(x: Tensor | float, concentration: Tensor | float) -> Tensor:
    """Return the survival function ``1 - F(x)`` of the von Mises distribution around 0.

    Parameters
    ----------
    x, concentration : Tensor or float
        As in `von_mises_cdf`.

    Returns
    -------
    Tensor
        ``1 - F(x)``, with the common dtype of the arguments, and the derivatives and errors of
        `von_mises_cdf`; the relative error is that of the smaller of ``F`` and ``1 - F``.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    >>> von_mises_sf(torch.tensor(3.0, dtype=torch.float64), 50.0)
    tensor(1.7716e-44, dtype=torch.float64)
    """
    check_real("von_mises_sf", x=x, concentration=concentration)
    return _sf(x, concentration)


def von_mises_logcdf(x: Tensor | float, concentration: Tensor | float) -> Tensor:
    """Return ``ln F(x)`` of the von Mises distribution around 0, where ``F`` itself is 0 too.

    Parameters
    ----------
    x, concentration : Tensor or float
        As in `von_mises_cdf`.

    Returns
    -------
    Tensor
        ``ln F(x)``, with the common dtype of the arguments; the relative error in float64 is 1e-13.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    >>> von_mises_logcdf(torch.tensor(-3.0, dtype=torch.float64), 1e5)
    tensor(-199003.9664, dtype=torch.float64)
    """
    check_real("von_mises_logcdf", x=x, concentration=concentration)
    return _log_sf(-x, concentration)


def von_mises_logsf(x: Tensor | float, concentration: Tensor | float) -> Tensor:
    """Return ``ln(1 - F(x))`` of the von Mises distribution around 0.

    Parameters
    ----------
    x, concentration : Tensor or float
        As in `von_mises_cdf`.

    Returns
    -------
    Tensor
        ``ln(1 - F(x))``, with the common dtype of the arguments; the relative error in float64 is
        1e-13.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    >>> von_mises_logsf(torch.tensor(0.0, dtype=torch.float64), 3.0).exp()
    tensor(0.5000, dtype=torch.float64)
    """
    check_real("von_mises_logsf", x=x, concentration=concentration)
    return _log_sf(x, concentration)


def von_mises_sample_derivative(concentration: Tensor | float, z: Tensor | float) -> Tensor:
    """Return how a von Mises variable moves with its concentration.

    ``dz/dk = -(dF/dk) / f`` at a fixed value of the CDF, computed as one integral of terms of one
    sign, so that it is accurate however far ``z`` is in a tail. Differentiable once more. Source:
    Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018), equation 6.

    Parameters
    ----------
    concentration : Tensor or float
        ``k``, finite and not negative. Elsewhere the result is NaN.
    z : Tensor or float
        Angle minus location, in radians, in [-pi, pi]. An angle outside counts as the nearer end.

    Returns
    -------
    Tensor
        ``dz/dk``, with the common dtype of the arguments. In float64 the relative error is at most
        1e-11, also where the CDF is 0 or 1; of the derivatives, 1e-11 of the sum of their absolute
        terms. In float32, 1e-5.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    At the uniform distribution it is ``-sin z``:

    >>> von_mises_sample_derivative(0.0, torch.tensor([-1.0, 0.5]))
    tensor([ 0.8415, -0.4794])
    """
    return derivative(z, concentration)


def von_mises_sample(z: Tensor | float, concentration: Tensor | float) -> Tensor:
    """Return the sample ``z`` with its derivative by the concentration.

    Parameters
    ----------
    z : Tensor or float
        A sample minus its location, in radians, in [-pi, pi]; taken as a constant.
    concentration : Tensor or float
        The concentration from which ``z`` was drawn; it is broadcast with ``z``.

    Returns
    -------
    Tensor
        ``z``, differentiable to second order by the concentration.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    >>> k = torch.tensor(2.0)
    >>> torch.func.grad(lambda k: von_mises_sample(torch.tensor(0.5), k))(k)
    tensor(-0.1555)
    """
    return _sample(z, concentration)


_sample = differentiable_sample(
    lambda z, k: [lambda: von_mises_sample_derivative(k, z)], name="von_mises_sample"
)
