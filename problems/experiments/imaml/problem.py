"""A configuration made concrete: tasks, network, loss, method; and how well it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from implicit_solvers.problems.experiments.data.episodes import Episodes
from implicit_solvers.problems.experiments.data.sinusoid import Sinusoids
from implicit_solvers.problems.experiments.data.task_sources import (
    OnDevice,
    TaskSource,
    images_of_classes,
)
from implicit_solvers.problems.experiments.imaml.configuration import Configuration
from implicit_solvers.problems.experiments.imaml.processes import gathered, share_of
from implicit_solvers.problems.imaml import Batching
from implicit_solvers.problems.imaml.few_shot_networks import (
    classifier,
    initial_parameters,
    regressor,
)


@dataclass(frozen=True)
class Problem:
    """What a run works on."""

    method: imaml.Method
    model: imaml.Model
    criterion: imaml.Criterion
    first: dict[str, Tensor]  # the meta-parameters that training starts from
    train: TaskSource  # the tasks to learn from
    validation: TaskSource  # those of the learning curve
    test: TaskSource  # those of the final score
    score: Callable[[Tensor, Tensor], Tensor]  # a task's outputs and targets to a 0-d tensor
    score_name: str  # "accuracy" or "squared error"


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the share of rows whose largest output is the label's.

    Examples
    --------
    >>> accuracy(torch.tensor([[0.0, 1.0], [3.0, 1.0]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return (outputs.argmax(-1) == labels).float().mean()


def method_of(configuration: Configuration) -> imaml.Method:
    """Return the method with its hyperparameters.

    Examples
    --------
    >>> method_of(Configuration(method="fomaml", inner_lr=0.2))
    FirstOrderMaml(lr=0.2, steps=16, proximal=0.0)
    """
    c = configuration
    match c.method:
        case "imaml-gd":
            solver = ims.GradientDescent(c.inner_lr, max_steps=c.inner_steps, rtol=None)
            adjoint = ims.ImplicitAdjoint(ims.CG(max_steps=c.adjoint_steps, rtol=None))
            return imaml.Imaml(c.strength, solver, adjoint, c.damping)
        case "imaml-hf":
            options = {"damping": c.damping}
            return imaml.imaml_hf(c.strength, c.newton_steps, c.adjoint_steps, **options)
        case "maml":
            return imaml.Maml(c.inner_lr, c.inner_steps)
        case "fomaml":
            return imaml.FirstOrderMaml(c.inner_lr, c.inner_steps)
        case "reptile":
            return imaml.Reptile(c.inner_lr, c.inner_steps)
        case "r2d2":
            return imaml.R2D2(None if c.kind == "sinusoid" else c.ways, c.ridge, c.scale)
    raise ValueError(f"method={c.method!r} is unknown")


def load_problem(configuration: Configuration, device: str = "cpu") -> Problem:
    """Read the data, build the network, and draw its first parameters."""
    c = configuration
    method = method_of(c)
    head = c.method != "r2d2"
    criterion: imaml.Criterion
    score: Callable[[Tensor, Tensor], Tensor]
    if c.kind == "sinusoid":
        train, validation, test = (
            OnDevice(Sinusoids(c.shots, c.queries, 3 * c.seed + i), device) for i in range(3)
        )
        network = regressor(c.width, 1 if head else None)
        criterion, score = F.mse_loss, F.mse_loss
    else:
        images = images_of_classes(c.data, c.side, c.instances, c.split, c.seed, c.class_seed)
        train, validation, test = (
            OnDevice(Episodes(part, c.ways, c.shots, c.queries, 3 * c.seed + i, names), device)
            for i, (part, names) in enumerate(images)
        )
        channels = images[0][0][0].shape[1]
        network = classifier(
            c.side,
            channels,
            c.width,
            c.ways if head else None,
            normalization="group" if c.normalization == "group" else "batch",
            pooling=c.pooling,
        )
        criterion, score = F.cross_entropy, accuracy
    first = initial_parameters(network, Generator().manual_seed(c.seed))
    model, _ = imaml.functional_model(network)
    if isinstance(method, imaml.R2D2):
        first = method.extend(first)
    first = {key: value.to(device) for key, value in first.items()}
    return Problem(method, model, criterion, first, train, validation, test, score, c.score_name)


# ---- Scores ----

TASKS_AT_ONCE = 25


def task_scores(
    problem: Problem,
    theta: dict[str, Tensor],
    source: TaskSource,
    tasks: Sequence[int],
    *,
    batching: Batching = Batching.VMAP,
    tasks_at_once: int | None = None,
    report: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Adapt to each task's support and score its queries; processes share the tasks."""
    size = tasks_at_once or TASKS_AT_ONCE
    own = share_of(tasks)

    def score(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        support = (support_x, support_y)
        predict = problem.method.adapt(problem.model, problem.criterion, theta, support)
        return problem.score(predict(query_x), query_y)

    parts = []
    with torch.no_grad():
        for first in range(0, len(own), size):
            chunk = source.batch(own[first : first + size])
            parts.append(batching.over_tasks(score)(*chunk).double().cpu())
            report(len(chunk.query_y))
    scores = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    return gathered(scores)


def interval(scores: Tensor) -> dict[str, Any]:
    """Return the mean and its 95% interval, from the normal approximation."""
    mean = float(scores.mean())
    half = 1.96 * float(scores.std(correction=0)) / math.sqrt(len(scores))
    return {"mean": mean, "low": mean - half, "high": mean + half, "tasks": len(scores)}
