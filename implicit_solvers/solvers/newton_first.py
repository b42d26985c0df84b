"""Newton's steps first, and steps within a region where these do not pay: a phase in each lane.

What the steps within a region are, it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import (
    Mask,
    along,
    both,
    either,
    everywhere,
    no,
    nowhere,
    pick,
    settle,
)
from implicit_solvers.linear.lu import LU
from implicit_solvers.outcome import DIGIT, ROUNDINGS
from implicit_solvers.problem import EquationProblem
from implicit_solvers.rounding import patterns
from implicit_solvers.solution import Status
from implicit_solvers.solver import Factors
from implicit_solvers.solvers.damped import Aim, DampedState, Point
from implicit_solvers.solvers.newton import Trial, begun, first_length, measured, shortened
from implicit_solvers.solvers.trust_region import ScaledRegion, scales

__all__ = ["Linear", "NewtonFirst"]

_SHORTEST = 1e-3


class Linear(NamedTuple):
    """A Jacobian and its factors; the way is laid where Newton's steps do not pay."""

    scale: Tensor
    matrix: Tensor
    factors: Factors


class Along(NamedTuple):
    """Where a lane goes ``along`` Newton's step, and whether it ``damps`` that; its last trial."""

    along: Mask
    damps: Mask
    trial: Trial | None


@dataclass(frozen=True)
class NewtonFirst(ScaledRegion):
    """Newton's steps by the factors of a root's Jacobian, and else those within a region.

    A whole step is tried at each new model, and accepted if it halves ``|F|``. Lanes that begin
    with damped steps (``damps``) try shorter ones too, and accept them as `Factored` does, until
    the length is below a thousandth; from then on they damp no more. Where Newton's step is no
    longer than twenty times what rounding makes of it, a lane ends.
    """

    damps: ClassVar[bool] = False

    def bold(self, problem: EquationProblem, z: Tensor) -> bool:
        """Tell whether Newton's steps are tried first: where a root's Jacobian is factored."""
        raise NotImplementedError

    def init(self, problem: EquationProblem, z: Tensor) -> DampedState:
        """Evaluate at the start."""
        state = super().init(problem, z)
        return begun(self, problem, state) if self.bold(problem, z) else state

    def evaluate(self, problem: EquationProblem, z: Tensor) -> Point:
        """Evaluate the residuals; `pays` tells how large a root's are."""
        if not self.bold(problem, z):
            return super().evaluate(problem, z)
        residual = problem.residual_to_factor(z)
        error = None if problem.branches else problem.size(self.norm, residual)
        return Point(z, residual, error)

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Linearize where a trial was accepted, and find Newton's step."""
        aim = super().aim(problem, state, tired)
        if not self.bold(problem, state.z):
            return aim
        r = state.residual.unsqueeze(-1)
        return aim._replace(direction=LU().solve(aim.memory.factors, r, False).squeeze(-1))

    def start(self, problem: EquationProblem, state: DampedState, length: Any) -> tuple[Any, Any]:
        """Try Newton's step first."""
        length, region = super().start(problem, state, length)
        if not self.bold(problem, state.z):
            return length, region
        newton = region.newton
        if newton is None:
            always = True if problem.branches else region.kicks == 0
            damps = always if self.damps else no(always)
            newton = Along(always, damps, None)
        length, trial = first_length(self, problem, state, newton.trial, length)
        short = both(newton.damps, length < _SHORTEST)
        newton = Along(no(short), both(newton.damps, no(short)), trial)
        return pick(short, 1.0, length), region._replace(newton=newton)

    def again(self, state: DampedState) -> tuple[Any, Any, Mask]:
        """Shorten Newton's step, or go on within the region."""
        length, region, _ = super().again(state)
        newton = region.newton
        if newton is None or nowhere(newton.along):
            return length, region, False
        shorter = shortened(self, state, newton.trial)
        shortens = both(newton.damps, both(shorter >= _SHORTEST, newton.trial.size < torch.inf))
        shortens = both(newton.along, shortens)
        over = both(newton.along, no(shortens))
        length = pick(shortens, shorter, pick(over, 1.0, length))
        rejected = pick(newton.along, 0, region.rejected)
        newton = newton._replace(along=shortens, damps=both(newton.damps, no(over)))
        return length, region._replace(newton=newton, rejected=rejected), False

    def ahead(self, problem: EquationProblem, state: DampedState) -> tuple[Tensor, DampedState]:
        """Go along Newton's step, or along the way within the region."""
        region, memory = state.search, state.memory
        if region.newton is None:
            return super().ahead(problem, state)
        free = region.newton.along
        if problem.branches and isinstance(free, Tensor):
            _, (free,) = settle(len(free), free)
            region = region._replace(newton=region.newton._replace(along=free))
            state = state._replace(search=region)
        z = along(state.z, -state.length, state.direction)
        if everywhere(free):
            return z, state
        drowned = both(state.flag == 0, self._drowned(problem, state))
        flag = pick(drowned, int(Status.STALLED), state.flag)
        memory = memory._replace(scale=scales(memory.matrix, memory.scale))
        within, new = super().ahead(problem, state._replace(memory=memory, flag=flag))
        return pick(free, (z, state), (within, new))

    def _drowned(self, problem: EquationProblem, state: DampedState) -> Mask:
        """Tell where Newton's step is what rounding makes of it."""
        z, r, (_, matrix, factors) = state.z, state.residual, state.memory
        terms = (matrix.abs() @ z.abs().unsqueeze(-1)).squeeze(-1) + r.abs()
        noise = (torch.finfo(z.dtype).eps * patterns(z)[0] * terms).unsqueeze(-1)
        noise = LU().solve(factors, noise, False).squeeze(-1)
        size, least = problem.sizes(self.norm, state.direction, noise)
        digit = DIGIT * problem.scale(self, z)
        ends = either(size + least <= digit, both(least > digit, least < torch.inf))
        return both(self.rtol is not None, both(size <= ROUNDINGS * least, ends))

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Tell where the step that would follow is short enough, or keeps its promise."""
        region, memory = state.search, state.memory
        newton = region.newton
        if newton is None:
            return super().pays(problem, state)
        free = newton.along
        if nowhere(free):
            state = state._replace(error=problem.size(self.norm, state.residual))
        else:
            tried, trial = measured(self, problem, state, LU(), memory.factors)
            falls = either(tried.error <= 0.5 * state.kept.error, tried.estimate == 0)
            accepted = pick(newton.damps, tried.accepted, falls)
            search = region._replace(newton=newton._replace(trial=trial))
            tried = tried._replace(accepted=accepted, search=search)
            if everywhere(free):
                return tried
            state = state._replace(error=tried.error, search=search)
        estimate = pick(state.error == 0, 0.0, 0 * state.error + torch.inf)
        within = super().pays(problem, state._replace(estimate=estimate))
        within = within._replace(accepted=both(within.accepted, within.flag == 0))
        return within if nowhere(free) else pick(free, tried, within)
