"""The four latent variables of the variational autoencoder: posterior, prior, divergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence

from implicit_solvers.problems.reparameterization.distributions import Beta, Gamma, VonMises

__all__ = ["LATENTS", "Latent"]

# Positive parameters stay above it.
LEAST = 1e-2


@dataclass(frozen=True)
class Latent:
    """A kind of latent variable, independent in every dimension.

    Parameters
    ----------
    outputs
        How many numbers of the encoder make one dimension's parameters.
    posterior
        Maps them, ``(..., outputs, dimensions)``, to the distribution ``q(z | x)`` with samples
        ``(..., dimensions)``.
    divergence
        ``KL(q(z | x) || p(z))`` of each dimension, ``(..., dimensions)``, in closed form.
    prior_quantile
        Maps probabilities to quantiles of the prior, for grids of decoded images.
    features
        What the decoder sees of ``z``, ``(..., width * dimensions)``.
    width
        Features of a dimension.
    """

    outputs: int
    posterior: Callable[[Tensor], Distribution]
    divergence: Callable[[Distribution], Tensor]
    prior_quantile: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor] = lambda z: z
    width: int = 1


def _positive(x: Tensor) -> Tensor:
    return LEAST + F.softplus(x)


def _normal(h: Tensor) -> Normal:
    loc, scale = h.unbind(-2)
    return Normal(loc, _positive(scale), validate_args=False)


def _gamma(h: Tensor) -> Gamma:
    concentration, rate = _positive(h).unbind(-2)
    return Gamma(concentration, rate, validate_args=False)


def _beta(h: Tensor) -> Beta:
    concentration1, concentration0 = _positive(h).unbind(-2)
    return Beta(concentration1, concentration0, validate_args=False)


def _von_mises(h: Tensor) -> VonMises:
    x, y, concentration = h.unbind(-2)
    return VonMises(torch.atan2(y, x), _positive(concentration), validate_args=False)


def _divergence_from(prior: Distribution) -> Callable[[Distribution], Tensor]:
    return lambda posterior: kl_divergence(posterior, prior)


def _divergence_from_uniform(posterior: Distribution) -> Tensor:
    """Return ``KL(q || U(-pi, pi)) = ln(2 pi) - H(q)``; for von Mises, ``k A(k) - ln I0(k)``."""
    return math.log(2 * math.pi) - posterior.entropy()


def _angle_features(angle: Tensor) -> Tensor:
    return torch.cat([angle.cos(), angle.sin()], -1)


# Priors that never change: plain floats, so that they take the posterior's dtype.
NORMAL_PRIOR = Normal(0.0, 1.0)
GAMMA_PRIOR = Gamma(1.0, 1.0)
BETA_PRIOR = Beta(1.0, 1.0)

LATENTS = {
    "normal": Latent(2, _normal, _divergence_from(NORMAL_PRIOR), NORMAL_PRIOR.icdf),
    "gamma": Latent(2, _gamma, _divergence_from(GAMMA_PRIOR), GAMMA_PRIOR.icdf),
    "beta": Latent(2, _beta, _divergence_from(BETA_PRIOR), BETA_PRIOR.icdf),
    "von-mises": Latent(
        3,
        _von_mises,
        _divergence_from_uniform,
        lambda p: 2 * math.pi * (p - 0.5),
        _angle_features,
        width=2,
    ),
}
