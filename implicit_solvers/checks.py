"""What can be wrong with a function that is solved without a failure.

It knows neither equation nor solver.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from implicit_solvers.autodiff import vjp
from implicit_solvers.capture import Captured

__all__ = ["check_lanes_apart", "check_reads", "mixes_lanes"]


def check_reads(captured: Captured, label: str, strict: bool) -> None:
    """Warn of values that the function reads out of tensors; if ``strict``, raise ``ValueError``.

    The gradient through such a number is zero, here as in torch.
    """
    if not captured.read_out:
        return
    text = (
        f"the function of {label} reads a value out of a tensor that a derivative is asked for, by "
        f"{' and '.join(captured.read_out)}: no gradient goes through that number, as in torch; "
        "compute with the tensor itself, or detach() it first if it is meant as a constant"
    )
    if strict:
        raise ValueError(text)
    warnings.warn(text, UserWarning, stacklevel=2)


def mixes_lanes(
    condition: Callable[..., Tensor], z: Tensor, operands: Sequence[Tensor], good: Tensor
) -> bool:
    """Tell whether the residual of some lanes of ``z (*lanes, n)`` moves with other ones'.

    Every second lane is weighed at random, and the gradient in the others must vanish. Lanes that
    are not ``good`` may hold anything.
    """
    with torch.no_grad():
        out, pull = vjp(lambda u: condition(u, *operands), z.detach())
        lanes = good.numel()
        odd = torch.arange(lanes, device=z.device).remainder(2).bool().reshape(good.shape)
        generator = torch.Generator(device=z.device).manual_seed(0)
        for chosen in (odd, ~odd):
            weight = torch.rand(out.shape, dtype=out.dtype, device=z.device, generator=generator)
            slope = pull(torch.where(chosen.unsqueeze(-1), 0.5 + weight, 0.0))[0]
            if bool((slope[~chosen & good] != 0).any()):
                return True
    return False


def check_lanes_apart(
    condition: Callable[..., Tensor],
    z: Tensor,
    operands: Sequence[Tensor],
    good: Tensor,
    label: str,
) -> None:
    """Raise ``ValueError`` if a function of lanes mixes them."""
    if mixes_lanes(condition, z, operands, good):
        raise ValueError(
            f"batch_dims={good.dim()} says that the first dimensions of z0 are problems apart, and "
            f"the function of {label} mixes them (a mean over the batch, or batch "
            "normalization?), so that derivatives would be wrong: leave batch_dims out and solve "
            "them as one problem, or write a function that keeps them apart"
        )
