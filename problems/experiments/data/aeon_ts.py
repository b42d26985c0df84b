"""Two small sets of time series that the package ``aeon`` ships."""

from __future__ import annotations

from pathlib import Path

import torch

from implicit_solvers.problems.experiments.data.package_files import package_file
from implicit_solvers.problems.experiments.data.sequences import (
    Sequences,
    SequenceTask,
    held_out,
    pad,
)
from implicit_solvers.problems.experiments.data.ts_format import LabelledSeries, read_ts

__all__ = ["load_basic_motions", "load_japanese_vowels", "load_ts_pair"]


def load_basic_motions() -> SequenceTask:
    """Return four motions seen by a smart watch: 40 series of 100 steps and 6 channels, 40 to test.

    12 of the 40, three of each motion, are the validation part. Source: the UEA archive (2018).

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError
        If ``aeon`` is not installed, or has not these files.
    """
    return _from_package("BasicMotions")


def load_japanese_vowels() -> SequenceTask:
    """Return two vowels of nine speakers, who are to be told: 270 series, and 370 to test.

    12 cepstral coefficients in 7 to 29 steps. A quarter of the 270, of each speaker, is the
    validation part. Source: Kudo, Toyama and Shimbo, "Multidimensional curve classification using
    passing-through regions" (1999), UCI.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError
        If ``aeon`` is not installed, or has not these files.
    """
    return _from_package("JapaneseVowels")


def _from_package(name: str) -> SequenceTask:
    return load_ts_pair(
        package_file("aeon", f"{name}/{name}_TRAIN.ts", "sequences"),
        package_file("aeon", f"{name}/{name}_TEST.ts", "sequences"),
    )


def load_ts_pair(train: Path, test: Path, validation_every: int = 4) -> SequenceTask:
    r"""Return the task in two ``.ts`` files; channels are standardized.

    Parameters
    ----------
    train, test
        The files.
    validation_every
        Of the training file's series, the first of every so many of each class are the
        validation part.

    Raises
    ------
    ValueError
        If a file is no such file, the files' classes differ, or a value is missing.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "two.ts"
    ...     text = "@classLabel true a b\n@data\n1,2:a\n2,1:b\n3,3:a\n4,4:b\n"
    ...     _ = path.write_text(text, encoding="utf-8")
    ...     task = load_ts_pair(path, path, validation_every=2)
    >>> len(task.train), len(task.validation), len(task.test), task.classes
    (2, 2, 4, ('a', 'b'))
    """
    learned, tested = read_ts(train), read_ts(test)
    if learned.classes != tested.classes:
        raise ValueError(
            f"{train} has the classes {learned.classes}, {test} {tested.classes}: pass two parts "
            "of one data set"
        )
    whole = _sequences(learned)
    chosen = held_out(whole.y[:, 0], validation_every)
    if chosen.all():
        raise ValueError(f"{train} has one series of each class: too few for training, validation")
    return SequenceTask(
        whole.subset(~chosen), whole.subset(chosen), _sequences(tested), classes=learned.classes
    ).standardized()


def _sequences(data: LabelledSeries) -> Sequences:
    x, lengths = pad(data.series)
    return Sequences(x, lengths, torch.from_numpy(data.labels)[:, None])
