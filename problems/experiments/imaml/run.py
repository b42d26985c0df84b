"""``implicit-solvers imaml``: meta-learn with one method, and score it on unseen tasks."""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.imaml.configuration import (
    Configuration,
    add_configuration,
    configuration_from,
    given_options,
)
from implicit_solvers.problems.experiments.imaml.figures import draw_learning
from implicit_solvers.problems.experiments.imaml.problem import (
    Problem,
    interval,
    load_problem,
    task_scores,
)
from implicit_solvers.problems.experiments.imaml.processes import first_rank, process_group
from implicit_solvers.problems.experiments.imaml.training import History, meta_train
from implicit_solvers.problems.imaml import Batching
from implicit_solvers.testing.live_memory import lanes_that_fit

TAIL = 20
FOLDER = {"checkpoint_every": 10, "unit": "meta-steps", "threads": True}
RESIDUALS = {"inner": "inner loop", "adjoint": "meta-gradient's linear solve"}


@dataclass(frozen=True)
class Machine:
    """How a run is computed; its results depend on it by rounding only."""

    device: str = "cpu"
    tasks_at_once: int | None = None  # in memory
    memory_limit: float | None = None  # bytes: how many tasks that are, if it is not said
    checkpoint_every: int = 10  # meta-steps


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_configuration(parser)
    add = parser.add_argument
    add("--device", type=harness.device, default="cpu", help="of the tensors (%(default)s)")
    text = "tasks in memory together (all of a meta-step; 25 in the evaluation)"
    add("--tasks-at-once", type=harness.COUNT, metavar="N", help=text)
    text = "as many tasks in memory together as fit; leave a margin for the libraries"
    add("--memory-limit", type=harness.number(float, 0), metavar="GB", help=text)


def _run(arguments: argparse.Namespace) -> int:
    c = configuration_from(given_options(arguments))
    limit = None if arguments.memory_limit is None else 1e9 * arguments.memory_limit
    every = arguments.checkpoint_every
    machine = Machine(arguments.device, arguments.tasks_at_once, limit, every)
    with process_group(machine.device):
        folder = harness.RunFolder.of(arguments, asdict(c), writes=first_rank())
        train_and_score(c, folder, machine)
    return 0


def train_and_score(
    configuration: Configuration, folder: harness.RunFolder, machine: Machine
) -> dict[str, Any]:
    """Train, score on the tasks of the test, and write everything into a folder."""
    problem = load_problem(configuration, machine.device)
    loaded = time.perf_counter() - folder.started
    machine = replace(machine, tasks_at_once=_tasks_at_once(problem, configuration, machine))
    with folder, folder.progress() as progress:
        theta, history = trained(problem, configuration, folder, machine, progress)
        count, start = configuration.evaluation_tasks, time.perf_counter()
        bar = progress.add_task("evaluation", total=count, note="")
        scores = task_scores(
            problem,
            theta,
            problem.test,
            range(count),
            batching=Batching(history.batching),
            tasks_at_once=machine.tasks_at_once,
            report=lambda tasks: progress.advance(bar, tasks),
        )
        metrics = {
            "score": {"name": problem.score_name, **interval(scores)} if count else None,
            "validation": history.validation[-1][1] if history.validation else None,
            "residuals": {name: _residuals(history, name) for name in RESIDUALS},
            "tasks_left_out": history.left_out,
            "failures": history.failures,
            "batching": history.batching,
            "history": {
                name: getattr(history, name)
                for name in ("loss", "inner_residual", "adjoint_residual", "validation")
            },
        }
        timing = {
            "a_task": history.batching_seconds,
            "loading": loaded,
            "meta_training": history.seconds,
            "processor": history.processor_seconds,
            "evaluation": time.perf_counter() - start,
        }
        progress.stop()
        if folder.writes:
            if count:  # nobody looks at the hundreds of trials of a table
                path = folder.path / "learning.png"
                draw_learning(path, history, problem.score_name, configuration.method)
            _print_results(folder, metrics, timing, configuration)
            folder.finish(metrics, **timing)
    return {**metrics, "timing": {**timing, "total": folder.seconds()}}


