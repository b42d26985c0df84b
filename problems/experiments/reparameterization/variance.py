"""``implicit-solvers reparam variance``: how much estimators of a gradient vary."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.reparameterization.figures import draw_variance
from implicit_solvers.problems.experiments.reparameterization.variance_measurements import (
    FAMILIES,
    Configuration,
    Measurement,
    load_measurements,
    measure_all,
    ratios,
    total,
)

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
        draw_variance(folder.path / "figure.png", done)
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
