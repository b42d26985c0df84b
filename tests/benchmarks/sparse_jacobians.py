"""Bratu's problem on a square with 99,856 unknowns, by its parts: rows of a table of the docs."""

import argparse
import resource
import time

import numpy as np
import scipy.sparse
import torch

import implicit_solvers as ims

ILU = ims.ILU()
WAYS = {
    "`SuperLU()`": {},
    "`GMRES()` with `ILU()`": {
        "solver": ims.Newton(linear_solver=ims.GMRES(), preconditioner=ILU),
        "adjoint": ims.ImplicitAdjoint(ims.GMRES(), ILU),
    },
    "`BiCGStab()` with `ILU()`": {
        "solver": ims.Newton(linear_solver=ims.BiCGStab(), preconditioner=ILU),
        "adjoint": ims.ImplicitAdjoint(ims.BiCGStab(), ILU),
    },
}


def bratu(u, load):
    """Return ``u_xx + u_yy + load e^u`` on the inner points of the unit square."""
    v = torch.nn.functional.pad(u, (1, 1, 1, 1))
    sides = v[2:, 1:-1] + v[:-2, 1:-1] + v[1:-1, 2:] + v[1:-1, :-2]
    return (sides - 4 * u) * (len(u) + 1) ** 2 + load * torch.exp(u)


def timed(call):
    """Return what a call returns, and its seconds of processor time."""
    start = time.process_time()
    out = call()
    return out, time.process_time() - start


def main():
    """Print the rows."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=316, help="points of a side")
    side = parser.parse_args().side
    u0 = torch.zeros(side, side, dtype=torch.float64)
    load = torch.full_like(u0, 6.0).requires_grad_()
    pattern, seconds = timed(lambda: ims.jacobian_sparsity(bratu, u0, (load,)))
    print(f"{pattern}: found in {seconds:.1f} s")
    where = pattern.rows.numpy(), pattern.columns.numpy()
    given = scipy.sparse.coo_array((np.ones(len(where[0])), where), pattern.shape)
    _, seconds = timed(lambda: ims.SparsityPattern(given))
    print(f"colored in {seconds:.2f} s")
    print("| linear solver | steps | forward, s | backward, s | gradient's difference |")
    print("|---|---|---|---|---|")
    exact = None
    for name, how in WAYS.items():
        sol, forward = timed(
            lambda how=how: ims.root(bratu, u0, (load,), jac_sparsity=pattern, **how)
        )
        (slope,), backward = timed(lambda sol=sol: torch.autograd.grad(sol.value.sum(), load))
        exact = slope if exact is None else exact
        off = float((slope - exact).abs().max() / exact.abs().max())
        steps = int(sol.iterations)
        print(f"| {name} | {steps} | {forward:.1f} | {backward:.2f} | {off:.0e} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{peak:.0f} MB at most")


if __name__ == "__main__":
    main()
