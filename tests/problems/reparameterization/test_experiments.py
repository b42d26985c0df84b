"""The experiments: divergences against quadrature, ELBOs that rise, runs that are interrupted."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.cli.autoencoder import Autoencoder, binarized, evaluate
from implicit_solvers.problems.cli.latents import LATENTS
from implicit_solvers.problems.cli.lda import split
from implicit_solvers.problems.cli.topic_model import (
    POSTERIORS,
    TopicModel,
    halves,
    perplexity,
    unigram,
)
from implicit_solvers.problems.cli.training import Schedule, fit
from implicit_solvers.problems.cli.vae import validation_split
from implicit_solvers.problems.data.digits import load_digits
from implicit_solvers.problems.data.reuters import Corpus

VAE = [
    *("reparam", "vae", "--dimensions", "2", "--seeds", "1", "--epochs", "2"),
    *("--hidden", "8", "--batch", "675", "--samples", "2", "--checkpoint-every", "1"),
]
LDA = [
    *("reparam", "lda", "--seeds", "1", "--epochs", "3", "--topics", "3", "--hidden", "8"),
    *("--batch", "158", "--samples", "2", "--checkpoint-every", "1"),
]


def softplus(x):
    return math.log1p(math.exp(x))


def log_densities(name, h):
    """ln q, ln p, and the logarithm of dz/dy, on a grid of ``y`` where the tails fall fast."""
    positive = [0.01 + softplus(x + LATENTS[name].start) for x in h]
    if name == "normal":
        q, y = scipy.stats.norm(h[0], positive[1]), np.linspace(-90, 90, 400001)
        return y, q.logpdf(y), scipy.stats.norm.logpdf(y), np.zeros_like(y)
    if name == "von-mises":
        q = scipy.stats.vonmises(positive[2], loc=math.atan2(h[1], h[0]))
        y = np.linspace(-np.pi, np.pi, 4001)
        return y, q.logpdf(y), np.full_like(y, -math.log(2 * math.pi)), np.zeros_like(y)
    y = np.linspace(-800, 12 if name == "gamma" else 800, 160001)
    a, b = positive[:2]
    if name == "gamma":
        q = a * math.log(b) - scipy.special.gammaln(a) + (a - 1) * y - b * np.exp(y)
        return y, q, -np.exp(y), y
    left, right = -np.logaddexp(0, -y), -np.logaddexp(0, y)
    q = (a - 1) * left + (b - 1) * right - scipy.special.betaln(a, b)
    return y, q, np.zeros_like(y), left + right


@pytest.mark.parametrize("name", LATENTS)
@given(h=st.lists(st.floats(-3, 6), min_size=3, max_size=3))
@settings(max_examples=12)
def test_divergences_and_parameters_against_quadrature(name, h):
    y, q, p, jacobian = log_densities(name, h)
    expected = scipy.integrate.trapezoid(np.exp(q + jacobian) * (q - p), y)
    assert scipy.integrate.trapezoid(np.exp(q + jacobian), y) == pytest.approx(1, abs=1e-6)
    latent = LATENTS[name]
    outputs = torch.tensor(h[: latent.outputs], dtype=torch.float64).unsqueeze(-1)
    divergence = latent.divergence(latent.posterior(outputs))
    np.testing.assert_allclose(divergence.item(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LATENTS)
def test_quantiles_of_the_priors(name):
    p = {
        "normal": scipy.stats.norm(),
        "gamma": scipy.stats.gamma(1),
        "beta": scipy.stats.beta(1, 1),
        "von-mises": scipy.stats.uniform(-math.pi, 2 * math.pi),
    }[name]
    u = torch.tensor([0.05, 0.5, 0.9])
    np.testing.assert_allclose(LATENTS[name].prior_quantile(u), p.ppf(u.numpy()), atol=1e-6)


@pytest.mark.parametrize("name", LATENTS)
def test_what_the_decoder_sees_is_standardized_by_the_prior(name):
    latent, n = LATENTS[name], 100000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    features = latent.features(latent.prior_quantile(u).unsqueeze(-1))
    assert features.shape == (n, latent.width)
    np.testing.assert_allclose(features.mean(0), 0, atol=2e-4)
    np.testing.assert_allclose(features.square().mean(0), 1, atol=2e-4)


@pytest.mark.parametrize("name", LATENTS)
def test_the_elbo_is_a_bound_that_rises(name):
    torch.manual_seed(0)
    model = Autoencoder(LATENTS[name], 1, 4, hidden=16)
    images = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(32, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = Schedule(epochs=60, batch=64, warm_up=0.5)

    def loss(batch, weight):
        likelihood, divergence = model(batch)
        return (weight * divergence - likelihood).mean(), likelihood - divergence

    def test():
        likelihood, divergence = evaluate(model, images, samples=1)
        return likelihood - divergence

    *_, (curve, _) = fit(model, optimizer, images, loss, test, schedule, seed=0)
    # the data's entropy is ln 2; a posterior equal to the prior loses all of 4 ln 2
    assert np.mean(curve.test[:3]) < -2.5
    assert -2.2 < np.mean(curve.test[-5:]) < -math.log(2)
    assert np.mean(curve.train[-5:]) > np.mean(curve.train[:5]) + 0.5


def test_the_likelihood_is_that_of_bernoulli_pixels():
    torch.manual_seed(0)
    model = Autoencoder(LATENTS["normal"], 2, 6, hidden=8)
    x = binarized(torch.rand(5, 6))
    with torch.no_grad():
        torch.manual_seed(1)
        likelihood, divergence = model(x)
        torch.manual_seed(1)
        p = model.logits(model.posterior(x).rsample()).sigmoid().numpy()
    np.testing.assert_allclose(
        likelihood, scipy.stats.bernoulli(p).logpmf(x.numpy()).sum(1), rtol=1e-5
    )
    assert divergence.shape == (5,) and (divergence > 0).all()


def topic_model(name, topics=3, concentration=0.5):
    torch.manual_seed(0)
    totals = torch.tensor([5.0, 1, 3, 0])
    return TopicModel(POSTERIORS[name], topics, concentration, totals, 8, 0.0, topic_noise=1.0)


@pytest.mark.parametrize("name", POSTERIORS)
def test_the_divergence_of_shares_against_samples(name):
    model = topic_model(name)
    counts = torch.tensor([[3.0, 0, 1, 0], [0, 0, 5, 9]])
    with torch.no_grad():
        posterior = model.posterior(counts)
        z = posterior.sample((20000,))
        samples = posterior.log_prob(z) - model.prior.log_prob(z)
        _, divergence = model(counts)
    error = samples.std(0) / math.sqrt(len(samples))
    assert divergence.shape == (2,)
    assert ((samples.mean(0) - divergence).abs() < 5 * error).all()


def test_the_likelihood_of_a_document():
    model = topic_model("dirichlet")
    counts = torch.tensor([[3.0, 0, 1, 2]])
    with torch.no_grad():
        torch.manual_seed(1)
        likelihood, _ = model(counts)
        torch.manual_seed(1)
        shares = model.posterior(counts).rsample()
        p = (shares @ model.log_topics().exp()).numpy()[0]
    expected = scipy.stats.multinomial(6, p / p.sum()).logpmf([3, 0, 1, 2]) - math.log(60)
    np.testing.assert_allclose(likelihood.item(), expected, rtol=1e-5)


def test_the_approximation_of_the_prior():
    """Before softmax, a symmetric Dirichlet has the Laplace approximation of AVITM."""
    prior = POSTERIORS["logistic-normal"].prior(4, 0.2)
    # Srivastava and Sutton (2017), equation 2, written out
    inverse = np.full(4, 1 / 0.2)
    variance = inverse * (1 - 2 / 4) + inverse.sum() / 4**2
    np.testing.assert_allclose(prior.variance, variance, rtol=1e-6)
    assert prior.event_shape == (4,) and (prior.mean == 0).all()


@given(
    counts=st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=4), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_halves_are_halves(counts, seed):
    counts = torch.tensor(counts)
    observed, rest = halves(counts, seed)
    assert (observed + rest == counts).all() and (observed >= 0).all() and (rest >= 0).all()
    assert (observed.sum(1) == counts.sum(1) // 2).all()
    assert (halves(counts, seed)[0] == observed).all()


def test_halves_are_drawn_by_chance():
    counts = torch.tensor([[10, 30]]).expand(4000, 2)
    observed = halves(counts, 0)[0][:, 0].double().numpy()
    law = scipy.stats.hypergeom(40, 10, 20)
    assert abs(observed.mean() - law.mean()) < 5 * law.std() / math.sqrt(4000)
    assert abs(observed.var() / law.var() - 1) < 0.15


def test_no_word_of_held_out_documents_is_trained_on():
    counts = torch.arange(12).repeat_interleave(2).reshape(12, 2)
    documents = split(Corpus(counts, ("a", "b"), ("",) * 12))
    assert (documents.train == counts[[1, 2, 3, 4, 6, 7, 8, 9, 11]]).all()
    assert (documents.observed + documents.scored == counts[::5]).all()


def test_no_test_document_is_seen_when_settings_are_chosen():
    counts = torch.arange(12).repeat_interleave(2).reshape(12, 2)
    documents = split(Corpus(counts, ("a", "b"), ("",) * 12), validation=True)
    assert (documents.train == counts[[2, 3, 4, 7, 8, 9]]).all()
    assert (documents.observed + documents.scored == counts[[1, 6, 11]]).all()


def test_no_test_image_is_seen_when_settings_are_chosen():
    digits = load_digits()
    parts = validation_split(digits)
    assert parts.test.shape == (337, 64) and parts.side == 8
    for whole, train, test in [
        (digits.train, parts.train, parts.test),
        (digits.train_labels, parts.train_labels, parts.test_labels),
    ]:
        np.testing.assert_array_equal(test, whole[::4])
        np.testing.assert_array_equal(train, np.delete(whole.numpy(), np.s_[::4], axis=0))


def test_perplexity_and_unigram():
    counts = torch.tensor([[1, 2, 0], [0, 4, 3]])
    p = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]], dtype=torch.float64)
    words = [0.5, 0.25, 0.25, *[0.5] * 4, *[0.375] * 3]
    assert perplexity(p, counts) == pytest.approx(scipy.stats.gmean(1 / np.array(words)))
    assert perplexity(torch.tensor([0.5, 0.5, 0.0]), counts[:1]) == pytest.approx(2)
    np.testing.assert_allclose(unigram(counts), np.array([2, 7, 4]) / 13, rtol=1e-6)


def metrics_of(out):
    metrics = json.loads((out / "metrics.json").read_text())
    del metrics["timing"]
    return metrics


@pytest.fixture(scope="module", params=[VAE, LDA], ids=["vae", "lda"])
def finished(request, tmp_path_factory):
    """The command, and the folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("finished")
    assert main([*request.param, "--out", str(out)]) == 0
    return request.param, out


