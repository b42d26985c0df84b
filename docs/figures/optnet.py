"""Digits: a network with a quadratic program as a layer learns."""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from implicit_solvers.problems.qp import quadratic_program

torch.manual_seed(0)
digits = load_digits()
X = torch.tensor(digits.data / 16, dtype=torch.float32)
t = torch.tensor(digits.target)
train, test = torch.randperm(len(t)).split([1297, 500])


class OptNet(nn.Module):
    """z = argmin of z'Qz/2 - z'x, where G z <= h; the point z0 is always feasible."""

    def __init__(self, n, m):
        super().__init__()
        self.root = nn.Parameter(torch.eye(n) + 0.1 * torch.randn(n, n))
        self.G = nn.Parameter(torch.randn(m, n) / n**0.5)
        self.z0 = nn.Parameter(torch.zeros(n))
        self.log_room = nn.Parameter(torch.zeros(m) - 1)

    def forward(self, x):
        Q = self.root @ self.root.T + 0.1 * torch.eye(len(self.z0))
        value = quadratic_program(Q, -x, self.G, self.G @ self.z0 + self.log_room.exp()).value
        self.active = (value.inequality_duals > 0).float().mean()
        return value.x


net = nn.Sequential(nn.Linear(64, 12), OptNet(12, 12), nn.Linear(12, 10))
optimizer = torch.optim.Adam(net.parameters(), 0.01)
losses, active = [], []
for _ in range(120):
    batch = train[torch.randint(len(train), (100,))]
    loss = nn.functional.cross_entropy(net(X[batch]), t[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    active.append(net[1].active.item())
with torch.no_grad():
    accuracy = (net(X[test]).argmax(-1) == t[test]).float().mean().item()

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.semilogy(losses, color="tab:blue")
left.set(
    xlabel="step",
    ylabel="cross-entropy",
    title=f"learning: {accuracy:.0%} of the test images right",
)
right.plot(active, color="tab:red")
right.set(
    xlabel="step",
    ylabel="share of constraints active",
    ylim=(0, 0.5),
    title="the learned constraints are in use",
)
