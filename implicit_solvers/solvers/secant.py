"""Descent along directions that learn from steps and from what these change of the gradient.

It knows no Hessian, one product at the start aside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, divide, either, no, nowhere, pick
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solvers.damped import Aim, DampedState
from implicit_solvers.solvers.descent import Descent, dot, first_length, times
from implicit_solvers.solvers.line_search import LineSearch, StrongWolfe

__all__ = ["Pair", "SecantDescent", "SecantMemory"]

_DOUBT, _LONGER = 2.0, 4.0


class Pair(NamedTuple):
    """A step ``s`` to ``z``, the change ``y`` of the gradient, and ``s.y``: 1 if not ``kept``."""

    s: Tensor
    y: Tensor
    sy: Any
    kept: Mask
    z: Tensor


class SecantMemory(NamedTuple):
    """What is remembered: what a solver has ``learned``, and the next direction.

    Gradients are multiplied by ``unit``, so that they have the unit of ``z``. ``scale`` is ``s.y /
    y.y`` of the newest pair, and ``fresh`` tells where there are no pairs.
    """

    unit: Any
    learned: Tensor
    scale: Any
    direction: Tensor
    fresh: Mask


@dataclass(frozen=True)
class SecantDescent(Descent):
    """What solvers have in common that learn from pairs of a step and the change of the gradient.

    Before there is a pair, the curvature along the gradient tells the length, by one product with
    the Hessian. A pair is kept where ``s.y`` is positive beyond rounding. A lane whose search fails
    forgets what it has learned and goes down the gradient; if that fails too it is STALLED. Twice
    the size of the next step estimates the error.
    """

    max_steps: int = field(default=2000, kw_only=True)
    # (Dynamo cannot make an instance whose default is an object)
    line_search: LineSearch = field(default_factory=lambda: StrongWolfe(), kw_only=True)

    def nothing(self, z: Tensor) -> Tensor:
        """Return what is learned at the start."""
        raise NotImplementedError

    def learn(
        self, problem: EquationProblem, memory: SecantMemory, pair: Pair, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what is learned with a pair, and the direction; ``memory.scale`` is the pair's."""
        raise NotImplementedError

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> SecantMemory:
        """Remember no pairs, and the curvature along the gradient."""
        unit = first_length(problem, self, z, problem.projected(z, residual))
        one: Any = 1.0
        fresh: Mask = True
        if not problem.branches:
            one, fresh = torch.ones_like(unit), torch.ones_like(unit, dtype=torch.bool)
        return SecantMemory(unit, self.nothing(z), one, times(unit, residual), fresh)

    def init(self, problem: EquationProblem, z: Tensor) -> DampedState:
        """Evaluate at the start, and estimate the error by the first step."""
        return self._estimated(problem, super().init(problem, z))

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Go along the direction; forget what was learned where that does not pay."""
        memory = state.memory
        flag = self.stopped(state, both(tired, memory.fresh))
        if not nowhere(tired):
            scale, fresh = memory.scale, either(tired, memory.fresh)
            down = times(scale * memory.unit, state.residual)
            forgotten = SecantMemory(memory.unit, self.nothing(state.z), scale, down, fresh)
            memory = pick(tired, forgotten, memory)
        return Aim(memory.direction, memory, flag)

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Let the search judge; the next step estimates the error."""
        state = super().pays(problem, state)
        return self._estimated(problem, state._replace(memory=self._learned(problem, state)))

    def _estimated(self, problem: EquationProblem, state: DampedState) -> DampedState:
        z, direction = state.z, state.memory.direction
        estimate = _DOUBT * problem.size(self.norm, problem.step(z, direction))
        if problem.bounds is not None:
            # what a step brings to its bound, however near, is not held there yet
            there = problem.within(z - direction)
            stops = ((there != z - direction) & (there != z)).any(-1)
            estimate = pick(problem.number(stops), math.inf, estimate)
        return state._replace(estimate=estimate)

    def _learned(self, problem: EquationProblem, state: DampedState) -> SecantMemory:
        memory, accepted, line = state.memory, state.accepted, state.search
        if nowhere(accepted):
            return memory
        s, y = state.z - state.kept.z, times(memory.unit, state.residual - state.kept.residual)
        bend = line.trial.slope - line.start.slope
        keep = bend > -torch.finfo(s.dtype).eps * line.start.slope
        sy = pick(keep, state.length * memory.unit * bend, 1.0)
        longer = memory.scale
        if problem.bounds is not None:
            # no search looks beyond a step that does not curve upwards
            longer = pick(state.length == 1, _LONGER * longer, longer)
        scale = pick(keep, divide(sy, dot(problem, y, y)), longer)
        new = memory._replace(scale=scale)
        gradient = times(memory.unit, state.residual)
        learned, direction = self.learn(problem, new, Pair(s, y, sy, keep, state.z), gradient)
        new = new._replace(learned=learned, direction=direction, fresh=both(memory.fresh, no(keep)))
        return pick(accepted, new, memory)
