"""What the interior-point method carries from step to step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from implicit_solvers.problems.qp.standard_form import Program

__all__ = ["InteriorPointState"]


class InteriorPointState(NamedTuple):
    """The state of `InteriorPoint`.

    ``z = (x, y)`` is the iterate that is judged, in the units of the input, with its ``slope``
    ``Q x + p + R^T y`` and ``excess`` ``R x - c``. While a lane is ``polished`` it is not the
    interior iterate ``x``, ``y``, ``s``, which is kept to come back to. ``L`` and ``weights`` are
    the last factorization.
    """

    z: Tensor
    error: Tensor
    estimate: Tensor
    unit: float
    flag: Tensor
    program: Program
    slope: Tensor
    excess: Tensor
    x: Tensor
    y: Tensor
    s: Tensor
    L: Tensor
    weights: Tensor
    polished: Tensor
    rounds: Tensor
    attempts: Tensor
    threshold: Tensor
    stuck: Tensor
    steps: int
    keep_factors: bool

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """What `CondensedKKT` solves with in the backward pass."""
        if not self.keep_factors:
            return ()
        program = self.program
        lengths = program.scale[:, program.p.shape[-1] :]
        rows = program.R * lengths.unsqueeze(-1)
        return self.L, self.weights / lengths.square(), program.Q, rows
