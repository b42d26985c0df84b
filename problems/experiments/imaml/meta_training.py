"""Meta-training with checkpoints: an interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from implicit_solvers.problems.experiments.data.glyphs import Episodes
from implicit_solvers.problems.experiments.harness.run_folder import save_checkpoint
from implicit_solvers.problems.experiments.imaml.few_shot import (
    Configuration,
    Parameters,
    accuracy_of,
    adapted_predictions,
    cross_entropy,
)

VALIDATIONS = 8


@dataclass
class History:
    """What happened so far.

    Attributes
    ----------
    loss
        The meta-objective before each meta-step.
    residual
        The relative residual of CG for each task of each meta-step.
    left_out
        How many tasks were left out of the meta-gradients, because CG met negative curvature or
        the inner loop overflowed.
    validation
        Pairs of a number of meta-steps and the accuracy on validation classes after them.
    seconds
        The time spent on meta-steps and validations.
    """

    loss: list[float] = field(default_factory=list)
    residual: list[list[float]] = field(default_factory=list)
    left_out: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """The meta-steps made."""
        return len(self.loss)


def meta_train(
    network: nn.Module,
    theta: Parameters,
    episodes: Episodes,
    validation: Episodes,
    configuration: Configuration,
    path: Path,
    *,
    checkpoint: dict[str, Any] | None = None,
    checkpoint_every: int = 10,
    report: Callable[[History], None] = lambda history: None,
) -> tuple[Parameters, History]:
    """Minimize the meta-objective by Adam, with rates that fall to zero along a cosine.

    Parameters
    ----------
    network, theta
        The network and its first parameters.
    episodes, validation
        The tasks to learn from, and those of the learning curve.
    configuration
        The numbers of meta-steps and tasks, and the rates.
    path
        Where checkpoints go, one every ``checkpoint_every`` meta-steps and one at the end.
    checkpoint
        Where to go on, as `run_folder.load_checkpoint` returned it.
    report
        Is called after each meta-step.

    Returns
    -------
    tuple
        The parameters learned and the history.
    """
    loss, adaptation = cross_entropy(network), configuration.adaptation()
    theta = {name: value.clone().requires_grad_() for name, value in theta.items()}
    optimizer = _optimizer(theta, configuration)
    history = History()
    if checkpoint is not None:
        with torch.no_grad():
            for name, value in theta.items():
                value.copy_(checkpoint["theta"][name])
        optimizer.load_state_dict(checkpoint["optimizer"])
        history = History(**checkpoint["history"])
    validation_tasks = validation.batch(range(configuration.validation_tasks))
    validate_every = math.ceil(configuration.meta_steps / VALIDATIONS)
    count = configuration.tasks_per_step

    def validate() -> None:
        predictions = adapted_predictions(network, _detached(theta), validation_tasks, adaptation)
        accuracy = accuracy_of(predictions, validation_tasks)["mean"]
        history.validation.append((history.steps, accuracy))

    if not history.validation:
        validate()
    report(history)
    while history.steps < configuration.meta_steps:
        start = time.perf_counter()
        step = history.steps
        tasks = episodes.batch(range(count * step, count * (step + 1)))
        supports, queries = (tasks.support_x, tasks.support_y), (tasks.query_x, tasks.query_y)
        optimizer.zero_grad()
        with ims.monitor() as log, _masked_failures():
            objective = imaml.meta_objective(loss, theta, supports, queries, **adaptation)
            objective.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["highest_lr"] * _cosine(step / configuration.meta_steps)
        optimizer.step()

        adjoint = log.adjoints()[0]
        history.loss.append(objective.item())
        history.residual.append(adjoint.residual.tolist())
        failed = torch.stack([record.status for record in log.records]) > ims.Status.BUDGET
        history.left_out += int(failed.any(0).sum())
        last = history.steps == configuration.meta_steps
        if last or history.steps % validate_every == 0:
            validate()
        history.seconds += time.perf_counter() - start
        if last or history.steps % checkpoint_every == 0:
            content = {
                "configuration": asdict(configuration),
                "theta": _detached(theta),
                "optimizer": optimizer.state_dict(),
                "history": asdict(history),
            }
            save_checkpoint(path, content)
        report(history)
    return _detached(theta), history


def _optimizer(theta: Parameters, configuration: Configuration) -> torch.optim.Adam:
    """Return Adam with faster convolutions: their scale is large (`initial_parameters`)."""
    groups = [
        {"params": [value for value in theta.values() if value.dim() == 4]},
        {"params": [value for value in theta.values() if value.dim() != 4]},
    ]
    rates = (configuration.convolution_lr, configuration.lr)
    return torch.optim.Adam(
        [{**group, "highest_lr": rate} for group, rate in zip(groups, rates, strict=True)]
    )


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def _detached(theta: Parameters) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in theta.items()}


@contextlib.contextmanager
def _masked_failures() -> Iterator[None]:
    """Silence the warning about tasks that are left out: the history counts them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ims.ConvergenceWarning)
        yield
