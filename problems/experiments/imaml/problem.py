"""A configuration made concrete: the tasks, the network, the loss and the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from implicit_solvers.problems.imaml.few_shot_networks import (
    classifier,
    initial_parameters,
    regressor,
)


@dataclass(frozen=True)
class Problem:
    """What a run works on.

    Parameters
    ----------
    method
        How meta-parameters are learned and adapted.
    model, criterion
        The network as a function of its parameters, and the loss of a task.
    first
        The meta-parameters that training starts from.
    train, validation, test
        The tasks to learn from, those of the learning curve, and those of the final score.
    score
        Maps a task's outputs and targets to what is reported: a 0-d tensor.
    score_name
        ``"accuracy"`` or ``"squared error"``.
    """

    method: imaml.Method
    model: imaml.Model
    criterion: imaml.Criterion
    first: dict[str, Tensor]
    train: TaskSource
    validation: TaskSource
    test: TaskSource
    score: Callable[[Tensor, Tensor], Tensor]
    score_name: str


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the share of rows whose largest output is the label's.

    Examples
    --------
    >>> accuracy(torch.tensor([[0.0, 1.0], [3.0, 1.0]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return (outputs.argmax(-1) == labels).float().mean()


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error.

    Examples
    --------
    >>> squared_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(2.)
    """
    return F.mse_loss(outputs, targets)


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
    """Read the data, build the network, and draw its first parameters.

    Examples
    --------
    >>> problem = load_problem(Configuration(data="sinusoid", ways=1, width=8))
    >>> problem.score_name, len(problem.first)
    ('squared error', 6)
    """
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
        criterion, score = F.mse_loss, squared_error
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