def test_a_run_writes_its_results(finished):
    command, out = finished
    files = sorted(path.name for path in out.iterdir())
    metrics = metrics_of(out)
    if command is VAE:
        figures = ["decoded.png", "elbo.png", "torus.png"]
        assert [row["latent"] for row in metrics["elbo"]] == list(LATENTS)
        for row, training in zip(metrics["elbo"], metrics["trainings"], strict=True):
            assert row["mean"] == pytest.approx(training["fit"] - training["divergence"])
            assert np.shape(training["test"]) == (2,)
            # even odds of all pixels give -64 ln 2 = -44.4; posteriors start away from the prior
            assert -50 < training["fit"] < 0 < training["divergence"] < 10
    else:
        figures = ["figure.png"]
        scores = metrics["perplexity"]
        assert list(scores) == ["unigram", "dirichlet", "logistic-normal"]
        assert all(1 < score["mean"] < 4258 for score in scores.values())
        assert sum(metrics["words"].values()) < 84010 / 4
        for topics in metrics["topics"].values():
            assert [len(topic["words"]) for topic in topics] == [10] * 3
            assert sum(topic["share"] for topic in topics) == pytest.approx(1, abs=1e-5)
    assert files == sorted(["checkpoint.pt", "config.json", "metrics.json", *figures])
    for name in figures:
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    whole = [*LDA, "--out", str(tmp_path / "whole")]
    assert main(whole) == 0
    killed = [*LDA, "--out", str(tmp_path / "killed")]
    command = [sys.executable, "-m", "implicit_solvers.problems", *killed]
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        stderr = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, stderr
    assert not (tmp_path / "killed" / "metrics.json").exists()
    assert len(torch.load(checkpoint, weights_only=True)["results"]) < 2
    assert main([*killed, "--resume"]) == 0
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "whole")


