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

import numpy as np
from comparison import Call, Side, Task, compiled, run_as_script
from linear_sides import by_jax, by_torch, tensors

SIZE = 2048
TOLERANCE = 1e-10
RESTART = 50  # more than the steps it takes
# JAX's two look at the residual only when a cycle ends: the shortest cycle that is long enough
CYCLE = 20
STEPS = 500


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


def ours(solver: Any = None) -> Call:
    import implicit_solvers as ims

    def solve(A, b):
        return ims.linear_solve(ims.MatrixOperator(A), b, solver=solver).value

    return by_torch(numbers(), solve)


def tuned() -> Call:
    import implicit_solvers as ims

    return ours(ims.GMRES(rtol=TOLERANCE))


def mixed_precision() -> Call:
    import torch

    import implicit_solvers as ims

    return ours(ims.GMRES(rtol=TOLERANCE, inner_dtype=torch.float32))


def compiled_gmres() -> Call:
    import implicit_solvers as ims

    return ours(compiled(ims.GMRES(rtol=TOLERANCE)))


def one_graph() -> Call:
    """Compile the whole solve and its backward pass."""
    import torch

    import implicit_solvers as ims

    @torch.compile(fullgraph=True)
    def solve(A, b):
        operator = ims.MatrixOperator(A)
        solver = ims.GMRES(rtol=TOLERANCE)
        return ims.linear_solve(operator, b, solver=solver, on_failure="mask").value

    return by_torch(numbers(), solve)


# --------------------------------------------------------------------------------- written by hand


def torch_gmres(product: Any, b: Any) -> Any:
    """Build one Krylov space, Gram-Schmidt twice, and the Hessenberg problem on Python floats."""
    import math

    import torch

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
    import torch

    A, b = tensors(numbers())

    def call():
        with torch.no_grad():
            x = torch_gmres(lambda v: A @ v, b)
            w = torch_gmres(lambda v: A.mT @ v, x)
            return x, -torch.outer(w, x), w

    return call


def torch_lu() -> Call:
    import torch

    return by_torch(numbers(), torch.linalg.solve)


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
    import xitorch
    from xitorch.linalg import solve

    options = {"method": "bicgstab", "rtol": TOLERANCE, "atol": 0.0, "max_niter": STEPS}
    options["posdef"] = True  # solves as it is, without normal equations

    def column(A, b):
        operator = xitorch.LinearOperator.m(A, is_hermitian=False)
        return solve(operator, b.unsqueeze(-1), bck_options=options, **options).squeeze(-1)

    return by_torch(numbers(), column)


TASK = Task(
    "gmres",
    "GMRES, dense nonsymmetric operator, n = 2,048",
    ("x", "dA", "db"),
    exact,
    (
        Side("ours, default", ours, ours=True),
        Side("ours, tuned: GMRES(rtol=1e-10)", tuned, ours=True),
        Side("ours, mixed precision: inner_dtype=torch.float32", mixed_precision, ours=True),
        Side("ours, compiled loop", compiled_gmres, ours=True),
        Side("ours, compiled whole", one_graph, ours=True),
        Side("torch by hand", torch_by_hand),
        Side("SciPy", scipy),
        Side("jax.scipy", jax_scipy),
        Side("lineax", lineax),
        Side("xitorch, BiCGStab", xitorch),
        Side("torch.linalg.solve (LU)", torch_lu),
    ),
    rounds=7,
)


if __name__ == "__main__":
    sys.exit(run_as_script(TASK))
