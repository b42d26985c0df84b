"""What the interior-point method carries from step to step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from implicit_solvers.problems.qp.standard_form import Program

__all__ = ["InteriorPointState"]


class InteriorPointState(NamedTuple):
    """The state of `InteriorPoint`.

    ``z = (x, y)`` is the iterate that is judged, in the units of the input; ``w`` is the same in
    those of the program, with its ``slope`` ``Q x + p + R^T y`` and ``excess`` ``R x - c``, and the
    rows that are ``active`` there. While a lane is ``polished``, ``w`` is not the ``inner`` iterate
    ``(x, y, s)`` of complementarity ``mu``, which is kept to come back to, and zero before there
    is one. Lanes have
    ``decided`` once about rows without slack and multipliers. ``factors`` are what `CondensedKKT`
    solves with in the backward pass.
    """

    z: Tensor
    error: Tensor
    estimate: Tensor
    unit: float
    flag: Tensor
    program: Program
    w: Tensor
    slope: Tensor
    excess: Tensor
    active: Tensor
    inner: Tensor
    mu: Tensor
    factors: tuple[Tensor, ...]
    polished: Tensor
    decided: Tensor
    rounds: Tensor
    threshold: Tensor
    stuck: Tensor
    steps: int
