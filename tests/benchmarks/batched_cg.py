"""512 positive definite systems of 64 unknowns, each with a matrix of its own.

    python tests/benchmarks/batched_cg.py [--rounds 11] [--only ours lineax] [--out FOLDER]

The gradient of ``|x|^2 / 2`` in the matrices and the right-hand sides.
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

LANES, SIZE = 512, 64


def numbers() -> tuple[np.ndarray, np.ndarray]:
    """Return matrices with condition numbers about 20, and right-hand sides."""
    rng = np.random.default_rng(0)
    G = rng.normal(size=(LANES, SIZE, 2 * SIZE))
    A = G @ G.transpose(0, 2, 1) / (2 * SIZE) + 0.05 * np.eye(SIZE)
    return A, rng.normal(size=(LANES, SIZE))


def exact() -> Sequence[np.ndarray]:
    """Solve and differentiate by LAPACK."""
    A, b = numbers()
    x = np.linalg.solve(A, b[..., None])[..., 0]
    w = np.linalg.solve(A, x[..., None])[..., 0]
    return x, -w[:, :, None] * x[:, None, :], w


# ------------------------------------------------------------------------------------- this library


def ours(solver: Any = default, whole: bool = False) -> Call:
    """Solve by ``solver(ims)``, lanes by ``vmap``; in one graph by ``batch_dims``, as must be."""
    import implicit_solvers as ims

    how: dict[str, Any] = {"solver": solver(ims)}
    if whole:
        how |= {"batch_dims": 1, "on_failure": "mask"}

    def solve(A, b):
        operator = ims.MatrixOperator(A, positive_definite=True)
        return ims.linear_solve(operator, b, **how).value

    return by_torch(numbers(), in_one_graph(solve) if whole else torch.func.vmap(solve))


# --------------------------------------------------------------------------------- written by hand


def torch_cg(A: Any, b: Any) -> Any:
    """Iterate until the last system is solved."""

    def dot(u, v):
        return (u * v).sum(-1, keepdim=True)

    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rho = dot(r, r)
    limit = TOLERANCE**2 * rho
    for _ in range(STEPS):
        if (rho <= limit).all():
            break
        Ap = (A @ p.unsqueeze(-1)).squeeze(-1)
        alpha = rho / dot(p, Ap)
        x, r = x + alpha * p, r - alpha * Ap
        rho, old = dot(r, r), rho
        p = r + (rho / old) * p
    return x


def torch_by_hand() -> Call:
    A, b = tensors(numbers())

    def call():
        with torch.no_grad():
            x = torch_cg(A, b)
            w = torch_cg(A, x)
            return x, -w.unsqueeze(-1) * x.unsqueeze(-2), w

    return call


def torch_cholesky() -> Call:
    A, b = tensors(numbers())

    def call():
        with torch.no_grad():
            factor = torch.linalg.cholesky(A)
            x = torch.cholesky_solve(b.unsqueeze(-1), factor)
            w = torch.cholesky_solve(x, factor)
            return x.squeeze(-1), -w * x.mT, w.squeeze(-1)

    return call


# ------------------------------------------------------------------------------------------ peers


def jax_scipy() -> Call:
    import jax

    def solve(A, b):
        return jax.scipy.sparse.linalg.cg(lambda v: A @ v, b, tol=TOLERANCE)[0]

    return by_jax(numbers(), jax.vmap(solve))


def lineax(direct: bool) -> Call:
    import jax
    import lineax as lx

    solver = lx.Cholesky() if direct else lx.CG(rtol=TOLERANCE, atol=TOLERANCE, max_steps=STEPS)

    def solve(A, b):
        operator = lx.MatrixLinearOperator(A, lx.positive_semidefinite_tag)
        return lx.linear_solve(operator, b, solver).value

    return by_jax(numbers(), jax.vmap(solve))


def xitorch() -> Call:
    from xitorch import LinearOperator

    return cg.xitorch(numbers(), lambda A: LinearOperator.m(A, is_hermitian=True))


TASK = Task(
    "batched_cg",
    "Batched CG, 512 systems, n = 64",
    ("x", "dA", "db"),
    exact,
    {
        "ours, default (Cholesky)": ours,
        "ours, CG(rtol=1e-10)": lambda: ours(cg.tuned),
        "ours, CG, compiled loop": lambda: ours(cg.compiled),
        "ours, CG, compiled whole": lambda: ours(cg.tuned, whole=True),
        "ours, Cholesky, compiled whole": lambda: ours(lambda ims: ims.Cholesky(), whole=True),
        "torch by hand, CG": torch_by_hand,
        "torch by hand, Cholesky": torch_cholesky,
        "torch.linalg.solve (LU)": lambda: by_torch(numbers(), torch.linalg.solve),
        "jax.scipy, CG": jax_scipy,
        "lineax, CG": lambda: lineax(False),
        "lineax, Cholesky": lambda: lineax(True),
        "xitorch, CG": xitorch,
    },
    rounds=11,
)


if __name__ == "__main__":
    sys.exit(run_as_script(TASK))
