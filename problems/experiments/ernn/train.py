"""``implicit-solvers ernn train`` and ``table``: recurrent networks on one task, or on many."""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.ernn.figures import (
    draw_learning,
    draw_table,
    measures_error,
    score_text,
)
from implicit_solvers.problems.experiments.ernn.models import LABELS
from implicit_solvers.problems.experiments.ernn.tasks import SHIPPED, TASKS, load_task
from implicit_solvers.problems.experiments.ernn.trials import (
    Configuration,
    adjust,
    run_trials,
    summary,
)

DEFAULT_TASKS = ("pixels", "noise", "watch", "adding", "copying")
TIMES = ("seconds", "processor_seconds")
HEAD = (
    "Test part, mean and half of its 95% t-interval over seeds (their number): right classes, % "
    "(adding: mean squared error · 1000). ▲ better than the RNN, ▼ worse: paired t-tests over "
    "seeds, Holm's correction over the whole table, level 5%."
)
SHUFFLED = (
    "Right classes, %: as they are / even steps exchanged among themselves, and odd ones / all "
    "steps shuffled"
)

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
    own = TASKS[task]
    return harness.configuration_of(
        arguments,
        Configuration,
        task=task,
        # another working folder must not make another run of it
        folder=str(Path(folder).resolve()) if folder else "",
        epochs=arguments.epochs or own.epochs,
        batch=arguments.batch or own.batch,
        seeds=arguments.seeds or own.seeds,
    )


def _train(arguments: argparse.Namespace) -> int:
    configuration = _configuration(arguments, arguments.task, arguments.folder)
    folds, name = load_task(configuration.task, configuration.folder), configuration.task
    with harness.RunFolder.of(arguments, asdict(configuration)) as folder:
        every = arguments.checkpoint_every
        results = run_trials(configuration, folds, folder.checkpoint(), every, folder)
        rows = {name: summary(results, configuration)}
        adjust(rows)
        draw_learning(folder.path / "learning.png", TASKS[name].title, results, rows[name])
        taken = {name: seconds_of(results, rows[name])}
        _print(folder, markdown(rows, taken))
        timing = {"processor_seconds": taken, "trainings": harness.taken(results, *TIMES)}
        folder.finish({"models": rows[name], "trainings": results}, **timing)
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
        stages = {stage[0] for own in configurations.values() for stage in own.stages()}
        for place in sorted(stages):
            results = {}
            for name, own in configurations.items():
                common = (checkpoints[name], arguments.checkpoint_every, folder, place)
                results[name] = run_trials(own, tasks[name], *common)
            # a table of what there is
            _write(folder, configurations, results)
    return 0


def _write(
    folder: harness.RunFolder,
    configurations: Mapping[str, Configuration],
    results: Mapping[str, Sequence[harness.State]],
) -> None:
    rows = {name: summary(own, configurations[name]) for name, own in results.items()}
    adjust(rows)
    draw_table(folder.path / "accuracy.png", rows)
    taken = {name: seconds_of(own, rows[name]) for name, own in results.items()}
    text = markdown(rows, taken)
    harness.write_whole(folder.path / "table.md", text.encode())
    _print(folder, text)
    kept = {name: [copy.copy(one) for one in own] for name, own in results.items()}
    trainings = {name: harness.taken(own, *TIMES) for name, own in kept.items()}
    metrics = {name: {"models": rows[name], "trainings": kept[name]} for name in rows}
    folder.finish({"tasks": metrics}, processor_seconds=taken, trainings=trainings)


def _print(folder: harness.RunFolder, text: str) -> None:
    folder.console.print(text, markup=False, highlight=False, soft_wrap=True)


def seconds_of(results: Rows, rows: Rows) -> dict[str, float | None]:
    """Return, for each model, the median over its trainings of the processor's seconds.

    Validation after each epoch and the test are a part of it; trainings that failed are not.

    Examples
    --------
    >>> results = [{"model": "rnn", "processor_seconds": s, "score": 0.9} for s in (4.0, 2.0, 3.0)]
    >>> seconds_of(results, [{"model": "rnn"}])
    {'rnn': 3.0}
    """
    seconds = {}
    for row in rows:
        own = [r for r in results if r["model"] == row["model"] and r["score"] is not None]
        each = [r["processor_seconds"] for r in own]
        seconds[row["model"]] = statistics.median(each) if each else None
    return seconds


def markdown(rows: Mapping[str, Rows], seconds: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return tables of scores, costs and scores after shuffling, models down and tasks across."""
    models = sorted({row["model"] for own in rows.values() for row in own}, key=list(LABELS).index)
    places = {task: {row["model"]: row for row in own} for task, own in rows.items()}

    def table(tasks: Sequence[str], cell: Callable[[str, Mapping[str, Any]], str]) -> str:
        head = ["", *(TASKS[task].title for task in tasks)]
        body = [
            [LABELS[m], *(cell(t, places[t][m]) if m in places[t] else "–" for t in tasks)]
            for m in models
        ]
        return "".join(
            f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *body]
        ).replace("| --- ", "|---")

    def cost(task: str, row: Mapping[str, Any]) -> str:
        taken = seconds[task][row["model"]]
        return f"{row['parameters']:,}; {'–' if taken is None else f'{taken:.3g} s'}"

    def orders(_: str, row: Mapping[str, Any]) -> str:
        kinds = (row["mean"], row["parity_shuffled"], row["shuffled"])
        return " / ".join("–" if value is None else f"{100 * value:.1f}" for value in kinds)

    ordered = [task for task, own in rows.items() if any(r["shuffled"] is not None for r in own)]
    ordered = [task for task in ordered if not measures_error(task)]
    costs = "Parameters; processor seconds of a training (median)"
    parts = [HEAD, table(list(rows), score_text), costs, table(list(rows), cost)]
    if ordered:
        parts += [SHUFFLED, table(ordered, orders)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


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
    description="Train all networks on several tasks whose data packages ship, or that are "
    "generated, as the command train does on one: a seed of all tasks, then the next. Tables and a "
    "figure of what is there are written after each.",
    run=_table,
    out="runs/ernn-table",
    folder={"checkpoint_every": 2},
    configuration=Configuration,
    add_arguments=_add_table_arguments,
    modules=("matplotlib", "sklearn"),
)
