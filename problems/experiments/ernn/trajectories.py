"""``implicit-solvers ernn trajectories``: where the states of networks go."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Generator, Tensor, nn

from implicit_solvers.problems.ernn.jacobians import step_of
from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.data.rings import CLASSES, rings
from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask
from implicit_solvers.problems.experiments.ernn.figures import draw_trajectories
from implicit_solvers.problems.experiments.ernn.models import LABELS, MODELS, Build
from implicit_solvers.problems.experiments.ernn.sequence_training import (
    evaluate,
    fit_sequences,
    sequence_model,
)
from implicit_solvers.problems.experiments.harness import option

NETWORKS: Mapping[str, Build] = {
    name: MODELS[name] for name in ("rnn", "exact", "exact-plus", "leaky", "k1", "k3", "k5")
}


@dataclass(frozen=True)
class Configuration:
    """What the results depend on."""

    models: list[str] = option(
        ["rnn", "exact", "exact-plus", "leaky"], "networks", choices=NETWORKS
    )
    epochs: int = option(30, "passes over the sequences")
    batch: int = option(50, "sequences in a step of Adam")
    train: int = option(500, "sequences")
    steps: int = option(12, "length of a sequence")
    hidden: int = option(
        2, "size of the hidden states, of which two are drawn", read=harness.number(int, 1)
    )
    rate: float = option(1e-2, "Adam's rate")
    noise: float = option(0.2, "standard deviation of what is added to a point")
    drawn: int = option(4, "sequences drawn of each class")
    seed: int = option(0, "of networks and data", read=harness.WHOLE)


def trajectories(rnn: nn.Module, x: Tensor, hidden: int) -> Tensor:
    """Return the states ``(count, T + 1, H)`` from zero on, of sequences ``(count, T, I)``."""
    step = step_of(rnn)
    states = []
    for sequence in x.double():
        states.append([sequence.new_zeros(hidden)])
        for row in sequence:
            states[-1].append(step(row, states[-1][-1]))
    return torch.stack([torch.stack(s) for s in states])


def _run(arguments: argparse.Namespace) -> int:
    c = harness.configuration_of(arguments, Configuration)
    with harness.RunFolder.of(arguments, asdict(c)) as folder:
        common = (c.epochs, folder.checkpoint(), arguments.checkpoint_every, folder)
        content = harness.train_all(c.models, _begin(c), *common)
        x, y = _drawn(c)
        paths = {}
        for place, name in enumerate(c.models):
            rnn = harness.restored(NETWORKS[name](2, c.hidden), content["kept"][place])
            paths[name] = trajectories(rnn, x, c.hidden)
        results = content["results"]
        scores = {result["model"]: result["test"][-1] for result in results}
        path = folder.path / "trajectories.png"
        draw_trajectories(path, x[: c.drawn], y, paths, scores, LABELS)
        for name, score in scores.items():
            folder.console.print(f"{LABELS[name]}: {100 * score:.1f} % of new sequences told apart")
        seconds = harness.taken(results, "seconds")["seconds"]
        drawn = {name: states[..., :2].tolist() for name, states in paths.items()}
        metrics = {"models": results, "classes": y.tolist(), "trajectories": drawn}
        folder.finish(metrics, trainings=seconds)
    return 0


def _drawn(c: Configuration) -> tuple[Tensor, Tensor]:
    """Return sequences without noise: ``drawn`` starts, first clockwise, then the other way."""
    each, steps = c.drawn, c.steps
    start = 2 * torch.pi * torch.arange(each) / each
    turn = torch.arange(steps) * 2 * torch.pi / steps
    angles = torch.cat([start.unsqueeze(-1) - turn, start.unsqueeze(-1) + turn])
    y = torch.arange(len(CLASSES)).repeat_interleave(each)
    return torch.stack([angles.cos(), angles.sin()], -1), y


def _begin(c: Configuration) -> Callable[[str, harness.State | None], harness.Training]:
    """Return how `train_all` begins the training of a network."""
    generator = Generator().manual_seed(c.seed)

    def sequences(count: int) -> Sequences:
        x, y = rings(count, c.steps, c.noise, generator)
        return Sequences(x, torch.full((count,), c.steps), y.unsqueeze(1))

    train, new = sequences(c.train), sequences(500)
    task = SequenceTask(train, new, new, CLASSES)
    options: harness.State = {
        "rate": c.rate,
        "schedule": harness.Schedule(c.epochs, c.batch),
        "seed": c.seed,
    }

    def begin(name: str, state: harness.State | None) -> harness.Training:
        model = sequence_model(NETWORKS[name], c.hidden, task, c.seed)
        score = lambda: evaluate(model, new)[0]  # noqa: E731
        epochs = fit_sequences(model, train, score, state=state, **options)
        return harness.Training(name, epochs, lambda: {"model": name}, kept=model.rnn)

    return begin


COMMAND = harness.Command(
    help="paths of hidden states of two units (minutes)",
    description="Train networks of two hidden units, and draw the paths of their states.",
    run=_run,
    out="runs/ernn-trajectories",
    folder={"checkpoint_every": 5},
    configuration=Configuration,
)
