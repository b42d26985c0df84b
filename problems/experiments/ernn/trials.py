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
from implicit_solvers.problems.experiments.ernn.models import MODELS, SLOW
from implicit_solvers.problems.experiments.ernn.sequence_training import (
    DivergedError,
    evaluate,
    fit_sequences,
    sequence_model,
)
from implicit_solvers.problems.experiments.ernn.statistics import holm, paired_p
from implicit_solvers.problems.experiments.harness import option

COMPARED = (
    *("exact", "exact-plus", "leaky", "leaky-implicit", "k3"),
    *("rnn", "gru", "lstm", "fastrnn", "antisymmetric"),
)
REFERENCE = "rnn"
SEEDS_OF_SLOW = 5

Run = tuple[str, int, float, int]  # the model, the fold, the rate, the seed


@dataclass(frozen=True)
class Configuration:
    """What the results on one task depend on.

    Each rate is tried with the first seed; the best on the validation part is kept, in each fold.
    """

    task: str
    folder: str
    epochs: int = option(
        None, "passes over the sequences (depends on the task)", read=harness.COUNT
    )
    batch: int = option(None, "sequences in a step (depends on the task)", read=harness.COUNT)
    models: list[str] = option(list(COMPARED), "networks", choices=MODELS, metavar="MODEL")
    rates: list[float] = option([5e-3, 2e-2], "Adam's rates that are tried", metavar="RATE")
    seeds: int = option(
        None,
        f"trainings of each model with its best rate (depends on the task; at most {SEEDS_OF_SLOW} "
        f"of {' '.join(SLOW)})",
        read=harness.COUNT,
    )
    first_seed: int = option(0, "the first of their seeds", read=harness.WHOLE)
    hidden: int = option(32, "size of the hidden states")
    clip: float = option(1.0, "largest norm of a gradient")

    def stages(self) -> list[tuple[int, list[str], int]]:
        """Return what is trained together, in order: a place, the models, and their seed.

        Every seed comes with all models, but slow ones come after all seeds of the others, whose
        rates they take over.
        """
        slow = [m for m in self.models if self.tried(m) != m]
        quick = [m for m in self.models if m not in slow]
        stages = [(n, quick, self.first_seed + n) for n in range(self.seeds)]
        few = range(min(self.seeds, SEEDS_OF_SLOW)) if slow else ()
        return stages + [(self.seeds + n, slow, self.first_seed + n) for n in few]

    def tried(self, model: str) -> str:
        """Return the model with which the rates of a model are tried: itself, unless it is slow."""
        other = SLOW.get(model, model)
        return other if other in self.models else model

    def trainings(
        self, models: Sequence[str], seed: int, folds: int, results: Sequence[harness.State]
    ) -> list[Run]:
        """Return the trainings of a stage, given what those before gave: all rates, or the best."""
        runs: list[Run] = []
        for model in models:
            tries = seed == self.first_seed and self.tried(model) == model
            for fold in range(folds):
                rates = self.rates if tries else [self.rate(model, fold, results)]
                runs += [(model, fold, rate, seed) for rate in rates]
        return runs

    def rate(self, model: str, fold: int, results: Sequence[harness.State]) -> float:
        """Return the rate whose trial was best on the validation part."""
        own = (self.tried(model), fold, self.first_seed)
        trials = [r for r in results if (r["model"], r["fold"], r["seed"]) == own]
        return max(trials, key=better)["rate"]


def run_trials(
    configuration: Configuration,
    folds: Sequence[SequenceTask],
    checkpoint: harness.Checkpoint,
    every: int,
    folder: harness.RunFolder,
    until: float = math.inf,
) -> list[harness.State]:
    """Train all models up to a place of the stages, and return a result for each training."""
    begin, runs = _begin(configuration, folds), list[Run]()
    content = checkpoint.content or {"results": [], "kept": {}, "current": None}
    results, *_ = (content[entry] for entry in ("results", "kept", "current"))
    for place, models, seed in configuration.stages():
        if place <= until:
            runs += configuration.trainings(models, seed, len(folds), results)
            if len(results) < len(runs):
                common = (configuration.epochs, checkpoint, every, folder)
                results = harness.train_all(runs, begin, *common)["results"]
    return results


