"""Small folders and files in the layouts in which data sets are published."""

import gzip
import math
import pickle
import struct
import wave

import numpy as np
from PIL import Image

from implicit_solvers.problems.experiments.data.uci_har import SIGNALS

ALPHABETS = {
    "images_background": {"Greek": 9, "Latin": 5},
    "images_evaluation": {"Tifinagh": 4, "Glagolitic": 3},
}
DRAWERS = 3
CLASSES = {"train": ["n01", "n02", "n03"], "val": ["n04", "n05"], "test": ["n06", "n07"]}
SIZES = {"n01": 5, "n02": 6, "n03": 4, "n04": 4, "n05": 4, "n06": 4, "n07": 4}
ACTIVITIES = ["WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING"]


def draw(number, drawer):
    """A 105 × 105 drawing, black on white, that no other class or drawer shares."""
    image = Image.new("1", (105, 105), 1)
    row, column = 5 + 4 * number, 10 + 20 * drawer
    image.paste(0, (column, row, column + 8, row + 4))
    return image


def make_omniglot(path):
    """Write 21 characters of four alphabets, drawn by three people each; return ``path``."""
    number = 0
    for part, alphabets in ALPHABETS.items():
        for alphabet, count in alphabets.items():
            for character in range(1, count + 1):
                folder = path / part / alphabet / f"character{character:02}"
                folder.mkdir(parents=True)
                for drawer in range(DRAWERS):
                    name = f"{number + 1:04}_{drawer + 1:02}.png"
                    draw(number, drawer).save(folder / name)
                number += 1
        (path / part / ".DS_Store").write_bytes(b"not a folder")
    return path


def make_mini_imagenet(path):
    """Write seven classes of photographs, each of one colour, and their lists; return ``path``."""
    (path / "images").mkdir(parents=True)
    for part, labels in CLASSES.items():
        rows = ["filename,label"]
        for label in labels:
            for i in range(SIZES[label]):
                grey = 20 * int(label[1:]) + i
                colour = (grey, 255 - grey, 60)
                name = f"{label}{i:08}.jpg"
                Image.new("RGB", (100 + i, 90), colour).save(path / "images" / name, quality=95)
                rows.append(f"{name},{label}")
        (path / f"{part}.csv").write_text("\r\n".join(rows) + "\r\n")
    return path


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("  ".join(f"{value: .7e}" for value in row) for row in rows) + "\n")


def make_har(path):
    """Twelve windows of six persons to learn from, six of others; five steps each."""
    generator = np.random.default_rng(0)
    for part, count, first in (("train", 12, 1), ("test", 6, 20)):
        for name in SIGNALS:
            signal = generator.normal(3, 2, (count, 5))
            write_table(path / part / "Inertial Signals" / f"{name}_{part}.txt", signal)
        numbers = np.arange(count)[:, None]
        write_table(path / part / f"y_{part}.txt", 1 + numbers % 6)
        write_table(path / part / f"subject_{part}.txt", first + numbers // 2)
    named = "\n".join(f"{i} {name}" for i, name in enumerate(ACTIVITIES, 1))
    (path / "activity_labels.txt").write_text(named + "\n")
    return path


def write_wav(path, samples, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.asarray(samples) * (2**15 - 1)).astype("<i2").tobytes())


def make_speech(path):
    """Three words, three recordings of each, of one second, of less, and of half a second."""
    time = np.arange(16000) / 16000
    for word, frequency in {"yes": 400, "no": 900, "tree": 2000}.items():
        for number in range(3):
            tone = (0.2 + 0.1 * number) * np.sin(2 * math.pi * frequency * time)
            write_wav(path / word / f"{number}.wav", tone[: 16000 - 4000 * number])
    write_wav(path / "_background_noise_" / "long.wav", np.zeros(50))
    for part, number in {"validation": 1, "testing": 2}.items():
        lines = [f"{word}/{number}.wav" for word in ("no", "tree", "yes")]
        (path / f"{part}_list.txt").write_text("\n".join(lines) + "\n")
    return path


IDX_CODES = {"u1": (8, "B"), "i1": (9, "b"), "i2": (11, "h"), "i4": (12, "i")}
IDX_CODES |= {"f4": (13, "f"), "f8": (14, "d")}


def idx_bytes(array):
    """The format, by `struct` alone."""
    code, letter = IDX_CODES[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + struct.pack(f">{array.size}{letter}", *array.ravel().tolist())


def make_mnist(path, train=(10, 4, 4), test=(10, 4, 4), labels=10):
    """Images of random pixels, half of them of the digit 0, half of 1; return ``path``."""
    path.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for part, shape, count in (("train", train, labels), ("t10k", test, test[0])):
        images = rng.integers(0, 256, shape, dtype="u1")
        digits = (np.arange(count) >= 5).astype("u1")
        for kind, array in {"images-idx3": images, "labels-idx1": digits}.items():
            content = idx_bytes(array)
            if part == "train":
                (path / f"train-{kind}-ubyte").write_bytes(content)
            else:
                (path / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    return path


def watch_content(count=10, length=5, **changes):
    """Ten series of as many subjects, of two classes."""
    series = [np.full((length, 2), float(i)) for i in range(count)]
    content = {"X": series, "y": np.arange(count) % 2, "subject": 1 + np.arange(count)}
    return {**content, "y_labels": ["a", "b"], **changes}


def write_watch(path, content, protocol=2):
    """A file in numpy's format whose object array is pickled as the package's file is."""
    with open(path, "wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(content, file, protocol=protocol)
    return path
