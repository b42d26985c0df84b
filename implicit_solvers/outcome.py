"""How lanes end: by a tolerance, by a flag, by what is not finite; and with what."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.solution import Status, failed

__all__ = [
    "ENDED",
    "RUNNING",
    "Departed",
    "Outcome",
    "goes_on",
    "judge",
    "result",
    "select",
    "where",
    "with_ended",
]

RUNNING, ENDED = -1, -2


class Outcome(NamedTuple):
    """How the lanes ended: tensors ``(N, ...)``; ``factors`` are those of the final state."""

    z: Tensor
    status: Tensor
    iterations: Tensor
    error: Tensor
    factors: tuple[Tensor, ...] = ()


class Departed:
    """The lanes that left a solve before it was over, with what they ended with."""

    def __init__(self) -> None:
        self.full: Outcome | None = None
        self.places: Tensor | None = None

    def leave(self, now: Outcome, keep: Tensor) -> None:
        """Let all lanes leave but those at ``keep``; what these have ``now`` is provisional."""
        if self.full is None:
            self.full = Outcome(*(_copied(part) for part in now))
            self.places = keep
        else:
            assert self.places is not None
            self._put(now)
            self.places = self.places[keep]

    def joined(self, now: Outcome) -> Outcome:
        """Return what all lanes ended with, of which those that are left have ``now``."""
        if self.full is None:
            return now
        self._put(now)
        return self.full

    def _put(self, now: Outcome) -> None:
        assert self.full is not None and self.places is not None
        for whole, part in zip(_tensors(self.full), _tensors(now), strict=True):
            whole[self.places] = part[: len(self.places)]


def _copied(part: Any) -> Any:
    return tuple(t.clone() for t in part) if isinstance(part, tuple) else part.clone()


def _tensors(outcome: Outcome) -> list[Tensor]:
    return [*outcome[:4], *outcome.factors]


def goes_on(solver: Any, problem: Any, state: Any) -> Tensor:
    """Tell which lanes `judge` would leave running, if they ran: the usual answer, for less."""
    going = (state.flag == 0) & (state.error < torch.inf)
    return going if solver.rtol is None else going & (state.error > _goal(solver, problem, state))


def judge(solver: Any, problem: Any, state: Any) -> Tensor:
    """Return the status of each lane ``(N,)``, or that it is running."""
    status = torch.where(state.flag != 0, state.flag, RUNNING)
    measure = state.error
    if solver.rtol is not None:
        goal = _goal(solver, problem, state)
        status = torch.where(measure <= goal, 0, status)
        measure = measure + goal
    return torch.where(torch.isfinite(measure), status, int(Status.NONFINITE))


def _goal(solver: Any, problem: Any, state: Any) -> Tensor:
    # that of a linear problem follows from its right-hand side, and some iterates are costly
    linear = getattr(problem, "linear", False)
    tolerance: Tensor = problem.tolerance(solver, None if linear else state.z)
    return tolerance


def result(
    state: Any, status: Tensor, iterations: Tensor, best_z: Tensor, best_error: Tensor
) -> Outcome:
    """Return what lanes ended with: those that failed, their best iterate."""
    fell_back = failed(status) & (best_error < state.error)
    fell_back = fell_back | (failed(status) & ~torch.isfinite(state.error))
    z = torch.where(fell_back.unsqueeze(-1), best_z, state.z)
    error = torch.where(fell_back, best_error, state.error)
    iterations = iterations + getattr(state, "steps_before", 0)
    return Outcome(z, status, iterations, error, tuple(getattr(state, "factors", ())))


def with_ended(running: Tensor, new: Any, old: Any) -> Any:
    """Return ``new``, with what is asked of lanes that have ended from ``old``.

    A state of plain fields need keep its iterate and error only; one that computes what it
    returns is kept whole.
    """
    computed = [isinstance(getattr(type(new), k, None), property) for k in ("z", "factors")]
    if any(computed):
        return where(running, new, old)
    return new._replace(z=where(running, new.z, old.z), error=where(running, new.error, old.error))


def where(running: Tensor, new: Any, old: Any) -> Any:
    """Return a state with each lane from ``new`` or ``old``."""
    if isinstance(new, Tensor):
        if new is old:
            return old
        return torch.where(running.reshape(-1, *(1,) * (new.dim() - 1)), new, old)
    if isinstance(new, tuple):
        parts = [where(running, a, b) for a, b in zip(new, old, strict=True)]
        return type(new)(*parts) if hasattr(new, "_fields") else tuple(parts)
    return new


def select(state: Any, keep: Tensor) -> Any:
    """Return a state of some of the lanes."""
    if isinstance(state, Tensor):
        return state[keep]
    if isinstance(state, tuple):
        parts = [select(part, keep) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state