def test_an_interruption_between_epochs(finished, tmp_path, monkeypatch, capsys):
    """Control-C in the middle of a training: the optimizer's state must come back too."""
    command, out = finished
    step, calls = torch.optim.Adam.step, []

    def interrupted(self, closure=None):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    assert main([*command, "--out", str(tmp_path)]) == 130
    assert "--resume" in capsys.readouterr().err
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["current"]["curve"]["test"]) == 1
    assert main([*command, "--out", str(tmp_path), "--resume"]) == 0
    assert metrics_of(tmp_path) == metrics_of(out)


def test_a_checkpoint_of_another_configuration_is_refused(finished, capsys):
    command, out = finished
    before = (out / "config.json").read_bytes()
    assert main([*command, "--out", str(out), "--resume", "--hidden", "9"]) == 2
    error = capsys.readouterr().err
    assert "hidden 8" in error and "9" in error and "--resume" in error
    assert (out / "config.json").read_bytes() == before


def test_a_finished_run_can_be_resumed_and_leaves_the_global_generator_alone(finished):
    command, out = finished
    before, state = metrics_of(out), torch.get_rng_state()
    assert main([*command, "--out", str(out), "--resume"]) == 0
    assert metrics_of(out) == before
    assert (torch.get_rng_state() == state).all()


