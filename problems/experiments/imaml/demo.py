"""``implicit-solvers demo``: learn to tell characters apart after one example of each.

It is `run` with its defaults, followed closely; compared with two baselines; with a figure.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.data.episodes import Tasks
from implicit_solvers.problems.experiments.imaml.configuration import (
    FIELDS,
    Configuration,
    configuration_from,
)
from implicit_solvers.problems.experiments.imaml.costs import CostRow, measure_meta_gradients
from implicit_solvers.problems.experiments.imaml.figures import draw_demo
from implicit_solvers.problems.experiments.imaml.problem import (
    Problem,
    interval,
    load_problem,
    method_of,
    task_scores,
)
from implicit_solvers.problems.experiments.imaml.run import FOLDER, Machine, trained
from implicit_solvers.problems.experiments.imaml.training import History

Scores = dict[str, dict[str, Any]]

LABELS = {
    "nearest_neighbour": "1-nearest neighbour on pixels",
    "random_weights": "random weights, adapted",
    "meta_trained": "meta-trained (iMAML), adapted",
}
OPTIONS = (
    *("seed", "steps", "meta_batch", "inner_steps", "inner_lr", "strength", "adjoint_steps"),
    *("convolution_lr", "lr", "width", "instances", "queries"),
    *("validation_tasks", "evaluation_tasks"),
)
NAMES = {
    "steps": ("meta-steps",),
    "meta_batch": ("tasks-per-step",),
    "adjoint_steps": ("cg-steps",),
}
# What random weights may adapt with instead, if that is better on validation classes.
RANDOM_SETTINGS = ({"inner_lr": 0.1, "strength": 0.1}, {"inner_lr": 0.5, "strength": 0.1})
COST_STEPS, COST_METHODS = (4, 16, 64, 256), ("iMAML", "MAML")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    harness.add_options(parser, Configuration, only=OPTIONS, names=NAMES, unset=True)
    text = "leave out memory and time against inner steps"
    parser.add_argument("--no-memory", action="store_true", help=text)


def _run(arguments: argparse.Namespace) -> int:
    given = {name: getattr(arguments, name, None) for name in FIELDS}
    # another seed is another split of the characters too
    c = configuration_from({**given, "class_seed": arguments.seed})
    problem = load_problem(c)
    laps = [arguments.started, time.perf_counter()]

    def lap() -> float:
        laps.append(time.perf_counter())
        return laps[-1] - laps[-2]

    with harness.RunFolder.of(arguments, asdict(c)) as folder:
        timing: dict[str, Any] = {"data": laps[1] - laps[0]}
        with folder.progress() as progress:
            machine = Machine(checkpoint_every=arguments.checkpoint_every)
            theta, history = trained(problem, c, folder, machine, progress, closely=True)
            timing["meta_training"] = history.seconds
            lap()
            accuracies, setting = _evaluate(problem, c, theta, progress)
            timing["evaluation"] = lap()
        costs = [] if arguments.no_memory else _measure(problem, c, theta, folder)
        timing["costs"] = lap()
        draw_demo(
            folder.path / "figure.png",
            example=_example(problem, theta),
            history=history,
            accuracies={LABELS[name]: accuracy for name, accuracy in accuracies.items()},
            costs=costs,
        )
        timing["figure"] = lap()
        names = [{"method": cost.method, "inner_steps": cost.inner_steps} for cost in costs]
        pairs = list(zip(names, costs, strict=True))
        timing["meta_gradients"] = [{**name, "seconds": cost.seconds} for name, cost in pairs]
        metrics = {
            "accuracy": accuracies,
            "random_weights_setting": setting,
            "cg": _cg_summary(history, c),
            "history": {
                "loss": history.loss,
                "residual": history.task_residuals,
                "validation": history.validation,
            },
            "memory": [{**name, "bytes": cost.memory} for name, cost in pairs],
        }
        _print_results(folder.console, metrics, timing, c)
        folder.finish(metrics, **timing)
    return 0


def _evaluate(
    problem: Problem, c: Configuration, theta: dict[str, Tensor], progress: Progress
) -> tuple[Scores, dict[str, float]]:
    """Return each method's accuracy, and the setting with which random weights adapt.

    That setting is the best on validation classes.
    """
    bar = progress.add_task("evaluation", total=3 + len(RANDOM_SETTINGS), note="")

    def scores(test: bool, parameters: dict[str, Tensor], setting: Mapping[str, Any]) -> Tensor:
        adapting = replace(problem, method=method_of(replace(c, **setting)))
        source = problem.test if test else problem.validation
        count = c.evaluation_tasks if test else c.validation_tasks
        found = task_scores(adapting, parameters, source, range(count))
        progress.advance(bar)
        return found

    own = {"inner_lr": c.inner_lr, "strength": c.strength}
    settings = (own, *RANDOM_SETTINGS)
    # scores are float32: equal ones shall be equal
    means = [float(scores(False, problem.first, setting).mean()) for setting in settings]
    tried = [round(mean, 6) for mean in means]
    setting = settings[tried.index(max(tried))]
    tasks = problem.test.batch(range(c.evaluation_tasks))
    nearest = (nearest_neighbour_predictions(tasks) == tasks.query_y).double().mean(1)
    accuracies = {
        "nearest_neighbour": interval(nearest),
        "random_weights": interval(scores(True, problem.first, setting)),
        "meta_trained": interval(scores(True, theta, own)),
    }
    return accuracies, setting


def nearest_neighbour_predictions(tasks: Tasks) -> Tensor:
    """Return the labels ``(tasks, queries)`` of the support images with the nearest pixels."""
    distances = torch.cdist(tasks.query_x.flatten(2), tasks.support_x.flatten(2))
    return tasks.support_y.gather(1, distances.argmin(2))


def _measure(
    problem: Problem, c: Configuration, theta: dict[str, Tensor], folder: harness.RunFolder
) -> list[CostRow]:
    """Measure the costs of meta-gradients on the first task."""
    tasks = problem.test.batch([0])
    rows = measure_meta_gradients(
        *(problem.model, problem.criterion, theta, (tasks[:2], tasks[2:]), COST_STEPS),
        methods=COST_METHODS,
        rounds=1,
        settings={"lr": c.inner_lr, "strength": c.strength, "cg_steps": c.adjoint_steps},
    )
    return folder.collect("memory and time", rows, len(COST_METHODS) * len(COST_STEPS))


def _example(problem: Problem, theta: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first task as `draw_demo` takes it."""
    tasks = problem.test.batch([0])
    support = (tasks.support_x[0], tasks.support_y[0])
    with torch.no_grad():
        predict = problem.method.adapt(problem.model, problem.criterion, theta, support)
        right = predict(tasks.query_x[0]).argmax(-1) == tasks.query_y[0]
    shape = (len(support[0]), -1)
    return support[0], tasks.query_x[0].unflatten(0, shape), right.unflatten(0, shape)


