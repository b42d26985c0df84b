"""Damped steps: a direction, and lengths along it until one pays, one trial a step.

Where directions come from, it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, along, both, either, everywhere, no, nowhere, pick
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solver import EquationMethod

__all__ = ["Aim", "Damped", "DampedState", "Halving", "Point", "always"]

_FULL = 1.0


class Aim(NamedTuple):
    """What a full step takes from ``z (N, n)``, what the solver remembers, and a status or 0.

    ``length`` is how much of the step is tried first.
    """

    direction: Tensor
    memory: Any
    flag: Any
    length: Any = _FULL


class Point(NamedTuple):
    """An iterate, its residual and its error; and its objective, where one is reduced."""

    z: Tensor
    residual: Tensor
    error: Any
    value: Any = None


class DampedState(NamedTuple):
    """The state of a `Damped` solver.

    ``z``, ``residual``, ``error`` and ``value`` are those of the last trial until it is settled
    whether that is ``accepted``, and then those of where the lane is; ``kept`` is where it was. The
    solver's own ``estimate`` of the error of ``z`` is None if it has none. A trial goes back
    ``length`` times the ``direction``; ``search`` is what is known of this line.
    """

    z: Tensor
    residual: Tensor
    error: Any
    value: Any
    flag: Any
    estimate: Any
    accepted: Mask
    kept: Point
    direction: Any
    length: Any
    search: Any
    memory: Any

    def settled(self, accepted: Mask) -> DampedState:
        """Return the state where trials are accepted in some lanes, and the others have stayed."""
        return self._replace(**pick(accepted, self.point, self.kept)._asdict(), accepted=accepted)

    @property
    def point(self) -> Point:
        """The last trial, or where the lane is."""
        return Point(*self[:4])


class Damped(EquationMethod):
    """What solvers have in common that search along a direction until a length pays.

    Two parts make a solver: one that aims, and remembers (`begin`, `aim`); and one that searches
    (`evaluate`, `start`, `again`, `ahead`, `pays`).
    """

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> Any:
        """Return what the solver remembers at the start."""
        raise NotImplementedError

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Return a direction for lanes that accepted their trial, or are ``tired`` of theirs."""
        raise NotImplementedError

    def evaluate(self, problem: EquationProblem, z: Tensor) -> Point:
        """Evaluate all that is asked of a trial."""
        raise NotImplementedError

    def start(self, problem: EquationProblem, state: DampedState, length: Any) -> tuple[Any, Any]:
        """Return the length to try first along a new direction, and what is known of its line."""
        raise NotImplementedError

    def again(self, state: DampedState) -> tuple[Any, Any, Mask]:
        """Return the length to try after one that did not pay, and where there is none."""
        raise NotImplementedError

    def ahead(self, problem: EquationProblem, state: DampedState) -> tuple[Tensor, DampedState]:
        """Return where to try."""
        return problem.within(along(state.z, -state.length, state.direction)), state

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Return the state with the lanes in which the trial is accepted, and what it showed."""
        raise NotImplementedError

    def init(self, problem: EquationProblem, z: Tensor) -> DampedState:
        """Evaluate at the start."""
        point, flag = self.evaluate(problem, problem.within(z)), problem.flags()
        memory = self.begin(problem, point.z, point.residual)
        state = DampedState(*point, flag, None, True, point, None, _FULL, None, memory)
        if problem.branches:
            return state
        one, direction = z.new_ones(len(z)), torch.zeros_like(z)
        flag = flag + torch.zeros_like(one, dtype=torch.int64)
        state = state._replace(flag=flag, accepted=one > 0, direction=direction)
        length, search = self.start(problem, state, one)
        return state._replace(length=length, search=search)

    def step(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Make a trial in every lane."""
        accepted, length, search = state.accepted, state.length, state.search
        tired: Mask = False
        if not everywhere(accepted):
            length, search, spent = self.again(state)
            tired = both(spent, no(accepted))
        turns = either(accepted, tired)
        if not nowhere(turns):
            new, memory, flag, first = self.aim(problem, state, tired)
            old = new if state.direction is None else state.direction
            new = pick(turns, new, old)
            state = state._replace(direction=new, memory=memory, flag=flag)
            length, search = pick(turns, self.start(problem, state, first), (length, search))
        state = state._replace(length=length, search=search)
        z, state = self.ahead(problem, state)
        if isinstance(state.flag, Tensor):
            z = pick(state.flag == 0, z, state.z)  # lanes that end stay where they are
        trial = self.evaluate(problem, z)
        state = state._replace(**trial._asdict(), kept=state.point)
        return self.pays(problem, state)


@dataclass(frozen=True)
class Halving(Damped):
    """Search by halves: the step is halved until the residual falls.

    A trial is accepted if ``norm(F(z - t p)) <= limit - 1e-4 t norm(F(z))``, where the ``limit``
    is ``norm(F(z))``, and else ``t`` is half as long in the next. Source: Dennis and Schnabel,
    "Numerical Methods for Unconstrained Optimization and Nonlinear Equations", section 6.3.

    Parameters
    ----------
    halvings
        How many times the step length may be halved; 0 takes full steps always.
    """

    halvings: int = field(default=30, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "halvings")

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        """Whether the error never grows."""
        return self.halvings > 0

    def tries(self, state: DampedState) -> Any:
        """Return how often a lane may halve its step."""
        return self.halvings

    def hopeless(self, state: DampedState) -> Mask:
        """Tell in which lanes no step along the direction can pay."""
        return False

    def limit(self, state: DampedState) -> Any:
        """Return what the error must fall below."""
        return state.kept.error

    def residual(self, problem: EquationProblem, z: Tensor) -> Tensor:
        """Return the residual."""
        return problem.residual(z)

    def evaluate(self, problem: EquationProblem, z: Tensor) -> Point:
        """Evaluate the residual."""
        residual = self.residual(problem, z)
        return Point(z, residual, problem.size(self.norm, residual))

    def start(self, problem: EquationProblem, state: DampedState, length: Any) -> tuple[Any, Any]:
        """Try the whole step first."""
        return length, None

    def again(self, state: DampedState) -> tuple[Any, Any, Mask]:
        """Halve the step."""
        length = 0.5 * state.length
        return length, None, either(length < 0.5 ** self.tries(state), self.hopeless(state))

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Tell where the residual falls enough."""
        error, before = state.error, state.kept.error
        if self.halvings == 0:
            return state._replace(accepted=always(problem, error))
        limit, fall = self.limit(state), 1e-4 * state.length
        least = (1 - fall) * limit if limit is before else limit - fall * before
        return state._replace(accepted=error <= least)


def always(problem: EquationProblem, sizes: Any) -> Mask:
    """Return the mask of a trial that is accepted whatever it leaves, as a tensor in a graph."""
    return True if problem.branches else torch.ones_like(sizes, dtype=torch.bool)
