"""The one loop: lanes step together, and each converges, stops and fails on its own."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from implicit_solvers.solution import Status, failed
from implicit_solvers.tolerance import Auto

__all__ = ["IterativeSolver", "LaneProblem", "Outcome", "State", "iterate"]

_RUNNING = -1


class State(Protocol):
    """What a solver carries from step to step: a named tuple of tensors ``(N, ...)`` and numbers.

    ``z`` is the iterate ``(N, n)``, ``error`` the norm of its residual ``(N,)``, and ``flag`` a
    `Status` ``(N,)`` that ends a lane which has not converged (0: go on).
    """

    @property
    def z(self) -> Tensor:
        """The iterate."""

    @property
    def error(self) -> Tensor:
        """The norm of the residual at the iterate."""

    @property
    def flag(self) -> Tensor:
        """A status that ends the lane, or 0."""


class LaneProblem(Protocol):
    """N problems of one shape, as a solver's `init` and `step` see them."""

    @property
    def separable(self) -> bool:
        """Whether `take` can select lanes."""

    def tolerance(self, solver: Any, z: Tensor) -> Tensor:
        """Return the error at or below which each lane has converged."""

    def take(self, index: Tensor) -> Any:
        """Return the problem of some of the lanes."""


class IterativeSolver(Protocol):
    """A method: hyperparameters, a start, and a step.

    A solver whose error never grows says ``monotone = True``, so that the loop need not remember
    the best iterate of a lane that fails. A solver whose state must change its form between steps
    (to grow, to start again) does so in ``refresh(problem, state)``, for all lanes, those that
    have ended included, without moving their iterates.
    """

    monotone: ClassVar[bool]

    @property
    def rtol(self) -> float | Auto | None:
        """The relative tolerance; None for a budget."""

    @property
    def atol(self) -> float | Auto:
        """The absolute tolerance."""

    @property
    def max_steps(self) -> int:
        """The number of steps allowed."""

    @property
    def compact(self) -> bool:
        """Whether lanes that ended leave the computation."""

    def init(self, problem: Any, z: Tensor) -> Any:
        """Return the state at the start."""

    def step(self, problem: Any, state: Any) -> Any:
        """Return the state one step later."""


class Outcome(NamedTuple):
    """How the lanes ended: tensors ``(N, ...)``; ``factors`` are those of the final state."""

    z: Tensor
    status: Tensor
    iterations: Tensor
    error: Tensor
    factors: tuple[Tensor, ...] = ()


def iterate(solver: IterativeSolver, problem: LaneProblem, z: Tensor) -> Outcome:
    """Step from ``z (N, n)`` until every lane has converged, failed, or used its steps up.

    A lane that has ended keeps its state. When at most half of the lanes are left, they go on
    without the others (unless the solver says ``compact=False``). A lane that failed returns its
    best iterate; with ``rtol=None`` exactly ``max_steps`` steps are made and the last is returned.
    """
    budget = solver.rtol is None
    refresh = getattr(solver, "refresh", None)
    state = solver.init(problem, z)
    status = torch.full((len(z),), _RUNNING, dtype=torch.int64, device=z.device)
    iterations = torch.zeros_like(status)
    best_z, best_error = state.z, state.error
    places: Tensor | None = None
    full: tuple[Tensor, ...] | None = None

    for step in range(solver.max_steps + 1):
        status = torch.where(status == _RUNNING, _judge(solver, problem, state, budget), status)
        running = status == _RUNNING
        left = int(running.sum())
        if left == 0:
            break
        if step == solver.max_steps:
            out_of_steps = Status.BUDGET if budget else Status.MAX_STEPS
            status = torch.where(running, int(out_of_steps), status)
            break
        if solver.compact and problem.separable and 2 * left <= len(status):
            ended = _result(state, status, iterations, best_z, best_error)
            keep = running.nonzero().squeeze(-1)
            if full is None:
                full, places = tuple(t.clone() for t in ended), keep
            else:
                assert places is not None
                _scatter(full, places, ended)
                places = places[keep]
            problem, state = problem.take(keep), _select(state, keep)
            status, iterations, running = status[keep], iterations[keep], running[keep]
            best_z, best_error = best_z[keep], best_error[keep]
        if refresh is not None:
            state = refresh(problem, state)
        new = solver.step(problem, state)
        state = new if left == len(status) else _where(running, new, state)
        iterations = iterations + running
        if not solver.monotone and not budget:
            worse = ~(state.error < best_error)
            if bool(worse.any()):
                best_z = torch.where(worse.unsqueeze(-1), best_z, state.z)
                best_error = torch.where(worse, best_error, state.error)
            else:
                best_z, best_error = state.z, state.error
        else:
            best_error = state.error
    if solver.monotone or budget:
        best_z, best_error = state.z, state.error
    ended = _result(state, status, iterations, best_z, best_error)
    if full is not None:
        assert places is not None
        _scatter(full, places, ended)
        ended = full
    return Outcome(ended[0], ended[1], ended[2], ended[3], ended[4:])


def _judge(solver: IterativeSolver, problem: LaneProblem, state: State, budget: bool) -> Tensor:
    status = torch.where(state.flag != 0, state.flag, _RUNNING)
    finite = torch.isfinite(state.error)
    if not budget:
        tolerance = problem.tolerance(solver, state.z)
        status = torch.where(state.error <= tolerance, 0, status)
        finite = finite & torch.isfinite(tolerance)
    return torch.where(finite, status, int(Status.NONFINITE))


def _result(
    state: Any, status: Tensor, iterations: Tensor, best_z: Tensor, best_error: Tensor
) -> tuple[Tensor, ...]:
    fell_back = failed(status) & (best_error < state.error)
    fell_back = fell_back | (failed(status) & ~torch.isfinite(state.error))
    z = torch.where(fell_back.unsqueeze(-1), best_z, state.z)
    error = torch.where(fell_back, best_error, state.error)
    return (z, status, iterations, error, *getattr(state, "factors", ()))


def _scatter(full: tuple[Tensor, ...], places: Tensor, part: tuple[Tensor, ...]) -> None:
    for whole, piece in zip(full, part, strict=True):
        whole[places] = piece


def _where(running: Tensor, new: Any, old: Any) -> Any:
    if new is old:
        return old
    if isinstance(new, Tensor):
        return torch.where(running.reshape(-1, *(1,) * (new.dim() - 1)), new, old)
    if isinstance(new, tuple):
        parts = [_where(running, a, b) for a, b in zip(new, old, strict=True)]
        return type(new)(*parts) if hasattr(new, "_fields") else tuple(parts)
    return new


def _select(state: Any, keep: Tensor) -> Any:
    if isinstance(state, Tensor):
        return state[keep]
    if isinstance(state, tuple):
        parts = [_select(part, keep) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state
