"""``implicit-solvers ernn train`` and ``table``: recurrent networks on one task, or on many."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.ernn.figures import draw_learning, draw_table, score_text
from implicit_solvers.problems.experiments.ernn.models import LABELS
from implicit_solvers.problems.experiments.ernn.tasks import SHIPPED, TASKS, load_task
from implicit_solvers.problems.experiments.ernn.trials import Configuration, run_trials, summary

DEFAULT_TASKS = ("watch", "motions", "vowels", "digits", "adding", "pixels")
TIMES = ("seconds", "processor_seconds")

Rows = Sequence[Mapping[str, Any]]


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--task", choices=list(TASKS), default="digits", help="what is learned (%(default)s)")
    add("--folder", default="", help="where the data are, for the tasks har, har-2, speech, mnist")


def _add_table_arguments(parser: argparse.ArgumentParser) -> None:
    text = f"of {' '.join(SHIPPED)} ({' '.join(DEFAULT_TASKS)})"
    given: dict[str, Any] = {"choices": list(SHIPPED), "default": list(DEFAULT_TASKS)}
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=text, **given)


def _configuration(arguments: argparse.Namespace, task: str, folder: str = "") -> Configuration:
    return harness.configuration_of(
        arguments,
        Configuration,
        task=task,
        # another working folder must not make another run of it
        folder=str(Path(folder).resolve()) if folder else "",
        epochs=arguments.epochs or TASKS[task].epochs,
        batch=arguments.batch or TASKS[task].batch,
    )


def _train(arguments: argparse.Namespace) -> int:
    configuration = _configuration(arguments, arguments.task, arguments.folder)
    task, name = load_task(configuration.task, configuration.folder), configuration.task
    with harness.RunFolder.of(arguments, asdict(configuration)) as folder:
        every = arguments.checkpoint_every
        results = run_trials(configuration, task, folder.checkpoint(), every, folder)
        rows = summary(results, configuration)
        draw_learning(folder.path / "learning.png", TASKS[name].title, results, rows)
        seconds = seconds_an_epoch(results, rows)
        print_table(folder.console, {name: rows}, {name: seconds})
        timing = {"seconds_an_epoch": seconds, "trainings": harness.taken(results, *TIMES)}
        folder.finish({"models": rows, "trainings": results}, **timing)
    return 0


def _table(arguments: argparse.Namespace) -> int:
    names = list(dict.fromkeys(arguments.tasks))
    configurations = {name: _configuration(arguments, name) for name in names}
    tasks = {name: load_task(name, "") for name in names}
    written = {name: asdict(configuration) for name, configuration in configurations.items()}
    with harness.RunFolder.of(arguments, written) as folder:
        checkpoints = {
            name: folder.checkpoint(f"checkpoint-{name}.pt", **written[name]) for name in names
        }
        results, rows = {}, {}
        for name, own in configurations.items():
            folder.console.print(TASKS[name].title)
            common = (checkpoints[name], arguments.checkpoint_every, folder)
            results[name] = run_trials(own, tasks[name], *common)
            rows[name] = summary(results[name], own)
        draw_table(folder.path / "accuracy.png", rows)
        seconds = {name: seconds_an_epoch(results[name], rows[name]) for name in names}
        print_table(folder.console, rows, seconds)
        trainings = {name: harness.taken(results[name], *TIMES) for name in names}
        metrics = {name: {"models": rows[name], "trainings": results[name]} for name in names}
        folder.finish({"tasks": metrics}, seconds_an_epoch=seconds, trainings=trainings)
    return 0


def seconds_an_epoch(results: Rows, rows: Rows) -> dict[str, float | None]:
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


def print_table(
    console: Console, rows: Mapping[str, Rows], seconds: Mapping[str, Mapping[str, float | None]]
) -> None:
    """Print scores, parameters, and seconds an epoch, of what `summary` returned for each task."""
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


TRAIN = harness.Command(
    help="train recurrent networks on one task (minutes)",
    description="Train recurrent networks on one task: each with several rates, of which the best "
    "on the validation part is kept, then with several seeds.",
    run=_train,
    out="runs/ernn-train",
    folder={"checkpoint_every": 5},
    configuration=Configuration,
    add_arguments=_add_train_arguments,
)
TABLE = harness.Command(
    help="accuracy, parameters and time of all networks on all tasks (hours)",
    description="Train all networks on all tasks whose data packages ship, or that are generated, "
    "as the command train does on one.",
    run=_table,
    out="runs/ernn-table",
    folder={"checkpoint_every": 5},
    configuration=Configuration,
    add_arguments=_add_table_arguments,
    modules=("matplotlib", "sklearn"),
)
