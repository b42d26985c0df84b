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

    ``family`` maps the encoder's outputs, ``(..., outputs, dimensions)``, and ``start`` to
    ``q(z | x)``. Outputs are close to 0 at first. ``start`` is added to those for positive
    parameters: a posterior that starts as wide as the prior tells the decoder nothing, and it may
    stay so. ``divergence`` is ``KL(q(z | x) || p(z))`` of each dimension, in closed form;
    ``prior_quantile`` is for grids of decoded images. ``features``, ``(..., width * dimensions)``,
    are what the decoder sees of ``z``: of mean 0 and variance 1 under the prior, so that no kind
    has a head start.
    """

    outputs: int
    family: Callable[[Tensor, float], Distribution]
    divergence: Callable[[Distribution], Tensor]
    prior_quantile: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    start: float
    width: int = 1

    def posterior(self, h: Tensor) -> Distribution:
        """Return ``q(z | x)`` for the encoder's outputs ``(..., outputs, dimensions)``."""
        return self.family(h, self.start)


def _positive(x: Tensor) -> Tensor:
    return LEAST + F.softplus(x)


def _normal(h: Tensor, start: float) -> Normal:
    loc, scale = h.unbind(-2)
    return Normal(loc, _positive(scale + start), validate_args=False)


def _gamma(h: Tensor, start: float) -> Gamma:
    concentration, rate = _positive(h + start).unbind(-2)
    return Gamma(concentration, rate, validate_args=False)


def _beta(h: Tensor, start: float) -> Beta:
    concentration1, concentration0 = _positive(h + start).unbind(-2)
    return Beta(concentration1, concentration0, validate_args=False)


def _von_mises(h: Tensor, start: float) -> VonMises:
    x, y, concentration = h.unbind(-2)
    return VonMises(torch.atan2(y, x), _positive(concentration + start), validate_args=False)


def _divergence_from(prior: Distribution) -> Callable[[Distribution], Tensor]:
    return lambda posterior: kl_divergence(posterior, prior)


def _divergence_from_uniform(posterior: Distribution) -> Tensor:
    """Return ``KL(q || U(-pi, pi)) = ln(2 pi) - H(q)``; for von Mises, ``k A(k) - ln I0(k)``."""
    return math.log(2 * math.pi) - posterior.entropy()


def _angle_features(angle: Tensor) -> Tensor:
    return math.sqrt(2) * torch.cat([angle.cos(), angle.sin()], -1)


# Priors that never change: plain floats, so that they take the posterior's dtype.
NORMAL_PRIOR = Normal(0.0, 1.0)
GAMMA_PRIOR = Gamma(1.0, 1.0)
BETA_PRIOR = Beta(1.0, 1.0)

# What other starts give on validation images is in docs/reparameterization.md.
LATENTS = {
    "normal": Latent(
        outputs=2,
        family=_normal,
        divergence=_divergence_from(NORMAL_PRIOR),
        prior_quantile=NORMAL_PRIOR.icdf,
        features=lambda z: z,
        start=-3.0,
    ),
    "gamma": Latent(
        outputs=2,
        family=_gamma,
        divergence=_divergence_from(GAMMA_PRIOR),
        prior_quantile=GAMMA_PRIOR.icdf,
        features=lambda z: z - 1,
        start=4.0,
    ),
    "beta": Latent(
        outputs=2,
        family=_beta,
        divergence=_divergence_from(BETA_PRIOR),
        prior_quantile=BETA_PRIOR.icdf,
        features=lambda z: math.sqrt(12) * (z - 0.5),
        start=0.0,
    ),
    "von-mises": Latent(
        outputs=3,
        family=_von_mises,
        divergence=_divergence_from_uniform,
        prior_quantile=lambda p: 2 * math.pi * (p - 0.5),
        features=_angle_features,
        start=8.0,
        width=2,
    ),
}
