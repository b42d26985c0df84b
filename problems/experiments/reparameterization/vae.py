"""``implicit-solvers reparam vae``: autoencoders with four kinds of latent variables."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from implicit_solvers.problems.experiments.data.digits import Digits, load_digits, load_mnist
from implicit_solvers.problems.experiments.harness.options import positive, positive_integer, whole
from implicit_solvers.problems.experiments.harness.run_folder import (
    CheckpointError,
    load_checkpoint,
    write_json,
)
from implicit_solvers.problems.experiments.harness.training import (
    Schedule,
    Training,
    fit,
    train_all,
)
from implicit_solvers.problems.experiments.reparameterization.autoencoder import (
    Autoencoder,
    binarized,
    evaluate,
)
from implicit_solvers.problems.experiments.reparameterization.latents import LATENTS
from implicit_solvers.problems.experiments.reparameterization.vae_figure import (
    LABELS,
    draw_decoded,
    draw_elbo,
    draw_torus,
)

__all__ = ["add_arguments", "run", "validation_split"]

VALIDATION_EVERY = 4


@dataclass(frozen=True)
class Configuration:
    """What the results depend on: one training for each latent, number of dimensions and seed."""

    latents: list[str] = field(default_factory=lambda: list(LATENTS))
    dimensions: list[int] = field(default_factory=lambda: [2, 10, 20])
    seeds: int = 3
    first_seed: int = 0
    epochs: int = 160
    batch: int = 128
    hidden: int = 128
    lr: float = 3e-3
    warm_up: float = 0.4
    samples: int = 20
    starts: dict[str, float] = field(
        default_factory=lambda: {name: latent.start for name, latent in LATENTS.items()}
    )
    data: str = "digits"
    validation: bool = False

    def runs(self) -> list[tuple[str, int, int]]:
        """Return the latents, dimensions and seeds of all trainings."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [(name, d, s) for name in self.latents for d in self.dimensions for s in seeds]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    default = Configuration()
    add = parser.add_argument
    add("--latents", nargs="+", choices=list(LATENTS), default=default.latents)
    add(
        *("--dimensions", "-d"),
        nargs="+",
        type=positive_integer,
        metavar="D",
        default=default.dimensions,
        help="numbers of latent dimensions (2 10 20)",
    )
    numbers = {
        "seeds": (positive_integer, "trainings of each kind"),
        "first_seed": (whole, "the first of their seeds"),
        "epochs": (positive_integer, "passes over the images"),
        "batch": (positive_integer, "images in a step of Adam"),
        "hidden": (positive_integer, "width of the hidden layers"),
        "lr": (positive, "Adam's rate"),
        "warm_up": (positive, "share of epochs in which the divergence's weight grows to 1"),
        "samples": (positive_integer, "samples for each test image in the final ELBO"),
    }
    for name, (kind, text) in numbers.items():
        value = getattr(default, name)
        option = "--" + name.replace("_", "-")
        add(option, type=kind, default=value, metavar="N", help=f"{text} (%(default)s)")
    add(
        "--start",
        type=_finite,
        metavar="X",
        help="what is added to the outputs for positive parameters (each latent has its own)",
    )
    add(
        "--validation",
        action="store_true",
        help="leave out the test images, and score every fourth of the training images instead",
    )
    add(
        "--data",
        default=default.data,
        metavar="digits|FOLDER",
        help="scikit-learn's digits, or a folder with MNIST's four idx files (%(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=Path("runs/reparam-vae"),
        help="folder of the results (%(default)s)",
    )
    add("--resume", action="store_true", help="go on from the checkpoint in that folder")
    add(
        "--checkpoint-every",
        type=positive_integer,
        default=10,
        metavar="N",
        help="epochs from one checkpoint to the next (%(default)s)",
    )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    configuration = _configuration(arguments)
    out: Path = arguments.out
    console = Console()
    try:
        own = configuration.data == "digits"
        digits = load_digits() if own else load_mnist(Path(configuration.data))
        if configuration.validation:
            digits = validation_split(digits)
        out.mkdir(parents=True, exist_ok=True)
        path = out / "checkpoint.pt"
        checkpoint = load_checkpoint(path, asdict(configuration)) if arguments.resume else None
    except (CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(out / "config.json", asdict(configuration))
    try:
        with torch.random.fork_rng(devices=[]):
            content = train_all(
                configuration.runs(),
                _begin(configuration, digits),
                asdict(configuration),
                path,
                checkpoint,
                arguments.checkpoint_every,
                console,
            )
            with console.status("drawing the figures"):
                _draw(out, configuration, content, digits)
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on", file=sys.stderr)
        return 130
    results = content["results"]
    summary = _summary(results, configuration)
    timing = {
        "total": time.perf_counter() - start,
        "trainings": [result.pop("seconds") for result in results],
    }
    metrics = {"elbo": summary, "trainings": results, "timing": timing}
    write_json(out / "metrics.json", metrics)
    console.print(_table(summary, configuration, digits))
    console.print(f"{timing['total']:.0f} s. Results and figures are in {out}.")
    return 0


def _configuration(arguments: argparse.Namespace) -> Configuration:
    given = vars(arguments)
    names = [name for name in Configuration.__dataclass_fields__ if name in given]
    starts = {
        name: LATENTS[name].start if arguments.start is None else arguments.start
        for name in arguments.latents
    }
    configuration = Configuration(**{name: given[name] for name in names}, starts=starts)
    if configuration.data == "digits":
        return configuration
    # another working folder must not make another run of it
    return replace(configuration, data=str(Path(configuration.data).resolve()))


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


def _begin(configuration: Configuration, digits: Digits) -> Callable[[Any, Any], Training]:
    """Return how `train_all` begins a training."""
    images, test_images = binarized(digits.train), binarized(digits.test)
    schedule = Schedule(configuration.epochs, configuration.batch, configuration.warm_up)

    def begin(run: tuple[str, int, int], state: dict[str, Any] | None) -> Training:
        name, dimensions, seed = run
        model = _fresh(configuration, name, dimensions, seed, images.shape[1])
        optimizer = torch.optim.Adam(model.parameters(), configuration.lr)

        def loss(batch: Tensor, weight: float) -> tuple[Tensor, Tensor]:
            likelihood, divergence = model(batch)
            return (weight * divergence - likelihood).mean(), likelihood - divergence

        def test() -> float:
            likelihood, divergence = evaluate(model, test_images, samples=1)
            return likelihood - divergence

        def result() -> dict[str, Any]:
            likelihood, divergence = evaluate(model, test_images, configuration.samples)
            scores = {"elbo": likelihood - divergence, "fit": likelihood, "divergence": divergence}
            return {"latent": name, "dimensions": dimensions, "seed": seed, **scores}

        return Training(
            f"{LABELS[name]}, {dimensions} dimensions, seed {seed}: test ELBO",
            fit(model, optimizer, images, loss, test, schedule, seed, state),
            result,
            kept=model if dimensions == 2 and seed == configuration.first_seed else None,
        )

    return begin


def _fresh(
    configuration: Configuration, name: str, dimensions: int, seed: int, pixels: int
) -> Autoencoder:
    torch.manual_seed(seed)
    latent = replace(LATENTS[name], start=configuration.starts[name])
    return Autoencoder(latent, dimensions, pixels, configuration.hidden)


def _draw(
    out: Path, configuration: Configuration, content: Mapping[str, Any], digits: Digits
) -> None:
    draw_elbo(out / "elbo.png", content["results"])
    models = {}
    for number, state in content["kept"].items():
        name = configuration.runs()[number][0]
        models[name] = _fresh(configuration, name, 2, 0, digits.train.shape[1])
        models[name].load_state_dict(state)
    if models:
        draw_decoded(out / "decoded.png", models, digits.side)
    if "von-mises" in models:
        with torch.no_grad():
            angles = models["von-mises"].posterior(binarized(digits.test)).mean
        draw_torus(out / "torus.png", angles, digits.test_labels)


def _summary(
    results: Sequence[Mapping[str, Any]], configuration: Configuration
) -> list[dict[str, Any]]:
    """Return mean and standard deviation over seeds of the final test ELBO, and its parts."""
    rows = []
    for name in configuration.latents:
        for dimensions in configuration.dimensions:
            own = [r for r in results if (r["latent"], r["dimensions"]) == (name, dimensions)]
            values = [result["elbo"] for result in own]
            rows.append(
                {
                    **{"latent": name, "dimensions": dimensions, "mean": statistics.mean(values)},
                    "deviation": statistics.stdev(values) if len(values) > 1 else None,
                    "divergence": statistics.mean(result["divergence"] for result in own),
                }
            )
    return rows


def _table(
    summary: Sequence[Mapping[str, Any]], configuration: Configuration, digits: Digits
) -> Table:
    kind = "validation" if configuration.validation else "test"
    title = (
        f"ELBO of {len(digits.test)} {kind} images, nats an image: mean ± standard deviation over "
        f"{configuration.seeds} seeds (divergence from the prior)"
    )
    headings = [f"{dimensions} dimensions" for dimensions in configuration.dimensions]
    table = Table("latent", *headings, title=title, title_justify="left")
    for name in configuration.latents:
        cells = []
        for row in summary:
            if row["latent"] == name:
                spread = "" if row["deviation"] is None else f" ± {row['deviation']:.2f}"
                cells.append(f"{row['mean']:.2f}{spread} ({row['divergence']:.2f})")
        table.add_row(LABELS[name], *cells)
    return table
