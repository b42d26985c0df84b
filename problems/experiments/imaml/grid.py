"""Many runs, each in a folder of its own, and the searches that tune all methods alike."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.imaml.configuration import Configuration
from implicit_solvers.problems.experiments.imaml.run import Machine, shown, train_and_score


@dataclass(frozen=True)
class Cell:
    """One run of a grid, in a folder of its own."""

    configuration: Configuration
    out: Path
    machine: Machine = Machine()
    overwrite: bool = False  # replace the run of another configuration that is there


def _written(cell: Cell, name: str) -> dict[str, Any] | None:
    try:
        return harness.read_json(cell.out / name)
    except (OSError, ValueError):
        return None


def finished(cell: Cell) -> dict[str, Any] | None:
    """Return the metrics of a run that is complete, else None."""
    if _written(cell, "config.json") != asdict(cell.configuration):
        return None
    return _written(cell, "metrics.json")


def run_all(
    folder: harness.RunFolder, name: str, cells: Sequence[Cell], jobs: int
) -> list[dict[str, Any]]:
    """Run what is not finished behind a progress bar of that name; return the metrics of all.

    The folder's seconds are those of all the runs, with what earlier processes spent on them.
    """
    start = time.perf_counter()
    there = {cell: finished(cell) for cell in cells}
    results = {cell: metrics for cell, metrics in there.items() if metrics is not None}
    computed = _computed([cell for cell in cells if cell not in results], jobs)
    with folder.progress() as progress:
        bar = progress.add_task(name, total=len(cells), note="")
        for cell, metrics in itertools.chain(list(results.items()), computed):
            results[cell] = metrics
            score = metrics["score"]["mean"] if metrics["score"] else metrics["validation"]
            text = shown(score, cell.configuration.score_name)
            progress.update(bar, advance=1, note=f"{cell.out.name}: {text}")
    spent = sum(metrics["timing"]["total"] for metrics in results.values())
    folder.before += spent - (time.perf_counter() - start)
    return [results[cell] for cell in cells]


def _computed(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    if jobs == 1 or len(cells) < 2:
        for cell in cells:
            yield cell, _run(cell)
        return
    # fork would copy torch's threads in whatever state they are
    context = multiprocessing.get_context("spawn")
    # Control-C ends the workers too, which would go on with what is queued
    ending = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(min(jobs, len(cells)), context, signal.signal, ending) as pool:
        futures = {pool.submit(_run, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run(cell: Cell) -> dict[str, Any]:
    torch.set_num_threads(1)
    configuration = asdict(cell.configuration)
    replaced = cell.overwrite and _written(cell, "config.json") != configuration
    folder = harness.RunFolder(cell.out, configuration, resume=not replaced, overwrite=replaced)
    return train_and_score(cell.configuration, folder, cell.machine)


def markdown_table(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Return a table with the methods down.

    Examples
    --------
    >>> print(markdown_table(["5-way 1-shot"], {"MAML": ["85.0 ± 1.0"]}))
    | method | 5-way 1-shot |
    |---|---|
    | MAML | 85.0 ± 1.0 |
    <BLANKLINE>
    """
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    return "\n".join(lines) + "\n"


# ---- The search for hyperparameters ----

Grid = Mapping[str, tuple[float, float]]
"""Of each hyperparameter, where the search begins, and the ratio of one value to the next."""

UNSCORED = {"evaluation_tasks": 0, "validations": 1, "validation_tasks": 200}

_STEPS: Grid = {"inner_lr": (0.2, 2.0), "inner_steps": (8, 2.0)}
GRIDS: dict[str, Grid] = {
    "imaml-gd": {"strength": (0.5, 2.0), **_STEPS, "adjoint_steps": (5, 2.0)},
    "imaml-hf": {"strength": (0.5, 2.0), "newton_steps": (3, 2.0), "adjoint_steps": (5, 2.0)},
    **dict.fromkeys(("maml", "fomaml", "reptile"), _STEPS),
    "r2d2": {"ridge": (5.0, 2.0), "scale": (5.0, 2.0)},
}

