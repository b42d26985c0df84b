"""Adding, copying and pixels: what a sequence says and what is to be told of it."""

import gzip
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import given

from implicit_solvers.problems.data.adding import generate_adding
from implicit_solvers.problems.data.copying import generate_copying
from implicit_solvers.problems.data.pixel_sequences import (
    load_digit_sequences,
    load_mnist_sequences,
)


@given(steps=st.integers(2, 30), seed=st.integers(0, 99))
def test_adding_has_a_mark_in_each_half(steps, seed):
    task = generate_adding(steps, train=4, validation=2, test=3, seed=seed)
    for part, count in ((task.train, 4), (task.validation, 2), (task.test, 3)):
        assert part.x.shape == (count, steps, 2) and part.lengths.tolist() == [steps] * count
        for x, y in zip(part.x.numpy(), part.y.numpy(), strict=True):
            first, second = np.flatnonzero(x[:, 1])
            assert first < steps // 2 <= second
            assert y[0] == pytest.approx(x[first, 0] + x[second, 0], rel=1e-6)
    again = generate_adding(steps, train=4, validation=2, test=3, seed=seed)
    assert (again.test.x == task.test.x).all()


def test_adding_marks_every_step_and_a_constant_has_the_error_of_the_docs():
    task = generate_adding(6, train=6000, validation=1, test=1)
    assert ((task.train.x[..., 1].mean(0) - 1 / 3).abs() < 0.04).all()
    assert abs(task.train.y.var().item() - 1 / 6) < 0.01


@given(
    delay=st.integers(1, 9), symbols=st.integers(1, 5), copied=st.integers(1, 6), seed=st.integers()
)
def test_copying_asks_for_what_it_showed(delay, symbols, copied, seed):
    seed %= 1000
    task = generate_copying(delay, 3, 1, 1, symbols=symbols, copied=copied, seed=seed)
    x, y = task.train.x, task.train.y
    assert x.shape == (3, delay + 2 * copied, symbols + 2) and (x.sum(-1) == 1).all()
    shown = x.argmax(-1)
    blank, signal = symbols, symbols + 1
    assert (shown[:, :copied] == y).all()
    middle = [blank] * (delay - 1) + [signal] + [blank] * copied
    assert shown[:, copied:].tolist() == [middle] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: generate_adding(1, 1, 1, 1), "steps=1"),
        (lambda: generate_adding(5, 1, 0, 1), "validation=0"),
        (lambda: generate_copying(0, 1, 1, 1), "delay=0 is not positive"),
        (lambda: generate_copying(1, 1, 1, 0), "test=0 is not positive"),
        (lambda: load_digit_sequences(0), "channels=0 does not divide the 64 pixels"),
        (lambda: load_digit_sequences(7), "channels=7 does not divide the 64 pixels"),
    ],
)
def test_unfit_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("channels", [1, 8])
def test_digits_are_read_in_rows(channels):
    task = load_digit_sequences(channels)
    bunch = sklearn.datasets.load_digits()
    test = bunch.data[::4].reshape(-1, 64 // channels, channels) / 16
    np.testing.assert_array_equal(task.test.x.numpy(), test.astype(np.float32))
    assert task.test.y[:, 0].tolist() == bunch.target[::4].tolist()
    assert len(task.train) + len(task.validation) + len(task.test) == len(bunch.data)
    counts = task.validation.y.flatten().bincount()
    assert ((counts - len(task.validation) / 10).abs() <= 2).all()


def idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_mnist_of_a_folder(tmp_path):
    images = np.arange(10 * 16, dtype=np.uint8).reshape(10, 4, 4)
    labels = np.repeat([0, 1], 5).astype(np.uint8)
    for part in ("train", "t10k"):
        idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    task = load_mnist_sequences(tmp_path, channels=4)
    assert task.validation.y[:, 0].tolist() == [0, 1] and len(task.train) == 8
    expected = torch.from_numpy(images).float() / 255
    assert (task.test.x == expected).all()
    assert load_mnist_sequences(tmp_path).test.x.shape == (10, 16, 1)
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load_mnist_sequences(tmp_path / "elsewhere")
