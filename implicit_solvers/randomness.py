"""Why no solver converges: two evaluations at the same point differ."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problem import EquationProblem

__all__ = ["randomness"]


def randomness(problem: EquationProblem, z: Tensor) -> str:
    """Say that the function is random, if two evaluations at ``z (N, n)`` tell; else nothing."""
    first, second = problem.residual(z), problem.residual(z)
    size, difference = (t.abs().nan_to_num().max() for t in (first, first - second))
    # sums in another order differ by rounding, far less than this
    if difference <= torch.finfo(z.dtype).eps ** 0.5 * size:
        return ""
    return (
        f"The function is random: two evaluations at the same point differ by "
        f"{float(difference):.2g}, and no solver can go below that. Draw outside of it and pass in "
        "args what was drawn; for dropout, call eval() on the module."
    )
