"""Expectations by quadrature over quantiles, and between them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from implicit_solvers.problems.special_functions.normal import legendre_nodes

__all__ = ["ROUNDED", "entropy_between", "expectation"]

STEP, COUNT = 0.05, 121  # as far as probabilities of 1e-299
ROUNDED = 4 * torch.finfo(torch.float64).eps
EDGE, ROUGH = 1e-9, 1e-6  # largest shares of the last term, at 1e-299 and at `least`
ORDER, LARGEST = 12, 700.0


def expectation(
    function: Callable[[Tensor], Tensor],
    quantile: Callable[[Tensor, Tensor], Tensor],
    split: Tensor,
    least: Tensor | float = ROUNDED,
) -> Tensor:
    r"""Return the expectation of a function, by the double-exponential rule.

    .. math:: E[g(z)] = \int_0^1 g(F^{-1}(u)) \, du

    on two panels that meet at ``split``, where the density has a kink; at the ends of a panel,
    ``g(F^{-1}(u))`` may have integrable singularities. ``quantile`` is a function of ``u`` and
    ``1 - u``, float64 tensors ``(nodes,) + batch_shape``, and known where both are at least
    ``least``. The error is about 1e-12 in float64 if the density is smooth elsewhere and its tails
    are not heavy; the result is NaN where they are too heavy to be seen.

    Source: Takahasi and Mori, "Double Exponential Formulas for Numerical Integration" (1974).

    Examples
    --------
    The exponential distribution has the second moment two:

    >>> quantile = lambda u, rest: -rest.log()
    >>> expectation(torch.square, quantile, torch.tensor(0.5)).round(decimals=4)
    tensor(2.)
    """
    kind, split = split.dtype, split.detach().to(torch.float64)
    t = STEP * torch.arange(-COUNT, COUNT + 1, dtype=torch.float64, device=split.device)
    t = t.reshape(-1, *(1,) * split.dim())
    x, y = torch.sigmoid(math.pi * t.sinh()), torch.sigmoid(-math.pi * t.sinh())
    w = STEP * math.pi * t.cosh() * x * y
    u = torch.cat([split * x, split + (1 - split) * x])
    rest = torch.cat([1 - split + split * y, (1 - split) * y])
    weight = torch.cat([split * w, (1 - split) * w])
    tail = torch.minimum(u, rest)
    seen = (weight > 0) & (tail >= least)
    value = function(quantile(torch.where(seen, u, 0.5), torch.where(seen, rest, 0.5)))
    weight = torch.where(seen, weight, 0.0)
    terms = weight * torch.where(seen, value, 0.0)
    size = terms.detach().abs()
    last = torch.where(tail < 10 * least, size, 0.0).amax(0)
    end = size[0].maximum(size[-1])
    known = (last <= ROUGH * size.sum(0)) & (end <= EDGE * size.sum(0))
    return torch.where(known, terms.sum(0) / weight.sum(0), torch.nan).to(kind)


def entropy_between(
    log_density: Callable[[Tensor], Tensor], points: Tensor, missing: float
) -> Tensor:
    r"""Return ``-\int q ln q`` over panels, by the Gauss-Legendre rule.

    The panels meet at ``points``, ``(panels + 1,) + batch_shape``, increasing. The result is NaN
    where the mass that they find is farther than ``missing`` from one.

    Examples
    --------
    >>> from torch.distributions import Normal
    >>> points = torch.linspace(-9, 9, 19, dtype=torch.float64)
    >>> entropy_between(Normal(0.0, 1.0).log_prob, points, 1e-9)  # ln(2 pi e) / 2
    tensor(1.4189, dtype=torch.float64)
    """
    width = points.diff(dim=0)
    mass, total = torch.zeros_like(points[0]), torch.zeros_like(points[0])
    for node, weight in legendre_nodes(ORDER):
        log_q = log_density(points[:-1] + node * width)
        some = log_q > -LARGEST
        log_q = torch.where(some, log_q, 0.0)
        q = torch.where(some, weight * width * log_q.exp(), 0.0)
        mass, total = mass + q.sum(0), total - (q * log_q).sum(0)
    return torch.where((mass.detach() - 1).abs() <= missing, total, torch.nan)
