"""Images of digits as sequences: a row or a pixel at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor

from implicit_solvers.problems.experiments.data.digits import Digits, load_digits, load_mnist
from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask, held_out

__all__ = [
    "load_digit_sequences",
    "load_mnist_sequences",
    "load_noise_padded_digits",
    "pixel_sequences",
]

VALIDATION_EVERY = 5


def load_digit_sequences(channels: int = 8) -> SequenceTask:
    """Return scikit-learn's digits, ``channels`` of their 64 pixels at a step: 8 are a row.

    Examples
    --------
    >>> load_digit_sequences().train.x.shape, load_digit_sequences(1).test.x.shape
    (torch.Size([1074, 8, 8]), torch.Size([450, 64, 1]))
    """
    return pixel_sequences(load_digits(), channels)


def load_noise_padded_digits(steps: int = 200, seed: int = 0) -> SequenceTask:
    """Return scikit-learn's digits, a row at a step, and then steps of noise: ``steps`` in all.

    The class is told at the last step. Noise is standard normal, and drawn once; pixels are between
    0 and 1. Source: Chang, Chen, Haber and Chi, "AntisymmetricRNN: a dynamical system view on
    recurrent neural networks" (2019), section 5.3, with 968 steps of noise after the 32 rows of an
    image of CIFAR-10.
    """
    task, generator = load_digit_sequences(), Generator().manual_seed(seed)
    if steps <= task.train.x.shape[1]:
        raise ValueError(f"steps={steps} leaves no room for noise: pass more than 8")

    def padded(part: Sequences) -> Sequences:
        count, rows, channels = part.x.shape
        noise = torch.randn(count, steps - rows, channels, generator=generator)
        return Sequences(torch.cat([part.x, noise], 1), torch.full((count,), steps), part.y)

    train, validation, test = map(padded, (task.train, task.validation, task.test))
    return SequenceTask(train, validation, test, task.classes)


def load_mnist_sequences(folder: Path, channels: int = 1) -> SequenceTask:
    """Return MNIST of a folder (`digits.load_mnist`), ``channels`` of its 784 pixels at a step."""
    return pixel_sequences(load_mnist(folder), channels)


def pixel_sequences(digits: Digits, channels: int) -> SequenceTask:
    """Return images as sequences; a fifth of the training images is the validation part.

    A step has ``channels`` pixels, from left to right and top to bottom.
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
