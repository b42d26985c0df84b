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

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.data.digits import (
    Digits,
    binarized,
    load_digits,
    load_mnist,
    validation_split,
)
from implicit_solvers.problems.experiments.harness import option
from implicit_solvers.problems.experiments.reparameterization.figures import (
    LATENT_LABELS,
    draw_decoded,
    draw_elbo,
    draw_torus,
)
from implicit_solvers.problems.reparameterization.models.autoencoder import Autoencoder, evaluate
from implicit_solvers.problems.reparameterization.models.latents import LATENTS


@dataclass(frozen=True)
class Configuration:
    """What the results depend on: one training for each latent, number of dimensions and seed."""

    latents: list[str] = option(list(LATENTS), "kinds", choices=LATENTS)
    dimensions: list[int] = option([2, 10, 20], "of the latents", names=("d",), metavar="D")
    seeds: int = option(3, "trainings of each kind")
    first_seed: int = option(0, "the first of their seeds", read=harness.WHOLE)
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
    text = "what is added to the outputs for positive parameters (each latent has its own)"
    parser.add_argument("--start", type=harness.number(float), metavar="X", help=text)


def _run(arguments: argparse.Namespace) -> int:
    starts = {
        name: LATENTS[name].start if arguments.start is None else arguments.start
        for name in arguments.latents
    }
    own = arguments.data == "digits"
    # another working folder must not make another run of it
    data = arguments.data if own else str(Path(arguments.data).resolve())
    c = harness.configuration_of(arguments, Configuration, starts=starts, data=data)
    digits = load_digits() if own else load_mnist(Path(data))
    if c.validation:
        digits = validation_split(digits)
    with harness.RunFolder.of(arguments, asdict(c)) as folder:
        common = (c.epochs, folder.checkpoint(), arguments.checkpoint_every, folder)
        content = harness.train_all(c.runs(), _begin(c, digits), *common)
        _draw(folder.path, c, content, digits)
        results = content["results"]
        summary = _summary(results, c)
        folder.console.print(_table(summary, c, digits))
        seconds = harness.taken(results, "seconds")["seconds"]
        folder.finish({"elbo": summary, "trainings": results}, trainings=seconds)
    return 0


def _begin(
    c: Configuration, digits: Digits
) -> Callable[[tuple[str, int, int], harness.State | None], harness.Training]:
    """Return how `train_all` begins a training."""
    images, test_images = binarized(digits.train), binarized(digits.test)
    schedule = harness.Schedule(c.epochs, c.batch, c.warm_up)

    def begin(run: tuple[str, int, int], state: harness.State | None) -> harness.Training:
        name, dimensions, seed = run
        model = _fresh(c, name, dimensions, seed, images.shape[1])
        optimizer = torch.optim.Adam(model.parameters(), c.lr)

        def loss(batch: Tensor, weight: float) -> tuple[Tensor, Tensor]:
            likelihood, divergence = model(batch)
            return (weight * divergence - likelihood).mean(), likelihood - divergence

        def test() -> float:
            likelihood, divergence = evaluate(model, test_images, samples=1)
            return likelihood - divergence

        def result() -> harness.State:
            likelihood, divergence = evaluate(model, test_images, c.samples)
            scores = {"elbo": likelihood - divergence, "fit": likelihood, "divergence": divergence}
            return {"latent": name, "dimensions": dimensions, "seed": seed, **scores}

        return harness.Training(
            f"{LATENT_LABELS[name]}, {dimensions} dimensions, seed {seed}: test ELBO",
            harness.fit(model, optimizer, images, loss, test, schedule, seed, state),
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
        harness.restored(models[name], state)
    if models:
        draw_decoded(out / "decoded.png", models, digits.side)
    if "von-mises" in models:
        with torch.no_grad():
            angles = models["von-mises"].posterior(binarized(digits.test)).mean
        draw_torus(out / "torus.png", angles, digits.test_labels)


def _summary(results: Sequence[harness.State], c: Configuration) -> list[harness.State]:
    """Return mean and standard deviation over seeds of the final test ELBO, and its parts."""
    rows = []
    for name in c.latents:
        for dimensions in c.dimensions:
            own = [r for r in results if (r["latent"], r["dimensions"]) == (name, dimensions)]
            divergence = statistics.mean(result["divergence"] for result in own)
            row = {"latent": name, "dimensions": dimensions, "divergence": divergence}
            rows.append({**row, **harness.spread([result["elbo"] for result in own])})
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
                around = "" if row["deviation"] is None else f" ± {row['deviation']:.2f}"
                cells.append(f"{row['mean']:.2f}{around} ({row['divergence']:.2f})")
        table.add_row(LATENT_LABELS[name], *cells)
    return table


COMMAND = harness.Command(
    help="autoencoders with Normal, Gamma, Beta and von Mises latents (minutes)",
    description="Train variational autoencoders of digits with Normal, Gamma, Beta and von Mises "
    "latent variables of several dimensions; compare the ELBO of test images, and draw what the "
    "latent variables decode to.",
    run=_run,
    out="runs/reparam-vae",
    folder={"checkpoint_every": 10},
    configuration=Configuration,
    add_arguments=_add_arguments,
    modules=("matplotlib", "sklearn"),
)
