"""Derivatives that are estimates, and must not be differentiated again."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

__all__ = ["first_order_only"]


class FirstOrderOnly(Function):
    """The identity, whose derivative is an error."""

    @staticmethod
    def forward(what: str, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the words of the error."""
        ctx.what = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Refuse."""
        raise _refusal(ctx.what)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        """Refuse."""
        raise _refusal(ctx.what)

    @staticmethod
    def vmap(info: Any, in_dims: Any, what: str, tensor: Tensor) -> Any:
        """Lanes change nothing."""
        return FirstOrderOnly.apply(what, tensor), in_dims[1]


def _refusal(what: str) -> RuntimeError:
    return RuntimeError(
        f"{what} gives a biased derivative, which is of first order only, and it was "
        "differentiated again: use ImplicitAdjoint() with an unbiased linear solver, and no "
        "gauss_newton=True"
    )


def first_order_only(what: str, tensor: Tensor | None) -> Tensor | None:
    """Return ``tensor``, which raises when it is differentiated; ``what`` made it."""
    return None if tensor is None else FirstOrderOnly.apply(what, tensor)
