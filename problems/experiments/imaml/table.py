"""``implicit-solvers imaml table``: all methods in several settings, tuned alike."""

from __future__ import annotations

import argparse
import functools
import math
import re
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from scipy.special import stdtrit

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
from implicit_solvers.problems.experiments.imaml.figures import draw_steps, draw_table
from implicit_solvers.problems.experiments.imaml.grid import (
    GRIDS,
    Cell,
    markdown_table,
    run_searches,
    run_with_bar,
)
from implicit_solvers.problems.experiments.imaml.problem import load_problem
from implicit_solvers.problems.experiments.imaml.run import Machine
from implicit_solvers.testing.live_memory import LiveMemory

# What an idle core finishes in about five hours.
SMALL = {"width": 16, "side": 14, "inner_steps": 8, "steps": 300, "meta_batch": 4}
SMALL |= {"validations": 1, "validation_tasks": 40}
OWN = ("method", "ways", "shots", "queries", "seed")


@dataclass(frozen=True)
class Setting:
    """The size of a task, and the steps of the inner loop if they are not searched for.

    Examples
    --------
    >>> Setting.parse("20x5")
    Setting(ways=20, shots=5, queries=5, inner_steps=None)
    >>> Setting.parse("5x1x15@64").name
    '5-way 1-shot, 64 steps'
    """

    ways: int
    shots: int
    queries: int
    inner_steps: int | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        steps = "" if self.inner_steps is None else f", {self.inner_steps} steps"
        return f"{self.ways}-way {self.shots}-shot{steps}"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read ``WAYSxSHOTS``, behind them ``xQUERIES`` (of each class) and ``@STEPS``.

        If they are not given there are 10 queries, with more than five ways 5.
        """
        numbers = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?(?:@(\d+))?", text)
        if numbers is None or "0" in [str(int(n)) for n in numbers.groups() if n]:
            raise argparse.ArgumentTypeError(f"{text!r} is no setting: pass 5x1, say")
        ways, shots, queries, steps = numbers.groups()
        usual = 10 if int(ways) <= 5 else 5
        return cls(int(ways), int(shots), int(queries or usual), int(steps) if steps else None)


def _setting(text: str) -> str:
    Setting.parse(text)
    return text


@dataclass(frozen=True)
class Plan:
    """Which runs the table is made of, beside the options of all of them."""

    settings: list[str] = option(
        ["5x1", "5x5", "20x1", "20x5"],
        "a third number is the queries of each class; 5x1@64 fixes the inner steps",
        read=_setting,
        metavar="WAYSxSHOTS",
    )
    methods: list[str] = option(list(METHODS), "methods", choices=METHODS, metavar="METHOD")
    seeds: int = option(5, "trainings of each")
    trial_steps: int = option(
        None,
        "meta-steps of each trial of hyperparameters (a third of the table's; 0: no trials)",
        read=harness.WHOLE,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_configuration(parser, leave_out=OWN, shown=SMALL)
    add = parser.add_argument
    add("--jobs", type=harness.COUNT, default=1, metavar="N", help="processes (%(default)s)")
    add("--device", type=harness.device, default="cpu", help="of the tensors (%(default)s)")


def _run(arguments: argparse.Namespace) -> int:
    plan, machine = harness.configuration_of(arguments, Plan), Machine(arguments.device)
    given = given_options(arguments, OWN)
    options = ({} if arguments.size == "paper" else SMALL) | given
    settings = {text: Setting.parse(text) for text in plan.settings}
    common = asdict(_configuration(options, settings[plan.settings[0]], plan.methods[0], 0, {}))
    common = {name: value for name, value in common.items() if name not in OWN}
    with harness.RunFolder.of(arguments, {**asdict(plan), **common}, keeps=True) as folder:
        tried, results, rows, text = {}, [], [], ""
        for prefix, setting in settings.items():
            fixed = given if setting.inner_steps is None else {**given, "inner_steps": 0}
            configure = functools.partial(_configuration, options, setting)
            found = _search(
                *(folder, f"{prefix}-trial", plan, configure, fixed, arguments.jobs, machine)
            )
            tried[setting.name] = found
            chosen = {m: found[m]["chosen"] if m in found else {} for m in plan.methods}
            memory = {m: _memory(configure(m, 0, chosen[m]), machine) for m in plan.methods}
            for seed in range(plan.seeds):
                cells = [
                    Cell(
                        configure(method, seed, chosen[method]),
                        folder.path / f"{prefix}-{method}-seed{seed}",
                        machine,
                        folder.overwrite,
                    )
                    for method in plan.methods
                ]
                metrics = run_with_bar(folder, f"{prefix}, seed {seed}", cells, arguments.jobs)
                results += [
                    {
                        **{"setting": setting.name, "method": method, "seed": seed},
                        **{"score": entry["score"], "residuals": entry["residuals"]},
                        **{"left_out": len(entry["tasks_left_out"]), "timing": entry["timing"]},
                        "kept": sum(entry["failures"]["kept"].values()),
                        **{"steps": len(entry["history"]["loss"]), "memory": memory[method]},
                        **{"chosen": chosen[method], "inner_steps": setting.inner_steps},
                    }
                    for method, entry in zip(plan.methods, metrics, strict=True)
                ]
                # the table and the figure are those of what is complete, whenever the run ends
                rows = summarize(results)
                text = markdown(rows) + "\n" + markdown_of_costs(rows)
                harness.write_whole(folder.path / "table.md", text.encode())
                draw = draw_table if setting.inner_steps is None else draw_steps
                draw(folder.path / "table.png", rows)
        folder.console.print(text, markup=False, highlight=False, soft_wrap=True)
        folder.finish({"options": options, "trials": tried, "runs": results, "summary": rows})
    return 0


def _configuration(
    options: Mapping[str, Any],
    setting: Setting,
    method: str,
    seed: int,
    hyperparameters: Mapping[str, Any],
) -> Configuration:
    size = {name: value for name, value in asdict(setting).items() if value is not None}
    return configuration_from(
        {**options, **hyperparameters, **size, "method": method, "seed": seed}
    )


def _search(
    folder: harness.RunFolder,
    name: str,
    plan: Plan,
    configure: Callable[[str, int, Mapping[str, float]], Configuration],
    fixed: Collection[str],
    jobs: int,
    machine: Machine,
) -> dict[str, dict[str, Any]]:
    """Search for the hyperparameters that are not ``fixed``, with a seed that no training has."""

    def of_trial(method: str, trial: Mapping[str, float]) -> Configuration:
        configuration = configure(method, plan.seeds, trial)
        steps = plan.trial_steps or max(1, configuration.steps // 3)
        return replace(configuration, steps=steps)

    grids = {
        method: {name: values for name, values in GRIDS[method].items() if name not in fixed}
        for method in (plan.methods if plan.trial_steps != 0 else ())
    }
    return run_searches(folder, grids, of_trial, jobs, machine, name)


def _memory(configuration: Configuration, machine: Machine) -> int:
    """Return the bytes of live tensors, at most, of a meta-step without Adam."""
    problem = load_problem(configuration, machine.device)
    tasks = problem.train.batch(range(configuration.meta_batch))
    with LiveMemory() as memory:
        problem.method.meta_gradient(
            problem.model, problem.criterion, problem.first, tasks[:2], tasks[2:]
        )
    return memory.peak


def half_width(values: Sequence[float]) -> float | None:
    """Return half of the 95% interval of the mean, by Student's t; None of one value.

    Examples
    --------
    >>> round(half_width([0.8, 0.9, 1.0]), 3), half_width([0.8])
    (0.248, None)
    """
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(stdtrit(len(values) - 1, 0.975)) * error


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over seeds of each setting and method, with its 95% interval.

    A seed has weights, tasks to learn from, and tasks of the test of its own: what they differ by
    is in the spread of the seeds' means, and in the interval.

    Examples
    --------
    >>> run = {"setting": "5-way 1-shot", "method": "maml", "steps": 10, "left_out": 0, "kept": 0}
    >>> run |= {"residuals": {"adjoint": None}, "timing": {"processor": 20.0}}
    >>> run |= {"chosen": {"inner_lr": 0.4}, "memory": 10**6, "inner_steps": None}
    >>> (row,) = summarize(
    ...     [{**run, "seed": i, "score": {"mean": m}} for i, m in [(0, 0.8), (1, 0.9)]]
    ... )
    >>> round(row["mean"], 3), round(row["half"], 3), row["seconds"]
    (0.85, 0.635, 2.0)
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["setting"], result["method"]), []).append(result)
    rows = []
    for (setting, method), own in groups.items():
        means = [entry["score"]["mean"] for entry in own]
        adjoint = [entry["residuals"]["adjoint"] for entry in own]
        residuals = [entry["median"] for entry in adjoint if entry is not None]
        seconds = [entry["timing"]["processor"] / entry["steps"] for entry in own]
        rows.append(
            {
                **{"setting": setting, "method": method, "seeds": means},
                **{"mean": statistics.mean(means), "half": half_width(means)},
                **{name: own[0][name] for name in ("chosen", "memory", "inner_steps")},
                "adjoint_residual": statistics.mean(residuals) if residuals else None,
                **{name: sum(entry[name] for entry in own) for name in ("left_out", "kept")},
                "seconds": statistics.mean(seconds),
            }
        )
    return rows


def best_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the methods of a setting that cannot be told from the best one; none of one seed.

    The methods of a seed have the same tasks. A method is left out if the 95% interval of its
    difference from the best, seed by seed, does not reach zero.

    Examples
    --------
    >>> seeds = {"maml": [0.8, 0.9, 0.7], "r2d2": [0.6, 0.72, 0.5], "reptile": [0.85, 0.7, 0.75]}
    >>> best_of([{"method": m, "mean": sum(s) / 3, "seeds": s} for m, s in seeds.items()])
    ['maml', 'reptile']
    """
    best = max(rows, key=lambda row: float(row["mean"]))
    found = []
    for row in rows:
        behind = [a - b for a, b in zip(best["seeds"], row["seeds"], strict=True)]
        half = half_width(behind)
        if half is not None and statistics.mean(behind) <= half:
            found.append(str(row["method"]))
    return found


