"""1,024 dense nonlinear systems ``tanh(W z) + z = x`` of 16 unknowns that share ``W``.

    python tests/benchmarks/newton.py [--rounds 21] [--only ours optimistix] [--out FOLDER]

The gradient of ``|z|^2 / 2`` in ``W`` and ``x``. Every side is given the equation of one system
and batches it as its library does, unless its label says that it knows more. Other scripts measure
these sides with ``numbers`` of their own, which may have a term ``c z^3`` too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import processor

if __name__ == "__main__":
    processor.one_core()

import numpy as np
import torch
from comparison import Call, Task, run_as_script
from gradient_sides import by_jax, by_torch, default, in_one_graph, tensors

LANES, SIZE = 1024, 16
TOLERANCE = 1e-11
STEPS = 200


def numbers(lanes: int = LANES, n: int = SIZE) -> tuple[np.ndarray, ...]:
    """Return ``W``, a contraction for nearly every draw, the right-hand sides, and the starts."""
    rng = np.random.default_rng(0)
    W, x = 0.5 * rng.normal(size=(n, n)) / n**0.5, rng.normal(size=(lanes, n))
    return W, x, np.zeros_like(x)


def exact(W: Any, x: Any, z: Any, c: Any = 0.0) -> Sequence[np.ndarray]:
    """Solve and differentiate by dense algebra in NumPy."""
    eye = np.eye(x.shape[-1])

    def jacobian(z):
        return (1 - np.tanh(z @ W.T) ** 2)[:, :, None] * W + (1 + 3 * c * z**2)[:, :, None] * eye

    for _ in range(STEPS):
        residual = np.tanh(z @ W.T) + z + c * z**3 - x
        step = np.linalg.solve(jacobian(z), residual[..., None])[..., 0]
        z = z - step
        if np.abs(step).max() < 1e-15:
            break
    w = np.linalg.solve(jacobian(z).transpose(0, 2, 1), z[..., None])[..., 0]
    return z, -(w * (1 - np.tanh(z @ W.T) ** 2)).T @ z, w


def equation(tanh: Any, batch: bool = False) -> Callable[..., Any]:
    """Return ``f(z, W, x)`` by a library's tanh, of one system or of all; ``c`` may come behind."""

    def f(z, W, x, *c):
        value = tanh(z @ W.T if batch else W @ z) + z - x
        return value + c[0] * z**3 if c else value

    return f


# ------------------------------------------------------------------------------------- this library


def ours(solver: Any = default, numbers: Any = numbers, whole: bool = False) -> Call:
    """Solve by ``solver(ims)``, systems by ``vmap``.

    For ``whole`` in one compiled graph, where ``f`` has to handle the batch.
    """
    import implicit_solvers as ims

    W, x, *given = numbers()
    start, *c = map(torch.from_numpy, given)
    f = equation(torch.tanh, batch=whole)
    how: dict[str, Any] = {"solver": solver(ims)}
    if whole:
        how |= {"on_failure": "mask", "batch_dims": 1, "in_dims": (None, 0, *(0 for _ in c))}

    def solve(W, x, start, *c):
        return ims.root(f, start, (W, x, *c), **how).value

    def one(W, x):
        return solve(W, x[0], start[0], *(t[0] for t in c)).unsqueeze(0)

    def many(W, x):
        in_dims = (None, *(0 for _ in (x, start, *c)))
        return torch.func.vmap(solve, in_dims)(W, x, start, *c)

    if whole:
        graph = in_one_graph(solve)
        return by_torch((W, x), lambda W, x: graph(W, x, start, *c))
    return by_torch((W, x), many if len(x) > 1 else one)


def tuned(ims: Any, **options: Any) -> Any:
    return ims.Newton(halvings=0, **options)


def our_sides(numbers: Any = numbers) -> dict[str, Callable[[], Call]]:
    """Return the sides of this library."""
    return {
        "ours, default": lambda: ours(numbers=numbers),
        "ours, tuned: Newton(halvings=0)": lambda: ours(tuned, numbers),
        "ours, compiled loop": lambda: ours(lambda ims: tuned(ims, compile=True), numbers),
        "ours, compiled whole": lambda: ours(tuned, numbers, whole=True),
    }


# --------------------------------------------------------------------------------- written by hand


