"""Trainings of several networks on one task: rates are tried first, then seeds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Generator, Tensor, nn

from implicit_solvers import ConvergenceError
from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask
from implicit_solvers.problems.experiments.ernn.models import MODELS, SequenceModel, parameter_count
from implicit_solvers.problems.experiments.ernn.time_shuffle import shuffled
from implicit_solvers.problems.experiments.harness.training import (
    Curve,
    Schedule,
    Training,
    fit,
    train_all,
)

__all__ = ["COMPARED", "Configuration", "better", "evaluate", "run_trials", "summary"]

COMPARED = ("exact", "leaky", "k1", "k3", "k5", "rnn", "gru", "lstm", "fastrnn")
EVALUATED_TOGETHER = 512

State = dict[str, Any]


@dataclass(frozen=True)
class Configuration:
    """What the results on one task depend on.

    Parameters
    ----------
    task, folder
        The data.
    models
        Names of `MODELS`.
    rates
        Adam's rates: each is tried with the first seed, and the best on the validation part kept.
    seeds, first_seed
        How many trainings of each model with its best rate, that of the trial among them.
    hidden
        The size of the hidden state of every model.
    epochs, batch
        The length of a training.
    clip
        The largest norm of a gradient; longer ones are scaled down.
    """

    task: str
    folder: str
    epochs: int
    batch: int
    models: list[str] = field(default_factory=lambda: list(COMPARED))
    rates: list[float] = field(default_factory=lambda: [5e-3, 2e-2])
    seeds: int = 3
    first_seed: int = 0
    hidden: int = 32
    clip: float = 1.0

    def trials(self) -> list[tuple[str, float, int]]:
        """Return model, rate and seed of the trainings that try the rates."""
        return [(model, rate, self.first_seed) for model in self.models for rate in self.rates]

    def repetitions(self, results: Sequence[State]) -> list[tuple[str, float, int]]:
        """Return those of the further seeds, given what the trials gave."""
        seeds = range(self.first_seed + 1, self.first_seed + self.seeds)
        return [
            (model, chosen_rate(model, results, self.first_seed), seed)
            for model in self.models
            for seed in seeds
        ]


class _DivergedError(ArithmeticError):
    """A loss is not finite."""


def run_trials(
    configuration: Configuration,
    task: SequenceTask,
    path: Path,
    checkpoint: State | None,
    checkpoint_every: int,
    console: Console,
) -> list[State]:
    """Train all models, and return a result for each training.

    Parameters
    ----------
    configuration, task
        What to do.
    path, checkpoint, checkpoint_every, console
        As in `cli.training.train_all`.

    Returns
    -------
    list of dict
        ``model``, ``rate``, ``seed``, ``parameters``, ``seconds``, and ``processor_seconds``,
        which other programs do not lengthen, and without the test; the curves ``train`` (loss)
        and ``test`` (score on the validation part); ``validation``, and ``score``, that of the
        test part: the share of right classes, or the mean squared error. ``shuffled`` and
        ``parity_shuffled``: the same with the test sequences' steps in another order, if one step
        is read. A training that failed has ``failed``, a text, and None for the scores.
    """
    begin = _begin(configuration, task)
    common = (begin, asdict(configuration), path)
    runs = configuration.trials()
    content = train_all(runs, *common, checkpoint, checkpoint_every, console)
    runs += configuration.repetitions(content["results"])
    return train_all(runs, *common, content, checkpoint_every, console)["results"]


def _begin(
    configuration: Configuration, task: SequenceTask
) -> Callable[[tuple[str, float, int], State | None], Training]:
    """Return how `train_all` begins a training."""
    train, clock = task.train, time.process_time
    # the loss reads the sequences by their numbers, which fit shuffles
    numbers = torch.arange(len(train))
    schedule = Schedule(configuration.epochs, configuration.batch, warm_up=0.0)

    def begin(run: tuple[str, float, int], state: State | None) -> Training:
        name, rate, seed = run
        torch.manual_seed(seed)
        rnn = MODELS[name](task.channels, configuration.hidden)
        model = SequenceModel(rnn, configuration.hidden, task.outputs, task.readout_size)
        optimizer = torch.optim.Adam(model.parameters(), rate)
        failures: list[str] = []
        begun = clock() - (0.0 if state is None else state["processor"])

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(model.parameters(), configuration.clip)

        optimizer.register_step_pre_hook(clip)

        def loss(batch: Tensor, _: float) -> tuple[Tensor, Tensor]:
            losses = _losses(model, train.subset(batch))
            if not losses.isfinite().all():
                raise _DivergedError("the loss is not finite: lower the rate")
            return losses.mean(), losses

        def left(current: Callable[[], State]) -> State:
            return {**current(), "processor": clock() - begun}

        def epochs() -> Iterator[tuple[Curve, Callable[[], State]]]:
            validate = lambda: evaluate(model, task.validation)[0]  # noqa: E731
            try:
                # the first step is the largest: Adam divides the rate by 1 - beta
                if rate / (1 - optimizer.defaults["betas"][0]) > torch.finfo(torch.float32).max:
                    raise _DivergedError(f"a step of the rate {rate:g} overflows: lower the rate")
                for curve, current in fit(
                    model, optimizer, numbers, loss, validate, schedule, seed, state
                ):
                    yield curve, partial(left, current)
            except (_DivergedError, ConvergenceError) as error:
                failures.append(str(error).splitlines()[0])

        def result() -> State:
            own: State = {"model": name, "rate": rate, "seed": seed}
            own["parameters"] = parameter_count(model)
            own["processor_seconds"] = clock() - begun
            scores: State = dict.fromkeys(("validation", "validation_loss", "score"))
            try:
                if not failures:
                    scores = _scores(model, task)
            except ConvergenceError as error:
                failures.append(str(error).splitlines()[0])
            return {**own, **scores, **({"failed": failures[0]} if failures else {})}

        return Training(f"{name}, rate {rate:g}, seed {seed}", epochs(), result, kept=model)

    return begin


def _scores(model: nn.Module, task: SequenceTask) -> State:
    score, loss = evaluate(model, task.validation)
    scores = {"validation": score, "validation_loss": loss, "score": evaluate(model, task.test)[0]}
    if task.outputs == 1:
        for key, keep in {"shuffled": False, "parity_shuffled": True}.items():
            other = shuffled(task.test, Generator().manual_seed(0), keep_parity=keep)
            scores[key] = evaluate(model, other)[0]
    return scores


def _losses(model: nn.Module, sequences: Sequences) -> Tensor:
    """Return the loss of each sequence."""
    predicted = model(sequences.x, sequences.lengths)
    if sequences.y.is_floating_point():
        return (predicted[..., 0] - sequences.y).square().mean(1)
    entropy = nn.functional.cross_entropy(predicted.mT, sequences.y, reduction="none")
    return entropy.mean(1)


@torch.no_grad()
def evaluate(model: nn.Module, sequences: Sequences) -> tuple[float, float]:
    """Return the score and the loss.

    Parameters
    ----------
    model
        Like `SequenceModel`.
    sequences
        If their ``y`` holds classes, the score is the share of outputs for which the model's
        largest number is that of the class, and the loss the cross-entropy; if values, both are
        the mean squared error.
    """
    right = total = 0.0
    for batch in torch.arange(len(sequences)).split(EVALUATED_TOGETHER):
        part = sequences.subset(batch)
        predicted = model(part.x, part.lengths)
        if part.y.is_floating_point():
            total += (predicted[..., 0] - part.y).square().mean(1).sum().item()
        else:
            right += (predicted.argmax(-1) == part.y).float().mean(1).sum().item()
            entropy = nn.functional.cross_entropy(predicted.mT, part.y, reduction="none")
            total += entropy.mean(1).sum().item()
    loss = total / len(sequences)
    return (loss if sequences.y.is_floating_point() else right / len(sequences)), loss


def better(result: Mapping[str, Any]) -> tuple[float, float]:
    """Return a key that is larger for what is to be preferred on the validation part.

    More right classes, or the smaller loss among equals; failures come last.

    Examples
    --------
    >>> better({"validation": 0.9, "validation_loss": 0.2}) > better({"validation": None})
    True
    """
    if result["validation"] is None or not math.isfinite(result["validation_loss"]):
        return (-math.inf, 0.0)
    if result["validation"] == result["validation_loss"]:
        return (-result["validation_loss"], 0.0)
    return (result["validation"], -result["validation_loss"])


def chosen_rate(model: str, results: Sequence[State], first_seed: int) -> float:
    """Return the rate whose trial was best on the validation part."""
    trials = [r for r in results if r["model"] == model and r["seed"] == first_seed]
    return max(trials, key=better)["rate"]


def summary(results: Sequence[State], configuration: Configuration) -> list[State]:
    """Return, for each model, mean and standard deviation over the seeds of its best rate.

    Models come in the order of `MODELS`, whatever the order of their trainings.

    Parameters
    ----------
    results
        Of `run_trials`.
    configuration
        What they were made with.

    Returns
    -------
    list of dict
        ``model``, ``rate``, ``parameters``, ``mean``, ``deviation`` (None for one seed),
        ``scores``, the means ``shuffled`` and ``parity_shuffled`` where they are, and ``failed``,
        the number of trainings that failed, of those chosen.
    """
    rows = []
    for model in sorted(configuration.models, key=list(MODELS).index):
        rate = chosen_rate(model, results, configuration.first_seed)
        own = [r for r in results if r["model"] == model and r["rate"] == rate]
        scores = [r["score"] for r in own if r["score"] is not None]
        row = {
            **{"model": model, "rate": rate, "parameters": own[0]["parameters"]},
            "mean": statistics.mean(scores) if scores else None,
            "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
            **{"scores": scores, "failed": len(own) - len(scores)},
        }
        for key in ("shuffled", "parity_shuffled"):
            values = [r[key] for r in own if r.get(key) is not None]
            row[key] = statistics.mean(values) if values else None
        rows.append(row)
    return rows
