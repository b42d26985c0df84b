"""2,048 nonlinear systems of 16 unknowns, one of which needs ten times the steps of the others.

    python tests/benchmarks/straggler.py [--rounds 11] [--only ours] [--out FOLDER]

``tanh(W z) + z + c z^3 = x`` with ``c = 0`` and a start at zero, but for one lane, where ``c = 1``
and the start is far out: Newton's method comes in from there by a factor 2/3 a step. Each side is
timed without that lane's difference too; the ratio of the two says what one straggler costs.
"""

from __future__ import annotations

import functools
import sys

import processor

if __name__ == "__main__":
    processor.one_core()

import newton
import numpy as np
import torch
from comparison import Call, Task, run_as_script
from gradient_sides import tensors

LANES = 2048
FAR = 3e8  # ten times the five steps of the others


def numbers(straggler: bool) -> tuple[np.ndarray, ...]:
    """Return ``W``, ``x``, the starts and the coefficients ``c``."""
    W, x, start = newton.numbers(LANES)
    c = np.zeros((LANES, 1))
    if straggler:
        start[LANES // 2], c[LANES // 2] = FAR, 1.0
    return W, x, start, c


def torch_by_hand(straggler: bool) -> Call:
    """Write Newton's method so that solved lanes leave the batch, as a careful user would."""
    W, x = tensors(numbers(straggler)[:2])
    start, c = map(torch.from_numpy, numbers(straggler)[2:])
    eye = torch.eye(x.shape[-1], dtype=x.dtype)

    def f(z, x, c):
        return torch.tanh(z @ W.T) + z + c * z**3 - x

    def jacobian(z, c):
        slope = 1 - torch.tanh(z @ W.T) ** 2
        return slope.unsqueeze(-1) * W + (1 + 3 * c * z**2).unsqueeze(-1) * eye

    def call():
        with torch.no_grad():
            z, left = start.clone(), torch.arange(len(x))
            for _ in range(newton.STEPS):
                residual = f(z[left], x[left], c[left])
                going = residual.norm(dim=-1) > newton.TOLERANCE * x.shape[-1] ** 0.5
                if not going.any():
                    break
                left, residual = left[going], residual[going]
                z[left] -= torch.linalg.solve(jacobian(z[left], c[left]), residual)
            adjoint = torch.linalg.solve(jacobian(z, c).mT, z)
        return z, *torch.autograd.grad(f(z, x, c), (W, x), -adjoint)

    return call


def task(straggler: bool) -> Task:
    """Return the comparison with the straggler or without."""
    own = functools.partial(numbers, straggler)
    return Task(
        "straggler" if straggler else "no_straggler",
        f"2,048 such systems, {'one' if straggler else 'none'} with ten times the steps",
        ("z", "dW", "dx"),
        lambda: newton.exact(*own()),
        {
            **newton.our_sides(own),
            "torch by hand, solved lanes leave": lambda: torch_by_hand(straggler),
            "Optimistix Newton": lambda: newton.optimistix(own),
            "jaxopt custom_root, Newton by hand": lambda: newton.jaxopt(own),
        },
        rounds=11,
    )


if __name__ == "__main__":
    sys.exit(run_as_script(task(False), task(True)))