def by_hand(jacobian: Any, numbers: Any = numbers) -> Call:
    """Write Newton's method on the whole batch, and one adjoint solve."""
    W, x, _ = tensors(numbers())

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


def analytic(z: Any, W: Any) -> Any:
    slope = 1 - torch.tanh(z @ W.T) ** 2
    return slope.unsqueeze(-1) * W + torch.eye(z.shape[-1], dtype=z.dtype)


def by_jacfwd() -> Call:
    def f(z, W):
        return torch.tanh(W @ z) + z

    return by_hand(torch.func.vmap(torch.func.jacfwd(f), in_dims=(0, None)))


# ------------------------------------------------------------------------------------------ peers


def by_vmap(solve: Any, numbers: Any) -> Call:
    """Jit the gradient of JAX's ``solve(start, W, x)`` of one system."""
    import jax
    import jax.numpy as jnp

    W, x, *given = numbers()
    jax.config.update("jax_enable_x64", True)
    start, *c = map(jnp.asarray, given)
    in_axes = (0, None, *(0 for _ in (x, *c)))
    return by_jax((W, x), lambda W, x: jax.vmap(solve, in_axes)(start, W, x, *c))


def optimistix(numbers: Any = numbers) -> Call:
    import jax.numpy as jnp
    import optimistix as optx

    solver = optx.Newton(rtol=TOLERANCE, atol=TOLERANCE)
    f = equation(jnp.tanh)

    def solve(start, *args):
        return optx.root_find(lambda z, a: f(z, *a), solver, start, args, max_steps=STEPS).value

    return by_vmap(solve, numbers)


def jaxopt(numbers: Any = numbers) -> Call:
    import jax
    import jax.numpy as jnp
    from jaxopt.implicit_diff import custom_root
    from jaxopt.linear_solve import solve_lu

    f = equation(jnp.tanh)

    @custom_root(f, solve=solve_lu)
    def newton(start, *args):
        def unsolved(state):
            z, step = state
            return (jnp.abs(f(z, *args)).max() > TOLERANCE) & (step < STEPS)

        def improve(state):
            z, step = state
            return z - jnp.linalg.solve(jax.jacfwd(f)(z, *args), f(z, *args)), step + 1

        return jax.lax.while_loop(unsolved, improve, (start, 0))[0]

    return by_vmap(newton, numbers)


def torchdeq() -> Call:
    import torchdeq

    options = {"f_max_iter": 200, "b_max_iter": 200, "f_tol": TOLERANCE, "b_tol": TOLERANCE}
    picard = {"f_solver": "fixed_point_iter", "b_solver": "fixed_point_iter"}
    deq = torchdeq.get_deq(core="indexing", ift=True, **picard, **options)

    def solve(W, x):
        states, _ = deq(lambda z: x - torch.tanh(z @ W.T), torch.zeros_like(x))
        return states[-1]

    return by_torch(numbers()[:2], solve)


def torchopt() -> Call:
    import torchopt
    from torchopt.diff.implicit import custom_root

    f = equation(torch.tanh, batch=True)
    solver = torchopt.linear_solve.solve_normal_cg(rtol=TOLERANCE, atol=TOLERANCE, maxiter=100)

    @custom_root(f, argnums=(1, 2), solve=solver)
    def newton(z, W, x):
        for _ in range(STEPS):
            residual = f(z, W, x)
            if residual.norm(dim=-1).max() <= TOLERANCE * SIZE**0.5:
                break
            z = z - torch.linalg.solve(analytic(z, W), residual)
        return z

    return by_torch(numbers()[:2], lambda W, x: newton(torch.zeros_like(x), W, x))


TASK = Task(
    "newton",
    "1,024 dense nonlinear systems, n = 16",
    ("z", "dW", "dx"),
    lambda: exact(*numbers()),
    {
        **our_sides(),
        "torch by hand, analytic Jacobian": lambda: by_hand(analytic),
        "torch by hand, vmap(jacfwd)": by_jacfwd,
        "jaxopt custom_root, Newton by hand": jaxopt,
        "Optimistix Newton": optimistix,
        "torchdeq, Picard": torchdeq,
        "TorchOpt custom_root, Newton by hand": torchopt,
    },
)


if __name__ == "__main__":
    sys.exit(run_as_script(TASK))
