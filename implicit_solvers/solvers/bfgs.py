"""BFGS: a quasi-Newton method with a dense approximation of the inverse Hessian.

It knows no Hessian, one product at the start aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from implicit_solvers.agreement import both, divide, pick
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solvers.descent import dot, times
from implicit_solvers.solvers.secant import Pair, SecantDescent, SecantMemory

__all__ = ["BFGS"]


@dataclass(frozen=True)
class BFGS(SecantDescent):
    """BFGS: ``z <- z + t p`` with ``p = -B grad``.

    ``B (n, n)`` approximates the inverse of the Hessian. It begins as ``s.y / y.y`` times the
    identity, for the first step ``s`` and the change ``y`` of the gradient over it, and is changed
    as little as makes ``B y = s`` with each step; before there is one, the curvature along the
    gradient tells the length, by one product with the Hessian. A pair is used where ``s.y`` is
    positive beyond rounding. The length ``t`` meets the strong Wolfe conditions. A problem whose
    search fails forgets ``B`` and goes down the gradient; if that fails too (where the function is
    unbounded below along a line) it ends as STALLED. Twice the size of the next step estimates the
    error and proposes the end, where the Hessian decides. For least squares the objective is
    ``|r|^2 / 2``. Source: Nocedal and Wright, "Numerical Optimization", algorithm 6.1 with (6.20).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    line_search
        How the length of a step is found; ``StrongWolfe()`` by default.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def rosenbrock(z):
    ...     return ((1 - z[:-1]) ** 2 + 100 * (z[1:] - z[:-1] ** 2) ** 2).sum()
    >>> start = torch.zeros(10, dtype=torch.float64)
    >>> ims.minimize(rosenbrock, start, solver=BFGS()).value[:3]
    tensor([1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """

    solves: ClassVar[tuple[str, ...]] = ("minimize", "least_squares")

    def nothing(self, z: Tensor) -> Tensor:
        """Return the identity."""
        eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        return eye.expand(len(z), *eye.shape).contiguous()

    def learn(
        self, problem: EquationProblem, memory: SecantMemory, pair: Pair, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Change ``B`` by two symmetric products."""
        s, y, sy, kept, _ = pair
        B = pick(both(memory.fresh, kept), times(memory.scale, memory.learned), memory.learned)
        By = torch.bmm(B, y.unsqueeze(-1)).squeeze(-1)
        w = times(0.5 * (1 + divide(dot(problem, y, By), sy)), s) - By
        half = times(pick(kept, divide(1.0, sy), 0.0), s.unsqueeze(-1) * w.unsqueeze(-2))
        B = B + (half + half.mT)
        return B, torch.bmm(B, gradient.unsqueeze(-1)).squeeze(-1)
