"""Limited-memory BFGS: a quasi-Newton method that remembers a few steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from implicit_solvers.agreement import pick
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solvers.descent import times
from implicit_solvers.solvers.secant import Pair, SecantDescent, SecantMemory

__all__ = ["LBFGS"]


@dataclass(frozen=True)
class LBFGS(SecantDescent):
    """Limited-memory BFGS: ``z <- z + t p`` with ``p = -B grad``.

    ``B`` approximates the inverse of the Hessian by the last ``memory`` pairs of a step ``s`` and
    the change ``y`` of the gradient over it, from ``s.y / y.y`` times the identity; before there is
    a pair, the curvature along the gradient tells the length, by one product with the Hessian. A
    pair is kept where ``s.y`` is positive beyond rounding. The length ``t`` meets the strong Wolfe
    conditions. A lane whose search fails forgets its pairs and goes down the gradient; if that
    fails too (where the function is unbounded below along a line) it ends as STALLED. Twice the
    size of the next step estimates the error and proposes the end, where the Hessian decides. For
    least squares the objective is ``|r|^2 / 2``. Source: Nocedal and Wright, "Numerical
    Optimization", algorithms 7.4 and 7.5.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm, compact, check_every, compile
        As in `EquationMethod`.
    memory
        How many pairs are remembered, of ``2 n`` numbers each.
    line_search
        How the length of a step is found; ``StrongWolfe()`` by default.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def rosenbrock(z):
    ...     return ((1 - z[:-1]) ** 2 + 100 * (z[1:] - z[:-1] ** 2) ** 2).sum()
    >>> start = torch.zeros(10, dtype=torch.float64)
    >>> ims.minimize(rosenbrock, start, solver=LBFGS()).value[:3]
    tensor([1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """

    memory: int = 10
    solves: ClassVar[tuple[str, ...]] = ("minimize", "least_squares")

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "memory")
        if self.memory == 0:
            raise ValueError(
                "LBFGS has memory=0: pass at least 1, or use "
                "GradientDescent(line_search=StrongWolfe()), which remembers nothing"
            )

    def nothing(self, z: Tensor) -> Tensor:
        """Return no pairs: steps and changes over the root of ``s.y``, newest first, or zeros."""
        return z.new_zeros(len(z), 2, self.memory, z.shape[-1])

    def learn(
        self, problem: EquationProblem, memory: SecantMemory, pair: Pair, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Let the newest pair in, and the oldest out; one that is not kept leaves a place empty."""
        newest = times(pick(pair.kept, pair.sy**-0.5, 0.0), torch.stack([pair.s, pair.y], 1))
        pairs = torch.cat([newest.unsqueeze(2), memory.learned[:, :, :-1]], 2)
        return pairs, _times_inverse_hessian(pairs, memory.scale, gradient)


def _times_inverse_hessian(pairs: Tensor, scale: Any, gradient: Tensor) -> Tensor:
    """Return ``B grad`` by the two-loop recursion: each loop is a triangular system."""
    (steps, changes), q = pairs.unbind(1), gradient.unsqueeze(-1)
    across = changes.mT
    products = torch.bmm(steps, across)
    share = solve_triangular(products, torch.bmm(steps, q), upper=False, unitriangular=True)
    q = times(scale, torch.baddbmm(q, across, share, alpha=-1))
    rest = torch.baddbmm(share, changes, q, alpha=-1)
    rest = solve_triangular(products.mT, rest, upper=True, unitriangular=True)
    return torch.baddbmm(q, steps.mT, rest).squeeze(-1)
