"""One matrix-free system of 4,096 unknowns by conjugate gradients.

    python tests/benchmarks/cg.py [--rounds 21] [--only ours lineax] [--out FOLDER]

The operator is the five-point Laplacian on 64 x 64 points plus a positive field ``d``, given by
its products. The gradient of ``|x|^2 / 2`` in ``d`` and the right-hand side.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import processor

if __name__ == "__main__":
    processor.one_core()

import numpy as np
import torch
from comparison import Call, Task, run_as_script
from gradient_sides import by_jax, by_torch, default, in_one_graph, tensors

EDGE = 64
TOLERANCE = 1e-10
STEPS = 500


def numbers() -> tuple[np.ndarray, np.ndarray]:
    """Return the field, between 1/2 and 3/2, and the right-hand side."""
    rng = np.random.default_rng(0)
    return rng.uniform(0.5, 1.5, EDGE**2), rng.normal(size=EDGE**2)


def exact() -> Sequence[np.ndarray]:
    """Solve and differentiate by SciPy's sparse factorization."""
    import scipy.sparse as sp

    d, b = numbers()
    line = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(EDGE, EDGE))
    eye = sp.eye_array(EDGE)
    A = (sp.kron(line, eye) + sp.kron(eye, line) + sp.diags_array(d)).tocsc()
    factors = sp.linalg.splu(A)
    x = factors.solve(b)
    w = factors.solve(x)
    return x, -w * x, w


def product(v: Any, d: Any, pad: Any) -> Any:
    """Return the Laplacian of ``v`` on the grid plus ``d v``, with zeros outside of it."""
    grid = v.reshape(*v.shape[:-1], EDGE, EDGE)
    p = pad(grid)
    near = p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]
    return ((4 + d.reshape(EDGE, EDGE)) * grid - near).reshape(v.shape)


def torch_product(v: Any, d: Any) -> Any:
    return product(v, d, lambda grid: torch.nn.functional.pad(grid, (1, 1, 1, 1)))


# ------------------------------------------------------------------------------------- this library


def ours(solver: Any = default, whole: bool = False, product: Any = torch_product) -> Call:
    """Solve by ``solver(ims)``, perhaps the whole of it in one compiled graph."""
    import implicit_solvers as ims

    how: dict[str, Any] = {"solver": solver(ims), "on_failure": "mask" if whole else "raise"}

    def solve(d, b):
        A = ims.FunctionOperator(lambda v: product(v, d), like=b, positive_definite=True)
        return ims.linear_solve(A, b, **how).value

    return by_torch(numbers(), in_one_graph(solve) if whole else solve)


def tuned(ims: Any, **options: Any) -> Any:
    return ims.CG(rtol=TOLERANCE, **options)


def compiled(ims: Any) -> Any:
    return tuned(ims, check_every=4, compile=True)


# --------------------------------------------------------------------------------- written by hand


def torch_cg(product: Any, b: Any) -> Any:
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rho = r @ r
    limit = TOLERANCE**2 * rho
    for _ in range(STEPS):
        if rho <= limit:
            break
        Ap = product(p)
        alpha = rho / (p @ Ap)
        x = x + alpha * p
        r = r - alpha * Ap
        rho, old = r @ r, rho
        p = r + (rho / old) * p
    return x


def torch_by_hand() -> Call:
    d, b = tensors(numbers())

    def call():
        with torch.no_grad():
            x = torch_cg(lambda v: torch_product(v, d), b)
            w = torch_cg(lambda v: torch_product(v, d), x)
        return x, *torch.autograd.grad(torch_product(x, d), d, -w), w

    return call


def scipy() -> Call:
    from scipy.sparse.linalg import LinearOperator, cg

    d, b = numbers()
    padded = np.zeros((EDGE + 2, EDGE + 2))

    def pad(grid):
        # np.pad takes longer than all the rest
        padded[1:-1, 1:-1] = grid
        return padded

    A = LinearOperator((EDGE**2, EDGE**2), lambda v: product(v, d, pad), dtype=np.float64)

    def call():
        x, left = cg(A, b, rtol=TOLERANCE)
        w, also_left = cg(A, x, rtol=TOLERANCE)
        assert left == also_left == 0
        return x, -w * x, w

    return call


# ------------------------------------------------------------------------------------------ peers


def jax_product(v: Any, d: Any) -> Any:
    import jax.numpy as jnp

    return product(v, d, lambda grid: jnp.pad(grid, 1))


def jax_scipy() -> Call:
    import jax

    def solve(d, b):
        return jax.scipy.sparse.linalg.cg(lambda v: jax_product(v, d), b, tol=TOLERANCE)[0]

    return by_jax(numbers(), solve)


def lineax() -> Call:
    import jax
    import lineax as lx

    def solve(d, b):
        like = jax.ShapeDtypeStruct(b.shape, b.dtype)
        tag = lx.positive_semidefinite_tag
        A = lx.FunctionLinearOperator(lambda v: jax_product(v, d), like, tags=tag)
        return lx.linear_solve(A, b, lx.CG(rtol=TOLERANCE, atol=TOLERANCE, max_steps=STEPS)).value

    return by_jax(numbers(), solve)


def torchopt() -> Call:
    import torchopt
    from torchopt.diff.implicit import custom_root

    def f(x, d, b):
        return torch_product(x, d) - b

    @custom_root(f, argnums=(1, 2), solve=torchopt.linear_solve.solve_cg(rtol=TOLERANCE, atol=0.0))
    def solve(x, d, b):
        found = torchopt.linear_solve.solve_cg(rtol=TOLERANCE, atol=0.0)
        return found(lambda v: torch_product(v, d), b)

    return by_torch(numbers(), lambda d, b: solve(torch.zeros_like(b), d, b))


def xitorch(numbers: Any, operator: Any, method: str = "cg") -> Call:
    """Solve one column with ``operator``, made of the first of the numbers."""
    from xitorch.linalg import solve

    options = {"method": method, "rtol": TOLERANCE, "atol": 0.0, "max_niter": STEPS}
    options["posdef"] = True  # solves as it is, without normal equations

    def column(A, b):
        right = b.unsqueeze(-1)
        return solve(operator(A), right, bck_options=options, **options).squeeze(-1)

    return by_torch(numbers, column)


def xitorch_field() -> Call:
    import xitorch as xt

    class Field(xt.LinearOperator):
        def __init__(self, d):
            super().__init__((EDGE**2, EDGE**2), True, d.dtype, d.device)
            self.d = d

        def _mv(self, v):
            return torch_product(v, self.d)

        def _getparamnames(self, prefix=""):
            return [prefix + "d"]

    return xitorch(numbers(), Field)


TASK = Task(
    "cg",
    "CG, matrix-free, n = 4,096",
    ("x", "dd", "db"),
    exact,
    {
        "ours, default": ours,
        "ours, tuned: CG(rtol=1e-10)": lambda: ours(tuned),
        "ours, compiled loop": lambda: ours(compiled),
        "ours, compiled whole": lambda: ours(tuned, whole=True),
        "torch by hand": torch_by_hand,
        "SciPy": scipy,
        "jax.scipy": jax_scipy,
        "lineax": lineax,
        "TorchOpt": torchopt,
        "xitorch": xitorch_field,
    },
)


if __name__ == "__main__":
    sys.exit(run_as_script(TASK))
