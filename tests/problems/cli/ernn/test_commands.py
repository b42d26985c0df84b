"""The commands: tiny runs, interrupted ones, data in folders, wrong use."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from implicit_solvers.problems.__main__ import main
from tests.problems.data.test_uci_har import folder as har_folder  # noqa: F401

TINY = ["--rates", "0.01", "0.03", "--hidden", "4", "--batch", "358", "--checkpoint-every", "1"]
TRAIN = [
    *("ernn", "train", "--models", "rnn", "exact", "leaky", "--seeds", "2", "--epochs", "2", *TINY)
]
TABLE = [
    *("ernn", "table", "--tasks", "adding", "digits", "--models", "fastrnn", "rnn"),
    *("--seeds", "1", "--epochs", "1", *TINY),
]


def metrics_of(out):
    metrics = json.loads((out / "metrics.json").read_text())
    del metrics["timing"]
    return metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of ``train`` that nothing interrupted."""
    out = tmp_path_factory.mktemp("finished")
    assert main([*TRAIN, "--out", str(out)]) == 0
    return out


def test_train_writes_its_results(finished):
    files = sorted(path.name for path in finished.iterdir())
    assert files == ["checkpoint.pt", "config.json", "learning.png", "metrics.json"]
    assert (finished / "learning.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((finished / "config.json").read_text())["hidden"] == 4
    metrics = json.loads((finished / "metrics.json").read_text())
    assert [row["model"] for row in metrics["models"]] == ["exact", "leaky", "rnn"]
    trainings = metrics["trainings"]
    assert [(t["model"], t["seed"]) for t in trainings] == [
        *((model, 0) for model in ("rnn", "exact", "leaky") for _ in range(2)),
        *((model, 1) for model in ("rnn", "exact", "leaky")),
    ]
    for row in metrics["models"]:
        own = [t for t in trainings if (t["model"], t["rate"]) == (row["model"], row["rate"])]
        assert row["scores"] == [t["score"] for t in own] and len(own) == 2
        np.testing.assert_allclose(row["mean"], np.mean(row["scores"]))
        np.testing.assert_allclose(row["deviation"], np.std(row["scores"], ddof=1), atol=1e-12)
        tried = [t for t in trainings if t["model"] == row["model"] and t["seed"] == 0]
        best = max(tried, key=lambda t: (t["validation"], -t["validation_loss"]))
        assert best["rate"] == row["rate"]
        assert metrics["timing"]["seconds_an_epoch"][row["model"]] > 0
    for training in trainings:
        assert len(training["train"]) == len(training["test"]) == 2
        assert training["test"][-1] == training["validation"]
        assert 0 < training["score"] < 1 and "seconds" not in training
        if training["model"] == "exact":  # an alternating sum does not see this order
            assert abs(training["parity_shuffled"] - training["score"]) < 0.01
    seconds = metrics["timing"]["trainings"]
    assert len(seconds["seconds"]) == len(seconds["processor_seconds"]) == 9


def test_the_same_command_gives_the_same_numbers_and_a_finished_run_can_be_resumed(finished):
    before, state = metrics_of(finished), torch.get_rng_state()
    assert main([*TRAIN, "--out", str(finished), "--resume"]) == 0
    assert metrics_of(finished) == before
    assert (torch.get_rng_state() == state).all()


def test_a_killed_run_goes_on_to_the_same_bits(finished, tmp_path):
    command = [sys.executable, "-m", "implicit_solvers.problems", *TRAIN, "--out", str(tmp_path)]
    checkpoint = tmp_path / "checkpoint.pt"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        stderr = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, stderr
    assert not (tmp_path / "metrics.json").exists()
    assert len(torch.load(checkpoint, weights_only=True)["results"]) < 9
    assert main([*TRAIN, "--out", str(tmp_path), "--resume"]) == 0
    assert metrics_of(tmp_path) == metrics_of(finished)


def test_an_interruption_between_epochs(finished, tmp_path, monkeypatch, capsys):
    """Control-C in the middle of a training: the optimizer's state must come back too."""
    step, calls = torch.optim.Adam.step, []

    def interrupted(self, closure=None):
        calls.append(1)
        if len(calls) == 5:  # an epoch has three steps
            raise KeyboardInterrupt
        return step(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", interrupted)
        assert main([*TRAIN, "--out", str(tmp_path)]) == 130
    assert "--resume" in capsys.readouterr().err
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["current"]["curve"]["test"]) == 1 and not state["results"]
    assert main([*TRAIN, "--out", str(tmp_path), "--resume"]) == 0
    assert metrics_of(tmp_path) == metrics_of(finished)


def test_a_checkpoint_of_another_configuration_is_refused(finished, capsys):
    before = (finished / "config.json").read_bytes()
    assert main([*TRAIN, "--out", str(finished), "--resume", "--hidden", "5"]) == 2
    error = capsys.readouterr().err
    assert "hidden 4" in error and "5" in error and "--resume" in error
    assert (finished / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_an_unreadable_checkpoint_is_refused(tmp_path, capsys, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    assert main([*TRAIN, "--out", str(tmp_path), "--resume"]) == 2
    assert "checkpoint.pt is no checkpoint" in capsys.readouterr().err
    (tmp_path / "checkpoint-digits.pt").write_bytes(content)
    assert main([*TABLE, "--out", str(tmp_path), "--resume"]) == 2
    assert "checkpoint-digits.pt is no checkpoint" in capsys.readouterr().err


def test_table(tmp_path, capsys):
    assert main([*TABLE, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "FastRNN" in printed and "adding, 32 steps" in printed
    files = sorted(path.name for path in tmp_path.iterdir())
    checkpoints = ["checkpoint-adding.pt", "checkpoint-digits.pt"]
    assert files == ["accuracy.png", *checkpoints, "config.json", "metrics.json"]
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    metrics = metrics_of(tmp_path)
    assert list(metrics["tasks"]) == ["adding", "digits"]
    for own in metrics["tasks"].values():
        assert [row["model"] for row in own["models"]] == ["rnn", "fastrnn"]
        assert len(own["trainings"]) == 4 and own["models"][0]["deviation"] is None
    # a constant has an error of 1/6, the shares of classes are at most 1
    assert all(0.1 < row["mean"] < 1 for row in metrics["tasks"]["adding"]["models"])
    # another task is trained, this one's checkpoint is used
    (tmp_path / "checkpoint-digits.pt").unlink()
    assert main([*TABLE, "--out", str(tmp_path), "--resume"]) == 0
    assert metrics_of(tmp_path) == metrics


def test_table_is_interrupted(tmp_path, monkeypatch, capsys):
    def interrupted(self, closure=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    assert main([*TABLE, "--out", str(tmp_path)]) == 130
    assert "--resume" in capsys.readouterr().err and not (tmp_path / "metrics.json").exists()


def test_data_in_a_folder(har_folder, tmp_path, monkeypatch):  # noqa: F811
    command = ["ernn", "train", "--task", "har-2", "--models", "rnn", "--rates", "0.01"]
    command += ["--seeds", "1", "--epochs", "1", "--hidden", "2"]
    out = tmp_path / "out"
    monkeypatch.chdir(har_folder.parent)
    assert main([*command, "--folder", har_folder.name, "--out", str(out)]) == 0
    assert metrics_of(out)["models"][0]["parameters"] == 2 * 2 + 2 * 9 + 2 * 2 + 2 * 2 + 2
    # the folder is part of the configuration, however it is named
    same = [*command, "--folder", str(har_folder), "--out", str(out), "--resume"]
    assert main(same) == 0


@pytest.mark.parametrize("task", ["har", "har-2", "speech", "mnist"])
def test_a_folder_without_the_data(task, tmp_path, capsys):
    command = ["ernn", "train", "--task", task, "--out", str(tmp_path / "out")]
    assert main([*command, "--folder", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main(command) == 2
    assert f"the task is {task}: pass the folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_packages_that_are_missing(tmp_path, capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    out = ["--out", str(tmp_path / "out")]
    assert main(["ernn", "train", "--task", "watch", *out]) == 2
    assert "pip install 'implicit-solvers[problems]'" in capsys.readouterr().err
    assert main(["ernn", "table", "--tasks", "digits", "vowels", *out]) == 2
    assert "pip install 'implicit-solvers[sequences]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    for command in (TRAIN, TABLE):
        assert main([*command, "--out", str(tmp_path / "file")]) == 2
        assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        *(
            "train --task cifar",
            "train --models transformer",
            "train --rates 0",
            "train --hidden 0",
        ),
        *("train --seeds 0", "train --first-seed -1", "train --clip nan", "train --epochs 1.5"),
        *("table --tasks har", "table --batch 0", "table --rates x", "table --checkpoint-every 0"),
    ],
)
def test_unfit_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["ernn", *options.split()])
    assert exit.value.code == 2
    assert options.split()[1] in capsys.readouterr().err


WITHOUT_EXTRAS = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"matplotlib", "sklearn", "seglearn", "aeon"}:
            raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Block())
from implicit_solvers.problems.__main__ import main
for name in ("train", "table"):
    try:
        main(["ernn", name, "--help"])
    except SystemExit as exit:
        assert exit.code == 0
    assert main(["ernn", name]) == 2
assert not {"sklearn", "matplotlib", "seglearn", "aeon"} & sys.modules.keys()
"""


def test_help_needs_no_extra(tmp_path):
    command = [sys.executable, "-c", WITHOUT_EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--resume") >= 2 and "watch" in done.stdout
    assert done.stderr.count("pip install 'implicit-solvers[problems]'") == 2
    assert list(tmp_path.iterdir()) == []
