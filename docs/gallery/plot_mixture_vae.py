"""
A variational autoencoder with a mixture posterior
==================================================

Which component does a sample of a mixture come from? A choice cannot be differentiated; that is why
torch's ``MixtureSameFamily`` has no ``rsample``. Implicit reparameterization needs no choice: a sample
solves :math:`\\sum_k w_k F_k(z) = u` and moves smoothly with the weights, locations and scales
(Figurnov, Mohamed and Mnih, 2018, section 5).

Here each latent coordinate of an autoencoder of digits has a posterior of two normal components.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Categorical, Normal

from implicit_solvers.problems.reparameterization import MixtureSameFamily

torch.manual_seed(0)
x = torch.tensor(load_digits().data / 16, dtype=torch.float32)
order = torch.randperm(len(x))
train, test = x[order[360:]], x[order[:360]]
latents, components = 2, 2


class Encoder(nn.Module):
    """Images to the posterior of each latent coordinate, a mixture of two normal distributions."""

    def __init__(self):
        super().__init__()
        size = 3 * latents * components
        self.net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, size))

    def forward(self, images):
        logits, loc, scale = self.net(images).unflatten(-1, (3, latents, components)).unbind(-3)
        spread = torch.tensor([-0.5, 0.5])
        parts = Normal(loc + spread, nn.functional.softplus(scale) + 1e-2)
        return MixtureSameFamily(Categorical(logits=logits), parts)


encoder = Encoder()
decoder = nn.Sequential(nn.Linear(latents, 128), nn.Tanh(), nn.Linear(128, 64))
prior = Normal(0.0, 1.0)


def elbo(images):
    posterior = encoder(images)
    z = posterior.rsample()
    divergence = (posterior.log_prob(z) - prior.log_prob(z)).sum(-1)
    fit = -nn.functional.binary_cross_entropy_with_logits(decoder(z), images, reduction="none").sum(
        -1
    )
    return fit - divergence


# %%
# Training
# --------
# The gradient reaches the weights of the mixture through the samples, at the variance of a pathwise
# estimator.

optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=4e-3)
curve = []
for _ in range(12):
    for batch in train[torch.randperm(len(train))].split(128):
        optimizer.zero_grad()
        loss = -elbo(batch).mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        curve.append(elbo(test).mean().item())
print(f"test ELBO {curve[0]:.1f} after one epoch, {curve[-1]:.1f} after {len(curve)}")

# %%
# What was learned
# ----------------

with torch.no_grad():
    weights = encoder(test).mixture_distribution.probs
    grid = torch.linspace(-2, 2, 10)
    z = torch.stack(torch.meshgrid(-grid, grid, indexing="ij"), -1).flip(-1)
    decoded = decoder(z).sigmoid().reshape(10, 10, 8, 8)
print(f"largest weight of a posterior, mean: {weights.amax(-1).mean().item():.2f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
left.plot(range(1, len(curve) + 1), curve)
left.set(xlabel="epoch", ylabel="test ELBO")
right.imshow(decoded.permute(0, 2, 1, 3).reshape(80, 80), cmap="gray_r")
right.set(xticks=[], yticks=[], title="decoded from a grid of latents")
plt.show()
