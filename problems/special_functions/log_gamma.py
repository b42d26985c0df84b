r"""Log-gammas by what is left of them beside Stirling's formula, so that large ones do not cancel.

With ``lgamma(x) = (x - 1/2) ln x - x + ln(2 pi) / 2 + delta(x)``, the powers and logarithms of a
density are joined before they are evaluated: they make the deviance ``ln(1 + w) - w``, and only
``delta``, which falls like ``1 / (12 x)``, is a difference. All are functions of float64 tensors,
differentiable to second order. Sources: Loader, "Fast and accurate computation of binomial
probabilities" (2000); Abramowitz and Stegun, "Handbook of Mathematical Functions", section 6.1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.special_functions import gamma, polygamma
from implicit_solvers.problems.special_functions.derivatives import in_double, piecewise
from implicit_solvers.problems.special_functions.normal import LOG_ROOT, legendre_nodes

__all__ = [
    "bregman",
    "deviance",
    "digamma_rise",
    "gamma_divergence",
    "gamma_entropy",
    "gamma_log_density",
    "log1p_minus",
    "log_gamma_excess",
    "stirling_error",
]

Function = Callable[..., Tensor]


def _stirling_slope_value(x: Tensor) -> Tensor:
    small = x < polygamma.SHIFT
    direct = x.digamma() - x.log() + 0.5 / x
    return torch.where(small, direct, polygamma.stirling_series(x.clamp(min=polygamma.SHIFT), 1))


def _shifted_stirling(order: int, step: Function) -> Function:
    """Return a derivative of ``delta``; ``step(x)`` is its difference from ``x + 1`` to ``x``."""

    def value(x: Tensor) -> Tensor:
        small = x < polygamma.SHIFT
        total = polygamma.stirling_series(torch.where(small, x + polygamma.SHIFT, x), order)
        steps = torch.zeros_like(total)
        for k in range(polygamma.SHIFT):
            steps += step(x + k)
        return torch.where(small, total + steps, total)

    return value


log1p_minus = ims.elementwise_function(
    polygamma.log1p_minus, lambda _, x: [lambda: -x / (1 + x)], name="log1p_minus"
)
_stirling_third = ims.elementwise_function(
    _shifted_stirling(3, lambda x: -(1 / x + 1 / (x + 1)) / (x * (x + 1)) ** 2),
    None,
    name="third derivative of stirling_error",
)
_stirling_second = ims.elementwise_function(
    _shifted_stirling(2, lambda x: 0.5 / (x * (x + 1)) ** 2),
    lambda _, x: [lambda: _stirling_third(x)],
    name="second derivative of stirling_error",
)
_stirling_slope = ims.elementwise_function(
    _stirling_slope_value,
    lambda _, x: [lambda: _stirling_second(x)],
    name="derivative of stirling_error",
)
stirling_error = ims.elementwise_function(
    polygamma.stirling_error, lambda _, x: [lambda: _stirling_slope(x)], name="stirling_error"
)


def bregman(
    function: Function, slope: Function, curvature: Function, radius: Function, name: str
) -> Function:
    """Return ``D(y, x) = f(y) - f(x) - (y - x) f'(x)`` of a convex function of positive numbers.

    Within ``radius(x)`` of the diagonal it is the integral of the curvature, so that it has its
    digits there too. The radius is an eighth of the distance from ``x`` to the nearest singularity
    in the complex plane.

    Examples
    --------
    >>> one = torch.tensor(1.0)
    >>> square = bregman(torch.square, lambda x: 2 * x, lambda x: 2 + 0 * x, torch.clone, "square")
    >>> square(one + 0.25, one)
    tensor(0.0625)
    """

    def mean_curvature(y: Tensor, x: Tensor, weight: Callable[[Tensor], Tensor]) -> Tensor:
        pairs = torch.tensor(legendre_nodes(6), dtype=x.dtype, device=x.device)
        s, w = pairs.T.unsqueeze(-1)
        return (w * weight(s) * curvature(x + s * (y - x))).sum(0)

    def joined(near: Function, far: Function) -> Function:
        @in_double(0)
        def value(y: Tensor, x: Tensor, *, nodes: int) -> tuple[Tensor, ...]:
            close = (y - x).abs() < radius(x)
            return piecewise(
                1, (y, x), (close, lambda *a: (near(*a),)), (~close, lambda *a: (far(*a),))
            )

        return lambda y, x: value(y, x)[0]

    rise = ims.elementwise_function(
        joined(
            lambda y, x: (y - x) * mean_curvature(y, x, torch.ones_like),
            lambda y, x: slope(y) - slope(x),
        ),
        lambda _, y, x: [lambda: curvature(y), lambda: -curvature(x)],
        name=f"difference of the derivative of {name}",
    )
    divergence: Function = ims.elementwise_function(
        joined(
            lambda y, x: (y - x).square() * mean_curvature(y, x, lambda s: 1 - s),
            lambda y, x: function(y) - function(x) - (y - x) * slope(x),
        ),
        lambda _, y, x: [lambda: rise(y, x), lambda: -(y - x) * curvature(x)],
        name=f"Bregman divergence of {name}",
    )
    return divergence


_stirling_divergence = bregman(
    stirling_error, _stirling_slope, _stirling_second, lambda x: x / 8, "stirling_error"
)


_trigamma_rise = ims.elementwise_function(
    polygamma.trigamma_difference,
    lambda _, x, y: [
        lambda: polygamma.tetragamma(x + y) - polygamma.tetragamma(x),
        lambda: polygamma.tetragamma(x + y),
    ],
    name="trigamma_rise",
)
# ``digamma(x + y) - digamma(x)`` for ``x > 0, y >= 0``
digamma_rise = ims.elementwise_function(
    polygamma.digamma_difference,
    lambda _, x, y: [lambda: _trigamma_rise(x, y), lambda: polygamma.trigamma(x + y)],
    name="digamma_rise",
)


def log_gamma_excess(x: Tensor, y: Tensor | float) -> Tensor:
    """Return ``lgamma(x + y) - lgamma(x) - y ln x`` for ``x > 0, y >= 0``.

    It falls like ``y (y - 1) / (2 x)``.
    """
    ratio = y / x
    lead = x * log1p_minus(ratio) + (y - 0.5) * ratio.log1p()
    return lead + stirling_error(x + y) - stirling_error(x)


def gamma_log_density(a: Tensor, z: Tensor) -> Tensor:
    """Return the logarithm of the density of a gamma variable of the rate 1, for ``z >= 0``.

    Examples
    --------
    >>> gamma_log_density(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
    tensor([ 0., -1.])
    """
    edge = (z == 0) | (z == torch.inf)
    inside = torch.where(edge, 1.0, z)
    log_z = inside.log()
    outside = torch.where(edge, torch.xlogy(a - 1, z) - z, 0.0)
    return torch.where(edge, outside, gamma.log_density(a, inside, log_z) - log_z)


def gamma_entropy(a: Tensor) -> Tensor:
    """Return the entropy of a gamma variable of the rate 1."""
    normal = 0.5 * a.log() + LOG_ROOT + 0.5
    return normal + stirling_error(a) - 0.5 / a + (1 - a) * _stirling_slope(a)


def deviance(ratio: Tensor, excess: Tensor) -> Tensor:
    """Return ``r - 1 - ln r`` from ``r`` and ``r - 1``, each for its digits.

    Examples
    --------
    >>> deviance(torch.tensor([1.0, 1e-30]), torch.tensor([1e-8, -1.0]))
    tensor([5.0000e-17, 6.8078e+01])
    """
    near = excess.abs() < 0.4
    far = excess - torch.where(near, 1.0, ratio).log()
    return torch.where(near, -log1p_minus(torch.where(near, excess, 0.0)), far)


def gamma_divergence(a: Tensor, b: Tensor, ratio: Tensor, excess: Tensor) -> Tensor:
    """Return the divergence of a gamma variable from another, of the shapes ``a`` and ``b``.

    ``ratio`` is the quotient of the means, ``excess`` what it exceeds 1 by. Three terms, none of
    them negative.

    Examples
    --------
    Of exponential variables, with the rates 1 and 2: ``2 - 1 - ln 2``.

    >>> one = torch.tensor(1.0)
    >>> gamma_divergence(one, one, 2 * one, one)
    tensor(0.3069)
    """
    of_shapes = 0.5 * deviance(b / a, (b - a) / a) + _stirling_divergence(b, a)
    return of_shapes + b * deviance(ratio, excess)
