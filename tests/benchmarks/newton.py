"""1,024 dense nonlinear systems ``tanh(W z) + z = x`` of 16 unknowns that share ``W``.

    python tests/benchmarks/newton.py [--rounds 21] [--only ours optimistix] [--out FOLDER]

The gradient of ``|z|^2 / 2`` in ``W`` and ``x``. Every side is given the equation of one system
and batches it as its library does, unless its label says that it knows more.
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

LANES, SIZE = 1024, 16
TOLERANCE = 1e-11
STEPS = 100


def numbers(lanes: int = LANES, n: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return ``W``, a contraction for nearly every draw, and the right-hand sides."""
    rng = np.random.default_rng(0)
    return 0.5 * rng.normal(size=(n, n)) / n**0.5, rng.normal(size=(lanes, n))


def exact(W: np.ndarray, x: np.ndarray) -> Sequence[np.ndarray]:
    """Solve and differentiate by dense algebra in NumPy."""
    z = np.zeros_like(x)
    eye = np.eye(x.shape[-1])
    for _ in range(STEPS):
        t = np.tanh(z @ W.T)
        J = (1 - t**2)[:, :, None] * W + eye
        step = np.linalg.solve(J, (t + z - x)[..., None])[..., 0]
        z = z - step
        if np.abs(step).max() < 1e-15:
            break
    t = np.tanh(z @ W.T)
    J = (1 - t**2)[:, :, None] * W + eye
    w = np.linalg.solve(J.transpose(0, 2, 1), z[..., None])[..., 0]
    return z, -(w * (1 - t**2)).T @ z, w


# ------------------------------------------------------------------------------------- this library


def tensors(*arrays: np.ndarray) -> list[Any]:
    import torch

    return [torch.from_numpy(a).requires_grad_() for a in arrays]


def ours(solver: Any = None, numbers: Any = numbers) -> Call:
    import torch

    import implicit_solvers as ims

    W, x = tensors(*numbers())

    def f(z, W, x):
        return torch.tanh(W @ z) + z - x

    def solve(x):
        return ims.root(f, torch.zeros_like(x), (W, x), solver=solver).value

    def call():
        z = torch.func.vmap(solve)(x) if len(x) > 1 else solve(x[0]).unsqueeze(0)
        return z, *torch.autograd.grad(z.square().sum() / 2, (W, x))

    return call


def tuned() -> Call:
    import implicit_solvers as ims

    return ours(ims.Newton(halvings=0))


def compiled_newton() -> Call:
    import implicit_solvers as ims

    return ours(compiled(ims.Newton(halvings=0)))


def one_graph() -> Call:
    """Compile the whole solve and its backward pass; ``f`` handles the batch, as it must there."""
    import torch

    import implicit_solvers as ims

    W, x = tensors(*numbers())
    how: dict[str, Any] = {"solver": ims.Newton(halvings=0), "batch_dims": 1, "in_dims": (None, 0)}

    def f(z, W, x):
        return torch.tanh(z @ W.T) + z - x

    @torch.compile(fullgraph=True)
    def solve(W, x):
        return ims.root(f, torch.zeros_like(x), (W, x), on_failure="mask", **how).value

    def call():
        z = solve(W, x)
        return z, *torch.autograd.grad(z.square().sum() / 2, (W, x))

    return call


# --------------------------------------------------------------------------------- written by hand


def by_hand(jacobian: Any, numbers: Any = numbers) -> Call:
    """Write Newton's method on the whole batch, and one adjoint solve."""
    import torch

    W, x = tensors(*numbers())

    def call():
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(STEPS):
                residual = torch.tanh(z @ W.T) + z - x
                if residual.norm(dim=-1).max() <= TOLERANCE * z.shape[-1] ** 0.5:
                    break
                z = z - torch.linalg.solve(jacobian(z, W), residual)
            adjoint = torch.linalg.solve(jacobian(z, W).mT, z)
        residual = torch.tanh(z @ W.T) + z - x
        return z, *torch.autograd.grad(residual, (W, x), -adjoint)

    return call


def torch_analytic(numbers: Any = numbers) -> Call:
    import torch

    def jacobian(z, W):
        slope = 1 - torch.tanh(z @ W.T) ** 2
        return slope.unsqueeze(-1) * W + torch.eye(z.shape[-1], dtype=z.dtype)

    return by_hand(jacobian, numbers)


def torch_jacfwd(numbers: Any = numbers) -> Call:
    import torch

    def f(z, W):
        return torch.tanh(W @ z) + z

    batched = torch.func.vmap(torch.func.jacfwd(f), in_dims=(0, None))
    return by_hand(batched, numbers)


