"""The inverse Gaussian distribution against SciPy and mpmath."""

import functools
import math

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from implicit_solvers.problems.reparameterization import InverseGaussian
from tests.problems.reparameterization import sample_checks as checks
from tests.problems.reparameterization.sample_checks import double

make = functools.partial(InverseGaussian, validate_args=False)
each = pytest.mark.parametrize("parameters", [(1.3, 0.7), (0.5, 20.0), (3.0, 0.05)], ids=str)


@each
def test_samples_follow_the_cdf(parameters):
    q = make(*double(*parameters))
    checks.check_distribution(q, q.cdf)


@pytest.mark.parametrize("parameters", [(1.3, 2.7), (0.5, 20.0)], ids=str)
def test_gradients_of_expectations(parameters):
    def density(z, loc, concentration):
        loc, concentration = loc.item(), concentration.item()
        return stats.invgauss.pdf(z, loc / concentration, scale=concentration)

    breaks = (0.1, 0.5, 1.0, 3.0)
    ends = lambda loc, concentration: (0.0, 60.0)
    checks.check_expectations(make, double(*parameters), density, ends, breaks)


@pytest.mark.parametrize("parameters", [(1.3, 0.7)], ids=str)
def test_derivatives_of_all_orders(parameters):
    u = torch.tensor([0.3], dtype=torch.float64)
    checks.check_orders(lambda u, *p: make(*p).icdf(u), (u, *double(*parameters)))


@each
def test_samples_move_as_quantiles_do(parameters):
    """The closed form of a sample's derivatives is that of the quantile at ``F(z)``."""
    leaves = [p.requires_grad_() for p in double(*parameters)]
    q = make(*leaves)
    z = q.rsample((10,))
    found = torch.autograd.grad(z.sum(), leaves)
    expected = torch.autograd.grad(checks.fixed(q, z.detach()).sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@each
def test_the_cdf_of_a_sample_is_constant(parameters):
    checks.check_identity(make, double(*parameters), lambda q, z: q.cdf(z))


@settings(max_examples=2)
@given(st.floats(0.2, 4), st.floats(0.2, 8), st.floats(0.05, 0.95))
def test_drawn_parameters(loc, concentration, u):
    u = torch.tensor(u, dtype=torch.float64)
    layer = lambda *p: make(*p).icdf(u)
    checks.check_gradients(layer, double(loc, concentration), order=1, vmap=False, starts=0)


def test_lanes_and_single_precision():
    checks.check_lanes(make, double(1.3, 0.7))
    checks.check_single(make, double(1.3, 0.7))


def exact_tails(x, loc, concentration):
    mp.mp.dps = 60
    x, loc, concentration = (mp.mpf(v) for v in (x, loc, concentration))
    root = mp.sqrt(concentration / x)
    phi = lambda y: mp.erfc(-y / mp.sqrt(2)) / 2
    second = mp.exp(2 * concentration / loc) * phi(-root * (x / loc + 1))
    return mp.log(phi(root * (x / loc - 1)) + second), mp.log(phi(root * (1 - x / loc)) - second)


@pytest.mark.parametrize("parameters", [(1.3, 0.7), (0.5, 20.0), (2.0, 3000.0)], ids=str)
def test_tails_are_exact(parameters):
    q = make(*double(*parameters))
    loc, spread = parameters[0], (parameters[0] ** 3 / parameters[1]) ** 0.5
    for x in [loc / 20, loc / 2, loc, loc + 0.5 * spread, loc + 5 * spread, loc + 30 * spread]:
        below, above = exact_tails(x, *parameters)
        place = torch.tensor(x, dtype=torch.float64)
        np.testing.assert_allclose(q.log_cdf(place).item(), float(below), rtol=1e-12, atol=1e-50)
        np.testing.assert_allclose(
            q.log_survival(place).item(), float(above), rtol=1e-12, atol=1e-50
        )


@each
def test_moments_and_density(parameters):
    loc, concentration = parameters
    q, oracle = make(*double(*parameters)), stats.invgauss(loc / concentration, scale=concentration)
    x = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    np.testing.assert_allclose(q.log_prob(x).numpy(), oracle.logpdf(x.numpy()), rtol=1e-12)
    np.testing.assert_allclose(q.cdf(x).numpy(), oracle.cdf(x.numpy()), rtol=1e-10)
    np.testing.assert_allclose(q.mean.item(), oracle.mean(), rtol=1e-12)
    np.testing.assert_allclose(q.variance.item(), oracle.var(), rtol=1e-12)
    np.testing.assert_allclose(q.entropy().item(), float(oracle.entropy()), rtol=1e-6)
    slope = torch.func.grad(lambda m: make(m, double(concentration)[0]).log_prob(q.mode.detach()))
    assert slope(double(loc)[0]).isfinite()
    by_x = torch.func.grad(lambda x: q.log_prob(x))(q.mode)
    assert abs(by_x.item()) < 1e-9 * concentration / q.mode.item() ** 2 + 1e-9


def test_shapes_and_edges():
    q = InverseGaussian(torch.ones(2), torch.ones(3, 1)).expand((4, 3, 2))
    assert q.batch_shape == (4, 3, 2) and q.rsample((5,)).shape == (5, 4, 3, 2)
    assert q.entropy().shape == (4, 3, 2)
    assert InverseGaussian(1.0, 2.0).icdf(torch.tensor([0.0, 1.0])).tolist() == [0, math.inf]


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: InverseGaussian(-1.0, 1.0), "loc"),
        (lambda: InverseGaussian(1.0, 0.0), "concentration"),
        (lambda: InverseGaussian(math.nan, 1.0), "loc"),
        (lambda: InverseGaussian(1.0, 1.0).log_prob(torch.tensor(-1.0)), "support"),
        (lambda: InverseGaussian(1.0, 1.0).cdf(torch.tensor(0.0)), "support"),
        (lambda: InverseGaussian(1.0, 1.0).icdf(torch.tensor(-0.1)), "outside"),
    ],
    ids=range(6),
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
