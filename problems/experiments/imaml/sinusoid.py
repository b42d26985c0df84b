"""``implicit-solvers imaml sinusoid``: the error after a few gradient steps on a sine wave."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from implicit_solvers.problems.experiments.harness.options import positive_integer, whole
from implicit_solvers.problems.experiments.harness.run_folder import (
    CheckpointError,
    load_checkpoint,
    write_json,
)
from implicit_solvers.problems.experiments.imaml.configuration import (
    LABELS,
    METHODS,
    Configuration,
    configuration_from,
)
from implicit_solvers.problems.experiments.imaml.evaluation import interval, task_scores
from implicit_solvers.problems.experiments.imaml.grid import Cell, run_with_bar
from implicit_solvers.problems.experiments.imaml.problem import Problem, load_problem
from implicit_solvers.problems.experiments.imaml.run import Machine
from implicit_solvers.problems.experiments.imaml.sinusoid_figure import draw_sinusoid
from implicit_solvers.problems.experiments.imaml.trials import WAVE_TRIALS, run_trials
from implicit_solvers.problems.imaml import FirstOrderMaml

__all__ = ["WaveResult", "add_arguments", "errors_after_steps", "markdown", "run"]

GRADIENT_STEPS = 10
SHOWN_STEPS = (0, 1, 2, 5, 10)
EXAMPLE_TASK = 1
GRID = 200


@dataclass(frozen=True)
class WaveResult:
    """What a method came to.

    Attributes
    ----------
    method
        Its name on the command line.
    hyperparameters
        Those that were chosen.
    errors
        `interval` of the squared error after 0, 1, ... gradient steps; empty for R2D2, whose
        features have no head to take steps with.
    own
        `interval` of the squared error after the method's own adaptation.
    seconds
        Of a meta-step.
    """

    method: str
    hyperparameters: dict[str, float]
    errors: list[dict[str, Any]]
    own: dict[str, Any]
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="METHOD",
        help=", ".join(METHODS),
    )
    parser.add_argument(
        "--steps", type=positive_integer, default=400, metavar="N", help="meta-steps (400)"
    )
    parser.add_argument(
        "--trial-steps",
        type=whole,
        metavar="N",
        help="meta-steps of each trial of hyperparameters (half as many; 0: no trials)",
    )
    parser.add_argument(
        "--shots", type=positive_integer, default=10, metavar="N", help="points to learn from (10)"
    )
    parser.add_argument(
        "--meta-batch", type=positive_integer, default=16, metavar="N", help="tasks a step (16)"
    )
    parser.add_argument(
        "--evaluation-tasks", type=positive_integer, default=600, metavar="N", help="tests (600)"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of everything (0)")
    parser.add_argument("--jobs", type=positive_integer, default=1, metavar="N", help="processes")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/imaml-sinusoid"),
        help="folder of the results; what is there already is kept (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    console = Console()
    out: Path = arguments.out

    def configuration_of(method: str, chosen: Mapping[str, float]) -> Configuration:
        given = {"data": "sinusoid", "method": method, "validations": 1, **chosen}
        for name in ("steps", "shots", "meta_batch", "evaluation_tasks", "seed"):
            given[name] = getattr(arguments, name)
        return configuration_from(given)

    def configuration_of_trial(method: str, trial: Mapping[str, float]) -> Configuration:
        steps = arguments.trial_steps or max(1, arguments.steps // 2)
        return replace(configuration_of(method, trial), steps=steps)

    try:
        out.mkdir(parents=True, exist_ok=True)
        tried: dict[str, dict[str, Any]] = {}
        if arguments.trial_steps != 0:
            trials = {method: WAVE_TRIALS[method] for method in arguments.methods}
            tried = run_trials(
                console, trials, configuration_of_trial, out, arguments.jobs, Machine()
            )
        chosen = {m: tried[m]["chosen"] if m in tried else {} for m in arguments.methods}
        cells = [Cell(configuration_of(m, chosen[m]), out / m) for m in arguments.methods]
        metrics = run_with_bar(console, "runs", cells, arguments.jobs)
        results, curves = [], {}
        for cell, entry in zip(cells, metrics, strict=True):
            c = cell.configuration
            problem, theta = _trained(cell)
            errors = []
            if c.method != "r2d2":
                scores = errors_after_steps(
                    problem, c, theta, GRADIENT_STEPS, range(c.evaluation_tasks)
                )
                errors = [interval(column) for column in scores.T]
            seconds = entry["timing"]["meta_training"] / len(entry["history"]["loss"])
            results.append(WaveResult(c.method, chosen[c.method], errors, entry["score"], seconds))
            curves[c.method] = _example(problem, theta)
    except (CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    text = markdown(results)
    (out / "table.md").write_text(text)
    draw_sinusoid(out / "sinusoid.png", results, curves, problem.test.batch([EXAMPLE_TASK]))
    timing = {"total": time.perf_counter() - start}
    content = {"trials": tried, "results": [asdict(result) for result in results]}
    write_json(out / "metrics.json", {**content, "timing": timing})
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{timing['total']:.0f} s. The table, its figure and all runs are in {out}.", soft_wrap=True
    )
    return 0


def errors_after_steps(
    problem: Problem,
    configuration: Configuration,
    theta: dict[str, Tensor],
    steps: int,
    tasks: Sequence[int],
) -> Tensor:
    """Return the squared error of test tasks after 0, 1, ... ``steps`` gradient steps.

    Parameters
    ----------
    problem, configuration, theta
        A trained method, other than R2D2. Steps have its ``inner_lr``, on the objective that it
        trained with: iMAML's includes the regularization.
    steps
        The largest number of steps.
    tasks
        The tasks' numbers.

    Returns
    -------
    Tensor
        float64 ``(tasks, steps + 1)``.

    Examples
    --------
    >>> c = configuration_from({"data": "sinusoid", "method": "maml", "width": 8})
    >>> problem = load_problem(c)
    >>> errors_after_steps(problem, c, problem.first, 2, range(5)).shape
    torch.Size([5, 3])
    """
    proximal = configuration.strength if configuration.method.startswith("imaml") else 0.0
    columns = []
    for count in range(steps + 1):
        stepping = replace(problem, method=FirstOrderMaml(configuration.inner_lr, count, proximal))
        columns.append(task_scores(stepping, theta, problem.test, tasks))
    return torch.stack(columns, 1)


def _trained(cell: Cell) -> tuple[Problem, dict[str, Tensor]]:
    checkpoint = load_checkpoint(cell.out / "checkpoint.pt", asdict(cell.configuration))
    if checkpoint is None:
        raise CheckpointError(f"there is no {cell.out / 'checkpoint.pt'}: delete {cell.out}")
    return load_problem(cell.configuration), checkpoint["theta"]


def _example(problem: Problem, theta: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return inputs and predictions of the example's wave after the method's own adaptation."""
    tasks = problem.test.batch([EXAMPLE_TASK])
    support = (tasks.support_x[0], tasks.support_y[0])
    x = torch.linspace(-5, 5, GRID)[:, None]
    with torch.no_grad():
        predict = problem.method.adapt(problem.model, problem.criterion, theta, support)
        return x[:, 0], predict(x)[:, 0]


def markdown(results: Sequence[WaveResult]) -> str:
    """Return the table: methods down, gradient steps across.

    Examples
    --------
    >>> score = {"mean": 0.5, "low": 0.45, "high": 0.55, "tasks": 600}
    >>> print(markdown([WaveResult("maml", {"inner_lr": 0.1}, [score] * 11, score, 0.1)]))
    | method | 0 steps | 1 | 2 | 5 | 10 | its own adaptation |
    |---|---|---|---|---|---|---|
    | MAML | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 ± 0.05 |
    <BLANKLINE>
    """
    first, *others = SHOWN_STEPS
    heads = [f"{first} steps", *map(str, others), "its own adaptation"]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for result in results:
        means = [
            f"{result.errors[count]['mean']:.2f}" if result.errors else "–" for count in SHOWN_STEPS
        ]
        half = (result.own["high"] - result.own["low"]) / 2
        cells = [*means, f"{result.own['mean']:.2f} ± {half:.2f}"]
        lines.append(f"| {LABELS[result.method]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
