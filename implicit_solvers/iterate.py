"""The one loop: lanes step together, and each converges, stops and fails on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from implicit_solvers.compiled_step import bucket, compilable, compiled_step, in_own_memory, padded
from implicit_solvers.solution import Status, failed
from implicit_solvers.tolerance import Auto
from implicit_solvers.traced_loop import loop_in_graph

__all__ = ["IterativeSolver", "LaneProblem", "Outcome", "State", "iterate"]

_RUNNING, _ENDED = -1, -2
_UNROLLED = 16


class State(Protocol):
    """What a solver carries from step to step: a named tuple of tensors ``(N, ...)`` and numbers.

    ``z`` is the iterate ``(N, n)``, ``error`` the norm of its residual ``(N,)``, and ``flag`` a
    `Status` ``(N,)`` that ends a lane which has not converged (0: go on). The loop gives lanes that
    have ended a ``flag`` other than 0: whatever a step does in them is not looked at. A state made
    by steps of its own, before the first, says in ``steps_before (N,)`` how many to count.
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

    def tolerance(self, solver: Any, z: Any) -> Tensor:
        """Return the error at or below which each lane has converged."""

    def take(self, index: Tensor) -> Any:
        """Return the problem of some of the lanes."""


class IterativeSolver(Protocol):
    """A method: hyperparameters, a start, and a step.

    A solver whose error never grows says ``monotone = True``, so that the loop need not remember
    the best iterate of a lane that fails. A solver whose state must change its form between steps
    (to grow, to start again) does so in ``refresh(problem, state)``, for all lanes, those that
    have ended included, without moving their iterates. A solver that need not step in this loop
    has a ``whole(problem, z)``, which returns the `Outcome`, or None to step in it after all.
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

    A lane that has ended keeps its iterate and its error. When at most half of the lanes are left,
    they go on without the others (unless the solver says ``compact=False``). A lane that failed
    returns its best iterate; with ``rtol=None`` exactly ``max_steps`` steps are made and the last
    is returned.

    Whether lanes are left is asked every ``check_every`` steps of a solver that has this field: a
    GPU has to wait for the answer. Between, lanes that have ended are computed and not looked at.
    """
    if torch.compiler.is_compiling():
        return _iterate_in_graph(solver, problem, z)
    whole = getattr(solver, "whole", None)
    outcome: Outcome | None = None if whole is None else whole(problem, z)
    if outcome is not None:
        return outcome
    budget = solver.rtol is None
    every = getattr(solver, "check_every", 1)
    refresh = getattr(solver, "refresh", None)
    state = solver.init(problem, z)
    advance: Callable[[Any, Any], Any] = solver.step
    compiled = compilable(solver, problem)
    if compiled:
        advance, state = compiled_step(solver, problem), in_own_memory(state)
        problem = problem.with_basis(z)  # type: ignore[attr-defined]
    status = torch.full((len(z),), _RUNNING, dtype=torch.int64, device=z.device)
    running, iterations = status == _RUNNING, torch.zeros_like(status)
    best_z, best_error = state.z, state.error
    lanes = len(z)  # that take part; any after them only pad
    places: Tensor | None = None
    full: tuple[Tensor, ...] | None = None

    for step in range(solver.max_steps + 1):
        going = _goes_on(solver, problem, state, budget) & running
        looks = step % every == 0 or step == solver.max_steps
        left = int(going.sum()) if looks else -1
        if left < lanes:
            ends = running & ~going
            status = torch.where(ends, _judge(solver, problem, state, budget), status)
            iterations = torch.where(ends, step, iterations)
            running = going
        if left == 0:
            break
        if step == solver.max_steps:
            out_of_steps = Status.BUDGET if budget else Status.MAX_STEPS
            status = torch.where(running, int(out_of_steps), status)
            iterations = torch.where(running, step, iterations)
            break
        fewer = bucket(left) if compiled else left
        if looks and solver.compact and problem.separable and 2 * fewer <= running.shape[0]:
            ended = _result(state, status, iterations, best_z, best_error)
            keep = running.nonzero().squeeze(-1)
            if full is None:
                full, places = tuple(t.clone() for t in ended), keep
            else:
                assert places is not None
                _scatter(full, places, ended)
                places = places[keep]
            if compiled:
                keep = padded(keep, fewer)
            problem, state = problem.take(keep), _select(state, keep)
            status, iterations = status[keep], iterations[keep]
            best_z, best_error = best_z[keep], best_error[keep]
            status[left:] = _ENDED
            running, lanes = status == _RUNNING, left
        idle = left < lanes
        if idle:
            state = state._replace(flag=torch.where(running, state.flag, _ENDED))
        if refresh is not None:
            state = refresh(problem, state)
        new = advance(problem, state)
        state = _with_ended(running, new, state) if idle else new
        if not solver.monotone and not budget:
            worse = ~(state.error < best_error)
            if every > 1 or bool(worse.any()):
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


