"""Truncated and inverse Gaussian distributions against SciPy, mpmath and closed forms."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import distributions as td

from implicit_solvers.problems.reparameterization import InverseGaussian, Truncated, TruncatedNormal
from tests.problems.reparameterization.cases import double

INF = math.inf


def exact_moments(loc, scale, low, high):
    """Mean, variance, entropy, ln(mass), with 40 digits."""
    mp.mp.dps = 40
    a, b = ((mp.mpf(end) - loc) / scale for end in (low, high))
    mode = min(max(a, mp.mpf(0)), b)
    ends = mp.linspace(max(a, mode - 40), min(b, mode + 40), 41)
    density = lambda t: mp.exp((mode * mode - t * t) / 2)
    mass = mp.quad(density, ends)
    mean = mp.quad(lambda t: t * density(t), ends) / mass
    variance = mp.quad(lambda t: (t - mean) ** 2 * density(t), ends) / mass
    square = mp.quad(lambda t: t * t * density(t), ends) / mass
    log_mass = mp.log(mass) - mode * mode / 2
    entropy = mp.log(scale) + log_mass + square / 2
    return loc + scale * mean, scale**2 * variance, entropy, log_mass - mp.log(2 * mp.pi) / 2


INTERVALS = [
    (0.0, 1.0, 10.0, INF),
    (0.0, 1.0, -INF, INF),
    (0.3, 1.5, -1.0, 2.0),
    (1.0, 2.0, -INF, -75.0),
    (0.0, 1.0, 5.0, 5.001),
    (0.0, 1.0, -0.1, 0.1),
    (0.0, 1.0, -9.0, 0.5),
]


@pytest.mark.parametrize("parameters", INTERVALS, ids=str)
def test_moments_are_exact(parameters):
    q = TruncatedNormal(*double(*parameters))
    mean, variance, entropy, log_mass = exact_moments(*parameters)
    z = torch.as_tensor(float(mean), dtype=torch.float64)
    standard = (mp.mpf(z.item()) - parameters[0]) / parameters[1]
    log_prob = -(standard**2) / 2 - mp.log(2 * mp.pi) / 2 - mp.log(parameters[1]) - log_mass
    np.testing.assert_allclose(q.mean.item(), float(mean), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(q.variance.item(), float(variance), rtol=1e-11)
    np.testing.assert_allclose(q.entropy().item(), float(entropy), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(q.log_prob(z).item(), float(log_prob), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("low", [0.0, 3.0, 10.0])
def test_a_narrow_interval_does_not_cancel(low):
    mp.mp.dps = 40
    width = 2.0**-23
    q = TruncatedNormal(*double(0.0, 1.0, low, low + width))
    mass = mp.quad(mp.npdf, [low, low + width])
    expected = mp.log(mp.npdf(low)) - mp.log(mass)
    found = q.log_prob(torch.tensor(low, dtype=torch.float64)).item()
    np.testing.assert_allclose(found, float(expected), rtol=1e-13)


def test_derivatives_of_moments_in_the_tail():
    """mean = loc + scale h(a) with h' = h (h - a), h the hazard, for a = 10 without upper end."""
    mp.mp.dps = 40
    a = mp.mpf(10)
    h = mp.npdf(a) / (mp.erfc(a / mp.sqrt(2)) / 2)
    slope = h * (h - a)
    loc, scale, low = double(0.0, 1.0, 10.0, requires_grad=True)
    q = TruncatedNormal(loc, scale, low)
    found = torch.autograd.grad(q.mean, (loc, scale, low))
    expected = [float(x) for x in (1 - slope, h - a * slope, slope)]
    np.testing.assert_allclose([f.item() for f in found], expected, rtol=1e-11)


@pytest.mark.parametrize("p", [1e-12, 0.3, 0.999999])
def test_quantiles_in_the_tail_are_exact(p):
    """And their derivatives: dz/dlow = q(low) (1 - F) / q(z)."""
    mp.mp.dps = 40
    survival = lambda x: mp.erfc(x / mp.sqrt(2)) / 2
    target = survival(mp.mpf(10)) * (1 - mp.mpf(p))
    # the distance in units of the hazard is a start for a bracket
    z = mp.findroot(lambda x: mp.log(survival(x) / target), (10, 10.5), solver="secant", tol=1e-30)
    slope = mp.npdf(10) * (1 - mp.mpf(p)) / mp.npdf(z)
    low = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    q = TruncatedNormal(*double(0.0, 1.0), low)
    found = q.icdf(torch.tensor(p, dtype=torch.float64))
    np.testing.assert_allclose(found.item(), float(z), rtol=1e-13)
    (derivative,) = torch.autograd.grad(found, low)
    np.testing.assert_allclose(derivative.item(), float(slope), rtol=1e-10)


