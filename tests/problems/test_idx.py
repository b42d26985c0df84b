"""Digits: idx files against hand-made bytes and NumPy, MNIST folders, scikit-learn's images."""

import gzip
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp

from implicit_solvers.problems.data.digits import load_digits, load_mnist
from implicit_solvers.problems.data.idx import read_idx

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx_bytes(array):
    """The format, by `struct` alone."""
    code = CODES[array.dtype.str[1:]]
    letter = {8: "B", 9: "b", 11: "h", 12: "i", 13: "f", 14: "d"}[code]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + struct.pack(f">{array.size}{letter}", *array.ravel().tolist())


ARRAYS = st.sampled_from(list(CODES)).flatmap(
    lambda name: hnp.arrays(
        np.dtype(name),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements={"allow_nan": False} if name.startswith("f") else None,
    )
)


@given(array=ARRAYS, compressed=st.booleans())
def test_arrays_of_all_types_are_read_as_they_were(tmp_path_factory, array, compressed):
    path = tmp_path_factory.mktemp("idx") / ("array.gz" if compressed else "array")
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if compressed else content)
    read = read_idx(path)
    assert read.dtype == array.dtype and read.dtype.isnative
    assert read.shape == array.shape
    np.testing.assert_array_equal(read, array)


GOOD = idx_bytes(np.arange(6, dtype="u1").reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no idx file"),
        (b"\0\0\x08", "no idx file"),
        (b"\x89PNG\r\n", "no idx file.*89 50 4e 47"),
        (b"\0\0\x0a\x01\0\0\0\x01a", "no idx file"),
        (GOOD[:9], "ends in its header, after 9 of 12 bytes"),
        (GOOD[:-1], "17 bytes where the shape.*needs 18"),
        (GOOD + b"\0", "19 bytes where the shape.*needs 18"),
    ],
    ids=["empty", "short", "image", "type", "header", "truncated", "longer"],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path)


@pytest.mark.parametrize(
    "content", [GOOD, gzip.compress(GOOD)[:-9], b""], ids=["plain", "truncated", "empty"]
)
def test_other_compressed_files_are_refused(tmp_path, content):
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="file.gz is no (gzip|idx) file"):
        read_idx(path)


def mnist_folder(folder, train=(4, 5, 5), test=(3, 5, 5), labels=4):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, train, dtype="u1")
    files = {
        "train-images-idx3-ubyte": images,
        "train-labels-idx1-ubyte": np.arange(labels, dtype="u1"),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, test, dtype="u1"),
        "t10k-labels-idx1-ubyte": np.arange(test[0], dtype="u1"),
    }
    for name, array in files.items():
        if name.startswith("t10k"):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / name).write_bytes(idx_bytes(array))
    return images


def test_a_folder_with_mnist(tmp_path):
    images = mnist_folder(tmp_path)
    digits = load_mnist(tmp_path)
    np.testing.assert_array_equal(digits.train.numpy(), images.reshape(4, 25) / np.float32(255))
    assert digits.side == 5 and digits.test.shape == (3, 25)
    assert digits.train.dtype == torch.float32 and digits.train_labels.dtype == torch.int64
    assert digits.train_labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": 3}, "4 images, its labels the shape"),
        ({"train": (4, 5, 6)}, "must hold bytes .images, side, side."),
        ({"train": (4, 25)}, "must hold bytes .images, side, side."),
        ({"test": (3, 6, 6)}, "must have one size"),
        ({"train": (0, 5, 5), "labels": 0}, "holds no pixels"),
    ],
    ids=["labels", "oblong", "flat", "sizes", "none"],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, changes, message):
    mnist_folder(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_mnist(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    mnist_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte or"):
        load_mnist(tmp_path)


def test_the_digits_of_scikit_learn():
    digits, bunch = load_digits(), sklearn.datasets.load_digits()
    np.testing.assert_array_equal(digits.test.numpy(), bunch.data[::4] / 16)
    np.testing.assert_array_equal(digits.test_labels.numpy(), bunch.target[::4])
    rest = np.arange(1797) % 4 != 0
    np.testing.assert_array_equal(digits.train.numpy(), bunch.data[rest] / 16)
    np.testing.assert_array_equal(digits.train_labels.numpy(), bunch.target[rest])
