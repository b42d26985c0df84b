"""``implicit-solvers ernn trajectories``: where the states of networks go."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Generator, Tensor, nn

from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask
from implicit_solvers.problems.experiments.ernn.figures import draw_trajectories
from implicit_solvers.problems.experiments.ernn.jacobians import step_of
from implicit_solvers.problems.experiments.ernn.models import LABELS, MODELS, Build
from implicit_solvers.problems.experiments.ernn.sequence_training import (
    evaluate,
    fit_sequences,
    sequence_model,
)
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
    restored,
    taken,
    train_all,
)

__all__ = ["COMMAND", "NETWORKS", "Configuration", "rings", "trajectories"]

NETWORKS: Mapping[str, Build] = {
    name: MODELS[name] for name in ("rnn", "exact", "exact-plus", "leaky", "k1", "k3", "k5")
}
CLASSES = ("clockwise", "counterclockwise")


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
        2, "size of the hidden states, of which two are drawn", read=number(int, 1)
    )
    rate: float = option(1e-2, "Adam's rate")
    noise: float = option(0.2, "standard deviation of what is added to a point")
    drawn: int = option(4, "sequences drawn of each class")
    seed: int = option(0, "of networks and data", read=number(int, 0, closed=True))


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
    y = torch.randint(len(CLASSES), (count,), generator=generator)
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


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, Configuration)
    add_run_options(parser, "runs/ernn-trajectories", checkpoint_every=5)


def _run(arguments: argparse.Namespace) -> int:
    c = configuration_of(arguments, Configuration)
    with RunFolder.of(arguments, asdict(c)) as folder:
        common = (c.epochs, folder.checkpoint(), arguments.checkpoint_every, folder)
        content = train_all(c.models, _begin(c), *common)
        x, y = _drawn(c)
        paths = {}
        for place, name in enumerate(c.models):
            rnn = restored(NETWORKS[name](2, c.hidden), content["kept"][place])
            paths[name] = trajectories(rnn, x, c.hidden)
        results = content["results"]
        scores = {result["model"]: result["test"][-1] for result in results}
        path = folder.path / "trajectories.png"
        draw_trajectories(path, x[: c.drawn], y, paths, scores, LABELS)
        for name, score in scores.items():
            folder.console.print(f"{LABELS[name]}: {100 * score:.1f} % of new sequences told apart")
        seconds = taken(results, "seconds")["seconds"]
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


def _begin(c: Configuration) -> Callable[[str, State | None], Training]:
    """Return how `train_all` begins the training of a network."""
    generator = Generator().manual_seed(c.seed)

    def sequences(count: int) -> Sequences:
        x, y = rings(count, c.steps, c.noise, generator)
        return Sequences(x, torch.full((count,), c.steps), y.unsqueeze(1))

    train, new = sequences(c.train), sequences(500)
    task = SequenceTask(train, new, new, CLASSES)
    options: State = {"rate": c.rate, "schedule": Schedule(c.epochs, c.batch), "seed": c.seed}

    def begin(name: str, state: State | None) -> Training:
        model = sequence_model(NETWORKS[name], c.hidden, task, c.seed)
        score = lambda: evaluate(model, new)[0]  # noqa: E731
        epochs = fit_sequences(model, train, score, state=state, **options)
        return Training(name, epochs, lambda: {"model": name}, kept=model.rnn)

    return begin


COMMAND = Command(
    help="paths of hidden states of two units (minutes)",
    description="Train networks of two hidden units, and draw the paths of their states.",
    add_arguments=_add_arguments,
    run=_run,
)
