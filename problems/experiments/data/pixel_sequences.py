"""Images of digits as sequences: a row or a pixel at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from implicit_solvers.problems.experiments.data.digits import Digits, load_digits, load_mnist
from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask, held_out

__all__ = ["load_digit_sequences", "load_mnist_sequences", "pixel_sequences"]

VALIDATION_EVERY = 5


def load_digit_sequences(channels: int = 8) -> SequenceTask:
    """Return scikit-learn's digits, ``channels`` of their 64 pixels at a step.

    Parameters
    ----------
    channels
        8 reads a row at a step, 1 a pixel.

    Examples
    --------
    >>> load_digit_sequences().train.x.shape, load_digit_sequences(1).test.x.shape
    (torch.Size([1074, 8, 8]), torch.Size([450, 64, 1]))
    """
    return pixel_sequences(load_digits(), channels)


def load_mnist_sequences(folder: Path, channels: int = 1) -> SequenceTask:
    """Return MNIST of a folder (`digits.load_mnist`), ``channels`` of its 784 pixels at a step."""
    return pixel_sequences(load_mnist(folder), channels)


def pixel_sequences(digits: Digits, channels: int) -> SequenceTask:
    """Return images as sequences; a fifth of the training images is the validation part.

    Parameters
    ----------
    digits
        The images.
    channels
        Pixels at a step, from left to right and top to bottom.

    Raises
    ------
    ValueError
        If ``channels`` does not divide the number of pixels.
    """
    pixels = digits.side**2
    if channels < 1 or pixels % channels:
        raise ValueError(f"channels={channels} does not divide the {pixels} pixels of an image")

    def sequences(images: Tensor, labels: Tensor) -> Sequences:
        x = images.unflatten(1, (-1, channels))
        return Sequences(x, torch.full((len(x),), x.shape[1]), labels[:, None])

    whole = sequences(digits.train, digits.train_labels)
    chosen = held_out(digits.train_labels, VALIDATION_EVERY)
    test = sequences(digits.test, digits.test_labels)
    names = tuple(str(digit) for digit in range(int(digits.train_labels.max()) + 1))
    return SequenceTask(whole.subset(~chosen), whole.subset(chosen), test, classes=names)
