"""``implicit-solvers ernn gradients``: how much of an early state is left in a late one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from implicit_solvers.problems.experiments.data.pixel_sequences import load_digit_sequences
from implicit_solvers.problems.experiments.data.sequences import SequenceTask
from implicit_solvers.problems.experiments.ernn.figure_training import (
    add_figure_arguments,
    configuration_of,
    train_networks,
)
from implicit_solvers.problems.experiments.ernn.gradients_figure import draw_gradients
from implicit_solvers.problems.experiments.ernn.jacobians import (
    distances_from_identity,
    end_to_end,
    norms_along,
    step_of,
)
from implicit_solvers.problems.experiments.ernn.models import LABELS, MODELS, Build, SequenceModel
from implicit_solvers.problems.experiments.harness.options import positive, positive_integer, whole
from implicit_solvers.problems.experiments.harness.run_folder import write_json
from implicit_solvers.problems.experiments.harness.training import Schedule, Training, fit

__all__ = ["NETWORKS", "Configuration", "add_arguments", "run"]

State = dict[str, Any]
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
    """What the results depend on.

    Parameters
    ----------
    models
        Names of `NETWORKS`.
    epochs, batch
        The length of a training, and the sequences in a step.
    hidden
        The size of the hidden states.
    rate, clip
        Adam's rate, and the largest norm of a gradient.
    measured
        How many sequences of the validation part the norms are a mean of.
    long
        The length of the sequence on which trained networks are followed: one image after another.
    norm
        The spectral norm of ``U`` where steps are counted.
    seed
        Of networks and orders.
    """

    models: list[str] = field(
        default_factory=lambda: ["rnn", "rnn-large", "k1", "k5", "leaky", "exact"]
    )
    epochs: int = 10
    batch: int = 50
    hidden: int = 32
    rate: float = 1e-2
    clip: float = 1.0
    measured: int = 3
    long: int = 1000
    norm: float = 0.7
    seed: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    numbers = (
        ("epochs", positive_integer, "passes over the sequences"),
        ("batch", positive_integer, "sequences in a step of Adam"),
        ("hidden", positive_integer, "size of the hidden states"),
        ("rate", positive, "Adam's rate"),
        ("clip", positive, "largest norm of a gradient"),
        ("measured", positive_integer, "sequences on which norms are measured"),
        ("long", _several, "steps over which trained networks are followed"),
        ("norm", positive, "spectral norm of U where the steps K are counted"),
        ("seed", whole, "of networks and orders"),
    )
    add_figure_arguments(parser, Configuration(), numbers, NETWORKS, Path("runs/ernn-gradients"), 1)


def _several(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{text} steps have no first and last")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status: 1 if an exact network's norm is not 1."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    console = Console()
    configuration = configuration_of(arguments, Configuration())
    out: Path = arguments.out
    task = load_digit_sequences(1)

    def follow(content: State) -> tuple[list[State], list[State]]:
        return content["results"], _follow(configuration, task, content["kept"])

    found = train_networks(arguments, configuration, _begin(configuration, task), console, follow)
    if isinstance(found, int):
        return found
    trainings, curves = found
    distances = [
        {"steps": k, "step_size": size, "distance": distance, "norm": norm}
        for size in STEP_SIZES
        for k in STEPS
        for distance, norm in [distances_from_identity(k, size, norm=configuration.norm)]
    ]
    exact = [abs(c["end_to_end"] - 1) for c in curves if c["model"].startswith("exact")]
    exact += [abs(n - 1) for c in curves if c["model"].startswith("exact") for n in c["norms"]]
    deviation = max(exact, default=None)
    timing = {
        "trainings": [result["seconds"] for result in trainings],
        "total": time.perf_counter() - start,
    }
    metrics = {
        "training": [{k: v for k, v in r.items() if k != "seconds"} for r in trainings],
        "along": curves,
        "largest_deviation_of_exact": deviation,
        "distances": distances,
        "timing": timing,
    }
    write_json(out / "metrics.json", metrics)
    length = task.train.x.shape[1]
    draw_gradients(out / "gradients.png", length, trainings, curves, distances, NAMES)
    _print_results(console, trainings, curves, deviation)
    console.print(f"{timing['total']:.0f} s. Results and the figure are in {out}.")
    return 0 if deviation is None or deviation <= LARGEST_DEVIATION else 1


def _begin(
    configuration: Configuration, task: SequenceTask
) -> Callable[[str, State | None], Training]:
    """Return how `train_all` begins the training of a network."""
    numbers = torch.arange(len(task.train))
    schedule = Schedule(configuration.epochs, configuration.batch, warm_up=0.0)
    hidden, seed = configuration.hidden, configuration.seed

    def begin(name: str, state: State | None) -> Training:
        torch.manual_seed(seed)
        rnn = NETWORKS[name](task.channels, hidden)
        model = SequenceModel(rnn, hidden, task.outputs, task.readout_size)
        optimizer = torch.optim.Adam(model.parameters(), configuration.rate)

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(model.parameters(), configuration.clip)

        optimizer.register_step_pre_hook(clip)

        def norm() -> float:
            step = step_of(rnn)
            some = task.validation.x[: configuration.measured]
            jacobians = [end_to_end(step, x.double(), hidden) for x in some]
            norms = [torch.linalg.matrix_norm(J, 2) for J in jacobians]
            return torch.stack(norms).mean().item()

        def loss(batch: Tensor, _: float) -> tuple[Tensor, Tensor]:
            part = task.train.subset(batch)
            logits = model(part.x, part.lengths)[:, -1]
            losses = nn.functional.cross_entropy(logits, part.y[:, -1], reduction="none")
            return losses.mean(), losses

        initial = norm()
        return Training(
            name,
            fit(model, optimizer, numbers, loss, norm, schedule, seed, state),
            lambda: {"model": name, "initial": initial},
            kept=rnn,
        )

    return begin


def _follow(
    configuration: Configuration, task: SequenceTask, kept: Mapping[int, Any]
) -> list[State]:
    """Return the norms along a long sequence, of the trained networks."""
    x = task.test.x.flatten(0, 1)[: configuration.long].double()
    curves: list[State] = []
    for number, name in enumerate(configuration.models):
        rnn = NETWORKS[name](x.shape[-1], configuration.hidden)
        rnn.load_state_dict(kept[number])
        step = step_of(rnn)
        norms = norms_along(step, x, configuration.hidden)
        last = torch.linalg.matrix_norm(end_to_end(step, x, configuration.hidden), 2)
        curves.append({"model": name, "norms": norms, "end_to_end": last.item()})
    return curves


def _print_results(
    console: Console,
    trainings: Sequence[State],
    curves: Sequence[State],
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