def _begin(
    configuration: Configuration, folds: Sequence[SequenceTask]
) -> Callable[[Run, harness.State | None], harness.Training]:
    """Return how `train_all` begins a training."""
    clock = time.process_time
    schedule = harness.Schedule(configuration.epochs, configuration.batch)

    def begin(run: Run, state: harness.State | None) -> harness.Training:
        name, fold, rate, seed = run
        task = folds[fold]
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
            own: harness.State = {"model": name, "fold": fold, "rate": rate, "seed": seed}
            own |= {"parameters": parameter_count(model), "tested": len(task.test)}
            own["processor_seconds"] = clock() - begun
            scores: harness.State = dict.fromkeys(("validation", "validation_loss", "score"))
            try:
                if not failures:
                    scores = _scores(model, task)
            except ConvergenceError as error:
                failures.append(str(error).splitlines()[0])
            return {**own, **scores, **({"failed": failures[0]} if failures else {})}

        return harness.Training(
            f"{name}, fold {fold}, rate {rate:g}, seed {seed}", epochs(), result, kept=model
        )

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
    """
    if result["validation"] is None or not math.isfinite(result["validation_loss"]):
        return (-math.inf, 0.0)
    if result["validation"] == result["validation_loss"]:
        return (-result["validation_loss"], 0.0)
    return (result["validation"], -result["validation_loss"])


def summary(results: Sequence[harness.State], configuration: Configuration) -> list[harness.State]:
    """Return, for each model that was trained, what its scores with the best rate say.

    A seed's score is that of all test sequences of all folds; a seed of which a fold is missing is
    left out. Models come in the order of `MODELS`, whatever the order of their trainings. ``"p"``
    is that of a paired test against `REFERENCE`.
    """
    rows = []
    for model in sorted({r["model"] for r in results}, key=list(MODELS).index):
        folds = range(1 + max(r["fold"] for r in results))
        rates = [configuration.rate(model, fold, results) for fold in folds]
        own = [r for r in results if r["model"] == model and r["rate"] == rates[r["fold"]]]
        seeds = sorted({r["seed"] for r in own})
        each = {seed: [r for r in own if r["seed"] == seed] for seed in seeds}
        each = {seed: parts for seed, parts in each.items() if len(parts) == len(folds)}
        scores = _pooled(each, "score")
        row = {
            **{"model": model, "rates": rates, "parameters": own[0]["parameters"]},
            **harness.spread(list(scores.values())),
            **{"half": harness.half_width(list(scores.values()))},
            **{"seeds": list(scores), "scores": list(scores.values())},
            "failed": len(each) - len(scores),
        }
        for key in ("shuffled", "parity_shuffled"):
            row[key] = harness.spread(list(_pooled(each, key).values()))["mean"]
        rows.append(row)
    found = {row["model"]: dict(zip(row["seeds"], row["scores"], strict=True)) for row in rows}
    for row in rows:
        row["p"], row["above"] = None, None
        if REFERENCE in found and row["model"] != REFERENCE:
            mine, its = found[row["model"]], found[REFERENCE]
            row["p"] = paired_p(mine, its)
            row["above"] = sum(mine[s] - its[s] for s in mine.keys() & its.keys()) > 0
    return rows


def adjust(rows: Mapping[str, Sequence[harness.State]]) -> None:
    """Add ``"p_holm"`` to rows of `summary`: all tests of all tasks are one family."""
    family = [row for own in rows.values() for row in own]
    tested = [row for row in family if row["p"] is not None]
    adjusted = iter(holm([row["p"] for row in tested]))
    for row in family:
        row["p_holm"] = None if row["p"] is None else next(adjusted)


def _pooled(each: Mapping[int, Sequence[harness.State]], key: str) -> dict[int, float]:
    """Return the mean over the test sequences of all folds, for the seeds that have all."""
    return {
        seed: sum(r[key] * r["tested"] for r in parts) / sum(r["tested"] for r in parts)
        for seed, parts in each.items()
        if all(r.get(key) is not None for r in parts)
    }
