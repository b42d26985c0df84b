"""An equation becomes a layer: Kepler's equation, its solution, and the solution's slope."""

import matplotlib.pyplot as plt
import torch
from torch.func import grad, vmap

import implicit_solvers as ims


def kepler(E, M, e):
    return E - e * torch.sin(E) - M


def solve(M, e):
    return ims.root(kepler, M, (M, e)).value


figure, (equation, layer) = plt.subplots(1, 2, figsize=(8, 3.1), layout="constrained")
grid = torch.linspace(0, torch.pi, 200, dtype=torch.float64)
eccentricities = (0.0, 0.5, 0.9)
colors = ("#90a4ae", "#2962ff", "#00897b")
e, M = torch.tensor([0.5, 1.0], dtype=torch.float64)
root = solve(M, e)

equation.axhline(0, color="black", linewidth=0.8)
equation.plot(grid, kepler(grid, M, e), color=colors[1])
equation.plot(root, 0, "o", color="#ff6d00", markersize=8)
equation.annotate("the solver finds $E$", (root, 0), (0.25, 0.75), arrowprops={"arrowstyle": "->"})
equation.set(title="$f(E; M, e) = E - e\\,\\sin E - M = 0$", xlabel="$E$", ylabel="$f$")

for value, color in zip(eccentricities, colors, strict=True):
    e_all = torch.full_like(grid, value)
    layer.plot(grid, vmap(solve)(grid, e_all), color=color, label=f"$e = {value}$")
slope = grad(solve)(M, e)
near = torch.tensor([-0.6, 0.6])
layer.plot(M + near, root + slope * near, color="#ff6d00", linewidth=2)
layer.plot(M, root, "o", color="#ff6d00", markersize=8)
layer.annotate(
    f"its slope, $\\partial E/\\partial M = {slope:.2f}$,\nby one linear solve",
    (M + 0.3, root + slope * 0.3),
    (1.5, 0.35),
    arrowprops={"arrowstyle": "->"},
)
layer.set(title="the layer $E(M, e)$", xlabel="$M$", ylabel="$E$")
layer.legend(frameon=False, loc="upper left")
for axes in (equation, layer):
    axes.spines[["top", "right"]].set_visible(False)
