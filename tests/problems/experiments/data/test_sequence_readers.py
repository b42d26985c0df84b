"""Sequence tasks: the shapes, labels and classes of each reader, and what a sequence says."""

import math
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import sklearn.datasets
import torch
from hypothesis import given

from implicit_solvers.problems.experiments.data import pixel_sequences as pixels
from implicit_solvers.problems.experiments.data.adding import generate_adding
from implicit_solvers.problems.experiments.data.copying import generate_copying
from implicit_solvers.problems.experiments.data.package_files import package_file
from implicit_solvers.problems.experiments.data.seglearn_watch import load_watch, load_watch_file
from implicit_solvers.problems.experiments.data.speech_commands import load_speech_commands, log_mel
from implicit_solvers.problems.experiments.data.uci_har import SIGNALS, load_uci_har
from tests.problems.experiments.data import made_folders
from tests.problems.experiments.data.made_folders import ACTIVITIES, make_har, make_mnist


def watch(path, protocol):
    content = np.array(made_folders.watch_content(), dtype=object)
    path = made_folders.write_watch(path / "watch.npy", content, protocol)
    return load_watch_file(path, window=2)


def speech(path, words=None):
    return load_speech_commands(made_folders.make_speech(path), words)


HAR_2 = ("sitting, laying, upstairs", "standing, walking, downstairs")
# What a folder holds: steps and channels; labels of the three parts; the names of the classes.
TASKS = {
    # the persons are 1 to 6, with two windows each: 1 and 6 are the validation part
    "har": (lambda path: load_uci_har(make_har(path)), (5, 9),
            ([2, 3, 4, 5, 0, 1, 2, 3], [0, 1, 4, 5], list(range(6))), tuple(ACTIVITIES)),
    "har-2": (lambda path: load_uci_har(make_har(path), binary=True), (5, 9),
              ([1, 0, 1, 0, 1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0, 1, 0]), HAR_2),
    "speech": (speech, (98, 32), ([0, 1, 2],) * 3, ("no", "tree", "yes")),
    "speech, one word": (partial(speech, words=("yes",)), (98, 32), ([1, 1, 0],) * 3,
                         ("yes", "unknown")),
    "watch, protocol 2": (partial(watch, protocol=2), (2, 2),
                          ([0, 0, 1, 1] * 3, [0, 0, 1, 1], [0, 0, 1, 1]), ("a", "b")),
    "watch, protocol 4": (partial(watch, protocol=4), (2, 2),
                          ([0, 0, 1, 1] * 3, [0, 0, 1, 1], [0, 0, 1, 1]), ("a", "b")),
    "mnist": (lambda path: pixels.load_mnist_sequences(make_mnist(path)), (16, 1),
              ([0] * 4 + [1] * 4, [0, 1], [0] * 5 + [1] * 5), ("0", "1")),
    "mnist, rows": (lambda path: pixels.load_mnist_sequences(make_mnist(path), channels=4), (4, 4),
                    ([0] * 4 + [1] * 4, [0, 1], [0] * 5 + [1] * 5), ("0", "1")),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_labels_shapes_and_classes(name, tmp_path):
    load, size, labels, classes = TASKS[name]
    task = load(tmp_path)
    parts = (task.train, task.validation, task.test)
    assert tuple(part.y[:, 0].tolist() for part in parts) == labels
    assert task.classes == classes
    assert task.train.x.shape == (len(labels[0]), *size)


def test_values_are_those_of_the_files(tmp_path):
    """Of HAR, the test's windows; of speech, the silence that was filled in; of pixels, all."""
    task = load_uci_har(make_har(tmp_path / "har"))
    signal = np.loadtxt(tmp_path / "har/train/Inertial Signals/body_gyro_y_train.txt")[2:10]
    scaled = (signal - signal.mean()) / signal.std()
    # float32
    np.testing.assert_allclose(task.train.x[..., SIGNALS.index("body_gyro_y")], scaled, atol=1e-5)

    steps = speech(tmp_path / "speech").test.x
    assert (steps[:, 60:] == steps[:, -1:]).all()

    images = pixels.load_mnist_sequences(make_mnist(tmp_path / "mnist"), channels=1).test.x
    rows = pixels.load_mnist_sequences(tmp_path / "mnist", channels=4).test.x
    assert (rows == images.reshape(10, 4, 4)).all() and 0 < images.max() <= 1


def test_watch_windows_and_subjects_against_the_trusted_reader():
    path = package_file("seglearn", "watch_dataset.npy", "problems")
    content = np.load(path, allow_pickle=True).item()
    tested = []
    for fold, (validation, test) in enumerate([((9, 10), (1, 2)), ((1, 2), (3, 4))]):
        task, tested = load_watch(fold=fold), [*tested, *test]
        subjects = {"validation": validation, "test": test}
        subjects["train"] = {*range(1, 11)} - {*validation, *test}
        expected = {part: ([], []) for part in subjects}
        for series, label, subject in zip(
            content["X"], content["y"], content["subject"], strict=True
        ):
            for part, own in subjects.items():
                for start in range(0, len(series) - 127, 128) if subject in own else ():
                    expected[part][0].append(series[start : start + 128])
                    expected[part][1].append(label)
        steps = np.concatenate(expected["train"][0])
        for part, (windows, labels) in expected.items():
            sequences = getattr(task, part)
            scaled = (np.stack(windows) - steps.mean(0)) / steps.std(0)
            # float32 values of order 1
            np.testing.assert_allclose(sequences.x.numpy(), scaled, rtol=1e-4, atol=1e-4)
            assert sequences.y[:, 0].tolist() == labels
        assert task.classes == tuple(content["y_labels"])


def test_every_subject_of_the_watch_is_tested_once(tmp_path):
    """A series of a subject is constant, and says who it is."""
    path = made_folders.write_watch(
        tmp_path / "watch.npy", np.array(made_folders.watch_content(), dtype=object)
    )
    seen = []
    for fold in range(5):
        parts = []
        for part in ("train", "validation", "test"):
            task = load_watch_file(path, window=2, fold=fold)
            values = getattr(task, part).x[:, 0, 0]
            parts.append(values.unique().tolist())
        train, validation, test = parts
        assert (len(train), len(validation), len(test)) == (6, 2, 2)
        assert not set(train) & set(validation) | set(test) & set(train + validation)
        # scaled back: the subjects' numbers, of which 6 were the scale
        subjects = [s for s in range(10) if s // 2 not in (fold, (fold - 1) % 5)]
        mean, deviation = np.mean(subjects), np.std(subjects)
        seen += [round(value * deviation + mean) for value in test]
    assert sorted(seen) == list(range(10))


def test_noise_follows_the_rows_of_a_digit():
    task, digits = pixels.load_noise_padded_digits(steps=40), pixels.load_digit_sequences()
    for part in ("train", "validation", "test"):
        padded, own = getattr(task, part), getattr(digits, part)
        assert (padded.x[:, :8] == own.x).all() and (padded.y == own.y).all()
        noise = padded.x[:, 8:]
        assert padded.lengths.unique().tolist() == [40] and noise.shape[1:] == (32, 8)
        assert scipy.stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
        assert len(noise[:, 0, 0].unique()) > len(noise) - 5


@pytest.mark.parametrize("channels", [1, 8])
def test_digits_are_read_in_rows(channels):
    task = pixels.load_digit_sequences(channels)
    bunch = sklearn.datasets.load_digits()
    test = bunch.data[::4].reshape(-1, 64 // channels, channels) / 16
    np.testing.assert_array_equal(task.test.x.numpy(), test.astype(np.float32))
    assert task.test.y[:, 0].tolist() == bunch.target[::4].tolist()
    assert len(task.train) + len(task.validation) + len(task.test) == len(bunch.data)
    counts = task.validation.y.flatten().bincount()
    assert ((counts - len(task.validation) / 10).abs() <= 2).all()


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
    delay=st.integers(1, 9),
    symbols=st.integers(1, 5),
    copied=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_copying_asks_for_what_it_showed(delay, symbols, copied, seed):
    task = generate_copying(delay, 3, 1, 1, symbols=symbols, copied=copied, seed=seed)
    x, y = task.train.x, task.train.y
    assert x.shape == (3, delay + 2 * copied, symbols + 2) and (x.sum(-1) == 1).all()
    shown = x.argmax(-1)
    blank, signal = symbols, symbols + 1
    assert (shown[:, :copied] == y).all()
    middle = [blank] * (delay - 1) + [signal] + [blank] * copied
    assert shown[:, copied:].tolist() == [middle] * 3


# ---- Features of speech ----


def tone(frequency):
    return torch.tensor(0.5 * np.sin(2 * math.pi * frequency * np.arange(16000) / 16000)).float()


@pytest.mark.parametrize("frequency", [150, 440, 1000, 2500, 6000])
def test_a_tone_is_loudest_in_its_band(frequency):
    features = log_mel(tone(frequency))

    def mel(f):
        return 2595 * math.log10(1 + f / 700)

    # band b is centred at corner b + 1 of 33 equal parts of the scale
    place = (mel(frequency) - mel(20)) / (mel(8000) - mel(20)) * 33 - 1
    assert (features.argmax(1) - place).abs().max() < 1
    assert features.shape == (98, 32)


def test_powers_add_up_and_silence_is_the_floor():
    samples = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    quiet, loud = log_mel(samples), log_mel(2 * samples)
    # the floor, 1e-6, is a thousandth of the power
    torch.testing.assert_close(loud - quiet, torch.full_like(loud, math.log(4)), atol=1e-3, rtol=0)
    torch.testing.assert_close(log_mel(torch.zeros(400)), torch.full((1, 32), math.log(1e-6)))
    # between the outer centres the triangles sum to 1: Parseval for what lies there
    energy = 512 * (tone(1000)[:400] * torch.hann_window(400)).square().sum() / 2
    assert log_mel(tone(1000))[0].exp().sum().item() == pytest.approx(energy.item(), rel=0.01)