def _by_setting(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    names = dict.fromkeys(row["setting"] for row in rows)
    return {name: [row for row in rows if row["setting"] == name] for name in names}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the accuracies: methods down, settings across with their seeds; `best_of` is bold.

    Examples
    --------
    >>> row = {"setting": "5-way 1-shot", "method": "maml", "mean": 0.85, "half": 0.01}
    >>> print(markdown([{**row, "seeds": [0.85, 0.85]}]))
    | method | 5-way 1-shot (2 seeds) |
    |---|---|
    | MAML | **85.0 ± 1.0** |
    <BLANKLINE>
    """
    heads: list[str] = []
    cells: dict[str, list[str]] = {}
    for name, own in _by_setting(rows).items():
        count, best = len(own[0]["seeds"]), best_of(own)
        heads.append(f"{name} ({count} seeds)" if count > 1 else f"{name} (1 seed)")
        for row in own:
            half = "" if row["half"] is None else f" ± {100 * row['half']:.1f}"
            mark = "**" if row["method"] in best else ""
            text = f"{mark}{100 * row['mean']:.1f}{half}{mark}"
            cells.setdefault(LABELS[row["method"]], []).append(text)
    return markdown_table(heads, cells)


def markdown_of_costs(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was chosen and what it costs: methods down, settings across.

    Examples
    --------
    >>> row = {"setting": "5-way 1-shot", "method": "maml", "chosen": {"inner_lr": 0.4}}
    >>> print(markdown_of_costs([{**row, "seconds": 0.1, "memory": 5e6, "left_out": 0, "kept": 0}]))
    | method | 5-way 1-shot |
    |---|---|
    | MAML | inner_lr 0.4; 0.100 s, 5 MB a meta-step; 0 tasks left out, 0 of failed solves kept |
    <BLANKLINE>
    """
    cells: dict[str, list[str]] = {}
    for own in _by_setting(rows).values():
        for row in own:
            chosen = ", ".join(f"{name} {value:g}" for name, value in row["chosen"].items())
            text = f"{chosen}; {row['seconds']:.3f} s, {row['memory'] / 1e6:.0f} MB a meta-step; "
            text += f"{row['left_out']} tasks left out, {row['kept']} of failed solves kept"
            cells.setdefault(LABELS[row["method"]], []).append(text)
    return markdown_table(list(_by_setting(rows)), cells)


COMMAND = harness.Command(
    help="accuracy of all methods in several settings (hours)",
    description="Choose each method's hyperparameters in each setting on validation classes, by a "
    "search (those that are given are not searched for); train it with several seeds; make a "
    "table, which grows with each seed. Runs that are in the folder already are kept.",
    run=_run,
    out="runs/imaml-table",
    folder={"resume": False},
    configuration=Plan,
    add_arguments=_add_arguments,
    modules=("HersheyFonts", "matplotlib"),
)
