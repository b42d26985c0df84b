"""``implicit-solvers imaml``: meta-learn with one method, and score it on unseen tasks."""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from implicit_solvers.problems.experiments.harness.options import positive, positive_integer
from implicit_solvers.problems.experiments.harness.progress_bar import progress_bar
from implicit_solvers.problems.experiments.harness.run_folder import (
    CheckpointError,
    load_checkpoint,
    write_json,
)
from implicit_solvers.problems.experiments.imaml.configuration import (
    Configuration,
    add_options,
    configuration_from,
    read_options,
)
from implicit_solvers.problems.experiments.imaml.evaluation import interval, task_scores
from implicit_solvers.problems.experiments.imaml.learning_figure import draw_learning
from implicit_solvers.problems.experiments.imaml.problem import Problem, load_problem
from implicit_solvers.problems.experiments.imaml.processes import first_rank, process_group
from implicit_solvers.problems.experiments.imaml.training import History, meta_train
from implicit_solvers.problems.imaml import Batching, tasks_that_fit

__all__ = ["Machine", "add_arguments", "run", "shown", "train_and_score"]

TAIL = 20


@dataclass(frozen=True)
class Machine:
    """How a run is computed; its results depend on it by rounding only.

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"``, ...
    tasks_at_once
        How many tasks are in memory together.
    memory_limit
        In bytes: as many tasks are in memory together as fit, if ``tasks_at_once`` is left out.
    checkpoint_every
        Meta-steps from one checkpoint to the next.
    """

    device: str = "cpu"
    tasks_at_once: int | None = None
    memory_limit: float | None = None
    checkpoint_every: int = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_options(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/imaml"), help="folder of the results (%(default)s)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in that folder"
    )
    parser.add_argument(
        "--checkpoint-every",
        type=positive_integer,
        default=Machine.checkpoint_every,
        metavar="N",
        help="meta-steps from one checkpoint to the next (%(default)s)",
    )
    parser.add_argument("--device", default=Machine.device, help="of the tensors (%(default)s)")
    parser.add_argument(
        "--tasks-at-once",
        type=positive_integer,
        metavar="N",
        help="tasks in memory together (all of a meta-step; 25 in the evaluation)",
    )
    parser.add_argument(
        "--memory-limit",
        type=positive,
        metavar="GB",
        help="as many tasks in memory together as fit; leave a margin for the libraries",
    )
    parser.add_argument(
        "--threads", type=positive_integer, default=1, metavar="N", help="of torch (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    torch.set_num_threads(arguments.threads)
    names = ["size", *(field.name for field in fields(Configuration))]
    try:
        options = read_options(arguments.config) if arguments.config else {}
        given = {name: getattr(arguments, name) for name in names}
        options |= {name: value for name, value in given.items() if value is not None}
        configuration = configuration_from(options)
        machine = Machine(
            arguments.device,
            arguments.tasks_at_once,
            None if arguments.memory_limit is None else 1e9 * arguments.memory_limit,
            arguments.checkpoint_every,
        )
        console = Console()
        with process_group(machine.device):
            metrics = train_and_score(
                configuration, arguments.out, machine, resume=arguments.resume, console=console
            )
            if first_rank():
                _print_results(console, metrics, configuration, arguments.out)
    except (CheckpointError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on", file=sys.stderr)
        return 130
    return 0


def train_and_score(
    configuration: Configuration,
    out: Path,
    machine: Machine,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train, score on the tasks of the test, and write everything into a folder.

    Parameters
    ----------
    configuration, machine
        What is computed, and how.
    out
        Receives ``config.json``, ``checkpoint.pt``, ``metrics.json`` and ``learning.png``.
    resume
        Whether to go on from the checkpoint there, if there is one.
    console
        Of the progress bar; None for no bar.

    Returns
    -------
    dict
        What ``metrics.json`` holds. Of several processes, the first one writes.

    Raises
    ------
    CheckpointError
        If the checkpoint there has another configuration, or is none.
    ImportError, OSError, ValueError
        As `load_problem`; or if the folder cannot be made.
    """
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.pt"
    checkpoint = load_checkpoint(path, asdict(configuration)) if resume else None
    problem = load_problem(configuration, machine.device)
    if first_rank():
        write_json(out / "config.json", asdict(configuration))
    loaded = time.perf_counter()
    tasks_at_once = _tasks_at_once(problem, configuration, machine)
    silent = console is None or not first_rank()
    with progress_bar(Console(quiet=True) if silent or console is None else console) as progress:
        training = progress.add_task("meta-training", total=configuration.steps, note="")
        theta, history = meta_train(
            problem,
            configuration,
            path,
            checkpoint=checkpoint,
            checkpoint_every=machine.checkpoint_every,
            tasks_at_once=tasks_at_once,
            report=lambda history: progress.update(
                training, completed=history.steps, note=_note(history, problem.score_name)
            ),
        )
        trained = time.perf_counter()
        count = configuration.evaluation_tasks
        bar = progress.add_task("evaluation", total=count, note="")
        scores = task_scores(
            problem,
            theta,
            problem.test,
            range(count),
            batching=Batching(history.batching),
            tasks_at_once=tasks_at_once,
            report=lambda tasks: progress.advance(bar, tasks),
        )
    end = time.perf_counter()
    metrics = {
        "score": {"name": problem.score_name, **interval(scores)} if count else None,
        "validation": history.validation[-1][1] if history.validation else None,
        "residuals": _residuals(history),
        "tasks_left_out": history.left_out,
        "batching": history.batching,
        "history": {
            name: getattr(history, name)
            for name in ("loss", "inner_residual", "adjoint_residual", "validation")
        },
        "timing": {
            "a_task": history.batching_seconds,
            "loading": loaded - start,
            "meta_training": history.seconds,
            "evaluation": end - trained,
            "total": end - start,
        },
    }
    if first_rank():
        draw_learning(out / "learning.png", history, problem.score_name, configuration.method)
        write_json(out / "metrics.json", metrics)
    return metrics


def _tasks_at_once(problem: Problem, configuration: Configuration, machine: Machine) -> int | None:
    if machine.tasks_at_once is not None or machine.memory_limit is None:
        return machine.tasks_at_once
    tasks = problem.train.batch([0])
    meta_gradient = functools.partial(
        problem.method.meta_gradient, problem.model, problem.criterion, problem.first
    )
    fitting = tasks_that_fit(machine.memory_limit, meta_gradient, tasks[:2], tasks[2:])
    return min(fitting, configuration.meta_batch)


def _note(history: History, score_name: str) -> str:
    """Return what the progress bar says: of residuals, the inner loop's and the linear solve's."""
    parts = []
    if history.loss and history.loss[-1] is not None:
        parts.append(f"loss {history.loss[-1]:.3f}")
    if history.validation:
        parts.append(f"{score_name} {shown(history.validation[-1][1], score_name)}")
    for name in ("inner", "adjoint"):
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


def _residuals(history: History) -> dict[str, dict[str, float] | None]:
    """Return the median over all meta-steps, and over the last ones, of both residuals."""
    summary: dict[str, dict[str, float] | None] = {}
    for name in ("inner", "adjoint"):
        values = [v for v in getattr(history, f"{name}_residual") if v is not None]
        if not values:
            summary[name] = None
            continue
        ordered = torch.tensor(values, dtype=torch.float64)
        summary[name] = {
            "median": float(ordered.quantile(0.5)),
            "last": float(ordered[-TAIL:].quantile(0.5)),
            "highest": float(ordered.max()),
        }
    return summary


def _print_results(
    console: Console, metrics: Mapping[str, Any], configuration: Configuration, out: Path
) -> None:
    say = functools.partial(console.print, soft_wrap=True)
    score, timing = metrics["score"], metrics["timing"]
    if score is not None:
        name = score["name"]
        mean, low, high = (shown(score[key], name) for key in ("mean", "low", "high"))
        say(
            f"{configuration.method}: {name} {mean} on {score['tasks']} unseen tasks (95% interval "
            f"{low} to {high})"
        )
    for kind, text in (("inner", "inner loop"), ("adjoint", "meta-gradient's linear solve")):
        residual = metrics["residuals"][kind]
        if residual is not None and math.isfinite(residual["median"]):
            say(f"residual of the {text}: {residual['median']:.2g} (median of meta-steps)")
    if timing["a_task"]:
        seconds = ", ".join(f"{name} {value:.3g} s" for name, value in timing["a_task"].items())
        say(f"tasks evaluated by {metrics['batching']} ({seconds} a task)")
    tasks = configuration.steps * configuration.meta_batch
    if metrics["tasks_left_out"]:
        say(f"{len(metrics['tasks_left_out'])} of {tasks} tasks left out")
    say(
        f"{timing['total']:.0f} s, of which meta-training {timing['meta_training']:.0f} s. Results "
        f"are in {out}, the figure in {out / 'learning.png'}."
    )
