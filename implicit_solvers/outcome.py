"""How lanes end: by a tolerance, by a flag, by what is not finite; and with what.

It knows no concrete solver and no equation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import (
    Mask,
    both,
    divide,
    either,
    everywhere,
    implies,
    larger,
    no,
    pick,
    spread,
)
from implicit_solvers.evaluations import as_tensor
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import equation_tolerance

__all__ = [
    "DIGIT",
    "ENDED",
    "LEAVING",
    "ROUNDINGS",
    "RUNNING",
    "Departed",
    "Outcome",
    "contracted",
    "estimated",
    "goal",
    "goes_on",
    "proposed",
    "result",
    "select",
    "unknown",
    "with_ended",
]

RUNNING, ENDED, LEAVING = -1, -2, -3
"""A lane that is none of a `Status`: it runs, has ended, or runs on to leave a saddle behind."""

ROUNDINGS, DIGIT = 20.0, 0.1
"""So many roundings are a tolerance; an error of this part of the size leaves no digit."""


class Outcome(NamedTuple):
    """How the lanes ended: tensors ``(N, ...)``, or what they share.

    ``residual`` is its norm, ``error`` an estimate of that of ``z``, ``factors`` are those of
    the Jacobian at ``z``, if there are any, and ``evaluations (N, 3)`` are empty if nobody counts.
    """

    z: Tensor
    status: Any
    iterations: Any
    residual: Any
    error: Any
    factors: tuple[Tensor, ...] = ()
    evaluations: Any = ()

    def spread(self) -> Outcome:
        """Return the same, all in tensors."""
        status, iterations = (spread(v, self.z, torch.int64) for v in self[1:3])
        residual, error = (spread(v, self.z) for v in self[3:5])
        return Outcome(self.z, status, iterations, residual, error, *self[5:])

    @staticmethod
    def joined(chunks: Sequence[Outcome]) -> Outcome:
        """Return how the lanes of all chunks ended, in their order."""
        parts = [[*chunk.spread()[:5], *_counts(chunk), *chunk.factors] for chunk in chunks]
        # factors that only some have are made again
        common = 5 + len(_counts(chunks[0]))
        several = len({len(part) for part in parts}) > 1
        columns = zip(*(part[:common] if several else part for part in parts), strict=True)
        z, status, iterations, residual, error, *rest = (torch.cat(column) for column in columns)
        counts, factors = rest[: common - 5], rest[common - 5 :]
        ends = z, status, iterations, residual, error
        return Outcome(*ends, tuple(factors), counts[0] if counts else ())


def unknown(z: Tensor) -> Outcome:
    """Return what is known of lanes that have not begun."""
    return Outcome(z, RUNNING, 0, math.inf, math.inf).spread()


class Departed:
    """The lanes that left a solve before it was over, with what they ended with."""

    def __init__(self) -> None:
        self.full: Outcome | None = None
        self.places: Tensor | None = None

    def leave(self, now: Outcome, keep: Tensor) -> None:
        """Let all lanes leave but those at ``keep``; what these have ``now`` is provisional."""
        if self.full is None:
            # (what lanes share may be expanded, and the iterate is the user's at the start)
            now = now.spread()
            factors = tuple(t.clone() for t in now.factors)
            z, status, iterations, residual, error = (part.clone() for part in now[:5])
            counts = tuple(t.clone() for t in _counts(now))
            self.full = Outcome(z, status, iterations, residual, error, factors, *counts)
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
        now = now.spread()
        parts = [[*out[:5], *out.factors, *_counts(out)] for out in (self.full, now)]
        for whole, part in zip(*parts, strict=True):
            whole[keep] = part if len(part) == len(keep) else part[: len(keep)]


def _counts(outcome: Outcome) -> tuple[Tensor, ...]:
    """Return the evaluations of each lane, if they are counted."""
    counts = outcome.evaluations
    if len(counts) == 0:
        return ()
    if not isinstance(counts, Tensor):
        counts = as_tensor(counts, outcome.z).expand(len(outcome.z), 3)
    return (counts,)


def goes_on(solver: Any, problem: Any, state: Any, estimate: Any) -> Mask:
    """Tell which lanes `proposed` would leave running, if they ran: the usual answer, for less."""
    accepted = getattr(state, "accepted", True)
    # an error that was accepted as less than one before is finite
    known = not everywhere(accepted) and getattr(problem, "branches", False)
    going: Mask = True if known else state.error < torch.inf
    if solver.rtol is not None:
        going = both(going, _far(solver, problem, state, estimate))
    # a lane that tried in vain has not moved
    going = implies(accepted, going)
    return both(going, getattr(state, "flag", 0) == 0)


def proposed(solver: Any, problem: Any, state: Any, estimate: Any) -> Any:
    """Return the status that each lane proposes for itself, or that it is running."""
    flag, error = getattr(state, "flag", 0), state.error
    status = RUNNING if isinstance(flag, int) and flag == 0 else pick(flag != 0, flag, RUNNING)
    if solver.rtol is not None:
        far = either(_far(solver, problem, state, estimate), estimate != estimate)
        status = pick(far, status, int(Status.CONVERGED))
        error = error + goal(solver, problem, state)
    return pick(error < torch.inf, status, int(Status.NONFINITE))


def _far(solver: Any, problem: Any, state: Any, estimate: Any) -> Mask:
    """Tell where the estimate of the error says that a lane has not converged."""
    least, rounding = goal(solver, problem, state), getattr(state, "rounding", None)
    if rounding is None:
        far: Mask = estimate > least
    else:
        digit = DIGIT * problem.scale(solver, state.z)
        far = estimate > larger(least, ROUNDINGS * rounding)
        far = either(far, estimate + rounding > digit)
    least = getattr(solver, "f_atol", 0.0)
    return far if least == 0 else both(far, state.error > least)


def goal(solver: Any, problem: Any, state: Any) -> Any:
    """Return the error at or below which each lane has converged."""
    unit = getattr(state, "unit", None)
    if unit is not None:
        eps = torch.finfo(state.z.dtype).eps
        return equation_tolerance(solver.rtol, solver.atol, eps, unit)
    # that of a linear problem follows from its right-hand side, and some iterates are costly
    linear = getattr(problem, "linear", False)
    return problem.tolerance(solver, None if linear else state.z)


def estimated(solver: Any, problem: Any, new: Any, old: Any) -> Any:
    """Return an estimate of the error of each lane, after a step from ``old`` to ``new``.

    It is the solver's own, ``estimate``, if it has one; of a linear system, the residual. Else the
    step ``|dz|`` and what it left of the residual say, as for a contraction: ``|dz| q / (1 - q)``
    with ``q = |F_new| / |F_old|``.
    """
    if solver.rtol is None:
        return math.inf
    own = getattr(new, "estimate", None)
    if own is not None:
        return own
    if getattr(problem, "linear", False):
        return new.error
    if old is None:
        return pick(new.error == 0, 0.0, math.inf)
    before = getattr(new, "kept", old)
    return contracted(problem.size(solver.norm, new.z - before.z), new.error, before.error)


def contracted(step: Any, error: Any, before: Any) -> Any:
    """Return the error that a ``step`` left, if the residual's norms after it and before tell."""
    rate = pick(error == 0, 0.0, divide(error, before))
    gone = pick(rate < 1, step * rate / pick(rate < 1, 1 - rate, 1.0), math.inf)
    return pick(either(step > 0, error == 0), gone, math.inf)


