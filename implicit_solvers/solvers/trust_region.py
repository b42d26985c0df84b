"""Steps by a model of the residuals, within a region that follows the model's merit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, divide, either, everywhere, no, nowhere, pick
from implicit_solvers.hyperparameters import check_count, check_linear_solver, check_number
from implicit_solvers.iterate import IterativeSolver
from implicit_solvers.linear.choice import DENSE_LIMIT
from implicit_solvers.linear.specification import LinearSolver
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import EquationMethod

__all__ = [
    "ModelSteps",
    "Proposal",
    "ScaledRegion",
    "TrialState",
    "larger",
    "length",
    "promised",
    "scales",
]

_PAYS_WELL = 0.5


class Proposal(NamedTuple):
    """A step, its length, and by which part of itself it promises to make ``|r|^2`` less."""

    step: Tensor
    reach: Any
    promised: Any


class TrialState(NamedTuple):
    """The state of a `ModelSteps` solver.

    ``z``, ``residuals`` and ``error`` are those of the last trial until it is settled whether that
    is ``accepted``, and then those of where the lane is; ``kept`` is where it was. The ``model``
    is of there. A step is looked for within the ``radius``, infinite if it is still to be chosen;
    ``whole`` steps are beyond it. ``rejected`` counts trials in a row;
    ``size`` is ``|r|``.
    """

    z: Tensor
    residuals: Tensor
    error: Any
    flag: Any
    accepted: Mask
    kept: tuple[Any, ...]
    model: Any
    radius: Any
    rejected: Any
    whole: Mask
    size: Any = None

    def settled(self, accepted: Mask) -> TrialState:
        """Return the state where trials are accepted in some lanes, and the others have stayed."""
        z, residuals, error = pick(accepted, (self.z, self.residuals, self.error), self.kept)
        return self._replace(z=z, residuals=residuals, error=error, accepted=accepted)

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """What the backward pass may use."""
        return getattr(self.model, "factors", ())


@dataclass(frozen=True)
class ModelSteps(EquationMethod):
    """What solvers have in common that model the residuals by ``r + J p``, one trial a step.

    A trial is accepted if ``|r|^2`` falls by ``1e-4`` of what the model promised; near the minimum
    of a fit, where both drown in rounding, if the norm of the gradient falls. Where a root's model
    promises nothing any more, or too many trials in a row were rejected, the lane is STALLED.
    """

    max_steps: int = field(default=200, kw_only=True)
    linear_solver: LinearSolver | None = None

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_linear_solver(self, iterative=True)

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

    def bold(self, problem: EquationProblem, z: Tensor) -> bool:
        """Tell whether a new model's whole step is tried first, beyond the region."""
        return False

    def blank(self, problem: EquationProblem, z: Tensor, residuals: Tensor) -> Any:
        """Return a model of zeros, which a graph begins with."""
        raise NotImplementedError

    def modeled(self, problem: EquationProblem, state: TrialState) -> tuple[Any, Any]:
        """Return the model at the iterate, and a status or 0."""
        raise NotImplementedError

    def surveyed(self, state: TrialState) -> Any:
        """Return the model with what only steps within the region need."""
        return state.model

    def propose(self, problem: EquationProblem, state: TrialState) -> Proposal:
        """Return the best step within the radius, or the whole one."""
        raise NotImplementedError

    def region(self, problem: EquationProblem, state: TrialState) -> Any:
        """Return the radius of a trial."""
        raise NotImplementedError

    def resized(self, state: TrialState, radius: Any, reach: Any, ratio: Any) -> Any:
        """Return the radius after a step of length ``reach`` that kept ``ratio`` of its promise."""
        raise NotImplementedError

    def evaluated(self, problem: EquationProblem, z: Tensor) -> tuple[Tensor, Any]:
        """Return the residuals, and the norm of the condition."""
        residuals, condition = problem.residuals_and_condition(z)
        return residuals, problem.size(self.norm, condition)

    def init(self, problem: EquationProblem, z: Tensor) -> TrialState:
        """Evaluate the residuals at the start."""
        residuals, error = self.evaluated(problem, z)
        point, bold = (z, residuals, error), self.bold(problem, z)
        if problem.branches:
            return TrialState(*point, 0, True, point, None, torch.inf, 0, bold)
        none = torch.zeros_like(error, dtype=torch.int64)
        model, every = self.blank(problem, z, residuals), none == 0
        state = TrialState(*point, none, every, point, model, error + torch.inf, none, every)
        return state._replace(whole=bold and every, size=error)

    def step(self, problem: EquationProblem, state: TrialState) -> TrialState:
        """Make a trial in every lane."""
        fresh = state.accepted
        whole = both(fresh, state.whole if everywhere(fresh) else self.bold(problem, state.z))
        # the rejection of a whole step says nothing of smaller ones
        counts = both(no(fresh), no(state.whole))
        rejected = pick(fresh, 0, state.rejected + pick(counts, 1, 0))
        model, flag = state.model, state.flag
        if not nowhere(fresh):
            new, why = self.modeled(problem, state)
            model = new if model is None else pick(fresh, new, model)
            flag = pick(both(fresh, flag == 0), why, flag)
        state = state._replace(model=model, flag=flag, rejected=rejected, whole=whole)
        return self._tried(problem, state)

    def _tried(self, problem: EquationProblem, state: TrialState) -> TrialState:
        if not everywhere(state.whole):
            state = state._replace(size=problem.size(length, state.residuals))
            state = state._replace(model=self.surveyed(state))
        within = self.region(problem, state)
        proposal = self.propose(problem, state._replace(radius=within))
        step, flag = proposal.step, state.flag
        if isinstance(flag, Tensor):
            step = pick(flag == 0, step, 0.0)  # lanes that end stay where they are
        z = state.z + step
        residuals, error = self.evaluated(problem, z)
        accepted: Mask = False
        if not nowhere(state.whole):
            accepted = error <= _PAYS_WELL * state.error
        radius = state.radius
        if not everywhere(state.whole):
            size = divide(problem.size(length, residuals), state.size)
            pays, ratio, stuck = _weighed(problem, state, error, proposal.promised, 1 - size * size)
            if not everywhere(pays):
                stuck = either(stuck, problem.size(length, z - state.z) == 0)
            radius = self.resized(state, within, proposal.reach, ratio)
            stuck = both(either(stuck, state.rejected > self.trials), no(state.whole))
            # a budget's lane stays where no step pays
            stalled = 0 if self.rtol is None else int(Status.STALLED)
            known = proposal.promised == proposal.promised
            why = pick(known, stalled, int(Status.NONFINITE))
            flag = pick(both(stuck, flag == 0), why, flag)
            accepted = pick(state.whole, accepted, both(pays, no(stuck)))
            radius = pick(state.whole, state.radius, radius)
        kept = (state.z, state.residuals, state.error)
        return state._replace(
            z=z,
            residuals=residuals,
            error=error,
            flag=flag,
            accepted=accepted,
            kept=kept,
            radius=radius,
        )


