"""Renewal: what is costly, as a factorization, is made anew in the lanes that need it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from implicit_solvers.problem import EquationProblem

__all__ = ["renew"]


def renew(
    problem: EquationProblem,
    needed: Tensor,
    old: tuple[Tensor, ...],
    compute: Callable[..., tuple[Tensor, ...]],
    *lanes: Tensor,
) -> tuple[Tensor, ...]:
    """Return ``compute(problem, *lanes)`` in the lanes ``needed (N,)``, and ``old`` elsewhere.

    Where lanes can be selected, the others cost nothing.
    """
    if not bool(needed.any()):
        return old
    if bool(needed.all()):
        return compute(problem, *lanes)
    if not problem.separable:
        new = compute(problem, *lanes)
        return tuple(
            torch.where(needed.reshape(-1, *(1,) * (a.dim() - 1)), a, b)
            for a, b in zip(new, old, strict=True)
        )
    index = needed.nonzero().squeeze(-1)
    part = compute(problem.take(index), *(t[index] for t in lanes))
    return tuple(b.index_copy(0, index, a) for a, b in zip(part, old, strict=True))
