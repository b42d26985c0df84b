"""UCI-HAR in a small made folder, and folders that are not it."""

import numpy as np
import pytest

from implicit_solvers.problems.data.uci_har import SIGNALS, load_uci_har

NAMES = ["WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING"]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("  ".join(f"{value: .7e}" for value in row) for row in rows) + "\n")


@pytest.fixture
def folder(tmp_path):
    """Twelve windows of six persons to learn from, six of others; five steps each."""
    generator = np.random.default_rng(0)
    named = "\n".join(f"{i} {name}" for i, name in enumerate(NAMES, 1))
    (tmp_path / "activity_labels.txt").write_text(named + "\n")
    for part, count, first in (("train", 12, 1), ("test", 6, 20)):
        for name in SIGNALS:
            signal = generator.normal(3, 2, (count, 5))
            write(tmp_path / part / "Inertial Signals" / f"{name}_{part}.txt", signal)
        numbers = np.arange(count)[:, None]
        write(tmp_path / part / f"y_{part}.txt", 1 + numbers % 6)
        write(tmp_path / part / f"subject_{part}.txt", first + numbers // 2)
    return tmp_path


def test_windows_are_split_by_subject(folder):
    task = load_uci_har(folder)
    # the persons are 1 to 6, with two windows each: 1 and 6 are the validation part
    assert task.train.x.shape == (8, 5, 9) and task.classes == tuple(NAMES)
    assert task.validation.y[:, 0].tolist() == [0, 1, 4, 5]
    assert task.train.y[:, 0].tolist() == [2, 3, 4, 5, 0, 1, 2, 3]
    signal = np.loadtxt(folder / "train/Inertial Signals/body_gyro_y_train.txt")[2:10]
    scaled = (signal - signal.mean()) / signal.std()
    np.testing.assert_allclose(task.train.x[..., SIGNALS.index("body_gyro_y")], scaled, atol=1e-5)


def test_two_classes(folder):
    task, six = load_uci_har(folder, binary=True), load_uci_har(folder)
    second = ["STANDING", "WALKING", "WALKING_DOWNSTAIRS"]
    expected = [int(NAMES[label] in second) for label in six.test.y[:, 0]]
    assert task.test.y[:, 0].tolist() == expected == [1, 0, 1, 0, 1, 0]
    assert len(task.classes) == 2


def test_missing_and_wrong_files(folder):
    labels = folder / "train" / "y_train.txt"
    content = labels.read_text()
    labels.write_text(content + "1\n")
    with pytest.raises(ValueError, match="they must be of as many windows"):
        load_uci_har(folder)
    labels.write_text(content.replace("6", "7"))
    with pytest.raises(ValueError, match=r"activities \[.*7.*\], which have no name"):
        load_uci_har(folder)
    labels.write_text("one\n")
    with pytest.raises(ValueError, match="y_train.txt is no table of numbers"):
        load_uci_har(folder)
    labels.write_text("\n")
    with pytest.raises(ValueError, match="y_train.txt holds no numbers"):
        load_uci_har(folder)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="y_train.txt"):
        load_uci_har(folder)
    with pytest.raises(FileNotFoundError, match="activity_labels.txt"):
        load_uci_har(folder / "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no activity"),
        ("one WALKING\n", "expected a number and a name"),
        ("\n".join(f"{i} {name.lower()}" for i, name in enumerate(NAMES, 1)), "which HAR-2 needs"),
    ],
)
def test_other_activities(folder, text, message):
    (folder / "activity_labels.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_uci_har(folder, binary=True)


def test_one_subject_is_too_few(folder):
    write(folder / "train" / "subject_train.txt", np.ones((12, 1)))
    with pytest.raises(ValueError, match=r"training subjects \[1\]"):
        load_uci_har(folder)
