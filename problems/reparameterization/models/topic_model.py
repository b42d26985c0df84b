"""Latent Dirichlet allocation with amortized posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from implicit_solvers.problems.reparameterization.distributions import Dirichlet

__all__ = ["POSTERIORS", "Posterior", "TopicModel", "perplexity", "unigram"]

# Positive parameters stay above it.
LEAST = 1e-2


@dataclass(frozen=True)
class Posterior:
    """A family for the shares of topics in a document, and the prior that belongs to it.

    ``distribution`` maps the encoder's outputs, ``(..., outputs, topics)``, to a distribution, and
    ``shares`` its samples to shares ``(..., topics)``. ``prior`` maps the number of topics and the
    parameter of the symmetric Dirichlet prior to the prior.
    """

    outputs: int
    distribution: Callable[[Tensor], Distribution]
    prior: Callable[[int, float], Distribution]
    shares: Callable[[Tensor], Tensor]


def _dirichlet(h: Tensor) -> Dirichlet:
    return Dirichlet(LEAST + F.softplus(h.squeeze(-2)), validate_args=False)


def _normal(h: Tensor) -> Independent:
    loc, scale = h.unbind(-2)
    return Independent(Normal(loc, LEAST + F.softplus(scale), validate_args=False), 1)


def _laplace_approximation(topics: int, concentration: float) -> Independent:
    """Return the Laplace approximation of a symmetric Dirichlet distribution, before softmax.

    Source: Srivastava and Sutton, "Autoencoding variational inference for topic models" (2017),
    equation 2: the variance is ``(1 - 1 / K) / a``.
    """
    scale = math.sqrt((1 - 1 / topics) / concentration)
    return Independent(Normal(torch.zeros(topics), torch.full((topics,), scale)), 1)


POSTERIORS = {
    "dirichlet": Posterior(
        1,
        _dirichlet,
        lambda topics, concentration: Dirichlet(torch.full((topics,), concentration)),
        lambda sample: sample,
    ),
    "logistic-normal": Posterior(
        2, _normal, _laplace_approximation, lambda sample: sample.softmax(-1)
    ),
}


class TopicModel(nn.Module):
    r"""Topics ``b_k``, distributions over words, and an encoder of documents.

    .. math:: \theta \sim \operatorname{Dirichlet}(a, \dots, a), \qquad
              p(w \mid \theta) = \sum_k \theta_k b_{k w}, \qquad q(\theta \mid \text{counts})

    ``totals``, ``(words,)``, tells how often each word is in the training documents: the topics
    start as noise around the frequencies, and if ``topic_noise`` is small, few of them are ever
    used. ``dropout`` is the probability with which a word is hidden from the encoder during
    training, so that it learns from parts of documents.

    Sources: Blei, Ng and Jordan, "Latent Dirichlet allocation" (2003); Figurnov, Mohamed and Mnih,
    "Implicit Reparameterization Gradients" (2018), section 6.2.
    """

    def __init__(
        self,
        posterior: Posterior,
        topics: int,
        concentration: float,
        totals: Tensor,
        hidden: int,
        dropout: float,
        topic_noise: float,
    ) -> None:
        super().__init__()
        self.family = posterior
        self.prior = posterior.prior(topics, concentration)
        self.encoder = nn.Sequential(
            nn.Dropout(dropout),
            *(nn.Linear(len(totals), hidden), nn.Softplus()),
            *(nn.Linear(hidden, hidden), nn.Softplus()),
            nn.Linear(hidden, posterior.outputs * topics),
        )
        noise = topic_noise * torch.randn(topics, len(totals))
        self.topic_logits = nn.Parameter((totals + 1).log() + noise)

    def log_topics(self) -> Tensor:
        """Return ``ln b``, ``(topics, words)``."""
        return self.topic_logits.log_softmax(-1)

    def posterior(self, counts: Tensor) -> Distribution:
        """Return ``q`` for counts of words ``(..., words)``."""
        outputs = self.encoder(counts.log1p())
        return self.family.distribution(outputs.unflatten(-1, (self.family.outputs, -1)))

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``ln p(counts | theta)`` at one sample, and the divergence, in nats a document.

        Without the multinomial coefficient, which has no parameters.

        Parameters
        ----------
        counts
            ``(documents, words)``.
        """
        posterior = self.posterior(counts)
        shares = self.family.shares(posterior.rsample())
        likelihood = (counts * (shares @ self.log_topics().exp()).log()).sum(-1)
        return likelihood, kl_divergence(posterior, self.prior)

    @torch.no_grad()
    def mean_shares(self, counts: Tensor, samples: int) -> Tensor:
        """Return the posterior's mean shares ``(documents, topics)``, from samples."""
        draws = self.posterior(counts).sample((samples,))
        return self.family.shares(draws).mean(0)


def perplexity(probabilities: Tensor, counts: Tensor) -> float:
    """Return ``exp(-sum(counts * ln p) / sum(counts))``.

    Counts are ``(documents, words)``, probabilities of words the same or ``(words,)``.
    """
    log_likelihood = torch.xlogy(counts.to(torch.float64), probabilities.to(torch.float64)).sum()
    return math.exp(-log_likelihood.item() / counts.sum().item())


def unigram(counts: Tensor) -> Tensor:
    """Return each word's frequency in ``(documents, words)``, with one more of each (Laplace)."""
    totals = counts.sum(0) + 1
    return totals / totals.sum()
