"""2,048 nonlinear systems of 16 unknowns, one of which needs ten times the steps of the others.

    python tests/benchmarks/straggler.py [--rounds 11] [--only ours] [--out FOLDER]

``tanh(W z) + z + c z^3 = x`` with ``c = 0`` and a start at zero, but for one lane, where ``c = 1``
and the start is far out: Newton's method comes in from there by a factor 2/3 a step. Each side is
timed without that lane's difference too; the ratio of the two says what one straggler costs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import processor

if __name__ == "__main__":
    processor.one_core()

import newton
import numpy as np
from comparison import Call, Side, Task, compiled, run_as_script

LANES, SIZE = 2048, 16
TOLERANCE = newton.TOLERANCE
STEPS = 200
FAR = 3e8  # ten times the five steps of the others


def numbers(straggler: bool) -> tuple[np.ndarray, ...]:
    """Return ``W``, ``x``, the coefficients ``c`` and the starts."""
    W, x = newton.numbers(LANES, SIZE)
    c, start = np.zeros(LANES), np.zeros_like(x)
    if straggler:
        c[LANES // 2], start[LANES // 2] = 1.0, FAR
    return W, x, c, start


def exact(straggler: bool) -> Sequence[np.ndarray]:
    """Solve and differentiate by dense algebra in NumPy."""
    W, x, c, z = numbers(straggler)
    c = c[:, None]
    eye = np.eye(SIZE)

    def residual(z):
        return np.tanh(z @ W.T) + z + c * z**3 - x

    def jacobian(z):
        return (1 - np.tanh(z @ W.T) ** 2)[:, :, None] * W + (1 + 3 * c * z**2)[:, :, None] * eye

    for _ in range(STEPS):
        step = np.linalg.solve(jacobian(z), residual(z)[..., None])[..., 0]
        z = z - step
        if np.abs(step).max() < 1e-15:
            break
    w = np.linalg.solve(jacobian(z).transpose(0, 2, 1), z[..., None])[..., 0]
    slope = 1 - np.tanh(z @ W.T) ** 2
    return z, -(w * slope).T @ z, w


def ours(straggler: bool, solver: Any = None) -> Call:
    import torch

    import implicit_solvers as ims

    W, x, c, start = newton.tensors(*numbers(straggler))
    c, start = c.detach(), start.detach()

    def f(z, W, x, c):
        return torch.tanh(W @ z) + z + c * z**3 - x

    def solve(x, c, start):
        return ims.root(f, start, (W, x, c), solver=solver).value

    def call():
        z = torch.func.vmap(solve)(x, c, start)
        return z, *torch.autograd.grad(z.square().sum() / 2, (W, x))

    return call


def tuned(straggler: bool) -> Call:
    import implicit_solvers as ims

    return ours(straggler, ims.Newton(halvings=0))


def compiled_newton(straggler: bool) -> Call:
    import implicit_solvers as ims

    return ours(straggler, compiled(ims.Newton(halvings=0)))


def one_graph(straggler: bool) -> Call:
    """Compile the whole solve and its backward pass; ``f`` handles the batch, as it must there."""
    import torch

    import implicit_solvers as ims

    W, x, c, start = newton.tensors(*numbers(straggler))
    c, start = c.detach().unsqueeze(-1), start.detach()
    how: dict[str, Any] = {"solver": ims.Newton(halvings=0), "on_failure": "mask"}
    how |= {"batch_dims": 1, "in_dims": (None, 0, 0)}

    def f(z, W, x, c):
        return torch.tanh(z @ W.T) + z + c * z**3 - x

    @torch.compile(fullgraph=True)
    def solve(W, x, c, start):
        return ims.root(f, start, (W, x, c), **how).value

    def call():
        z = solve(W, x, c, start)
        return z, *torch.autograd.grad(z.square().sum() / 2, (W, x))

    return call


def torch_by_hand(straggler: bool) -> Call:
    """Write Newton's method so that solved lanes leave the batch, as a careful user would."""
    import torch

    W, x, c, start = newton.tensors(*numbers(straggler))
    c, start = c.detach().unsqueeze(-1), start.detach()
    eye = torch.eye(SIZE, dtype=torch.float64)

    def f(z, x, c):
        return torch.tanh(z @ W.T) + z + c * z**3 - x

    def jacobian(z, c):
        slope = 1 - torch.tanh(z @ W.T) ** 2
        return slope.unsqueeze(-1) * W + (1 + 3 * c * z**2).unsqueeze(-1) * eye

    def call():
        with torch.no_grad():
            z, left = start.clone(), torch.arange(len(x))
            for _ in range(STEPS):
                residual = f(z[left], x[left], c[left])
                going = residual.norm(dim=-1) > TOLERANCE * SIZE**0.5
                if not going.any():
                    break
                left, residual = left[going], residual[going]
                z[left] -= torch.linalg.solve(jacobian(z[left], c[left]), residual)
            adjoint = torch.linalg.solve(jacobian(z, c).mT, z)
        return z, *torch.autograd.grad(f(z, x, c), (W, x), -adjoint)

    return call


