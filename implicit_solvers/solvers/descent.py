"""Descent: what minimizers have in common, and those that search along a line, or an arc.

Where directions come from, it does not know.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, divide, either, no, nowhere, pick
from implicit_solvers.problem import EquationProblem
from implicit_solvers.ranks import summed
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
        error = problem.size(self.norm, problem.projected(z, gradient))
        value = problem.number(value)
        return Point(z, gradient, pick(abs(value) < math.inf, error, math.nan), value)

    def objective(self, problem: EquationProblem, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is to be least and its gradient."""
        return problem.value_and_gradient(z)


class Descent(Minimizer):
    """Steps down a line: a solver gives the direction, its ``line_search`` the length.

    Between bounds the trials ``P(z - t p)`` lie on an arc, and a search that shortens steps judges
    each by the slopes along the chord to it. Source: Bertsekas, "Projected Newton Methods for
    Optimization Problems with Simple Constraints", SIAM J. Control Optim. 20 (1982).
    """

    line_search: Any

    def init(self, problem: EquationProblem, z: Tensor) -> DampedState:
        """Evaluate at the start."""
        if problem.bounds is not None and not self.line_search.bends:
            name = type(self.line_search).__name__
            raise ValueError(
                f"line_search={name}() of {type(self).__name__} is for lines, and bounds bend "
                "them: use Backtracking()"
            )
        return super().init(problem, z)

    def lenient(self, state: DampedState, length: Any) -> Mask:
        """Tell where any fall will do, whatever the slope."""
        return False

    def start(self, problem: EquationProblem, state: DampedState, length: Any) -> tuple[Any, Any]:
        """Begin a search with the slope of the objective along the direction."""
        moves = problem.movable(state.z, state.direction)
        slope, eps = -dot(problem, moves, state.residual), torch.finfo(state.z.dtype).eps
        lenient = self.lenient(state, length)
        return length, self.line_search.begin(state.value, slope, eps, lenient)

    def again(self, state: DampedState) -> tuple[Any, Any, Mask]:
        """Let the search choose another length."""
        return self.line_search.again(state.search)

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Let the search judge."""
        line, length, finite = state.search, state.length, state.error < math.inf
        if isinstance(length, Tensor):
            length = length.to(state.z.dtype)
        if problem.bounds is None:
            slope = -dot(problem, state.direction, state.residual)
        else:
            chord, ends = state.z - state.kept.z, (state.kept.residual, state.residual)
            before, slope = (divide(dot(problem, chord, end), length) for end in ends)
            line = line._replace(start=line.start._replace(slope=before))
            finite = both(finite, before <= 0)
            far = torch.finfo(state.z.dtype).max ** 0.4  # squares of more than its square overflow
            runs = either(state.value == -math.inf, problem.scale(self, state.z) > far)
            runs = both(runs, both(state.flag == 0, self.rtol is not None))
            state = state._replace(flag=pick(runs, int(Status.UNBOUNDED), state.flag))
        trial = line.trial._replace(length=length, value=state.value, slope=slope)
        line = line._replace(trial=trial, tried=line.tried + 1)
        accepted, low = self.line_search.judge(line, finite)
        return state._replace(accepted=accepted, search=line._replace(low=low), length=length)

    def stopped(self, state: DampedState, stuck: Mask) -> Any:
        """Return the flags, with STALLED where lanes are stuck; a budget judges nothing."""
        if self.rtol is None or nowhere(stuck):
            return state.flag
        return pick(stuck, int(Status.STALLED), state.flag)


def dot(problem: EquationProblem, a: Tensor, b: Tensor) -> Any:
    """Return the inner product of each lane."""
    return problem.number(summed((a * b).sum(-1)))


def times(factor: Any, v: Tensor) -> Tensor:
    """Return a multiple of each lane of ``v (N, ...)``."""
    return v * (factor.reshape(-1, *(1,) * (v.dim() - 1)) if isinstance(factor, Tensor) else factor)


def first_length(
    problem: EquationProblem, solver: Any, z: Tensor, gradient: Tensor, hessian: Any = None
) -> Any:
    """Return how much of the gradient leads to the least on a line, if that is a parabola.

    It is at most ten times the size of ``z``.
    """
    hessian = problem.linearize_slope(z) if hessian is None else hessian
    size, scale = problem.size(solver.norm, gradient), problem.scale(solver, z)
    size = pick(size > 0, size, 1.0)
    unit = times(1.0 / size, gradient)
    image = hessian.mv(unit)
    bend = divide(abs(dot(problem, unit, image)), dot(problem, unit, unit))
    most = FARTHEST * scale / size
    length = pick(bend > 0, divide(1.0, bend), pick(scale > 0, most, 1.0 / size))
    return pick(both(scale > 0, no(length < most)), most, length)
