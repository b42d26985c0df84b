"""The tool: any distribution with a CDF, and any log-density on an interval."""

from typing import ClassVar

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import distributions as td
from torch.autograd import gradcheck, gradgradcheck

from implicit_solvers.problems.reparameterization import ImplicitReparameterization
from implicit_solvers.testing import check_implicit_gradients
from tests.problems.reparameterization import cases
from tests.problems.reparameterization.cases import SAMPLES, double, mean_over, well


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
    z = ImplicitReparameterization(Triangle(top)).rsample((SAMPLES // 5,))
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


def drawn_again(*parameters, shape=()):
    """Samples whose noise is the same for all parameters."""
    torch.manual_seed(3)
    return gompertz(*parameters).rsample(shape)


def test_samples_by_a_cdf_alone():
    parameters = double(0.3, 1.5, requires_grad=True)
    z = gompertz(*parameters).rsample((SAMPLES // 5,)).detach().numpy()
    assert stats.kstest(z, stats.gompertz(0.3, scale=1 / 1.5).cdf).pvalue > 1e-4
    cases.assert_constant(
        Gompertz(*parameters).cdf(gompertz(*parameters).rsample((20,))), parameters
    )
    layer = lambda *p: drawn_again(*p, shape=(2,))
    assert gradcheck(layer, parameters, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(layer, parameters, fast_mode=True)


def test_derivatives_of_expectations_by_a_cdf_alone():
    unit = torch.linspace(0, 1, 4001, dtype=torch.float64)
    density = lambda z, a, b: b * z - a * (b * z).expm1() + (a * b).log()
    expectation = mean_over(lambda *_: (12 * unit, 1.0), density)
    costs = (torch.square, torch.sin, lambda z: (-z * z).exp())
    cases.check_expectations(
        gompertz, double(0.3, 1.5), [(cost, expectation(cost)) for cost in costs]
    )


@settings(max_examples=2)
@given(st.floats(0.05, 3), st.floats(0.2, 4))
def test_drawn_parameters_of_the_tool(a, b):
    options = {"order": 1, "vmap": False, "starts": 0}
    report = check_implicit_gradients(drawn_again, None, double(a, b), **options)
    # it judges by what rounding changes in a result, here in a sum of terms
    assert all(entry.error is not None and entry.error < 1e-9 for entry in report.failures)


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


WELL = (2.0, -1.7, 2.0)


def test_samples_of_a_density_follow_its_cdf():
    q = well(*double(*WELL))
    z = q.sample((SAMPLES // 5,)).numpy()
    # an independent CDF
    grid = np.linspace(WELL[1], WELL[2], 20_001)
    mass = integrate.cumulative_simpson(np.exp(-WELL[0] * (grid**2 - 1) ** 2), x=grid, initial=0)
    assert stats.kstest(z, lambda x: np.interp(x, grid, mass / mass[-1])).pvalue > 1e-4