def result(
    state: Any, status: Any, iterations: Any, best: tuple[Tensor, ...], evaluations: Any = ()
) -> Outcome:
    """Return what lanes ended with: those that failed, their ``best`` iterate, if it is kept."""
    z, residual = state.z, state.error
    if best:
        better = either(best[1] < residual, no(residual < torch.inf))
        z, residual = pick(both(status > int(Status.BUDGET), better), best, (z, residual))
    before = getattr(state, "steps_before", None)
    iterations = iterations if before is None else iterations + before
    error = pick(
        status == int(Status.CONVERGED), getattr(state, "error_bound", torch.inf), torch.inf
    )
    factors = tuple(getattr(state, "factors", ()))
    if factors:
        # with the place of the matrix, which was not formed
        factors = (*factors, z.new_empty(len(z), 0))
    return Outcome(z, status, iterations, residual, error, factors, evaluations)


def with_ended(running: Mask, new: Any, old: Any) -> Any:
    """Return ``new``, with what is asked of lanes that have ended from ``old``.

    A state of plain fields need keep its iterate and what is known of it only; one that computes
    what it returns is kept whole.
    """
    if any(isinstance(getattr(type(new), k, None), property) for k in ("z", "factors")):
        return _whole(running, new, old)
    kept = ("z", "error", "estimate", "rounding", "error_bound")
    asked = [k for k in kept if k in new._fields]
    return new._replace(**{k: pick(running, getattr(new, k), getattr(old, k)) for k in asked})


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
