"""A batch of 256 equilibria ``z = tanh(W z + U x + b)`` of 128 unknowns.

    python tests/benchmarks/equilibrium.py [--rounds 11] [--only ours optimistix] [--out FOLDER]

The gradient of ``|z|^2 / 2`` in ``W``, ``U``, ``b`` and ``x``. The cell handles the batch already.
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
from gradient_sides import by_jax, by_torch, in_one_graph, tensors

BATCH, SIZE = 256, 128
TOLERANCE = 1e-11
STEPS = 400


def numbers() -> tuple[np.ndarray, ...]:
    """Return ``W`` (0.95 times an orthogonal matrix), ``U``, ``b`` and ``x``."""
    rng = np.random.default_rng(0)
    W = 0.95 * np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    U = 0.5 * rng.normal(size=(SIZE, SIZE)) / SIZE**0.5
    return W, U, 0.1 * rng.normal(size=SIZE), rng.normal(size=(BATCH, SIZE))


def exact() -> Sequence[np.ndarray]:
    """Solve and differentiate by dense algebra in NumPy."""
    W, U, b, x = numbers()
    z, drive, eye = np.zeros_like(x), x @ U.T + b, np.eye(SIZE)
    for _ in range(50):
        t = np.tanh(z @ W.T + drive)
        step = np.linalg.solve(eye - (1 - t**2)[:, :, None] * W, (t - z)[..., None])[..., 0]
        z = z + step
        if np.abs(step).max() < 1e-15:
            break
    slope = 1 - np.tanh(z @ W.T + drive) ** 2
    J = eye - slope[:, :, None] * W
    w = slope * np.linalg.solve(J.transpose(0, 2, 1), z[..., None])[..., 0]
    return z, w.T @ z, w.T @ x, w.sum(0), w @ U


def cell(z: Any, W: Any, U: Any, b: Any, x: Any) -> Any:
    return torch.tanh(z @ W.T + x @ U.T + b)


def inner_cell(z: Any, W: Any, drive: Any) -> Any:
    return torch.tanh(z @ W.T + drive)


# ------------------------------------------------------------------------------------- this library


def ours() -> Call:
    import implicit_solvers as ims

    lanes: dict[str, Any] = {"batch_dims": 1, "in_dims": (None, None, None, 0)}

    def solve(*theta):
        return ims.fixed_point(cell, torch.zeros_like(theta[-1]), theta, **lanes).value

    return by_torch(numbers(), solve)


def driven(adjoint: Any, compile: bool = False, whole: bool = False) -> Call:
    """Iterate, and solve by ``adjoint(ims)``; perhaps the whole of it in one compiled graph.

    ``U x + b`` is computed once, as the sides of the others do.
    """
    import implicit_solvers as ims

    how: dict[str, Any] = {
        "solver": ims.FixedPointIteration(rtol=TOLERANCE, atol=TOLERANCE, compile=compile),
        "adjoint": ims.ImplicitAdjoint(adjoint(ims)),
        "on_failure": "mask" if whole else "raise",
        "batch_dims": 1,
        "in_dims": (None, 0),
    }

    def solve(W, drive):
        return ims.fixed_point(inner_cell, torch.zeros_like(drive), (W, drive), **how).value

    if whole:
        solve = in_one_graph(solve)
    return by_torch(numbers(), lambda W, U, b, x: solve(W, x @ U.T + b))


def neumann(ims: Any, **options: Any) -> Any:
    return ims.Neumann(rtol=1e-10, **options)


def bicgstab(ims: Any) -> Any:
    return ims.BiCGStab(rtol=1e-10)


def compiled_loops() -> Call:
    return driven(lambda ims: neumann(ims, check_every=4, compile=True), compile=True)


# --------------------------------------------------------------------------------- written by hand


def torch_picard() -> Call:
    """Iterate on the whole batch, forward and for the adjoint."""
    theta = tensors(numbers())

    def call():
        W, U, b, x = theta
        with torch.no_grad():
            drive, z = x @ U.T + b, torch.zeros_like(x)
            for _ in range(STEPS):
                z, old = torch.tanh(z @ W.T + drive), z
                if (z - old).abs().max() <= TOLERANCE:
                    break
            slope, w = 1 - z**2, z
            for _ in range(STEPS):
                w, old = z + (w * slope) @ W, w
                if (w - old).abs().max() <= TOLERANCE * w.abs().max():
                    break
        return z, *torch.autograd.grad(cell(z, *theta), theta, w)

    return call


# ------------------------------------------------------------------------------------------ peers


def jax_side(solve: Any) -> Call:
    """Jit the gradient of ``solve((W, U x + b))``."""
    return by_jax(numbers(), lambda W, U, b, x: solve((W, x @ U.T + b)))


def jax_cell(z: Any, args: Any) -> Any:
    import jax.numpy as jnp

    W, drive = args
    return jnp.tanh(z @ W.T + drive)


def optimistix() -> Call:
    import jax.numpy as jnp
    import lineax as lx
    import optimistix as optx

    # one system for the whole batch: faster than vmap, where each lane waits for the last
    solver = optx.FixedPointIteration(rtol=TOLERANCE, atol=TOLERANCE)
    adjoint = optx.ImplicitAdjoint(lx.BiCGStab(rtol=TOLERANCE, atol=TOLERANCE, max_steps=STEPS))

    def solve(args):
        start = jnp.zeros((BATCH, SIZE))
        found = optx.fixed_point(jax_cell, solver, start, args, adjoint=adjoint, max_steps=STEPS)
        return found.value

    return jax_side(solve)


def jaxopt(tuned: bool) -> Call:
    import functools

    import jax.numpy as jnp
    from jaxopt import FixedPointIteration
    from jaxopt.linear_solve import solve_bicgstab

    options = {}
    if tuned:
        options["implicit_diff_solve"] = functools.partial(
            solve_bicgstab, tol=TOLERANCE, maxiter=STEPS
        )
    solver = FixedPointIteration(jax_cell, maxiter=STEPS, tol=TOLERANCE, **options)
    return jax_side(lambda args: solver.run(jnp.zeros((BATCH, SIZE)), args).params)


def torchdeq(accurate: bool) -> Call:
    import torchdeq

    options: dict[str, Any] = {"ift": True}
    if accurate:
        options |= {"f_solver": "fixed_point_iter", "b_solver": "fixed_point_iter"}
        options |= {"f_max_iter": STEPS, "b_max_iter": STEPS}
        options |= {"f_tol": TOLERANCE, "b_tol": TOLERANCE}
    deq = torchdeq.get_deq(core="indexing", **options)

    def solve(W, U, b, x):
        drive = x @ U.T + b
        states, _ = deq(lambda z: inner_cell(z, W, drive), torch.zeros_like(x))
        return states[-1]

    return by_torch(numbers(), solve)


TASK = Task(
    "equilibrium",
    "Equilibrium z = tanh(Wz + Ux + b), batch 256, n = 128",
    ("z", "dW", "dU", "db", "dx"),
    exact,
    {
        "ours, default": ours,
        "ours, tuned: Picard, adjoint by Neumann": lambda: driven(neumann),
        "ours, tuned: Picard, adjoint by BiCGStab": lambda: driven(bicgstab),
        "ours, compiled loop": compiled_loops,
        "ours, compiled whole": lambda: driven(bicgstab, whole=True),
        "torch by hand, Picard": torch_picard,
        "Optimistix, fixed point and BiCGStab adjoint": optimistix,
        "jaxopt, adjoint by BiCGStab, tuned": lambda: jaxopt(True),
        "jaxopt, default adjoint": lambda: jaxopt(False),
        "torchdeq, Picard, accurate": lambda: torchdeq(True),
        "torchdeq, default": lambda: torchdeq(False),
    },
    limit=1e-9,
    rounds=11,
)


if __name__ == "__main__":
    sys.exit(run_as_script(TASK))
