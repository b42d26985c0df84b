"""``implicit-solvers reparam``: the experiments on implicit reparameterization."""

from __future__ import annotations

import argparse

from implicit_solvers.problems.experiments.reparameterization import gradient_variance, lda, vae

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the experiments, each with its options."""
    experiments = parser.add_subparsers(metavar="EXPERIMENT", required=True)
    command = experiments.add_parser(
        "variance",
        help="variance of gradient estimators (minutes)",
        description="Compare the variance and bias of gradients of expectations: implicit, "
        "shape-augmented rejection (RSVI), and score-function estimators.",
    )
    gradient_variance.add_arguments(command)
    command.set_defaults(run=gradient_variance.run, extra="problems", modules=("matplotlib",))
    command = experiments.add_parser(
        "vae",
        help="autoencoders with Normal, Gamma, Beta and von Mises latents (minutes)",
        description="Train variational autoencoders of digits with Normal, Gamma, Beta and von "
        "Mises latent variables of several dimensions; compare the ELBO of test images, and draw "
        "what the latent variables decode to.",
    )
    vae.add_arguments(command)
    command.set_defaults(run=vae.run, extra="problems", modules=("matplotlib", "sklearn"))
    command = experiments.add_parser(
        "lda",
        help="topics of the Reuters corpus with an amortized Dirichlet posterior (minutes)",
        description="Fit latent Dirichlet allocation to the Reuters corpus with amortized "
        "Dirichlet and logistic-normal posteriors; compare the perplexity of held-out documents.",
    )
    lda.add_arguments(command)
    command.set_defaults(run=lda.run, extra="problems", modules=("matplotlib", "lda"))
