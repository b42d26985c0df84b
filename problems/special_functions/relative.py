"""Quotients that are smooth at zero: ``(exp(x) - 1) / x`` and ``ln(1 + x) / x``.

Torch's functions have all digits of the values. Derivatives of the quotients would cancel near
zero; they are power series there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import implicit_solvers as ims

__all__ = ["exprel", "log1prel"]

_NEAR = 0.15


def _quotient(
    name: str,
    numerator: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    series: Sequence[float],
) -> Callable[..., Tensor]:
    """Return ``numerator(x) / x``, which is ``sum_k series[k] x^k`` near zero."""

    def value(x: Tensor) -> Tensor:
        return torch.where(x == 0, series[0], numerator(x) / x)

    def derivative(y: Tensor, x: Tensor) -> Tensor:
        near = x.abs() < _NEAR
        inner, outer = torch.where(near, x, 0.0), torch.where(near, 1.0, x)
        total = torch.full_like(inner, (len(series) - 1) * series[-1])
        for k in range(len(series) - 2, 0, -1):
            total = total * inner + k * series[k]
        return torch.where(near, total, (slope(outer) - torch.where(near, 0.0, y)) / outer)

    function: Callable[..., Tensor] = ims.elementwise_function(
        value, lambda y, x: [lambda: derivative(y, x)], name=name
    )
    return function


exprel = _quotient("exprel", torch.expm1, torch.exp, [1 / math.factorial(k + 1) for k in range(16)])
log1prel = _quotient(
    "log1prel", torch.log1p, lambda x: 1 / (1 + x), [(-1) ** k / (k + 1) for k in range(24)]
)
