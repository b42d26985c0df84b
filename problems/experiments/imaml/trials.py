"""The hyperparameters that are tried for each method, the same number for all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.imaml.configuration import Configuration
from implicit_solvers.problems.experiments.imaml.grid import Cell, run_with_bar
from implicit_solvers.problems.experiments.imaml.run import Machine

Trials = tuple[dict[str, float], ...]

TRIAL_TASKS = 200


def _each(**values: Sequence[float]) -> Trials:
    """Return all combinations; the first hyperparameter changes fastest.

    Examples
    --------
    >>> _each(ridge=(1.0, 10.0), scale=(3.0,))
    ({'ridge': 1.0, 'scale': 3.0}, {'ridge': 10.0, 'scale': 3.0})
    """
    rows = itertools.product(*reversed(values.values()))
    return tuple(dict(zip(values, reversed(row), strict=True)) for row in rows)


_MAML = _each(inner_lr=(0.05, 0.1, 0.2, 0.4))
TRIALS: dict[str, Trials] = {
    "imaml-gd": _each(strength=(2.0, 0.5), inner_lr=(0.1, 0.3)),
    "imaml-hf": _each(strength=(2.0, 1.0, 0.5, 0.25)),
    "maml": _MAML,
    "fomaml": _MAML,
    "reptile": (
        {"inner_lr": 0.1, "lr": 2e-3, "convolution_lr": 2e-2},
        {"inner_lr": 0.3, "lr": 2e-3, "convolution_lr": 2e-2},
        {"inner_lr": 0.1, "lr": 1e-3, "convolution_lr": 5e-3},
        {"inner_lr": 0.3, "lr": 1e-3, "convolution_lr": 5e-3},
    ),
    "r2d2": _each(ridge=(1.0, 10.0), scale=(3.0, 10.0)),
}

_RATES = (3e-3, 1e-2)
_IMAML_WAVES = _each(strength=(2.0, 8.0), lr=_RATES)
_MAML_WAVES = _each(inner_lr=(0.01, 0.03), lr=_RATES)
WAVE_TRIALS: dict[str, Trials] = {
    "imaml-gd": _IMAML_WAVES,
    "imaml-hf": _IMAML_WAVES,
    "maml": _MAML_WAVES,
    "fomaml": _MAML_WAVES,
    "reptile": _MAML_WAVES,
    "r2d2": _each(ridge=(0.1, 1.0), scale=(1.0,), lr=_RATES),
}


def run_trials(
    folder: harness.RunFolder,
    trials: Mapping[str, Sequence[Mapping[str, float]]],
    configuration_of: Callable[[str, Mapping[str, float]], Configuration],
    jobs: int,
    machine: Machine,
) -> dict[str, dict[str, Any]]:
    """Try hyperparameters on validation classes; return scores and choice for each method."""
    cells: list[Cell] = []
    for method, own in trials.items():
        for number, trial in enumerate(own):
            configuration = replace(
                configuration_of(method, trial),
                evaluation_tasks=0,
                validations=1,
                validation_tasks=TRIAL_TASKS,
            )
            out = folder.path / f"trial-{method}-{number}"
            cells.append(Cell(configuration, out, machine, folder.overwrite))
    metrics = iter(run_with_bar(folder, "trials", cells, jobs))
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
    """Return the hyperparameters with the best score; of equal ones, the first. NaN is the worst.

    Examples
    --------
    >>> best_trial([{"lr": 0.1}, {"lr": 0.2}], [0.5, 0.7], higher_is_better=True)
    {'lr': 0.2}
    """
    sign = -1 if higher_is_better else 1
    keys = [(score != score, sign * score) for score in scores]
    return dict(trials[min(range(len(keys)), key=keys.__getitem__)])
