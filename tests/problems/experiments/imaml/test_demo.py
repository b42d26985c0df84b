"""The demonstration: what a tiny run measures, its baseline, and the costs that it compares."""

import json

import numpy as np
import torch

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.experiments.data.episodes import Episodes
from implicit_solvers.problems.experiments.imaml.demo import nearest_neighbour_predictions
from implicit_solvers.problems.experiments.imaml.problem import interval
from tests.problems.experiments.runs import COMMANDS, metrics_of


def test_a_run_measures_three_classifiers(finished, tmp_path):
    out = finished("demo").out
    assert json.loads((out / "config.json").read_text())["width"] == 4
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["accuracy"]) == {"nearest_neighbour", "random_weights", "meta_trained"}
    for accuracy in metrics["accuracy"].values():
        assert 0 <= accuracy["mean"] <= 1
        assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"]
    assert np.shape(metrics["history"]["loss"]) == (10,)
    assert np.shape(metrics["history"]["residual"]) == (10, 2)
    assert [steps for steps, _ in metrics["history"]["validation"]] == [0, 2, 4, 6, 8, 10]
    assert metrics["cg"]["tasks"] == 20
    assert metrics["timing"]["total"] > metrics["timing"]["meta_training"] > 0
    # another seed is another run
    other = [*COMMANDS["demo"].arguments, "--meta-steps", "1", "--seed", "1"]
    assert main([*other, "--out", str(tmp_path)]) == 0
    assert metrics_of(tmp_path)["history"]["loss"][0] != metrics["history"]["loss"][0]


def test_nearest_neighbour_and_interval():
    tasks = Episodes(torch.rand(6, 4, 1, 3, 3), ways=3, shots=2, queries=2).batch(range(5))
    predictions = nearest_neighbour_predictions(tasks)
    right = []
    for sx, sy, qx, qy in zip(*(t.numpy() for t in tasks), strict=True):
        nearest = [int(sy[((sx - image) ** 2).sum((1, 2, 3)).argmin()]) for image in qx]
        right.append(np.mean(nearest == qy))
    accuracy = interval((predictions == tasks.query_y).double().mean(1))
    half = 1.96 * np.std(right) / np.sqrt(5)
    np.testing.assert_allclose(accuracy["mean"], np.mean(right))
    np.testing.assert_allclose(accuracy["high"] - accuracy["mean"], half)
    np.testing.assert_allclose(accuracy["mean"] - accuracy["low"], half)
