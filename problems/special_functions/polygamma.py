"""Polygamma functions and differences of log-gammas, accurate to a few units in the last place.

``torch.polygamma(1, x)`` has relative errors of 5e-10 and differences of ``lgamma`` or ``digamma``
cancel; here small arguments are shifted by the recurrence, and the rest is the asymptotic series.
Sources: Abramowitz and Stegun, "Handbook of Mathematical Functions", sections 6.1 to 6.4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.special_functions.derivatives import in_double

__all__ = [
    "digamma",
    "digamma_difference",
    "digamma_excess",
    "digamma_minus_log",
    "log1p_minus",
    "log_gamma_difference",
    "stirling_error",
    "tetragamma",
    "trigamma",
    "trigamma_difference",
]

SHIFT = 10
# B_2k for k = 1, 2, ...
BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)


def _in_powers(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Return ``c_0 + c_1 x + ...`` by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total.mul_(x).add_(c)
    return total


def log1p_minus(x: Tensor) -> Tensor:
    """Return ``ln(1 + x) - x``, without cancellation near 0; -inf at infinity.

    Near 0, with ``r = x / (2 + x)``: ``ln(1 + x) = 2 artanh r``. The relative error is 2e-15.
    """
    near = x.abs() < 0.4
    y = torch.where(near, x, 0.0)
    r = y / (2 + y)
    # ln(1 + x) - x = 2 (r + r^3/3 + ...) - x, and 2 r - x = -r x
    odd = 2 * r * r * r * _in_powers(r * r, tuple(1 / k for k in range(3, 29, 2)))
    return torch.where(near, odd - r * y, torch.where(x == torch.inf, -torch.inf, x.log1p() - x))


def stirling_series(x: Tensor, order: int = 0) -> Tensor:
    """Return a derivative of `stirling_error` for ``x >= 10``."""
    coefficients = tuple(
        (-1) ** order * b * math.factorial(2 * k + order - 2) / math.factorial(2 * k)
        for k, b in enumerate(BERNOULLI, 1)
    )
    q = 1 / x
    return _in_powers(q * q, coefficients) * q ** (order + 1)


def stirling_error(x: Tensor) -> Tensor:
    """Return ``lgamma(x) - (x - 1/2) ln x + x - ln(2 pi) / 2`` for ``x > 0``.

    The absolute error is 1e-15, relative to the largest of the terms where ``x < 10``.
    """
    large = x >= SHIFT
    safe = torch.where(large, x, 1.0 * SHIFT)
    small = torch.where(large, 1.0, x)
    direct = small.lgamma() - (small - 0.5) * small.log() + small - 0.5 * math.log(2 * math.pi)
    return torch.where(large, stirling_series(safe), direct)


def digamma_minus_log(x: Tensor) -> Tensor:
    """Return ``digamma(x) - ln x`` for ``x >= 10``."""
    q = 1 / x
    return -q * (
        0.5 + q * _in_powers(q * q, tuple(b / (2 * k) for k, b in enumerate(BERNOULLI, 1)))
    )


def log_gamma_difference(x: Tensor, y: Tensor) -> Tensor:
    """Return ``lgamma(x + y) - lgamma(x)`` for ``x > 0, y >= 0``, accurate for small ``y`` too."""
    small = x < SHIFT
    base = torch.where(small, x + SHIFT, x)
    ratio = y / base
    log = ratio.log1p()
    # lgamma(x + y) - lgamma(x) by Stirling, the terms of order y gathered
    total = base * log1p_minus(ratio) + (y - 0.5) * log + y * base.log()
    p, q = 1 / base, 1 / (base + y)
    quotients = _power_quotients(p, q)
    for k, b in enumerate(BERNOULLI, 1):
        total -= b / (2 * k * (2 * k - 1)) * y * p * q * quotients[2 * k - 2]
    steps = torch.zeros_like(total)
    for k in range(SHIFT):
        steps += (y / (x + k)).log1p()
    return torch.where(small, total - steps, total)


def digamma_excess(x: Tensor, y: Tensor) -> Tensor:
    """Return ``digamma(x + y) - digamma(x) - ln((x + y) / x)`` for ``x >= 10, y >= 0``."""
    p, q = 1 / x, 1 / (x + y)
    # digamma(x) = ln x - 1/(2x) - sum_k B_2k / (2k x^2k): Horner's rule for the polynomial in p^2,
    # and for its divided difference
    square_p, square_q = p * p, q * q
    value, difference = torch.zeros_like(p), torch.zeros_like(p)
    for k, c in reversed([*enumerate(BERNOULLI, 1)]):
        value.add_(c / (2 * k))
        difference.mul_(square_q).add_(value)
        value.mul_(square_p)
    return y * p * q * (0.5 + (p + q) * difference)


def digamma_difference(x: Tensor, y: Tensor) -> Tensor:
    """Return ``digamma(x + y) - digamma(x)`` for ``x > 0, y >= 0``, accurate for small ``y``."""
    small = x < SHIFT
    base = torch.where(small, x + SHIFT, x)
    total = (y / base).log1p().add_(digamma_excess(base, y))
    if not small.any():
        return total
    # sum_k 1 / (x + k) - 1 / (x + y + k), the terms of k and 9 - k together
    middle = 2 * x + (SHIFT - 1)
    first = x * (x + (SHIFT - 1))
    last, top = first + y * (middle + y), 2 * first + y * middle
    steps = torch.zeros_like(total)
    for k in range(SHIFT // 2):
        c = k * (SHIFT - 1 - k)
        steps.addcdiv_(top + ((SHIFT - 1) ** 2 - 2 * c), (first + c).mul_(last + c))
    return torch.where(small, total + steps.mul_(y), total)


def trigamma_difference(x: Tensor, y: Tensor) -> Tensor:
    """Return ``trigamma(x + y) - trigamma(x)`` for ``x > 0, y >= 0``, accurate for small ``y``."""
    small = x < SHIFT
    base = torch.where(small, x + SHIFT, x)
    p, q = 1 / base, 1 / (base + y)
    # trigamma(x) = 1/x + 1/(2x^2) + sum_k B_2k / x^(2k + 1)
    quotients = _power_quotients(p, q)
    total = quotients[0] + 0.5 * quotients[1]
    for k, b in enumerate(BERNOULLI, 1):
        total = total + b * quotients[2 * k]
    total = -y * p * q * total
    steps = torch.zeros_like(total)
    for k in range(SHIFT):
        first, last = 1 / (x + k), 1 / (x + k + y)
        steps += y * first * last * (first + last)
    return torch.where(small, total - steps, total)


def _power_quotients(p: Tensor, q: Tensor) -> list[Tensor]:
    """Return ``(p^m - q^m) / (p - q)`` for m = 1, 2, ..."""
    quotients, power = [torch.ones_like(p)], q
    for _ in range(2 * len(BERNOULLI)):
        quotients.append(quotients[-1] * p + power)
        power = power * q
    return quotients


def _shifted(x: Tensor, order: int, series: tuple[float, ...]) -> Tensor:
    """Return ``psi^(order)(x)`` up to the sign ``(-1)^(order + 1)``, for ``order >= 1``."""
    small = x < SHIFT
    base = torch.where(small, x + SHIFT, x)
    q = 1 / base
    n = order
    total = math.factorial(n - 1) * q**n + 0.5 * math.factorial(n) * q ** (n + 1)
    total += _in_powers(q * q, series) * q ** (n + 2)
    steps = torch.zeros_like(total)
    for k in range(SHIFT):
        steps += (x + k).reciprocal() ** (n + 1)
    return torch.where(small, total + math.factorial(n) * steps, total)


def _series(order: int) -> tuple[float, ...]:
    """Return ``B_2k (2k + order - 1)! / (2k)!``."""
    return tuple(
        b * math.factorial(2 * k + order - 1) / math.factorial(2 * k)
        for k, b in enumerate(BERNOULLI, 1)
    )


@in_double(0, 0)
def _digamma(x: Tensor, *, nodes: int) -> tuple[Tensor]:
    return (torch.where(x > 0, x.digamma(), torch.nan),)


@in_double(0, 0)
def _trigamma(x: Tensor, *, nodes: int) -> tuple[Tensor]:
    return (torch.where(x > 0, _shifted(x, 1, _series(1)), torch.nan),)


@in_double(0, 0)
def _tetragamma(x: Tensor, *, nodes: int) -> tuple[Tensor]:
    return (torch.where(x > 0, -_shifted(x, 2, _series(2)), torch.nan),)


tetragamma = ims.elementwise_function(lambda x: _tetragamma(x)[0], None, name="tetragamma")
_first = ims.elementwise_function(
    lambda x: _trigamma(x)[0], lambda _, x: [lambda: tetragamma(x)], name="trigamma"
)
_zeroth = ims.elementwise_function(
    lambda x: _digamma(x)[0], lambda _, x: [lambda: _first(x)], name="digamma"
)


def digamma(x: Tensor) -> Tensor:
    """Return the digamma function of ``x > 0``, differentiable to second order.

    The absolute error is 1e-15 (of ``|ln x|`` for large ``x``). For other ``x`` it is NaN.

    Examples
    --------
    >>> digamma(torch.tensor(1.0, dtype=torch.float64))
    tensor(-0.5772, dtype=torch.float64)
    """
    return _zeroth(x)


def trigamma(x: Tensor) -> Tensor:
    """Return the trigamma function of ``x > 0``, differentiable once.

    The relative error is 2e-15. For other ``x`` it is NaN.
    """
    return _first(x)
