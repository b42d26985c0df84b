"""``implicit-solvers reparam variance``: how much estimators of a gradient vary."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.harness import option
from implicit_solvers.problems.experiments.reparameterization.figures import draw_variance
from implicit_solvers.problems.reparameterization.estimators import (
    implicit_gradients,
    rejection_gradients,
    score_function_gradients,
)
from implicit_solvers.problems.reparameterization.expectations import (
    BETA,
    DIRICHLET,
    GAMMA,
    MIXTURE,
    VON_MISES,
    Expectation,
)


@dataclass(frozen=True)
class Family:
    """Distributions along a line of parameters, which is divided in equal ratios."""

    title: str  # of the panel of the figure
    axis: str  # and its axis
    low: float
    high: float
    parameters: Callable[[float], list[float]]  # at a place
    expectation: Expectation

    def places(self, count: int) -> list[float]:
        """Return ``count`` places from ``low`` to ``high``."""
        ratio = self.high / self.low
        return [self.low * ratio ** (i / max(count - 1, 1)) for i in range(count)]


FAMILIES = {
    "gamma": Family("Gamma(a, 1)", "a", 0.05, 100, lambda a: [a], GAMMA),
    "beta": Family("Beta(a, a)", "a", 0.5, 100, lambda a: [a, a], BETA),
    "dirichlet": Family("Dirichlet(a, a, a, a, a)", "a", 0.05, 100, lambda a: 5 * [a], DIRICHLET),
    "von_mises": Family(
        "von Mises(0, κ)", "concentration κ", 0.1, 1000, lambda k: [0.0, k], VON_MISES
    ),
    "mixture": Family(
        "Mixture: N(−d, 1), N(0, 1), N(d, 1)",
        "distance d",
        0.5,
        8,
        lambda d: [0.0, 0.0, 0.0, -d, 0.0, d, 0.0, 0.0, 0.0],
        MIXTURE,
    ),
}


@dataclass(frozen=True)
class Configuration:
    """What determines the measurements."""

    samples: int = option(100_000, "for each variance", read=harness.number(int, 1))
    points: int = option(9, "places on the axis of each family")
    augmentation: list[int] = option([1, 10], "by how much RSVI raises shapes", metavar="B")
    seed: int = option(0, "of all samples", read=harness.WHOLE)


@dataclass(frozen=True)
class Measurement:
    """An estimator at one place."""

    family: str
    place: float
    estimator: str
    exact: list[float]  # the gradient in closed form
    mean: list[float]  # of the estimates
    standard_error: list[float]
    variance: float  # of one sample's gradient, summed over the parameters
    seconds: float  # for all samples

    @property
    def deviation(self) -> float:
        """The largest distance of a mean from the exact derivative, in standard errors."""
        triples = zip(self.mean, self.exact, self.standard_error, strict=True)
        return max(abs(mean - exact) / error for mean, exact, error in triples)


Estimator = Callable[[Expectation, Tensor, int], Tensor]


def estimators_of(family: Family, configuration: Configuration) -> dict[str, Estimator]:
    """Return the estimators that apply to a family, by name; the implicit one comes first.

    RSVI is for distributions made of gamma variables only.
    """
    estimators: dict[str, Estimator] = {
        "implicit": implicit_gradients,
        "score function": score_function_gradients,
    }
    if family.expectation.from_log_gammas is not None:
        for steps in configuration.augmentation:
            estimators[f"RSVI, B = {steps}"] = _rejection(steps)
    return estimators


def _rejection(steps: int) -> Estimator:
    return lambda expectation, phi, count: rejection_gradients(expectation, phi, count, steps)


def measure_all(
    configuration: Configuration, checkpoint: harness.Checkpoint, done: list[Measurement]
) -> Iterator[Measurement]:
    """Measure what is not ``done``, append it, save all, and yield it."""
    known = {(m.family, m.place, m.estimator) for m in done}
    job = 0
    for name, family in FAMILIES.items():
        for place in family.places(configuration.points):
            for estimator, gradients in estimators_of(family, configuration).items():
                job += 1
                if (name, place, estimator) in known:
                    continue
                # each has its own seed: what was measured before it makes no difference
                torch.manual_seed(100_003 * configuration.seed + job)
                start = time.perf_counter()
                phi = torch.tensor(family.parameters(place), dtype=torch.float64)
                sample = gradients(family.expectation, phi, configuration.samples)
                seconds = time.perf_counter() - start
                variance = sample.var(0)
                measurement = Measurement(
                    family=name,
                    place=place,
                    estimator=estimator,
                    exact=torch.func.grad(family.expectation.closed_form)(phi).tolist(),
                    mean=sample.mean(0).tolist(),
                    standard_error=(variance / len(sample)).sqrt().tolist(),
                    variance=float(variance.sum()),
                    seconds=seconds,
                )
                done.append(measurement)
                checkpoint.save(measurements=[asdict(m) for m in done])
                yield measurement


def load_measurements(checkpoint: harness.Checkpoint) -> list[Measurement]:
    """Return the measurements of a checkpoint; none if it is a new one."""
    if checkpoint.content is None:
        return []
    return [harness.record(Measurement, entry) for entry in checkpoint.content["measurements"]]


def total(configuration: Configuration) -> int:
    """Return the number of measurements."""
    counts = [len(estimators_of(family, configuration)) for family in FAMILIES.values()]
    return configuration.points * sum(counts)


def ratios(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """Return, for each place, the implicit variance and the others' relative to it."""
    places = dict.fromkeys((m.family, m.place) for m in measurements)
    rows = []
    for family, place in places:
        here = {
            m.estimator: m.variance for m in measurements if (m.family, m.place) == (family, place)
        }
        implicit = here.pop("implicit")
        relative = {name: variance / implicit for name, variance in here.items()}
        rows.append({"family": family, "place": place, "implicit": implicit, "relative": relative})
    return rows


