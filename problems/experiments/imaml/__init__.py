"""``implicit-solvers imaml`` and ``demo``: meta-learning by implicit gradients, and its rivals."""

from __future__ import annotations

from typing import Any

from implicit_solvers.problems.experiments.imaml import costs, demo, run, sinusoid, table, truth

DEMO = demo.COMMAND


def add_arguments(commands: Any) -> None:
    """Declare a run, which is a command itself, and below it the experiments."""
    parser = run.COMMAND.add_to(commands, "imaml")
    experiments = parser.add_subparsers(metavar="EXPERIMENT", required=False)
    table.COMMAND.add_to(experiments, "table")
    sinusoid.COMMAND.add_to(experiments, "sinusoid")
    truth.COMMAND.add_to(experiments, "truth")
    costs.COMMAND.add_to(experiments, "costs")
