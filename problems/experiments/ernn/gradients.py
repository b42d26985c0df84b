"""``implicit-solvers ernn gradients``: how much of an early state is left in a late one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from implicit_solvers.problems.ernn.jacobians import (
    distances_from_identity,
    end_to_end,
    norms_along,
    step_of,
)
from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.data.pixel_sequences import load_digit_sequences
from implicit_solvers.problems.experiments.data.sequences import SequenceTask
from implicit_solvers.problems.experiments.ernn.figures import draw_gradients
from implicit_solvers.problems.experiments.ernn.models import LABELS, MODELS, Build
from implicit_solvers.problems.experiments.ernn.sequence_training import (
    fit_sequences,
    sequence_model,
)
from implicit_solvers.problems.experiments.harness import option

LARGEST_DEVIATION = 1e-6
STEPS = (*range(1, 21), 25, 30)
STEP_SIZES = (1.0, 0.5, 0.1, 0.01)


def _large_rnn(channels: int, hidden: int) -> nn.Module:
    rnn = nn.RNN(channels, hidden, batch_first=True)
    with torch.no_grad():
        rnn.get_parameter("weight_hh_l0").mul_(3)
    return rnn


NETWORKS: Mapping[str, Build] = {
    "rnn": MODELS["rnn"],
    "rnn-large": _large_rnn,
    **{name: MODELS[name] for name in ("k1", "k3", "k5", "leaky", "exact", "exact-plus")},
}
"""The networks whose step can be differentiated."""

NAMES = {**LABELS, "rnn-large": "RNN, 3 U at the start"}


@dataclass(frozen=True)
class Configuration:
    """What the results depend on."""

    models: list[str] = option(
        ["rnn", "rnn-large", "k1", "k5", "leaky", "exact"], "networks", choices=NETWORKS
    )
    epochs: int = option(10, "passes over the sequences")
    batch: int = option(50, "sequences in a step of Adam")
    hidden: int = option(32, "size of the hidden states")
    rate: float = option(1e-2, "Adam's rate")
    clip: float = option(1.0, "largest norm of a gradient")
    measured: int = option(3, "sequences of the validation part on which norms are measured")
    long: int = option(
        1000,
        "steps, one image after another, over which trained networks are followed",
        read=harness.number(int, 1),
    )
    norm: float = option(0.7, "spectral norm of U where the steps K are counted")
    seed: int = option(0, "of networks and orders", read=harness.WHOLE)


def _run(arguments: argparse.Namespace) -> int:
    """Return 1 if an exact network's norm is not 1."""
    c = harness.configuration_of(arguments, Configuration)
    task = load_digit_sequences(1)
    with harness.RunFolder.of(arguments, asdict(c)) as folder:
        common = (c.epochs, folder.checkpoint(), arguments.checkpoint_every, folder)
        content = harness.train_all(c.models, _begin(c, task), *common)
        trainings, curves = content["results"], _follow(c, task, content["kept"])
        distances = [
            {"steps": k, "step_size": size, "distance": distance, "norm": norm}
            for size in STEP_SIZES
            for k in STEPS
            for distance, norm in [distances_from_identity(k, size, norm=c.norm)]
        ]
        exact = [
            abs(norm - 1)
            for curve in curves
            if curve["model"].startswith("exact")
            for norm in (curve["end_to_end"], *curve["norms"])
        ]
        deviation = max(exact, default=None)
        path, length = folder.path / "gradients.png", task.train.x.shape[1]
        draw_gradients(path, length, trainings, curves, distances, NAMES)
        _print_results(folder.console, trainings, curves, deviation)
        seconds = harness.taken(trainings, "seconds")["seconds"]
        metrics = {
            "training": trainings,
            "along": curves,
            "largest_deviation_of_exact": deviation,
            "distances": distances,
        }
        folder.finish(metrics, trainings=seconds)
    return 0 if deviation is None or deviation <= LARGEST_DEVIATION else 1


def _begin(
    c: Configuration, task: SequenceTask
) -> Callable[[str, harness.State | None], harness.Training]:
    """Return how `train_all` begins the training of a network."""
    schedule = harness.Schedule(c.epochs, c.batch)

    def begin(name: str, state: harness.State | None) -> harness.Training:
        model = sequence_model(NETWORKS[name], c.hidden, task, c.seed)

        def norm() -> float:
            step = step_of(model.rnn)
            some = task.validation.x[: c.measured]
            jacobians = [end_to_end(step, x.double(), c.hidden) for x in some]
            norms = [torch.linalg.matrix_norm(J, 2) for J in jacobians]
            return torch.stack(norms).mean().item()

        initial = norm()
        options: harness.State = {
            "rate": c.rate,
            "clip": c.clip,
            "schedule": schedule,
            "seed": c.seed,
        }
        epochs = fit_sequences(model, task.train, norm, state=state, **options)
        return harness.Training(
            name, epochs, lambda: {"model": name, "initial": initial}, kept=model.rnn
        )

    return begin


def _follow(
    c: Configuration, task: SequenceTask, kept: Mapping[int, harness.State]
) -> list[harness.State]:
    """Return the norms along a long sequence, of the trained networks."""
    x = task.test.x.flatten(0, 1)[: c.long].double()
    curves: list[harness.State] = []
    for place, name in enumerate(c.models):
        rnn = harness.restored(NETWORKS[name](x.shape[-1], c.hidden), kept[place])
        step = step_of(rnn)
        norms = norms_along(step, x, c.hidden)
        last = torch.linalg.matrix_norm(end_to_end(step, x, c.hidden), 2)
        curves.append({"model": name, "norms": norms, "end_to_end": last.item()})
    return curves


def _print_results(
    console: Console,
    trainings: Sequence[harness.State],
    curves: Sequence[harness.State],
    deviation: float | None,
) -> None:
    long = len(curves[0]["norms"]) + 1
    table = Table("", "before training", "after", f"over {long} steps, after")
    for training, curve in zip(trainings, curves, strict=True):
        norms = (training["initial"], training["test"][-1], curve["end_to_end"])
        table.add_row(NAMES[training["model"]], *(f"{norm:.3g}" for norm in norms))
    table.title = "Spectral norm of dh_T / dh_1"
    console.print(table)
    if deviation is not None:
        console.print(f"The exact networks' norms differ from 1 by at most {deviation:.1e}.")


COMMAND = harness.Command(
    help="sizes of Jacobians through time, while training and at rest (minutes)",
    description="Follow the Jacobian of the last state by the first while networks are trained, "
    "and compare that of few steps with that of the equilibrium.",
    run=_run,
    out="runs/ernn-gradients",
    folder={"checkpoint_every": 1},
    configuration=Configuration,
)
