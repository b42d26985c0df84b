"""``implicit-solvers demo``: learn to tell characters apart after one example of each."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Generator, Tensor, nn

from implicit_solvers.problems.experiments.data.glyphs import Tasks
from implicit_solvers.problems.experiments.harness.options import positive, positive_integer, whole
from implicit_solvers.problems.experiments.harness.progress_bar import progress_bar
from implicit_solvers.problems.experiments.harness.run_folder import (
    CheckpointError,
    load_checkpoint,
    write_json,
)
from implicit_solvers.problems.experiments.imaml.demo_figure import draw_figure
from implicit_solvers.problems.experiments.imaml.few_shot import (
    Configuration,
    Parameters,
    accuracy_of,
    adapted_predictions,
    classifier,
    cross_entropy,
    initial_parameters,
    load_episodes,
    nearest_neighbour_predictions,
)
from implicit_solvers.problems.experiments.imaml.inner_steps import Cost, measure_costs
from implicit_solvers.problems.experiments.imaml.meta_training import History, meta_train

__all__ = ["add_arguments", "run"]

LABELS = {
    "nearest_neighbour": "1-nearest neighbour on pixels",
    "random_weights": "random weights, adapted",
    "meta_trained": "meta-trained (iMAML), adapted",
}
# What random weights may adapt with instead, if that is better on validation classes.
RANDOM_SETTINGS = ({"inner_lr": 0.1, "strength": 0.1}, {"inner_lr": 0.5, "strength": 0.1})
COST_STEPS = (4, 16, 64, 256)
HELP = {
    "seed": "of the classes, drawings, tasks and weights",
    "meta_steps": "meta-steps of Adam",
    "tasks_per_step": "tasks in a meta-step",
    "inner_steps": "gradient steps of a task",
    "inner_lr": "their length",
    "strength": "of the regularization towards the meta-parameters, lambda",
    "cg_steps": "steps of CG in a meta-gradient",
    "convolution_lr": "highest meta-learning rate of convolutions",
    "lr": "and of everything else",
    "width": "channels of the network",
    "instances": "drawings of each character",
    "queries": "of each character in a task",
    "validation_tasks": "tasks of the learning curve",
    "evaluation_tasks": "tasks of the final accuracies",
    "threads": "of torch: two are faster on idle cores, much slower on busy ones",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of the results (%(default)s)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in that folder"
    )
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out memory and time against inner steps"
    )
    parser.add_argument(
        "--checkpoint-every",
        type=positive_integer,
        default=10,
        metavar="N",
        help="meta-steps from one checkpoint to the next (%(default)s)",
    )
    for field in fields(Configuration):
        names = ["--" + field.name.replace("_", "-")]
        if field.name == "meta_steps":
            names.append("--steps")
        integer = isinstance(field.default, int)
        parser.add_argument(
            *names,
            dest=field.name,
            type=whole if field.name == "seed" else positive_integer if integer else positive,
            default=field.default,
            metavar="N" if integer else "X",
            help=f"{HELP[field.name]} (%(default)s)",
        )


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    start = time.perf_counter()
    torch.set_num_threads(arguments.threads)
    configuration = Configuration(
        **{field.name: getattr(arguments, field.name) for field in fields(Configuration)}
    )
    out: Path = arguments.out
    console = Console()
    try:
        out.mkdir(parents=True, exist_ok=True)
        path = out / "checkpoint.pt"
        checkpoint = load_checkpoint(path, asdict(configuration)) if arguments.resume else None
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(out / "config.json", asdict(configuration))
    try:
        metrics = _demonstrate(arguments, configuration, checkpoint, console)
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on", file=sys.stderr)
        return 130
    # what was trained before an interruption took its time too
    before = 0.0 if checkpoint is None else checkpoint["history"]["seconds"]
    metrics["timing"]["total"] = before + time.perf_counter() - start
    write_json(out / "metrics.json", metrics)
    _print_results(console, metrics, configuration, out)
    return 0


def _demonstrate(
    arguments: argparse.Namespace,
    configuration: Configuration,
    checkpoint: dict[str, Any] | None,
    console: Console,
) -> dict[str, Any]:
    """Learn, evaluate, measure and draw; return the metrics."""
    laps = [time.perf_counter()]

    def lap() -> float:
        laps.append(time.perf_counter())
        return laps[-1] - laps[-2]

    with console.status("drawing the characters"):
        train, validation, test = load_episodes(configuration)
    network = classifier(configuration.width)
    first = initial_parameters(network, Generator().manual_seed(configuration.seed))
    with progress_bar(console) as progress:
        timing: dict[str, Any] = {"data": lap()}
        training = progress.add_task("meta-training", total=configuration.meta_steps, note="")

        def report(history: History) -> None:
            note = f"{100 * history.validation[-1][1]:.1f}% on validation classes"
            progress.update(training, completed=history.steps, note=note)

        theta, history = meta_train(
            network,
            first,
            train,
            validation,
            configuration,
            arguments.out / "checkpoint.pt",
            checkpoint=checkpoint,
            checkpoint_every=arguments.checkpoint_every,
            report=report,
        )
        lap()
        timing["meta_training"] = history.seconds
        tasks = test.batch(range(configuration.evaluation_tasks))
        choices = validation.batch(range(configuration.validation_tasks))
        accuracies, predictions, setting = _evaluate(
            network, first, theta, tasks, choices, configuration, progress
        )
        timing["evaluation"] = lap()
        costs: list[Cost] = []
        if not arguments.no_memory:
            costs = _measure(network, theta, tasks, configuration, progress)
        timing["costs"] = lap()

    with console.status("drawing the figure"):
        draw_figure(
            arguments.out / "figure.png",
            example=_example(tasks, predictions),
            history=history,
            accuracies={LABELS[name]: accuracy for name, accuracy in accuracies.items()},
            costs=costs,
        )
    timing["figure"] = lap()
    names = [{"method": cost.method, "inner_steps": cost.inner_steps} for cost in costs]
    pairs = list(zip(names, costs, strict=True))
    timing["meta_gradients"] = [{**name, "seconds": cost.seconds} for name, cost in pairs]
    return {
        "accuracy": accuracies,
        "random_weights_setting": setting,
        "cg": _cg_summary(history, configuration),
        "history": {
            "loss": history.loss,
            "residual": history.residual,
            "validation": history.validation,
        },
        "memory": [{**name, "bytes": cost.memory} for name, cost in pairs],
        "timing": timing,
    }


def _evaluate(
    network: nn.Module,
    first: Parameters,
    theta: Parameters,
    tasks: Tasks,
    choices: Tasks,
    configuration: Configuration,
    progress: Progress,
) -> tuple[dict[str, dict[str, float]], Tensor, dict[str, float]]:
    """Return each method's accuracy, the predictions, and the setting for random weights.

    That setting is the best on the tasks ``choices`` of validation classes.
    """
    bar = progress.add_task("evaluation", total=3 + len(RANDOM_SETTINGS), note="")

    def predict(parameters: Parameters, tasks: Tasks, setting: Mapping[str, float]) -> Tensor:
        adaptation = configuration.adaptation(**setting)
        predictions = adapted_predictions(network, parameters, tasks, adaptation)
        progress.advance(bar)
        return predictions

    own = {"inner_lr": configuration.inner_lr, "strength": configuration.strength}
    settings = (own, *RANDOM_SETTINGS)
    scores = [accuracy_of(predict(first, choices, s), choices)["mean"] for s in settings]
    setting = settings[scores.index(max(scores))]
    predictions = predict(theta, tasks, own)
    accuracies = {
        "nearest_neighbour": accuracy_of(nearest_neighbour_predictions(tasks), tasks),
        "random_weights": accuracy_of(predict(first, tasks, setting), tasks),
        "meta_trained": accuracy_of(predictions, tasks),
    }
    return accuracies, predictions, setting


def _measure(
    network: nn.Module,
    theta: Parameters,
    tasks: Tasks,
    configuration: Configuration,
    progress: Progress,
) -> list[Cost]:
    """Measure the costs of meta-gradients on the first task."""
    costs = measure_costs(
        cross_entropy(network),
        theta,
        (tasks.support_x[0], tasks.support_y[0]),
        (tasks.query_x[0], tasks.query_y[0]),
        inner_steps=COST_STEPS,
        lr=configuration.inner_lr,
        strength=configuration.strength,
        cg_steps=configuration.cg_steps,
    )
    bar = progress.add_task("memory and time", total=2 * len(COST_STEPS), note="")
    measured = []
    for cost in costs:
        measured.append(cost)
        progress.advance(bar)
    return measured


def _example(tasks: Tasks, predictions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first task as `draw_figure` takes it."""
    support, queries = tasks.support_x[0], tasks.query_x[0]
    right = predictions[0] == tasks.query_y[0]
    ways = len(support)
    return support, queries.unflatten(0, (ways, -1)), right.unflatten(0, (ways, -1))


