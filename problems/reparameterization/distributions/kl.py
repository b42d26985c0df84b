"""Kullback-Leibler divergences, registered with ``torch.distributions.kl_divergence``.

The classes here inherit every divergence of torch's classes, as ``KL(Beta, Normal)``. Those between
two of one class are differences of large numbers for large parameters: they are computed in
float64 here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from implicit_solvers.problems.reparameterization.distributions.beta import Beta
from implicit_solvers.problems.reparameterization.distributions.dirichlet import Dirichlet
from implicit_solvers.problems.reparameterization.distributions.gamma import Gamma
from implicit_solvers.problems.reparameterization.distributions.von_mises import (
    VonMises,
    log_scaled_normalizer,
    mean_deficit,
)

__all__: list[str] = []


@register_kl(Gamma, Gamma)
def _gamma(p: Gamma, q: Gamma) -> Tensor:
    return kl_divergence(p.double(), q.double()).to(p.rate.dtype)


@register_kl(Beta, Beta)
def _beta(p: Beta, q: Beta) -> Tensor:
    return kl_divergence(p.double(), q.double()).to(p.concentration1.dtype)


@register_kl(Dirichlet, Dirichlet)
def _dirichlet(p: Dirichlet, q: Dirichlet) -> Tensor:
    return kl_divergence(p.double(), q.double()).to(p.concentration.dtype)


@register_kl(VonMises, VonMises)
def _von_mises(p: VonMises, q: VonMises) -> Tensor:
    """Return ``E_p[k cos(x - m)]``, with ``E_p[cos(x - m_p)] = A = I1(k_p) / I0(k_p)``."""
    loc, k, other, rate = (
        t.to(torch.float64) for t in (p.loc, p.concentration, q.loc, q.concentration)
    )
    apart = 2 * (0.5 * (loc - other)).sin().square()  # 1 - cos
    deficit = mean_deficit(k)
    expected = (rate - k) * deficit + rate * apart * (1 - deficit)
    kl = log_scaled_normalizer(rate) - log_scaled_normalizer(k) + expected
    return kl.to(p.loc.dtype)
