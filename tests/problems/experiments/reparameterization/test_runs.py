"""What ``implicit-solvers reparam`` measures, in tiny runs."""

import json
import math

import numpy as np
import pytest

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.experiments.reparameterization import variance
from implicit_solvers.problems.experiments.reparameterization.variance import FAMILIES
from implicit_solvers.problems.reparameterization.estimators import score_function_gradients
from implicit_solvers.problems.reparameterization.models.latents import LATENTS
from tests.problems.experiments.data.made_folders import make_mnist
from tests.problems.experiments.runs import COMMANDS, metrics_of


def run(name, out, *options):
    return main([*COMMANDS[name].arguments, "--out", str(out), *options])


def test_the_results_of_variance(finished):
    metrics = metrics_of(finished("reparam variance").out)
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
    metrics = metrics_of(finished("reparam vae").out)
    assert [row["latent"] for row in metrics["elbo"]] == list(LATENTS)
    for row, training in zip(metrics["elbo"], metrics["trainings"], strict=True):
        assert row["mean"] == pytest.approx(training["fit"] - training["divergence"])
        assert np.shape(training["test"]) == (2,)
        # even odds of all pixels give -64 ln 2 = -44.4; posteriors start away from the prior
        assert -50 < training["fit"] < 0 < training["divergence"] < 10


def test_the_results_of_topics(finished):
    metrics = metrics_of(finished("reparam lda").out)
    scores = metrics["perplexity"]
    assert list(scores) == ["unigram", "dirichlet", "logistic-normal"]
    assert all(1 < score["mean"] < 4258 for score in scores.values())
    assert sum(metrics["words"].values()) < 84010 / 4
    for topics in metrics["topics"].values():
        assert [len(topic["words"]) for topic in topics] == [10] * 3
        assert sum(topic["share"] for topic in topics) == pytest.approx(1, abs=1e-5)


def test_another_seed_is_another_run(finished, tmp_path):
    assert run("reparam variance", tmp_path, "--seed", "1") == 0
    first = metrics_of(finished("reparam variance").out)
    assert metrics_of(tmp_path)["variance"] != first["variance"]


def test_a_folder_with_images_of_another_size(tmp_path):
    make_mnist(tmp_path, train=(12, 5, 5), test=(6, 5, 5), labels=12)
    out = tmp_path / "out"
    assert run("reparam vae", out, "--batch", "5", "--data", str(tmp_path)) == 0
    assert json.loads((out / "config.json").read_text())["data"] == str(tmp_path)
    for training in metrics_of(out)["trainings"]:
        # noise cannot be learned: even odds of all pixels give -25 ln 2 = -17.3
        assert training["fit"] == pytest.approx(-25 * math.log(2), abs=2)
    assert (out / "decoded.png").read_bytes().startswith(b"\x89PNG")


TRIED = [
    ("reparam vae", "--latents beta", "--start -1.5", {"starts": {"beta": -1.5}}),
    (
        "reparam lda",
        "--posteriors dirichlet",
        "--dropout 0.25 --topic-noise 0.7",
        {"settings": {"dirichlet": {"dropout": 0.25, "topic_noise": 0.7}}},
    ),
]


@pytest.mark.parametrize("name, one, changes, settings", TRIED, ids=["vae", "lda"])
def test_settings_are_tried_on_validation_data(finished, name, one, changes, settings, tmp_path):
    outs = [finished(name).out, tmp_path / "validation", tmp_path / "changed"]
    for out, more in zip(outs[1:], ("", changes), strict=True):
        assert run(name, out, *one.split(), "--validation", *more.split()) == 0
    configurations = [json.loads((out / "config.json").read_text()) for out in outs]
    assert [c["validation"] for c in configurations] == [False, True, True]
    which = one.split()[1]
    runs = [metrics_of(out)["trainings"] for out in outs]
    curves = [[t["test"] for t in trainings if which in t.values()] for trainings in runs]
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

    monkeypatch.setattr(variance, "score_function_gradients", biased)
    assert run("reparam variance", tmp_path, "--samples", "4000", "--points", "1") == 1
    metrics = metrics_of(tmp_path)
    assert metrics["unbiased"] is False and metrics["largest_deviation"] > 4
    assert "another --seed" in " ".join(capsys.readouterr().out.split())
