"""Padded sequences: statistics against numpy, splits without overlap, wrong tensors refused."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp

from implicit_solvers.problems.data.sequences import Sequences, SequenceTask, held_out, pad

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)
VALUES = hnp.from_dtype(np.dtype(np.float32), min_value=-100, max_value=100)


@st.composite
def series_lists(draw, channels=3):
    return [
        draw(hnp.arrays(np.float32, (length, channels), elements=VALUES))
        for length in draw(LENGTHS)
    ]


@given(series_lists())
def test_padding_keeps_every_series(series):
    x, lengths = pad(series)
    sequences = Sequences(x, lengths, torch.zeros(len(series), 1))
    for row, mask, one in zip(x, sequences.mask(), series, strict=True):
        np.testing.assert_array_equal(row[mask].numpy(), one)
        assert (row[~mask] == 0).all()


@given(series_lists(), series_lists(), series_lists())
def test_standardization_uses_training_steps_only(train, validation, test):
    parts = []
    for series in (train, validation, test):
        x, lengths = pad(series)
        # padding must not count, whatever is in it
        x = x.where(torch.arange(x.shape[1])[:, None] < lengths[:, None, None], 1e6)
        parts.append(Sequences(x, lengths, torch.zeros(len(series), 1)))
    task = SequenceTask(*parts, classes=()).standardized()
    steps = np.concatenate(train).astype(np.float64)
    mean, deviation = steps.mean(0), steps.std(0)
    deviation[deviation <= 1e-6 * np.abs(mean)] = 1
    for part, series in zip((task.train, task.validation, task.test), parts, strict=True):
        expected = (series.x.numpy() - mean) / deviation
        mask = series.mask().numpy()
        np.testing.assert_allclose(part.x.numpy()[mask], expected[mask], rtol=1e-5, atol=1e-5)
        assert (part.x.numpy()[~mask] == 0).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(2, 6))
def test_the_same_share_of_each_class_is_held_out(labels, every):
    labels = torch.tensor(labels)
    chosen = held_out(labels, every)
    for label in range(4):
        own = chosen[labels == label]
        assert own.tolist() == [i % every == 0 for i in range(len(own))]


ONE = {"x": torch.zeros(2, 3, 1), "lengths": torch.tensor([3, 2]), "y": torch.zeros(2, 1)}
NAN = torch.tensor([[[0.0], [0], [0]], [[0], [float("nan")], [0]]])
WRONG = [
    ({"x": torch.zeros(2, 3, 1).double()}, TypeError, "x is torch.float64"),
    ({"lengths": torch.tensor([3.0, 2])}, TypeError, "lengths is torch.float32"),
    ({"x": torch.zeros(2, 3)}, ValueError, "must have three, one and two dimensions"),
    ({"y": torch.zeros(3, 1)}, ValueError, "2, 2 and 3 sequences"),
    ({"y": torch.zeros(2, 0)}, ValueError, "is empty"),
    ({"x": torch.zeros(2, 0, 1)}, ValueError, "is empty"),
    ({"lengths": torch.tensor([3, 0])}, ValueError, "sequence 1 has the length 0"),
    ({"lengths": torch.tensor([4, 1])}, ValueError, "sequence 0 has the length 4"),
    ({"y": torch.zeros(2, 3)}, ValueError, "not one from 3"),
    ({"x": NAN}, ValueError, "1 of 2 sequences have a NaN.* number 1"),
    ({"y": torch.tensor([[float("inf")], [0]])}, ValueError, "the first is number 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_wrong_tensors_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        Sequences(**{**ONE, **change})


def test_no_sequence_is_an_error():
    with pytest.raises(ValueError, match="is empty: pass at least one sequence"):
        Sequences(torch.zeros(0, 3, 1), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1))
    with pytest.raises(ValueError, match="is empty"):
        Sequences(**ONE).subset(torch.tensor([False, False]))


def test_what_follows_the_end_may_be_nan():
    x = NAN.clone()
    Sequences(x, torch.tensor([3, 1]), ONE["y"])


PART, CLASSES = Sequences(**ONE), torch.tensor([[0], [2]])
LABELLED = Sequences(ONE["x"], ONE["lengths"], CLASSES)
WIDER = Sequences(torch.zeros(2, 3, 4), ONE["lengths"], ONE["y"])


@pytest.mark.parametrize(
    ("parts", "classes", "message"),
    [
        ((PART, PART, WIDER), (), "channels of train, validation and test differ"),
        ((PART, LABELLED, PART), (), "types of y"),
        ((PART,) * 3, ("a",), "pass int64 classes with names, or float32 values"),
        ((LABELLED,) * 3, (), "pass int64 classes with names, or float32 values"),
        ((LABELLED,) * 3, ("a", "b"), "classes from 0 to 2, with 2 names"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, classes, message):
    with pytest.raises(ValueError, match=message):
        SequenceTask(*parts, classes=classes)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ([], "there is no series"),
        ([np.ones((2, 1)), np.ones((0, 1))], r"series 1 has the shape \(0, 1\)"),
        ([np.ones((2, 1)), np.ones((2, 2))], r"series 1 has the shape \(2, 2\)"),
        ([np.ones(2)], r"series 0 has the shape \(2,\)"),
    ],
)
def test_series_that_do_not_fit_are_refused(series, message):
    with pytest.raises(ValueError, match=message):
        pad(series)


def test_holding_all_out_is_refused():
    with pytest.raises(ValueError, match="every=1 holds all out"):
        held_out(torch.zeros(3, dtype=torch.int64), 1)
