"""The command ``implicit-solvers``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import implicit_solvers as ims
from implicit_solvers.problems.experiments import ernn, imaml, reparameterization
from implicit_solvers.problems.experiments.harness.command import execute
from implicit_solvers.testing import check_command

__all__ = ["main"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors name an unknown option, and not what its value was taken for."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Remember the arguments."""
        self.given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        if not message.startswith("unrecognized"):
            known = re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", self.format_help())
            before = ""
            for word in self.given:
                if re.match("--?[a-zA-Z]", word):
                    name = word.partition("=")[0]
                    if not any(option.startswith(name) for option in known):
                        message = f"unrecognized option: {name}"
                        break
                elif not before.startswith("-"):
                    break  # a command: what follows is not for this parser
                before = word
        super().error(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    It is 2 for what cannot be done: an option is unfit, a package or a file is missing, the disk
    is full, a folder has another run's results.
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # who read the output has gone; at its exit, Python would write what is left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says it of a process that SIGPIPE ended


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="implicit-solvers", description="Worked problems of the library implicit-solvers."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {ims.__version__}")
    parser.set_defaults(command=parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    imaml.DEMO.add_to(commands, "demo")
    check = commands.add_parser(
        "check", help="compare the derivatives of your own equation with central differences"
    )
    check_command.add_arguments(check)
    check.set_defaults(command=None)
    reparameterization.add_arguments(
        commands.add_parser(
            "reparam",
            help="experiments on implicit reparameterization: gradients, autoencoders, topics",
            description="Experiments on gradients of expectations by implicit reparameterization.",
        )
    )
    imaml.add_arguments(commands)
    ernn.add_arguments(
        commands.add_parser(
            "ernn",
            help="recurrent networks on an equilibrium manifold: training, gradients, trajectories",
            description="Experiments on recurrent networks whose states are equilibria.",
        )
    )
    arguments = parser.parse_args(argv)
    if arguments.command is parser:
        parser.print_help()
        return 0
    if arguments.command is None:
        return check_command.run(arguments)
    return execute(arguments.command, arguments)


if __name__ == "__main__":
    sys.exit(main())
