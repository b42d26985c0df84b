"""
A deep equilibrium model on digits
==================================

A deep network of equal layers, made infinitely deep, is an equilibrium (Bai, Kolter and Koltun, "Deep
Equilibrium Models", 2019):

.. math:: z = \\tanh(W z + U x + b) .

``nn.FixedPoint`` solves for it and trains the parameters of the cell. Memory does not grow with the
iterations, and each image reports whether its equilibrium was found.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import implicit_solvers as ims

torch.manual_seed(0)

# %%
# The data
# --------
# 1,797 handwritten digits of 8 × 8 pixels; a quarter is kept for the test.

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
order = torch.randperm(len(x))
train, test = order[450:], order[:450]

# %%
# The model
# ---------
# A spectral norm below one makes the map a contraction: there is exactly one equilibrium.


class Cell(nn.Module):
    def __init__(self, inputs, hidden):
        super().__init__()
        self.recurrent = spectral_norm(nn.Linear(hidden, hidden, bias=False))
        self.input = nn.Linear(inputs, hidden)

    def forward(self, z, x):
        return torch.tanh(0.9 * self.recurrent(z) + self.input(x))


hidden = 48
equilibrium = ims.nn.FixedPoint(
    Cell(64, hidden),
    init=lambda x: x.new_zeros(*x.shape[:-1], hidden),
    batch_dims=1,
    in_dims=(0,),
    solver=ims.Anderson(rtol=1e-4, atol=1e-4),
    adjoint=ims.ImplicitAdjoint(ims.GMRES(rtol=1e-3)),
)
model = nn.Sequential(equilibrium, nn.Linear(hidden, 10))
print(sum(parameter.numel() for parameter in model.parameters()), "parameters")

# %%
# Training
# --------

optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
losses, iterations = [], []
for _ in range(6):
    for batch in train[torch.randperm(len(train))].split(128):
        optimizer.zero_grad()
        with ims.monitor() as log:
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
        iterations.append(log.records[0].iterations.double().mean().item())

model.eval()
with torch.no_grad():
    accuracy = (model(x[test]).argmax(-1) == y[test]).double().mean()
print(f"test accuracy {100 * accuracy.item():.1f}%")

# %%
# As the cell learns, its equilibria take more iterations to find. A network of fixed depth could not
# react.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.semilogy(losses)
left.set(xlabel="step", ylabel="cross-entropy")
right.plot(iterations)
right.set(xlabel="step", ylabel="iterations to the equilibrium, mean")
plt.show()
