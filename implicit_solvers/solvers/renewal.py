"""Renewal: what is costly, as a factorization, is made anew in the lanes that need it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.problem import EquationProblem
from implicit_solvers.traced_loop import alias, repeat

__all__ = ["renew"]


def renew(
    problem: EquationProblem,
    needed: Tensor,
    old: tuple[Tensor, ...],
    compute: Callable[..., tuple[Tensor, ...]],
    *lanes: Tensor,
) -> tuple[Tensor, ...]:
    """Return ``compute(problem, *lanes)`` in the lanes ``needed (N,)``, and ``old`` elsewhere.

    Where lanes can be selected, the others cost nothing. In a compiled graph they are all computed
    if any needs it, and none if none does.
    """
    if compiling():

        def body(carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            new = compute(problem.aliased(), *(alias(t) for t in lanes))
            return _where(needed, new, carry)

        return repeat(lambda _: needed.any(), body, old, 1)
    if not bool(needed.any()):
        return old
    if bool(needed.all()):
        return compute(problem, *lanes)
    if not problem.separable:
        return _where(needed, compute(problem, *lanes), old)
    index = needed.nonzero().squeeze(-1)
    part = compute(problem.take(index), *(t[index] for t in lanes))
    return tuple(b.index_copy(0, index, a) for a, b in zip(part, old, strict=True))


def _where(needed: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(
        torch.where(needed.reshape(-1, *(1,) * (a.dim() - 1)), a, b)
        for a, b in zip(new, old, strict=True)
    )
