"""``implicit-solvers ernn table``: all networks on all tasks."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from implicit_solvers.problems.experiments.ernn.results import (
    print_table,
    seconds_an_epoch,
    take_seconds,
)
from implicit_solvers.problems.experiments.ernn.table_figure import draw_table
from implicit_solvers.problems.experiments.ernn.tasks import SHIPPED, TASKS, load_task
from implicit_solvers.problems.experiments.ernn.training_options import (
    add_training_arguments,
    configuration_of,
)
from implicit_solvers.problems.experiments.ernn.trials import run_trials, summary
from implicit_solvers.problems.experiments.harness.run_folder import (
    CheckpointError,
    load_checkpoint,
    write_json,
)

__all__ = ["add_arguments", "run"]

DEFAULT_TASKS = ("watch", "motions", "vowels", "digits", "adding", "pixels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=list(SHIPPED),
        default=list(DEFAULT_TASKS),
        metavar="TASK",
        help=f"of {' '.join(SHIPPED)} ({' '.join(DEFAULT_TASKS)})",
    )
    add_training_arguments(parser, Path("runs/ernn-table"))


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    console = Console()
    out: Path = arguments.out
    names = list(dict.fromkeys(arguments.tasks))
    configurations = {name: configuration_of(arguments, name) for name in names}
    try:
        tasks = {name: load_task(name, "") for name in names}
        out.mkdir(parents=True, exist_ok=True)
        paths = {name: out / f"checkpoint-{name}.pt" for name in names}
        checkpoints = {
            name: load_checkpoint(paths[name], asdict(configuration)) if arguments.resume else None
            for name, configuration in configurations.items()
        }
    except (CheckpointError, ModuleNotFoundError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(out / "config.json", {name: asdict(configurations[name]) for name in names})
    results: dict[str, list[dict[str, Any]]] = {}
    try:
        with torch.random.fork_rng(devices=[]):
            for name, configuration in configurations.items():
                console.print(TASKS[name].title)
                results[name] = run_trials(
                    configuration,
                    tasks[name],
                    paths[name],
                    checkpoints[name],
                    arguments.checkpoint_every,
                    console,
                )
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on", file=sys.stderr)
        return 130
    rows = {name: summary(results[name], configurations[name]) for name in names}
    draw_table(out / "accuracy.png", rows)
    seconds = {name: seconds_an_epoch(results[name], rows[name]) for name in names}
    trainings = {name: take_seconds(results[name]) for name in names}
    timing: dict[str, Any] = {"seconds_an_epoch": seconds, "trainings": trainings}
    timing["total"] = time.perf_counter() - start
    metrics = {name: {"models": rows[name], "trainings": results[name]} for name in names}
    write_json(out / "metrics.json", {"tasks": metrics, "timing": timing})
    print_table(console, rows, seconds)
    console.print(f"{timing['total']:.0f} s. Results and the figure are in {out}.")
    return 0
