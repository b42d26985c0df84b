r"""Monte Carlo gradients of an expectation ``E_q[g(z)]``, one gradient for each sample.

All are unbiased: their mean over samples tends to the gradient. Where a term is the score of the
distribution times the cost, the exact expectation is subtracted from the cost, which leaves the
mean as it is and makes the variance independent of constants in ``g``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problems.reparameterization.expectations import Expectation

__all__ = ["implicit_gradients", "rejection_gradients", "score_function_gradients"]


def implicit_gradients(expectation: Expectation, phi: Tensor, count: int) -> Tensor:
    r"""Estimate the gradient by implicit reparameterization.

    .. math:: \nabla_\phi E[g(z)] = E[\nabla_z g(z) \, \nabla_\phi z], \qquad
              \nabla_\phi z = -\frac{\nabla_\phi F(z; \phi)}{q(z; \phi)}

    ``phi`` has the shape ``(P,)``. The result is the gradient at each sample, ``(count, P)``.

    Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018), section 3.
    """
    lanes = _lanes(phi, count)
    z = expectation.distribution(lanes).rsample()
    return torch.autograd.grad(expectation.cost(z).sum(), lanes)[0]


def score_function_gradients(expectation: Expectation, phi: Tensor, count: int) -> Tensor:
    r"""Estimate the gradient by the score function (REINFORCE), with the best known baseline.

    .. math:: \nabla_\phi E[g(z)] = E[(g(z) - E[g]) \, \nabla_\phi \ln q(z; \phi)]

    Arguments and result are as in `implicit_gradients`.
    """
    lanes = _lanes(phi, count)
    q = expectation.distribution(lanes)
    z = q.sample()
    surplus = expectation.cost(z) - expectation.closed_form(phi)
    return torch.autograd.grad((surplus * q.log_prob(z)).sum(), lanes)[0]


def rejection_gradients(
    expectation: Expectation, phi: Tensor, count: int, augmentation: int
) -> Tensor:
    r"""Estimate the gradient through the noise of a rejection sampler of gamma variables (RSVI).

    Marsaglia and Tsang's sampler proposes ``h(eps, a)`` for normal ``eps``; the shapes are raised
    by ``B``, which makes it accept more, and lowered again by ``B`` uniform variables:

    .. math:: h(\epsilon, a) = \bigl(a - \tfrac13\bigr)
              \Bigl(1 + \frac{\epsilon}{\sqrt{9 a - 3}}\Bigr)^3, \qquad
              z = h(\epsilon, \phi + B) \prod_{i=0}^{B-1} u_i^{1/(\phi + i)}

    The accepted noise has the density ``pi(eps; a)``, which depends on ``a``; so the gradient is

    .. math:: E[\nabla_\phi g(z)] + E[(g(z) - E[g]) \, \nabla_\phi \ln \pi(\epsilon; \phi + B)],
              \qquad \ln \pi = \ln q(h(\epsilon, a); a) + \ln \frac{dh}{d\epsilon}
              + \text{const}

    Arguments and result are as in `implicit_gradients`; ``expectation.from_log_gammas`` is needed.

    Source: Naesseth, Ruiz, Linderman and Blei, "Reparameterization Gradients through
    Acceptance-Rejection Sampling Algorithms" (2017), sections 3 and 5.1.
    """
    if expectation.from_log_gammas is None:
        raise ValueError("expectation.from_log_gammas is None: z must be made of gamma variables")
    if augmentation < 1:
        raise ValueError(f"augmentation is {augmentation}: it must be at least 1")
    lanes = _lanes(phi, count)
    raised = lanes + augmentation
    eps = _accepted_noise(raised)
    log_h, log_slope = _proposal(eps, raised)
    log_z = log_h + _lowering(lanes, augmentation)
    cost = expectation.cost(expectation.from_log_gammas(log_z))
    surplus = (cost - expectation.closed_form(phi)).detach()
    log_accepted = (raised - 1) * log_h - log_h.exp() - raised.lgamma() + log_slope
    return torch.autograd.grad((cost + surplus * log_accepted.sum(-1)).sum(), lanes)[0]


def _lanes(phi: Tensor, count: int) -> Tensor:
    """Return a copy of the parameters for each sample, so that each has its own gradient."""
    return phi.detach().repeat(count, 1).requires_grad_()


def _accepted_noise(a: Tensor) -> Tensor:
    """Draw the ``eps`` of accepted proposals: that of a gamma variable, whoever drew it."""
    a = a.detach()
    z = torch.distributions.Gamma(a, torch.ones_like(a)).sample()
    return (9 * a - 3).sqrt() * ((z / (a - 1 / 3)) ** (1 / 3) - 1)


def _proposal(eps: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``ln h(eps, a)``, and ``ln dh/deps`` up to a constant."""
    root = (9 * a - 3).sqrt()
    log_factor, log_scale = (eps / root).log1p(), (a - 1 / 3).log()
    return log_scale + 3 * log_factor, log_scale - root.log() + 2 * log_factor


def _lowering(a: Tensor, steps: int) -> Tensor:
    """Return the logarithm of what lowers a gamma variable's shape from ``a + steps`` to ``a``."""
    log_u = -torch.empty((*a.shape, steps), dtype=a.dtype, device=a.device).exponential_()
    return (log_u / (a.unsqueeze(-1) + torch.arange(steps, device=a.device))).sum(-1)
