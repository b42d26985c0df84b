"""Renewal: what is costly, as a factorization, is made anew in the lanes that need it.

It knows no solver.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, nowhere, pick, settle
from implicit_solvers.compiling import compiling
from implicit_solvers.problem import EquationProblem
from implicit_solvers.traced_loop import alias, repeat

__all__ = ["renew"]


def renew(
    problem: EquationProblem | None,
    needed: Mask,
    old: tuple[Tensor, ...],
    compute: Callable[..., tuple[Tensor, ...]],
    *lanes: Tensor,
) -> tuple[Tensor, ...]:
    """Return ``compute(problem, *lanes)`` in the lanes ``needed (N,)``, and ``old`` elsewhere.

    Where lanes can be selected, the others cost nothing. In a compiled graph they are all computed
    if any needs it, and none if none does. Without a problem, ``compute`` takes the lanes alone.
    """
    own = () if problem is None else (problem,)
    if compiling():

        def body(carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            new = compute(*(here.aliased() for here in own), *(alias(t) for t in lanes))
            return pick(needed, new, carry)

        return repeat(lambda _: torch.as_tensor(needed).any(), body, old, 1)
    _, (needed,) = settle(len(lanes[0]), needed)
    if nowhere(needed):
        return old
    if not isinstance(needed, Tensor):
        return compute(*own, *lanes)
    if not all(here.separable for here in own):
        return pick(needed, compute(*own, *lanes), old)
    index = needed.nonzero().squeeze(-1)
    part = compute(*(here.take(index) for here in own), *(t[index] for t in lanes))
    return tuple(b.index_copy(0, index, a) for a, b in zip(part, old, strict=True))
