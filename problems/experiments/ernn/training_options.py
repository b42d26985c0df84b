"""The options that the commands ``train`` and ``table`` have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from implicit_solvers.problems.experiments.ernn.models import MODELS
from implicit_solvers.problems.experiments.ernn.tasks import TASKS
from implicit_solvers.problems.experiments.ernn.trials import COMPARED, Configuration
from implicit_solvers.problems.experiments.harness.options import positive, positive_integer, whole

__all__ = ["add_training_arguments", "configuration_of"]

DEFAULT = Configuration(task="", folder="", epochs=1, batch=1)


def add_training_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """Declare the options, and where results go by default."""
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        choices=list(MODELS),
        default=list(COMPARED),
        metavar="MODEL",
        help=f"of {' '.join(MODELS)} ({' '.join(COMPARED)})",
    )
    add(
        "--rates",
        nargs="+",
        type=positive,
        default=DEFAULT.rates,
        metavar="RATE",
        help=f"Adam's rates that are tried ({' '.join(f'{rate:g}' for rate in DEFAULT.rates)})",
    )
    numbers = {
        "seeds": (positive_integer, "trainings of each model with its best rate"),
        "first_seed": (whole, "the first of their seeds"),
        "hidden": (positive_integer, "size of the hidden states"),
        "clip": (positive, "largest norm of a gradient"),
    }
    for name, (kind, text) in numbers.items():
        option = "--" + name.replace("_", "-")
        value = getattr(DEFAULT, name)
        add(option, type=kind, default=value, metavar="N", help=f"{text} (%(default)s)")
    for name, text in {
        "epochs": "passes over the sequences",
        "batch": "sequences in a step",
    }.items():
        add(f"--{name}", type=positive_integer, metavar="N", help=f"{text} (depends on the task)")
    add("--out", type=Path, default=out, help="folder of the results (%(default)s)")
    add("--resume", action="store_true", help="go on from the checkpoint in that folder")
    add(
        "--checkpoint-every",
        type=positive_integer,
        default=5,
        metavar="N",
        help="epochs from one checkpoint to the next (%(default)s)",
    )


def configuration_of(arguments: argparse.Namespace, task: str, folder: str = "") -> Configuration:
    """Return what the options say of a task."""
    return Configuration(
        task=task,
        # another working folder must not make another run of it
        folder=str(Path(folder).resolve()) if folder else "",
        epochs=arguments.epochs or TASKS[task].epochs,
        batch=arguments.batch or TASKS[task].batch,
        models=list(dict.fromkeys(arguments.models)),
        rates=list(dict.fromkeys(arguments.rates)),
        seeds=arguments.seeds,
        first_seed=arguments.first_seed,
        hidden=arguments.hidden,
        clip=arguments.clip,
    )
