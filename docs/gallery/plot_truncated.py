"""
A truncated distribution
========================

Survival times above a detection limit, incomes below a cap: what is observed is a *truncated*
distribution. Its samples are differentiable here in every parameter, the limits of truncation
included, because a sample solves :math:`F(z; \\varphi) = u`.

The parameters are fitted to a target by the energy distance of samples, which knows nothing of
densities: the gradient goes through the samples only.
"""

import matplotlib.pyplot as plt
import torch

from implicit_solvers.problems.reparameterization import TruncatedNormal

torch.manual_seed(0)

# %%
# Data from a truncated normal distribution whose parameters are to be found again; the limit of
# detection is known.

low, high = torch.tensor(-0.5), torch.tensor(float("inf"))
data = TruncatedNormal(torch.tensor(0.0), torch.tensor(1.0), low, high).sample((4000,))


def energy_distance(a, b):
    """2 E|a - b| - E|a - a'| - E|b - b'|; zero only for equal distributions."""
    between = (a[:, None] - b).abs().mean()
    return 2 * between - _within(a) - _within(b)


def _within(a):
    return (a[:, None] - a).abs().sum() / (len(a) * (len(a) - 1))


# %%
# Fit location and scale, starting from wrong ones
# ------------------------------------------------

loc = torch.tensor(1.5, requires_grad=True)
log_scale = torch.tensor(-0.7, requires_grad=True)
optimizer = torch.optim.Adam([loc, log_scale], lr=0.02)
history = []
for step in range(150):
    optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 150)
    optimizer.zero_grad()
    samples = TruncatedNormal(loc, log_scale.exp(), low, high).rsample((256,))
    distance = energy_distance(samples, data[torch.randint(len(data), (256,))])
    distance.backward()
    optimizer.step()
    history.append((loc.item(), log_scale.exp().item()))

fitted = TruncatedNormal(loc.detach(), log_scale.detach().exp(), low, high)
print(f"location {history[-1][0]:+.2f} (0), scale {history[-1][1]:.2f} (1)")
print(f"mean {fitted.mean.item():.4f}, of the data {data.mean().item():.4f}")

# %%
# Location and scale trade off against each other along a valley: what is cut off would tell them
# apart. The distributions agree closely all the same.

grid = torch.linspace(-0.5, 4, 400)
start = TruncatedNormal(torch.tensor(1.5), torch.tensor(0.5), low, high)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.hist(data, bins=60, density=True, color="0.8", label="data")
left.plot(grid, start.log_prob(grid).exp(), "--", label="start")
left.plot(grid, fitted.log_prob(grid).exp(), label="fitted")
left.set(xlabel="z")
left.legend()
right.plot(history, label=["location", "scale"])
right.set(xlabel="step")
right.legend()
plt.show()
