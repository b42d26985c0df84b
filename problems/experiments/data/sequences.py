"""Sequences with labels or values, padded to one length, and their split into three parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["SequenceTask", "Sequences", "held_out", "pad"]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Padded sequences, and what is to be told at the last steps of each.

    ``x`` is float32 ``(count, time, channels)``, and ``lengths`` int64; what follows a sequence's
    end is padding, which alone may be NaN or infinite. ``y (count, outputs)`` has an entry for each
    of the last ``outputs`` steps: int64 classes, or float32 values.

    Examples
    --------
    >>> x, lengths = pad([np.ones((2, 1)), np.ones((3, 1))])
    >>> sequences = Sequences(x, lengths, torch.tensor([[0], [1]]))
    >>> len(sequences), sequences.mask()
    (2, tensor([[ True,  True, False],
            [ True,  True,  True]]))
    """

    x: Tensor
    lengths: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        """Check the tensors."""
        for name, kinds in {
            "x": (torch.float32,),
            "lengths": (torch.int64,),
            "y": (torch.int64, torch.float32),
        }.items():
            dtype = getattr(self, name).dtype
            if dtype not in kinds:
                raise TypeError(f"{name} is {dtype}: pass {' or '.join(map(str, kinds))}")
        if self.x.ndim != 3 or self.y.ndim != 2 or self.lengths.ndim != 1:
            raise ValueError(
                f"x {tuple(self.x.shape)}, lengths {tuple(self.lengths.shape)} and y "
                f"{tuple(self.y.shape)} must have three, one and two dimensions"
            )
        if not len(self.x) == len(self.lengths) == len(self.y):
            raise ValueError(
                f"x, lengths and y are of {len(self.x)}, {len(self.lengths)} and {len(self.y)} "
                "sequences: they must be as many"
            )
        if 0 in (*self.x.shape, *self.y.shape):
            raise ValueError(
                f"x {tuple(self.x.shape)} or y {tuple(self.y.shape)} is empty: pass at least one "
                "sequence of one step, one channel and one output"
            )
        outputs, longest = self.y.shape[1], self.x.shape[1]
        unfit = (self.lengths < outputs) | (self.lengths > longest)
        if unfit.any():
            first = int(unfit.nonzero()[0])
            raise ValueError(
                f"sequence {first} has the length {int(self.lengths[first])}, not one from "
                f"{outputs} (the outputs) to {longest} (the steps of x): leave it out"
            )
        finite = (self.x.isfinite().all(-1) | ~self.mask()).all(1) & self.y.isfinite().all(1)
        if not finite.all():
            numbers = (~finite).nonzero().flatten().tolist()
            raise ValueError(
                f"{len(numbers)} of {len(self)} sequences have a NaN or infinite value (the first "
                f"is number {numbers[0]}): leave them out, or fill the gaps"
            )

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.x)

    def mask(self) -> Tensor:
        """Return bool ``(count, time)``: true before a sequence's end."""
        return torch.arange(self.x.shape[1]) < self.lengths[:, None]

    def subset(self, chosen: Tensor) -> Sequences:
        """Return the sequences at the indices, or where the mask is true."""
        return Sequences(self.x[chosen], self.lengths[chosen], self.y[chosen])


@dataclass(frozen=True, eq=False)
class SequenceTask:
    """Sequences to learn from, to choose hyperparameters by, and to test on.

    No sequence (nor subject, where they are known) is in two parts. ``classes`` are names, none
    where ``y`` holds values.

    Examples
    --------
    >>> parts = [Sequences(torch.ones(2, 5, 3), torch.tensor([5, 4]), torch.zeros(2, 1))] * 3
    >>> task = SequenceTask(*parts, classes=())
    >>> task.channels, task.outputs, task.readout_size
    (3, 1, 1)
    """

    train: Sequences
    validation: Sequences
    test: Sequences
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        parts = (self.train, self.validation, self.test)
        compared: dict[str, list[Any]] = {
            "channels": [part.x.shape[2] for part in parts],
            "outputs": [part.y.shape[1] for part in parts],
            "types of y": [part.y.dtype for part in parts],
        }
        for what, values in compared.items():
            if len(set(values)) > 1:
                raise ValueError(f"the {what} of train, validation and test differ: {values}")
        if self.train.y.is_floating_point() != (len(self.classes) == 0):
            raise ValueError(
                f"y is {self.train.y.dtype} and there are {len(self.classes)} names of classes: "
                "pass int64 classes with names, or float32 values without"
            )
        if self.classes:
            low = min(int(part.y.min()) for part in parts)
            high = max(int(part.y.max()) for part in parts)
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"y has classes from {low} to {high}, with {len(self.classes)} names: number "
                    "them from 0, and name each"
                )

    @property
    def channels(self) -> int:
        """The numbers at a step."""
        return self.train.x.shape[2]

    @property
    def outputs(self) -> int:
        """The last steps that something is to be told of."""
        return self.train.y.shape[1]

    @property
    def readout_size(self) -> int:
        """The numbers that tell it: a score for each class, or one value."""
        return max(1, len(self.classes))

    def standardized(self) -> SequenceTask:
        """Return the task with channels of mean 0 and deviation 1 over the training steps.

        The numbers are those of the training part in all three; a channel that never changes is
        only shifted. Padding becomes 0.
        """
        seen = self.train.x[self.train.mask()].double()
        mean, deviation = seen.mean(0), seen.std(0, correction=0)
        deviation = torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0)

        def scaled(part: Sequences) -> Sequences:
            x = ((part.x.double() - mean) / deviation).float()
            return Sequences(x.where(part.mask()[..., None], 0.0), part.lengths, part.y)

        train, validation, test = map(scaled, (self.train, self.validation, self.test))
        return SequenceTask(train, validation, test, self.classes)


def pad(series: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return series ``(length, channels)`` as one float32 tensor, and their lengths.

    The tensor is ``(count, longest, channels)``, with zeros after the ends.
    """
    shapes = [np.shape(one) for one in series]
    if not shapes:
        raise ValueError("there is no series: pass at least one")
    for number, shape in enumerate(shapes):
        if len(shape) != 2 or 0 in shape or shape[1] != shapes[0][1]:
            raise ValueError(
                f"series {number} has the shape {shape}: pass (length, channels), neither of them "
                f"0, with the {shapes[0][1:]} channels of the first"
            )
    lengths = torch.tensor([shape[0] for shape in shapes])
    x = torch.zeros(len(series), int(lengths.max()), shapes[0][1])
    for row, one in zip(x, series, strict=True):
        row[: len(one)] = torch.from_numpy(np.asarray(one, dtype=np.float32))
    return x, lengths


def held_out(labels: Tensor, every: int) -> Tensor:
    """Return which examples to hold out: of each class the first, the ``every + 1``-st, and so on.

    Examples
    --------
    >>> held_out(torch.tensor([0, 1, 0, 0, 1]), 2)
    tensor([ True,  True, False,  True, False])
    """
    if every < 2:
        raise ValueError(f"every={every} holds all out: pass 2 or more")
    order = labels.argsort(stable=True)
    counts = labels.bincount()
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    chosen = torch.empty(len(labels), dtype=torch.bool)
    chosen[order] = (torch.arange(len(labels)) - starts) % every == 0
    return chosen
