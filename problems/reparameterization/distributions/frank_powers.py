r"""The polylogarithms of Frank's copula, in logarithms.

.. math:: \mathrm{Li}_{-n}(z) = \sum_{j=0}^n j! \, S(n + 1, j + 1)
          \Bigl(\frac{z}{1 - z}\Bigr)^{j+1}

with Stirling's numbers of the second kind ``S``: positive terms for ``0 < z < 1``. Source: Wood,
"The computation of polylogarithms" (1992), section 6.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.distributions.quantiles import elementwise_root

__all__ = ["inverse_log_power_sum", "log_power_sum"]


@functools.cache
def _log_coefficients(order: int) -> tuple[float, ...]:
    """Return ``ln(j! S(n + 1, j + 1))``."""
    row = [1]  # S(1, 1), S(2, 1), ...
    for _ in range(order):
        row = [
            (j + 1) * (row[j] if j < len(row) else 0) + (row[j - 1] if j else 0)
            for j in range(len(row) + 1)
        ]
    return tuple(math.lgamma(j + 1) + math.log(s) for j, s in enumerate(row))


def _terms(log_odds: Tensor, order: int) -> Tensor:
    logs = torch.tensor(_log_coefficients(order), dtype=log_odds.dtype, device=log_odds.device)
    power = torch.arange(1, order + 2, dtype=log_odds.dtype, device=log_odds.device)
    return logs + power * log_odds.unsqueeze(-1)


def log_power_sum(log_odds: Tensor, order: int) -> Tensor:
    """Return ``ln Li_-n(z)``, of ``ln(z / (1 - z))``.

    Examples
    --------
    Of order 1, ``z / (1 - z)^2``, at ``z = 1/2``:

    >>> log_power_sum(torch.tensor(0.0), 1).exp()
    tensor(2.)
    """
    return _terms(log_odds, order).logsumexp(-1) if order else log_odds


@functools.cache
def _inverse(order: int) -> Callable[[Tensor], Tensor]:
    first, last = math.fsum(map(math.exp, _log_coefficients(order))), _log_coefficients(order)[-1]

    def solve(y: Tensor) -> Tensor:
        above = y - math.log(first)
        low = torch.where(above < 0, above, above / (order + 1))
        high = torch.minimum(y, (y - last) / (order + 1))
        return elementwise_root(
            lambda x, y: log_power_sum(x, order) - y, (low - 1e-3, high + 1e-3), y
        )

    def slope(x: Tensor) -> Tensor:
        weights = _terms(x, order).softmax(-1)
        return (weights * torch.arange(1, order + 2, dtype=x.dtype, device=x.device)).sum(-1)

    function: Callable[[Tensor], Tensor] = ims.elementwise_function(
        solve, lambda x, y: [lambda: 1 / slope(x)], name="inverse of a polylogarithm"
    )
    return function


def inverse_log_power_sum(y: Tensor, order: int) -> Tensor:
    """Return ``ln(z / (1 - z))`` with ``ln Li_-n(z) = y``, with implicit derivatives.

    Examples
    --------
    >>> inverse_log_power_sum(torch.tensor([2.0], dtype=torch.float64).log(), 1).abs() < 1e-12
    tensor([True])
    """
    return _inverse(order)(y) if order else y