def trained(
    problem: Problem,
    configuration: Configuration,
    folder: harness.RunFolder,
    machine: Machine,
    progress: Progress,
    *,
    closely: bool = False,
) -> tuple[dict[str, Tensor], History]:
    """Return the meta-parameters and the history of `meta_train`, and show its progress."""
    bar = progress.add_task("meta-training", total=configuration.steps, note="")
    return meta_train(
        problem,
        configuration,
        folder.checkpoint(),
        checkpoint_every=machine.checkpoint_every,
        tasks_at_once=machine.tasks_at_once,
        closely=closely,
        report=lambda history: progress.update(
            bar, completed=history.steps, note=_note(history, problem.score_name)
        ),
    )


def _tasks_at_once(problem: Problem, configuration: Configuration, machine: Machine) -> int | None:
    if machine.tasks_at_once is not None or machine.memory_limit is None:
        return machine.tasks_at_once
    tasks = problem.train.batch([0])
    meta_gradient = functools.partial(
        problem.method.meta_gradient, problem.model, problem.criterion, problem.first
    )
    fitting = lanes_that_fit(machine.memory_limit, meta_gradient, tasks[:2], tasks[2:])
    return min(fitting, configuration.meta_batch)


def _note(history: History, score_name: str) -> str:
    """Return what the progress bar says: of residuals, the inner loop's and the linear solve's."""
    parts = []
    if history.loss and history.loss[-1] is not None:
        parts.append(f"loss {history.loss[-1]:.3f}")
    if history.validation:
        parts.append(f"{score_name} {shown(history.validation[-1][1], score_name)}")
    for name in RESIDUALS:
        values = getattr(history, f"{name}_residual")
        if values and values[-1] is not None:
            parts.append(f"{name} {values[-1]:.0e}")
    if history.steps:
        parts.append(f"{history.seconds / history.steps:.2f} s a step")
    if history.left_out:
        parts.append(f"{len(history.left_out)} left out")
    return ", ".join(parts)


def shown(score: float, name: str) -> str:
    """Return a score as text.

    Examples
    --------
    >>> shown(0.8125, "accuracy"), shown(0.8125, "squared error")
    ('81.2%', '0.812')
    """
    return f"{100 * score:.1f}%" if name == "accuracy" else f"{score:.3g}"


def _residuals(history: History, name: str) -> dict[str, float] | None:
    """Return the median of a residual over all meta-steps, and over the last ones."""
    values = [v for v in getattr(history, f"{name}_residual") if v is not None]
    if not values:
        return None
    ordered = torch.tensor(values, dtype=torch.float64)
    median, last = (float(part.quantile(0.5)) for part in (ordered, ordered[-TAIL:]))
    return {"median": median, "last": last, "highest": float(ordered.max())}


def _print_results(
    folder: harness.RunFolder,
    metrics: Mapping[str, Any],
    timing: Mapping[str, Any],
    configuration: Configuration,
) -> None:
    say = functools.partial(folder.console.print, soft_wrap=True)
    score = metrics["score"]
    if score is not None:
        name = score["name"]
        mean, low, high = (shown(score[key], name) for key in ("mean", "low", "high"))
        say(
            f"{configuration.method}: {name} {mean} on {score['tasks']} unseen tasks (95% interval "
            f"{low} to {high})"
        )
    for kind, text in RESIDUALS.items():
        residual = metrics["residuals"][kind]
        if residual is not None and math.isfinite(residual["median"]):
            say(f"residual of the {text}: {residual['median']:.2g} (median of meta-steps)")
    if timing["a_task"]:
        seconds = ", ".join(f"{name} {value:.3g} s" for name, value in timing["a_task"].items())
        say(f"tasks evaluated by {metrics['batching']} ({seconds} a task)")
    tasks = configuration.steps * configuration.meta_batch
    if metrics["tasks_left_out"]:
        ends = ", ".join(f"{n} {name}" for name, n in metrics["failures"]["left out"].items())
        say(f"{len(metrics['tasks_left_out'])} of {tasks} tasks left out: {ends}")
    say(f"{timing['meta_training']:.0f} s of meta-training")


COMMAND = harness.Command(
    help="meta-learning by implicit gradients: one method, tables and figures",
    description="Meta-learn with one method on one kind of tasks, and score it on unseen ones. "
    "Experiments with many methods are commands of their own.",
    run=_run,
    out="runs/imaml",
    folder=FOLDER,
    add_arguments=_add_arguments,
    modules=("HersheyFonts", "matplotlib"),
)
