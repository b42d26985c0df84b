"""Limited-memory BFGS: a quasi-Newton method that remembers a few steps.

It knows no Hessian, one product at the start aside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from implicit_solvers.agreement import pick
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.problem import EquationProblem
from implicit_solvers.ranks import once, summed
from implicit_solvers.solvers.descent import times
from implicit_solvers.solvers.line_search import Backtracking, LineSearch
from implicit_solvers.solvers.secant import Pair, SecantDescent, SecantMemory

__all__ = ["LBFGS", "LBFGSB"]


@dataclass(frozen=True)
class LimitedMemory(SecantDescent):
    """Steps by the last pairs; between bounds, of the unknowns that are apart from these."""

    memory: int = 10

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "memory")
        if self.memory == 0:
            raise ValueError(
                f"{type(self).__name__} has memory=0: pass at least 1, or use GradientDescent("
                f"line_search={type(self.line_search).__name__}()), which remembers nothing"
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
        return pairs, _directed(problem, pair.z, gradient, pairs, memory.scale)


@dataclass(frozen=True)
class LBFGS(LimitedMemory):
    """Limited-memory BFGS: ``z <- z + t p`` with ``p = -B grad``.

    ``B`` approximates the inverse of the Hessian by the last ``memory`` pairs of a step ``s`` and
    the change ``y`` of the gradient over it, from ``s.y / y.y`` times the identity; before there is
    a pair, the curvature along the gradient tells the length, by one product with the Hessian. A
    pair is kept where ``s.y`` is positive beyond rounding. The length ``t`` meets the strong Wolfe
    conditions. A problem whose search fails forgets its pairs and goes down the gradient; if that
    fails too (where the function is unbounded below along a line) it ends as STALLED. Twice the
    size of the next step estimates the error and proposes the end, where the Hessian decides. For
    least squares the objective is ``|r|^2 / 2``. Source: Nocedal and Wright, "Numerical
    Optimization", algorithms 7.4 and 7.5.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    memory
        How many pairs are remembered, of ``2 n`` numbers each.
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
    >>> ims.minimize(rosenbrock, start, solver=LBFGS()).value[:3]
    tensor([1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """

    solves: ClassVar[tuple[str, ...]] = ("minimize", "least_squares")
    spreads: ClassVar[bool] = True


@dataclass(frozen=True)
class LBFGSB(LimitedMemory):
    """Limited-memory BFGS between bounds: ``z <- P(z - t p)``, with the projection ``P``.

    An unknown is left out of the quasi-Newton step where its bound is no farther than a step down
    the gradient of the length ``s.y / y.y`` goes, and makes that step instead. Of the pairs of
    `LBFGS` the others have their own parts, where these curve upwards. The length ``t`` is halved
    until the objective falls by ``1e-4`` of what the slope promises along the chord to the trial. A
    problem whose search fails forgets its pairs, and then ends as STALLED. Twice the size of the
    next step estimates the error and proposes the end, where the Hessian decides. Source:
    Bertsekas, "Projected Newton Methods for Optimization Problems with Simple Constraints", SIAM J.
    Control Optim. 20 (1982); pairs among free unknowns: Schmidt, Kim and Sra, "Projected
    Newton-type Methods in Machine Learning" (2011), section 3.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    memory
        How many pairs are remembered, of ``2 n`` numbers each.
    line_search
        How steps are shortened; ``Backtracking()`` by default.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def rosenbrock(z):
    ...     return ((1 - z[:-1]) ** 2 + 100 * (z[1:] - z[:-1] ** 2) ** 2).sum()
    >>> start = torch.zeros(3, dtype=torch.float64)
    >>> ims.minimize(rosenbrock, start, bounds=(None, 0.8), solver=LBFGSB()).value
    tensor([0.8000, 0.6436, 0.4142], dtype=torch.float64)
    """

    line_search: LineSearch = field(default_factory=lambda: Backtracking(), kw_only=True)
    solves: ClassVar[tuple[str, ...]] = ("minimize with bounds", "least_squares with bounds")


def _directed(
    problem: EquationProblem, z: Tensor, down: Tensor, pairs: Tensor, scale: Any
) -> Tensor:
    """Return ``B grad``; between bounds, of the unknowns that are apart from these."""
    if problem.bounds is None:
        return _times_inverse_hessian(pairs, scale, down)
    plain = times(scale, down)
    free = problem.apart(z, plain, 1.0)
    pairs = pairs * free.reshape(len(z), 1, 1, -1)
    sizes, (sy, ss, yy) = torch.finfo(z.dtype).eps ** 0.5, _products(pairs)
    bends = sy > sizes * (ss * yy).sqrt()
    pairs = pairs * torch.where(bends, sy, 1.0).rsqrt().mul(bends).reshape(len(z), 1, -1, 1)
    own = problem.number(torch.where(bends[:, 0], sy[:, 0] / yy[:, 0], 0.0))
    step = _times_inverse_hessian(pairs, pick(own > 0, own, scale), down * free)
    return torch.where(free, step, plain)


def _products(pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inner products of steps and changes ``(N, memory)`` of pairs, mixed and not."""
    steps, changes = pairs.unbind(1)
    return (steps * changes).sum(-1), (steps**2).sum(-1), (changes**2).sum(-1)


def _times_inverse_hessian(pairs: Tensor, scale: Any, gradient: Tensor) -> Tensor:
    """Return ``B grad`` by the two-loop recursion: each loop is a triangular system."""
    (steps, changes), q = pairs.unbind(1), gradient.unsqueeze(-1)
    across = changes.mT
    products = summed(torch.bmm(steps, across))
    share = solve_triangular(products, summed(torch.bmm(steps, q)), upper=False, unitriangular=True)
    q = times(scale, torch.baddbmm(q, across, share, alpha=-1))
    rest = summed(torch.baddbmm(once(share), changes, q, alpha=-1))
    rest = solve_triangular(products.mT, rest, upper=True, unitriangular=True)
    return torch.baddbmm(q, steps.mT, rest).squeeze(-1)