@pytest.mark.parametrize(
    "options",
    [
        *("vae --latents cauchy", "vae --dimensions 0", "vae --seeds 0", "vae --lr nan"),
        *("vae --start inf", "lda --topic-noise 0"),
        *("lda --topics 0", "lda --dropout 1", "lda --concentration -1", "lda --first-seed -1"),
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
    assert main([*VAE, "--batch", "5", "--data", str(tmp_path), "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["data"] == str(tmp_path)
    for training in metrics_of(out)["trainings"]:
        # noise cannot be learned: even odds of all pixels give -25 ln 2 = -17.3
        assert training["fit"] == pytest.approx(-25 * math.log(2), abs=2)
    assert (out / "decoded.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("command", "changes", "settings"),
    [
        ([*VAE, "--latents", "beta"], ["--start", "-1.5"], {"starts": {"beta": -1.5}}),
        (
            [*LDA, "--posteriors", "dirichlet"],
            ["--dropout", "0.25", "--topic-noise", "0.7"],
            {"settings": {"dirichlet": {"dropout": 0.25, "topic_noise": 0.7}}},
        ),
    ],
    ids=["vae", "lda"],
)
def test_settings_are_tried_on_validation_data(command, changes, settings, tmp_path):
    outs = [tmp_path / name for name in ("test", "validation", "changed")]
    assert main([*command, "--out", str(outs[0])]) == 0
    assert main([*command, "--validation", "--out", str(outs[1])]) == 0
    assert main([*command, "--validation", *changes, "--out", str(outs[2])]) == 0
    configurations = [json.loads((out / "config.json").read_text()) for out in outs]
    assert [c["validation"] for c in configurations] == [False, True, True]
    curves = [metrics_of(out)["trainings"][0]["test"] for out in outs]
    assert curves[0] != curves[1] != curves[2]
    (key, changed), *_ = settings.items()
    before, after = configurations[1].pop(key), configurations[2].pop(key)
    assert configurations[1] == configurations[2] and before != after
    for name, value in changed.items():
        expected = {**before[name], **value} if isinstance(value, dict) else value
        assert after == {name: expected}


WITHOUT_EXTRAS = """
import contextlib, io, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"HersheyFonts", "matplotlib", "sklearn", "lda"}:
            raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Block())
from implicit_solvers.problems.__main__ import main
for name in ("vae", "lda"):
    try:
        main(["reparam", name, "--help"])
    except SystemExit as exit:
        assert exit.code == 0
    assert main(["reparam", name]) == 2
assert not {"lda", "sklearn", "matplotlib"} & sys.modules.keys()
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
