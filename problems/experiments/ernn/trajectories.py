"""``implicit-solvers ernn trajectories``: where the states of networks go."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Generator, Tensor, nn

from implicit_solvers.problems.experiments.ernn.figure_training import (
    add_figure_arguments,
    configuration_of,
    train_networks,
)
from implicit_solvers.problems.experiments.ernn.jacobians import step_of
from implicit_solvers.problems.experiments.ernn.models import LABELS, MODELS, Build
from implicit_solvers.problems.experiments.ernn.trajectories_figure import draw_trajectories
from implicit_solvers.problems.experiments.harness.options import positive, positive_integer, whole
from implicit_solvers.problems.experiments.harness.run_folder import write_json
from implicit_solvers.problems.experiments.harness.training import Schedule, Training, fit

__all__ = ["NETWORKS", "Configuration", "add_arguments", "rings", "run", "trajectories"]

State = dict[str, Any]
NETWORKS: Mapping[str, Build] = {
    name: MODELS[name] for name in ("rnn", "exact", "exact-plus", "leaky", "k1", "k3", "k5")
}
CLASSES = 2


@dataclass(frozen=True)
class Configuration:
    """What the results depend on.

    Parameters
    ----------
    models
        Names of `NETWORKS`.
    epochs, batch, train
        The length of a training, the sequences in a step, and all of them.
    steps
        The length of a sequence.
    hidden
        The size of the hidden states; the first two are drawn.
    rate
        Adam's rate.
    noise
        The standard deviation of what is added to a point.
    drawn
        How many sequences are drawn, of each class.
    seed
        Of networks and data.
    """

    models: list[str] = field(default_factory=lambda: ["rnn", "exact", "exact-plus", "leaky"])
    epochs: int = 30
    batch: int = 50
    train: int = 500
    steps: int = 12
    hidden: int = 2
    rate: float = 1e-2
    noise: float = 0.2
    drawn: int = 4
    seed: int = 0


def rings(count: int, steps: int, noise: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return noisy sequences of points that run around a circle, left or right.

    Which points there are does not tell the class, their order does.

    Parameters
    ----------
    count, steps
        The number of sequences and their length.
    noise
        The standard deviation of what is added to a point.
    generator
        Draws starts, directions and noise.

    Returns
    -------
    x
        ``(count, steps, 2)``.
    y
        Classes, ``(count,)``: 1 runs counterclockwise.

    Examples
    --------
    >>> x, y = rings(3, 12, 0.0, Generator().manual_seed(0))
    >>> x.shape, bool(torch.allclose(x.norm(dim=-1), torch.ones(3, 12)))
    (torch.Size([3, 12, 2]), True)
    """
    y = torch.randint(CLASSES, (count,), generator=generator)
    start = 2 * torch.pi * torch.rand(count, 1, generator=generator)
    angles = start + (2 * y.unsqueeze(-1) - 1) * torch.arange(steps) * 2 * torch.pi / steps
    x = torch.stack([angles.cos(), angles.sin()], -1)
    return x + noise * torch.randn(x.shape, generator=generator), y


def trajectories(rnn: nn.Module, x: Tensor, hidden: int) -> Tensor:
    """Return the states ``(count, T + 1, H)`` from zero on, of sequences ``(count, T, I)``.

    Parameters
    ----------
    rnn
        As in `jacobians.step_of`.
    x
        The sequences.
    hidden
        The number of hidden units.

    Examples
    --------
    >>> trajectories(nn.RNN(2, 3), torch.zeros(4, 5, 2), 3).shape
    torch.Size([4, 6, 3])
    """
    step = step_of(rnn)
    states = []
    for sequence in x.double():
        states.append([sequence.new_zeros(hidden)])
        for row in sequence:
            states[-1].append(step(row, states[-1][-1]))
    return torch.stack([torch.stack(s) for s in states])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    numbers = (
        ("epochs", positive_integer, "passes over the sequences"),
        ("train", positive_integer, "sequences"),
        ("batch", positive_integer, "sequences in a step of Adam"),
        ("steps", positive_integer, "length of a sequence"),
        ("hidden", _two, "size of the hidden states, of which two are drawn"),
        ("rate", positive, "Adam's rate"),
        ("noise", positive, "standard deviation of what is added to a point"),
        ("drawn", positive_integer, "sequences drawn of each class"),
        ("seed", whole, "of networks and data"),
    )
    add_figure_arguments(
        parser,
        Configuration(),
        numbers,
        NETWORKS,
        Path("runs/ernn-trajectories"),
        checkpoint_every=5,
    )


