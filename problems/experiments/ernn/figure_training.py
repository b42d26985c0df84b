"""Networks that are trained for a figure, as ``gradients`` and ``trajectories`` do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from implicit_solvers.problems.experiments.harness.options import positive_integer
from implicit_solvers.problems.experiments.harness.run_folder import (
    CheckpointError,
    load_checkpoint,
    write_json,
)
from implicit_solvers.problems.experiments.harness.training import Training, train_all

__all__ = ["add_figure_arguments", "configuration_of", "train_networks"]

State = dict[str, Any]


def add_figure_arguments(
    parser: argparse.ArgumentParser,
    default: Any,
    numbers: Sequence[tuple[str, Callable[[str], Any], str]],
    networks: Collection[str],
    out: Path,
    checkpoint_every: int,
) -> None:
    """Declare the options of a command.

    Parameters
    ----------
    parser
        Receives them.
    default
        The command's configuration, whose fields the options fill.
    numbers
        For each number: the field, what reads it, and what it is.
    networks
        The names to choose ``models`` from.
    out, checkpoint_every
        The defaults of the options of that name.
    """
    parser.add_argument(
        "--models",
        nargs="+",
        choices=list(networks),
        default=default.models,
        metavar="MODEL",
        help=f"of {' '.join(networks)} ({' '.join(default.models)})",
    )
    for name, kind, text in numbers:
        value = getattr(default, name)
        parser.add_argument(
            f"--{name}", type=kind, default=value, metavar="N", help=f"{text} (%(default)s)"
        )
    parser.add_argument("--out", type=Path, default=out, help="folder of the results (%(default)s)")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in that folder"
    )
    parser.add_argument(
        "--checkpoint-every",
        type=positive_integer,
        default=checkpoint_every,
        metavar="N",
        help="epochs from one checkpoint to the next (%(default)s)",
    )


def configuration_of(arguments: argparse.Namespace, default: Any) -> Any:
    """Return the configuration that the options give, like ``default``."""
    options = {name: getattr(arguments, name) for name in asdict(default)}
    return type(default)(**{**options, "models": list(dict.fromkeys(arguments.models))})


def train_networks(
    arguments: argparse.Namespace,
    configuration: Any,
    begin: Callable[[str, State | None], Training],
    console: Console,
    finish: Callable[[State], Any] = lambda content: content,
) -> Any:
    """Train the networks of a configuration, and return what ``finish`` makes of them.

    Parameters
    ----------
    arguments
        With ``out``, ``resume`` and ``checkpoint_every``.
    configuration, begin, console
        As in `cli.training.train_all`.
    finish
        Reads the ``results`` and the networks ``kept``.

    Returns
    -------
    Any
        An ``int``, the command's exit status, if it was interrupted or the checkpoint is unfit.
    """
    out: Path = arguments.out
    path = out / "checkpoint.pt"
    try:
        out.mkdir(parents=True, exist_ok=True)
        checkpoint = load_checkpoint(path, asdict(configuration)) if arguments.resume else None
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(out / "config.json", asdict(configuration))
    try:
        with torch.random.fork_rng(devices=[]):
            content = train_all(
                configuration.models,
                begin,
                asdict(configuration),
                path,
                checkpoint,
                arguments.checkpoint_every,
                console,
            )
        return finish(content)
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on", file=sys.stderr)
        return 130
