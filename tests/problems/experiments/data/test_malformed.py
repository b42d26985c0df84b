"""Damaged folders and files: one table of (reader, damage, what the error names)."""

import gzip
import os
import shutil
from functools import partial

import numpy as np
import pytest

from implicit_solvers.problems.experiments.data.class_images import read_image
from implicit_solvers.problems.experiments.data.digits import load_mnist
from implicit_solvers.problems.experiments.data.idx import read_idx
from implicit_solvers.problems.experiments.data.mini_imagenet import load_mini_imagenet
from implicit_solvers.problems.experiments.data.omniglot import load_omniglot
from implicit_solvers.problems.experiments.data.pixel_sequences import load_mnist_sequences
from implicit_solvers.problems.experiments.data.reuters import read_ldac
from implicit_solvers.problems.experiments.data.seglearn_watch import load_watch_file
from implicit_solvers.problems.experiments.data.speech_commands import load_speech_commands
from implicit_solvers.problems.experiments.data.uci_har import load_uci_har
from tests.problems.experiments.data import made_folders
from tests.problems.experiments.data.made_folders import (
    make_mnist,
    watch_content,
    write_table,
)

# How the folder is made, and how it is read.
READERS = {
    "omniglot": (made_folders.make_omniglot, load_omniglot),
    "photos": (made_folders.make_mini_imagenet, load_mini_imagenet),
    "har": (made_folders.make_har, load_uci_har),
    "har-2": (made_folders.make_har, partial(load_uci_har, binary=True)),
    "speech": (made_folders.make_speech, load_speech_commands),
    "words": (made_folders.make_speech, partial(load_speech_commands, words=("yes", "maybe"))),
    "mnist": (make_mnist, load_mnist),
    "pixels": (make_mnist, load_mnist_sequences),
    "image": (None, lambda folder: read_image(folder / "x", 3, colour=False)),
    "idx": (None, lambda folder: read_idx(folder / "file")),
    "idx.gz": (None, lambda folder: read_idx(folder / "file.gz")),
    "ldac": (None, lambda folder: read_ldac(folder / "corpus", 3)),
    "watch": (None, lambda folder: load_watch_file(folder / "watch.npy", window=2)),
}


def put(name, content=""):
    """Write a file, over what is there."""
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(content)


