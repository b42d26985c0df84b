"""Descent: what minimizers have in common, and those that search along a line."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, divide, no, nowhere, pick
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solvers.damped import Damped, DampedState, Point

__all__ = ["FARTHEST", "Descent", "Minimizer", "dot", "first_length", "times"]

FARTHEST = 10.0
"""So many times the size of ``z`` is as far as a step goes that knows no better."""


class Minimizer(Damped):
    """Steps down an objective."""

    def evaluate(self, problem: EquationProblem, z: Tensor) -> Point:
        """Evaluate objective and gradient; an objective that is not finite is no place to be."""
        value, gradient = self.objective(problem, z)
        error, value = problem.size(self.norm, gradient), problem.number(value)
        return Point(z, gradient, pick(abs(value) < math.inf, error, math.nan), value)

    def objective(self, problem: EquationProblem, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is to be least and its gradient."""
        return problem.value_and_gradient(z)


class Descent(Minimizer):
    """Steps down a line: a solver gives the direction, its ``line_search`` the length."""

    line_search: Any

    def lenient(self, state: DampedState, length: Any) -> Mask:
        """Tell where any fall will do, whatever the slope."""
        return False

    def start(self, problem: EquationProblem, state: DampedState, length: Any) -> tuple[Any, Any]:
        """Begin a search with the slope of the objective along the direction."""
        slope, eps = self._slope(problem, state), torch.finfo(state.z.dtype).eps
        lenient = self.lenient(state, length)
        return length, self.line_search.begin(state.value, slope, eps, lenient)

    def again(self, state: DampedState) -> tuple[Any, Any, Mask]:
        """Let the search choose another length."""
        return self.line_search.again(state.search)

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Let the search judge."""
        line, length = state.search, state.length
        trial = line.trial._replace(
            length=length, value=state.value, slope=self._slope(problem, state)
        )
        line = line._replace(trial=trial, tried=line.tried + 1)
        accepted, low = self.line_search.judge(line, state.error < math.inf)
        return state._replace(accepted=accepted, search=line._replace(low=low))

    def _slope(self, problem: EquationProblem, state: DampedState) -> Any:
        return -dot(problem, state.direction, state.residual)

    def stopped(self, state: DampedState, stuck: Mask) -> Any:
        """Return the flags, with STALLED where lanes are stuck; a budget judges nothing."""
        if self.rtol is None or nowhere(stuck):
            return state.flag
        return pick(stuck, int(Status.STALLED), state.flag)


def dot(problem: EquationProblem, a: Tensor, b: Tensor) -> Any:
    """Return the inner product of each lane."""
    return problem.number((a * b).sum(-1))


def times(factor: Any, v: Tensor) -> Tensor:
    """Return a multiple of each lane of ``v (N, ...)``."""
    return v * (factor.reshape(-1, *(1,) * (v.dim() - 1)) if isinstance(factor, Tensor) else factor)


def first_length(problem: EquationProblem, solver: Any, z: Tensor, gradient: Tensor) -> Any:
    """Return how much of the gradient leads to the least on a line, if that is a parabola.

    It is at most ten times the size of ``z``.
    """
    size, scale = problem.size(solver.norm, gradient), problem.scale(solver, z)
    size = pick(size > 0, size, 1.0)
    unit = times(1.0 / size, gradient)
    bend = divide(abs(dot(problem, unit, problem.linearize(z).mv(unit))), dot(problem, unit, unit))
    most = FARTHEST * scale / size
    length = pick(bend > 0, divide(1.0, bend), pick(scale > 0, most, 1.0 / size))
    return pick(both(scale > 0, no(length < most)), most, length)
