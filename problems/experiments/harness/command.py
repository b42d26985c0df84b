"""A command: what its help says, what it needs, and what its errors become."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from implicit_solvers.problems.experiments.harness.options import add_options, add_run_options
from implicit_solvers.problems.experiments.harness.run_folder import InterruptedRunError


@dataclass(frozen=True)
class Command:
    """A command of ``implicit-solvers``.

    ``run`` returns the exit status; ``out`` is the default folder of the results, and ``folder``
    has other options of `add_run_options`. The fields of ``configuration``, a dataclass, are
    options, and ``add_arguments`` declares more. ``modules`` is what it imports beyond the library:
    the extra ``problems`` has it.
    """

    help: str
    description: str
    run: Callable[[argparse.Namespace], int]
    out: str
    folder: dict[str, Any] = field(default_factory=dict)
    configuration: type | None = None
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    modules: tuple[str, ...] = ("matplotlib",)

    def add_to(self, parsers: Any, name: str) -> argparse.ArgumentParser:
        """Declare the command among others, and return its parser."""
        parser = parsers.add_parser(name, help=self.help, description=self.description)
        self.add_arguments(parser)
        if self.configuration is not None:
            add_options(parser, self.configuration)
        add_run_options(parser, self.out, **self.folder)
        parser.set_defaults(command=self)
        return parser


def execute(command: Command, arguments: argparse.Namespace) -> int:
    """Run a command and return its exit status.

    It is 2, with a sentence, for what it cannot do: a package or a file is missing, the disk is
    full, options do not fit; 130 if it was interrupted.
    """
    missing = [name for name in command.modules if not _importable(name)]
    if missing:
        print(
            f"error: this command needs {' and '.join(missing)}: "
            "pip install 'implicit-solvers[problems]'",
            file=sys.stderr,
        )
        return 2
    arguments.started = time.perf_counter()
    torch.set_num_threads(getattr(arguments, "threads", 1))
    try:
        with torch.random.fork_rng(devices=[]):
            return command.run(arguments)
    except BrokenPipeError:
        raise
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except InterruptedRunError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: nothing was written, the same command begins again", file=sys.stderr)
    return 130


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
