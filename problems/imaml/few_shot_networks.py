"""The networks that the papers meta-learn, and their first parameters."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor, nn

__all__ = ["classifier", "initial_parameters", "regressor"]

# the largest input of a sine wave
LAST_INPUT = 5.0
BLOCKS = 4
GROUPS = 4
CONVOLUTION_SCALE = 3.0


def classifier(
    side: int,
    channels: int,
    width: int,
    ways: int | None,
    *,
    normalization: Literal["batch", "group"] = "batch",
    pooling: bool = False,
) -> nn.Module:
    """Return the paper's convolutional network, without values: `initial_parameters` makes them.

    At most four blocks of a 3 by 3 convolution, a normalization and a rectifier halve images
    ``(channels, side, side)`` until the side is 2 or less, by a stride of 2 or by ``pooling``, the
    largest of 2 by 2 pixels. Batch normalization uses the statistics of all images at hand, those
    of all queries together, as in the paper; ``"group"`` those of each image, in four groups of
    channels. A linear layer has ``ways`` outputs; without it (None) the features are returned.

    Source: Vinyals et al., "Matching networks for one shot learning" (2016); with strides instead
    of pooling for Omniglot: Finn, Abbeel and Levine, "Model-agnostic meta-learning" (2017).

    Examples
    --------
    >>> network = classifier(side=28, channels=1, width=64, ways=5)
    >>> sum(parameter.numel() for parameter in network.parameters())
    112965
    """
    if normalization == "group" and width % GROUPS:
        raise ValueError(f"width={width} is no multiple of {GROUPS}: group normalization needs one")
    layers: list[nn.Module] = []
    with torch.device("meta"):
        for _ in range(BLOCKS):
            stride = 1 if pooling else 2
            layers.append(nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False))
            layers.append(
                nn.BatchNorm2d(width, track_running_stats=False)
                if normalization == "batch"
                else nn.GroupNorm(GROUPS, width)
            )
            layers.append(nn.ReLU())
            if pooling:
                layers.append(nn.MaxPool2d(2))
            channels, side = width, side // 2 if pooling else (side + 1) // 2
            if side <= 2:
                break
        layers.append(nn.Flatten())
        if ways is not None:
            layers.append(nn.Linear(width * side**2, ways))
        return nn.Sequential(*layers)


def regressor(width: int, outputs: int | None = 1) -> nn.Module:
    """Return a network of one input with two hidden layers, without values.

    Inputs are divided by 5, the largest of a sine wave's: otherwise the loss is so curved that
    gradient steps longer than 0.005 blow up, and CG meets curvature below ``-strength``. Without
    ``outputs`` (None) the features of the last hidden layer are returned.

    Source: Finn, Abbeel and Levine, "Model-agnostic meta-learning" (2017), section 5.1: 40 wide.
    """
    with torch.device("meta"):
        layers: list[nn.Module] = [_Scaled(), nn.Linear(1, width), nn.ReLU()]
        layers += [nn.Linear(width, width), nn.ReLU()]
        if outputs is not None:
            layers.append(nn.Linear(width, outputs))
        return nn.Sequential(*layers)


class _Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / LAST_INPUT


def initial_parameters(network: nn.Module, generator: Generator) -> dict[str, Tensor]:
    """Return random weights, neutral normalizations, biases of zero.

    Convolutions have three times He's standard deviation. Normalized, the loss does not depend on
    their scale, and its curvature falls with the scale's square: negative curvature stays below
    the strength of the regularization, and CG is applicable. The last layer of a classifier is
    zero, that of a network without convolutions has He's deviation.

    Examples
    --------
    >>> parameters = initial_parameters(regressor(40), Generator().manual_seed(0))
    >>> parameters["1.weight"].shape
    torch.Size([40, 1])
    """
    convolutional = any(isinstance(module, nn.Conv2d) for module in network.modules())
    parameters: dict[str, Tensor] = {}
    for name, skeleton in network.named_parameters():
        value = torch.zeros(skeleton.shape)
        deviation = math.sqrt(2 / math.prod(value.shape[1:])) if value.dim() > 1 else 0.0
        if value.dim() == 4:
            value.normal_(0, CONVOLUTION_SCALE * deviation, generator=generator)
        elif value.dim() == 2 and not convolutional:
            value.normal_(0, deviation, generator=generator)
        elif name.endswith("weight") and value.dim() == 1:
            value.fill_(1)
        parameters[name] = value
    return parameters
