"""Handwritten digits: those of scikit-learn, and MNIST from a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.problems.experiments.data.idx import read_idx

__all__ = ["Digits", "binarized", "load_digits", "load_mnist", "validation_split"]

# Every fourth of scikit-learn's digits is a test image: a split that no version changes.
TEST_EVERY = 4
VALIDATION_EVERY = 4


@dataclass(frozen=True, eq=False)
class Digits:
    """Images of digits, split for training and test.

    The images are float32 ``(images, side * side)``, with intensities from 0 to 1.

    Examples
    --------
    >>> digits = load_digits()
    >>> tuple(digits.train.shape), tuple(digits.test.shape), digits.side
    ((1347, 64), (450, 64), 8)
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    side: int


def load_digits() -> Digits:
    """Return scikit-learn's 1,797 digits of 8 by 8 pixels; every fourth is a test image.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits" (1998), UCI. They are
    a file of the package: nothing is downloaded.
    """
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    images = torch.tensor(bunch.data / 16, dtype=torch.float32)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    test = torch.arange(len(images)) % TEST_EVERY == 0
    return Digits(images[~test], images[test], labels[~test], labels[test], side=8)


def load_mnist(folder: Path) -> Digits:
    """Return MNIST, or data in its format, from four idx files.

    They are ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, bytes
    ``(images, side, side)`` and ``(images,)``, and two with ``t10k`` instead of ``train``; each
    maybe with ``.gz`` at the end.
    """
    train, train_labels = _images_and_labels(folder, "train")
    test, test_labels = _images_and_labels(folder, "t10k")
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"the images in {folder} must have one size: those to train on have "
            f"{tuple(train.shape[1:])} pixels, those to test on {tuple(test.shape[1:])}"
        )
    side = train.shape[1]
    return Digits(train.flatten(1), test.flatten(1), train_labels, test_labels, side)


def _images_and_labels(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    path = _find(folder, f"{part}-images-idx3-ubyte")
    images, labels = read_idx(path), read_idx(_find(folder, f"{part}-labels-idx1-ubyte"))
    if images.ndim != 3 or images.dtype != np.uint8 or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"{path} must hold bytes (images, side, side), not {images.dtype} {images.shape}"
        )
    if images.size == 0:
        raise ValueError(f"{path} holds no pixels: its shape is {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{path} has {len(images)} images, its labels the shape {labels.shape}")
    return torch.from_numpy(images).to(torch.float32) / 255, torch.from_numpy(labels).long()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} has no file {name} or {name}.gz")


def validation_split(digits: Digits) -> Digits:
    """Return the images to train on, every fourth of them in place of the test images."""
    held_out = torch.arange(len(digits.train)) % VALIDATION_EVERY == 0
    return Digits(
        *(digits.train[~held_out], digits.train[held_out]),
        *(digits.train_labels[~held_out], digits.train_labels[held_out]),
        digits.side,
    )


def binarized(images: Tensor) -> Tensor:
    """Return 1 where a pixel has at least half of the highest intensity, else 0.

    Examples
    --------
    >>> binarized(torch.tensor([0.2, 0.5]))
    tensor([0., 1.])
    """
    return (images >= 0.5).to(images.dtype)