def test_an_exponential_has_no_memory():
    rate, low = double(2.0, 300.0, requires_grad=True)
    q = Truncated(td.Exponential(rate), low)
    np.testing.assert_allclose((q.mean - low).item(), 0.5, rtol=1e-11)
    np.testing.assert_allclose(q.variance.item(), 0.25, rtol=1e-10)
    np.testing.assert_allclose(q.entropy().item(), 1 - math.log(2), rtol=1e-10)
    z = q.rsample((1000,))
    by_rate, by_low = torch.autograd.grad(z.sum(), (rate, low))
    np.testing.assert_allclose(by_low.item(), 1000, rtol=1e-9)
    np.testing.assert_allclose(by_rate.item(), -(z - low).sum().item() / 2, rtol=1e-9)


def test_a_moment_that_diverges():
    base = td.HalfCauchy(torch.tensor(1.0, dtype=torch.float64))
    assert Truncated(base, 1.0).mean == INF
    assert Truncated(base, 1.0, 2.0).mean.isfinite()


# ---------------------------------------------------------------------------------------- edges


def test_outside():
    q = TruncatedNormal(*double(0.0, 1.0, -1.0, 2.0), validate_args=False)
    log_prob = q.log_prob(*double([-1.0, 2.0, -3.0, 5.0]))
    assert log_prob[:2].isfinite().all() and log_prob[2:].tolist() == [-INF, -INF]


def test_ends_of_several_shapes():
    q = TruncatedNormal(torch.zeros(2), 1.0, torch.zeros(3, 1))
    assert q.batch_shape == (3, 2) and q.rsample((4,)).shape == (4, 3, 2)
    torch.testing.assert_close(q.expand((5, 3, 2)).mean[0], q.mean)
    assert Truncated(td.Exponential(1.0), 1.0).expand((2,)).rsample().shape == (2,)


# ---------------------------------------------------------------- the inverse Gaussian distribution


def exact_tails(x, loc, concentration):
    mp.mp.dps = 60
    x, loc, concentration = (mp.mpf(v) for v in (x, loc, concentration))
    root = mp.sqrt(concentration / x)
    phi = lambda y: mp.erfc(-y / mp.sqrt(2)) / 2
    second = mp.exp(2 * concentration / loc) * phi(-root * (x / loc + 1))
    return mp.log(phi(root * (x / loc - 1)) + second), mp.log(phi(root * (1 - x / loc)) - second)


@pytest.mark.parametrize("parameters", [(1.3, 0.7), (0.5, 20.0), (2.0, 3000.0)], ids=str)
def test_tails_are_exact(parameters):
    q = InverseGaussian(*double(*parameters))
    loc, spread = parameters[0], (parameters[0] ** 3 / parameters[1]) ** 0.5
    for x in [loc / 20, loc / 2, loc, loc + 0.5 * spread, loc + 5 * spread, loc + 30 * spread]:
        below, above = exact_tails(x, *parameters)
        place = torch.tensor(x, dtype=torch.float64)
        np.testing.assert_allclose(q.log_cdf(place).item(), float(below), rtol=1e-12, atol=1e-50)
        found = q.log_survival(place).item()
        np.testing.assert_allclose(found, float(above), rtol=1e-12, atol=1e-50)


@pytest.mark.parametrize("loc, concentration", [(1.3, 0.7), (0.5, 20.0), (3.0, 0.05)])
def test_the_mode_is_where_the_density_is_flat(loc, concentration):
    q = InverseGaussian(*double(loc, concentration))
    by_x = torch.func.grad(q.log_prob)(q.mode)
    # the roundings of terms of this size cancel
    assert abs(by_x.item()) < 1e-9 * (concentration / q.mode.item() ** 2 + 1)
