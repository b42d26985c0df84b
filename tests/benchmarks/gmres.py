"""One dense nonsymmetric system of 2,048 unknowns by GMRES.

    python tests/benchmarks/gmres.py [--rounds 7] [--only ours SciPy] [--out FOLDER]

The gradient of ``|x|^2 / 2`` in the matrix and the right-hand side.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import processor

if __name__ == "__main__":
    processor.one_core()

import cg
import numpy as np
import torch
from cg import STEPS, TOLERANCE
from comparison import Call, Task, run_as_script
from gradient_sides import by_jax, by_torch, default, in_one_graph, tensors

SIZE = 2048
RESTART = 50  # more than the steps it takes
# JAX's two look at the residual only when a cycle ends: the shortest cycle that is long enough
CYCLE = 20


def numbers() -> tuple[np.ndarray, np.ndarray]:
    """Return the identity plus noise whose eigenvalues fill a disk of radius 0.3; and ``b``."""
    rng = np.random.default_rng(0)
    A = np.eye(SIZE) + 0.3 * rng.normal(size=(SIZE, SIZE)) / SIZE**0.5
    return A, rng.normal(size=SIZE)


def exact() -> Sequence[np.ndarray]:
    """Solve and differentiate by LAPACK."""
    A, b = numbers()
    x = np.linalg.solve(A, b)
    w = np.linalg.solve(A.T, x)
    return x, -np.outer(w, x), w


# ------------------------------------------------------------------------------------- this library


def ours(solver: Any = default, whole: bool = False) -> Call:
    """Solve by ``solver(ims)``, perhaps the whole of it in one compiled graph."""
    import implicit_solvers as ims

    how: dict[str, Any] = {"solver": solver(ims), "on_failure": "mask" if whole else "raise"}

    def solve(A, b):
        return ims.linear_solve(ims.MatrixOperator(A), b, **how).value

    return by_torch(numbers(), in_one_graph(solve) if whole else solve)


def tuned(ims: Any, **options: Any) -> Any:
    return ims.GMRES(rtol=TOLERANCE, **options)


# --------------------------------------------------------------------------------- written by hand


def torch_gmres(product: Any, b: Any) -> Any:
    """Build one Krylov space, Gram-Schmidt twice, and the Hessenberg problem on Python floats."""
    import math

    size = float(b.norm())
    basis = b.new_empty(RESTART + 1, len(b))
    basis[0] = b / size
    columns: list[list[float]] = []
    turns: list[tuple[float, float]] = []
    rhs = [size]
    for k in range(RESTART):
        v = product(basis[k])
        h = basis[: k + 1] @ v
        v = v - h @ basis[: k + 1]
        again = basis[: k + 1] @ v
        v = v - again @ basis[: k + 1]
        length = float(v.norm())
        basis[k + 1] = v / length
        column = [*(h + again).tolist(), length]
        for i, (c, s) in enumerate(turns):
            low, high = column[i], column[i + 1]
            column[i], column[i + 1] = c * low + s * high, c * high - s * low
        r = math.hypot(column[k], column[k + 1])
        c, s = column[k] / r, column[k + 1] / r
        turns.append((c, s))
        column[k] = r
        columns.append(column)
        rhs = [*rhs[:k], c * rhs[k], -s * rhs[k]]
        if abs(rhs[-1]) <= TOLERANCE * size:
            break
    count = len(columns)
    R = torch.zeros(count, count, dtype=b.dtype)
    for k, column in enumerate(columns):
        R[: k + 1, k] = torch.tensor(column[: k + 1], dtype=b.dtype)
    right = torch.tensor(rhs[:count], dtype=b.dtype).unsqueeze(-1)
    y = torch.linalg.solve_triangular(R, right, upper=True)
    return y.squeeze(-1) @ basis[:count]


def torch_by_hand() -> Call:
    A, b = tensors(numbers())

    def call():
        with torch.no_grad():
            x = torch_gmres(lambda v: A @ v, b)
            w = torch_gmres(lambda v: A.mT @ v, x)
            return x, -torch.outer(w, x), w

    return call


def scipy() -> Call:
    from scipy.sparse.linalg import gmres

    A, b = numbers()

    def call():
        x, left = gmres(A, b, rtol=TOLERANCE, restart=RESTART)
        w, also_left = gmres(A.T, x, rtol=TOLERANCE, restart=RESTART)
        assert left == also_left == 0
        return x, -np.outer(w, x), w

    return call


# ------------------------------------------------------------------------------------------ peers


def jax_scipy() -> Call:
    import jax

    gmres = jax.scipy.sparse.linalg.gmres
    return by_jax(
        numbers(), lambda A, b: gmres(lambda v: A @ v, b, tol=TOLERANCE, restart=CYCLE)[0]
    )


def lineax() -> Call:
    import lineax as lx

    solver = lx.GMRES(rtol=TOLERANCE, atol=TOLERANCE, restart=CYCLE, max_steps=STEPS)
    return by_jax(
        numbers(), lambda A, b: lx.linear_solve(lx.MatrixLinearOperator(A), b, solver).value
    )


def xitorch() -> Call:
    from xitorch import LinearOperator

    return cg.xitorch(numbers(), lambda A: LinearOperator.m(A, is_hermitian=False), "bicgstab")


TASK = Task(
    "gmres",
    "GMRES, dense nonsymmetric operator, n = 2,048",
    ("x", "dA", "db"),
    exact,
    {
        "ours, default": ours,
        "ours, tuned: GMRES(rtol=1e-10)": lambda: ours(tuned),
        "ours, mixed precision: inner_dtype=torch.float32": lambda: ours(
            lambda ims: tuned(ims, inner_dtype=torch.float32)
        ),
        "ours, compiled loop": lambda: ours(lambda ims: tuned(ims, compile=True)),
        "ours, compiled whole": lambda: ours(tuned, whole=True),
        "torch by hand": torch_by_hand,
        "SciPy": scipy,
        "jax.scipy": jax_scipy,
        "lineax": lineax,
        "xitorch, BiCGStab": xitorch,
        "torch.linalg.solve (LU)": lambda: by_torch(numbers(), torch.linalg.solve),
    },
    rounds=7,
)


if __name__ == "__main__":
    sys.exit(run_as_script(TASK))