def _iterate_in_graph(solver: IterativeSolver, problem: Any, z: Tensor) -> Outcome:
    """Iterate without a branch that depends on values: all lanes step until the last is done.

    A small budget of steps is unrolled.
    """
    whole = getattr(solver, "iterate_in_graph", None)
    if whole is not None:
        return Outcome(*whole(problem, z))
    budget = solver.rtol is None
    keeps_best = not (solver.monotone or budget)
    state = solver.init(problem, z)
    status = torch.full((len(z),), _RUNNING, dtype=torch.int64, device=z.device)
    status = torch.where(status == _RUNNING, _judge(solver, problem, state, budget), status)
    iterations = torch.zeros_like(status)
    best = (state.z, state.error) if keeps_best else ()

    def unfinished(carry: tuple[Any, ...]) -> Tensor:
        return (carry[1] == _RUNNING) & (carry[2] < solver.max_steps)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        state, status, iterations, best = carry
        running = unfinished(carry)
        state = state._replace(flag=torch.where(running, state.flag, _ENDED))
        state = _with_ended(running, solver.step(problem.aliased(), state), state)
        status = torch.where(running, _judge(solver, problem, state, budget), status)
        if best:
            better = running & (state.error < best[1])
            best_z = torch.where(better.unsqueeze(-1), state.z, best[0])
            best = (best_z, torch.where(better, state.error, best[1]))
        return state, status, iterations + running, best

    def several(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        for _ in range(getattr(solver, "check_every", 1)):
            carry = body(carry)
        return carry

    carry = (state, status, iterations, best)
    if budget and solver.max_steps <= _UNROLLED:
        for _ in range(solver.max_steps):
            carry = body(carry)
    else:
        carry = loop_in_graph(lambda carry: unfinished(carry).any(), several, carry)
    state, status, iterations, best = carry
    out_of_steps = Status.BUDGET if budget else Status.MAX_STEPS
    status = torch.where(status == _RUNNING, int(out_of_steps), status)
    ended = _result(state, status, iterations, *(best or (state.z, state.error)))
    return Outcome(ended[0], ended[1], ended[2], ended[3], ended[4:])


def _goes_on(solver: IterativeSolver, problem: LaneProblem, state: State, budget: bool) -> Tensor:
    """Tell which lanes `_judge` would leave running, if they ran: the usual answer, for less."""
    going = (state.flag == 0) & (state.error < torch.inf)
    return going if budget else going & (state.error > _tolerance(solver, problem, state))


def _judge(solver: IterativeSolver, problem: LaneProblem, state: State, budget: bool) -> Tensor:
    status = torch.where(state.flag != 0, state.flag, _RUNNING)
    measure = state.error
    if not budget:
        tolerance = _tolerance(solver, problem, state)
        status = torch.where(measure <= tolerance, 0, status)
        measure = measure + tolerance
    return torch.where(torch.isfinite(measure), status, int(Status.NONFINITE))


def _tolerance(solver: IterativeSolver, problem: LaneProblem, state: State) -> Tensor:
    # that of a linear problem follows from its right-hand side, and some iterates are costly
    return problem.tolerance(solver, None if getattr(problem, "linear", False) else state.z)


def _result(
    state: Any, status: Tensor, iterations: Tensor, best_z: Tensor, best_error: Tensor
) -> tuple[Tensor, ...]:
    fell_back = failed(status) & (best_error < state.error)
    fell_back = fell_back | (failed(status) & ~torch.isfinite(state.error))
    z = torch.where(fell_back.unsqueeze(-1), best_z, state.z)
    error = torch.where(fell_back, best_error, state.error)
    iterations = iterations + getattr(state, "steps_before", 0)
    return (z, status, iterations, error, *getattr(state, "factors", ()))


def _scatter(full: tuple[Tensor, ...], places: Tensor, part: tuple[Tensor, ...]) -> None:
    for whole, piece in zip(full, part, strict=True):
        whole[places] = piece[: len(places)]


def _with_ended(running: Tensor, new: Any, old: Any) -> Any:
    """Return ``new``, with what is asked of lanes that have ended from ``old``.

    A state of plain fields need keep its iterate and error only; one that computes what it
    returns is kept whole.
    """
    computed = [isinstance(getattr(type(new), k, None), property) for k in ("z", "factors")]
    if any(computed):
        return _where(running, new, old)
    return new._replace(
        z=_where(running, new.z, old.z), error=_where(running, new.error, old.error)
    )


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
