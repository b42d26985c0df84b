"""Why a solve failed, as far as the function's values tell. It knows no solver and no rule."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status

__all__ = ["cause"]


def cause(problem: EquationProblem, z: Tensor, status: Tensor) -> str:
    """Say what is wrong with the function, if its values at ``z (N, n)`` tell; else nothing."""
    kind, singular = problem.equation.kind, status == int(Status.SINGULAR)
    random = _randomness(problem, z)
    if random:
        return random
    if kind == "minimize" and _falls(problem, z):
        return (
            "The objective seems to fall without end: to maximize, minimize its negative; or pass "
            "bounds."
        )
    if not bool(singular.any()):
        return ""
    if kind == "least_squares" and problem.evaluate(z).shape[-1] == 1 < z.shape[-1]:
        return (
            "The function returns one residual for several unknowns: return all residuals, not "
            "the sum of their squares, or pass that to minimize."
        )
    if bool((problem.linearize(z).mv(torch.rand_like(z))[singular] == 0).all()):
        return (
            "The derivative is exactly zero there: start elsewhere, or look for what cuts z off in "
            "the function, as detach(), item(), torch.tensor() or NumPy."
        )
    return ""


def _falls(problem: EquationProblem, z: Tensor) -> bool:
    """Tell whether an objective falls faster and faster against its gradient, for some lane."""
    slope = problem.residual(z)
    unit = (1 + z.abs().amax(-1)) / slope.abs().amax(-1)
    far = [z - (t * unit).unsqueeze(-1) * slope for t in (1e2, 1e3, 1e4)]
    try:
        values = [problem.evaluate(point) for point in far]
    except (RuntimeError, ValueError):  # the function is not made for such points
        return False
    if values[0].dim() != 1:
        return False
    first, second = values[0] - values[1], values[1] - values[2]
    return bool(((first > 0) & (second > 2 * first)).any())


def _randomness(problem: EquationProblem, z: Tensor) -> str:
    """Say that the function is random, if two evaluations at ``z`` tell; else nothing."""
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