def edit(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def add(name, line):
    return edit(name, lambda content: content + line.encode() + b"\n")


def cut(name, size):
    return edit(name, lambda content: content[:size])


def remove(*names):
    def harm(folder):
        for path in (folder / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return harm


def empty(name):
    return lambda folder: (remove(name)(folder), (folder / name).mkdir())


def no_words(folder):
    remove("yes", "no", "tree")(folder)


def watch(content, protocol=2):
    return lambda folder: made_folders.write_watch(folder / "watch.npy", content, protocol)


class RunsACommand:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


class Evaluates:
    def __reduce__(self):
        return eval, ("1",)


class Decompresses:
    def __reduce__(self):
        import _codecs

        return _codecs.encode, ("x", "rot13")


GAP = watch_content()
GAP["X"][2][3, 1] = np.nan
LATIN = "images_background/Latin/character02"
JPG = "images/n0500000002.jpg"
PNG = f"{LATIN}/0011_01.png"
IDX = made_folders.idx_bytes(np.arange(6, dtype="u1").reshape(2, 3))
LOWER = "\n".join(f"{i} {name.lower()}" for i, name in enumerate(made_folders.ACTIVITIES, 1))
MISSING, VALUE = FileNotFoundError, ValueError
TABLE = [
    ("omniglot", remove("."), MISSING, "there is no folder"),
    ("omniglot", remove("images_evaluation"), MISSING, "images_evaluation.zip"),
    ("omniglot", remove("images_background"), MISSING, "images_background: unpack"),
    ("omniglot", empty("images_background"), VALUE, "images_background has no folders"),
    ("omniglot", empty("images_evaluation/Tifinagh/character03"), VALUE,
     "Tifinagh/character03 has no drawings"),
    ("omniglot", cut(PNG, 60), VALUE, f"{PNG} is no image, or a part of one"),
    ("omniglot", put(PNG, "<html>not found</html>"), VALUE, f"{PNG} is no image.*copy the file"),
    ("photos", remove("."), MISSING, "there is no folder"),
    ("photos", remove("images"), MISSING, "images: the images belong there"),
    ("photos", remove("val.csv"), MISSING, "there is no list .*val.csv"),
    ("photos", put("test.csv"), VALUE, r"test.csv begins with \[\]"),
    ("photos", put("test.csv", "a,b\nc,d\n"), VALUE, "must be filename,label"),
    ("photos", put("test.csv", b"\xff\xfe\xfa"), VALUE, "no text file"),
    ("photos", put("test.csv", "filename,label\n"), VALUE, "lists no images"),
    ("photos", add("val.csv", "n0400000000.jpg"), VALUE,
     "line 10 of .*val.csv lacks a filename or a label"),
    ("photos", add("val.csv", "n0400000000.jpg,n04"), VALUE,
     "line 10 of .*val.csv lists n0400000000.jpg again"),
    ("photos", add("test.csv", "n0400000000.jpg,n06"), VALUE,
     "n0400000000.jpg is in val.csv and in test.csv"),
    ("photos", add("test.csv", "other.jpg,n01"), VALUE,
     "the class n01 is in train.csv and in test.csv"),
    ("photos", add("test.csv", "other.jpg,n06"), MISSING,
     "there is no image .*other.jpg, which test.csv lists"),
    ("photos", cut(JPG, 3), VALUE, f"{JPG} is no image, or a part of one"),
    ("photos", cut(JPG, 500), VALUE, f"{JPG} is no image, or a part of one"),
    ("image", None, MISSING, "there is no file .*x"),
    ("har", add("train/y_train.txt", "1"), VALUE, "they must be of as many windows"),
    ("har", edit("train/y_train.txt", lambda b: b.replace(b"6", b"7")), VALUE,
     r"activities \[.*7.*\], which have no name"),
    ("har", put("train/y_train.txt", "one\n"), VALUE, "y_train.txt is no table of numbers"),
    ("har", put("train/y_train.txt", "\n"), VALUE, "y_train.txt holds no numbers"),
    ("har", remove("train/y_train.txt"), MISSING, "y_train.txt"),
    ("har", remove("activity_labels.txt"), MISSING, "activity_labels.txt"),
    ("har", put("activity_labels.txt"), VALUE, "names no activity"),
    ("har", put("activity_labels.txt", "one WALKING"), VALUE, "expected a number and a name"),
    ("har", lambda f: write_table(f / "train/subject_train.txt", np.ones((12, 1))), VALUE,
     r"training subjects \[1\]"),
    ("har-2", put("activity_labels.txt", LOWER), VALUE, "which HAR-2 needs"),
    ("words", None, VALUE, r"no folders of the words \['maybe'\]"),
    ("speech", lambda f: made_folders.write_wav(f / "yes/0.wav", np.zeros(100), rate=8000), VALUE,
     "1 channels of 16 bits at 8000 Hz: expected"),
    ("speech", put("yes/0.wav", "hello"), VALUE, "0.wav is no recording in the wav format"),
    ("speech", put("testing_list.txt"), VALUE, "no recording for testing"),
    ("speech", remove("validation_list.txt"), MISSING, "validation_list.txt"),
    ("speech", no_words, MISSING, "no folder of a word"),
    ("mnist", lambda f: make_mnist(f, labels=9), VALUE, "10 images, its labels the shape"),
    ("mnist", lambda f: make_mnist(f, train=(10, 5, 6)), VALUE, "hold bytes .images, side, side."),
    ("mnist", lambda f: make_mnist(f, train=(10, 25)), VALUE, "hold bytes .images, side, side."),
    ("mnist", lambda f: make_mnist(f, test=(3, 6, 6)), VALUE, "must have one size"),
    ("mnist", lambda f: make_mnist(f, train=(0, 4, 4), labels=0), VALUE, "holds no pixels"),
    ("mnist", remove("t10k-labels-idx1-ubyte.gz"), MISSING, "t10k-labels-idx1-ubyte or"),
    ("pixels", remove("."), MISSING, "train-images-idx3-ubyte"),
    ("idx", put("file"), VALUE, "no idx file"),
    ("idx", put("file", b"\0\0\x08"), VALUE, "no idx file"),
    ("idx", put("file", b"\x89PNG\r\n"), VALUE, "no idx file.*89 50 4e 47"),
    ("idx", put("file", b"\0\0\x0a\x01\0\0\0\x01a"), VALUE, "no idx file"),
    ("idx", put("file", IDX[:9]), VALUE, "ends in its header, after 9 of 12 bytes"),
    ("idx", put("file", IDX[:-1]), VALUE, "17 bytes where the shape.*needs 18"),
    ("idx", put("file", IDX + b"\0"), VALUE, "19 bytes where the shape.*needs 18"),
    ("idx.gz", put("file.gz", IDX), VALUE, "file.gz is no gzip file"),
    ("idx.gz", put("file.gz", gzip.compress(IDX)[:-9]), VALUE, "file.gz is no gzip file"),
    ("idx.gz", put("file.gz"), VALUE, "file.gz is no (gzip|idx) file"),
    *(("ldac", put("corpus", f"1 0:1\n{line}\n"), VALUE,
       "line 2 of .*corpus is no document of 3 words")
      for line in ("", "x", "2 0:1", "1 3:1", "1 -1:1", "1 0:-1", "1 0", "1 0:1:1", "1 0:x",
                       "2 0:1 0:2", "1 0:99999999999999999999")),
    *(("watch", watch({"first": RunsACommand(), **watch_content()}, protocol), VALUE,
       "watch.npy is refused: its pickle asks for .*mkdir")
      for protocol in (0, 2, 5)),
    ("watch", watch(Evaluates()), VALUE, "__builtin__.eval, which is no part of an array"),
    ("watch", watch(Decompresses()), VALUE, "encodes as 'rot13'"),
    ("watch", watch([1, 2]), VALUE, "holds list, not a dictionary"),
    ("watch", watch({"X": []}), VALUE, "holds no series X with labels y and subjects"),
    ("watch", watch(watch_content(y=np.arange(3))), VALUE, "holds no series X"),
    ("watch", watch(watch_content(subject=["?"] * 10)), VALUE, "holds no series X"),
    ("watch", watch(watch_content(length=1)), VALUE, "window=2 is longer than every series"),
    ("watch", lambda f: (watch(watch_content())(f), cut("watch.npy", 200)(f)), VALUE,
     "no pickled array"),
    ("watch", put("watch.npy", "hello"), VALUE, "no pickled array"),
    ("watch", watch(GAP), VALUE, "1 of 20 sequences have a NaN.*number 5"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reader", "harm", "error", "message"), TABLE, ids=[f"{i}-{r[0]}" for i, r in enumerate(TABLE)]
)
def test_what_is_damaged_is_named(reader, harm, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, load = READERS[reader]
    folder = tmp_path / "data"
    folder.mkdir()
    if make is not None:
        make(folder)
    if harm is not None:
        harm(folder)
    with pytest.raises(error, match=message):
        load(folder)
    assert {path.name for path in tmp_path.iterdir()} <= {"data"}  # no pickle has run
