"""``implicit-solvers ernn train``: recurrent networks on one task."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from implicit_solvers.problems.experiments.ernn.learning_figure import draw_learning
from implicit_solvers.problems.experiments.ernn.results import (
    print_table,
    seconds_an_epoch,
    take_seconds,
)
from implicit_solvers.problems.experiments.ernn.tasks import TASKS, load_task
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--task", choices=list(TASKS), default="digits", help="what is learned (%(default)s)"
    )
    parser.add_argument(
        "--folder", default="", help="where the data are, for the tasks har, har-2, speech, mnist"
    )
    add_training_arguments(parser, Path("runs/ernn-train"))


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    console = Console()
    out: Path = arguments.out
    configuration = configuration_of(arguments, arguments.task, arguments.folder)
    try:
        task = load_task(configuration.task, configuration.folder)
        out.mkdir(parents=True, exist_ok=True)
        path = out / "checkpoint.pt"
        checkpoint = load_checkpoint(path, asdict(configuration)) if arguments.resume else None
    except (CheckpointError, ModuleNotFoundError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(out / "config.json", asdict(configuration))
    try:
        with torch.random.fork_rng(devices=[]):
            results = run_trials(
                configuration, task, path, checkpoint, arguments.checkpoint_every, console
            )
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on", file=sys.stderr)
        return 130
    rows = summary(results, configuration)
    draw_learning(out / "learning.png", TASKS[configuration.task].title, results, rows)
    timing: dict[str, Any] = {"seconds_an_epoch": seconds_an_epoch(results, rows)}
    timing["trainings"] = take_seconds(results)
    timing["total"] = time.perf_counter() - start
    write_json(out / "metrics.json", {"models": rows, "trainings": results, "timing": timing})
    named = {configuration.task: rows}
    print_table(console, named, {configuration.task: timing["seconds_an_epoch"]})
    console.print(f"{timing['total']:.0f} s. Results and the figure are in {out}.")
    return 0
