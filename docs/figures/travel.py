"""The way of a solve: args through root and the loop to a solution, and its gradient back to args."""

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyBboxPatch
from torch.func import vmap

import implicit_solvers as ims


def kepler(E, M, e):
    return E - e * torch.sin(E) - M


def solve(M, e):
    sol = ims.root(kepler, M, (M, e))
    return sol.value, sol.iterations


M = torch.tensor([0.2, 0.5, 1.0, 3.0], dtype=torch.float64)
e = torch.tensor([0.95, 0.3, 0.6, 0.01], dtype=torch.float64)
steps = vmap(solve)(M, e)[1].tolist()

there, back, kept = "#2962ff", "#ff6d00", "#00897b"
figure, axes = plt.subplots(figsize=(8.6, 3.7), layout="constrained")
axes.set(xlim=(0, 10), ylim=(0.35, 4.25))
axes.axis("off")


def box(x, y, width, height, title, text, color):
    style = {"boxstyle": "round,pad=0.02,rounding_size=0.1", "facecolor": "white"}
    patch = FancyBboxPatch((x, y), width, height, edgecolor=color, **style)
    axes.add_patch(patch)
    axes.text(x + 0.1, y + height - 0.1, title, va="top", weight="bold", color=color, fontsize=9)
    axes.text(x + 0.1, y + height - 0.42, text, va="top", fontsize=8.5, linespacing=1.4)


def arrow(start, end, color, text="", at=(0, 0.1), bend=0.0):
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.8}
    style["connectionstyle"] = f"arc3,rad={bend}"
    axes.annotate("", end, start, arrowprops=style)
    x, y = (start[0] + end[0]) / 2 + at[0], (start[1] + end[1]) / 2 + at[1]
    axes.text(x, y, text, ha="center", color=color, fontsize=8.5)


box(0.1, 2.7, 1.5, 1.4, "1  root", "the task:\nequation, solver,\nadjoint", there)
box(2.3, 2.7, 1.6, 1.4, "2  reading", "$z_0$: a tensor\n(*lanes, n); args:\noperands", there)
box(4.6, 2.2, 2.4, 1.9, "3  solve, detached", "", there)
recorded = "$F(z^*, \\theta)$, recorded;\n$z^*$ with a node\nof autograd"
box(7.8, 2.7, 2.1, 1.4, "4  attachment", recorded, there)
box(4.6, 0.5, 2.4, 0.8, "5  one linear solve", "$A^\\top w = \\bar z$, in each lane", back)
box(2.1, 0.5, 1.8, 0.8, "6  pullback", "$\\bar\\theta = -w\\, \\partial F/\\partial\\theta$", back)

for lane, count in enumerate(steps):
    y = 3.5 - 0.24 * lane
    axes.plot([4.8, 4.8 + 0.2 * count], [y, y], color="0.8", zorder=1)
    axes.plot([4.8 + 0.2 * i for i in range(count)], [y] * count, ".", color=there)
    axes.plot(4.8 + 0.2 * count, y, "D", color=kept, markersize=5)
axes.text(4.75, 2.35, "lanes of vmap; ◆ the verdict", fontsize=8.5)

arrow((1.65, 3.4), (2.25, 3.4), there, "args")
arrow((3.95, 3.4), (4.55, 3.4), there, "$z_0, \\theta$")
arrow((7.05, 3.4), (7.75, 3.4), there, "$z^*, \\theta$")
arrow((5.8, 2.15), (5.8, 1.35), kept, "factors of $A$", at=(0.55, 0))
arrow((8.85, 2.65), (7.05, 0.8), back, "backward: $\\bar z$", at=(0.95, -0.4), bend=-0.3)
arrow((4.55, 0.8), (3.95, 0.8), back, "$-w$")
arrow((2.05, 0.8), (0.85, 2.65), back, "args.grad", at=(-0.75, -0.45), bend=-0.3)
