"""``implicit-solvers reparam variance``: how much estimators of a gradient vary."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from implicit_solvers.problems.experiments.harness.options import positive_integer, whole
from implicit_solvers.problems.experiments.harness.progress_bar import progress_bar
from implicit_solvers.problems.experiments.harness.run_folder import CheckpointError, write_json
from implicit_solvers.problems.experiments.reparameterization.variance_figure import draw_figure
from implicit_solvers.problems.experiments.reparameterization.variance_measurements import (
    FAMILIES,
    Configuration,
    Measurement,
    load_measurements,
    measure_all,
    ratios,
    total,
)

__all__ = ["add_arguments", "run"]

LARGEST_DEVIATION = 4.0  # standard errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    default = Configuration()
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/reparam-variance"),
        help="folder of the results (%(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="go on where that folder ends")
    parser.add_argument(
        "--samples",
        type=_several,
        default=default.samples,
        metavar="N",
        help="for each variance (%(default)s)",
    )
    parser.add_argument(
        "--points",
        type=positive_integer,
        default=default.points,
        metavar="N",
        help="places on the axis of each family (%(default)s)",
    )
    parser.add_argument(
        "--augmentation",
        type=positive_integer,
        nargs="+",
        default=list(default.augmentation),
        metavar="B",
        help="by how much RSVI raises shapes (1 10)",
    )
    parser.add_argument(
        "--seed", type=whole, default=default.seed, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--threads", type=positive_integer, default=1, metavar="N", help="of torch (%(default)s)"
    )


def _several(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{text} samples have no variance")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status: 1 if an estimator is off its exact mean."""
    start = time.perf_counter()
    torch.set_num_threads(arguments.threads)
    configuration = Configuration(
        samples=arguments.samples,
        points=arguments.points,
        augmentation=tuple(dict.fromkeys(arguments.augmentation)),
        seed=arguments.seed,
    )
    out: Path = arguments.out
    console = Console()
    checkpoint = out / "checkpoint.pt"
    try:
        out.mkdir(parents=True, exist_ok=True)
        done = load_measurements(checkpoint, configuration) if arguments.resume else []
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        _measure(configuration, checkpoint, done, console)
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on", file=sys.stderr)
        return 130
    rows = ratios(done)
    worst = max(done, key=lambda measurement: measurement.deviation)
    unbiased = worst.deviation <= LARGEST_DEVIATION
    metrics = {
        "configuration": asdict(configuration),
        "unbiased": unbiased,
        "largest_deviation": worst.deviation,
        "variance": rows,
        "measurements": [_without_time(measurement) for measurement in done],
        "timing": {"total": time.perf_counter() - start, "samples": sum(m.seconds for m in done)},
    }
    write_json(out / "metrics.json", metrics)
    draw_figure(out / "figure.png", done)
    _print_results(console, rows, worst, len(done))
    console.print(f"Results are in {out}, the figure in {out / 'figure.png'}.")
    return 0 if unbiased else 1


def _without_time(measurement: Measurement) -> dict[str, Any]:
    entry = asdict(measurement) | {"deviation": measurement.deviation}
    del entry["seconds"]
    return entry


def _measure(
    configuration: Configuration, path: Path, done: list[Measurement], console: Console
) -> None:
    with progress_bar(console) as progress:
        count = total(configuration)
        bar = progress.add_task("sampling", total=count, completed=len(done), note="")
        for measurement in measure_all(configuration, path, done):
            progress.update(bar, advance=1, note=measurement.family)


def _print_results(
    console: Console, rows: Sequence[dict[str, Any]], worst: Measurement, count: int
) -> None:
    others = list(dict.fromkeys(name for row in rows for name in row["relative"]))
    table = Table(
        "",
        "at",
        "implicit",
        *others,
        title="Variance of a gradient: implicit, and the others relative to it",
        title_justify="left",
    )
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
