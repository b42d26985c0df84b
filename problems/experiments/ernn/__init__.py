"""``implicit-solvers ernn``: the experiments on recurrent networks on an equilibrium manifold."""

from __future__ import annotations

import argparse

from implicit_solvers.problems.experiments.ernn import gradients, table, train, trajectories

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the experiments, each with its options."""
    experiments = parser.add_subparsers(metavar="EXPERIMENT", required=True)
    command = experiments.add_parser(
        "train",
        help="train recurrent networks on one task (minutes)",
        description="Train recurrent networks on one task: each with several rates, of which the "
        "best on the validation part is kept, then with several seeds.",
    )
    train.add_arguments(command)
    command.set_defaults(run=train.run, extra="problems", modules=("matplotlib",))
    command = experiments.add_parser(
        "gradients",
        help="sizes of Jacobians through time, while training and at rest (minutes)",
        description="Follow the Jacobian of the last state by the first while networks are "
        "trained, and compare that of few steps with that of the equilibrium.",
    )
    gradients.add_arguments(command)
    command.set_defaults(run=gradients.run, extra="problems", modules=("matplotlib",))
    command = experiments.add_parser(
        "trajectories",
        help="paths of hidden states of two units (minutes)",
        description="Train networks of two hidden units, and draw the paths of their states.",
    )
    trajectories.add_arguments(command)
    command.set_defaults(run=trajectories.run, extra="problems", modules=("matplotlib",))
    command = experiments.add_parser(
        "table",
        help="accuracy, parameters and time of all networks on all tasks (hours)",
        description="Train all networks on all tasks whose data packages ship, or that are "
        "generated, as the command train does on one.",
    )
    table.add_arguments(command)
    command.set_defaults(run=table.run, extra="problems", modules=("matplotlib", "sklearn"))
