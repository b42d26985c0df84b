"""Limited-memory BFGS: a quasi-Newton method that remembers a few steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from implicit_solvers.agreement import Mask, both, divide, either, no, nowhere, pick
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solvers.damped import Aim, DampedState
from implicit_solvers.solvers.descent import Descent, dot, first_length, times
from implicit_solvers.solvers.line_search import Backtracking, LineSearch, StrongWolfe

__all__ = ["LBFGS", "LBFGSB"]

_DOUBT, _LONGER = 2.0, 4.0


class LBFGSMemory(NamedTuple):
    """What `LBFGS` remembers: the last steps and changes of the gradient, newest first.

    Gradients are multiplied by ``unit``, so that they have the unit of ``z``. The ``pairs (N, 2,
    memory, n)`` are divided by the root of their product ``s.y``; a place without one is zero.
    ``scale`` is ``s.y / y.y`` of the newest, ``direction`` the next, and ``fresh`` tells where
    there are no pairs.
    """

    unit: Any
    pairs: Tensor
    scale: Any
    direction: Tensor
    fresh: Mask


@dataclass(frozen=True)
class LimitedMemory(Descent):
    """Steps by the last pairs; between bounds, among the unknowns that these do not stop."""

    max_steps: int = field(default=2000, kw_only=True)
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

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> LBFGSMemory:
        """Remember no pairs, and the curvature along the gradient."""
        pairs = z.new_zeros(len(z), 2, self.memory, z.shape[-1])
        unit = first_length(problem, self, z, problem.projected(z, residual))
        one: Any = 1.0
        fresh: Mask = True
        if not problem.branches:
            one, fresh = torch.ones_like(unit), torch.ones_like(unit, dtype=torch.bool)
        return LBFGSMemory(unit, pairs, one, times(unit, residual), fresh)

    def init(self, problem: EquationProblem, z: Tensor) -> DampedState:
        """Evaluate at the start, and estimate the error by the first step."""
        return self._estimated(problem, super().init(problem, z))

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Go along the quasi-Newton direction; forget all pairs where that does not pay."""
        memory = state.memory
        flag = self.stopped(state, both(tired, memory.fresh))
        if not nowhere(tired):
            none, scale = torch.zeros_like(memory.pairs), memory.scale
            down, fresh = times(scale * memory.unit, state.residual), either(tired, memory.fresh)
            forgotten = LBFGSMemory(memory.unit, none, scale, down, fresh)
            memory = pick(tired, forgotten, memory)
        return Aim(memory.direction, memory, flag)

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Let the search judge; the next step estimates the error."""
        state = super().pays(problem, state)
        return self._estimated(problem, state._replace(memory=self._learned(problem, state)))

    def _estimated(self, problem: EquationProblem, state: DampedState) -> DampedState:
        step = problem.step(state.z, state.memory.direction)
        size = problem.size(self.norm, step)
        return state._replace(estimate=_DOUBT * size)

    def _learned(self, problem: EquationProblem, state: DampedState) -> LBFGSMemory:
        """Return the memory with the last step; a pair that is not kept leaves its place empty."""
        memory, accepted, line = state.memory, state.accepted, state.search
        if nowhere(accepted):
            return memory
        s, y = state.z - state.kept.z, times(memory.unit, state.residual - state.kept.residual)
        bend = line.trial.slope - line.start.slope
        keep = bend > -torch.finfo(s.dtype).eps * line.start.slope
        sy = pick(keep, state.length * memory.unit * bend, 1.0)
        newest = times(pick(keep, sy**-0.5, 0.0), torch.stack([s, y], 1)).unsqueeze(2)
        pairs = torch.cat([newest, memory.pairs[:, :, :-1]], 2)
        longer = memory.scale
        if problem.bounds is not None:
            # no search looks beyond a step that does not curve upwards
            longer = pick(state.length == 1, _LONGER * longer, longer)
        scale = pick(keep, divide(sy, dot(problem, y, y)), longer)
        direction = _directed(problem, state.z, state.residual, memory.unit, pairs, scale)
        learned = LBFGSMemory(memory.unit, pairs, scale, direction, both(memory.fresh, no(keep)))
        return pick(accepted, learned, memory)


@dataclass(frozen=True)
class LBFGS(LimitedMemory):
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

    # (Dynamo cannot make an instance whose default is an object)
    line_search: LineSearch = field(default_factory=lambda: StrongWolfe())
    solves: ClassVar[tuple[str, ...]] = ("minimize", "least_squares")


@dataclass(frozen=True)
class LBFGSB(LimitedMemory):
    """Limited-memory BFGS between bounds: ``z <- P(z - t p)``, with the projection ``P``.

    An unknown is left out of the quasi-Newton step where its bound is no farther than a step down
    the gradient of the length ``s.y / y.y`` goes, and makes that step instead. Of the pairs of
    `LBFGS` the others have their own parts, where these curve upwards. The length ``t`` is halved
    until the objective falls by ``1e-4`` of what the slope promises along the chord to the trial. A
    lane whose search fails forgets its pairs, and then ends as STALLED. Twice the size of the next
    step estimates the error and proposes the end, where the Hessian decides. Source: Bertsekas,
    "Projected Newton Methods for Optimization Problems with Simple Constraints", SIAM J. Control
    Optim. 20 (1982); pairs among free unknowns: Schmidt, Kim and Sra, "Projected Newton-type
    Methods in Machine Learning" (2011), section 3.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm, compact, check_every, compile
        As in `EquationMethod`.
    memory
        How many pairs are remembered, of ``2 n`` numbers each.
    line_search
        How steps are shortened; ``Backtracking()`` by default.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def rosenbrock(z):
    ...     return ((1 - z[:-1]) ** 2 + 100 * (z[1:] - z[:-1] ** 2) ** 2).sum()
    >>> start = torch.zeros(3, dtype=torch.float64)
    >>> ims.minimize(rosenbrock, start, bounds=(None, 0.8), solver=LBFGSB()).value
    tensor([0.8000, 0.6436, 0.4142], dtype=torch.float64)
    """

    line_search: Backtracking = field(default_factory=lambda: Backtracking())
    solves: ClassVar[tuple[str, ...]] = ("minimize with bounds", "least_squares with bounds")


def _directed(
    problem: EquationProblem, z: Tensor, gradient: Tensor, unit: Any, pairs: Tensor, scale: Any
) -> Tensor:
    """Return ``B grad``; between bounds, of the unknowns that are apart from these."""
    down = times(unit, gradient)
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
    products = torch.bmm(steps, across)
    share = solve_triangular(products, torch.bmm(steps, q), upper=False, unitriangular=True)
    q = times(scale, torch.baddbmm(q, across, share, alpha=-1))
    rest = torch.baddbmm(share, changes, q, alpha=-1)
    rest = solve_triangular(products.mT, rest, upper=True, unitriangular=True)
    return torch.baddbmm(q, steps.mT, rest).squeeze(-1)
