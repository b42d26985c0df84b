"""The one loop: lanes step together, and each converges, stops and fails on its own."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from implicit_solvers.compiled_step import to_compile
from implicit_solvers.compiling import compiling
from implicit_solvers.masked_steps import iterate_compiled, iterate_in_graph
from implicit_solvers.outcome import (
    ENDED,
    RUNNING,
    Departed,
    Outcome,
    goes_on,
    judge,
    result,
    select,
    with_ended,
)
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import Auto

__all__ = ["IterativeSolver", "LaneProblem", "Outcome", "State", "iterate"]


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

    def init(self, problem: Any, z: Tensor, /) -> Any:
        """Return the state at the start."""

    def step(self, problem: Any, state: Any, /) -> Any:
        """Return the state one step later."""


def iterate(solver: IterativeSolver, problem: LaneProblem, z: Tensor) -> Outcome:
    """Step from ``z (N, n)`` until every lane has converged, failed, or used its steps up.

    A lane that has ended keeps its iterate and its error. When at most half of the lanes are left,
    they go on without the others (unless the solver says ``compact=False``). A lane that failed
    returns its best iterate; with ``rtol=None`` exactly ``max_steps`` steps are made and the last
    is returned.

    Whether lanes are left is asked every ``check_every`` steps of a solver that has this field: a
    GPU has to wait for the answer. Between, lanes that have ended are computed and not looked at.
    """
    if compiling():
        return iterate_in_graph(solver, problem, z)
    whole = getattr(solver, "whole", None)
    outcome: Outcome | None = None if whole is None else whole(problem, z)
    if outcome is not None:
        return outcome
    if (compilable := to_compile(solver, problem, z)) is not None:
        return iterate_compiled(solver, compilable, z)
    budget = solver.rtol is None
    every = getattr(solver, "check_every", 1)
    refresh = getattr(solver, "refresh", None)
    state = solver.init(problem, z)
    status = torch.full((len(z),), RUNNING, dtype=torch.int64, device=z.device)
    running, iterations = status == RUNNING, torch.zeros_like(status)
    best_z, best_error = state.z, state.error
    departed, lanes = Departed(), len(z)

    for step in range(solver.max_steps + 1):
        going = goes_on(solver, problem, state) & running
        looks = step % every == 0 or step == solver.max_steps
        left = int(going.sum()) if looks else -1
        if left < lanes:
            ends = running & ~going
            status = torch.where(ends, judge(solver, problem, state), status)
            iterations = torch.where(ends, step, iterations)
            running = going
        if left == 0:
            break
        if step == solver.max_steps:
            out_of_steps = Status.BUDGET if budget else Status.MAX_STEPS
            status = torch.where(running, int(out_of_steps), status)
            iterations = torch.where(running, step, iterations)
            break
        if looks and solver.compact and problem.separable and 2 * left <= lanes:
            keep = running.nonzero().squeeze(-1)
            departed.leave(result(state, status, iterations, best_z, best_error), keep)
            problem, state = problem.take(keep), select(state, keep)
            status, iterations = status[keep], iterations[keep]
            best_z, best_error = best_z[keep], best_error[keep]
            running, lanes = status == RUNNING, left
        idle = left < lanes
        if idle:
            state = state._replace(flag=torch.where(running, state.flag, ENDED))
        if refresh is not None:
            state = refresh(problem, state)
        new = solver.step(problem, state)
        state = with_ended(running, new, state) if idle else new
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
    return departed.joined(result(state, status, iterations, best_z, best_error))
