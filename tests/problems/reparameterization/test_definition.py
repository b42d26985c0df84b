"""The tool: any distribution with a CDF, and any log-density on an interval."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import distributions as td

from implicit_solvers.problems.reparameterization import (
    ImplicitReparameterization,
    IntervalDensity,
    definition,
)
from tests.problems.imaml.test_definition import logic_lines
from tests.problems.reparameterization import sample_checks as checks
from tests.problems.reparameterization.sample_checks import double


def well(depth, low, high):
    return IntervalDensity(
        lambda z: -depth * (z * z - 1) ** 2, low, high, nodes=32, validate_args=False
    )


WELL = (2.0, -1.7, 2.0)


class Triangle(td.Distribution):
    """The density 2 z / top^2 on [0, top]; it has no sampler."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, top, scale=1.0):
        self.top, self.scale = top, scale
        super().__init__(top.shape, validate_args=False)

    @property
    def support(self):
        return td.constraints.interval(0.0, self.top)

    def cdf(self, z):
        return self.scale * (z / self.top) ** 2


def test_a_sample_moves_as_the_closed_form_says():
    scale, shape = double(2.0, 3.0, requires_grad=True)
    z = ImplicitReparameterization(td.Weibull(scale, shape)).rsample((5,))
    found = torch.autograd.grad(z.sum(), (scale, shape))
    log = (z / scale).log()
    expected = ((z / scale).sum(), (-z * log / shape).sum())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_a_distribution_without_sampler():
    top = torch.tensor([2.0, 5.0], dtype=torch.float64, requires_grad=True)
    z = ImplicitReparameterization(Triangle(top)).rsample((checks.SAMPLES,))
    for lane, end in zip(z.detach().T.numpy(), top.tolist(), strict=True):
        assert stats.kstest(lane, lambda x, end=end: (x / end) ** 2).pvalue > 1e-4
    (slope,) = torch.autograd.grad(z.sum(), top)
    torch.testing.assert_close(slope, (z / top).sum(0).detach(), rtol=1e-8, atol=0)


class Gompertz(td.Distribution):
    """``1 - F = exp(-a (exp(b z) - 1))``, by the CDF alone; it has no sampler."""

    arg_constraints: ClassVar[dict] = {}
    support = td.constraints.positive

    def __init__(self, a, b):
        self.a, self.b = a, b
        super().__init__(a.shape, validate_args=False)

    def log_survival(self, z):
        return -self.a * (self.b * z).expm1()

    def log_cdf(self, z):
        return (-self.log_survival(z).expm1()).log()

    def cdf(self, z):
        return self.log_cdf(z).exp()


def gompertz(a, b):
    return ImplicitReparameterization(Gompertz(a, b), validate_args=False)


def drawn_again(tool, *shape):
    """Samples whose noise is the same for all parameters."""
    torch.manual_seed(3)
    return tool.rsample(shape)


def test_samples_of_the_tool_follow_the_cdf():
    q = Gompertz(*double(0.3, 1.5))
    torch.manual_seed(1)
    z = ImplicitReparameterization(q).rsample((checks.SAMPLES,)).numpy()
    assert stats.kstest(z, stats.gompertz(0.3, scale=1 / 1.5).cdf).pvalue > 1e-4


def test_gradients_of_expectations_by_the_tool():
    density = lambda z, a, b: stats.gompertz.pdf(z, a, scale=1 / b).item()
    ends = lambda a, b: (0.0, 12.0)
    checks.check_expectations(gompertz, double(0.3, 1.5), density, ends)


def test_derivatives_of_all_orders_by_the_tool():
    checks.check_orders(lambda *p: drawn_again(gompertz(*p), 2), double(0.3, 1.5))


@settings(max_examples=2)
@given(st.floats(0.05, 3), st.floats(0.2, 4))
def test_drawn_parameters_of_the_tool(a, b):
    layer = lambda *p: drawn_again(gompertz(*p))
    checks.check_gradients(layer, double(a, b), order=1, vmap=False, starts=0)


def test_the_cdf_of_a_sample_of_the_tool_is_constant():
    checks.check_identity(gompertz, double(0.3, 1.5), lambda q, z: q.distribution.cdf(z))


def test_a_chain_of_conditional_cdfs():
    """z_1 ~ N(m, 1), z_2 | z_1 ~ N(a z_1, 1): z_2 moves through z_1 too."""
    m, a = double(0.5, 2.0, requires_grad=True)
    eye = torch.eye(2, dtype=torch.float64)
    q = td.MultivariateNormal(torch.zeros(2, dtype=torch.float64), eye)

    def transform(z):
        gaps = torch.stack([z[..., 0] - m, z[..., 1] - a * z[..., 0]], -1)
        return torch.special.ndtr(gaps)

    z = ImplicitReparameterization(q, transform).rsample((4,))
    by_m, by_a = torch.autograd.grad(z[:, 1].sum(), (m, a))
    torch.testing.assert_close(by_m, 4 * a.detach())
    torch.testing.assert_close(by_a, z[:, 0].sum().detach())


