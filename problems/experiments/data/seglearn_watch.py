"""Shoulder exercises seen by a smart watch: the data that the package ``seglearn`` ships."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from implicit_solvers.problems.experiments.data.episodes import require_positive
from implicit_solvers.problems.experiments.data.package_files import package_file
from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask, pad

__all__ = ["FOLDS", "load_watch", "load_watch_file"]

FOLDS, SUBJECTS = 5, 10


def load_watch(window: int = 128, fold: int = FOLDS - 1) -> SequenceTask:
    """Return windows of seven shoulder exercises; no subject is in two parts.

    Ten subjects did each exercise with either arm: 140 series of accelerometer and gyroscope, six
    channels at 50 Hz. Two of them are the test, subjects 1 and 2 in the first of five folds, 9 and
    10 in the last; the two before these (9 and 10 in the first) are the validation part, the others
    the training part. Each series is cut into windows of ``window`` steps that do not overlap; its
    rest is left out. Channels are standardized. Source: Burns et al., "Shoulder physiotherapy
    exercise recognition: machine learning the inertial signals from a smartwatch" (2018).

    Examples
    --------
    >>> task = load_watch()
    >>> len(task.train), len(task.validation), len(task.test), task.classes
    (1044, 397, 392, ('PEN', 'ABD', 'FEL', 'IR', 'ER', 'TRAP', 'ROW'))
    """
    return load_watch_file(package_file("seglearn", "watch_dataset.npy", "problems"), window, fold)


def load_watch_file(path: Path, window: int = 128, fold: int = FOLDS - 1) -> SequenceTask:
    """Return `load_watch` of the file at ``path``.

    The file is a pickle in numpy's format. Pickles can run any code; this one is read by an
    unpickler that knows arrays, and nothing else.
    """
    require_positive(window=window)
    if not 0 <= fold < FOLDS:
        raise ValueError(f"fold={fold} is not one from 0 to {FOLDS - 1}")
    content = _read_arrays(path)
    try:
        series = [np.asarray(one, dtype=np.float64) for one in content["X"]]
        labels, subjects = (np.asarray(content[k]).astype(np.int64) for k in ("y", "subject"))
        classes = tuple(str(name) for name in content["y_labels"])
        fits = len(series) == len(labels) == len(subjects) > 0 and all(s.ndim == 2 for s in series)
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{path} holds no series X with labels y and subjects: reinstall seglearn")
    cut, cut_labels, cut_subjects = [], [], []
    for one, label, subject in zip(series, labels, subjects, strict=True):
        count = len(one) // window
        cut += list(one[: count * window].reshape(count, window, one.shape[1]))
        cut_labels += [label] * count
        cut_subjects += [subject] * count
    if not cut:
        raise ValueError(f"window={window} is longer than every series: pass a smaller one")
    x, lengths = pad(cut)
    whole = Sequences(x, lengths, torch.tensor(np.array(cut_labels))[:, None])
    # subjects are numbered from 1 on: pairs are neighbours
    pair = (torch.tensor(np.array(cut_subjects)) - 1) // (SUBJECTS // FOLDS)
    validation, test = pair == (fold - 1) % FOLDS, pair == fold
    return SequenceTask(
        whole.subset(~validation & ~test), whole.subset(validation), whole.subset(test), classes
    ).standardized()


def _read_arrays(path: Path) -> dict[str, Any]:
    """Return the dictionary of arrays in a ``.npy`` file of an object."""
    with open(path, "rb") as file:
        try:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            content = _ArrayUnpickler(file).load()
        except _ForbiddenGlobal as error:
            raise ValueError(f"{path} is refused: {error}") from error
        except Exception as error:  # unpickling raises whatever the bytes make it raise
            raise ValueError(f"{path} is no pickled array ({error}): reinstall seglearn") from error
    content = content.item() if isinstance(content, np.ndarray) and content.size == 1 else content
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not a dictionary")
    return content


class _ForbiddenGlobal(pickle.UnpicklingError):
    """A pickle asks for a function that is not admitted."""


def _latin1(text: object, encoding: object) -> bytes:
    # the only use that numpy's pickles of protocol 2 make of _codecs.encode
    if not isinstance(text, str) or encoding != "latin1":
        raise _ForbiddenGlobal(f"its pickle encodes as {encoding!r}, which no array needs")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy's arrays, and refuses every other global."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        """Return what the table admits under this name."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _ForbiddenGlobal(
                f"its pickle asks for {module}.{name}, which is no part of an array"
            ) from None
