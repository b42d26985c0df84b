"""The Reuters corpus against the reader of the package that ships it, and wrong files."""

import importlib.metadata

import hypothesis.strategies as st
import lda.datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from implicit_solvers.problems.data.reuters import load_reuters, read_ldac


def test_the_corpus_is_what_the_package_reads():
    corpus = load_reuters()
    np.testing.assert_array_equal(corpus.counts.numpy(), lda.datasets.load_reuters())
    assert corpus.words == lda.datasets.load_reuters_vocab()
    numbered = [f"{number} {title}" for number, title in enumerate(corpus.titles)]
    assert numbered == list(lda.datasets.load_reuters_titles())
    assert corpus.counts.shape == (395, 4258) and corpus.counts.sum() == 84010


SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)


@given(counts=hnp.arrays(np.int64, SHAPES, elements=st.integers(0, 9)))
def test_counts_are_read_as_they_were_written(tmp_path_factory, counts):
    lines = []
    for row in counts:
        pairs = [f"{word}:{count}" for word, count in enumerate(row) if count]
        lines.append(" ".join([str(len(pairs)), *pairs]))
    path = tmp_path_factory.mktemp("ldac") / "corpus"
    path.write_text("\n".join(lines) + "\n")
    np.testing.assert_array_equal(read_ldac(path, counts.shape[1]).numpy(), counts)


OTHER_LINES = [
    "",
    "x",
    "2 0:1",
    "1 3:1",
    "1 -1:1",
    "1 0:-1",
    "1 0",
    "1 0:1:1",
    "1 0:x",
    "2 0:1 0:2",
]


@pytest.mark.parametrize("line", [*OTHER_LINES, "1 0:99999999999999999999"])
def test_lines_that_are_no_documents_are_refused(tmp_path, line):
    path = tmp_path / "corpus"
    path.write_text(f"1 0:1\n{line}\n")
    with pytest.raises(ValueError, match="line 2 of .*corpus is no document of 3 words"):
        read_ldac(path, 3)


def test_the_package_may_be_missing_or_without_the_files(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install 'implicit-solvers.problems.'"):
        load_reuters()
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"no file reuters\.tokens"):
        load_reuters()