# ------------------------------------------------------------------------------------------ peers


def jax_side(solve: Any, numbers: Any = numbers) -> Call:
    """Jit the gradient of a solve that takes ``(W, x)`` of one system."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    W, x = (jnp.asarray(a) for a in numbers())

    def loss(W, x):
        z = jax.vmap(solve, in_axes=(None, 0))(W, x)
        return (z**2).sum() / 2, z

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

    def call():
        slopes, z = jax.block_until_ready(gradient(W, x))
        return z, *slopes

    return call


def optimistix(numbers: Any = numbers) -> Call:
    import jax.numpy as jnp
    import optimistix as optx

    solver = optx.Newton(rtol=TOLERANCE, atol=TOLERANCE)

    def f(z, args):
        W, x = args
        return jnp.tanh(W @ z) + z - x

    def solve(W, x):
        start = jnp.zeros_like(x)
        return optx.root_find(f, solver, start, (W, x), max_steps=STEPS).value

    return jax_side(solve, numbers)


def jaxopt(numbers: Any = numbers) -> Call:
    import jax
    import jax.numpy as jnp
    from jaxopt.implicit_diff import custom_root
    from jaxopt.linear_solve import solve_lu

    def f(z, W, x):
        return jnp.tanh(W @ z) + z - x

    @custom_root(f, solve=solve_lu)
    def newton(start, W, x):
        def unsolved(state):
            z, step = state
            return (jnp.abs(f(z, W, x)).max() > TOLERANCE) & (step < STEPS)

        def improve(state):
            z, step = state
            return z - jnp.linalg.solve(jax.jacfwd(f)(z, W, x), f(z, W, x)), step + 1

        return jax.lax.while_loop(unsolved, improve, (start, 0))[0]

    return jax_side(lambda W, x: newton(jnp.zeros_like(x), W, x), numbers)


def torchdeq() -> Call:
    import torch
    import torchdeq

    deq = torchdeq.get_deq(
        core="indexing",
        ift=True,
        f_solver="fixed_point_iter",
        b_solver="fixed_point_iter",
        f_max_iter=200,
        b_max_iter=200,
        f_tol=TOLERANCE,
        b_tol=TOLERANCE,
    )
    W, x = tensors(*numbers())

    def call():
        states, _ = deq(lambda z: x - torch.tanh(z @ W.T), torch.zeros_like(x))
        z = states[-1]
        return z, *torch.autograd.grad(z.square().sum() / 2, (W, x))

    return call


def torchopt() -> Call:
    import torch
    import torchopt
    from torchopt.diff.implicit import custom_root

    W, x = tensors(*numbers())
    eye = torch.eye(SIZE, dtype=torch.float64)

    def f(z, W, x):
        return torch.tanh(z @ W.T) + z - x

    solver = torchopt.linear_solve.solve_normal_cg(rtol=TOLERANCE, atol=TOLERANCE, maxiter=STEPS)

    @custom_root(f, argnums=(1, 2), solve=solver)
    def newton(z, W, x):
        for _ in range(STEPS):
            residual = f(z, W, x)
            if residual.norm(dim=-1).max() <= TOLERANCE * SIZE**0.5:
                break
            slope = 1 - torch.tanh(z @ W.T) ** 2
            z = z - torch.linalg.solve(slope.unsqueeze(-1) * W + eye, residual)
        return z

    def call():
        z = newton(torch.zeros_like(x), W, x)
        return z, *torch.autograd.grad(z.square().sum() / 2, (W, x))

    return call


TASK = Task(
    "newton",
    "1,024 dense nonlinear systems, n = 16",
    ("z", "dW", "dx"),
    lambda: exact(*numbers()),
    (
        Side("ours, default", ours, ours=True),
        Side("ours, tuned: Newton(halvings=0)", tuned, ours=True),
        Side("ours, compiled loop", compiled_newton, ours=True),
        Side("ours, compiled whole", one_graph, ours=True),
        Side("torch by hand, analytic Jacobian", torch_analytic),
        Side("torch by hand, vmap(jacfwd)", torch_jacfwd),
        Side("jaxopt custom_root, Newton by hand", jaxopt),
        Side("Optimistix Newton", optimistix),
        Side("torchdeq, Picard", torchdeq),
        Side("TorchOpt custom_root, Newton by hand", torchopt),
    ),
)


if __name__ == "__main__":
    sys.exit(run_as_script(TASK))
