"""Memory and time of a solve and its gradient against the number of problems, and of unknowns.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/many.py

A thousand to a million problems of four unknowns, by the default of `root`, whole and in chunks of
65,536; and one problem of a thousand to a million unknowns, by products only. It prints a table
with the slopes of the last decade, where fixed costs no longer hide them, and writes
``docs/figures/many.png``. The process needs 4 GB.
"""

import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import implicit_solvers as ims
from implicit_solvers.testing.live_memory import LiveMemory

FIGURE = Path(__file__).parents[2] / "docs" / "figures" / "many.png"
LANES = (1_000, 10_000, 100_000, 1_000_000)
UNKNOWNS = (1_000, 10_000, 100_000, 1_000_000)
D = torch.float64


def problems(count, chunk_size=None):
    """``tanh(A z) + z = b`` for so many ``A (4, 4)``."""
    A = torch.randn(count, 4, 4, dtype=D) / 10
    b = torch.randn(count, 4, dtype=D, requires_grad=True)

    def residual(z, A, b):
        return torch.tanh((A * z.unsqueeze(-2)).sum(-1)) + z - b

    solver = ims.NewtonDogleg(chunk_size=chunk_size)

    def work():
        options = {"solver": solver, "batch_dims": 1, "in_dims": (0, 0)}
        solution = ims.root(residual, torch.zeros_like(b), (A, b), **options)
        solution.value.sum().backward()

    return work


def unknowns(n):
    """``z + z**3 = b`` beside a Laplacian: its Jacobian is never formed."""
    b = torch.randn(n, dtype=D, requires_grad=True)

    def residual(z, b):
        beside = torch.nn.functional.pad(z, (1, 1))
        return z + z**3 + 0.5 * (2 * z - beside[:-2] - beside[2:]) - b

    solver = ims.Newton(linear_solver=ims.GMRES())
    adjoint = ims.ImplicitAdjoint(ims.GMRES())

    def work():
        solution = ims.root(residual, torch.zeros_like(b), (b,), solver=solver, adjoint=adjoint)
        solution.value.sum().backward()

    return work


def measured(make, size):
    """Return megabytes and processor seconds, the least of three."""
    torch.manual_seed(0)
    work = make(size)
    with LiveMemory() as memory:
        work()
    seconds = math.inf
    for _ in range(3):
        begin = time.process_time()
        work()
        seconds = min(seconds, time.process_time() - begin)
    return memory.peak / 1e6, seconds


def main():
    """Measure, print, draw."""
    sides = {
        "problems of 4 unknowns": (problems, LANES),
        "in chunks of 65,536": (lambda count: problems(count, 65_536), LANES),
        "unknowns of one problem": (unknowns, UNKNOWNS),
    }
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
    print("| | size | MB | s | slope of memory | of time |")
    for (name, (make, sizes)), color in zip(
        sides.items(), ("#2962ff", "#00897b", "#ff6d00"), strict=True
    ):
        found = [measured(make, size) for size in sizes]
        slopes = [math.log10(b / a) for a, b in zip(found[-2], found[-1], strict=True)]
        for size, (megabytes, seconds) in zip(sizes, found, strict=True):
            ends = f"{slopes[0]:.2f} | {slopes[1]:.2f}" if size == sizes[-1] else "|"
            print(f"| {name} | {size:,} | {megabytes:.3g} | {seconds:.3g} | {ends} |")
        for axes, values in zip(panels, zip(*found, strict=True), strict=True):
            axes.loglog(sizes, values, "o-", color=color, label=name)
    for axes, title in zip(panels, ("memory, MB", "time, s"), strict=True):
        axes.set(title=title, xlabel="number of problems, or of unknowns")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main()
