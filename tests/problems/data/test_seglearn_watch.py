"""The smart-watch data against numpy's own reader; pickles that do more than arrays are refused."""

import importlib.metadata
import os
import pickle

import numpy as np
import pytest

from implicit_solvers.problems.data.package_files import package_file
from implicit_solvers.problems.data.seglearn_watch import load_watch, load_watch_file


def test_windows_and_subjects_against_the_trusted_reader():
    task = load_watch()
    path = package_file("seglearn", "watch_dataset.npy", "problems")
    content = np.load(path, allow_pickle=True).item()
    subjects = {"train": range(1, 7), "validation": (7, 8), "test": (9, 10)}
    expected = {part: ([], []) for part in subjects}
    for series, label, subject in zip(content["X"], content["y"], content["subject"], strict=True):
        for part, own in subjects.items():
            for start in range(0, len(series) - 127, 128) if subject in own else ():
                expected[part][0].append(series[start : start + 128])
                expected[part][1].append(label)
    steps = np.concatenate(expected["train"][0])
    for part, (windows, labels) in expected.items():
        sequences = getattr(task, part)
        scaled = (np.stack(windows) - steps.mean(0)) / steps.std(0)
        np.testing.assert_allclose(sequences.x.numpy(), scaled, rtol=1e-4, atol=1e-4)
        assert sequences.y[:, 0].tolist() == labels
    assert task.classes == tuple(content["y_labels"])


def written(tmp_path, content, protocol=2):
    """A file in numpy's format whose object array is pickled as the package's file is."""
    path = tmp_path / "watch.npy"
    with open(path, "wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(content, file, protocol=protocol)
    return path


def made(count=10, length=5):
    return {
        "X": [np.full((length, 2), float(i)) for i in range(count)],
        "y": np.arange(count) % 2,
        "subject": 1 + np.arange(count),
        "y_labels": ["a", "b"],
    }


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_small_file_is_cut_into_windows(tmp_path, protocol):
    content = np.array(made(), dtype=object)
    task = load_watch_file(written(tmp_path, content, protocol), window=2)
    assert task.train.x.shape == (12, 2, 2) and len(task.validation) == len(task.test) == 4
    assert task.test.y[:, 0].tolist() == [0, 0, 1, 1] and task.classes == ("a", "b")


class RunsACommand:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Evaluates:
    def __reduce__(self):
        return eval, ("1",)


class Decompresses:
    def __reduce__(self):
        import _codecs

        return _codecs.encode, ("x", "rot13")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_would_run_code_is_refused_before_it_does(tmp_path, protocol):
    content = {"first": RunsACommand(tmp_path / "made"), **made()}
    path = written(tmp_path, content, protocol)
    with pytest.raises(ValueError, match=r"watch.npy is refused: its pickle asks for .*mkdir"):
        load_watch_file(path)
    assert not (tmp_path / "made").exists()
    with pytest.raises(ValueError, match=r"__builtin__.eval, which is no part of an array"):
        load_watch_file(written(tmp_path, Evaluates(), protocol=2))
    with pytest.raises(ValueError, match="encodes as 'rot13'"):
        load_watch_file(written(tmp_path, Decompresses()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list, not a dictionary"),
        ({"X": []}, "holds no series X with labels y and subjects"),
        ({**made(), "y": np.arange(3)}, "holds no series X"),
        ({**made(), "subject": ["?"] * 10}, "holds no series X"),
        (made(length=1), "window=2 is longer than every series"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_watch_file(written(tmp_path, content), window=2)


def test_files_that_are_no_arrays_are_refused(tmp_path):
    path = tmp_path / "watch.npy"
    path.write_bytes(written(tmp_path, made()).read_bytes()[:200])
    with pytest.raises(ValueError, match="no pickled array"):
        load_watch_file(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="no pickled array"):
        load_watch_file(path)
    with pytest.raises(ValueError, match="window=0 is not positive"):
        load_watch(0)


def test_the_package_may_be_missing_or_without_the_file(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install 'implicit-solvers.problems.'"):
        load_watch()
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"seglearn has no file watch_dataset\.npy"):
        load_watch()


def test_a_series_with_gaps_is_named(tmp_path):
    content = made()
    content["X"][2][3, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 20 sequences have a NaN.*number 5"):
        load_watch_file(written(tmp_path, content), window=2)
