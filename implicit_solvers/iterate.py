"""The one loop: lanes step together, and each converges, stops and fails on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, either, everywhere, no, pick, settle, spread
from implicit_solvers.compiled_step import (
    bucket,
    compiled_step,
    half_a_bucket,
    in_own_memory,
    padded,
    to_compile,
)
from implicit_solvers.compiling import compiling
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
from implicit_solvers.solver import IterativeSolver, LaneProblem
from implicit_solvers.traced_loop import loop_in_graph

__all__ = ["Outcome", "iterate"]

_UNROLLED = 16


class Progress(NamedTuple):
    """How far lanes have come: which run, how the others ended, and after how many steps.

    ``trials`` counts all steps, ``iterations`` those of a lane that were accepted. ``best`` is an
    iterate and its error, where these are remembered.
    """

    state: Any
    running: Any
    status: Any
    iterations: Any
    trials: Any
    best: tuple[Tensor, ...]


Ask = Callable[..., tuple[list[int], list[Mask]]]


def iterate(solver: IterativeSolver, problem: LaneProblem, z: Tensor) -> Outcome:
    """Step from ``z (N, n)`` until every lane has converged, failed, or used its steps up.

    A lane that has ended keeps its iterate and its error. When at most half of the lanes are left,
    they go on without the others (unless the solver says ``compact=False``). A lane that failed
    returns its best iterate; with ``rtol=None`` exactly ``max_steps`` steps are made and the last
    is returned. Steps whose trial is not accepted do not count, up to ``max_trials`` of all.

    Whether lanes are left is asked every ``check_every`` steps of a solver that has this field: a
    GPU has to wait for the answer. Between, lanes that have ended are computed and not looked at.
    """
    if compiling():
        return _iterate_in_graph(solver, problem, z)
    if (compilable := to_compile(solver, problem, z)) is not None:
        return _iterate_compiled(solver, compilable, z)
    every = getattr(solver, "check_every", 1)
    departed, lanes = Departed(), len(z)
    left, progress = _look(solver, problem, _begin(solver, problem, z), lanes, lanes, settle)
    while left:
        if solver.compact and problem.separable and 0 < 2 * left <= lanes:
            keep = progress.running.nonzero().squeeze(-1)
            departed.leave(_end(solver, progress), keep)
            problem, progress, lanes = problem.take(keep), select(_spread(progress), keep), left
            progress = progress._replace(running=True)
        progress = _step(solver, problem, progress)
        upcoming = progress.trials + 1
        looks = upcoming % every == 0 or upcoming >= min(solver.max_steps, _most(solver))
        ask = settle if looks else _nobody
        left, progress = _look(solver, problem, progress, lanes, left, ask)
    return departed.joined(_end(solver, progress))


def _nobody(lanes: int, *masks: Mask) -> tuple[list[int], list[Mask]]:
    """Ask nobody: masks stay what they are, and counts are not known."""
    return [-1] * len(masks), list(masks)


def _begin(solver: Any, problem: Any, z: Tensor) -> Progress:
    state = solver.init(problem, z)
    best = () if solver.monotone or solver.rtol is None else (state.z, state.error)
    return Progress(state, True, RUNNING, -1, -1, best)


def _step(solver: Any, problem: Any, progress: Progress) -> Progress:
    """Make a step in every lane; those that have ended stay."""
    state, running = progress.state, progress.running
    if not everywhere(running):
        state = state._replace(flag=pick(running, state.flag, ENDED))
    if hasattr(solver, "refresh"):
        state = solver.refresh(problem, state)
    new = solver.step(problem, state)
    if not everywhere(running) and not hasattr(new, "accepted"):
        new = with_ended(running, new, state)
    return progress._replace(state=new)


def _most(solver: Any) -> int:
    most: int | None = getattr(solver, "max_trials", None)
    return 4 * solver.max_steps if most is None else most


def _look(
    solver: Any, problem: Any, progress: Progress, lanes: int, left: int, ask: Ask
) -> tuple[int, Progress]:
    """Judge what a step has left, by one question; return how many lanes run, and how."""
    state, running, status, iterations, trials, best = progress
    budget, trials = solver.rtol is None, trials + 1
    # lanes that have ended stay, whatever is said of them
    accepted = either(getattr(state, "accepted", True), no(running))
    going = both(goes_on(solver, problem, state), running)
    late = isinstance(trials, Tensor) or trials >= min(solver.max_steps, _most(solver))
    if late:
        count = iterations + both(budget or accepted, running)
        spent = (count >= solver.max_steps) | (trials >= _most(solver))
        going = both(going, no(spent))
    better = state.error < best[1] if best else False
    (now, *_), (going, accepted, better) = ask(lanes, going, accepted, better)
    if hasattr(state, "accepted"):
        state = state.settled(accepted)
    iterations = iterations + both(budget or accepted, running)
    if now != left or now < 0:
        ends = both(running, no(going))
        code = judge(solver, problem, state)
        if late:
            out_of_steps = Status.BUDGET if budget else Status.MAX_STEPS
            code = pick(code != RUNNING, code, int(out_of_steps))
        status, running = pick(ends, code, status), going
    if best:
        best = pick(better, (state.z, state.error), best)
    return now, Progress(state, running, status, iterations, trials, best)


def _spread(progress: Progress) -> Progress:
    """Return what lanes share as tensors, of which some lanes can be selected."""
    state, _, status, iterations, _, _ = progress
    status, iterations = (spread(v, state.z, torch.int64) for v in (status, iterations))
    return progress._replace(status=status, iterations=iterations)


def _end(solver: Any, progress: Progress) -> Outcome:
    state, _, status, iterations, _, best = progress
    return result(solver, state, status, iterations, best)


def _iterate_in_graph(solver: Any, problem: Any, z: Tensor) -> Outcome:
    """Iterate in a compiled graph. A small budget of short steps is unrolled."""
    progress = _begun(solver, problem, z)
    short = getattr(problem, "linear", False) or getattr(solver, "unrollable", False)
    if solver.rtol is None and solver.max_steps <= (_UNROLLED if short else 1):
        here = problem.aliased()
        for _ in range(solver.max_steps):
            progress = _advance(solver, here, progress)
    else:
        progress = loop_in_graph(
            lambda progress: progress.running.any(),
            lambda progress: _some_steps(solver, problem, progress),
            progress,
        )
    return _end(solver, progress)


def _iterate_compiled(solver: Any, problem: Any, z: Tensor) -> Outcome:
    """Iterate in a compiled loop, which ends whenever half of the lanes can leave."""
    advance = compiled_step((_until_few_are_left, _few_steps), solver, problem)
    progress = in_own_memory(_begun(solver, problem, z))
    departed = Departed()
    while True:
        left, lanes = int(progress.running.sum()), len(progress.running)
        if left == 0:
            return departed.joined(_end(solver, progress))
        leave = solver.compact and problem.separable
        if leave and 2 * bucket(left) <= lanes:
            keep = progress.running.nonzero().squeeze(-1)
            departed.leave(_end(solver, progress), keep)
            keep = padded(keep, bucket(left))
            problem, progress = problem.take(keep), select(progress, keep)
            progress.running[left:] = False
            lanes = len(keep)
        few = torch.full((), half_a_bucket(lanes) if leave else 0, device=z.device)
        progress = advance(problem, (progress, few))[0]


def _until_few_are_left(
    solver: Any, problem: Any, carry: tuple[Progress, Tensor]
) -> tuple[Progress, Tensor]:
    progress, few = carry
    progress = loop_in_graph(
        lambda progress: progress.running.sum() > few,
        lambda progress: _some_steps(solver, problem, progress),
        progress,
    )
    return progress, few


def _few_steps(
    solver: Any, problem: Any, carry: tuple[Progress, Tensor]
) -> tuple[Progress, Tensor]:
    return _some_steps(solver, problem, carry[0]), carry[1]


def _begun(solver: Any, problem: Any, z: Tensor) -> Progress:
    """Begin with tensors in every place, as a graph has to."""
    progress = _begin(solver, problem, z)
    every = torch.ones(len(z), dtype=torch.bool, device=z.device)
    counts = torch.full((len(z),), -1, dtype=torch.int64, device=z.device)
    progress = progress._replace(
        running=every, status=counts + 1 + RUNNING, iterations=counts, trials=counts
    )
    return _look(solver, problem, progress, len(z), -1, _nobody)[1]


def _some_steps(solver: Any, problem: Any, progress: Progress) -> Progress:
    problem = problem.aliased()
    for _ in range(getattr(solver, "check_every", 1)):
        progress = _advance(solver, problem, progress)
    return progress


def _advance(solver: Any, problem: Any, progress: Progress) -> Progress:
    progress = _step(solver, problem, progress)
    return _look(solver, problem, progress, len(progress.running), -1, _nobody)[1]
