"""``implicit-solvers imaml sinusoid``: the error after a few gradient steps on a sine wave."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.harness import option
from implicit_solvers.problems.experiments.imaml.configuration import (
    LABELS,
    METHODS,
    Configuration,
    configuration_from,
)
from implicit_solvers.problems.experiments.imaml.figures import draw_sinusoid
from implicit_solvers.problems.experiments.imaml.grid import (
    WAVE_GRIDS,
    Cell,
    markdown_table,
    run_all,
    run_searches,
)
from implicit_solvers.problems.experiments.imaml.problem import (
    Problem,
    interval,
    load_problem,
    task_scores,
)
from implicit_solvers.problems.experiments.imaml.run import Machine
from implicit_solvers.problems.imaml import FirstOrderMaml

GRADIENT_STEPS = 10
SHOWN_STEPS = (0, 1, 2, 5, 10)
EXAMPLE_TASK = 1
GRID = 200


@dataclass(frozen=True)
class Plan:
    """What is trained, and on what."""

    methods: list[str] = option(list(METHODS), "methods", choices=METHODS, metavar="METHOD")
    steps: int = option(400, "meta-steps")
    trial_steps: int = option(
        None, "meta-steps of each trial (half as many; 0: no trials)", read=harness.WHOLE
    )
    shots: int = option(10, "points to learn from")
    meta_batch: int = option(16, "tasks a step")
    evaluation_tasks: int = option(600, "tests")
    seed: int = option(0, "of everything", read=harness.WHOLE)

    def configuration(self, method: str, chosen: Mapping[str, float]) -> Configuration:
        """Return that of one run."""
        names = ("steps", "shots", "meta_batch", "evaluation_tasks", "seed")
        own = {name: getattr(self, name) for name in names}
        fixed = {"data": "sinusoid", "method": method, "validations": 1}
        return configuration_from({**fixed, **own, **chosen})


@dataclass(frozen=True)
class WaveResult:
    """What a method came to; R2D2 has no head to take steps with, and no ``errors``."""

    method: str
    hyperparameters: dict[str, float]  # those that were chosen
    errors: list[dict[str, Any]]  # `interval` after 0, 1, ... gradient steps
    own: dict[str, Any]  # `interval` after the method's own adaptation
    seconds: float  # of a meta-step


def _run(arguments: argparse.Namespace) -> int:
    plan, jobs = harness.configuration_of(arguments, Plan), arguments.jobs
    with harness.RunFolder.of(arguments, asdict(plan), keeps=True) as folder:
        grids = {m: WAVE_GRIDS[m] if plan.trial_steps != 0 else {} for m in plan.methods}
        trial = replace(plan, steps=plan.trial_steps or max(1, plan.steps // 2)).configuration
        tried = run_searches(folder, "trial", grids, trial, jobs, Machine())
        chosen = {method: entry["chosen"] for method, entry in tried.items()}
        cells = [
            Cell(plan.configuration(m, chosen[m]), folder.path / m, Machine(), folder.overwrite)
            for m in plan.methods
        ]
        metrics = run_all(folder, "runs", cells, jobs)
        results, curves = [], {}
        for cell, entry in zip(cells, metrics, strict=True):
            c = cell.configuration
            problem, theta = _trained(cell)
            errors = []
            if c.method != "r2d2":
                tasks = range(c.evaluation_tasks)
                scores = errors_after_steps(problem, c, theta, GRADIENT_STEPS, tasks)
                errors = [interval(column) for column in scores.T]
            seconds = entry["timing"]["meta_training"] / len(entry["history"]["loss"])
            results.append(WaveResult(c.method, chosen[c.method], errors, entry["score"], seconds))
            curves[c.method] = _example(problem, theta)
        text, example = markdown(results), problem.test.batch([EXAMPLE_TASK])
        harness.write_whole(folder.path / "table.md", text.encode())
        draw_sinusoid(folder.path / "sinusoid.png", results, curves, example)
        folder.console.print(text, markup=False, highlight=False, soft_wrap=True)
        folder.finish({"trials": tried, "results": [asdict(result) for result in results]})
    return 0


def errors_after_steps(
    problem: Problem,
    configuration: Configuration,
    theta: dict[str, Tensor],
    steps: int,
    tasks: Sequence[int],
) -> Tensor:
    """Return the squared error ``(tasks, steps + 1)`` after 0, 1, ... ``steps`` gradient steps."""
    proximal = configuration.strength if configuration.method.startswith("imaml") else 0.0
    columns = []
    for count in range(steps + 1):
        stepping = replace(problem, method=FirstOrderMaml(configuration.inner_lr, count, proximal))
        columns.append(task_scores(stepping, theta, problem.test, tasks))
    return torch.stack(columns, 1)


def _trained(cell: Cell) -> tuple[Problem, dict[str, Tensor]]:
    path = cell.out / "checkpoint.pt"
    content = harness.Checkpoint(path, asdict(cell.configuration), resume=True).content
    if content is None:
        raise harness.RunError(f"there is no {path}: delete {cell.out}, and the run is made again")
    return load_problem(cell.configuration), dict(content["theta"])


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
    rows = {}
    for result in results:
        means = [
            f"{result.errors[count]['mean']:.2f}" if result.errors else "–" for count in SHOWN_STEPS
        ]
        half = (result.own["high"] - result.own["low"]) / 2
        rows[LABELS[result.method]] = [*means, f"{result.own['mean']:.2f} ± {half:.2f}"]
    return markdown_table([f"{first} steps", *map(str, others), "its own adaptation"], rows)


COMMAND = harness.Command(
    help="error of all methods after 0 to 10 gradient steps on sine waves (ten minutes)",
    description="Search for each method's hyperparameters on validation waves, train it, and "
    "measure the error on unseen waves after each gradient step. Runs that are in the folder "
    "already are kept.",
    run=_run,
    out="runs/imaml-sinusoid",
    folder={"resume": False, "jobs": True},
    configuration=Plan,
    modules=("HersheyFonts", "matplotlib"),
)
