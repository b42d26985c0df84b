"""Trainings of several networks on one task: rates are tried first, then seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Generator, nn

from implicit_solvers import ConvergenceError
from implicit_solvers.problems.ernn.sequence_model import parameter_count
from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.data.sequences import SequenceTask
from implicit_solvers.problems.experiments.data.time_shuffle import shuffled
from implicit_solvers.problems.experiments.ernn.models import MODELS
from implicit_solvers.problems.experiments.ernn.sequence_training import (
    DivergedError,
    evaluate,
    fit_sequences,
    sequence_model,
)
from implicit_solvers.problems.experiments.harness import option

COMPARED = ("exact", "leaky", "k1", "k3", "k5", "rnn", "gru", "lstm", "fastrnn")


@dataclass(frozen=True)
class Configuration:
    """What the results on one task depend on.

    Each rate is tried with the first seed; the best on the validation part is kept.
    """

    task: str
    folder: str
    epochs: int = option(
        None, "passes over the sequences (depends on the task)", read=harness.COUNT
    )
    batch: int = option(None, "sequences in a step (depends on the task)", read=harness.COUNT)
    models: list[str] = option(list(COMPARED), "networks", choices=MODELS, metavar="MODEL")
    rates: list[float] = option([5e-3, 2e-2], "Adam's rates that are tried", metavar="RATE")
    seeds: int = option(3, "trainings of each model with its best rate")
    first_seed: int = option(0, "the first of their seeds", read=harness.WHOLE)
    hidden: int = option(32, "size of the hidden states")
    clip: float = option(1.0, "largest norm of a gradient")

    def trials(self) -> list[tuple[str, float, int]]:
        """Return model, rate and seed of the trainings that try the rates."""
        return [(model, rate, self.first_seed) for model in self.models for rate in self.rates]

    def repetitions(self, results: Sequence[harness.State]) -> list[tuple[str, float, int]]:
        """Return those of the further seeds, given what the trials gave."""
        seeds = range(self.first_seed + 1, self.first_seed + self.seeds)
        return [
            (model, chosen_rate(model, results, self.first_seed), seed)
            for model in self.models
            for seed in seeds
        ]


def run_trials(
    configuration: Configuration,
    task: SequenceTask,
    checkpoint: harness.Checkpoint,
    every: int,
    folder: harness.RunFolder,
) -> list[harness.State]:
    """Train all models, and return a result for each training."""
    begin, runs = _begin(configuration, task), configuration.trials()
    common = (configuration.epochs, checkpoint, every, folder)
    results = harness.train_all(runs, begin, *common)["results"]
    runs += configuration.repetitions(results)
    return harness.train_all(runs, begin, *common)["results"]


def _begin(
    configuration: Configuration, task: SequenceTask
) -> Callable[[tuple[str, float, int], harness.State | None], harness.Training]:
    """Return how `train_all` begins a training."""
    clock = time.process_time
    schedule = harness.Schedule(configuration.epochs, configuration.batch)

    def begin(run: tuple[str, float, int], state: harness.State | None) -> harness.Training:
        name, rate, seed = run
        model = sequence_model(MODELS[name], configuration.hidden, task, seed)
        failures: list[str] = []
        begun = clock() - (0.0 if state is None else state["processor"])

        def left(current: Callable[[], harness.State]) -> harness.State:
            return {**current(), "processor": clock() - begun}

        def validate() -> float:
            return evaluate(model, task.validation)[0]

        def epochs() -> Iterator[tuple[harness.Curve, Callable[[], harness.State]]]:
            options: Any = {"rate": rate, "clip": configuration.clip, "schedule": schedule}
            fitted = fit_sequences(model, task.train, validate, seed=seed, state=state, **options)
            try:
                for curve, current in fitted:
                    yield curve, partial(left, current)
            except (DivergedError, ConvergenceError) as error:
                failures.append(str(error).splitlines()[0])

        def result() -> harness.State:
            own: harness.State = {"model": name, "rate": rate, "seed": seed}
            own["parameters"] = parameter_count(model)
            own["processor_seconds"] = clock() - begun
            scores: harness.State = dict.fromkeys(("validation", "validation_loss", "score"))
            try:
                if not failures:
                    scores = _scores(model, task)
            except ConvergenceError as error:
                failures.append(str(error).splitlines()[0])
            return {**own, **scores, **({"failed": failures[0]} if failures else {})}

        return harness.Training(f"{name}, rate {rate:g}, seed {seed}", epochs(), result, kept=model)

    return begin


def _scores(model: nn.Module, task: SequenceTask) -> harness.State:
    score, loss = evaluate(model, task.validation)
    scores = {"validation": score, "validation_loss": loss, "score": evaluate(model, task.test)[0]}
    if task.outputs == 1:
        for key, keep in {"shuffled": False, "parity_shuffled": True}.items():
            other = shuffled(task.test, Generator().manual_seed(0), keep_parity=keep)
            scores[key] = evaluate(model, other)[0]
    return scores


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


def chosen_rate(model: str, results: Sequence[harness.State], first_seed: int) -> float:
    """Return the rate whose trial was best on the validation part."""
    trials = [r for r in results if r["model"] == model and r["seed"] == first_seed]
    return max(trials, key=better)["rate"]


def summary(results: Sequence[harness.State], configuration: Configuration) -> list[harness.State]:
    """Return, for each model, mean and standard deviation over the seeds of its best rate.

    Models come in the order of `MODELS`, whatever the order of their trainings.
    """
    rows = []
    for model in sorted(configuration.models, key=list(MODELS).index):
        rate = chosen_rate(model, results, configuration.first_seed)
        own = [r for r in results if r["model"] == model and r["rate"] == rate]
        scores = [r["score"] for r in own if r["score"] is not None]
        row = {
            **{"model": model, "rate": rate, "parameters": own[0]["parameters"]},
            **harness.spread(scores),
            **{"scores": scores, "failed": len(own) - len(scores)},
        }
        for key in ("shuffled", "parity_shuffled"):
            row[key] = harness.spread([r[key] for r in own if r.get(key) is not None])["mean"]
        rows.append(row)
    return rows
