"""Files are read as they were written; corpora against their packages' readers."""

import gzip
import importlib.metadata
import sys

import hypothesis.strategies as st
import lda.datasets
import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp

from implicit_solvers.problems.experiments.data.digits import load_digits, load_mnist
from implicit_solvers.problems.experiments.data.glyphs import load_strokes
from implicit_solvers.problems.experiments.data.idx import read_idx
from implicit_solvers.problems.experiments.data.reuters import load_reuters, read_ldac
from implicit_solvers.problems.experiments.data.seglearn_watch import load_watch
from implicit_solvers.problems.experiments.data.speech_commands import read_wav
from tests.problems.experiments.data.made_folders import (
    IDX_CODES,
    idx_bytes,
    make_mnist,
    write_wav,
)

ARRAYS = st.sampled_from(list(IDX_CODES)).flatmap(
    lambda name: hnp.arrays(
        np.dtype(name),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements={"allow_nan": False} if name.startswith("f") else None,
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@given(array=ARRAYS, compressed=st.booleans())
def test_idx(folder, array, compressed):
    path = folder / ("array.gz" if compressed else "array")
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if compressed else content)
    read = read_idx(path)
    assert read.dtype == array.dtype and read.dtype.isnative
    assert read.shape == array.shape
    np.testing.assert_array_equal(read, array)


SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)


@given(counts=hnp.arrays(np.int64, SHAPES, elements=st.integers(0, 9)))
def test_ldac(folder, counts):
    lines = []
    for row in counts:
        pairs = [f"{word}:{count}" for word, count in enumerate(row) if count]
        lines.append(" ".join([str(len(pairs)), *pairs]))
    (folder / "corpus").write_text("\n".join(lines) + "\n")
    np.testing.assert_array_equal(read_ldac(folder / "corpus", counts.shape[1]).numpy(), counts)


def test_wav(folder):
    samples = np.array([0.0, 0.5, -0.5, 1, -1])
    write_wav(folder / "a.wav", samples)
    # a sample has 16 bits
    np.testing.assert_allclose(read_wav(folder / "a.wav"), samples, atol=1e-4)


def test_a_folder_with_mnist(tmp_path):
    digits = load_mnist(make_mnist(tmp_path, train=(4, 5, 5), test=(8, 5, 5), labels=4))
    images = read_idx(tmp_path / "train-images-idx3-ubyte")
    np.testing.assert_array_equal(digits.train.numpy(), images.reshape(4, 25) / np.float32(255))
    assert digits.side == 5 and digits.test.shape == (8, 25)
    assert digits.train.dtype == torch.float32 and digits.train_labels.dtype == torch.int64
    assert digits.train_labels.tolist() == [0] * 4
    assert digits.test_labels.tolist() == [0] * 5 + [1] * 3


def test_the_digits_of_scikit_learn():
    digits, bunch = load_digits(), sklearn.datasets.load_digits()
    test = np.arange(1797) % 4 == 0
    for part, chosen in (("train", ~test), ("test", test)):
        np.testing.assert_array_equal(getattr(digits, part), bunch.data[chosen] / 16)
        np.testing.assert_array_equal(getattr(digits, f"{part}_labels"), bunch.target[chosen])


def test_the_corpus_is_what_the_package_reads():
    corpus = load_reuters()
    np.testing.assert_array_equal(corpus.counts.numpy(), lda.datasets.load_reuters())
    assert corpus.words == lda.datasets.load_reuters_vocab()
    numbered = [f"{number} {title}" for number, title in enumerate(corpus.titles)]
    assert numbered == list(lda.datasets.load_reuters_titles())
    assert corpus.counts.shape == (395, 4258) and corpus.counts.sum() == 84010


PACKAGES = [
    (load_reuters, "problems", "no file reuters.tokens"),
    (load_watch, "problems", "seglearn has no file watch_dataset.npy"),
]


@pytest.mark.parametrize(("load", "extra", "message"), PACKAGES)
def test_the_package_may_be_missing_or_without_the_file(load, extra, message, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'implicit-solvers\[{extra}\]'"):
        load()
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    with pytest.raises(FileNotFoundError, match=message):
        load()


def test_without_hershey_fonts_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "HersheyFonts", None)
    with pytest.raises(ImportError, match=r"pip install 'implicit-solvers\[problems\]'"):
        load_strokes()