# ---- The command ----

LARGEST_DEVIATION = 4.0  # standard errors


def _run(arguments: argparse.Namespace) -> int:
    """Return 1 if an estimator is off its exact mean."""
    configuration = harness.configuration_of(arguments, Configuration)
    with harness.RunFolder.of(arguments, asdict(configuration)) as folder:
        checkpoint = folder.checkpoint()
        done = load_measurements(checkpoint)
        count, there = total(configuration), len(done)
        folder.collect("sampling", measure_all(configuration, checkpoint, done), count, there)
        rows = ratios(done)
        worst = max(done, key=lambda measurement: measurement.deviation)
        metrics = {
            "configuration": asdict(configuration),
            "unbiased": worst.deviation <= LARGEST_DEVIATION,
            "largest_deviation": worst.deviation,
            "variance": rows,
            "measurements": [_without_time(measurement) for measurement in done],
        }
        draw_variance(folder.path / "figure.png", done, FAMILIES)
        _print_results(folder.console, rows, worst, len(done))
        folder.finish(metrics, samples=sum(m.seconds for m in done))
    return 0 if worst.deviation <= LARGEST_DEVIATION else 1


def _without_time(measurement: Measurement) -> dict[str, Any]:
    entry = asdict(measurement) | {"deviation": measurement.deviation}
    del entry["seconds"]
    return entry


def _print_results(
    console: Console, rows: Sequence[dict[str, Any]], worst: Measurement, count: int
) -> None:
    others = list(dict.fromkeys(name for row in rows for name in row["relative"]))
    title = "Variance of a gradient: implicit, and the others relative to it"
    table = Table("", "at", "implicit", *others, title=title, title_justify="left")
    for name in FAMILIES:
        own = [row for row in rows if row["family"] == name]
        for row in dict.fromkeys((0, len(own) // 2, len(own) - 1)):
            entry = own[row]
            relative = (entry["relative"].get(other) for other in others)
            table.add_row(
                "" if row else name,
                f"{entry['place']:.3g}",
                f"{entry['implicit']:.2g}",
                *("" if value is None else f"× {value:.3g}" for value in relative),
            )
    console.print(table)
    console.print(
        f"Of {count} means, the farthest from its closed form is off by {worst.deviation:.1f} "
        f"standard errors ({worst.family} at {worst.place:.3g}, {worst.estimator})."
    )
    if worst.deviation > LARGEST_DEVIATION:
        console.print(
            f"That is more than {LARGEST_DEVIATION:g}. An unbiased estimator may be so far off "
            "once in 16,000 times; see whether another --seed repeats it."
        )


COMMAND = harness.Command(
    help="variance of gradient estimators (minutes)",
    description="Compare the variance and bias of gradients of expectations: implicit, "
    "shape-augmented rejection (RSVI), and score-function estimators.",
    run=_run,
    out="runs/reparam-variance",
    folder={"threads": True},
    configuration=Configuration,
)
