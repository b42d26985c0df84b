"""``implicit-solvers reparam``: the experiments on implicit reparameterization."""

from __future__ import annotations

import argparse

from implicit_solvers.problems.experiments.reparameterization import lda, vae, variance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the experiments, each with its options."""
    experiments = parser.add_subparsers(metavar="EXPERIMENT", required=True)
    variance.COMMAND.add_to(experiments, "variance")
    vae.COMMAND.add_to(experiments, "vae")
    lda.COMMAND.add_to(experiments, "lda")
