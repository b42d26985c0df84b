"""Time and error of the linear solvers, forward and backward: the table of docs/linear_algebra.md.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/linear_solvers.py

One core, float64; medians of processor time. The error is that of the gradient in the right-hand
side, relative to the one by the first solver of each problem, a direct one.
"""

import argparse
import functools

import torch
from comparison import medians

import implicit_solvers as ims

F64 = torch.float64


def laplacian(side):
    """Return the five-point Laplacian on a square grid, sparse."""
    line = torch.arange(side * side)
    x, y = line % side, line // side
    rows, columns, values = [line], [line], [torch.full((side * side,), 4.0, dtype=F64)]
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        inside = (x + dx >= 0) & (x + dx < side) & (y + dy >= 0) & (y + dy < side)
        rows.append(line[inside])
        columns.append((line + dx + side * dy)[inside])
        values.append(torch.full((int(inside.sum()),), -1.0, dtype=F64))
    index = torch.stack([torch.cat(rows), torch.cat(columns)])
    return torch.sparse_coo_tensor(index, torch.cat(values)).coalesce().to_sparse_csr()


def problems():
    """Return, for each problem, its operators by name, its solvers, and a right-hand side."""
    torch.manual_seed(0)
    n = 512
    Q = torch.linalg.qr(torch.randn(n, n, dtype=F64))[0]
    spectrum = torch.linspace(1, 100, n, dtype=F64)
    definite = (Q * spectrum) @ Q.mT
    indefinite = (Q * torch.where(torch.arange(n) < n // 10, -spectrum, spectrum)) @ Q.mT
    general = torch.eye(n, dtype=F64) + 0.5 * torch.randn(n, n, dtype=F64) / n**0.5
    b = torch.randn(n, dtype=F64)
    yield (
        "symmetric positive definite, n = 512",
        ims.MatrixOperator(definite, positive_definite=True),
        (ims.Cholesky(), ims.LU(), ims.CG(), ims.MINRES()),
        b,
    )
    yield (
        "symmetric indefinite, n = 512",
        ims.MatrixOperator(indefinite, symmetric=True),
        (ims.LU(), ims.MINRES(), ims.GMRES()),
        b,
    )
    yield (
        "nonsymmetric, n = 512",
        ims.MatrixOperator(general),
        (ims.LU(), ims.QR(), ims.GMRES(), ims.BiCGStab()),
        b,
    )
    size = 100_000
    off = -torch.ones(size - 1, dtype=F64)
    yield (
        "tridiagonal, n = 100,000",
        ims.TridiagonalOperator(off, 2.5 + torch.zeros(size, dtype=F64), off),
        (ims.Banded(), ims.GMRES()),
        torch.randn(size, dtype=F64),
    )
    yield (
        "sparse (Laplacian on 100 x 100 points)",
        ims.SparseOperator(laplacian(100), symmetric=True, positive_definite=True),
        (ims.SuperLU(), ims.CG(), ims.MINRES()),
        torch.randn(10_000, dtype=F64),
    )
    yield (
        "least squares, 1,000 x 100",
        ims.MatrixOperator(torch.randn(1000, 100, dtype=F64)),
        (ims.QR(), ims.SVD(), ims.LSMR()),
        torch.randn(1000, dtype=F64),
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| problem | solver | ms | iterations | difference |\n|---|---|---|---|---|")
    for name, A, solvers, b in problems():
        calls = {type(s).__name__: functools.partial(gradient, A, b, s) for s in solvers}
        exact = next(iter(calls.values()))()[0]
        seconds = medians(calls, rounds)
        for label, call in calls.items():
            found, iterations = call()
            error = float((found - exact).norm() / exact.norm())
            solved = f"{1e3 * seconds[label]:.3g} | {iterations} | {error:.0e}"
            print(f"| {name} | `{label}()` | {solved} |")


def gradient(A, b, solver):
    """Return the gradient in the right-hand side, and the steps of the forward solve."""
    right = b.clone().requires_grad_()
    sol = ims.linear_solve(A, right, solver=solver)
    return torch.autograd.grad(sol.value.square().sum(), right)[0], int(sol.iterations)


if __name__ == "__main__":
    main()
