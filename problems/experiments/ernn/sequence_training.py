"""Training a network on sequences, and how well it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from implicit_solvers.problems.ernn.sequence_model import SequenceModel
from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask

EVALUATED_TOGETHER = 512


class DivergedError(harness.RunError):
    """A loss is not finite."""


def sequence_model(
    build: Callable[[int, int], nn.Module], hidden: int, task: SequenceTask, seed: int
) -> SequenceModel:
    """Return a network with its readout, whose parameters are drawn from a seed."""
    torch.manual_seed(seed)
    return SequenceModel(build(task.channels, hidden), hidden, task.outputs, task.readout_size)


def fit_sequences(
    model: SequenceModel,
    train: Sequences,
    measure: Callable[[], float],
    *,
    rate: float,
    schedule: harness.Schedule,
    seed: int,
    clip: float | None = None,
    state: harness.State | None = None,
) -> Iterator[tuple[harness.Curve, Callable[[], harness.State]]]:
    """Train by Adam, as `harness.training.fit` does."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    # the first step is the largest: Adam divides the rate by 1 - beta
    if rate / (1 - optimizer.defaults["betas"][0]) > torch.finfo(torch.float32).max:
        raise DivergedError(f"a step of the rate {rate:g} overflows: lower the rate")

    def clipped(*_: Any) -> None:
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)

    optimizer.register_step_pre_hook(clipped)

    def loss(batch: Tensor, _: float) -> tuple[Tensor, Tensor]:
        part = train.subset(batch)
        losses = _losses(model(part.x, part.lengths), part.y)
        if not losses.isfinite().all():
            raise DivergedError("the loss is not finite: lower the rate")
        return losses.mean(), losses

    # the loss reads the sequences by their numbers, which fit shuffles
    numbers = torch.arange(len(train))
    yield from harness.fit(model, optimizer, numbers, loss, measure, schedule, seed, state)


def _losses(predicted: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each sequence."""
    if y.is_floating_point():
        return (predicted[..., 0] - y).square().mean(1)
    return nn.functional.cross_entropy(predicted.mT, y, reduction="none").mean(1)


@torch.no_grad()
def evaluate(model: nn.Module, sequences: Sequences) -> tuple[float, float]:
    """Return the score and the loss."""
    right = total = 0.0
    for batch in torch.arange(len(sequences)).split(EVALUATED_TOGETHER):
        part = sequences.subset(batch)
        predicted = model(part.x, part.lengths)
        total += _losses(predicted, part.y).sum().item()
        if not part.y.is_floating_point():
            right += (predicted.argmax(-1) == part.y).float().mean(1).sum().item()
    loss = total / len(sequences)
    return (loss if sequences.y.is_floating_point() else right / len(sequences)), loss
