"""The command ``implicit-solvers``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from implicit_solvers.problems.experiments import ernn, imaml, reparameterization
from implicit_solvers.problems.experiments.harness.command import execute
from implicit_solvers.testing import check_command

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    It is 2 for what cannot be done: an option is unfit, a package or a file is missing, the disk
    is full, a folder has another run's results.

    Parameters
    ----------
    argv
        The arguments; left out, those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="implicit-solvers", description="Worked problems of the library implicit-solvers."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
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
    if arguments.command is None:
        return check_command.run(arguments)
    return execute(arguments.command, arguments)


if __name__ == "__main__":
    sys.exit(main())
