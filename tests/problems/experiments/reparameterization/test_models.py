"""The experiments: divergences against quadrature, ELBOs that rise, runs that are interrupted."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings

from implicit_solvers.problems.experiments.data.digits import (
    binarized,
    load_digits,
    validation_split,
)
from implicit_solvers.problems.experiments.data.reuters import Corpus, halves, split
from implicit_solvers.problems.experiments.harness.training import Schedule, fit
from implicit_solvers.problems.reparameterization.models import topic_model as lda
from implicit_solvers.problems.reparameterization.models.autoencoder import (
    Autoencoder,
    evaluate,
)
from implicit_solvers.problems.reparameterization.models.latents import LATENTS
from implicit_solvers.problems.reparameterization.models.topic_model import (
    POSTERIORS,
    perplexity,
    unigram,
)


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
    return lda.TopicModel(POSTERIORS[name], topics, concentration, totals, 8, 0.0, topic_noise=1.0)


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
