"""Damped steps: shorter ones along a direction until the residual falls, one trial a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, along, both, either, everywhere, no, nowhere, pick
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solver import EquationMethod

__all__ = ["Aim", "Damped", "DampedState"]

_FULL = 1.0


class Aim(NamedTuple):
    """What a full step takes from ``z (N, n)``, what the solver remembers, and a status or 0."""

    direction: Tensor
    memory: Any
    flag: Any


class DampedState(NamedTuple):
    """The state of a `Damped` solver.

    ``z``, ``residual`` and ``error`` are those of the last trial until it is settled whether that
    is ``accepted``, and then those of where the lane is; ``kept`` is where it was. A trial goes
    back ``length`` times the ``direction``. ``limit`` is what ``error`` must fall below.
    """

    z: Tensor
    residual: Tensor
    error: Any
    flag: Any
    accepted: Mask
    kept: tuple[Any, ...]
    direction: Any
    length: Any
    memory: Any

    def settled(self, accepted: Mask) -> DampedState:
        """Return the state where trials are accepted in some lanes, and the others have stayed."""
        z, residual, error = pick(accepted, (self.z, self.residual, self.error), self.kept)
        return self._replace(z=z, residual=residual, error=error, accepted=accepted)

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """What the backward pass may use."""
        return self.memory.factors


@dataclass(frozen=True)
class Damped(EquationMethod):
    """What solvers have in common that step along a direction, and halve the step until it pays.

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

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> Any:
        """Return what the solver remembers at the start."""
        raise NotImplementedError

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Return a direction for lanes that accepted their trial, or are ``tired`` of theirs."""
        raise NotImplementedError

    def tries(self, state: DampedState) -> Any:
        """Return how often a lane may halve its step."""
        return self.halvings

    def hopeless(self, state: DampedState) -> Mask:
        """Tell in which lanes no step along the direction can pay."""
        return False

    def limit(self, state: DampedState) -> Any:
        """Return what the error must fall below."""
        return state.error

    def residual(self, problem: EquationProblem, z: Tensor) -> Tensor:
        """Return the residual."""
        return problem.residual(z)

    def init(self, problem: EquationProblem, z: Tensor) -> DampedState:
        """Evaluate the residual at the start."""
        residual = self.residual(problem, z)
        error = problem.size(self.norm, residual)
        accepted: Mask = True
        length: Any = _FULL
        flag: Any = 0
        direction: Any = None
        if not problem.branches:
            accepted = torch.ones_like(error, dtype=torch.bool)
            length, flag = torch.ones_like(error), torch.zeros_like(error, dtype=torch.int64)
            direction = torch.zeros_like(z)
        memory = self.begin(problem, z, residual)
        kept = (z, residual, error)
        return DampedState(z, residual, error, flag, accepted, kept, direction, length, memory)

    def step(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Make a trial in every lane."""
        accepted, length = state.accepted, state.length
        tired: Mask = False
        if everywhere(accepted):
            length = _FULL
        else:
            length = pick(accepted, _FULL, 0.5 * length)
            short = either(length < 0.5 ** self.tries(state), self.hopeless(state))
            tired = both(short, no(accepted))
            length = pick(tired, _FULL, length)
        turns = either(accepted, tired)
        if not nowhere(turns):
            new, memory, flag = self.aim(problem, state, tired)
            old = new if state.direction is None else state.direction
            new = pick(turns, new, old)
            if isinstance(flag, Tensor):
                new = pick(flag == 0, new, 0.0)  # lanes that end stay where they are
            state = state._replace(direction=new, memory=memory, flag=flag)
        z = along(state.z, -length, state.direction)
        residual = self.residual(problem, z)
        error, accepted = problem.size(self.norm, residual), True
        if self.halvings > 0:
            limit, fall = self.limit(state), 1e-4 * length
            least = (1 - fall) * limit if limit is state.error else limit - fall * state.error
            accepted = error <= least
        elif not problem.branches:
            accepted = torch.ones_like(error, dtype=torch.bool)
        kept = (state.z, state.residual, state.error)
        return state._replace(
            z=z, residual=residual, error=error, accepted=accepted, kept=kept, length=length
        )
