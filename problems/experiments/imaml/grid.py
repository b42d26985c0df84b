"""Many runs, each in a folder of its own: what is there already is not computed again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """One run of a grid.

    Parameters
    ----------
    configuration
        What is computed.
    out
        The run's folder.
    machine
        How it is computed.
    overwrite
        Whether to replace the run of another configuration that is there.
    """

    configuration: Configuration
    out: Path
    machine: Machine = Machine()
    overwrite: bool = False


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
    with ProcessPoolExecutor(min(jobs, len(cells)), context) as pool:
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
