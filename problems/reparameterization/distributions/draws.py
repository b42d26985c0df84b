"""Random draws without derivatives, which also work under ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import implicit_solvers as ims

__all__ = ["drawing"]


def drawing(sampler: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``sampler`` as a function: float64, without derivatives, also under ``vmap``.

    A sampler that rejects must loop until all are accepted, which ``vmap`` cannot follow. Here it
    sees the plain tensors of all lanes, or, under ``randomness="same"``, of one lane after the
    other, from the same state of the generator. One random number drawn beside it brings
    ``randomness`` in where the parameters are shared: ``"error"`` raises, and under
    ``"different"`` every lane gets draws of its own.

    Parameters of real floating dtypes are broadcast; ``sampler`` maps float64 tensors of one shape
    to a float64 tensor of that shape.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> shared, toss = torch.ones(2), drawing(torch.bernoulli)
    >>> lanes = torch.func.vmap(lambda _: toss(shared / 2), randomness="different")
    >>> round(lanes(torch.zeros(1000)).mean().item(), 1)
    0.5
    """
    run = ims.elementwise_function(lambda _, *args: sampler(*args), None, name="draw", random=True)

    def draw(*parameters: Tensor) -> Tensor:
        plain = [p.detach().to(torch.float64) for p in parameters]
        drawn: Tensor = run(torch.rand((), dtype=torch.float64, device=plain[0].device), *plain)
        return drawn

    return draw
