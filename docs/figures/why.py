"""Why not unroll: memory and time of a gradient against the number of iterations, by both ways.

OMP_NUM_THREADS=1 python docs/figures/why.py        writes docs/figures/why.png
"""

import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import implicit_solvers as ims
from implicit_solvers.testing.live_memory import LiveMemory

STEPS = (4, 10, 30, 100, 300, 1000)

torch.manual_seed(0)
x = torch.randn(64, 256)
W = torch.linalg.qr(torch.randn(256, 256)).Q * 0.9
W.requires_grad_()


def layer(z, W):
    return torch.tanh(z @ W.T + x)


def unrolled(steps):
    z = torch.zeros_like(x)
    for _ in range(steps):
        z = layer(z, W)
    return z


def implicit(steps):
    solver = ims.FixedPointIteration(max_steps=steps, rtol=None)  # so many steps, no more, no less
    return ims.fixed_point(layer, torch.zeros_like(x), (W,), solver=solver).value


def gradient(solve, steps):
    return torch.autograd.grad(solve(steps).square().sum(), W)[0]


def seconds(solve, steps):
    begin = time.process_time()
    gradient(solve, steps)
    return time.process_time() - begin


def megabytes(solve, steps):
    with LiveMemory() as memory:
        gradient(solve, steps)
    return memory.peak / 1e6


ways = {"unrolled: every iteration is kept": unrolled, "implicit-solvers": implicit}
for solve in ways.values():
    gradient(solve, 4)
figure, (memory, clock) = plt.subplots(1, 2, figsize=(8, 3.1), layout="constrained")
for (name, solve), color in zip(ways.items(), ("#ff6d00", "#2962ff"), strict=True):
    measured = [megabytes(solve, steps) for steps in STEPS]
    took = [min(seconds(solve, steps) for _ in range(3)) for steps in STEPS]
    print(name, [round(m, 1) for m in measured], [round(t, 4) for t in took])
    memory.loglog(STEPS, measured, "o-", color=color, label=name)
    clock.loglog(STEPS, took, "o-", color=color)
memory.set(title="memory of one gradient, MB", xlabel="iterations of the solver")
clock.set(title="time of one gradient, s", xlabel="iterations of the solver")
memory.legend(frameon=False, loc="upper left")
for axes in (memory, clock):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)
