"""Estimators of a gradient: their means, their variances, and the command that compares them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from implicit_solvers.problems.experiments.reparameterization import variance as measuring
from implicit_solvers.problems.experiments.reparameterization.variance import (
    FAMILIES,
    Configuration,
    ratios,
)
from implicit_solvers.problems.reparameterization.estimators import (
    implicit_gradients,
    rejection_gradients,
    score_function_gradients,
)
from implicit_solvers.problems.reparameterization.expectations import GAMMA, Expectation

CASES = [
    (name, estimator)
    for name, family in FAMILIES.items()
    for estimator in measuring.estimators_of(family, Configuration())
]


def phi_of(family, place):
    return torch.tensor(FAMILIES[family].parameters(place), dtype=torch.float64)


def assert_unbiased(family, estimator, phi, count):
    expectation = FAMILIES[family].expectation
    gradients = measuring.estimators_of(FAMILIES[family], Configuration())[estimator]
    sample = gradients(expectation, phi, count)
    assert sample.shape == (count, len(phi))
    exact = torch.func.grad(expectation.closed_form)(phi)
    error = sample.std(0) / count**0.5
    assert ((sample.mean(0) - exact).abs() < 4 * error).all()


# ---------------------------------------------------------------------------------- closed forms


def mean_of(density, cost, *cuts):
    pieces = itertools.pairwise(cuts)
    f = lambda z: density(z) * cost(z)
    return sum(integrate.quad(f, low, high, limit=200)[0] for low, high in pieces)


def closed_forms(a):
    """Yield families with parameters and the expectation by quadrature."""
    log_mean = lambda p, q: mean_of(stats.beta(p, q).pdf, np.log, 0, p / (p + q), 1)
    turned = lambda z: -np.cos(z - 1)
    angle = lambda m: mean_of(stats.vonmises(a, m).pdf, turned, m - np.pi, m, m + np.pi)
    normal = lambda m: mean_of(stats.norm(m, 1).pdf, lambda z: z * z / 2, -np.inf, m, np.inf)
    yield "gamma", [a], mean_of(stats.gamma(a).pdf, lambda z: z - np.log(z), 0, a, np.inf)
    yield "beta", phi_of("beta", a), -3 * log_mean(a, a)
    yield "dirichlet", phi_of("dirichlet", a), -5 * log_mean(a, 4 * a)
    yield "von_mises", phi_of("von_mises", a), angle(0.0)
    yield "mixture", phi_of("mixture", a), (normal(-a) + normal(0.0) + normal(a)) / 3
    # where parameters differ
    yield "beta", [a, 2.5], -log_mean(a, 2.5) - 2 * log_mean(2.5, a)
    yield "von_mises", [0.5, a], angle(0.5)
    logits, means, log_scales = np.array([0.3, -1.0, 0.0]), np.arange(3.0), np.array([0.1, 0, -1])
    second = special.softmax(logits) @ (means**2 + np.exp(2 * log_scales))
    yield "mixture", np.concatenate([logits, means, log_scales]), second / 2


@pytest.mark.parametrize("a", [0.7, 3.0, 20.0])
def test_closed_forms_agree_with_quadrature(a):
    for name, phi, expected in closed_forms(a):
        phi = torch.as_tensor(phi, dtype=torch.float64)
        value = float(FAMILIES[name].expectation.closed_form(phi))
        np.testing.assert_allclose(value, expected, rtol=1e-7, err_msg=name)


# ------------------------------------------------------------------------------------ estimators


@pytest.mark.parametrize(("family", "estimator"), CASES)
def test_estimators_are_unbiased(family, estimator):
    for place in FAMILIES[family].places(3):
        assert_unbiased(family, estimator, phi_of(family, place), 20_000)


@given(
    shapes=st.lists(st.floats(0.2, 20), min_size=1, max_size=5),
    steps=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_rejection_gradients_are_unbiased(shapes, steps, seed):
    """The mean of ``weights @ ln g`` over independent gamma variables is ``weights @ psi``."""
    torch.manual_seed(seed)
    phi = torch.tensor(shapes, dtype=torch.float64)
    weights = torch.arange(1.0, len(phi) + 1, dtype=torch.float64)
    expectation = Expectation(
        distribution=lambda phi: None,
        cost=lambda log_g: log_g @ weights,
        closed_form=lambda phi: phi.digamma() @ weights,
        from_log_gammas=lambda log_g: log_g,
    )
    sample = rejection_gradients(expectation, phi, 4000, steps)
    exact = weights * torch.from_numpy(special.polygamma(1, phi.numpy()))
    # of 4 standard errors, one in 16,000 means is farther; with what the examples try, 5
    assert ((sample.mean(0) - exact).abs() < 5 * sample.std(0) / 4000**0.5).all()


@given(constant=st.floats(-1e3, 1e3), case=st.sampled_from(CASES), seed=st.integers(0, 10_000))
def test_a_constant_in_the_cost_changes_nothing(constant, case, seed):
    family, estimator = case
    expectation = FAMILIES[family].expectation
    shifted = Expectation(
        expectation.distribution,
        lambda z: expectation.cost(z) + constant,
        lambda phi: expectation.closed_form(phi) + constant,
        expectation.from_log_gammas,
    )
    gradients = measuring.estimators_of(FAMILIES[family], Configuration())[estimator]
    samples = []
    for e in (expectation, shifted):
        torch.manual_seed(seed)
        samples.append(gradients(e, phi_of(family, 2.0), 20))
    torch.testing.assert_close(*samples, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("a", [0.3, 2.0, 30.0])
def test_variances_agree_with_quadrature(a):
    """Implicit and score function, from SciPy's quantiles and densities alone."""
    density, h = stats.gamma(a).pdf, 1e-5 * a
    exact = 1 - special.polygamma(1, a)
    mean = a - special.digamma(a)

    def moved(z):
        p, q = special.gammainc(a, z), special.gammaincc(a, z)
        invert = special.gammaincinv if p < 0.5 else special.gammainccinv
        tail = min(p, q)
        return (invert(a + h, tail) - invert(a - h, tail)) / (2 * h)

    def implicit(z):
        return ((1 - 1 / z) * moved(z)) ** 2

    def score(z):
        return ((z - np.log(z) - mean) * (np.log(z) - special.digamma(a))) ** 2

    low, high = np.log(stats.gamma(a).ppf([1e-12, 1 - 1e-12]))
    phi = torch.tensor([a], dtype=torch.float64)
    for estimator, square in ((implicit_gradients, implicit), (score_function_gradients, score)):
        # over ln z, and no more exact than the differences are
        whole = integrate.quad(
            lambda u, square=square: density(np.exp(u)) * np.exp(u) * square(np.exp(u)),
            *(low, high),
            epsrel=1e-6,
            limit=200,
        )
        expected = whole[0] - exact**2
        sample = estimator(GAMMA, phi, 100_000)
        squares = (sample - sample.mean()) ** 2
        error = squares.std() / 100_000**0.5
        assert abs(float(sample.var()) - expected) < 4 * error


