"""``implicit-solvers reparam vae``: autoencoders with four kinds of latent variables."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from implicit_solvers.problems.experiments.data.digits import Digits, load_digits, load_mnist
from implicit_solvers.problems.experiments.harness.command import Command
from implicit_solvers.problems.experiments.harness.options import (
    add_options,
    add_run_options,
    configuration_of,
    number,
    option,
)
from implicit_solvers.problems.experiments.harness.run_folder import RunFolder
from implicit_solvers.problems.experiments.harness.training import (
    Schedule,
    State,
    Training,
    fit,
    restored,
    spread,
    taken,
    train_all,
)
from implicit_solvers.problems.experiments.reparameterization.autoencoder import (
    Autoencoder,
    binarized,
    evaluate,
)
from implicit_solvers.problems.experiments.reparameterization.figures import (
    LATENT_LABELS,
    draw_decoded,
    draw_elbo,
    draw_torus,
)
from implicit_solvers.problems.experiments.reparameterization.latents import LATENTS

__all__ = ["COMMAND", "Configuration", "validation_split"]

VALIDATION_EVERY = 4


@dataclass(frozen=True)
class Configuration:
    """What the results depend on: one training for each latent, number of dimensions and seed."""

    latents: list[str] = option(list(LATENTS), "kinds", choices=LATENTS)
    dimensions: list[int] = option([2, 10, 20], "of the latents", names=("d",), metavar="D")
    seeds: int = option(3, "trainings of each kind")
    first_seed: int = option(0, "the first of their seeds", read=number(int, 0, closed=True))
    epochs: int = option(160, "passes over the images")
    batch: int = option(128, "images in a step of Adam")
    hidden: int = option(128, "width of the hidden layers")
    lr: float = option(3e-3, "Adam's rate")
    warm_up: float = option(0.4, "share of epochs in which the divergence's weight grows to 1")
    samples: int = option(20, "samples for each test image in the final ELBO")
    starts: dict[str, float] = field(
        default_factory=lambda: {name: latent.start for name, latent in LATENTS.items()}
    )
    data: str = option(
        "digits",
        "scikit-learn's digits, or a folder with MNIST's four idx files",
        metavar="digits|FOLDER",
    )
    validation: bool = option(
        False, "leave out the test images, and score every fourth of the training images instead"
    )

    def runs(self) -> list[tuple[str, int, int]]:
        """Return the latents, dimensions and seeds of all trainings."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [(name, d, s) for name in self.latents for d in self.dimensions for s in seeds]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, Configuration)
    text = "what is added to the outputs for positive parameters (each latent has its own)"
    parser.add_argument("--start", type=number(float), metavar="X", help=text)
    add_run_options(parser, "runs/reparam-vae", checkpoint_every=10)


def _run(arguments: argparse.Namespace) -> int:
    starts = {
        name: LATENTS[name].start if arguments.start is None else arguments.start
        for name in arguments.latents
    }
    own = arguments.data == "digits"
    # another working folder must not make another run of it
    data = arguments.data if own else str(Path(arguments.data).resolve())
    c = configuration_of(arguments, Configuration, starts=starts, data=data)
    digits = load_digits() if own else load_mnist(Path(data))
    if c.validation:
        digits = validation_split(digits)
    with RunFolder.of(arguments, asdict(c)) as folder:
        common = (c.epochs, folder.checkpoint(), arguments.checkpoint_every, folder)
        content = train_all(c.runs(), _begin(c, digits), *common)
        _draw(folder.path, c, content, digits)
        results = content["results"]
        summary = _summary(results, c)
        folder.console.print(_table(summary, c, digits))
        seconds = taken(results, "seconds")["seconds"]
        folder.finish({"elbo": summary, "trainings": results}, trainings=seconds)
    return 0


def validation_split(digits: Digits) -> Digits:
    """Return the images to train on, every fourth of them in place of the test images.

    Parameters
    ----------
    digits
        Whose test images are left out.
    """
    held_out = torch.arange(len(digits.train)) % VALIDATION_EVERY == 0
    return Digits(
        *(digits.train[~held_out], digits.train[held_out]),
        *(digits.train_labels[~held_out], digits.train_labels[held_out]),
        digits.side,
    )


