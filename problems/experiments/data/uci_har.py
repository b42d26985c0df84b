"""Human activities seen by a smartphone: the UCI-HAR data set, in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask

__all__ = ["HAR_2", "load_uci_har"]

SIGNALS = tuple(
    f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"
)
# The second of the two classes of HAR-2.
HAR_2 = ("STANDING", "WALKING", "WALKING_DOWNSTAIRS")
VALIDATION_EVERY = 5


def load_uci_har(folder: Path, binary: bool = False) -> SequenceTask:
    """Return windows of 128 steps and nine channels of six activities.

    ``folder`` is ``UCI HAR Dataset`` of the archive. The test part is the data set's own, of other
    subjects than the training's. Of these, the first of every five is in the validation part.
    Channels are standardized. Source: Anguita et al., "A public domain dataset for human activity
    recognition using smartphones" (2013).

    If ``binary``, there are two classes, as in HAR-2: sitting, laying and walking upstairs against
    standing, walking and walking downstairs. Source: Kusupati et al., "FastGRNN" (2018),
    supplement.
    """
    names = _activities(folder / "activity_labels.txt")
    learned, subjects = _part(folder, "train", names)
    tested, _ = _part(folder, "test", names)
    persons = sorted(set(subjects.tolist()))
    if len(persons) < 2:
        raise ValueError(f"{folder} has the training subjects {persons}: two or more are needed")
    chosen = torch.isin(subjects, torch.tensor(persons[::VALIDATION_EVERY]))
    parts = [learned.subset(~chosen), learned.subset(chosen), tested]
    classes = tuple(names.values())
    if binary:
        unknown = set(HAR_2) - set(classes)
        if unknown:
            raise ValueError(f"{folder} has no activities {sorted(unknown)}, which HAR-2 needs")
        second = torch.tensor([name in HAR_2 for name in classes])
        parts = [Sequences(part.x, part.lengths, second[part.y].long()) for part in parts]
        classes = ("sitting, laying, upstairs", "standing, walking, downstairs")
    train, validation, test = parts
    return SequenceTask(train, validation, test, classes).standardized()


def _activities(path: Path) -> dict[int, str]:
    names = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match line.split():
            case [number, name] if number.isdecimal():
                names[int(number)] = name
            case []:
                pass
            case _:
                raise ValueError(f"{path} has the line {line[:40]!r}: expected a number and a name")
    if not names:
        raise ValueError(f"{path} names no activity")
    return names


def _part(folder: Path, part: str, names: dict[int, str]) -> tuple[Sequences, torch.Tensor]:
    signals = folder / part / "Inertial Signals"
    channels = [_table(signals / f"{name}_{part}.txt") for name in SIGNALS]
    labels = _table(folder / part / f"y_{part}.txt")
    subjects = _table(folder / part / f"subject_{part}.txt")
    shapes = {channel.shape for channel in channels}
    if len(shapes) > 1 or labels.shape != (len(channels[0]), 1) or subjects.shape != labels.shape:
        raise ValueError(
            f"{folder / part}: the signals have the shapes {sorted(shapes)}, the labels "
            f"{labels.shape}, the subjects {subjects.shape}; they must be of as many windows"
        )
    place = {number: position for position, number in enumerate(names)}
    unknown = sorted(set(labels[:, 0]) - set(place))
    if unknown:
        raise ValueError(f"{folder / part} has the activities {unknown}, which have no name")
    x = torch.from_numpy(np.stack(channels, -1)).float()
    y = torch.tensor([[place[int(label)]] for label in labels[:, 0]])
    lengths = torch.full((len(x),), x.shape[1])
    return Sequences(x, lengths, y), torch.from_numpy(subjects[:, 0]).long()


def _table(path: Path) -> np.ndarray:
    """Return float64 ``(rows, columns)``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        table = np.array([line.split() for line in lines if line.strip()], dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path} is no table of numbers ({error})") from error
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"{path} holds no numbers")
    return table