@pytest.mark.parametrize("steps", [1, 4])
def test_rejection_draws_gamma_variables(steps):
    seen = []

    def record(log_g):
        seen.append(log_g.detach())
        return log_g

    expectation = Expectation(lambda phi: None, lambda z: z.sum(-1), torch.sum, record)
    rejection_gradients(expectation, torch.tensor([0.3, 4.0], dtype=torch.float64), 5000, steps)
    for shape, log_g in zip((0.3, 4.0), seen[0].T, strict=True):
        assert stats.kstest(log_g.exp().numpy(), stats.gamma(shape).cdf).pvalue > 1e-3


def test_implicit_varies_least_where_theory_says_so():
    """Concentrated distributions: the score grows like 1/sigma, the implicit gradient does not."""
    for name in ("gamma", "beta", "von_mises"):
        phi = phi_of(name, 100.0)
        expectation = FAMILIES[name].expectation
        implicit = implicit_gradients(expectation, phi, 5000).var(0).sum()
        assert score_function_gradients(expectation, phi, 5000).var(0).sum() > 20 * implicit


@pytest.mark.parametrize(("family", "estimator"), CASES)
def test_single_precision(family, estimator):
    gradients = measuring.estimators_of(FAMILIES[family], Configuration())[estimator]
    phi = phi_of(family, 2.0).to(torch.float32)
    sample = gradients(FAMILIES[family].expectation, phi, 50)
    assert sample.dtype == torch.float32 and sample.isfinite().all()


def test_ratios():
    def measurement(estimator, variance, place=1.0):
        return measuring.Measurement("gamma", place, estimator, [0.0], [0.1], [0.2], variance, 0.0)

    rows = ratios(
        [measurement("implicit", 2.0), measurement("other", 6.0), measurement("implicit", 5.0, 2.0)]
    )
    assert [row["relative"] for row in rows] == [{"other": 3.0}, {}]
    assert [row["implicit"] for row in rows] == [2.0, 5.0]
    assert measurement("implicit", 1.0).deviation == pytest.approx(0.5)