def _cg_summary(history: History, c: Configuration) -> dict[str, float]:
    residual = torch.tensor(history.task_residuals, dtype=torch.float64).flatten()
    return {
        "steps": c.adjoint_steps,
        "median_residual": float(residual.quantile(0.5)),
        "residual_95": float(residual.quantile(0.95)),
        "tasks": len(residual),
        "tasks_left_out": len(history.left_out),
        "tasks_of_negative_curvature": sum(
            number for name, number in history.failures["kept"].items() if "INDEFINITE" in name
        ),
    }


def _print_results(
    console: Console, metrics: Mapping[str, Any], timing: Mapping[str, Any], c: Configuration
) -> None:
    accuracies = metrics["accuracy"]
    title = f"Five unseen characters, one example each: {c.evaluation_tasks} tasks"
    table = Table("", "accuracy", "95% interval", title=title, title_justify="left")
    for name, accuracy in accuracies.items():
        mean, low, high = (100 * accuracy[key] for key in ("mean", "low", "high"))
        table.add_row(LABELS[name], f"{mean:.1f}%", f"{low:.1f} to {high:.1f}%")
    console.print(table)
    *baselines, learned = accuracies.values()
    ahead = 100 * (learned["mean"] - max(b["mean"] for b in baselines))
    apart = learned["low"] > max(b["high"] for b in baselines)
    console.print(
        f"Meta-training is {ahead:.1f} points ahead of the better baseline; the intervals "
        f"{'do not overlap' if apart else 'overlap'}."
    )
    best, cg = metrics["random_weights_setting"], metrics["cg"]
    console.print(
        f"Random weights adapt best, on validation classes, with steps of {best['inner_lr']:g} "
        f"and strength {best['strength']:g}."
    )
    console.print(
        f"Meta-gradients: {cg['steps']} steps of CG, relative residual {cg['median_residual']:.3f} "
        f"(median), {cg['residual_95']:.3f} (95%); of {cg['tasks']} tasks it met negative "
        f"curvature in {cg['tasks_of_negative_curvature']}, {cg['tasks_left_out']} were left out."
    )
    if metrics["memory"]:
        console.print(_cost_table(metrics["memory"], timing["meta_gradients"]))
    parts = {"meta_training": "meta-training", "evaluation": "evaluation", "costs": "costs"}
    console.print(", ".join(f"{text} {timing[name]:.0f} s" for name, text in parts.items()) + ".")


def _cost_table(memory: list[dict[str, Any]], seconds: list[dict[str, Any]]) -> Table:
    """Return peak live memory and time of a meta-gradient against the number of inner steps."""
    table = Table("inner steps", *map(str, COST_STEPS), title="A meta-gradient")
    for method in COST_METHODS:
        sizes = [entry["bytes"] / 1e6 for entry in memory if entry["method"] == method]
        times = [entry["seconds"] for entry in seconds if entry["method"] == method]
        table.add_row(f"{method}, live memory", *(f"{value:.0f} MB" for value in sizes))
        table.add_row(f"{method}, time", *(f"{value:.2f} s" for value in times))
    return table


COMMAND = harness.Command(
    help="learn to tell characters apart after one example of each (three minutes)",
    description="Meta-learn by implicit gradients (iMAML) to tell apart five characters that were "
    "never seen, after one example of each; compare with two baselines, and the cost with that of "
    "unrolling.",
    run=_run,
    out="runs/demo",
    folder=FOLDER,
    add_arguments=_add_arguments,
    modules=("HersheyFonts", "matplotlib"),
)