_RATE: Grid = {"lr": (5e-3, 2.0)}
_MAML_WAVES: Grid = {"inner_lr": (0.02, 2.0), **_RATE}
WAVE_GRIDS: dict[str, Grid] = {
    "imaml-gd": {"strength": (4.0, 2.0), **_MAML_WAVES},
    "imaml-hf": {"strength": (4.0, 2.0), **_RATE},
    **dict.fromkeys(("maml", "fomaml", "reptile"), _MAML_WAVES),
    "r2d2": {"ridge": (0.2, 2.0), "scale": (1.0, 2.0), **_RATE},
}


def pattern_search(
    grid: Grid, *, higher_is_better: bool
) -> Generator[dict[str, float], float, dict[str, float]]:
    """Yield points of a grid, take the score of each, and return the best.

    A point moves along one hyperparameter to the next value, and on in that direction, as long as
    the score gets better. The search ends when no neighbour is better. The grid has no end, so that
    the choice lies in its interior; numbers of steps are rounded, and end at 1. NaN is the worst.

    Source: Hooke and Jeeves, "'Direct search' solution of numerical and statistical problems"
    (1961), without its pattern moves.

    Examples
    --------
    >>> search = pattern_search({"lr": (0.5, 2.0), "steps": (1, 2.0)}, higher_is_better=True)
    >>> point = next(search)
    >>> try:
    ...     while True:
    ...         point = search.send(-abs(point["lr"] - 4.0) - abs(point["steps"] - 2))
    ... except StopIteration as end:
    ...     end.value
    {'lr': 4.0, 'steps': 2}
    """

    def point(place: Sequence[int]) -> dict[str, float]:
        values = {}
        for (name, (first, ratio)), power in zip(grid.items(), place, strict=True):
            value = first * ratio**power
            values[name] = max(1, round(value)) if isinstance(first, int) else value
        return values

    def worth(score: float) -> float:
        return -math.inf if math.isnan(score) else score if higher_is_better else -score

    place, moving = (0,) * len(grid), True
    best, seen = worth((yield point(place))), [point(place)]
    while moving:
        moving = False
        for axis in range(len(grid)):
            for direction in (1, -1):
                while True:
                    there = tuple(k + direction * (i == axis) for i, k in enumerate(place))
                    if point(there) in seen:
                        break
                    seen.append(point(there))
                    score = worth((yield point(there)))
                    if score <= best:
                        break
                    place, best, moving = there, score, True
    return point(place)


def run_searches(
    folder: harness.RunFolder,
    name: str,
    grids: Mapping[str, Grid],
    configuration_of: Callable[[str, Mapping[str, float]], Configuration],
    jobs: int,
    machine: Machine,
) -> dict[str, dict[str, Any]]:
    """Search on validation classes; return the scores and the choice of each method.

    The searches take turns: there are as many trials at once as methods that have not ended.
    """
    found: dict[str, dict[str, Any]] = {method: {"tried": [], "chosen": {}} for method in grids}
    searches, waiting = {}, {}
    for method, grid in grids.items():
        higher = configuration_of(method, {}).score_name == "accuracy"
        searches[method] = pattern_search(grid, higher_is_better=higher)
        if grid:
            waiting[method] = next(searches[method])
    while waiting:
        cells = []
        for method, trial in waiting.items():
            configuration = configuration_of(method, {**trial, **UNSCORED})
            values = "-".join(f"{value:g}" for value in trial.values())
            out = folder.path / f"{name}-{method}-{values}"
            cells.append(Cell(configuration, out, machine, folder.overwrite))
        metrics = run_all(folder, name, cells, jobs)
        for (method, trial), entry in zip(list(waiting.items()), metrics, strict=True):
            found[method]["tried"].append({**trial, "validation": entry["validation"]})
            try:
                waiting[method] = searches[method].send(entry["validation"])
            except StopIteration as end:
                found[method]["chosen"] = end.value
                del waiting[method]
    return found
