"""What ``implicit-solvers ernn train`` and ``ernn table`` measure, in tiny runs."""

import json

import numpy as np

from implicit_solvers.problems.__main__ import main
from tests.problems.experiments.runs import COMMANDS, metrics_of


def test_train(finished):
    out = finished("ernn train").out
    assert json.loads((out / "config.json").read_text())["hidden"] == 4
    metrics = json.loads((out / "metrics.json").read_text())
    assert [row["model"] for row in metrics["models"]] == ["exact", "leaky", "rnn"]
    trainings = metrics["trainings"]
    assert [(t["model"], t["seed"]) for t in trainings] == [
        *((model, 0) for model in ("rnn", "exact", "leaky") for _ in range(2)),
        *((model, 1) for model in ("rnn", "exact", "leaky")),
    ]
    for row in metrics["models"]:
        (rate,) = row["rates"]
        own = [t for t in trainings if (t["model"], t["rate"]) == (row["model"], rate)]
        assert row["scores"] == [t["score"] for t in own] and len(own) == 2
        np.testing.assert_allclose(row["mean"], np.mean(row["scores"]))
        np.testing.assert_allclose(row["deviation"], np.std(row["scores"], ddof=1), atol=1e-12)
        tried = [t for t in trainings if t["model"] == row["model"] and t["seed"] == 0]
        best = max(tried, key=lambda t: (t["validation"], -t["validation_loss"]))
        assert best["rate"] == rate
        assert metrics["timing"]["processor_seconds"]["digits"][row["model"]] > 0
    for training in trainings:
        assert len(training["train"]) == len(training["test"]) == 2
        assert training["test"][-1] == training["validation"]
        assert 0 < training["score"] < 1 and "seconds" not in training
        if training["model"] == "exact":  # an alternating sum does not see this order
            assert abs(training["parity_shuffled"] - training["score"]) < 0.01
    seconds = metrics["timing"]["trainings"]
    assert len(seconds["seconds"]) == len(seconds["processor_seconds"]) == 9


def test_table(finished):
    out, printed = finished("ernn table")
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "| FastRNN |" in table and "adding, 32 steps" in table and table in printed
    metrics = metrics_of(out)
    assert list(metrics["tasks"]) == ["adding-32", "digits"]
    for own in metrics["tasks"].values():
        assert [row["model"] for row in own["models"]] == ["rnn", "fastrnn"]
        assert len(own["trainings"]) == 4 and own["models"][0]["deviation"] is None
    # a constant has an error of 1/6, the shares of classes are at most 1
    assert all(0.1 < row["mean"] < 1 for row in metrics["tasks"]["adding-32"]["models"])
    # another task is trained, this one's checkpoint is used
    (out / "checkpoint-digits.pt").unlink()
    assert main([*COMMANDS["ernn table"].arguments, "--out", str(out), "--resume"]) == 0
    assert metrics_of(out) == metrics


def test_gradients(finished):
    metrics = metrics_of(finished("ernn gradients").out)
    assert metrics["largest_deviation_of_exact"] < 1e-6
    assert [t["model"] for t in metrics["training"]] == ["rnn", "exact"]
    assert all(len(t["test"]) == 2 for t in metrics["training"])
    assert len(metrics["along"][0]["norms"]) == 4


def test_trajectories(finished):
    out, printed = finished("ernn trajectories")
    states = metrics_of(out)["trajectories"]
    assert "Results" in printed and np.shape(states["leaky"]) == (4, 6, 2)
    # from zero
    assert (np.array(states["exact"])[:, 0] == 0).all()
