"""The commands at toy size: what a run writes, runs that are interrupted, what is refused."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.cli import gradient_variance, variance_measurements
from implicit_solvers.problems.cli.latents import LATENTS
from implicit_solvers.problems.cli.variance_measurements import FAMILIES
from implicit_solvers.problems.reparameterization.estimators import score_function_gradients

COMMANDS = {
    "variance": "variance --samples 2000 --points 2 --augmentation 1 2",
    "vae": "vae --dimensions 2 --seeds 1 --epochs 2 --hidden 8 --batch 675 --samples 2"
    " --checkpoint-every 1",
    "lda": "lda --seeds 1 --epochs 3 --topics 3 --hidden 8 --batch 158 --samples 2"
    " --checkpoint-every 1",
}
each = pytest.mark.parametrize("name", COMMANDS)


def arguments(name, out, *options):
    return ["reparam", *COMMANDS[name].split(), "--out", str(out), *options]


def run(name, out, *options):
    return main(arguments(name, out, *options))


def read(out, name="metrics"):
    """Return what a run wrote, but for its times."""
    content = json.loads((out / f"{name}.json").read_text())
    return {key: value for key, value in content.items() if key != "timing"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a run that nothing interrupted, by the name of the command."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            assert run(name, folders[name]) == 0
        return folders[name]

    return folder


FILES = {
    "variance": ["figure.png"],
    "vae": ["config.json", "decoded.png", "elbo.png", "torus.png"],
    "lda": ["config.json", "figure.png"],
}


@each
def test_a_run_writes_its_files(finished, name):
    out = finished(name)
    files = sorted(path.name for path in out.iterdir())
    assert files == sorted(["checkpoint.pt", "metrics.json", *FILES[name]])
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_results_of_variance(finished):
    metrics = read(finished("variance"))
    assert metrics["configuration"]["augmentation"] == [1, 2]
    assert metrics["unbiased"] is True
    # implicit and score function for five families, RSVI twice for three of them
    assert len(metrics["measurements"]) == 2 * (5 * 2 + 3 * 2)
    assert metrics["largest_deviation"] == max(m["deviation"] for m in metrics["measurements"])
    assert {row["family"] for row in metrics["variance"]} == set(FAMILIES)
    for row in metrics["variance"]:
        assert row["implicit"] > 0 and row["relative"]["score function"] > 0
        rejection = row["family"] in ("gamma", "beta", "dirichlet")
        assert ("RSVI, B = 2" in row["relative"]) == rejection


def test_the_results_of_autoencoders(finished):
    metrics = read(finished("vae"))
    assert [row["latent"] for row in metrics["elbo"]] == list(LATENTS)
    for row, training in zip(metrics["elbo"], metrics["trainings"], strict=True):
        assert row["mean"] == pytest.approx(training["fit"] - training["divergence"])
        assert np.shape(training["test"]) == (2,)
        # even odds of all pixels give -64 ln 2 = -44.4; posteriors start away from the prior
        assert -50 < training["fit"] < 0 < training["divergence"] < 10


def test_the_results_of_topics(finished):
    metrics = read(finished("lda"))
    scores = metrics["perplexity"]
    assert list(scores) == ["unigram", "dirichlet", "logistic-normal"]
    assert all(1 < score["mean"] < 4258 for score in scores.values())
    assert sum(metrics["words"].values()) < 84010 / 4
    for topics in metrics["topics"].values():
        assert [len(topic["words"]) for topic in topics] == [10] * 3
        assert sum(topic["share"] for topic in topics) == pytest.approx(1, abs=1e-5)


def interrupted_measurements(*arguments):
    yield from itertools.islice(variance_measurements.measure_all(*arguments), 7)
    raise KeyboardInterrupt


@each
def test_an_interrupted_run_goes_on_to_the_same_bits(finished, name, tmp_path, capsys):
    """Control-C in the middle of a training: the optimizer's state must come back too."""
    step, calls = torch.optim.Adam.step, []

    def interrupted_step(self, closure=None):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_variance, "measure_all", interrupted_measurements)
        patch.setattr(torch.optim.Adam, "step", interrupted_step)
        assert run(name, tmp_path) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()
    load = lambda: torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state = load()
    if name == "variance":
        assert len(state["measurements"]) == 7
    else:
        assert len(state["current"]["curve"]["test"]) == 1
    assert run(name, tmp_path, "--resume") == 0
    assert read(tmp_path) == read(finished(name))
    if name == "variance":  # times included: they were not measured again
        assert load()["measurements"][:7] == state["measurements"]


def test_a_killed_run_goes_on_to_the_same_bits(finished, tmp_path):
    command = [sys.executable, "-m", "implicit_solvers.problems", *arguments("lda", tmp_path)]
    checkpoint = tmp_path / "checkpoint.pt"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        stderr = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, stderr
    assert not (tmp_path / "metrics.json").exists()
    assert len(torch.load(checkpoint, weights_only=True)["results"]) < 2
    assert run("lda", tmp_path, "--resume") == 0
    assert read(tmp_path) == read(finished("lda"))


