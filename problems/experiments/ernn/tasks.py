"""What the networks are trained on, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from implicit_solvers.problems.experiments.data.adding import generate_adding
from implicit_solvers.problems.experiments.data.aeon_ts import (
    load_basic_motions,
    load_japanese_vowels,
)
from implicit_solvers.problems.experiments.data.copying import generate_copying
from implicit_solvers.problems.experiments.data.pixel_sequences import (
    load_digit_sequences,
    load_mnist_sequences,
)
from implicit_solvers.problems.experiments.data.seglearn_watch import load_watch
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


SHIPPED: Mapping[str, Task] = {
    "watch": Task("smart watch", load_watch, epochs=15, batch=64),
    "motions": Task("BasicMotions", load_basic_motions, epochs=40, batch=7),
    "vowels": Task("JapaneseVowels", load_japanese_vowels, epochs=30, batch=32),
    "digits": Task("digits, 8 rows of 8", load_digit_sequences, epochs=15, batch=32),
    "pixels": Task("digits, 64 pixels", partial(load_digit_sequences, 1), epochs=15, batch=32),
    "adding": Task(
        "adding, 32 steps",
        partial(generate_adding, 32, train=2000, validation=500, test=1000),
        epochs=12,
        batch=50,
    ),
    "copying": Task(
        "copying, 10 symbols after 10 steps",
        partial(generate_copying, 10, train=2000, validation=500, test=1000),
        epochs=20,
        batch=50,
    ),
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


def load_task(name: str, folder: str) -> SequenceTask:
    """Return the data of a task.

    Examples
    --------
    >>> load_task("digits", folder="").channels
    8
    """
    needed = name in FOLDER_TASKS
    if needed != bool(folder):
        fix = "pass the folder with its data" if needed else "leave --folder out"
        raise ValueError(f"--folder is {folder!r}, and the task is {name}: {fix}")
    return TASKS[name].load(Path(folder)) if needed else TASKS[name].load()
