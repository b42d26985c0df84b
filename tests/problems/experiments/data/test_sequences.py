"""Padded sequences: statistics against numpy, splits without overlap."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp

from implicit_solvers.problems.experiments.data.sequences import (
    Sequences,
    SequenceTask,
    held_out,
    pad,
)

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


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 1e30])
def test_what_follows_the_end_makes_no_difference(padding):
    def standardized(padding):
        x = torch.tensor([[[0.0], [1], [5]], [[3], [padding], [padding]]])
        part = Sequences(x, torch.tensor([3, 1]), torch.zeros(2, 1))
        return SequenceTask(part, part, part, classes=()).standardized().train.x

    assert standardized(0.0)[1, 1:].tolist() == [[0.0], [0.0]]
    torch.testing.assert_close(standardized(padding), standardized(0.0), rtol=0, atol=0)
