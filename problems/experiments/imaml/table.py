"""``implicit-solvers imaml table``: all methods in several settings, tuned alike."""

from __future__ import annotations

import argparse
import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.harness import option
from implicit_solvers.problems.experiments.imaml.configuration import (
    LABELS,
    METHODS,
    Configuration,
    add_configuration,
    configuration_from,
    given_options,
)
from implicit_solvers.problems.experiments.imaml.figures import draw_table
from implicit_solvers.problems.experiments.imaml.grid import (
    TRIAL_TASKS,
    TRIALS,
    Cell,
    markdown_table,
    run_trials,
    run_with_bar,
)
from implicit_solvers.problems.experiments.imaml.problem import load_problem, task_scores
from implicit_solvers.problems.experiments.imaml.run import Machine
from implicit_solvers.problems.experiments.imaml.training import meta_train

# What an idle core finishes in half an hour.
SMALL = {"width": 16, "side": 14, "inner_steps": 8, "steps": 160, "meta_batch": 4}
SMALL |= {"validations": 1, "validation_tasks": 40}
OWN = ("method", "ways", "shots", "queries", "seed")
TIMED_STEPS, TIMED_TASKS = 2, 25


@dataclass(frozen=True)
class Setting:
    """The size of a task.

    Examples
    --------
    >>> Setting.parse("20x5")
    Setting(ways=20, shots=5, queries=5)
    >>> Setting.parse("5x1x15").name
    '5-way 1-shot'
    """

    ways: int
    shots: int
    queries: int

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.ways}-way {self.shots}-shot"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read ``WAYSxSHOTS``, or ``WAYSxSHOTSxQUERIES``; else there are 10 queries of each class.

        With more than five ways, 5 queries of each class are enough.
        """
        numbers = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?", text)
        if numbers is None or "0" in [str(int(n)) for n in numbers.groups() if n]:
            raise argparse.ArgumentTypeError(f"{text!r} is no setting: pass 5x1, say")
        ways, shots = int(numbers[1]), int(numbers[2])
        return cls(ways, shots, int(numbers[3] or (10 if ways <= 5 else 5)))


def _setting(text: str) -> str:
    Setting.parse(text)
    return text


@dataclass(frozen=True)
class Plan:
    """Which runs the table is made of, beside the options of all of them."""

    settings: list[str] = option(
        ["5x1", "5x5", "20x1", "20x5"],
        "a third number is the queries of each class",
        read=_setting,
        metavar="WAYSxSHOTS",
    )
    methods: list[str] = option(list(METHODS), "methods", choices=METHODS, metavar="METHOD")
    seeds: int = option(2, "trainings of each")
    trial_steps: int = option(
        None,
        "meta-steps of each trial of hyperparameters, on the first setting (half as many as in "
        "the table; 0: no trials)",
        read=harness.WHOLE,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_configuration(parser, leave_out=OWN, shown=SMALL)
    add = parser.add_argument
    add("--jobs", type=harness.COUNT, default=1, metavar="N", help="processes (%(default)s)")
    add("--device", type=harness.device, default="cpu", help="of the tensors (%(default)s)")
    text = "time a few meta-steps, say how long it takes, end"
    add("--estimate", action="store_true", help=text)


def _run(arguments: argparse.Namespace) -> int:
    plan, machine = harness.configuration_of(arguments, Plan), Machine(arguments.device)
    options = ({} if arguments.size == "paper" else SMALL) | given_options(arguments, OWN)
    settings = [Setting.parse(text) for text in plan.settings]
    if arguments.estimate:
        _print_estimate(Console(), plan, settings, arguments, options)
        return 0
    common = asdict(_configuration(options, settings[0], plan.methods[0], 0, {}))
    common = {name: value for name, value in common.items() if name not in OWN}
    with harness.RunFolder.of(arguments, {**asdict(plan), **common}, keeps=True) as folder:
        tried = {}
        if plan.trial_steps != 0:

            def of_trial(method: str, trial: Mapping[str, float]) -> Configuration:
                configuration = _configuration(options, settings[0], method, 0, trial)
                return replace(configuration, steps=_trial_steps(plan, configuration))

            trials = {method: TRIALS[method] for method in plan.methods}
            tried = run_trials(folder, trials, of_trial, arguments.jobs, machine)
        chosen = {method: entry["chosen"] for method, entry in tried.items()}
        cells = {
            (setting, method, seed): Cell(
                _configuration(options, setting, method, seed, chosen.get(method, {})),
                folder.path / f"{setting.ways}x{setting.shots}-{method}-seed{seed}",
                machine,
                folder.overwrite,
            )
            for seed in range(plan.seeds)
            for setting in settings
            for method in plan.methods
        }
        metrics = run_with_bar(folder, "runs", list(cells.values()), arguments.jobs)
        results = [
            {
                **{"setting": setting.name, "method": method, "seed": seed},
                **{"score": entry["score"], "residuals": entry["residuals"]},
                **{"left_out": len(entry["tasks_left_out"]), "timing": entry["timing"]},
                "steps": len(entry["history"]["loss"]),
            }
            for (setting, method, seed), entry in zip(cells, metrics, strict=True)
        ]
        rows = summarize(results)
        text = markdown(rows)
        harness.write_whole(folder.path / "table.md", text.encode())
        draw_table(folder.path / "table.png", rows)
        folder.console.print(text, markup=False, highlight=False, soft_wrap=True)
        content = {"options": options, "trials": tried, "runs": results, "summary": rows}
        folder.finish(content)
    return 0


def _configuration(
    options: Mapping[str, Any],
    setting: Setting,
    method: str,
    seed: int,
    hyperparameters: Mapping[str, Any],
) -> Configuration:
    own = {"method": method, "seed": seed, **asdict(setting)}
    return configuration_from({**options, **hyperparameters, **own})


def _trial_steps(plan: Plan, configuration: Configuration) -> int:
    return plan.trial_steps or max(1, configuration.steps // 2)


def _print_estimate(
    console: Console,
    plan: Plan,
    settings: Sequence[Setting],
    arguments: argparse.Namespace,
    options: Mapping[str, Any],
) -> None:
    """Time meta-steps and evaluations, and print how long the table takes on idle cores."""
    total = 0.0
    for setting in settings:
        for method in plan.methods:
            configuration = _configuration(options, setting, method, 0, {})
            problem = load_problem(configuration, arguments.device)
            short = replace(
                configuration, steps=TIMED_STEPS, validations=1, validation_tasks=TIMED_TASKS
            )
            meta_train(problem, short, None)  # what is only slow at first
            start = time.process_time()
            theta, _ = meta_train(problem, short, None)
            middle = time.process_time()
            task_scores(problem, theta, problem.validation, range(TIMED_TASKS))
            task = (time.process_time() - middle) / TIMED_TASKS
            step = (middle - start - TIMED_TASKS * task) / TIMED_STEPS
            scored = configuration.evaluation_tasks
            scored += configuration.validations * configuration.validation_tasks
            seconds = plan.seeds * (configuration.steps * step + scored * task)
            if setting == settings[0] and plan.trial_steps != 0:
                steps = _trial_steps(plan, configuration)
                seconds += len(TRIALS[method]) * (steps * step + TRIAL_TASKS * task)
            total += seconds
            console.print(
                f"{setting.name}, {LABELS[method]}: {step:.3f} s a meta-step, "
                f"{1e3 * task:.0f} ms a task of the test, {seconds:.0f} s in all"
            )
    console.print(f"{total / arguments.jobs / 60:.0f} minutes of {arguments.jobs} idle cores")


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over seeds of each setting and method, with its 95% interval.

    Examples
    --------
    >>> run = {"setting": "5-way 1-shot", "method": "maml", "steps": 10, "left_out": 0}
    >>> run |= {"residuals": {"adjoint": None}, "timing": {"meta_training": 20.0}}
    >>> scores = [{"mean": m, "low": m - 0.03, "high": m + 0.03} for m in (0.8, 0.9)]
    >>> (row,) = summarize([{**run, "seed": i, "score": s} for i, s in enumerate(scores)])
    >>> round(row["mean"], 3), round(row["half"], 3), row["seconds"]
    (0.85, 0.021, 2.0)
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["setting"], result["method"]), []).append(result)
    rows = []
    for (setting, method), own in groups.items():
        scores = [entry["score"] for entry in own]
        halves = [(score["high"] - score["low"]) / 2 for score in scores]
        adjoint = [entry["residuals"]["adjoint"] for entry in own]
        residuals = [entry["median"] for entry in adjoint if entry is not None]
        seconds = [entry["timing"]["meta_training"] / entry["steps"] for entry in own]
        rows.append(
            {
                **{"setting": setting, "method": method},
                "mean": statistics.mean(score["mean"] for score in scores),
                "half": math.sqrt(sum(half**2 for half in halves)) / len(halves),
                "seeds": [score["mean"] for score in scores],
                "adjoint_residual": statistics.mean(residuals) if residuals else None,
                "left_out": sum(entry["left_out"] for entry in own),
                "seconds": statistics.mean(seconds),
            }
        )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table: methods down, settings across; the best of each setting is bold.

    Methods whose intervals overlap the best one's are bold too.

    Examples
    --------
    >>> row = {"setting": "5-way 1-shot", "method": "maml", "mean": 0.85, "half": 0.01}
    >>> print(markdown([row]))
    | method | 5-way 1-shot |
    |---|---|
    | MAML | **85.0 ± 1.0** |
    <BLANKLINE>
    """
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    floors = {
        setting: max(row["mean"] - row["half"] for row in rows if row["setting"] == setting)
        for setting in settings
    }
    cells: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: settings.index(row["setting"])):
        text = f"{100 * row['mean']:.1f} ± {100 * row['half']:.1f}"
        best = row["mean"] + row["half"] >= floors[row["setting"]]
        cells.setdefault(LABELS[row["method"]], []).append(f"**{text}**" if best else text)
    return markdown_table(settings, cells)


COMMAND = harness.Command(
    help="accuracy of all methods in several settings (an hour)",
    description="Choose each method's hyperparameters on validation classes, with the same number "
    "of trials (they set the strength, step lengths and the like, unless --trial-steps is 0); "
    "train it in each setting with several seeds; make a table. Runs that are in the folder "
    "already are kept.",
    run=_run,
    out="runs/imaml-table",
    folder={"resume": False},
    configuration=Plan,
    add_arguments=_add_arguments,
    modules=("HersheyFonts", "matplotlib"),
)
