"""Variances of gradient estimators at points of five families, with checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.problems.experiments import harness
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
    """Distributions along a line of parameters.

    Attributes
    ----------
    title, axis
        Of the panel of the figure.
    low, high
        The ends of the line, which is divided in equal ratios.
    parameters
        The parameters at a place on it.
    expectation
        What is differentiated.
    """

    title: str
    axis: str
    low: float
    high: float
    parameters: Callable[[float], list[float]]
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

    samples: int = harness.option(100_000, "for each variance", read=harness.number(int, 1))
    points: int = harness.option(9, "places on the axis of each family")
    augmentation: list[int] = harness.option([1, 10], "by how much RSVI raises shapes", metavar="B")
    seed: int = harness.option(0, "of all samples", read=harness.WHOLE)


@dataclass(frozen=True)
class Measurement:
    """An estimator at one place.

    Attributes
    ----------
    family, place, estimator
        What was measured.
    exact
        The gradient in closed form.
    mean, standard_error
        Of the estimates, for each parameter.
    variance
        Of one sample's gradient, summed over the parameters.
    seconds
        For all samples.
    """

    family: str
    place: float
    estimator: str
    exact: list[float]
    mean: list[float]
    standard_error: list[float]
    variance: float
    seconds: float

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
