"""Both tails of a distribution, in logarithms, and the interval that it lives on."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Distribution,
    Exponential,
    Gamma,
    MixtureSameFamily,
    Normal,
    StudentT,
    VonMises,
)

from implicit_solvers.problems.special_functions.log_tails import (
    log_beta_tails,
    log_gamma_tails,
    student_t_log_tails,
    von_mises_log_tails,
)
from implicit_solvers.problems.special_functions.normal import log_normal_tails

__all__ = ["bounds", "has_accurate_tails", "like_parameters", "log_odds", "log_tails"]


@functools.singledispatch
def log_tails(distribution: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``ln F(z)`` and ``ln(1 - F(z))``.

    Both come from the distribution's method ``log_tails``, or ``log_cdf`` and ``log_survival``, or
    from what is known of torch's distribution that it is a subclass of. Else from ``cdf``: where
    that is rounded to 0 or 1, the logarithm is that of the smallest normal number.
    """
    if hasattr(distribution, "log_tails"):
        both: tuple[Tensor, Tensor] = distribution.log_tails(z)
        return both
    if _has_methods(distribution):
        return distribution.log_cdf(z), distribution.log_survival(z)
    probability = distribution.cdf(z)
    least = torch.finfo(probability.dtype).tiny
    return probability.clamp(min=least).log(), (1 - probability).clamp(min=least).log()


@log_tails.register
def _normal(distribution: Normal, z: Tensor) -> tuple[Tensor, Tensor]:
    x = (z - distribution.loc) / distribution.scale
    return log_normal_tails(x)


@log_tails.register
def _exponential(distribution: Exponential, z: Tensor) -> tuple[Tensor, Tensor]:
    log_survival = -distribution.rate * z
    return (-torch.expm1(log_survival)).log(), log_survival


@log_tails.register
def _gamma(distribution: Gamma, z: Tensor) -> tuple[Tensor, Tensor]:
    return log_gamma_tails(distribution.concentration, distribution.rate * z)


@log_tails.register
def _beta(distribution: Beta, z: Tensor) -> tuple[Tensor, Tensor]:
    return log_beta_tails(distribution.concentration1, distribution.concentration0, z)


@log_tails.register
def _student_t(distribution: StudentT, z: Tensor) -> tuple[Tensor, Tensor]:
    t = (z - distribution.loc) / distribution.scale
    return student_t_log_tails(t, distribution.df)


@log_tails.register
def _von_mises(distribution: VonMises, z: Tensor) -> tuple[Tensor, Tensor]:
    # from the angle opposite to the location
    angle = torch.remainder(z - distribution.loc + math.pi, 2 * math.pi) - math.pi
    return von_mises_log_tails(angle, distribution.concentration)


def _has_methods(distribution: Any) -> bool:
    return hasattr(distribution, "log_cdf") and hasattr(distribution, "log_survival")


def has_accurate_tails(distribution: Distribution) -> bool:
    """Return whether `log_tails` is exact where the CDF is rounded to 0 or 1.

    Examples
    --------
    >>> has_accurate_tails(Normal(0.0, 1.0))
    True
    """
    known = log_tails.dispatch(type(distribution)) is not log_tails.dispatch(object)
    return known or _has_methods(distribution)


def log_odds(distribution: Any, z: Tensor) -> Tensor:
    """Return ``ln F(z) - ln(1 - F(z))``, in which an equation for ``z`` is exact in both tails.

    Examples
    --------
    >>> log_odds(Normal(0.0, 1.0), torch.tensor([0.0, 10.0]))
    tensor([ 0.0000, 53.2313])
    """
    lower, upper = log_tails(distribution, z)
    return lower - upper


def bounds(distribution: Distribution) -> tuple[Any, Any]:
    """Return the ends of the support of each coordinate, infinite ones included.

    Parameters
    ----------
    distribution
        Univariate, or one whose coordinates have the same support.

    Returns
    -------
    tuple
        Lower and upper end, tensors or numbers.

    Examples
    --------
    >>> bounds(Exponential(2.0))
    (0.0, inf)
    """
    if isinstance(distribution, MixtureSameFamily):
        if isinstance(distribution.component_distribution, VonMises):
            return -math.pi, math.pi
        low, high = bounds(distribution.component_distribution)
        lane = -1 - len(distribution.event_shape)
        low = low.amin(lane) if isinstance(low, Tensor) and low.dim() else low
        return low, high.amax(lane) if isinstance(high, Tensor) and high.dim() else high
    support: Any = distribution.support
    support = getattr(support, "base_constraint", support)
    return (
        getattr(support, "lower_bound", -torch.inf),
        getattr(support, "upper_bound", torch.inf),
    )


def like_parameters(distribution: Distribution) -> Tensor:
    """Return a tensor that has the dtype and device of a distribution's parameters.

    It is a detached attribute of the distribution, or of one in it; without any, it is a scalar of
    the default dtype.

    Examples
    --------
    >>> like_parameters(Normal(torch.zeros(3, dtype=torch.float64), 1.0)).dtype
    torch.float64
    """
    return next(_parameters(distribution), torch.empty(())).detach()


def _parameters(distribution: Distribution) -> Iterator[Tensor]:
    for value in vars(distribution).values():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, Distribution):
            yield from _parameters(value)
