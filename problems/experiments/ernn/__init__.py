"""``implicit-solvers ernn``: the experiments on recurrent networks on an equilibrium manifold."""

from __future__ import annotations

import argparse

from implicit_solvers.problems.experiments.ernn import gradients, train, trajectories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the experiments, each with its options."""
    experiments = parser.add_subparsers(metavar="EXPERIMENT", required=True)
    train.TRAIN.add_to(experiments, "train")
    gradients.COMMAND.add_to(experiments, "gradients")
    trajectories.COMMAND.add_to(experiments, "trajectories")
    train.TABLE.add_to(experiments, "table")