@dataclass(frozen=True)
class ScaledRegion(ModelSteps):
    """Steps ``p`` in ``|D p| <= radius``, where ``D`` is the ``scale`` of the model.

    Parameters
    ----------
    first_radius
        The first radius, over the larger of ``|D z|`` and ``|r|``.
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

    def region(self, problem: EquationProblem, state: TrialState) -> Any:
        """Return the radius of a trial."""
        unset = state.radius == torch.inf
        if everywhere(state.whole) or nowhere(unset):
            return state.radius
        start = problem.size(length, state.model.scale * state.z)
        first = self.first_radius * larger(start, state.size)
        return pick(unset, first, state.radius)

    def resized(self, state: TrialState, radius: Any, reach: Any, ratio: Any) -> Any:
        """Return the radius after a step of length ``reach`` that kept ``ratio`` of its promise.

        Less than a tenth: half of the step. More than half: twice the step, or ten times if it was
        nine tenths, and no less than before. Source: Powell, "A hybrid method for nonlinear
        equations" (1970), and MINPACK's HYBRJ; the factor of ten spares doublings of a first
        radius that was too small.
        """
        changed = pick(ratio >= 0.5, self.grown(state, radius, reach, ratio), radius)
        return pick(ratio < 0.1, 0.5 * pick(reach < radius, reach, radius), changed)

    def grown(self, state: TrialState, radius: Any, reach: Any, ratio: Any) -> Any:
        """Return the radius after a step that kept more than half of its promise."""
        grown = pick(ratio >= 0.9, 10 * reach, 2 * reach)
        # the first radius was a guess: the first step says more
        return pick(state.radius == torch.inf, grown, larger(radius, grown))


def _weighed(
    problem: EquationProblem,
    state: TrialState,
    error: Any,
    promised: Any,
    actual: Any,
) -> tuple[Mask, Any, Mask]:
    """Return whether a step pays, the part of its promise that it kept, and whether none will."""
    eps = torch.finfo(state.z.dtype).eps
    ratio = divide(actual, promised)
    pays = ratio >= 1e-4
    least = eps**0.5
    if problem.fits:
        drowned = both(promised <= least, abs(actual) <= least)
        pays = pick(both(drowned, actual <= 100 * eps), error < state.error, pays)
        middle = pick(ratio >= 0.1, pick(ratio <= 0.4, ratio, 0.4), 0.1)
        ratio, least = pick(drowned, middle, ratio), 0.0
    return pays, pick(pays, ratio, 0.0), no(promised > least)


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
    return s, s * (residuals.unsqueeze(-2) @ u).squeeze(-2), vh


def promised(
    problem: EquationProblem, size: Any, gradient: Tensor, p: Tensor, image: Tensor
) -> Any:
    """Return by which part of itself ``|r + J p|^2`` is less than ``|r|^2``; ``image = J p``.

    ``size`` is ``|r|``.
    """
    # not as a difference of the two, which drowns in rounding near a minimum
    change = problem.number(2 * (gradient * p).sum(-1) + (image**2).sum(-1))
    return pick(change == 0, 0.0, divide(-change, size * size))


def larger(a: Any, b: Any) -> Any:
    """Return the larger of two numbers in each lane."""
    return pick(a > b, a, b)


def scales(matrix: Tensor, before: Tensor | None) -> Tensor:
    """Return the largest norm that each column has had; one for a column of zeros."""
    largest = torch.linalg.vector_norm(matrix, dim=-2)
    if before is not None:
        largest = torch.maximum(before, largest)
    return torch.where(largest > 0, largest, 1.0)
