"""What compiling buys and costs: the table of docs/compilation.md.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/compilation.py

Values and gradients are compared with the eager ones before a time is printed; times are medians
of the processor time of forward and backward, the sides alternating, and what the first call of
each side took.
"""

import argparse
import time

import torch
from comparison import medians

import implicit_solvers as ims

F64 = torch.float64
LANES = {"batch_dims": 1, "in_dims": (0, None)}


def newton(lanes):
    """Systems ``tanh(W z) + z = x`` of 16 unknowns."""
    torch.manual_seed(0)
    W = 0.5 * torch.randn(16, 16, dtype=F64) / 4
    x = torch.randn(lanes, 16, dtype=F64)

    def fn(z, x, W):
        return torch.tanh(z @ W.T) + z - x

    def solve(x, W, **options):
        return ims.root(fn, torch.zeros_like(x), (x, W), **LANES, **options).value

    return solve, (x, W), ims.Newton


def equilibrium(lanes):
    """Equilibria ``z = tanh(W z) + x`` of 128 unknowns, by `Anderson`; adjoint by `BiCGStab`."""
    torch.manual_seed(0)
    W = 0.45 * torch.randn(128, 128, dtype=F64) / 128**0.5
    x = torch.randn(lanes, 128, dtype=F64)

    def fn(z, x, W):
        return torch.tanh(z @ W.T) + x

    def solve(x, W, **options):
        adjoint = ims.ImplicitAdjoint(ims.BiCGStab())
        start = torch.zeros_like(x)
        return ims.fixed_point(fn, start, (x, W), adjoint=adjoint, **LANES, **options).value

    return solve, (x, W), ims.Anderson


def minimum(lanes):
    """Minima of functions of Rosenbrock of 10 unknowns, by `LBFGS`."""
    torch.manual_seed(0)
    x = 1 + 0.1 * torch.randn(lanes, 10, dtype=F64)
    W = torch.tensor(100.0, dtype=F64)

    def fn(z, x, W):
        valley = z[..., 1:] - z[..., :-1] ** 2
        return ((x - z) ** 2)[..., :-1].sum(-1) + W * (valley**2).sum(-1)

    def solve(x, W, **options):
        return ims.minimize(fn, torch.zeros_like(x), (x, W), **LANES, **options).value

    return solve, (x, W), ims.LBFGS


def rows(title, task, lanes, rounds):
    """Print a row for each way to run a task."""
    solve, tensors, solver = task(lanes)
    plain, compiled = solver(), solver(compile=True)
    whole = torch.compile(lambda x, W: solve(x, W, solver=plain, on_failure="mask"), fullgraph=True)
    calls = {
        "eager": lambda x, W: solve(x, W, solver=plain),
        "`compile=True`": lambda x, W: solve(x, W, solver=compiled),
        "`torch.compile(fullgraph=True)`": whole,
    }

    def gradient(name):
        leaves = [t.clone().requires_grad_() for t in tensors]
        return torch.autograd.grad(calls[name](*leaves).pow(2).sum(), leaves)

    first, expected = {}, gradient("eager")
    for name in calls:
        start = time.process_time()
        for a, b in zip(gradient(name), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
        first[name] = time.process_time() - start
    seconds = medians({name: (lambda name=name: gradient(name)) for name in calls}, rounds)
    for name in calls:
        print(f"| {title} | {name} | {1e3 * seconds[name]:.1f} | {first[name]:.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| task | how | forward and backward, ms | first call, s |\n|---|---|---|---|")
    for lanes in (1, 1024):
        rows(f"{lanes} x 16, `Newton`", newton, lanes, rounds)
    for lanes in (1, 256):
        rows(f"{lanes} x 128, `Anderson`", equilibrium, lanes, rounds)
    for lanes in (1, 200):
        rows(f"{lanes} x 10, `LBFGS`", minimum, lanes, rounds)
