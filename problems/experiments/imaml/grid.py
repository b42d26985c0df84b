"""Many runs, each in a folder of its own: what is there already is not computed again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from implicit_solvers.problems.experiments.harness.progress_bar import progress_bar
from implicit_solvers.problems.experiments.imaml.configuration import Configuration
from implicit_solvers.problems.experiments.imaml.run import Machine, shown, train_and_score

__all__ = ["Cell", "finished", "run_all", "run_with_bar"]


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Parameters
    ----------
    configuration
        What is computed.
    out
        The run's folder.
    machine
        How it is computed.
    """

    configuration: Configuration
    out: Path
    machine: Machine = Machine()


def finished(cell: Cell) -> dict[str, Any] | None:
    """Return the metrics of a run that is complete, else None.

    A kill may leave a half-written file: it counts as none.
    """
    try:
        written = json.loads((cell.out / "config.json").read_text())
        metrics = json.loads((cell.out / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    return metrics if written == asdict(cell.configuration) else None


def run_all(
    cells: Sequence[Cell],
    jobs: int = 1,
    report: Callable[[Cell, Mapping[str, Any]], None] = lambda cell, metrics: None,
) -> list[dict[str, Any]]:
    """Run what is not finished, and return the metrics of all.

    Parameters
    ----------
    cells
        The runs.
    jobs
        How many processes work on them; with one, it is this process.
    report
        Is called after each run.

    Raises
    ------
    CheckpointError
        If a run's folder has a checkpoint of another configuration.
    """
    results: dict[Cell, dict[str, Any]] = {}
    waiting = []
    for cell in cells:
        metrics = finished(cell)
        if metrics is None:
            waiting.append(cell)
        else:
            results[cell] = metrics
            report(cell, metrics)
    for cell, metrics in _computed(waiting, jobs):
        results[cell] = metrics
        report(cell, metrics)
    return [results[cell] for cell in cells]


def run_with_bar(
    console: Console, name: str, cells: Sequence[Cell], jobs: int
) -> list[dict[str, Any]]:
    """Return what `run_all` does, and show a progress bar with that name meanwhile."""
    with progress_bar(console) as progress:
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
    with ProcessPoolExecutor(min(jobs, len(cells)), context) as pool:
        futures = {pool.submit(_run, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run(cell: Cell) -> dict[str, Any]:
    torch.set_num_threads(1)
    return train_and_score(cell.configuration, cell.out, cell.machine, resume=True)
