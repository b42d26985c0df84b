"""The command line: a tiny run, an interrupted one, wrong use; and the memory counter."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.cli.few_shot import (
    accuracy_of,
    classifier,
    cross_entropy,
    initial_parameters,
    nearest_neighbour_predictions,
)
from implicit_solvers.problems.cli.inner_steps import measure_costs, unrolled_meta_loss
from implicit_solvers.problems.data.glyphs import Episodes
from implicit_solvers.problems.live_memory import LiveMemory

TINY = [
    *("demo", "--meta-steps", "20", "--tasks-per-step", "2", "--inner-steps", "3"),
    *("--width", "4", "--queries", "2", "--instances", "3"),
    *("--validation-tasks", "4", "--evaluation-tasks", "6", "--checkpoint-every", "1"),
    "--no-memory",
]


def metrics_of(out):
    metrics = json.loads((out / "metrics.json").read_text())
    del metrics["timing"]
    return metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("finished")
    assert main([*TINY, "--out", str(out)]) == 0
    return out


def test_a_run_writes_its_results(finished):
    files = sorted(path.name for path in finished.iterdir())
    assert files == ["checkpoint.pt", "config.json", "figure.png", "metrics.json"]
    assert json.loads((finished / "config.json").read_text())["width"] == 4
    assert (finished / "figure.png").read_bytes().startswith(b"\x89PNG")

    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics["accuracy"]) == {"nearest_neighbour", "random_weights", "meta_trained"}
    for accuracy in metrics["accuracy"].values():
        assert 0 <= accuracy["mean"] <= 1
        assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"]
    assert np.shape(metrics["history"]["loss"]) == (20,)
    assert np.shape(metrics["history"]["residual"]) == (20, 2)
    assert [steps for steps, _ in metrics["history"]["validation"]] == [0, 3, 6, 9, 12, 15, 18, 20]
    assert metrics["cg"]["tasks"] == 40
    assert metrics["timing"]["total"] > metrics["timing"]["meta_training"] > 0


def test_a_killed_run_goes_on_to_the_same_bits(finished, tmp_path):
    command = [sys.executable, "-m", "implicit_solvers.problems", *TINY, "--out", str(tmp_path)]
    checkpoint = tmp_path / "checkpoint.pt"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        stderr = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, stderr
    steps = len(torch.load(checkpoint, weights_only=True)["history"]["loss"])
    assert 1 <= steps < 20
    assert not (tmp_path / "metrics.json").exists()

    assert main([*TINY, "--out", str(tmp_path), "--resume"]) == 0
    assert metrics_of(tmp_path) == metrics_of(finished)


def test_a_finished_run_can_be_resumed(finished):
    before = metrics_of(finished)
    assert main([*TINY, "--out", str(finished), "--resume"]) == 0
    assert metrics_of(finished) == before


def test_another_seed_is_another_run(finished, tmp_path):
    assert main([*TINY, "--out", str(tmp_path), "--seed", "1"]) == 0
    assert metrics_of(tmp_path)["history"]["loss"] != metrics_of(finished)["history"]["loss"]


def test_a_checkpoint_of_another_configuration_is_refused(finished, capsys):
    before = (finished / "config.json").read_bytes()
    assert main([*TINY, "--out", str(finished), "--resume", "--width", "5"]) == 2
    error = capsys.readouterr().err
    assert "width 4" in error and "5" in error and "--resume" in error
    assert (finished / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_an_unreadable_checkpoint_is_refused(tmp_path, capsys, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    assert main([*TINY, "--out", str(tmp_path), "--resume"]) == 2
    assert "checkpoint.pt is no checkpoint" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([*TINY, "--out", str(tmp_path / "file")]) == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    ["--width 0", "--inner-lr -1", "--strength inf", "--seed -1", "--lr x", "--threads 0.5"],
)
def test_unfit_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["demo", *options.split()])
    assert exit.value.code == 2
    assert options.split()[0] in capsys.readouterr().err


WITHOUT_EXTRAS = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"HersheyFonts", "matplotlib", "sklearn"}:
            raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Block())
from implicit_solvers.problems.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_extra(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-c", WITHOUT_EXTRAS, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    helped = run("demo", "--help")
    assert helped.returncode == 0 and "--resume" in helped.stdout, helped.stderr
    refused = run("demo")
    assert refused.returncode == 2
    assert "pip install 'implicit-solvers[problems]'" in refused.stderr
    assert "HersheyFonts and matplotlib" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_nearest_neighbour_and_interval():
    tasks = Episodes(torch.rand(6, 4, 1, 3, 3), ways=3, shots=2, queries=2).batch(range(5))
    predictions = nearest_neighbour_predictions(tasks)
    right = []
    for sx, sy, qx, qy in zip(*(t.numpy() for t in tasks), strict=True):
        nearest = [int(sy[((sx - image) ** 2).sum((1, 2, 3)).argmin()]) for image in qx]
        right.append(np.mean(nearest == qy))
    accuracy = accuracy_of(predictions, tasks)
    half = 1.96 * np.std(right) / np.sqrt(5)
    np.testing.assert_allclose(accuracy["mean"], np.mean(right))
    np.testing.assert_allclose(accuracy["high"] - accuracy["mean"], half)
    np.testing.assert_allclose(accuracy["mean"] - accuracy["low"], half)


def test_live_memory_counts_what_is_alive():
    outside = torch.ones(1000)
    with LiveMemory() as memory:
        outside.view(10, 100).add_(1)
        assert (memory.live, memory.peak) == (0, 0)
        a = torch.zeros(1000)
        b = (2 * a).view(10, 100)
        assert (memory.live, memory.peak) == (8000, 8000)
        parts = b.t().unbind()
        del a, b
        assert memory.live == 4000
        del parts
        assert (memory.live, memory.peak) == (0, 8000)
        c = torch.ones(500, dtype=torch.float64)
    assert memory.live == 4000
    del c
    assert (memory.live, memory.peak) == (0, 8000)


def test_live_memory_counts_what_autograd_keeps():
    x = torch.ones(1000, requires_grad=True)
    with LiveMemory() as memory:
        y = x.exp().exp().exp()
        # each exponential keeps its result
        assert memory.live == 3 * 4000
        z = y.sum()
        del y
        assert memory.live == 3 * 4000 + 4
        z.backward()
        # what was kept is gone, the gradient has come
        assert memory.live == 4000 + 4


def test_live_memory_sees_through_transforms():
    def chain(x):
        return x.exp().exp().exp().sum()

    with LiveMemory() as memory:
        gradient = grad(chain)(torch.ones(1000))
    assert memory.live == 4000 == gradient.nbytes
    assert memory.peak >= 4 * 4000

    with LiveMemory() as memory:
        values = vmap(torch.exp)(torch.ones(10, 100))
    assert (memory.live, memory.peak) == (4000, 8000)
    assert values.shape == (10, 100)


def test_implicit_memory_is_flat_and_unrolled_memory_grows():
    network = classifier(4)
    theta = initial_parameters(network, torch.Generator().manual_seed(0))
    images, labels = torch.rand(5, 1, 28, 28), torch.arange(5)
    costs = measure_costs(
        cross_entropy(network),
        theta,
        (images, labels),
        (images, labels),
        inner_steps=(4, 8, 16),
        lr=0.1,
        strength=2.0,
        cg_steps=5,
    )
    memory = {(cost.method, cost.inner_steps): cost.memory for cost in costs}
    assert memory["iMAML", 4] == memory["iMAML", 8] == memory["iMAML", 16]
    assert memory["MAML", 16] > 2 * memory["iMAML", 16]
    # every step keeps the same
    assert memory["MAML", 16] - memory["MAML", 8] == 2 * (memory["MAML", 8] - memory["MAML", 4])


def test_unrolling_converges_to_the_implicit_gradient():
    theta = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    x, y = torch.randn(2, 2, dtype=torch.float64)

    def loss(phi, data):
        return torch.cosh(phi["w"] - data).sum()

    def unrolled(theta):
        return unrolled_meta_loss(loss, theta, x, y, steps=200, lr=0.1, strength=2.0)

    def implicit(theta):
        options = {"solver": ims.NewtonCG(), "adjoint": ims.ImplicitAdjoint(ims.CG())}
        return imaml.meta_loss(loss, theta, x, y, strength=2.0, **options)

    # the error falls by 0.7 a step, as curvatures exceed 3
    torch.testing.assert_close(grad(unrolled)(theta), grad(implicit)(theta), rtol=1e-9, atol=1e-9)