def _two(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{text} hidden units have no trajectory in a plane")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    console = Console()
    configuration = configuration_of(arguments, Configuration())
    out: Path = arguments.out
    content = train_networks(arguments, configuration, _begin(configuration), console)
    if isinstance(content, int):
        return content
    each = configuration.drawn
    x, y = _drawn(configuration)
    paths = {}
    for number, name in enumerate(configuration.models):
        rnn = NETWORKS[name](2, configuration.hidden)
        rnn.load_state_dict(content["kept"][number])
        paths[name] = trajectories(rnn, x, configuration.hidden)
    results = content["results"]
    timing = {
        "trainings": [result["seconds"] for result in results],
        "total": time.perf_counter() - start,
    }
    metrics = {
        "models": [{k: v for k, v in r.items() if k != "seconds"} for r in results],
        "classes": y.tolist(),
        "trajectories": {name: states[..., :2].tolist() for name, states in paths.items()},
        "timing": timing,
    }
    write_json(out / "metrics.json", metrics)
    scores = {result["model"]: result["test"][-1] for result in results}
    draw_trajectories(out / "trajectories.png", x[:each], y, paths, scores, LABELS)
    for name, score in scores.items():
        console.print(f"{LABELS[name]}: {100 * score:.1f} % of new sequences told apart")
    console.print(f"{timing['total']:.0f} s. Results and the figure are in {out}.")
    return 0


def _drawn(configuration: Configuration) -> tuple[Tensor, Tensor]:
    """Return sequences without noise: ``drawn`` starts, first clockwise, then the other way."""
    each, steps = configuration.drawn, configuration.steps
    start = 2 * torch.pi * torch.arange(each) / each
    turn = torch.arange(steps) * 2 * torch.pi / steps
    angles = torch.cat([start.unsqueeze(-1) - turn, start.unsqueeze(-1) + turn])
    y = torch.arange(CLASSES).repeat_interleave(each)
    return torch.stack([angles.cos(), angles.sin()], -1), y


class _Classifier(nn.Module):
    def __init__(self, rnn: nn.Module, hidden: int) -> None:
        super().__init__()
        self.rnn, self.readout = rnn, nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x)[1][0])


def _begin(configuration: Configuration) -> Callable[[str, State | None], Training]:
    """Return how `train_all` begins the training of a network."""
    generator = Generator().manual_seed(configuration.seed)
    sizes = (configuration.steps, configuration.noise, generator)
    x, y = rings(configuration.train, *sizes)
    new_x, new_y = rings(500, *sizes)
    numbers = torch.arange(len(x))
    schedule = Schedule(configuration.epochs, configuration.batch, warm_up=0.0)

    def begin(name: str, state: State | None) -> Training:
        torch.manual_seed(configuration.seed)
        rnn = NETWORKS[name](2, configuration.hidden)
        model = _Classifier(rnn, configuration.hidden)
        optimizer = torch.optim.Adam(model.parameters(), configuration.rate)

        def loss(batch: Tensor, _: float) -> tuple[Tensor, Tensor]:
            losses = nn.functional.cross_entropy(model(x[batch]), y[batch], reduction="none")
            return losses.mean(), losses

        @torch.no_grad()
        def score() -> float:
            return (model(new_x).argmax(-1) == new_y).float().mean().item()

        curve = fit(model, optimizer, numbers, loss, score, schedule, configuration.seed, state)
        return Training(name, curve, lambda: {"model": name}, kept=rnn)

    return begin
