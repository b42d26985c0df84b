"""The implicit-function rule inside a compiled graph, of first order.

A solution leaves the graph as ``z + (s - s)`` with ``s = -A^-1 r``, where ``r`` is the residual at
the solution, a differentiable function of all that it reads, and ``A`` the Jacobian there, held
constant. The derivative of ``s`` is that of the implicit function theorem; its own derivative
would not be, so that the two operations around ``r`` refuse it. Nothing here knows an equation, or
values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.torch_internals import Function

__all__ = ["unless", "with_adjoint", "with_inverse"]


@torch.library.custom_op("implicit_solvers::residual", mutates_args=())
def _residual(r: Tensor) -> Tensor:
    """Return ``r``, whose gradient cannot be differentiated."""
    return r.clone()


@torch.library.custom_op("implicit_solvers::first_order", mutates_args=())
def _first_order(w: Tensor, r: Tensor) -> Tensor:
    """Return ``w``, which cannot be differentiated, nor can what ``r`` is made of."""
    return w.clone()


@_residual.register_fake
def _(r: Tensor) -> Tensor:
    return torch.empty_like(r)


@_first_order.register_fake
def _(w: Tensor, r: Tensor) -> Tensor:
    return torch.empty_like(w)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _mark(ctx: Any, w: Tensor) -> Tensor:
    return _first_order(w, ctx.saved_tensors[0])


def _refuse(ctx: Any, *_: Tensor) -> Any:
    raise RuntimeError(
        "the derivative of a solution in a compiled graph is of first order only, and it was "
        "differentiated again: leave the solve out of torch.compile for higher derivatives"
    )


_residual.register_autograd(_mark, setup_context=_keep)
_first_order.register_autograd(_refuse)


def unless(bad: Tensor, tensor: Tensor, harmless: Tensor | None = None) -> Tensor:
    """Return ``tensor``; where ``bad``, what is ``harmless``, or the tensor without a gradient."""
    return torch.where(bad, tensor.detach() if harmless is None else harmless, tensor)


def with_inverse(z: Tensor, r: Tensor, inverse: Callable[[Tensor], Tensor], bad: Tensor) -> Tensor:
    """Return ``z`` with the derivative of ``-A^-1 r``, by differentiable operations.

    ``inverse`` returns ``A^-1 r`` for ``r (*lanes, n)``; ``bad`` lanes have no derivative.
    """
    skip = bad.unsqueeze(-1)
    # once more afterwards: the inverse may make NaN of zero there
    s = torch.where(skip, 0.0, -inverse(torch.where(skip, 0.0, _residual(r))))
    return z + (s - s.detach())


def with_adjoint(
    z: Tensor,
    products: Sequence[Tensor],
    adjoint: Callable[[Tensor], tuple[Tensor, ...]],
    bad: Tensor,
) -> Tensor:
    """Return ``z``, of which ``adjoint`` makes the gradients of ``products`` from its own.

    ``products`` are functions of all that is differentiated; ``bad`` lanes have no derivative.
    """
    skip = bad.unsqueeze(-1)
    return _Adjoint.apply(adjoint, z, *(torch.where(skip, 0.0, _residual(r)) for r in products))


class _Adjoint(Function):
    """Return ``z``; the gradients of the products are what ``adjoint`` makes of its gradient."""

    @staticmethod
    def forward(ctx: Any, adjoint: Callable[..., Any], z: Tensor, *products: Tensor) -> Tensor:
        """Return ``z``."""
        ctx.adjoint = adjoint
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        """Apply the adjoint."""
        return None, None, *ctx.adjoint(g)
