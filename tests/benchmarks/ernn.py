"""Time of the exact network, torch's LSTM and the sequential cell: the table of docs/ernn.md.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/ernn.py
    ... --steps 128 --rounds 3    # one length, fewer rounds

One core, batch 64, 64 inputs, 64 hidden units, float32, the default initialization; a pass forward
and one backward from a fixed gradient of the output, with gradients of the parameters and the
input. The sides take turns; what counts is processor time, of which the best and the median of
the rounds are shown. Before that, the gradients of both modes are compared with those of the
sequential cell in float64, solved to rounding.
"""

import argparse
import functools
import statistics
import sys

import torch
from comparison import alternate
from torch import nn

import implicit_solvers as ims
from implicit_solvers.problems.ernn import ERNN, Equilibrium

SIZE = 64
# float32: the default solvers ask for residuals of 6e-6 and 2.4e-5
LARGEST_ERROR = 1e-4


def networks():
    """Return the sides; the sequential cell has the parameters of the parallel mode."""
    torch.manual_seed(0)
    parallel, lstm = ERNN(SIZE, SIZE), nn.LSTM(SIZE, SIZE)
    sequential = ERNN(SIZE, SIZE, mode=Equilibrium(parallel=False))
    sequential.load_state_dict(parallel.state_dict())
    return {"parallel": parallel, "LSTM": lstm, "sequential": sequential}


def passes(net, x, gradient):
    """Return the gradients of the parameters and the input."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(net(x)[0], (*net.parameters(), x), gradient)


def errors(nets, steps, batch=4):
    """Return the largest error of a gradient, relative to the largest of its entries."""
    exact = ERNN(
        SIZE,
        SIZE,
        mode=Equilibrium(solver=ims.Newton(rtol=1e-14, atol=1e-14), parallel=False),
        dtype=torch.float64,
    )
    exact.load_state_dict(nets["parallel"].state_dict())
    x, gradient = torch.randn(2, steps, batch, SIZE)
    reference = passes(exact, x.double(), gradient.double())
    found = {}
    for name in ("parallel", "sequential"):
        pairs = zip(passes(nets[name], x, gradient), reference, strict=True)
        found[name] = max(float((g - r).abs().max() / r.abs().max()) for g, r in pairs)
    return found


def measure(nets, steps, rounds):
    """Return the processor seconds of every round, by the side."""
    x, gradient = torch.randn(2, steps, 64, SIZE)
    calls = {name: functools.partial(passes, net, x, gradient) for name, net in nets.items()}
    # one round of the sequential cell is as long as fifty of the others
    rare = {"sequential": calls.pop("sequential")}
    seconds = alternate(calls, rounds) | alternate(rare, max(1, rounds // 5))
    return {name: [cpu for _, cpu in own] for name, own in seconds.items()}


def main():
    """Check the gradients and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    nets = networks()
    found = errors(nets, 16)
    shown = ", ".join(f"{name} {error:.1e}" for name, error in found.items())
    print(f"largest error of a gradient, relative to float64: {shown}")
    if max(found.values()) > LARGEST_ERROR:
        return 1
    print(
        "| steps | " + " | ".join(f"{name}, ms" for name in nets) + " | LSTM / parallel | ", end=""
    )
    print("sequential / parallel |")
    print("|---" * 6 + "|", flush=True)
    for steps in options.steps:
        seconds = measure(nets, steps, options.rounds)
        cells = [f"{1e3 * min(s):.0f} ({1e3 * statistics.median(s):.0f})" for s in seconds.values()]
        best = {name: min(s) for name, s in seconds.items()}
        ratios = [f"{best[name] / best['parallel']:.1f}" for name in ("LSTM", "sequential")]
        print(f"| {steps} | " + " | ".join(cells + ratios) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
