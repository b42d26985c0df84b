"""``implicit-solvers imaml``: meta-learning by implicit gradients, and what it is compared with."""

from __future__ import annotations

import argparse

from implicit_solvers.problems.experiments.imaml import costs, run, sinusoid, table, truth

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a run, and the experiments, each with its options."""
    run.add_arguments(parser)
    parser.set_defaults(run=run.run, extra="problems", modules=("HersheyFonts", "matplotlib"))
    experiments = parser.add_subparsers(metavar="EXPERIMENT", required=False)
    command = experiments.add_parser(
        "table",
        help="accuracy of all methods in several settings (an hour)",
        description="Choose each method's hyperparameters on validation classes, with the same "
        "number of trials (they set the strength, step lengths and the like, unless --trial-steps "
        "is 0); train it in each setting with several seeds; make a table.",
    )
    table.add_arguments(command)
    command.set_defaults(run=table.run)
    command = experiments.add_parser(
        "sinusoid",
        help="error of all methods after 0 to 10 gradient steps on sine waves (ten minutes)",
        description="Train all methods on sine waves, with hyperparameters chosen by the same "
        "number of trials, and measure the error on unseen waves after each gradient step.",
    )
    sinusoid.add_arguments(command)
    command.set_defaults(run=sinusoid.run)
    command = experiments.add_parser(
        "truth",
        help="meta-gradients against the exact one, on quadratic tasks (a minute)",
        description="Compare the meta-gradients of iMAML, MAML and first-order MAML with the "
        "exact one against inner steps, on quadratic tasks with a closed form.",
    )
    truth.add_arguments(command)
    command.set_defaults(run=truth.run)
    command = experiments.add_parser(
        "costs",
        help="memory and time of a meta-gradient against inner steps (minutes)",
        description="Measure the memory of live tensors and the time of one task's meta-gradient, "
        "of iMAML and of MAML, against inner steps.",
    )
    costs.add_arguments(command)
    command.set_defaults(run=costs.run)