def test_samples_of_a_density_follow_its_cdf():
    q = well(*double(*WELL))
    torch.manual_seed(1)
    z = q.sample((100_000,)).numpy()
    # an independent CDF
    grid = np.linspace(WELL[1], WELL[2], 20_001)
    mass = integrate.cumulative_simpson(np.exp(-WELL[0] * (grid**2 - 1) ** 2), x=grid, initial=0)
    assert stats.kstest(z, lambda x: np.interp(x, grid, mass / mass[-1])).pvalue > 1e-4


def test_gradients_of_expectations_of_a_density():
    """Against the gradient of a trapezoidal rule, whose ends are the density's."""
    parameters = double(*WELL)
    s = torch.linspace(0, 1, 4001, dtype=torch.float64)

    def expectation(depth, low, high, cost):
        z = low + s * (high - low)
        density = (-depth * (z * z - 1) ** 2).exp()
        return torch.trapezoid(cost(z) * density, z) / torch.trapezoid(density, z)

    for cost, _ in checks.COSTS.values():
        exact = torch.func.grad(lambda *p, g=cost: expectation(*p, g), argnums=(0, 1, 2))(
            *parameters
        )
        found = checks.estimates(well, parameters, cost, 4_000)
        for (mean, error), slope in zip(found, exact, strict=True):
            assert (np.abs(mean - slope.numpy()) <= 4 * error + 1e-6).all()


@settings(max_examples=2)
@given(st.floats(0.1, 3), st.floats(-2, 0), st.floats(0.5, 2), st.floats(0.1, 0.9))
def test_drawn_parameters_of_a_density(depth, low, width, u):
    u = torch.tensor(u, dtype=torch.float64)
    parameters = double(depth, low, low + width)
    layer = lambda *p: well(*p).icdf(u)
    checks.check_gradients(layer, parameters, order=1, vmap=False, starts=0)


def test_moments_of_a_density():
    q = well(*double(*WELL))
    f = lambda z: np.exp(-WELL[0] * (z * z - 1) ** 2)
    mass = integrate.quad(f, *WELL[1:])[0]
    mean = integrate.quad(lambda z: z * f(z), *WELL[1:])[0] / mass
    variance = integrate.quad(lambda z: (z - mean) ** 2 * f(z), *WELL[1:])[0] / mass
    entropy = -integrate.quad(lambda z: f(z) / mass * np.log(f(z) / mass), *WELL[1:])[0]
    found = [q.mean.item(), q.variance.item(), q.entropy().item()]
    np.testing.assert_allclose(found, [mean, variance, entropy], rtol=1e-9, atol=1e-10)
    z = torch.tensor(0.4, dtype=torch.float64)
    np.testing.assert_allclose(q.log_prob(z).exp().item(), f(0.4) / mass, rtol=1e-10)
    np.testing.assert_allclose(
        q.cdf(z).item(), integrate.quad(f, WELL[1], 0.4)[0] / mass, rtol=1e-10
    )


def test_derivatives_of_all_orders_of_a_density():
    u = torch.tensor([0.3], dtype=torch.float64)
    checks.check_orders(lambda u, *p: well(*p).icdf(u), (u, *double(*WELL)))


def test_the_cdf_of_a_sample_is_constant():
    checks.check_identity(well, double(*WELL), lambda q, z: q.cdf(z), (3,))


def test_lanes_of_a_density():
    checks.check_lanes(well, double(*WELL))


BAD = {
    "discrete": (lambda: ImplicitReparameterization(td.Poisson(2.0)), ValueError, "discrete"),
    "type": (lambda: ImplicitReparameterization(3.0), TypeError, "pass a torch.distr"),
    "no chain": (
        lambda: ImplicitReparameterization(td.Dirichlet(torch.ones(3))),
        NotImplementedError,
        "rosenblatt",
    ),
    "does not reach 1": (
        lambda: ImplicitReparameterization(Triangle(torch.tensor(2.0), 0.5)),
        ValueError,
        "at the end 2 of its support is 0.5 instead of 1",
    ),
    "not monotone": (
        lambda: ImplicitReparameterization(td.Normal(0.0, 1.0), torch.cos).rsample((50,)),
        ValueError,
        "does not increase",
    ),
    "outside": (
        lambda: ImplicitReparameterization(td.Exponential(1.0)).attach(torch.tensor(-1.0)),
        ValueError,
        "outside the support",
    ),
    "shape": (
        lambda: ImplicitReparameterization(td.Normal(torch.zeros(3), 1.0)).attach(torch.ones(2)),
        ValueError,
        "does not end in",
    ),
    "narrow peak": (
        lambda: IntervalDensity(lambda z: -1e6 * z * z, torch.tensor(-1.0), 1.0),
        ValueError,
        "increase nodes",
    ),
    "infinite": (
        lambda: IntervalDensity(torch.neg, torch.tensor(0.0), torch.inf),
        ValueError,
        "finite ends",
    ),
    "empty": (lambda: IntervalDensity(torch.neg, torch.tensor(1.0), 0.0), ValueError, "low < high"),
    "NaN": (lambda: IntervalDensity(torch.log, torch.tensor(-1.0), 1.0), ValueError, "not finite"),
    "numbers": (lambda: IntervalDensity(torch.neg, 0, 1), TypeError, "floating tensor"),
}


@pytest.mark.parametrize("build, error, message", BAD.values(), ids=BAD)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_the_definition_fits_on_a_page():
    assert logic_lines(Path(definition.__file__).read_text()) <= 60
