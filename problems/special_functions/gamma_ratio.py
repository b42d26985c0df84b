r"""The ratio ``Gamma(x + 1/2) / Gamma(x)``, its logarithm's derivatives without cancellation.

With ``m = x - 1/4`` only even powers of ``m`` are left, ``E_2j`` the Euler numbers:

    ln(Gamma(x + 1/2) / Gamma(x)) ~ (ln m) / 2 - 2 sum_j E_2j / (4^(2j + 1) 2j m^2j),

used for ``x >= 8``; smaller arguments are shifted by 8 with the recurrence. Source: Tricomi and
Erdélyi, "The asymptotic expansion of a ratio of gamma functions" (1951).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["digamma_excess", "log_gamma_ratio", "trigamma_excess"]

SHIFT = 8
# E_2, E_4, ...
EULER = (-1, 5, -61, 1385, -50521, 2702765, -199360981, 19391512145, -2404879675441)
COEFFICIENTS = tuple(-2 * e / (4 ** (2 * j + 1) * 2 * j) for j, e in enumerate(EULER, 1))


def _powers(q: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Return ``c_1 q + c_2 q^2 + ...``."""
    total = torch.zeros_like(q)
    for c in reversed(coefficients):
        total.add_(c).mul_(q)
    return total


def _shifted(x: Tensor) -> tuple[Tensor, Tensor]:
    small = x < SHIFT
    return small, torch.where(small, x + SHIFT, x)


def log_gamma_ratio(x: Tensor) -> Tensor:
    """Return ``lgamma(x + 1/2) - lgamma(x)`` for ``x > 0``, with an absolute error of 1e-15."""
    small, base = _shifted(x)
    m = base - 0.25
    total = 0.5 * m.log() + _powers(1 / (m * m), COEFFICIENTS)
    if not small.any():
        return total
    ratio = torch.ones_like(x)
    for j in range(SHIFT):
        ratio.mul_((x + j) / (x + (j + 0.5)))
    return torch.where(small, total + ratio.log(), total)


def digamma_excess(x: Tensor) -> Tensor:
    """Return ``digamma(x + 1/2) - digamma(x) - 1 / (2 x)`` for ``x > 0``.

    It is positive and falls like ``1 / (8 x^2)``; all terms are positive, so that the relative
    error is 2e-15.
    """
    small, base = _shifted(x)
    m = base - 0.25
    series = _powers(1 / (m * m), tuple(2 * j * c for j, c in enumerate(COEFFICIENTS, 1)))
    total = 0.125 / (m * base) - series / m
    if not small.any():
        return total
    steps = torch.zeros_like(x)
    for j in range(SHIFT):
        steps += 0.25 / ((x + j) * (x + (j + 0.5)) * (x + (j + 1)))
    return torch.where(small, total + steps, total)


def trigamma_excess(x: Tensor) -> Tensor:
    """Return the derivative of `digamma_excess`: negative, with a relative error of 2e-15."""
    small, base = _shifted(x)
    m = base - 0.25
    q = 1 / (m * m)
    series = _powers(q, tuple(2 * j * (2 * j + 1) * c for j, c in enumerate(COEFFICIENTS, 1)))
    total = series * q - 0.125 * (1 / m + 1 / base) / (m * base)
    if not small.any():
        return total
    steps = torch.zeros_like(x)
    for j in range(SHIFT):
        a, b, c = 1 / (x + j), 1 / (x + (j + 0.5)), 1 / (x + (j + 1))
        steps -= 0.25 * a * b * c * (a + b + c)
    return torch.where(small, total + steps, total)
