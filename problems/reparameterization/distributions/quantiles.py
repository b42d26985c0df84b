"""Quantiles: ``F(t; phi) = p`` solved for ``t`` in whichever tail is the smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.inversion import as_good_as_numbers

__all__ = ["between_ends", "elementwise_root", "probability", "quantile"]

Gap = Callable[..., Tensor]


def elementwise_root(gap: Gap, bracket: tuple[Tensor, Tensor], *args: Tensor) -> Tensor:
    """Solve ``gap(t, *args) = 0`` for each element.

    ``gap`` is a monotone elementwise function of float64 tensors, with different signs at the ends
    of ``bracket``. It is zero within 1.8e-12, whatever the size of ``t``.

    Examples
    --------
    >>> a = torch.tensor([[4.0, 9.0]], dtype=torch.float64)
    >>> elementwise_root(lambda t, a: t**2 - a, (0 * a, a), a)
    tensor([[2., 3.]], dtype=torch.float64)
    """
    shape = torch.broadcast_shapes(*(t.shape for t in (*bracket, *args)))
    lo, hi, *flat = (t.expand(shape).reshape(-1) for t in (*bracket, *args))
    solution = ims.root(
        gap,
        None,
        tuple(flat),
        bracket=(lo, hi),
        solver=ims.Chandrupatla(rtol=torch.finfo(torch.float64).eps),
        batch_dims=1,
        in_dims=(0,) * len(flat),
        on_failure="mask",
    )
    return as_good_as_numbers(solution).reshape(shape)


def quantile(
    log_cdf: Gap,
    log_sf: Gap,
    bracket: Callable[..., tuple[Tensor, Tensor]],
    slope: Callable[..., Tensor],
    p: Tensor,
    *parameters: Tensor,
) -> Tensor:
    """Solve ``ln F(t) = ln p``, above the median ``ln(1 - F(t)) = ln(1 - p)``.

    ``bracket(log_p, log_q, *parameters)``, with ``q = 1 - p``, returns ends between which the
    quantile lies. ``slope``, of the same arguments, is of the order of the derivative of the
    smaller tail's logarithm: the steeper, the less of it can be resolved. All tensors are float64,
    with ``0 < p < 1``.

    Examples
    --------
    The exponential distribution:

    >>> quantile(
    ...     lambda t: (-(-t).expm1()).log(),
    ...     lambda t: -t,
    ...     lambda log_p, log_q: (log_p.exp(), 1 - log_q),
    ...     lambda log_p, log_q: 1 - log_q,
    ...     torch.tensor([0.25, 0.75], dtype=torch.float64),
    ... )
    tensor([0.2877, 1.3863], dtype=torch.float64)
    """
    log_p, log_q = p.log(), (-p).log1p()
    resolved = 1 + 0.01 * slope(log_p, log_q, *parameters)

    def gap(t: Tensor, log_p: Tensor, log_q: Tensor, resolved: Tensor, *phi: Tensor) -> Tensor:
        lower, upper = log_cdf(t, *phi) - log_p, log_q - log_sf(t, *phi)
        return torch.where(log_p < log_q, lower, upper) / resolved

    ends = bracket(log_p, log_q, *parameters)
    return elementwise_root(gap, ends, log_p, log_q, resolved, *parameters)


def between_ends(function: Gap, p: Tensor, *parameters: Tensor) -> Tensor:
    """Evaluate a quantile function inside of (0, 1); at 0 it is -inf, at 1 inf, elsewhere NaN.

    ``function`` takes float64 tensors of one shape; the result is float64. Where it is not finite
    all derivatives are zero.

    Examples
    --------
    >>> between_ends(torch.logit, torch.tensor([0.0, 0.5, 1.0, 2.0]))
    tensor([-inf, 0., inf, nan], dtype=torch.float64)
    """
    p, *phi = torch.broadcast_tensors(*(t.to(torch.float64) for t in (p, *parameters)))
    inside = (p > 0) & (p < 1)
    outside = torch.where(p == 0, -torch.inf, torch.where(p == 1, torch.inf, torch.nan))
    return torch.where(inside, function(torch.where(inside, p, 0.5), *phi), outside)


def probability(distribution: Any, p: Tensor | float, like: Tensor) -> Tensor:
    """Return ``p`` as a tensor like a parameter; validated if the distribution's arguments are.

    Examples
    --------
    >>> normal = torch.distributions.Normal(0.0, 1.0)
    >>> probability(normal, 0.5, normal.loc)
    tensor(0.5000)
    """
    p = torch.as_tensor(p, dtype=like.dtype, device=like.device)
    if distribution._validate_args and not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(
            f"{type(distribution).__name__}: expected probabilities in [0, 1], but found\n{p}"
        )
    return p