def _begin(
    c: Configuration, digits: Digits
) -> Callable[[tuple[str, int, int], State | None], Training]:
    """Return how `train_all` begins a training."""
    images, test_images = binarized(digits.train), binarized(digits.test)
    schedule = Schedule(c.epochs, c.batch, c.warm_up)

    def begin(run: tuple[str, int, int], state: State | None) -> Training:
        name, dimensions, seed = run
        model = _fresh(c, name, dimensions, seed, images.shape[1])
        optimizer = torch.optim.Adam(model.parameters(), c.lr)

        def loss(batch: Tensor, weight: float) -> tuple[Tensor, Tensor]:
            likelihood, divergence = model(batch)
            return (weight * divergence - likelihood).mean(), likelihood - divergence

        def test() -> float:
            likelihood, divergence = evaluate(model, test_images, samples=1)
            return likelihood - divergence

        def result() -> State:
            likelihood, divergence = evaluate(model, test_images, c.samples)
            scores = {"elbo": likelihood - divergence, "fit": likelihood, "divergence": divergence}
            return {"latent": name, "dimensions": dimensions, "seed": seed, **scores}

        return Training(
            f"{LATENT_LABELS[name]}, {dimensions} dimensions, seed {seed}: test ELBO",
            fit(model, optimizer, images, loss, test, schedule, seed, state),
            result,
            kept=model if dimensions == 2 and seed == c.first_seed else None,
        )

    return begin


def _fresh(c: Configuration, name: str, dimensions: int, seed: int, pixels: int) -> Autoencoder:
    torch.manual_seed(seed)
    latent = replace(LATENTS[name], start=c.starts[name])
    return Autoencoder(latent, dimensions, pixels, c.hidden)


def _draw(out: Path, c: Configuration, content: Mapping[str, Any], digits: Digits) -> None:
    draw_elbo(out / "elbo.png", content["results"])
    models = {}
    for place, state in content["kept"].items():
        name = c.runs()[place][0]
        models[name] = _fresh(c, name, 2, 0, digits.train.shape[1])
        restored(models[name], state)
    if models:
        draw_decoded(out / "decoded.png", models, digits.side)
    if "von-mises" in models:
        with torch.no_grad():
            angles = models["von-mises"].posterior(binarized(digits.test)).mean
        draw_torus(out / "torus.png", angles, digits.test_labels)


def _summary(results: Sequence[State], c: Configuration) -> list[State]:
    """Return mean and standard deviation over seeds of the final test ELBO, and its parts."""
    rows = []
    for name in c.latents:
        for dimensions in c.dimensions:
            own = [r for r in results if (r["latent"], r["dimensions"]) == (name, dimensions)]
            divergence = statistics.mean(result["divergence"] for result in own)
            row = {"latent": name, "dimensions": dimensions, "divergence": divergence}
            rows.append({**row, **spread([result["elbo"] for result in own])})
    return rows


def _table(summary: Sequence[Mapping[str, Any]], c: Configuration, digits: Digits) -> Table:
    kind = "validation" if c.validation else "test"
    title = (
        f"ELBO of {len(digits.test)} {kind} images, nats an image: mean ± standard deviation over "
        f"{c.seeds} seeds (divergence from the prior)"
    )
    headings = [f"{dimensions} dimensions" for dimensions in c.dimensions]
    table = Table("latent", *headings, title=title, title_justify="left")
    for name in c.latents:
        cells = []
        for row in summary:
            if row["latent"] == name:
                spread = "" if row["deviation"] is None else f" ± {row['deviation']:.2f}"
                cells.append(f"{row['mean']:.2f}{spread} ({row['divergence']:.2f})")
        table.add_row(LATENT_LABELS[name], *cells)
    return table


COMMAND = Command(
    help="autoencoders with Normal, Gamma, Beta and von Mises latents (minutes)",
    description="Train variational autoencoders of digits with Normal, Gamma, Beta and von Mises "
    "latent variables of several dimensions; compare the ELBO of test images, and draw what the "
    "latent variables decode to.",
    add_arguments=_add_arguments,
    run=_run,
    modules=("matplotlib", "sklearn"),
)
