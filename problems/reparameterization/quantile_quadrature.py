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

    on two panels that meet at ``split``; at the ends of a panel, ``g(F^{-1}(u))`` may have
    integrable singularities.

    Parameters
    ----------
    function
        ``g``, elementwise.
    quantile
        The quantile function of ``u`` and ``1 - u``, tensors ``(nodes,) + batch_shape`` of float64.
    split
        Where the panels meet, of the batch shape, in [0, 1]: where the density has a kink.
    least
        The ``u`` and ``1 - u`` from which on quantiles are known, of the batch shape.

    Returns
    -------
    Tensor
        Of the batch shape and the dtype of ``split``. Error about 1e-12 in float64 if the density
        is smooth elsewhere and its tails are not heavy; NaN where they are too heavy to be seen.

    Notes
    -----
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

    Parameters
    ----------
    log_density
        ``ln q``, of points ``(panels,) + batch_shape``.
    points
        Where the panels meet, ``(panels + 1,) + batch_shape``, increasing.
    missing
        How far the mass that they find may be from one.

    Returns
    -------
    Tensor
        Of the batch shape; NaN where the panels do not find that mass.

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
