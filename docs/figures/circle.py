"""The circle: where it is the graph of a function, the slope that the library finds, and how it grows."""

import matplotlib.pyplot as plt
import torch
from torch.func import grad, vmap

import implicit_solvers as ims


def circle(y, x, r):
    return x**2 + y**2 - r**2


def height(x, r):
    """The upper half: the root of y -> circle(y, x, r) that a start at r leads to."""
    return ims.root(circle, r.clone(), (x, r)).value


r = torch.tensor(1.0, dtype=torch.float64)
x = torch.cat([torch.linspace(-0.999, 0.999, 201), torch.tensor([-0.8, -0.3, 0.6, 0.9])]).double()
y = vmap(height, (0, None))(x, r)
slope = vmap(grad(height), (0, None))(x, r)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
angle = torch.linspace(0, 6.2832, 400)
left.plot(angle.cos(), angle.sin(), color="0.75", linewidth=3)
for i in range(-4, 0):
    step = 0.3 / (1 + slope[i] ** 2) ** 0.5
    along = torch.stack([-step, step])
    left.plot(x[i] + along, y[i] + slope[i] * along, color="tab:blue")
    left.plot(x[i], y[i], "o", color="tab:blue")
for side in (-1, 1):
    left.plot([side, side], [-0.3, 0.3], color="tab:red")
    left.plot(side, 0, "o", color="tab:red")
left.set(aspect="equal", xlabel="x", ylabel="y", title="tangents; red: ∂f/∂y = 0, no function y(x)")
right.plot(x[:201], slope[:201], label="by the library")
right.plot(x[:201], -x[:201] / y[:201], ":", color="black", label="−x / y")
right.set(xlabel="x", ylabel="dy/dx", ylim=(-8, 8), title="the slope grows without bound")
right.legend()
