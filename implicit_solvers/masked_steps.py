"""Steps without a branch that depends on values: of all lanes, until the last is done."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.compiled_step import (
    bucket,
    compiled_step,
    half_a_bucket,
    in_own_memory,
    padded,
)
from implicit_solvers.outcome import (
    ENDED,
    RUNNING,
    Departed,
    Outcome,
    judge,
    result,
    select,
    with_ended,
)
from implicit_solvers.solution import Status
from implicit_solvers.traced_loop import loop_in_graph

__all__ = ["iterate_compiled", "iterate_in_graph"]

_UNROLLED = 16


class Progress(NamedTuple):
    """A solver's state, the status and iterations of each lane, its best iterate and the error."""

    state: Any
    status: Tensor
    iterations: Tensor
    best: tuple[Tensor, ...]


def iterate_in_graph(solver: Any, problem: Any, z: Tensor) -> Outcome:
    """Iterate in a compiled graph. A small budget of short steps is unrolled."""
    whole = getattr(solver, "iterate_in_graph", None)
    if whole is not None:
        outcome: Outcome = whole(problem, z)
        return outcome
    progress = _begun(solver, problem, z)
    short = getattr(problem, "linear", False) or getattr(solver, "unrollable", False)
    if solver.rtol is None and solver.max_steps <= (_UNROLLED if short else 1):
        here = problem.aliased()
        for _ in range(solver.max_steps):
            progress = _step(solver, here, progress)
    else:
        progress = loop_in_graph(
            lambda progress: _unfinished(solver, progress).any(),
            lambda progress: _steps(solver, problem, progress),
            progress,
        )
    return _ended(solver, progress)


def iterate_compiled(solver: Any, problem: Any, z: Tensor) -> Outcome:
    """Iterate in a compiled loop, which ends whenever half of the lanes can leave."""
    advance = compiled_step((_until_few_are_left, _some_steps), solver, problem)
    progress = in_own_memory(_begun(solver, problem, z))
    departed = Departed()
    while True:
        unfinished = _unfinished(solver, progress)
        left, lanes = int(unfinished.sum()), len(unfinished)
        if left == 0:
            return departed.joined(_ended(solver, progress))
        leave = solver.compact and problem.separable
        if leave and 2 * bucket(left) <= lanes:
            keep = unfinished.nonzero().squeeze(-1)
            departed.leave(_ended(solver, progress), keep)
            keep = padded(keep, bucket(left))
            problem, progress = problem.take(keep), select(progress, keep)
            progress.status[left:] = ENDED
            lanes = len(keep)
        few = torch.full((), half_a_bucket(lanes) if leave else 0, device=z.device)
        progress = advance(problem, (progress, few))[0]


def _until_few_are_left(
    solver: Any, problem: Any, carry: tuple[Progress, Tensor]
) -> tuple[Progress, Tensor]:
    progress, few = carry
    progress = loop_in_graph(
        lambda progress: _unfinished(solver, progress).sum() > few,
        lambda progress: _steps(solver, problem, progress),
        progress,
    )
    return progress, few


def _some_steps(
    solver: Any, problem: Any, carry: tuple[Progress, Tensor]
) -> tuple[Progress, Tensor]:
    return _steps(solver, problem, carry[0]), carry[1]


def _begun(solver: Any, problem: Any, z: Tensor) -> Progress:
    state = solver.init(problem, z)
    status = judge(solver, problem, state)
    keeps_best = not (solver.monotone or solver.rtol is None)
    best = (state.z, state.error) if keeps_best else ()
    return Progress(state, status, torch.zeros_like(status), best)


def _unfinished(solver: Any, progress: Progress) -> Tensor:
    return (progress.status == RUNNING) & (progress.iterations < solver.max_steps)


def _steps(solver: Any, problem: Any, progress: Progress) -> Progress:
    problem = problem.aliased()
    for _ in range(getattr(solver, "check_every", 1)):
        progress = _step(solver, problem, progress)
    return progress


def _step(solver: Any, problem: Any, progress: Progress) -> Progress:
    state, status, iterations, best = progress
    running = _unfinished(solver, progress)
    state = state._replace(flag=torch.where(running, state.flag, ENDED))
    state = with_ended(running, solver.step(problem, state), state)
    status = torch.where(running, judge(solver, problem, state), status)
    if best:
        better = running & (state.error < best[1])
        best_z = torch.where(better.unsqueeze(-1), state.z, best[0])
        best = (best_z, torch.where(better, state.error, best[1]))
    return Progress(state, status, iterations + running, best)


def _ended(solver: Any, progress: Progress) -> Outcome:
    state, status, iterations, best = progress
    out_of_steps = Status.BUDGET if solver.rtol is None else Status.MAX_STEPS
    status = torch.where(status == RUNNING, int(out_of_steps), status)
    return result(state, status, iterations, *(best or (state.z, state.error)))
