"""The demo's network, its tasks, and how accurate it is on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import vmap

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from implicit_solvers.problems.experiments.data.glyphs import (
    IMAGE_SIDE,
    Episodes,
    Tasks,
    load_glyphs,
    render_instances,
    split_classes,
)

__all__ = [
    "Configuration",
    "Parameters",
    "accuracy_of",
    "adapted_predictions",
    "classifier",
    "cross_entropy",
    "initial_parameters",
    "load_episodes",
    "nearest_neighbour_predictions",
]

Parameters = dict[str, Tensor]

WAYS, SHOTS = 5, 1
TASKS_AT_ONCE = 25


@dataclass(frozen=True)
class Configuration:
    """What the demo's results depend on.

    One thread, because two save a third of the time on idle cores, and triple it where another
    process wants one of them. Another number changes the results' last bits.
    """

    seed: int = 0
    meta_steps: int = 160
    tasks_per_step: int = 8
    inner_steps: int = 16
    inner_lr: float = 0.1
    strength: float = 2.0
    cg_steps: int = 5
    convolution_lr: float = 2e-2
    lr: float = 2e-3
    width: int = 32
    instances: int = 20
    queries: int = 10
    validation_tasks: int = 40
    evaluation_tasks: int = 600
    threads: int = 1

    def adaptation(self, **changes: float) -> dict[str, Any]:
        """Return the keywords of `imaml.adapt`, with another ``inner_lr`` or ``strength``.

        A task in which the inner loop or CG fails is left out of the meta-gradient.
        """
        inner_lr = changes.get("inner_lr", self.inner_lr)
        return {
            "strength": changes.get("strength", self.strength),
            "solver": ims.GradientDescent(inner_lr, max_steps=self.inner_steps, rtol=None),
            "adjoint": ims.ImplicitAdjoint(ims.CG(max_steps=self.cg_steps, rtol=None)),
            "on_failure": "mask",
        }


def load_episodes(configuration: Configuration) -> tuple[Episodes, Episodes, Episodes]:
    """Return the tasks of the meta-train, meta-validation and meta-test classes."""
    glyphs = load_glyphs()
    seed = configuration.seed
    parts = []
    for i, classes in enumerate(split_classes(glyphs.class_count, seed)):
        generator = Generator().manual_seed(3 * seed + i)
        images = render_instances(glyphs, classes, configuration.instances, generator)
        parts.append(Episodes(images, WAYS, SHOTS, configuration.queries, 3 * seed + i))
    train, validation, test = parts
    return train, validation, test


def classifier(width: int) -> nn.Module:
    """Return the paper's network for Omniglot, without values: `initial_parameters` makes them.

    Four convolutions of stride 2 take 28 pixels to 2. Batch normalization uses the statistics of
    the images at hand, those of all queries together, as the paper's does.
    """
    layers: list[nn.Module] = []
    channels, side = 1, IMAGE_SIDE
    with torch.device("meta"):
        for _ in range(4):
            layers += [
                nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width, track_running_stats=False),
                nn.ReLU(),
            ]
            channels, side = width, (side + 1) // 2
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side**2, WAYS))


def initial_parameters(network: nn.Module, generator: Generator) -> Parameters:
    """Return random convolutions, neutral normalizations, and a last layer of zeros.

    The convolutions have three times He's standard deviation. Normalized, the loss does not
    depend on their scale, and its curvature falls with the scale's square: negative curvature
    stays below the strength of the regularization, and CG is applicable.
    """
    parameters: Parameters = {}
    for name, skeleton in network.named_parameters():
        value = torch.zeros(skeleton.shape)
        if value.dim() == 4:
            fan_in = math.prod(value.shape[1:])
            value.normal_(0, 3 * math.sqrt(2 / fan_in), generator=generator)
        elif name.endswith("weight") and value.dim() == 1:
            value.fill_(1)
        parameters[name] = value
    return parameters


def cross_entropy(network: nn.Module) -> Callable[[Parameters, tuple[Tensor, Tensor]], Tensor]:
    """Return the loss of ``network`` as a function of its parameters and (images, labels)."""
    model, _ = imaml.functional_model(network)

    def loss(parameters: Parameters, data: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = data
        return F.cross_entropy(model(parameters, images), labels)

    return loss


def adapted_predictions(
    network: nn.Module, theta: Parameters, tasks: Tasks, adaptation: dict[str, Any]
) -> Tensor:
    """Return the labels ``(tasks, queries)`` that each task's network gives after adaptation."""
    loss = cross_entropy(network)
    model, _ = imaml.functional_model(network)

    def predict(support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        phi = imaml.adapt(loss, theta, (support_x, support_y), **adaptation).value
        return model(phi, query_x).argmax(-1)

    with torch.no_grad():
        batched = vmap(predict, chunk_size=TASKS_AT_ONCE)
        return batched(tasks.support_x, tasks.support_y, tasks.query_x)


def nearest_neighbour_predictions(tasks: Tasks) -> Tensor:
    """Return the labels ``(tasks, queries)`` of the support images with the nearest pixels.

    Examples
    --------
    >>> support_x, query_x = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[0.2], [0.4]]])
    >>> labels = torch.tensor([[0, 1]])
    >>> nearest_neighbour_predictions(Tasks(support_x, labels, query_x, labels))
    tensor([[0, 0]])
    """
    distances = torch.cdist(tasks.query_x.flatten(2), tasks.support_x.flatten(2))
    return tasks.support_y.gather(1, distances.argmin(2))


def accuracy_of(predictions: Tensor, tasks: Tasks) -> dict[str, float]:
    """Return the mean accuracy over tasks and its 95% interval, from the normal approximation.

    Examples
    --------
    >>> x, labels = torch.zeros(2, 2, 1), torch.tensor([[0, 1], [0, 1]])
    >>> accuracy_of(torch.tensor([[0, 0], [1, 1]]), Tasks(x, labels, x, labels))
    {'mean': 0.5, 'low': 0.5, 'high': 0.5}
    """
    right = (predictions == tasks.query_y).double().mean(1)
    mean, half = right.mean(), 1.96 * right.std(correction=0) / math.sqrt(len(right))
    return {"mean": float(mean), "low": float(mean - half), "high": float(mean + half)}
