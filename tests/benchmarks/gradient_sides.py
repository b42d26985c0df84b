"""What sides of a comparison share: to solve, and the gradient of ``|x|^2 / 2``.

``numbers`` are the operands, NumPy arrays; ``solve(*operands)`` returns ``x``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from comparison import Call

__all__ = ["by_jax", "by_torch", "default", "in_one_graph", "tensors"]

Solve = Callable[..., Any]


def default(ims: Any) -> None:
    """Name no solver, of those that the package ``ims`` has."""


def in_one_graph(solve: Solve) -> Solve:
    """Compile a whole solve and its backward pass."""
    return torch.compile(solve, fullgraph=True)


def tensors(numbers: Sequence[Any]) -> list[Any]:
    """Return the operands as leaves of torch."""
    return [torch.from_numpy(a).requires_grad_() for a in numbers]


def by_torch(numbers: Sequence[Any], solve: Solve) -> Call:
    """Solve, and differentiate in all operands by torch's backward pass."""
    operands = tensors(numbers)

    def call():
        x = solve(*operands)
        return x, *torch.autograd.grad(x.square().sum() / 2, operands)

    return call


def by_jax(numbers: Sequence[Any], solve: Solve) -> Call:
    """Jit the gradient in all operands."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    operands = [jnp.asarray(a) for a in numbers]

    def loss(*operands):
        x = solve(*operands)
        return (x**2).sum() / 2, x

    gradient = jax.jit(jax.grad(loss, argnums=tuple(range(len(operands))), has_aux=True))

    def call():
        slopes, x = jax.block_until_ready(gradient(*operands))
        return x, *slopes

    return call
