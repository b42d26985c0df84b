"""``implicit-solvers imaml table``: all methods in several settings, tuned alike."""

from __future__ import annotations

import argparse
import functools
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

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
    run_all,
    run_searches,
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
    '5-way 1-shot, steps: 64'
    """

    ways: int
    shots: int
    queries: int
    inner_steps: int | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        steps = "" if self.inner_steps is None else f", steps: {self.inner_steps}"
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
    text = "of the tensors (%(default)s)"
    parser.add_argument("--device", type=harness.device, default="cpu", help=text)


def _run(arguments: argparse.Namespace) -> int:
    plan, machine = harness.configuration_of(arguments, Plan), Machine(arguments.device)
    given, jobs = given_options(arguments, OWN), arguments.jobs
    options = ({} if arguments.size == "paper" else SMALL) | given
    settings = {text: Setting.parse(text) for text in plan.settings}
    common = asdict(_configuration(options, settings[plan.settings[0]], 0, plan.methods[0], {}))
    trial = options | {"steps": plan.trial_steps or max(1, common["steps"] // 3)}
    common = {name: value for name, value in common.items() if name not in OWN}
    tried, complete = {}, {}
    with harness.RunFolder.of(arguments, {**asdict(plan), **common}, keeps=True) as folder:
        for prefix, setting in settings.items():
            fixed = given if setting.inner_steps is None else {**given, "inner_steps": 0}
            grids = {m: {n: g for n, g in GRIDS[m].items() if n not in fixed} for m in plan.methods}
            if plan.trial_steps == 0:
                grids = {method: {} for method in plan.methods}
            # no training has the trials' seed
            of_trial = functools.partial(_configuration, trial, setting, plan.seeds)
            found = run_searches(folder, f"{prefix}-trial", grids, of_trial, jobs, machine)
            chosen = {method: entry["chosen"] for method, entry in found.items()}
            first = {m: _configuration(options, setting, 0, m, chosen[m]) for m in plan.methods}
            memory = {method: _memory(c, machine) for method, c in first.items()}
            runs: dict[str, list[Any]] = {method: [] for method in plan.methods}
            tried[setting.name] = found
            for seed in range(plan.seeds):
                cells = []
                for method, c in first.items():
                    out = folder.path / f"{prefix}-{method}-seed{seed}"
                    cells.append(Cell(replace(c, seed=seed), out, machine, folder.overwrite))
                metrics = run_all(folder, f"{prefix}, seed {seed}", cells, jobs)
                for method, entry in zip(plan.methods, metrics, strict=True):
                    runs[method].append(entry)
                    row = {"setting": setting.name, "method": method, "chosen": chosen[method]}
                    row |= {"inner_steps": setting.inner_steps, "memory": memory[method]}
                    complete[setting, method] = row | summary(runs[method])
                # if the run ends now, the table and the figure are those of what is complete
                rows = list(complete.values())
                harness.write_whole(folder.path / "table.md", markdown(rows).encode())
                draw = draw_table if setting.inner_steps is None else draw_steps
                draw(folder.path / "table.png", rows)
        folder.console.print(markdown(rows), markup=False, highlight=False, soft_wrap=True)
        folder.finish({"options": options, "trials": tried, "summary": rows})
    return 0


def _configuration(
    options: Mapping[str, Any], setting: Setting, seed: int, method: str, chosen: Mapping[str, Any]
) -> Configuration:
    size = {name: value for name, value in asdict(setting).items() if value is not None}
    return configuration_from({**options, **chosen, **size, "method": method, "seed": seed})


def _memory(configuration: Configuration, machine: Machine) -> int:
    """Return the bytes of live tensors, at most, of a meta-step without Adam."""
    p = load_problem(configuration, machine.device)
    tasks = p.train.batch(range(configuration.meta_batch))
    with LiveMemory() as memory:
        p.method.meta_gradient(p.model, p.criterion, p.first, tasks[:2], tasks[2:])
    return memory.peak


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean over the runs of a method, one for each seed, with its 95% interval.

    A seed has weights, tasks to learn from, and tasks of the test of its own: what all of them do
    is in the spread of the seeds' means, and in the interval.
    """
    means = [run["score"]["mean"] for run in runs]
    adjoint = [run["residuals"]["adjoint"] for run in runs]
    residuals = [entry["median"] for entry in adjoint if entry is not None]
    seconds = [run["timing"]["processor"] / len(run["history"]["loss"]) for run in runs]
    return {
        **{"seeds": means, "mean": statistics.mean(means), "half": harness.half_width(means)},
        "adjoint_residual": statistics.mean(residuals) if residuals else None,
        "left_out": sum(len(run["tasks_left_out"]) for run in runs),
        "kept": sum(sum(run["failures"]["kept"].values()) for run in runs),
        "seconds": statistics.mean(seconds),
    }


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
        half = harness.half_width(behind)
        if half is not None and statistics.mean(behind) <= half:
            found.append(str(row["method"]))
    return found


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return two tables: accuracies, of which `best_of` is bold; what was chosen, and its cost.

    Examples
    --------
    >>> row = {"setting": "5-way 1-shot", "method": "maml", "mean": 0.85, "half": 0.01}
    >>> row |= {"seeds": [0.85, 0.85], "chosen": {"inner_lr": 0.4}, "seconds": 0.1, "memory": 5e6}
    >>> print(markdown([row | {"left_out": 0, "kept": 0}]))
    | method | 5-way 1-shot (seeds: 2) |
    |---|---|
    | MAML | **85.0 ± 1.0** |
    <BLANKLINE>
    | method | 5-way 1-shot (seeds: 2) |
    |---|---|
    | MAML | inner_lr 0.4; 0.100 s, 5 MB a meta-step; 0 tasks left out, 0 of failed solves kept |
    <BLANKLINE>
    """
    labels = list(dict.fromkeys(LABELS[row["method"]] for row in rows))
    heads: list[str] = []
    accuracies: dict[str, list[str]] = {label: [] for label in labels}
    costs: dict[str, list[str]] = {label: [] for label in labels}
    for name in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == name]
        heads.append(f"{name} (seeds: {len(own[0]['seeds'])})")
        cells, best = {LABELS[row["method"]]: row for row in own}, best_of(own)
        for label in labels:
            row = cells.get(label)
            accuracies[label].append("–" if row is None else _accuracy(row, best))
            costs[label].append("–" if row is None else _cost(row))
    return markdown_table(heads, accuracies) + "\n" + markdown_table(heads, costs)


def _accuracy(row: Mapping[str, Any], best: Sequence[str]) -> str:
    mark = "**" if row["method"] in best else ""
    half = "" if row["half"] is None else f" ± {100 * row['half']:.1f}"
    return f"{mark}{100 * row['mean']:.1f}{half}{mark}"


def _cost(row: Mapping[str, Any]) -> str:
    chosen = ", ".join(f"{name} {value:g}" for name, value in row["chosen"].items())
    return (
        f"{chosen}; {row['seconds']:.3f} s, {row['memory'] / 1e6:.0f} MB a meta-step; "
        f"{row['left_out']} tasks left out, {row['kept']} of failed solves kept"
    )


COMMAND = harness.Command(
    help="accuracy of all methods in several settings (hours)",
    description="Choose each method's hyperparameters in each setting on validation classes, by a "
    "search (those that are given are not searched for); train it with several seeds; make a "
    "table, which grows with each seed. Runs that are in the folder already are kept.",
    run=_run,
    out="runs/imaml-table",
    folder={"resume": False, "jobs": True},
    configuration=Plan,
    add_arguments=_add_arguments,
    modules=("HersheyFonts", "matplotlib"),
)
