"""Many runs, each in a folder of its own, and the trials that tune all methods alike."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
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
    cells: Sequence[Cell],
    jobs: int = 1,
    report: Callable[[Cell, Mapping[str, Any]], None] = lambda cell, metrics: None,
) -> list[dict[str, Any]]:
    """Run what is not finished, and return the metrics of all."""
    results: dict[Cell, dict[str, Any]] = {}
    there = {cell: finished(cell) for cell in cells}
    waiting = [cell for cell, metrics in there.items() if metrics is None]
    kept = [(cell, metrics) for cell, metrics in there.items() if metrics is not None]
    for source in (kept, _computed(waiting, jobs)):
        for cell, metrics in source:
            results[cell] = metrics
            report(cell, metrics)
    return [results[cell] for cell in cells]


def run_with_bar(
    folder: harness.RunFolder, name: str, cells: Sequence[Cell], jobs: int
) -> list[dict[str, Any]]:
    """Return what `run_all` does, and show a progress bar with that name meanwhile."""
    with folder.progress() as progress:
        bar = progress.add_task(name, total=len(cells), note="")

        def report(cell: Cell, metrics: Mapping[str, Any]) -> None:
            score = metrics["score"]["mean"] if metrics["score"] else metrics["validation"]
            text = shown(score, cell.configuration.score_name)
            progress.update(bar, advance=1, note=f"{cell.out.name}: {text}")

        return run_all(cells, jobs, report)


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


# ---- Trials ----

Trials = tuple[dict[str, float], ...]

TRIAL_TASKS = 200


def _each(**values: Sequence[float]) -> Trials:
    """Return all combinations; the first hyperparameter changes fastest.

    Examples
    --------
    >>> _each(ridge=(1.0, 10.0), scale=(3.0,))
    ({'ridge': 1.0, 'scale': 3.0}, {'ridge': 10.0, 'scale': 3.0})
    """
    rows = itertools.product(*reversed(values.values()))
    return tuple(dict(zip(values, reversed(row), strict=True)) for row in rows)


_MAML = _each(inner_lr=(0.05, 0.1, 0.2, 0.4))
TRIALS: dict[str, Trials] = {
    "imaml-gd": _each(strength=(2.0, 0.5), inner_lr=(0.1, 0.3)),
    "imaml-hf": _each(strength=(2.0, 1.0, 0.5, 0.25)),
    "maml": _MAML,
    "fomaml": _MAML,
    "reptile": (
        {"inner_lr": 0.1, "lr": 2e-3, "convolution_lr": 2e-2},
        {"inner_lr": 0.3, "lr": 2e-3, "convolution_lr": 2e-2},
        {"inner_lr": 0.1, "lr": 1e-3, "convolution_lr": 5e-3},
        {"inner_lr": 0.3, "lr": 1e-3, "convolution_lr": 5e-3},
    ),
    "r2d2": _each(ridge=(1.0, 10.0), scale=(3.0, 10.0)),
}

_RATES = (3e-3, 1e-2)
_IMAML_WAVES = _each(strength=(2.0, 8.0), lr=_RATES)
_MAML_WAVES = _each(inner_lr=(0.01, 0.03), lr=_RATES)
WAVE_TRIALS: dict[str, Trials] = {
    "imaml-gd": _IMAML_WAVES,
    "imaml-hf": _IMAML_WAVES,
    "maml": _MAML_WAVES,
    "fomaml": _MAML_WAVES,
    "reptile": _MAML_WAVES,
    "r2d2": _each(ridge=(0.1, 1.0), scale=(1.0,), lr=_RATES),
}


def run_trials(
    folder: harness.RunFolder,
    trials: Mapping[str, Sequence[Mapping[str, float]]],
    configuration_of: Callable[[str, Mapping[str, float]], Configuration],
    jobs: int,
    machine: Machine,
) -> dict[str, dict[str, Any]]:
    """Try hyperparameters on validation classes; return scores and choice for each method."""
    cells: list[Cell] = []
    for method, own in trials.items():
        for number, trial in enumerate(own):
            configuration = replace(
                configuration_of(method, trial),
                evaluation_tasks=0,
                validations=1,
                validation_tasks=TRIAL_TASKS,
            )
            out = folder.path / f"trial-{method}-{number}"
            cells.append(Cell(configuration, out, machine, folder.overwrite))
    metrics = iter(run_with_bar(folder, "trials", cells, jobs))
    higher_is_better = all(cell.configuration.score_name == "accuracy" for cell in cells)
    tried = {}
    for method, own in trials.items():
        scores = [next(metrics)["validation"] for _ in own]
        tried[method] = {
            "tried": [{**t, "validation": s} for t, s in zip(own, scores, strict=True)],
            "chosen": best_trial(own, scores, higher_is_better=higher_is_better),
        }
    return tried


def best_trial(
    trials: Sequence[Mapping[str, float]], scores: Sequence[float], *, higher_is_better: bool
) -> dict[str, Any]:
    """Return the hyperparameters with the best score; of equal ones, the first. NaN is the worst.

    Examples
    --------
    >>> best_trial([{"lr": 0.1}, {"lr": 0.2}], [0.5, 0.7], higher_is_better=True)
    {'lr': 0.2}
    """
    sign = -1 if higher_is_better else 1
    keys = [(score != score, sign * score) for score in scores]
    return dict(trials[min(range(len(keys)), key=keys.__getitem__)])
