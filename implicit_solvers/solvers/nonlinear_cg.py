"""Nonlinear conjugate gradients: a direction that remembers the last one.

It knows no Hessian, one product at the start aside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from implicit_solvers.agreement import divide, larger, pick
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solvers.descent import dot, times
from implicit_solvers.solvers.line_search import LineSearch, StrongWolfe
from implicit_solvers.solvers.secant import Pair, SecantDescent, SecantMemory

__all__ = ["NonlinearCG"]

_LEAST = 0.4


@dataclass(frozen=True)
class NonlinearCG(SecantDescent):
    """Nonlinear conjugate gradients: ``z <- z + t p`` with ``p = beta s - grad``.

    Of the last step ``s``, and the change ``y`` of the gradient over it, the direction remembers
    ``beta = (y - 2 s |y|^2 / s.y).grad / s.y``, or ``0.4 s.g / |s|^2`` with the gradient ``g`` from
    before, if that is larger; so it leads down, whatever the search. The curvature along ``s``
    tells the length that is tried first, and at the start that along the gradient, by one product
    with the Hessian. The length ``t`` meets the strong Wolfe conditions, with a tenth of the slope
    left. A problem whose search fails goes down the gradient; if that fails too (where the function
    is unbounded below along a line) it ends as STALLED. Twice the size of the next step estimates
    the error and proposes the end, where the Hessian decides. For least squares the objective is
    ``|r|^2 / 2``. Source: Hager and Zhang, "A new conjugate gradient method with guaranteed descent
    and an efficient line search", SIAM J. Optim. 16 (2005); the bound: the same, "The limited
    memory conjugate gradient method", SIAM J. Optim. 23 (2013), in which no unit enters.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    line_search
        How the length of a step is found; ``StrongWolfe(curvature=0.1)`` by default.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> def rosenbrock(z):
    ...     return ((1 - z[:-1]) ** 2 + 100 * (z[1:] - z[:-1] ** 2) ** 2).sum()
    >>> start = torch.zeros(10, dtype=torch.float64)
    >>> ims.minimize(rosenbrock, start, solver=NonlinearCG()).value[:3].round(decimals=6)
    tensor([1., 1., 1.], dtype=torch.float64)
    """

    max_steps: int = field(default=10_000, kw_only=True)
    line_search: LineSearch = field(
        default_factory=lambda: StrongWolfe(curvature=0.1), kw_only=True
    )

    solves: ClassVar[tuple[str, ...]] = ("minimize", "least_squares")

    def nothing(self, z: Tensor) -> Tensor:
        """Return nothing: the last step is what is remembered."""
        return z[:, :0]

    def learn(
        self, problem: EquationProblem, memory: SecantMemory, pair: Pair, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add as much of the last step as makes the direction conjugate to it."""
        s, y, sy, kept, _ = pair
        ss, slope = dot(problem, s, s), dot(problem, s, gradient)
        bend = divide(dot(problem, y, y), sy)
        share = divide(dot(problem, y, gradient) - 2 * bend * slope, sy)
        least = _LEAST * divide(dot(problem, s, gradient - y), ss)
        down = gradient - times(pick(kept, larger(share, least), 0.0), s)
        # (without a pair the length is that of the gradient before)
        curve = pick(kept, divide(sy, ss), divide(1.0, memory.scale))
        first = divide(dot(problem, down, gradient), curve * dot(problem, down, down))
        return memory.learned, times(first, down)
