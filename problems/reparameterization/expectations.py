"""Expectations with a closed form, on which estimators of gradients can be judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal

from implicit_solvers.problems.reparameterization.distributions import (
    Beta,
    Dirichlet,
    Gamma,
    MixtureSameFamily,
    VonMises,
)

__all__ = ["BETA", "DIRICHLET", "GAMMA", "MIXTURE", "VON_MISES", "Expectation"]


@dataclass(frozen=True)
class Expectation:
    r"""An expectation over a distribution with parameters.

    .. math:: L(\phi) = E_{q(z; \phi)}[g(z)]

    All parameters are the last dimension of one tensor ``phi``; what comes before is a batch.
    ``distribution(phi)`` is ``q``, ``cost(z)`` is ``g``, one number for each sample, and
    ``closed_form(phi)`` is ``L``, differentiable. Where ``z`` is a function of independent standard
    gamma variables with the shapes ``phi``, ``from_log_gammas`` is that function, of their
    logarithms.

    Examples
    --------
    >>> phi = torch.tensor([2.0], requires_grad=True)
    >>> GAMMA.closed_form(phi)
    tensor(1.5772, grad_fn=...)
    >>> z = GAMMA.distribution(phi).rsample((1000,))
    >>> GAMMA.cost(z).shape
    torch.Size([1000])
    """

    distribution: Callable[[Tensor], Distribution]
    cost: Callable[[Tensor], Tensor]
    closed_form: Callable[[Tensor], Tensor]
    from_log_gammas: Callable[[Tensor], Tensor] | None = None


def _mean_logs(phi: Tensor) -> Tensor:
    """Return ``E[ln x_i]`` of a Dirichlet variable."""
    return phi.digamma() - phi.sum(-1, keepdim=True).digamma()


# -ln p(z) for p = Gamma(2, 1); phi is the shape
GAMMA = Expectation(
    distribution=lambda phi: Gamma(phi[..., 0], torch.ones_like(phi[..., 0])),
    cost=lambda z: z - z.log(),
    closed_form=lambda phi: (phi - phi.digamma())[..., 0],
    from_log_gammas=lambda log_g: log_g[..., 0].exp(),
)

# -ln p(x), up to a constant, for p = Beta(2, 3)
BETA = Expectation(
    distribution=lambda phi: Beta(phi[..., 0], phi[..., 1]),
    cost=lambda x: -x.log() - 2 * (-x).log1p(),
    closed_form=lambda phi: _mean_logs(phi) @ phi.new_tensor([-1.0, -2.0]),
    from_log_gammas=lambda log_g: log_g.softmax(-1)[..., 0],
)

# -ln p(x), up to a constant, for p = Dirichlet(2, ..., 2)
DIRICHLET = Expectation(
    distribution=lambda phi: Dirichlet(phi),
    cost=lambda x: -x.log().sum(-1),
    closed_form=lambda phi: -_mean_logs(phi).sum(-1),
    from_log_gammas=lambda log_g: log_g.softmax(-1),
)


def _mean_cosine(k: Tensor) -> Tensor:
    return torch.special.i1e(k) / torch.special.i0e(k)


# -ln p(z), up to a constant, for the von Mises distribution p around 1 with the concentration 1;
# phi holds location and concentration
VON_MISES = Expectation(
    distribution=lambda phi: VonMises(phi[..., 0], phi[..., 1]),
    cost=lambda z: -(z - 1).cos(),
    closed_form=lambda phi: -_mean_cosine(phi[..., 1]) * (phi[..., 0] - 1).cos(),
)


def _normal_mixture(phi: Tensor) -> MixtureSameFamily:
    logits, means, log_scales = phi.unflatten(-1, (3, -1)).unbind(-2)
    return MixtureSameFamily(Categorical(logits=logits), Normal(means, log_scales.exp()))


def _second_moment(phi: Tensor) -> Tensor:
    logits, means, log_scales = phi.unflatten(-1, (3, -1)).unbind(-2)
    return (logits.softmax(-1) * (means**2 + (2 * log_scales).exp())).sum(-1)


# -ln p(z), up to a constant, for p = Normal(0, 1) and a mixture of normal distributions; phi holds
# logits, means and logarithms of scales
MIXTURE = Expectation(
    distribution=_normal_mixture,
    cost=lambda z: 0.5 * z**2,
    closed_form=lambda phi: 0.5 * _second_moment(phi),
)
