"""Bias, time and memory of the adjoints on two problems: the table of docs/adjoints.md.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/adjoints.py

Gradients are compared with the float64 derivative of the converged solution (a dense solve);
times are medians of the processor time of
forward and backward; memory is the peak of live tensors.
"""

import argparse
import functools

import torch
from comparison import medians

import implicit_solvers as ims
from implicit_solvers.testing.live_memory import LiveMemory


def equilibrium():
    """An equilibrium ``z = tanh(W z + x)``: 64 lanes, 64 unknowns, contraction about 0.8."""
    torch.manual_seed(0)
    W = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0] * 0.8
    x = torch.randn(64, 64, dtype=torch.float64)

    def cell(z, W, x):
        return torch.tanh(z @ W.T + x)

    def gradient(adjoint):
        theta = W.clone().requires_grad_()
        sol = ims.fixed_point(
            cell,
            torch.zeros_like(x),
            (theta, x),
            solver=ims.FixedPointIteration(),
            adjoint=adjoint,
            batch_dims=1,
            in_dims=(None, 0),
        )
        return torch.autograd.grad(sol.value.pow(2).sum(), theta)[0]

    return gradient, {
        "`ImplicitAdjoint()`": ims.ImplicitAdjoint(),
        "`ImplicitAdjoint(GMRES())`": ims.ImplicitAdjoint(ims.GMRES()),
        "`ImplicitAdjoint(Neumann(max_steps=20, rtol=None))`": _neumann(20),
        "`ImplicitAdjoint(Neumann(max_steps=5, rtol=None))`": _neumann(5),
        "`OneStepAdjoint()`": ims.OneStepAdjoint(),
        "`UnrolledAdjoint()`": ims.UnrolledAdjoint(),
        "`UnrolledAdjoint(checkpoint=10)`": ims.UnrolledAdjoint(checkpoint=10),
    }


def _neumann(terms):
    return ims.ImplicitAdjoint(ims.Neumann(max_steps=terms, rtol=None))


def regression():
    """Ridge-regularized logistic regression, 300 rows, 200 weights, by gradient descent."""
    torch.manual_seed(0)
    X = torch.randn(300, 200, dtype=torch.float64)
    y = torch.sign(X @ torch.randn(200, dtype=torch.float64))

    def loss(w, strength):
        return torch.nn.functional.softplus(-y * (X @ w)).mean() + strength * (w**2).sum()

    solver = ims.GradientDescent(lr=1.0, rtol=1e-10, atol=1e-10)

    def gradient(adjoint):
        strength = torch.tensor(1e-2, dtype=torch.float64, requires_grad=True)
        start = torch.zeros(200, dtype=torch.float64)
        sol = ims.minimize(loss, start, (strength,), solver=solver, adjoint=adjoint)
        return torch.autograd.grad(sol.value.pow(2).sum(), strength)[0]

    return gradient, {
        "`ImplicitAdjoint()`": ims.ImplicitAdjoint(),
        "`ImplicitAdjoint(CG())`": ims.ImplicitAdjoint(ims.CG()),
        "`ImplicitAdjoint(CG(max_steps=5, rtol=None))`": ims.ImplicitAdjoint(
            ims.CG(max_steps=5, rtol=None)
        ),
        "`UnrolledAdjoint()`": ims.UnrolledAdjoint(),
        "`UnrolledAdjoint(checkpoint=20)`": ims.UnrolledAdjoint(checkpoint=20),
    }


def table(title, gradient, adjoints, rounds):
    """Print a row for each adjoint: error, milliseconds, megabytes."""
    exact = gradient(ims.ImplicitAdjoint(ims.LU()))
    print(f"\n{title}\n\n| adjoint | relative error | ms | MB |\n|---|---|---|---|")
    sides = {name: functools.partial(gradient, adjoint) for name, adjoint in adjoints.items()}
    seconds = medians(sides, rounds)
    for name, adjoint in adjoints.items():
        with LiveMemory() as memory:
            error = float((gradient(adjoint) - exact).norm() / exact.norm())
        ms = 1e3 * seconds[name]
        print(f"| {name} | {error:.1e} | {ms:.0f} | {memory.peak / 2**20:.1f} |")


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    table("Equilibrium", *equilibrium(), rounds)
    table("Logistic regression", *regression(), rounds)


if __name__ == "__main__":
    main()
