"""What the networks are trained on, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from implicit_solvers.problems.experiments.data.adding import generate_adding
from implicit_solvers.problems.experiments.data.copying import generate_copying
from implicit_solvers.problems.experiments.data.pixel_sequences import (
    load_digit_sequences,
    load_mnist_sequences,
    load_noise_padded_digits,
)
from implicit_solvers.problems.experiments.data.seglearn_watch import FOLDS, load_watch
from implicit_solvers.problems.experiments.data.sequences import SequenceTask
from implicit_solvers.problems.experiments.data.speech_commands import load_speech_commands
from implicit_solvers.problems.experiments.data.uci_har import load_uci_har


@dataclass(frozen=True)
class Task:
    """A task, and the length of a training."""

    title: str  # what figures say
    load: Callable[..., SequenceTask]  # returns it; of a folder, for those in `FOLDER_TASKS`
    epochs: int
    batch: int
    seeds: int = 10
    folds: int = 1  # that differ in what is the test; ``load`` takes their number


LONG = 200

SHIPPED: Mapping[str, Task] = {
    "pixels": Task("digits, 64 pixels", partial(load_digit_sequences, 1), epochs=20, batch=64),
    "noise": Task("digits, 8 rows, 192 of noise", load_noise_padded_digits, epochs=15, batch=64),
    "watch": Task("smart watch", load_watch, epochs=12, batch=64, seeds=5, folds=FOLDS),
    "adding": Task(
        "adding, 200 steps",
        partial(generate_adding, LONG, train=3200, validation=500, test=1000),
        epochs=14,
        batch=100,
        seeds=5,
    ),
    "copying": Task(
        "copying 2 symbols, 200 steps",
        partial(generate_copying, LONG - 4, 3200, 500, 1000, copied=2),
        epochs=12,
        batch=100,
        seeds=5,
    ),
    "adding-32": Task(
        "adding, 32 steps",
        partial(generate_adding, 32, train=2000, validation=500, test=1000),
        epochs=12,
        batch=50,
    ),
    "digits": Task("digits, 8 rows of 8", load_digit_sequences, epochs=15, batch=32),
}
"""Tasks whose data packages ship, or that are generated."""

FOLDER_TASKS: Mapping[str, Task] = {
    "har": Task("UCI-HAR", load_uci_har, epochs=20, batch=64),
    "har-2": Task("HAR-2", partial(load_uci_har, binary=True), epochs=20, batch=64),
    "speech": Task("speech commands", load_speech_commands, epochs=20, batch=64),
    "mnist": Task("MNIST, 784 pixels", load_mnist_sequences, epochs=20, batch=64),
}
"""Tasks whose data the user has in a folder."""

TASKS: Mapping[str, Task] = {**SHIPPED, **FOLDER_TASKS}


def load_task(name: str, folder: str) -> tuple[SequenceTask, ...]:
    """Return the data of a task, in each fold."""
    needed = name in FOLDER_TASKS
    if needed != bool(folder):
        fix = "pass the folder with its data" if needed else "leave --folder out"
        raise ValueError(f"--folder is {folder!r}, and the task is {name}: {fix}")
    if needed:
        return (TASKS[name].load(Path(folder)),)
    if TASKS[name].folds == 1:
        return (TASKS[name].load(),)
    return tuple(TASKS[name].load(fold=fold) for fold in range(TASKS[name].folds))
