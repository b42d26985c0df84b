"""The hyperparameters that are tried for each method, the same number for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from implicit_solvers.problems.experiments.imaml.configuration import Configuration
from implicit_solvers.problems.experiments.imaml.grid import Cell, run_with_bar
from implicit_solvers.problems.experiments.imaml.run import Machine

__all__ = ["TRIALS", "TRIAL_TASKS", "WAVE_TRIALS", "best_trial", "run_trials"]

TRIAL_TASKS = 200

TRIALS: dict[str, tuple[dict[str, float], ...]] = {
    "imaml-gd": (
        {"strength": 2.0, "inner_lr": 0.1},
        {"strength": 0.5, "inner_lr": 0.1},
        {"strength": 2.0, "inner_lr": 0.3},
        {"strength": 0.5, "inner_lr": 0.3},
    ),
    "imaml-hf": (
        {"strength": 2.0},
        {"strength": 1.0},
        {"strength": 0.5},
        {"strength": 0.25},
    ),
    "maml": (
        {"inner_lr": 0.05},
        {"inner_lr": 0.1},
        {"inner_lr": 0.2},
        {"inner_lr": 0.4},
    ),
    "fomaml": (
        {"inner_lr": 0.05},
        {"inner_lr": 0.1},
        {"inner_lr": 0.2},
        {"inner_lr": 0.4},
    ),
    "reptile": (
        {"inner_lr": 0.1, "lr": 2e-3, "convolution_lr": 2e-2},
        {"inner_lr": 0.3, "lr": 2e-3, "convolution_lr": 2e-2},
        {"inner_lr": 0.1, "lr": 1e-3, "convolution_lr": 5e-3},
        {"inner_lr": 0.3, "lr": 1e-3, "convolution_lr": 5e-3},
    ),
    "r2d2": (
        {"ridge": 1.0, "scale": 3.0},
        {"ridge": 10.0, "scale": 3.0},
        {"ridge": 1.0, "scale": 10.0},
        {"ridge": 10.0, "scale": 10.0},
    ),
}

WAVE_TRIALS: dict[str, tuple[dict[str, float], ...]] = {
    "imaml-gd": (
        {"strength": 2.0, "lr": 3e-3},
        {"strength": 8.0, "lr": 3e-3},
        {"strength": 2.0, "lr": 1e-2},
        {"strength": 8.0, "lr": 1e-2},
    ),
    "imaml-hf": (
        {"strength": 2.0, "lr": 3e-3},
        {"strength": 8.0, "lr": 3e-3},
        {"strength": 2.0, "lr": 1e-2},
        {"strength": 8.0, "lr": 1e-2},
    ),
    "maml": (
        {"inner_lr": 0.01, "lr": 3e-3},
        {"inner_lr": 0.03, "lr": 3e-3},
        {"inner_lr": 0.01, "lr": 1e-2},
        {"inner_lr": 0.03, "lr": 1e-2},
    ),
    "fomaml": (
        {"inner_lr": 0.01, "lr": 3e-3},
        {"inner_lr": 0.03, "lr": 3e-3},
        {"inner_lr": 0.01, "lr": 1e-2},
        {"inner_lr": 0.03, "lr": 1e-2},
    ),
    "reptile": (
        {"inner_lr": 0.01, "lr": 3e-3},
        {"inner_lr": 0.03, "lr": 3e-3},
        {"inner_lr": 0.01, "lr": 1e-2},
        {"inner_lr": 0.03, "lr": 1e-2},
    ),
    "r2d2": (
        {"ridge": 0.1, "scale": 1.0, "lr": 3e-3},
        {"ridge": 1.0, "scale": 1.0, "lr": 3e-3},
        {"ridge": 0.1, "scale": 1.0, "lr": 1e-2},
        {"ridge": 1.0, "scale": 1.0, "lr": 1e-2},
    ),
}


def run_trials(
    console: Console,
    trials: Mapping[str, Sequence[Mapping[str, float]]],
    configuration_of: Callable[[str, Mapping[str, float]], Configuration],
    out: Path,
    jobs: int,
    machine: Machine,
) -> dict[str, dict[str, Any]]:
    """Try hyperparameters on validation classes; return scores and choice for each method.

    Parameters
    ----------
    console
        Of the progress bar.
    trials
        The hyperparameters to try, by the method.
    configuration_of
        Maps a method and its hyperparameters to a configuration, which is not evaluated on the
        test.
    out
        Receives a folder for each trial.
    jobs
        Processes.
    machine
        How the trials are computed.

    Returns
    -------
    dict
        For each method, ``"tried"``, the hyperparameters with their ``"validation"`` scores, and
        ``"chosen"``, those of the best.
    """
    cells: list[Cell] = []
    for method, own in trials.items():
        for number, trial in enumerate(own):
            configuration = replace(
                configuration_of(method, trial),
                evaluation_tasks=0,
                validations=1,
                validation_tasks=TRIAL_TASKS,
            )
            cells.append(Cell(configuration, out / f"trial-{method}-{number}", machine))
    metrics = iter(run_with_bar(console, "trials", cells, jobs))
    higher_is_better = all(cell.configuration.score_name == "accuracy" for cell in cells)
    tried = {}
    for method, own in trials.items():
        scores = [next(metrics)["validation"] for _ in own]
        tried[method] = {
            "tried": [{**t, "validation": s} for t, s in zip(own, scores, strict=True)],
            "chosen": best_trial(own, scores, higher_is_better=higher_is_better),
        }
    return tried


def best_trial(
    trials: Sequence[Mapping[str, float]], scores: Sequence[float], *, higher_is_better: bool
) -> dict[str, Any]:
    """Return the hyperparameters with the best score; of equal ones, the first.

    Parameters
    ----------
    trials, scores
        The hyperparameters and the validation score of each.
    higher_is_better
        Whether the score is an accuracy, else an error. NaN is the worst.

    Examples
    --------
    >>> best_trial([{"lr": 0.1}, {"lr": 0.2}], [0.5, 0.7], higher_is_better=True)
    {'lr': 0.2}
    """
    sign = -1 if higher_is_better else 1
    keys = [(score != score, sign * score) for score in scores]
    return dict(trials[min(range(len(keys)), key=keys.__getitem__)])