def jax_side(solve: Any, straggler: bool) -> Call:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    W, x, c, start = (jnp.asarray(a) for a in numbers(straggler))

    def loss(W, x):
        z = jax.vmap(solve, in_axes=(None, 0, 0, 0))(W, x, c, start)
        return (z**2).sum() / 2, z

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

    def call():
        slopes, z = jax.block_until_ready(gradient(W, x))
        return z, *slopes

    return call


def optimistix(straggler: bool) -> Call:
    import jax.numpy as jnp
    import optimistix as optx

    solver = optx.Newton(rtol=TOLERANCE, atol=TOLERANCE)

    def f(z, args):
        W, x, c = args
        return jnp.tanh(W @ z) + z + c * z**3 - x

    def solve(W, x, c, start):
        return optx.root_find(f, solver, start, (W, x, c), max_steps=STEPS).value

    return jax_side(solve, straggler)


def jaxopt(straggler: bool) -> Call:
    import jax
    import jax.numpy as jnp
    from jaxopt.implicit_diff import custom_root
    from jaxopt.linear_solve import solve_lu

    def f(z, W, x, c):
        return jnp.tanh(W @ z) + z + c * z**3 - x

    @custom_root(f, solve=solve_lu)
    def by_newton(start, W, x, c):
        def unsolved(state):
            z, step = state
            return (jnp.abs(f(z, W, x, c)).max() > TOLERANCE) & (step < STEPS)

        def improve(state):
            z, step = state
            return z - jnp.linalg.solve(jax.jacfwd(f)(z, W, x, c), f(z, W, x, c)), step + 1

        return jax.lax.while_loop(unsolved, improve, (start, 0))[0]

    return jax_side(lambda W, x, c, start: by_newton(start, W, x, c), straggler)


SIDES = {
    "ours, default": (ours, True),
    "ours, tuned: Newton(halvings=0)": (tuned, True),
    "ours, compiled loop": (compiled_newton, True),
    "ours, compiled whole": (one_graph, True),
    "torch by hand, solved lanes leave": (torch_by_hand, False),
    "Optimistix Newton": (optimistix, False),
    "jaxopt custom_root, Newton by hand": (jaxopt, False),
}


def task(straggler: bool) -> Task:
    """Return the comparison with the straggler or without."""

    def side(label: str) -> Side:
        make, is_ours = SIDES[label]
        return Side(label, lambda: make(straggler), ours=is_ours)

    return Task(
        "straggler" if straggler else "no_straggler",
        f"2,048 such systems, {'one' if straggler else 'none'} with ten times the steps",
        ("z", "dW", "dx"),
        lambda: exact(straggler),
        tuple(map(side, SIDES)),
        rounds=11,
    )


if __name__ == "__main__":
    sys.exit(run_as_script(task(False), task(True)))
