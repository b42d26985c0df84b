"""A variational autoencoder of binary images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implicit_solvers.problems.reparameterization.models.latents import Latent

__all__ = ["Autoencoder", "evaluate"]


class Autoencoder(nn.Module):
    """An encoder ``q(z | x)`` and a decoder ``p(x | z)`` with Bernoulli pixels.

    Each has two hidden layers of the width ``hidden``.

    Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014); with the latent variables
    of Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018), section 6.3.
    """

    def __init__(self, latent: Latent, dimensions: int, pixels: int, hidden: int) -> None:
        super().__init__()
        self.latent, self.dimensions = latent, dimensions
        self.encoder = _perceptron(pixels, hidden, latent.outputs * dimensions)
        self.decoder = _perceptron(latent.width * dimensions, hidden, pixels)

    def posterior(self, x: Tensor) -> torch.distributions.Distribution:
        """Return ``q(z | x)`` of images ``(..., pixels)``."""
        outputs = self.encoder(x).unflatten(-1, (self.latent.outputs, self.dimensions))
        return self.latent.posterior(outputs)

    def logits(self, z: Tensor) -> Tensor:
        """Return the logits ``(..., pixels)`` of the pixels of ``z``, ``(..., dimensions)``."""
        return self.decoder(self.latent.features(z))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``ln p(x | z)`` at one sample ``z``, and ``KL(q(z | x) || p(z))``, in nats.

        Parameters
        ----------
        x
            Binary images ``(..., pixels)``.
        """
        posterior = self.posterior(x)
        logits = self.logits(posterior.rsample())
        fit = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        return fit, self.latent.divergence(posterior).sum(-1)


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(inputs, hidden), nn.ReLU()),
        *(nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, outputs),
    )


@torch.no_grad()
def evaluate(model: Autoencoder, images: Tensor, samples: int) -> tuple[float, float]:
    """Return the means over images of ``E_q[ln p(x | z)]`` and of the divergence.

    Their difference is the ELBO. Images are binary, ``(images, pixels)``; ``samples`` of ``z`` are
    drawn for each.
    """
    parts = [[part.mean() for part in model(images)] for _ in range(samples)]
    fit, divergence = torch.tensor(parts, dtype=torch.float64).mean(0).tolist()
    return fit, divergence
