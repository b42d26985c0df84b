"""The .ts format: a round trip, lines that do not fit, and the shipped sets where they are."""

import importlib.metadata

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from implicit_solvers.problems.data.aeon_ts import (
    load_basic_motions,
    load_japanese_vowels,
    load_ts_pair,
)
from implicit_solvers.problems.data.ts_format import read_ts

HEADER = "# a comment\n@problemName Made\n@timeStamps false\n@classLabel true a b\n@data\n"
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def files(draw):
    channels = draw(st.integers(1, 3))
    series = []
    for length in draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)):
        rows = st.lists(NUMBERS, min_size=length, max_size=length)
        values = draw(st.lists(rows, min_size=channels, max_size=channels))
        series.append((np.array(values).T, draw(st.sampled_from("ab"))))
    return series


@given(series=files())
def test_series_are_read_as_they_were_written(tmp_path_factory, series):
    lines = [
        ":".join([*(",".join(map(repr, channel.tolist())) for channel in values.T), label])
        for values, label in series
    ]
    path = tmp_path_factory.mktemp("ts") / "made.ts"
    path.write_text(HEADER + "\n".join(lines) + "\n")
    data = read_ts(path)
    assert data.classes == ("a", "b")
    for values, label, (expected, name) in zip(data.series, data.labels, series, strict=True):
        np.testing.assert_array_equal(values, expected)
        assert data.classes[label] == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no series"),
        (HEADER, "holds no series"),
        (HEADER + "1,2:3,4:c\n", "line 6 of .*made.ts ends in 'c', which is none of"),
        (HEADER + "1,x:3,4:a\n", "line 6 of .* is no series of numbers"),
        (HEADER + "1,2:3:a\n", r"channels of \[1, 2\] steps"),
        (HEADER + "1,2:3,4:a\n1,2:b\n", "line 7 of .* has 1 channels, the first series 2"),
        (HEADER.replace("false", "true"), "has time stamps"),
        (HEADER.replace("true a b", "false"), "no line '@classLabel true'"),
        (HEADER.replace("true a b", "true"), "no line '@classLabel true'"),
        ("1,2:a\n", "line 1 of .* comes before @data"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "made.ts"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ts(path)


def pair(tmp_path, train, test):
    paths = tmp_path / "made_TRAIN.ts", tmp_path / "made_TEST.ts"
    for path, text in zip(paths, (train, test), strict=True):
        path.write_text(text)
    return paths


def test_validation_series_are_held_out_of_the_training_file(tmp_path):
    lines = "".join(f"{i},{i + 1}:{'ab'[i % 2]}\n" for i in range(8))
    task = load_ts_pair(*pair(tmp_path, HEADER + lines, HEADER + "9:b\n"), validation_every=4)
    assert task.validation.y[:, 0].tolist() == [0, 1] and task.train.y[:, 0].tolist() == [0, 1] * 3
    first = np.array([[2, 3], [3, 4], [4, 5], [5, 6], [6, 7], [7, 8.0]])
    mean, deviation = first.mean(), first.std()
    np.testing.assert_allclose(task.train.x[..., 0], (first - mean) / deviation, rtol=1e-5)
    np.testing.assert_allclose(task.validation.x[0, :, 0], (np.array([0, 1]) - mean) / deviation)
    assert task.test.lengths.tolist() == [1]


def test_unequal_classes_and_gaps_are_refused(tmp_path):
    other = HEADER.replace("a b", "b a")
    with pytest.raises(ValueError, match="has the classes .*pass two parts of one data set"):
        load_ts_pair(*pair(tmp_path, HEADER + "1:a\n", other + "1:a\n"))
    with pytest.raises(ValueError, match="one series of each class"):
        load_ts_pair(*pair(tmp_path, HEADER + "1:a\n1:b\n", HEADER + "1:a\n"))
    with pytest.raises(ValueError, match=r"1 of 4 sequences have a NaN.*number 3"):
        load_ts_pair(*pair(tmp_path, HEADER + "1:a\n1:a\n1:a\n?:a\n", HEADER + "1:a\n"))


def aeon_is_missing():
    try:
        importlib.metadata.files("aeon")
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


@pytest.mark.skipif(aeon_is_missing(), reason="the package aeon (extra sequences) is not installed")
def test_the_shipped_sets():
    motions, vowels = load_basic_motions(), load_japanese_vowels()
    assert motions.train.x.shape == (28, 100, 6) and motions.test.x.shape == (40, 100, 6)
    assert motions.validation.y.flatten().bincount().tolist() == [3] * 4
    assert motions.test.y.flatten().bincount().tolist() == [10] * 4
    assert len(vowels.train) + len(vowels.validation) == 270 and len(vowels.test) == 370
    assert vowels.validation.y.flatten().bincount().tolist() == [8] * 9
    assert vowels.train.x.shape[2] == 12 and vowels.classes == tuple("123456789")
    lengths = vowels.test.lengths
    assert int(lengths.min()) == 7 and int(lengths.max()) == 29


def test_the_package_may_be_missing_or_without_the_files(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install 'implicit-solvers.sequences.'"):
        load_japanese_vowels()
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(FileNotFoundError, match="aeon has no file BasicMotions/"):
        load_basic_motions()