def _cg_summary(history: History, configuration: Configuration) -> dict[str, float]:
    residual = torch.tensor(history.residual, dtype=torch.float64).flatten()
    return {
        "steps": configuration.cg_steps,
        "median_residual": float(residual.quantile(0.5)),
        "residual_95": float(residual.quantile(0.95)),
        "tasks": len(residual),
        "tasks_left_out": history.left_out,
    }


def _print_results(
    console: Console, metrics: Mapping[str, Any], configuration: Configuration, out: Path
) -> None:
    accuracies = metrics["accuracy"]
    table = Table("", "accuracy", "95% interval", title=_title(configuration), title_justify="left")
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
        f"(median), {cg['residual_95']:.3f} (95%); {cg['tasks_left_out']} of {cg['tasks']} tasks "
        "left out for negative curvature."
    )
    if metrics["memory"]:
        console.print(_cost_table(metrics))
    timing = metrics["timing"]
    console.print(
        f"{timing['total']:.0f} s, of which meta-training {timing['meta_training']:.0f} s, "
        f"evaluation {timing['evaluation']:.0f} s, memory and time {timing['costs']:.0f} s. "
        f"Results are in {out}, the figure in {out / 'figure.png'}."
    )


def _title(configuration: Configuration) -> str:
    return f"Five unseen characters, one example each: {configuration.evaluation_tasks} tasks"


def _cost_table(metrics: Mapping[str, Any]) -> Table:
    """Return peak live memory and time of a meta-gradient against the number of inner steps."""
    steps = sorted({entry["inner_steps"] for entry in metrics["memory"]})
    table = Table("inner steps", *map(str, steps), title="A meta-gradient", title_justify="left")
    for method in ("iMAML", "MAML"):
        memory = [e["bytes"] / 1e6 for e in metrics["memory"] if e["method"] == method]
        timed = metrics["timing"]["meta_gradients"]
        seconds = [e["seconds"] for e in timed if e["method"] == method]
        table.add_row(f"{method}, live memory", *(f"{value:.0f} MB" for value in memory))
        table.add_row(f"{method}, time", *(f"{value:.2f} s" for value in seconds))
    return table
