"""Results as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from implicit_solvers.problems.experiments.ernn.models import LABELS
from implicit_solvers.problems.experiments.ernn.tasks import TASKS

__all__ = ["measures_error", "print_table", "score_text", "seconds_an_epoch", "take_seconds"]


def measures_error(task: str) -> bool:
    """Return whether a task's score is a mean squared error, and smaller is better.

    Examples
    --------
    >>> measures_error("adding"), measures_error("digits")
    (True, False)
    """
    return task == "adding"


def score_text(task: str, row: Mapping[str, Any]) -> str:
    """Return mean ± deviation of a row of `trials.summary`: percent, or thousandths of an error.

    Examples
    --------
    >>> score_text("digits", {"mean": 0.953, "deviation": 0.012})
    '95.3 ± 1.2'
    """
    if row["mean"] is None:
        return "failed"
    scale, digits = (1000, 2) if measures_error(task) else (100, 1)
    text = f"{scale * row['mean']:.{digits}f}"
    if row["deviation"] is None:
        return text
    return f"{text} ± {scale * row['deviation']:.{digits}f}"


def seconds_an_epoch(
    results: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, float | None]:
    """Return, for each model, the median over its trainings of the processor's seconds an epoch.

    Validation after the epoch is a part of it.

    Examples
    --------
    >>> results = [{"model": "rnn", "processor_seconds": 4.0, "test": [0.1, 0.2]}]
    >>> seconds_an_epoch(results, [{"model": "rnn"}])
    {'rnn': 2.0}
    """
    seconds = {}
    for row in rows:
        own = [r for r in results if r["model"] == row["model"] and r["test"]]
        each = [r["processor_seconds"] / len(r["test"]) for r in own]
        seconds[row["model"]] = statistics.median(each) if each else None
    return seconds


def take_seconds(results: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Remove the seconds from results, which then are the same in every run; return them.

    Examples
    --------
    >>> results = [{"model": "rnn", "seconds": 4.5, "processor_seconds": 4.0}]
    >>> take_seconds(results), results
    ({'seconds': [4.5], 'processor_seconds': [4.0]}, [{'model': 'rnn'}])
    """
    return {key: [one.pop(key) for one in results] for key in ("seconds", "processor_seconds")}


def print_table(
    console: Console,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    seconds: Mapping[str, Mapping[str, float | None]],
) -> None:
    """Print the scores, the parameters, and the seconds an epoch of every model and task.

    Parameters
    ----------
    console
        Where to.
    rows
        What `trials.summary` returned for each task.
    seconds
        What `seconds_an_epoch` returned for each task.
    """
    title = (
        "Test part, mean ± standard deviation over seeds: right classes, % (for adding, the mean "
        "squared error · 1000); parameters; seconds an epoch"
    )
    table = Table("model", *(TASKS[task].title for task in rows), title=title)
    for place, row in enumerate(next(iter(rows.values()))):
        cells = []
        for task, own in rows.items():
            time = seconds[task][row["model"]]
            shown = "–" if time is None else f"{time:.2g} s"
            cells.append(f"{score_text(task, own[place])}\n{own[place]['parameters']:,}, {shown}")
        table.add_row(LABELS[row["model"]], *cells)
    console.print(table)
