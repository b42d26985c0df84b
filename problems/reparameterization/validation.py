"""What can be wrong with a distribution, a CDF, or a sample: clear errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from implicit_solvers.problems.reparameterization.tails import (
    bounds,
    has_accurate_tails,
    like_parameters,
)

__all__ = [
    "check_cdf",
    "check_continuous",
    "check_ends",
    "check_increasing",
    "check_method",
    "check_probability",
    "check_sample",
    "rosenblatt_of",
    "unchecked",
]


def check_continuous(distribution: Distribution, name: str = "distribution") -> None:
    """Refuse what is no distribution, or a discrete one.

    Examples
    --------
    >>> check_continuous(torch.distributions.Normal(0.0, 1.0))
    """
    kind = type(distribution).__name__
    if not isinstance(distribution, Distribution):
        raise TypeError(f"{name} is a {kind}: pass a torch.distributions.Distribution")
    if getattr(distribution.support, "is_discrete", False):
        raise ValueError(
            f"{name} is a {kind}, which is discrete: its samples jump and do not move with the "
            "parameters; use a continuous relaxation or the score function"
        )


def check_method(distribution: Distribution, method: str, name: str = "distribution") -> None:
    """Refuse a distribution that does not define a method.

    Examples
    --------
    >>> check_method(torch.distributions.Dirichlet(torch.ones(2)), "cdf")
    Traceback (most recent call last):
        ...
    NotImplementedError: distribution is a Dirichlet without the method cdf: define it
    """
    if getattr(type(distribution), method) is getattr(Distribution, method):
        raise NotImplementedError(
            f"{name} is a {type(distribution).__name__} without the method {method}: define it"
        )


def check_cdf(distribution: Distribution, name: str = "distribution") -> None:
    """Refuse a univariate distribution of which no distribution function is known.

    It needs one of ``cdf``, ``log_tails``, and ``log_cdf`` with ``log_survival``.

    Examples
    --------
    >>> check_cdf(torch.distributions.Normal(0.0, 1.0))
    """
    if not (has_accurate_tails(distribution) or hasattr(distribution, "log_tails")):
        check_method(distribution, "cdf", name)


def rosenblatt_of(distribution: Any) -> Callable[[Tensor], Tensor]:
    """Return the Rosenblatt transform of a multivariate distribution, its method ``rosenblatt``.

    Examples
    --------
    >>> rosenblatt_of(torch.distributions.Dirichlet(torch.ones(3)))
    Traceback (most recent call last):
        ...
    NotImplementedError: distribution is a Dirichlet with events of the shape (3,) and has no ...
    """
    if not hasattr(distribution, "rosenblatt"):
        raise NotImplementedError(
            f"distribution is a {type(distribution).__name__} with events of the shape "
            f"{tuple(distribution.event_shape)} and has no method rosenblatt: pass transform, a "
            "function that returns the conditional CDFs F_i(z_i | z_1, ..., z_(i-1))"
        )
    return distribution.rosenblatt


def check_ends(distribution: Distribution) -> None:
    """Check that a CDF is 0 and 1 at the ends of the support; at an infinite end it may be NaN.

    Examples
    --------
    >>> check_ends(torch.distributions.Exponential(2.0))
    """
    check_cdf(distribution)
    like = like_parameters(distribution)
    tolerance = torch.finfo(like.dtype).eps ** 0.5
    for end, expected in zip(bounds(distribution), (0.0, 1.0), strict=True):
        z = torch.as_tensor(end, dtype=like.dtype, device=like.device)
        z = z.detach().expand(distribution.batch_shape)
        try:
            value = distribution.cdf(z)
        except ValueError:
            continue  # an open end, which the distribution's own validation refuses
        wrong = (value - expected).abs() > tolerance
        wrong |= value.isnan() & torch.isfinite(z)
        if bool(wrong.any()):
            raise ValueError(
                f"distribution.cdf at the end {z[wrong].flatten()[0]:g} of its support is "
                f"{value[wrong].flatten()[0]:g} instead of {expected:g}: normalize it, or state "
                "the right support"
            )


def check_sample(distribution: Distribution, z: Tensor) -> None:
    """Check that samples are in the support, and that their shape ends in the distribution's.

    Examples
    --------
    >>> check_sample(torch.distributions.Exponential(2.0), torch.tensor(0.5))
    """
    shape = distribution.batch_shape + distribution.event_shape
    if z.shape[z.dim() - len(shape) :] != shape:
        raise ValueError(f"z has the shape {tuple(z.shape)}, which does not end in {tuple(shape)}")
    support: Any = distribution.support
    inside = support.check(z)
    if not bool(inside.all()):
        raise ValueError(f"z has {int((~inside).sum())} samples outside the support {support}")


def check_increasing(transform: Callable[[Tensor], Tensor], z: Tensor, lanes: int) -> None:
    """Check that each component of a transform increases with its own argument.

    ``F`` must keep the shape of ``z`` and be finite. ``lanes`` is the number of batch dimensions;
    the others are the components of an event.

    Examples
    --------
    >>> check_increasing(torch.sin, torch.tensor([0.0, 2.0]), 1)
    Traceback (most recent call last):
        ...
    ValueError: F does not increase with z at z = 2 (slope -0.416147): ...
    """
    with torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        value = transform(z)
        if value.shape != z.shape:
            raise ValueError(f"F(z) has the shape {tuple(value.shape)}, z has {tuple(z.shape)}")
        flat = value.flatten(lanes) if lanes < z.dim() else value.unsqueeze(-1)
        for i in range(flat.shape[-1]):
            total = flat[..., i].sum()
            (slope,) = torch.autograd.grad(total, z, retain_graph=True, materialize_grads=True)
            slope = slope.reshape(flat.shape)[..., i]
            wrong = ~(slope > 0) | ~torch.isfinite(flat[..., i])
            if bool(wrong.any()):
                place = z.detach().reshape(flat.shape)[..., i][wrong].flatten()[0]
                raise ValueError(
                    f"F does not increase with z at z = {place:g} (slope "
                    f"{slope[wrong].flatten()[0]:g}): it is no CDF there"
                )


def check_probability(u: Tensor) -> None:
    """Check that probabilities lie in [0, 1]; NaN does not.

    Examples
    --------
    >>> check_probability(torch.tensor([0.0, 0.5]))
    """
    if not bool(((u >= 0) & (u <= 1)).all()):
        raise ValueError("value has entries outside [0, 1]: pass probabilities")


def unchecked(distribution: Distribution) -> Distribution:
    """Return a copy that does not check values, nor do distributions in it.

    Examples
    --------
    >>> unchecked(torch.distributions.Uniform(0.0, 1.0)).log_prob(torch.tensor(2.0))
    tensor(-inf)
    """
    new = copy.copy(distribution)
    new._validate_args = False
    for name, value in vars(distribution).items():
        if isinstance(value, Distribution):
            new.__dict__[name] = unchecked(value)
    return new
