"""Time of the exact network and of torch's RNN and LSTM: the table of docs/ernn.md.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/ernn.py
    ... --steps 128 --rounds 3    # one length, fewer rounds

One core, batch 64, 64 inputs, 64 hidden units, float32, recurrent matrices of three norms; a pass
forward and one backward from a fixed gradient of the output, with gradients of the parameters and
the input. The sides take turns; what counts is processor time, of which the best and the median of
the rounds are shown, and the ratio of the best to the LSTM's. Up to 128 steps the sequential cell
is timed too. Before that, the gradients of both modes are compared with those of the sequential
cell in float64, solved to rounding.
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

SIZE, NORMS = 64, (0.3, 0.6, 0.9)
# float32: the default solvers ask for errors of 6e-6 and residuals of 2.4e-5, which is an error
# that is larger by 1 / (1 - |U|)
LARGEST_ERROR = 1e-4


def networks(norm):
    """Return the exact network with ``|U| = norm`` in both modes; they have the same parameters."""
    torch.manual_seed(0)
    parallel = ERNN(SIZE, SIZE, initial_norm=norm)
    sequential = ERNN(SIZE, SIZE, mode=Equilibrium(parallel=False))
    sequential.load_state_dict(parallel.state_dict())
    return {"parallel": parallel, "sequential": sequential}


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


def measure(steps, rounds):
    """Return the processor seconds of every round, by the side."""
    x, gradient = torch.randn(2, steps, 64, SIZE)
    nets = {"RNN": nn.RNN(SIZE, SIZE), "LSTM": nn.LSTM(SIZE, SIZE)}
    # one round of the sequential cell is as long as fifty of the others
    rare = {}
    for norm in NORMS:
        for mode, net in networks(norm).items():
            (rare if mode == "sequential" else nets)[f"{mode}, {norm}"] = net
    seconds = {}
    for group, count in [(nets, rounds), (rare if steps <= 128 else {}, max(1, rounds // 5))]:
        calls = {name: functools.partial(passes, net, x, gradient) for name, net in group.items()}
        seconds |= alternate(calls, count)
    return {name: [cpu for _, cpu in own] for name, own in seconds.items()}


def main():
    """Check the gradients and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for norm in NORMS:
        found = errors(networks(norm), 16)
        shown = ", ".join(f"{name} {error:.1e}" for name, error in found.items())
        print(f"|U| = {norm}: largest error of a gradient, relative to float64: {shown}")
        if max(found.values()) > LARGEST_ERROR / (1 - norm):
            return 1
    print("| steps | network | ms, best (median) | to LSTM |")
    print("|---" * 4 + "|", flush=True)
    for steps in options.steps:
        seconds = measure(steps, options.rounds)
        for name, own in seconds.items():
            best, median = 1e3 * min(own), 1e3 * statistics.median(own)
            ratio = min(own) / min(seconds["LSTM"])
            print(f"| {steps} | {name} | {best:.0f} ({median:.0f}) | {ratio:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
