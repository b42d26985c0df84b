"""Random draws without derivatives, which also work under ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

import implicit_solvers as ims

__all__ = ["draw"]


def draw(sampler: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Return ``sampler(*parameters)``: float64, without derivatives, also under ``vmap``.

    A sampler that rejects must loop until all are accepted, which ``vmap`` cannot follow. Here it
    sees the plain tensors of all lanes, or, under ``randomness="same"``, of one lane after the
    other, from the same state of the generator. One random number drawn beside it brings
    ``randomness`` in where the parameters are shared: ``"error"`` raises, and under
    ``"different"`` every lane gets draws of its own.

    Parameters
    ----------
    sampler : callable
        Maps float64 tensors of one shape to a float64 tensor of that shape.
    *parameters : Tensor
        Its arguments, of real floating dtypes, broadcast to one shape.

    Returns
    -------
    Tensor
        The draw.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> shared = torch.ones(2)
    >>> lanes = torch.func.vmap(lambda _: draw(torch.bernoulli, shared / 2), randomness="different")
    >>> round(lanes(torch.zeros(1000)).mean().item(), 1)
    0.5
    """
    plain = [p.detach().to(torch.float64) for p in parameters]
    lane = torch.rand((), dtype=torch.float64, device=plain[0].device)
    if not ims.transformed():
        return sampler(*torch.broadcast_tensors(*plain))
    drawn: Tensor = Draw.apply(sampler, *torch.broadcast_tensors(lane, *plain))
    return drawn


class Draw(Function):
    """Call a sampler; ``lane`` only says what is batched."""

    @staticmethod
    def forward(sampler: Callable[..., Tensor], lane: Tensor, *parameters: Tensor) -> Tensor:
        """Return the draw."""
        return sampler(*parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Say that there are no derivatives."""
        ctx.mark_non_differentiable(output)
        ctx.count = len(inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, ...]:
        """Return no derivatives."""
        return (None,) * ctx.count

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:
        """Return no tangent."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, sampler: Callable[..., Tensor], *args: Tensor) -> Any:
        """Draw for all lanes at once, or for each from one state of the generator."""
        lanes = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(args, in_dims[1:], strict=True)
        ]
        if info.randomness != "same":
            return Draw.apply(sampler, *lanes), 0
        device = args[0].device
        drawn = []
        for i, lane in enumerate(zip(*lanes, strict=True), 1):
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices, enabled=i < info.batch_size):
                drawn.append(Draw.apply(sampler, *lane))
        return torch.stack(drawn), 0
