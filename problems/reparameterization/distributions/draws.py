"""Random draws without derivatives, which also work under ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import implicit_solvers as ims

__all__ = ["draw"]


def draw(sampler: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Return ``sampler(*parameters)``: float64, without derivatives, also under ``vmap``.

    A sampler that rejects must loop until all are accepted, which ``vmap`` cannot follow. Here it
    sees the plain tensors of all lanes. One random number drawn beside it brings ``vmap``'s
    ``randomness`` in: ``"error"`` raises; under ``"different"`` every lane gets draws of its own,
    also where the parameters are shared. Under ``"same"`` that holds for shared parameters; lanes
    with their own parameters get independent draws.

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
    run = ims.elementwise_function(lambda _, *args: sampler(*args), None, name="draw")
    return run(lane, *plain)
