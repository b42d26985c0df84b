"""The command ``implicit-solvers``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence

from implicit_solvers.problems.experiments import ernn, imaml, reparameterization
from implicit_solvers.problems.experiments.imaml import demo
from implicit_solvers.testing import check_command

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; 2 if an extra is missing.

    Parameters
    ----------
    argv
        The arguments; left out, those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="implicit-solvers", description="Worked problems of the library implicit-solvers."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser(
        "demo",
        help="learn to tell characters apart after one example of each (three minutes)",
        description="Meta-learn by implicit gradients (iMAML) to tell apart five characters that "
        "were never seen, after one example of each; compare with two baselines, and the cost "
        "with that of unrolling.",
    )
    demo.add_arguments(command)
    command.set_defaults(run=demo.run, extra="problems", modules=("HersheyFonts", "matplotlib"))
    command = commands.add_parser(
        "check", help="compare the derivatives of your own equation with central differences"
    )
    check_command.add_arguments(command)
    command.set_defaults(run=check_command.run, extra="", modules=())
    command = commands.add_parser(
        "reparam",
        help="experiments on implicit reparameterization: gradients, autoencoders, topics",
        description="Experiments on gradients of expectations by implicit reparameterization.",
    )
    reparameterization.add_arguments(command)
    command = commands.add_parser(
        "imaml",
        help="meta-learning by implicit gradients: one method, tables and figures",
        description="Meta-learn with one method on one kind of tasks, and score it on unseen ones. "
        "Experiments with many methods are commands of their own.",
    )
    imaml.add_arguments(command)
    command = commands.add_parser(
        "ernn",
        help="recurrent networks on an equilibrium manifold: training, gradients, trajectories",
        description="Experiments on recurrent networks whose states are equilibria.",
    )
    ernn.add_arguments(command)
    arguments = parser.parse_args(argv)
    missing = [name for name in arguments.modules if not _importable(name)]
    if missing:
        print(
            f"error: this command needs {' and '.join(missing)}: "
            f"pip install 'implicit-solvers[{arguments.extra}]'",
            file=sys.stderr,
        )
        return 2
    return arguments.run(arguments)


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


if __name__ == "__main__":
    sys.exit(main())