@each
def test_a_finished_run_can_be_resumed(finished, name):
    """And leaves the global generator alone."""
    out = finished(name)
    before, state = read(out), torch.get_rng_state()
    assert run(name, out, "--resume") == 0
    assert read(out) == before
    assert (torch.get_rng_state() == state).all()


def test_another_seed_is_another_run(finished, tmp_path):
    assert run("variance", tmp_path, "--seed", "1") == 0
    assert read(tmp_path)["variance"] != read(finished("variance"))["variance"]


@pytest.mark.parametrize(
    "name, option, said",
    [
        ("variance", "--samples 3000", ("2000", "3000")),
        ("vae", "--hidden 9", ("hidden 8", "9")),
        ("lda", "--hidden 9", ("hidden 8", "9")),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(finished, name, option, said, capsys):
    out = finished(name)
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert run(name, out, "--resume", *option.split()) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in (*said, "--resume"))
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_an_unreadable_checkpoint_is_refused(tmp_path, capsys, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    assert run("variance", tmp_path, "--resume") == 2
    assert "checkpoint.pt is no checkpoint" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run("variance", tmp_path / "file") == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        *("variance --samples 1", "variance --points 0", "variance --augmentation 0"),
        *("variance --seed -1", "variance --threads x", "vae --latents cauchy"),
        *("vae --dimensions 0", "vae --seeds 0", "vae --lr nan", "vae --start inf"),
        *("lda --topic-noise 0", "lda --topics 0", "lda --dropout 1", "lda --concentration -1"),
        "lda --first-seed -1",
    ],
)
def test_unfit_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["reparam", *options.split()])
    assert exit.value.code == 2
    assert options.split()[1] in capsys.readouterr().err


def test_a_folder_without_mnist_is_an_error(tmp_path, capsys):
    assert main(["reparam", "vae", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "train-images-idx3-ubyte" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_images_of_another_size(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in [("train", 12), ("t10k", 6)]:
        images, labels = rng.integers(0, 256, (count, 5, 5), "u1"), np.arange(count, dtype="u1")
        for name, array in [("images-idx3", images), ("labels-idx1", labels)]:
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())
    out = tmp_path / "out"
    assert run("vae", out, "--batch", "5", "--data", str(tmp_path)) == 0
    assert read(out, "config")["data"] == str(tmp_path)
    for training in read(out)["trainings"]:
        # noise cannot be learned: even odds of all pixels give -25 ln 2 = -17.3
        assert training["fit"] == pytest.approx(-25 * math.log(2), abs=2)
    assert (out / "decoded.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name, one, changes, settings",
    [
        ("vae", "--latents beta", "--start -1.5", {"starts": {"beta": -1.5}}),
        (
            "lda",
            "--posteriors dirichlet",
            "--dropout 0.25 --topic-noise 0.7",
            {"settings": {"dirichlet": {"dropout": 0.25, "topic_noise": 0.7}}},
        ),
    ],
    ids=["vae", "lda"],
)
def test_settings_are_tried_on_validation_data(finished, name, one, changes, settings, tmp_path):
    outs = [finished(name), tmp_path / "validation", tmp_path / "changed"]
    for out, more in zip(outs[1:], ("", changes), strict=True):
        assert run(name, out, *one.split(), "--validation", *more.split()) == 0
    configurations = [read(out, "config") for out in outs]
    assert [c["validation"] for c in configurations] == [False, True, True]
    which = one.split()[1]
    curves = [[t["test"] for t in read(out)["trainings"] if which in t.values()] for out in outs]
    assert len(curves[0]) == 1 and curves[0] != curves[1] != curves[2]
    (key, changed), *_ = settings.items()
    before, after = configurations[1].pop(key), configurations[2].pop(key)
    assert configurations[1] == configurations[2] and before != after
    for name, value in changed.items():
        expected = {**before[name], **value} if isinstance(value, dict) else value
        assert after == {name: expected}


def test_a_biased_estimator_is_found_out(tmp_path, monkeypatch, capsys):
    def biased(expectation, phi, count):
        return 2 * score_function_gradients(expectation, phi, count)

    monkeypatch.setattr(variance_measurements, "score_function_gradients", biased)
    assert run("variance", tmp_path, "--samples", "4000", "--points", "1") == 1
    metrics = read(tmp_path)
    assert metrics["unbiased"] is False and metrics["largest_deviation"] > 4
    assert "another --seed" in " ".join(capsys.readouterr().out.split())


WITHOUT_EXTRAS = """
import sys
sys.modules.update(dict.fromkeys(("HersheyFonts", "matplotlib", "sklearn", "lda")))
from implicit_solvers.problems.__main__ import main
for name in ("vae", "lda"):
    try:
        main(["reparam", name, "--help"])
    except SystemExit as exit:
        assert exit.code == 0
    assert main(["reparam", name]) == 2
"""


def test_without_the_extra(tmp_path):
    command = [sys.executable, "-c", WITHOUT_EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--resume") >= 2
    vae, lda = done.stderr.splitlines()
    assert "matplotlib and sklearn: pip install 'implicit-solvers[problems]'" in vae
    assert "matplotlib and lda: pip install 'implicit-solvers[problems]'" in lda
    assert list(tmp_path.iterdir()) == []
