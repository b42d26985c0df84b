"""Steps by a model of the residuals, within a region that follows the model's merit.

Where steps come from, it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import (
    Mask,
    both,
    divide,
    either,
    everywhere,
    larger,
    no,
    nowhere,
    pick,
)
from implicit_solvers.hyperparameters import check_count, check_number
from implicit_solvers.linear.choice import DENSE_LIMIT
from implicit_solvers.outcome import DIGIT, ROUNDINGS, contracted
from implicit_solvers.problem import EquationProblem
from implicit_solvers.rounding import patterns
from implicit_solvers.solution import Status
from implicit_solvers.solver import (
    IterativeSolver,
    LinearMethod,
    LinearSolver,
    check_linear_solver,
)
from implicit_solvers.solvers.damped import Aim, Damped, DampedState, Point

__all__ = [
    "ModelSteps",
    "Proposal",
    "Region",
    "ScaledRegion",
    "decomposed",
    "length",
    "promised",
    "scales",
]

_KICK = 0.01


class Proposal(NamedTuple):
    """A step, its length, and by which part of itself it promises to make ``|r|^2`` less."""

    step: Tensor
    reach: Any
    promised: Any


class Region(NamedTuple):
    """Where steps are looked for: within the ``radius``, infinite if it is still to be chosen.

    ``within`` is the radius of the last trial, ``reach`` its length and ``promised`` what it
    promised; ``rejected`` counts trials in a row; ``size`` is ``|r|``. ``kicks`` is one where the
    next step is a kick, two after it. ``newton`` is what is known of Newton's steps beyond it.
    """

    radius: Any
    rejected: Any
    within: Any
    reach: Any
    promised: Any
    size: Any
    kicks: Any
    newton: Any = None


@dataclass(frozen=True)
class ModelSteps(Damped):
    """What solvers have in common that model the residuals by ``r + J p``, one trial a step.

    A trial is accepted if ``|r|^2`` falls by ``1e-4`` of what the model promised; near the minimum
    of a fit, where both drown in rounding, if the norm of the gradient falls, or the step is
    smaller than half of the digits. Where a root's model promises nothing any more, or too many
    trials in a row were rejected, the lane is moved once by 1% of its size, by a fixed pattern, and
    the next time it is STALLED.
    """

    max_steps: int = field(default=200, kw_only=True)
    linear_solver: LinearSolver | None = None

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_linear_solver(self, kind=LinearMethod)

    def examined(self, n: int) -> bool:
        """Tell whether the Jacobian is formed and factored where a solve ends, as in the steps."""
        return self.linear_solver is None and super().examined(n)

    def by_products(self, z: Tensor, default: IterativeSolver) -> IterativeSolver | None:
        """Return the linear solver at ``z``, or None to form and factor the Jacobian."""
        if self.linear_solver is None:
            return default if z.shape[-1] > DENSE_LIMIT else None
        chosen: Any = self.linear_solver
        return chosen

    @property
    def trials(self) -> int:
        """How many trials in a row may be rejected."""
        raise NotImplementedError

    def blank(self, problem: EquationProblem, z: Tensor, residuals: Tensor) -> Any:
        """Return a model of zeros, which a graph begins with."""
        raise NotImplementedError

    def modeled(self, problem: EquationProblem, state: DampedState) -> tuple[Any, Any]:
        """Return the model at the iterate, and a status or 0."""
        raise NotImplementedError

    def radius(self, problem: EquationProblem, state: DampedState) -> Any:
        """Return the radius of a trial."""
        raise NotImplementedError

    def propose(self, problem: EquationProblem, state: DampedState) -> Proposal:
        """Return the best step within the radius, or the whole one."""
        raise NotImplementedError

    def resized(self, state: DampedState, ratio: Any) -> Any:
        """Return the radius after a step that kept ``ratio`` of its promise."""
        raise NotImplementedError

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> Any:
        """Return no model, or one of zeros."""
        return None if problem.branches else self.blank(problem, z, residual)

    def init(self, problem: EquationProblem, z: Tensor) -> DampedState:
        """Evaluate at the start."""
        state = super().init(problem, z)
        if not problem.fits:
            return state
        error = state.error
        return state._replace(estimate=pick(error == 0, 0.0, 0 * error + torch.inf))

    def evaluate(self, problem: EquationProblem, z: Tensor) -> Point:
        """Evaluate the residuals, and the norm of the condition; and of a fit, ``|r|``."""
        residuals, slope = problem.residuals_and_condition(z)
        condition = problem.projected(z, slope)
        value = problem.size(length, residuals) if problem.fits else None
        return Point(z, residuals, problem.size(self.norm, condition), value)

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Model the residuals where a trial was accepted."""
        model, why = self.modeled(problem, state)
        if state.memory is not None:
            model = pick(state.accepted, model, state.memory)
        flag = pick(both(state.accepted, state.flag == 0), why, state.flag)
        return Aim(state.direction, model, flag)

    def start(self, problem: EquationProblem, state: DampedState, length: Any) -> tuple[Any, Any]:
        """Look within the region that has proved itself."""
        region = state.search
        if region is None:
            none = 0 * state.error
            never = 0 if problem.branches else torch.zeros_like(none, dtype=torch.int64)
            region = Region(none + torch.inf, never, none, none, none, none, never)
        return length, region._replace(rejected=0 * region.rejected)

    def again(self, state: DampedState) -> tuple[Any, Any, Mask]:
        """Look within a smaller region."""
        region = state.search
        return state.length, region._replace(rejected=region.rejected + 1), False

    def ahead(self, problem: EquationProblem, state: DampedState) -> tuple[Tensor, DampedState]:
        """Make the step that the model proposes, or a kick."""
        state = state._replace(search=state.search._replace(size=_size(problem, state)))
        region = state.search._replace(within=self.radius(problem, state))
        step, reach, fall = self.propose(problem, state._replace(search=region))
        due = region.kicks == 1
        if not nowhere(due):
            reached = problem.reach(state.z)
            kick = _KICK * torch.where(reached > 0, reached, 1.0) * patterns(state.z)[0]
            step = pick(due, kick, step)
        region = region._replace(reach=reach, promised=fall)
        return problem.within(state.z + step), state._replace(search=region)

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Tell where the step kept enough of its promise, and where none will."""
        region = state.search
        pays, ratio, stuck = _weighed(problem, state)
        if problem.fits:
            z = state.z
            (step,), scale = (
                problem.sizes_and_scale(self, z, z - state.kept.z),
                problem.scale(self, z),
            )
            estimate = contracted(step, state.error, state.kept.error)
            if self.rtol is not None and self.examined(state.z.shape[-1]):
                # what the gradient lost says nothing of far steps, and near ones drown in rounding:
                # these are taken, and examined
                small = step <= torch.finfo(state.z.dtype).eps ** 0.5 * scale
                pays = either(pays, small)
                estimate = pick(both(small, estimate >= step), 0.0, estimate)
                estimate = pick(step <= DIGIT * scale, estimate, torch.inf)
            else:
                # nothing will tell what an inexact step has left
                estimate = larger(estimate, step)
                # a step of a few roundings, that no trial has shortened, is the end of them
                least = ROUNDINGS * torch.finfo(state.z.dtype).eps * scale
                tiny = both(step <= least, region.rejected == 0)
                pays, estimate = either(pays, tiny), pick(tiny, step, estimate)
            state = state._replace(estimate=estimate)
        elif not everywhere(pays):
            stuck = either(stuck, problem.size(length, state.z - state.kept.z) == 0)
        stuck = either(stuck, region.rejected > self.trials)
        known, kicked = region.promised == region.promised, region.kicks == 1
        # a budget's lane stays where no step pays; a root's leaves where none does, once
        may = both(region.kicks == 0, self.rtol is not None and not problem.fits)
        leaves = both(both(stuck, known), may)
        stalled = 0 if self.rtol is None else int(Status.STALLED)
        why = pick(known, stalled, int(Status.NONFINITE))
        ends = both(both(stuck, no(either(leaves, kicked))), state.flag == 0)
        flag = pick(ends, why, state.flag)
        radius = pick(kicked, torch.inf, self.resized(state, ratio))
        kicks = pick(kicked, 2, pick(leaves, 1, region.kicks))
        accepted = either(both(pays, no(stuck)), both(kicked, state.error < torch.inf))
        return state._replace(
            accepted=accepted, search=region._replace(radius=radius, kicks=kicks), flag=flag
        )


@dataclass(frozen=True)
class ScaledRegion(ModelSteps):
    """Steps ``p`` in ``|D p| <= radius``, where ``D`` is the ``scale`` of the model.

    Parameters
    ----------
    first_radius
        The first radius, over the larger of ``|D z|`` and ``|r|``; of a fit, over ``|D z|``, if
        the start is not about zero.
    shrinks
        How many times in a row the region may shrink.
    """

    first_radius: float = 1.0
    shrinks: int = 30

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_number(self, "first_radius", above=0)
        check_count(self, "shrinks")

    @property
    def trials(self) -> int:
        """How many trials in a row may be rejected."""
        return self.shrinks

    def radius(self, problem: EquationProblem, state: DampedState) -> Any:
        """Return the radius of a trial."""
        radius, size = state.search.radius, state.search.size
        unset = radius == torch.inf
        if nowhere(unset):
            return radius
        first = problem.size(length, state.memory.scale * state.z)
        if problem.fits:
            # the residuals may be so large that all unknowns lose their influence within |r|
            known = first > torch.finfo(state.z.dtype).eps ** 0.5 * size
            first = pick(known, first, size)
        else:
            first = larger(first, size)
        return pick(unset, self.first_radius * first, radius)

    def resized(self, state: DampedState, ratio: Any) -> Any:
        """Return the radius after a step that kept ``ratio`` of its promise.

        Less than a tenth: half of the step. More than half: twice the step, or ten times if it was
        nine tenths, and no less than before. Source: Powell, "A hybrid method for nonlinear
        equations" (1970), and MINPACK's HYBRJ; the factor of ten spares doublings of a first
        radius that was too small.
        """
        reach, radius = state.search.reach, state.search.within
        changed = pick(ratio >= 0.5, self.grown(state, ratio), radius)
        return pick(ratio < 0.1, 0.5 * pick(reach < radius, reach, radius), changed)

    def grown(self, state: DampedState, ratio: Any) -> Any:
        """Return the radius after a step that kept more than half of its promise."""
        region = state.search
        grown = pick(ratio >= 0.9, 10 * region.reach, 2 * region.reach)
        # the first radius was a guess: the first step says more
        return pick(region.radius == torch.inf, grown, larger(region.within, grown))


def _weighed(problem: EquationProblem, state: DampedState) -> tuple[Mask, Any, Mask]:
    """Return whether a step pays, the part of its promise that it kept, and whether none will."""
    eps, promised = torch.finfo(state.z.dtype).eps, state.search.promised
    size = divide(_size(problem, state), state.search.size)
    actual = 1 - size * size
    ratio, least = divide(actual, promised), eps**0.5
    pays = ratio >= 1e-4
    if problem.fits:
        drowned = both(promised <= least, abs(actual) <= least)
        settles = both(drowned, actual <= 100 * eps)
        pays = pick(settles, state.error < state.kept.error, pays)
        middle = pick(ratio >= 0.1, pick(ratio <= 0.4, ratio, 0.4), 0.1)
        ratio, least = pick(drowned, middle, ratio), 0.0
    return pays, pick(pays, ratio, 0.0), no(promised > least)


def _size(problem: EquationProblem, state: DampedState) -> Any:
    return state.value if problem.fits else problem.size(length, state.residual)


def length(v: Tensor) -> Tensor:
    """Return the Euclidean norm of each lane of ``(N, n)``."""
    return torch.linalg.vector_norm(v, dim=-1)


def decomposed(matrix: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``s``, ``s u^T r`` and ``v^T`` of the matrices ``u s v^T``, cut to their rank."""
    # one lane that is not finite would fail them all
    finite = torch.isfinite(matrix).flatten(1).all(-1)
    u, s, vh = torch.linalg.svd(pick(finite, matrix, 0.0), full_matrices=False)
    noise = max(matrix.shape[-2:]) * torch.finfo(s.dtype).eps * s[:, :1]
    s = torch.where(s > noise, s, 0.0)
    return s, s * torch.bmm(residuals.unsqueeze(-2), u).squeeze(-2), vh


def promised(
    problem: EquationProblem, size: Any, gradient: Tensor, p: Tensor, image: Tensor
) -> Any:
    """Return by which part of itself ``|r + J p|^2`` is less than ``|r|^2``; ``image = J p``.

    ``size`` is ``|r|``.
    """
    # not as a difference of the two, which drowns in rounding near a minimum
    change = problem.number(2 * (gradient * p).sum(-1) + (image**2).sum(-1))
    return pick(change == 0, 0.0, divide(-change, size * size))


def scales(matrix: Tensor, before: Tensor | None) -> Tensor:
    """Return the largest norm that each column has had; next to nothing for one of zeros."""
    largest = torch.linalg.vector_norm(matrix, dim=-2)
    if before is not None:
        largest = torch.maximum(before, largest)
    # (too little to count beside what the column will have later)
    least = torch.finfo(largest.dtype).eps * largest.amax(-1, keepdim=True)
    return torch.where(largest > 0, largest, least.clamp(min=torch.finfo(largest.dtype).tiny))
