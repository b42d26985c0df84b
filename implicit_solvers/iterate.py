"""The one loop: lanes step together, and each converges, stops and fails on its own.

It knows no concrete solver, and nothing of derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, everywhere, implies, no, pick, settle, spread
from implicit_solvers.compiled_step import (
    bucket,
    compiled_step,
    in_own_memory,
    padded,
    to_compile,
)
from implicit_solvers.compiling import compiling
from implicit_solvers.evaluations import Counter, added, as_tensor
from implicit_solvers.outcome import (
    ENDED,
    LEAVING,
    RUNNING,
    Departed,
    Outcome,
    estimated,
    goal,
    goes_on,
    proposed,
    result,
    select,
    unknown,
    with_ended,
)
from implicit_solvers.ranks import alone, columns
from implicit_solvers.solution import Status
from implicit_solvers.solver import IterativeSolver, LaneProblem
from implicit_solvers.torch_internals import let_lanes_vary
from implicit_solvers.traced_loop import inside, loop_in_graph, repeat
from implicit_solvers.verdict import examiner, judged

__all__ = ["Outcome", "iterate"]

_UNROLLED, _BLOCK = 16, 4
_FARTHEST, _PAUSE = 16, 4
_ROUNDS = 12


class Progress(NamedTuple):
    """How far lanes have come: which run, how the others ended, and after how many steps.

    ``trials`` counts all steps, ``iterations`` those of a lane that were accepted. ``estimate`` is
    that of the error of the iterate, in units of the unknown. ``best`` is an
    iterate and its error, where these are remembered. ``mark`` is that of the counter which a lane
    ended before. ``before`` are the errors that the rate is
    measured from, after how many steps these were, and after how many more it is measured again.
    """

    state: Any
    running: Any
    status: Any
    iterations: Any
    trials: Any
    estimate: Any
    best: tuple[Tensor, ...]
    mark: Any = 0
    before: tuple[Any, int, int] = (math.inf, 0, 0)


Ask = Callable[..., tuple[list[int], list[Mask]]]


def iterate(solver: IterativeSolver, problem: LaneProblem, z: Tensor) -> Outcome:
    """Step from ``z (N, n)`` until every lane has converged, failed, or used its steps up.

    Where a lane ends is judged (`judged`); if it is no solution after all, the lane goes on. One
    whose bounds leave nothing has none, wherever it ends. Lanes are solved in chunks, if the solver
    has a ``chunk_size``.
    """
    size = getattr(solver, "chunk_size", None)
    if size is not None and len(z) > size and not compiling():
        if not problem.separable:
            raise ValueError(f"chunk_size={size} has to select problems of the batch: pass in_dims")
        chunks = torch.arange(len(z), device=z.device).split(size)
        return Outcome.joined([iterate(solver, problem.take(part), z[part]) for part in chunks])
    found, equation = _until_judged(solver, problem, z), cast(Any, problem)
    if getattr(problem, "bounds", None) is None:
        return found
    flags = torch.as_tensor(equation.flags(), device=z.device)
    error = torch.where(flags == 0, found.error, torch.inf)
    return found._replace(status=torch.where(flags == 0, found.status, flags), error=error)


def _until_judged(solver: IterativeSolver, problem: LaneProblem, z: Tensor) -> Outcome:
    linear = getattr(problem, "linear", False)
    direct = None if linear else examiner(solver, columns(z.shape[-1]))
    by_products = solver.rtol is not None and getattr(problem, "by_products", False) and alone()
    if direct is None and not by_products:
        return _iterate(solver, problem, z).spread()
    everyone: Any = slice(None)
    if compiling():
        # the first round is one of the loop: a step, and a verdict, are in the graph once
        found, start, rounds = unknown(z), z, _ROUNDS + 1
    else:
        found, start = judged(solver, problem, _iterate(solver, problem, z), direct)
        if not isinstance(found.status, Tensor) and found.status >= 0:
            return found.spread()
        found, rounds = _with_counts(found.spread()), _ROUNDS

    def again(carry: Any) -> Any:
        found, start = carry
        going, keep = found.status < 0, everyone
        if compiling() or not problem.separable or len(going) == 1:
            here = inside(problem)
        else:
            keep = going.nonzero().squeeze(-1)
            here, going = problem.take(keep), True
        new = _iterate(solver, here, start[keep], found.iterations[keep], going).spread()
        counts = added(select(found.evaluations, keep), new.evaluations)
        new, onward = judged(solver, here, new._replace(evaluations=counts), direct)
        if compiling():  # the derivative makes factors of its own
            new = new._replace(factors=())
        new, onward = pick(going, (new.spread(), onward), select((found, start), keep))
        return _put((found, start), keep, (new, onward))

    found, _ = repeat(lambda carry: (carry[0].status < 0).any(), again, (found, start), rounds)
    status = torch.where(found.status == LEAVING, int(Status.SADDLE), found.status)
    return found._replace(status=torch.where(status == RUNNING, int(Status.STALLED), status))


def _put(whole: Any, keep: Any, part: Any) -> Any:
    """Return what all lanes have, with those of ``keep`` replaced."""
    if isinstance(whole, tuple):
        parts = [_put(a, keep, b) for a, b in zip(whole, part, strict=True)]
        return type(whole)(*parts) if hasattr(whole, "_fields") else tuple(parts)
    return part if isinstance(keep, slice) else whole.index_copy(0, keep, part)


def _iterate(solver: Any, problem: Any, z: Tensor, made: Any = 0, running: Mask = True) -> Outcome:
    """Step until every lane proposes its end, fails, or has used its steps up.

    Steps that were ``made`` before count. Lanes that are not ``running`` make none.

    A lane that has ended keeps its iterate and its error. When at most half of the lanes are left,
    they go on without the others (unless the solver says ``compact=False``). A lane that failed
    returns its best iterate; with ``rtol=None`` exactly ``max_steps`` steps are made and the last
    is returned. Steps whose trial is not accepted do not count, up to ``max_trials`` of all.

    Whether lanes are left is asked every ``check_every`` steps (`_asks_every`): a GPU has to wait
    for the answer. Between, lanes that have ended are computed and not looked at.
    If it is 1, lanes that come nearer at a steady rate are not looked at while they are far.
    """
    if compiling():
        return _iterate_in_graph(solver, problem, z, made, running)
    if (compilable := to_compile(solver, problem, z)) is not None:
        return _iterate_compiled(solver, compilable, z, made, running)
    every, whole = _asks_every(solver, z.device), problem
    departed, lanes = Departed(), len(z)
    left, progress = _look(
        solver, problem, _begin(solver, problem, z, made, running), lanes, lanes, settle
    )
    _note(problem, progress, running)
    foresees = every == 1 and solver.rtol is not None and hasattr(solver, "steps")
    while left:
        if _leave(solver, problem, left, lanes):
            keep = progress.running.nonzero().squeeze(-1)
            departed.leave(_end(solver, problem, progress), keep)
            problem, progress, lanes = problem.take(keep), select(_spread(progress), keep), left
            progress = progress._replace(running=True)
        if foresees:
            progress = _coast(solver, problem, progress)
        progress = _step(solver, problem, progress)
        upcoming = progress.trials + 1
        looks = upcoming % every == 0 or upcoming >= min(solver.max_steps, _most(solver))
        ask = settle if looks else _nobody
        ran = progress.running
        left, progress = _look(solver, problem, progress, lanes, left, ask)
        _note(problem, progress, ran)
    found = departed.joined(_end(solver, problem, progress))
    spent = progress.trials >= min(solver.max_steps, _most(solver))
    return _looked_at_last(solver, whole, found, spent)


def _looked_at_last(solver: Any, problem: Any, found: Outcome, spent: bool) -> Outcome:
    """Examine the lanes that are out of steps, or do not move, if nothing else does.

    A solver that goes by what its steps were sees no end where the function's rounding is more than
    that of its value; or an end too soon, where that rounding hides what is left to go.
    """
    looks = getattr(getattr(problem, "equation", None), "looked_at_last", False)
    if (
        not looks
        or solver.rtol is None
        or not alone()
        or examiner(solver, columns(found.z.shape[-1])) is not None
    ):
        return found
    rests = found.residual == 0
    if not (spent or (rests if isinstance(rests, bool) else bool(rests.any()))):
        return found
    found = _with_counts(found.spread())
    rests = (found.status == int(Status.CONVERGED)) & (found.residual == 0)
    late = found.status == int(Status.MAX_STEPS)
    keep: Any = (late | rests).nonzero().squeeze(-1)
    if len(keep) == 0:
        return found
    if problem.separable and len(keep) < len(found.z):
        problem = problem.take(keep)
    else:
        keep = slice(None)
    old = select(found, keep)
    new = judged(solver, problem, old, None)[0].spread()
    old = old._replace(evaluations=new.evaluations)
    solved, lost = (new.status == int(s) for s in (Status.CONVERGED, Status.SINGULAR))
    known = (late[keep] & solved) | (rests[keep] & (solved | lost))
    return cast(Outcome, _put(found, keep, pick(known, new, old)))


def _with_counts(found: Outcome) -> Outcome:
    """Return the same with the evaluations of each lane, if they are counted."""
    counts = found.evaluations
    if len(counts) > 0:
        counts = as_tensor(counts, found.z).expand(len(found.z), 3)
    return found._replace(evaluations=counts)


def _note(problem: Any, progress: Progress, ran: Mask) -> None:
    """Note where the lanes that ``ran`` have come to, if somebody wants to see it."""
    if (history := getattr(problem, "history", None)) is not None:
        history.note(progress.trials, progress.state.error, ran)


def _leave(solver: Any, problem: Any, left: int, lanes: int) -> bool:
    """Tell whether the lanes that are left go on without the others."""
    return 0 < 2 * left <= lanes and solver.compact and problem.separable


def _asks_every(solver: Any, device: torch.device) -> int:
    """Return after how many steps it is asked whether lanes are left."""
    every: int | None = getattr(solver, "check_every", 1)
    if every is None:
        every = _BLOCK if _waits(device) and solver.light else 1
    return every


def _waits(device: torch.device) -> bool:
    """Tell whether the host has to wait for an answer."""
    return device.type != "cpu"


def _nobody(lanes: int, *masks: Mask) -> tuple[list[int], list[Mask]]:
    """Ask nobody: masks stay what they are, and counts are not known."""
    return [-1] * len(masks), list(masks)


def _begin(solver: Any, problem: Any, z: Tensor, made: Any, running: Mask) -> Progress:
    if (counter := _counter(problem)) is not None:
        counter.begin()
    state = solver.init(problem, z)
    best = () if solver.monotone or solver.rtol is None else (state.z, state.error)
    estimate = estimated(solver, problem, state, None)
    trials = int(made.max()) if isinstance(made, Tensor) and not compiling() else made
    before = (math.inf, trials, 0)
    return Progress(state, running, RUNNING, made - 1, trials - 1, estimate, best, 0, before)


def _step(solver: Any, problem: Any, progress: Progress) -> Progress:
    """Make a step in every lane; those that have ended stay."""
    running = progress.running
    state = _marked(progress.state, running)
    if hasattr(solver, "refresh"):
        state = solver.refresh(problem, state)
    new = solver.step(problem, state)
    if not everywhere(running) and not hasattr(new, "accepted"):
        new = with_ended(running, new, state)
    estimate = estimated(solver, problem, new, state)
    return progress._replace(state=new, estimate=estimate)


def _marked(state: Any, running: Mask) -> Any:
    """Return a state that tells the solver which lanes have ended, if it has a place for it."""
    if everywhere(running) or not hasattr(state, "flag"):
        return state
    return state._replace(flag=pick(running, state.flag, ENDED))


def _coast(solver: Any, problem: Any, progress: Progress) -> Progress:
    """Make steps that nobody looks at while no lane is near its end: half of those foreseen.

    If a lane has ended nevertheless, or come no nearer, they are taken back and made one by one.
    """
    state, running, _, iterations, trials, estimate, _, _, (error, since, pause) = progress
    if trials < since + pause:
        return progress
    last, pause = min(solver.max_steps, _most(solver)) - 1, _PAUSE
    made = trials - since
    left = made and made * _foreseen(solver, problem, state, estimate, error, running)
    while (count := int(min(_FARTHEST, left / 2, last - trials)) if left > 0 else 0) > 1:
        new = with_ended(running, solver.steps(problem, state, count), state)
        after = estimated(solver, problem, new, state)
        left = count * _foreseen(solver, problem, new, after, estimate, running)
        if not left > 0:
            pause = count
            break
        state, estimate, trials = new, after, trials + count
        iterations = iterations + pick(running, count, 0)
    progress = progress._replace(state=state, iterations=iterations, trials=trials)
    return progress._replace(estimate=estimate, before=(estimate, trials, pause))


def _foreseen(
    solver: Any, problem: Any, state: Any, error: Any, before: Any, running: Mask
) -> float:
    """Return in how many times as many steps as since ``before`` the first lane will have ended.

    It is not positive if one has, or has come no nearer.
    """
    least = goal(solver, problem, state)
    if isinstance(error, float):
        near = 0 < least < error < before
        return math.log(error / least) / math.log(before / error) if near else 0.0
    left = torch.log(error / least) / torch.log(before / error)
    return pick(running, left, math.inf).amin().item()


def _most(solver: Any) -> int:
    most: int | None = getattr(solver, "max_trials", None)
    return 4 * solver.max_steps if most is None else most


def _look(
    solver: Any, problem: Any, progress: Progress, lanes: int, left: int, ask: Ask
) -> tuple[int, Progress]:
    """Judge what a step has left, by one question; return how many lanes run, and how."""
    state, running, status, iterations, trials, estimate, best, mark, before = progress
    budget, trials = solver.rtol is None, trials + 1
    accepted = getattr(state, "accepted", True)
    if not everywhere(accepted):  # lanes that have ended stay, whatever is said of them
        accepted = implies(running, accepted)
    going = both(goes_on(solver, problem, state, estimate), running)
    late = isinstance(trials, Tensor) or trials >= min(solver.max_steps, _most(solver))
    if late:
        count = iterations + both(budget or accepted, running)
        spent = (count >= solver.max_steps) | (trials >= _most(solver))
        going = both(going, no(spent))
    better = both(accepted, state.error <= best[1]) if best else False
    (now, *_), (going, accepted, better) = ask(lanes, going, accepted, better)
    if hasattr(state, "accepted"):
        state = state.settled(accepted)
    iterations = iterations + both(budget or accepted, running)
    if now != left or now < 0:
        if (counter := _counter(problem)) is not None:
            mark = pick(going, counter.mark(), mark)
        if hasattr(state, "flag"):
            ends, code = both(running, no(going)), proposed(solver, problem, state, estimate)
            if late:
                code = pick(code != RUNNING, code, _out_of_steps(solver))
            status = pick(ends, code, status)
        running = going
    if best:
        best = pick(better, (state.z, state.error), best)
    return now, Progress(state, running, status, iterations, trials, estimate, best, mark, before)


def _counter(problem: Any) -> Counter | None:
    """Return what counts the evaluations of a problem, if they are counted."""
    return getattr(problem, "counter", None) if getattr(problem, "branches", False) else None


def _spread(progress: Progress) -> Progress:
    """Return what lanes share as tensors, of which some lanes can be selected."""
    state, status, iterations = progress.state, progress.status, progress.iterations
    status, iterations = (spread(v, state.z, torch.int64) for v in (status, iterations))
    return progress._replace(status=status, iterations=iterations)


def _out_of_steps(solver: Any) -> int:
    return int(Status.BUDGET if solver.rtol is None else Status.MAX_STEPS)


def _end(solver: Any, problem: Any, progress: Progress) -> Outcome:
    state, status = progress.state, progress.status
    if not hasattr(state, "flag"):
        # nothing but the state itself says how a lane ended
        status = proposed(solver, problem, state, progress.estimate)
        status = pick(status != RUNNING, status, _out_of_steps(solver))
    counter = _counter(problem)
    counts = () if counter is None else counter.until(progress.mark)
    return result(state, status, progress.iterations, progress.best, counts)


def _iterate_in_graph(solver: Any, problem: Any, z: Tensor, made: Any, running: Mask) -> Outcome:
    """Iterate in a compiled graph. A small budget of short steps is unrolled."""
    progress = _begun(solver, problem, z, made, running)
    if solver.rtol is None and solver.max_steps <= (_UNROLLED if _short(solver, problem) else 1):
        here = problem.aliased()
        for _ in range(solver.max_steps):
            progress = _advance(solver, here, progress)
    else:
        progress = loop_in_graph(
            lambda progress: progress.running.any(),
            lambda progress: _some_steps(solver, problem, progress),
            progress,
        )
    return _end(solver, problem, progress)


def _iterate_compiled(solver: Any, problem: Any, z: Tensor, made: Any, running: Mask) -> Outcome:
    """Iterate in compiled blocks of steps; lanes leave between two of them."""
    advance, whole = compiled_step(_block, solver, problem), problem
    progress, departed = in_own_memory(_begun(solver, problem, z, made, running)), Departed()
    let_lanes_vary(len(z), progress)
    while left := int(progress.running.sum()):
        if _leave(solver, problem, bucket(left), len(progress.running)):
            keep = progress.running.nonzero().squeeze(-1)
            departed.leave(_end(solver, problem, progress), keep)
            keep = padded(keep, bucket(left))
            problem, progress = problem.take(keep), select(progress, keep)
            progress.running[left:] = False
        ran = progress.running.clone()
        progress = advance(problem, progress)
        _note(problem, progress, ran)
    return _looked_at_last(solver, whole, departed.joined(_end(solver, problem, progress)), True)


def _block(solver: Any, problem: Any, progress: Progress) -> Progress:
    """Make the steps of a graph that the host calls: of those that are little work, several."""
    return _some_steps(solver, problem, progress, _BLOCK if _short(solver, problem) else 1)


def _short(solver: Any, problem: Any) -> bool:
    """Tell whether a step is little work."""
    return getattr(problem, "linear", False) or getattr(solver, "unrollable", False)


def _begun(solver: Any, problem: Any, z: Tensor, made: Any, running: Mask) -> Progress:
    """Begin with tensors in every place, as a graph has to."""
    progress = _begin(solver, problem, z, made, running)
    every = torch.ones(len(z), dtype=torch.bool, device=z.device)
    status = torch.full((len(z),), RUNNING, dtype=torch.int64, device=z.device)
    counts = made + torch.full_like(status, -1)
    progress = progress._replace(
        running=both(every, running),
        status=status,
        iterations=counts,
        trials=counts,
        before=(math.inf, 0, 0),
    )
    return _look(solver, problem, progress, len(z), -1, _nobody)[1]


def _some_steps(solver: Any, problem: Any, progress: Progress, least: int = 1) -> Progress:
    problem = problem.aliased()
    every = getattr(solver, "check_every", None) or 1
    # torch 2.15's export cannot trace max() in a loop
    for _ in range(every if every > least else least):
        progress = _advance(solver, problem, progress)
    return progress


def _advance(solver: Any, problem: Any, progress: Progress) -> Progress:
    progress = _step(solver, problem, progress)
    return _look(solver, problem, progress, len(progress.running), -1, _nobody)[1]
