"""How lanes end: by a tolerance, by a flag, by what is not finite; and with what."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, everywhere, implies, pick, spread
from implicit_solvers.solution import Status, failed

__all__ = [
    "ENDED",
    "RUNNING",
    "Departed",
    "Outcome",
    "goal",
    "goes_on",
    "judge",
    "made_by",
    "result",
    "select",
    "with_ended",
]

RUNNING, ENDED = -1, -2


class Outcome(NamedTuple):
    """How the lanes ended: tensors ``(N, ...)``.

    ``residual`` is its norm, ``error`` an estimate of that of ``z``, and ``factors`` are those of
    the Jacobian at ``z``, if there are any.
    """

    z: Tensor
    status: Tensor
    iterations: Tensor
    residual: Tensor
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
            # (what lanes share may be expanded, and the iterate is the user's at the start)
            z, status, iterations, residual, error = (part.clone() for part in now[:5])
            factors = tuple(t.clone() for t in now.factors)
            self.full = Outcome(z, status, iterations, residual, error, factors)
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
        keep = self.places
        if len(now.factors) != len(self.full.factors):
            # some left before anything was factored
            self.full = self.full._replace(factors=())
        parts = [*now[:5], *now.factors[: len(self.full.factors)]]
        for whole, part in zip([*self.full[:5], *self.full.factors], parts, strict=True):
            whole[keep] = part if len(part) == len(keep) else part[: len(keep)]


def goes_on(solver: Any, problem: Any, state: Any) -> Mask:
    """Tell which lanes `judge` would leave running, if they ran: the usual answer, for less."""
    accepted = getattr(state, "accepted", True)
    # an error that was accepted as less than one before is finite
    known = not everywhere(accepted) and getattr(problem, "branches", False)
    going: Mask = True if known else state.error < torch.inf
    if solver.rtol is not None:
        going = both(going, _unsolved(solver, problem, state))
    # a lane that tried in vain has not moved
    going = implies(accepted, going)
    return both(going, getattr(state, "flag", 0) == 0)


def judge(solver: Any, problem: Any, state: Any) -> Any:
    """Return the status of each lane, or that it is running."""
    flag, error = getattr(state, "flag", 0), state.error
    status = RUNNING if isinstance(flag, int) and flag == 0 else pick(flag != 0, flag, RUNNING)
    if solver.rtol is not None:
        doubt = solver.doubt(problem, state) if hasattr(solver, "doubt") else 0
        least = goal(solver, problem, state)
        status = pick(error <= least, doubt, status)
        error = error + least
    return pick(error < torch.inf, status, int(Status.NONFINITE))


def _unsolved(solver: Any, problem: Any, state: Any) -> Mask:
    ask = getattr(problem, "unsolved", None)
    if ask is not None:
        return cast(Mask, ask(solver, state.z, state.error))
    return cast(Mask, state.error > goal(solver, problem, state))


def goal(solver: Any, problem: Any, state: Any) -> Any:
    """Return the error at or below which each lane has converged."""
    # that of a linear problem follows from its right-hand side, and some iterates are costly
    linear = getattr(problem, "linear", False)
    return problem.tolerance(solver, None if linear else state.z)


def result(
    solver: Any, state: Any, status: Any, iterations: Any, best: tuple[Tensor, ...]
) -> Outcome:
    """Return what lanes ended with: those that failed, their ``best`` iterate, if it is kept."""
    z, error = state.z, spread(state.error, state.z)
    status = spread(status, z, torch.int64)
    if best:
        fell_back = failed(status) & ((best[1] < error) | ~torch.isfinite(error))
        z = torch.where(fell_back.unsqueeze(-1), best[0], z)
        error = torch.where(fell_back, best[1], error)
    iterations = spread(iterations, z, torch.int64)
    before = getattr(state, "steps_before", None)
    iterations = iterations if before is None else iterations + before
    factors = () if made_by(solver, z.shape[-1]) is None else tuple(getattr(state, "factors", ()))
    return Outcome(z, status, iterations, error, torch.full_like(error, torch.inf), factors)


def made_by(solver: Any, n: int) -> Any:
    """Return the direct solver whose factors are in a solver's state, if there are any."""
    ask = getattr(solver, "factorization", None)
    return None if ask is None else ask(n)


def with_ended(running: Mask, new: Any, old: Any) -> Any:
    """Return ``new``, with what is asked of lanes that have ended from ``old``.

    A state of plain fields need keep its iterate and error only; one that computes what it
    returns is kept whole.
    """
    computed = [isinstance(getattr(type(new), k, None), property) for k in ("z", "factors")]
    if any(computed):
        return _whole(running, new, old)
    return new._replace(z=pick(running, new.z, old.z), error=pick(running, new.error, old.error))


def _whole(running: Mask, new: Any, old: Any) -> Any:
    if isinstance(new, tuple):
        parts = [_whole(running, a, b) for a, b in zip(new, old, strict=True)]
        return type(new)(*parts) if hasattr(new, "_fields") else tuple(parts)
    return pick(running, new, old) if isinstance(new, Tensor) else new


def select(state: Any, keep: Tensor) -> Any:
    """Return a state of some of the lanes."""
    if isinstance(state, Tensor):
        return state[keep]
    if isinstance(state, tuple):
        parts = [select(part, keep) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state
