"""News of 1996 and 1997 as bags of words: the Reuters corpus that the package ``lda`` ships."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

__all__ = ["Corpus", "Documents", "halves", "load_reuters", "read_ldac", "split"]

# Every fifth document is a test document, the one after it is for the choice of settings; the words
# of both are split with this seed: not what varies.
TEST_EVERY = 5
SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents as counts of words, int64 ``(documents, words)``, with a title for each."""

    counts: Tensor
    words: tuple[str, ...]
    titles: tuple[str, ...]


def load_reuters() -> Corpus:
    """Return 395 documents with 84,010 of 4,258 words, from the files of the package ``lda``.

    The files are found through the metadata of the installed package, which is not imported.

    Examples
    --------
    >>> corpus = load_reuters()
    >>> tuple(corpus.counts.shape), corpus.words[:3]
    ((395, 4258), ('church', 'pope', 'years'))
    >>> corpus.titles[0]
    'UK: Prince Charles spearheads British royal revolution. LONDON 1996-08-20'
    """
    words = tuple(_package_file("reuters.tokens").read_text(encoding="utf-8").split())
    lines = _package_file("reuters.titles").read_text(encoding="utf-8").splitlines()
    titles = tuple(line.partition(" ")[2].strip() for line in lines)
    path = _package_file("reuters.ldac")
    counts = read_ldac(path, len(words))
    if len(titles) != len(counts):
        raise ValueError(f"{path} has {len(counts)} documents, but there are {len(titles)} titles")
    return Corpus(counts, words, titles)


def _package_file(name: str) -> Path:
    try:
        files = importlib.metadata.files("lda") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            "the Reuters corpus is a part of the package lda: pip install "
            "'implicit-solvers[problems]'",
            name="lda",
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if file.name == name and path.is_file():
            return path
    raise FileNotFoundError(
        f"the installed package lda has no file {name}: pip install --force-reinstall lda"
    )


def read_ldac(path: Path, words: int) -> Tensor:
    """Return the counts, int64 ``(documents, words)``, in a file of Blei's LDA-C format.

    A line is a document: the number of its different words, and ``word:count`` for each, with
    words numbered from 0. Source: Blei, "lda-c" (2003).
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    counts = np.zeros((len(lines), words), dtype=np.int64)
    for row, line in enumerate(lines):
        try:
            distinct, *pairs = line.split()
            entries = np.array([pair.split(":") for pair in pairs], np.int64).reshape(-1, 2)
            fits = int(distinct) == len(np.unique(entries[:, 0])) == len(entries)
            fits = fits and bool((entries >= 0).all() and (entries[:, 0] < words).all())
        except (ValueError, OverflowError):
            fits = False
        if not fits:
            raise ValueError(
                f"line {row + 1} of {path} is no document of {words} words in LDA-C's format: "
                f"{line[:40]!r}"
            )
        counts[row, entries[:, 0]] = entries[:, 1]
    return torch.from_numpy(counts)


@dataclass(frozen=True, eq=False)
class Documents:
    """The corpus, split: counts to train on, held-out words to infer from and to score."""

    train: Tensor
    observed: Tensor
    scored: Tensor


def split(corpus: Corpus, validation: bool = False) -> Documents:
    """Hold out every fifth document, and split its words into halves.

    With ``validation``, the test documents are left out, and every fifth document of another kind
    is held out: settings are chosen on these.
    """
    fold = torch.arange(len(corpus.counts)) % TEST_EVERY
    held_out = fold == int(validation)
    observed, scored = halves(corpus.counts[held_out], SPLIT_SEED)
    train = corpus.counts[fold > int(validation)]
    return Documents(*(part.to(torch.float32) for part in (train, observed, scored)))


def halves(counts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Split the words of each document, ``counts (documents, words)``, by chance into two halves.

    Of an odd number of words the second half has one more.
    """
    generator = Generator().manual_seed(seed)
    observed = torch.zeros_like(counts)
    for row, document in enumerate(counts):
        words = torch.repeat_interleave(torch.arange(len(document)), document)
        chosen = words[torch.randperm(len(words), generator=generator)[: len(words) // 2]]
        observed[row] = torch.bincount(chosen, minlength=len(document))
    return observed, counts - observed
