"""Distributions with implicit derivatives, a new one is a row; and what their checks share."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import distributions as td
from torch.autograd import grad

from implicit_solvers.problems import reparameterization as dist
from implicit_solvers.problems.reparameterization import Beta, Gamma, StudentT, Truncated, VonMises

NAN = math.nan
SAMPLES = 100_000
SLOPES = 20_000


def double(*values, requires_grad=False):
    return tuple(torch.tensor(v, dtype=torch.float64, requires_grad=requires_grad) for v in values)


@dataclass(frozen=True)
class Case:
    """A distribution: ``make(*parameters, validate_args)``."""

    make: Any
    parameters: tuple
    reference: Any = None  # of SciPy
    unfit: Any = NAN  # a value outside of the support
    free: int = 0  # coordinates of the Rosenblatt transform
    slow: bool = False  # samples and quantiles are solved for

    def __call__(self, *parameters):
        return self.make(*(parameters or double(*self.parameters)), validate_args=False)

    @property
    def leaves(self):
        return double(*self.parameters, requires_grad=True)


def lkj(dim):
    return functools.partial(dist.LKJCholesky, dim)


def truncated_gamma(concentration, rate, low, high, validate_args=None):
    return Truncated(Gamma(concentration, rate, validate_args=False), low, high, validate_args)


def truncated_weibull(scale, concentration, low, validate_args=None):
    return Truncated(td.Weibull(scale, concentration, False), low, validate_args=validate_args)


def truncated_wald(loc, concentration, high, validate_args=None):
    base = dist.InverseGaussian(loc, concentration, False)
    return Truncated(base, high=high, validate_args=validate_args)


def well(depth, low, high, validate_args=None):
    log_density = lambda z: -depth * (z * z - 1) ** 2
    nodes = 32 if validate_args is False else 64  # the check is of half of them
    return dist.IntervalDensity(log_density, low, high, nodes, validate_args)


def mixture(kind):
    def make(logits, *p, validate_args=None):
        weights = td.Categorical(logits=logits, validate_args=False)
        return dist.MixtureSameFamily(weights, kind(*p, validate_args=False), validate_args)

    return make


def correlated(loc, factor, validate_args=None):
    return td.MultivariateNormal(loc, scale_tril=factor.tril(), validate_args=validate_args)


def independent(loc, validate_args=None):
    return td.Independent(td.Laplace(loc, 0.7, validate_args), 1, validate_args)


def gaussian_copula(factor, validate_args=None):
    return dist.GaussianCopula(factor.tril(), validate_args)


def archimedean(kind, dim):
    return functools.partial(kind, dim=dim)


def joined(theta, concentration, loc, scale, validate_args=None):
    copula = dist.ClaytonCopula(theta, 3, validate_args)
    of_torch = td.Gamma(concentration, 1.5, False), td.Normal(loc, scale, False)
    marginals = [dist.Gamma(concentration, 2.0, False), *of_torch]
    return dist.CopulaDistribution(copula, marginals, validate_args)


def shared(theta, df, validate_args=None):
    copula = dist.FrankCopula(theta, 2, validate_args)
    return dist.CopulaDistribution(copula, StudentT(df, validate_args=False), validate_args)


def inverse_gaussian(loc, concentration):
    oracle = stats.invgauss(loc / concentration, scale=concentration)
    return Case(dist.InverseGaussian, (loc, concentration), oracle, -1.0)


LOC, FACTOR = [0.3, -1.0, 2.0], [[1.5, 0.0, 0.0], [-0.4, 0.7, 0.0], [0.2, 0.5, 1.1]]
LOGITS, LOCS = [0.3, -0.2, 0.1], [[-1.0, 0.5], [0.0, 0.0], [2.0, -1.0]]
FACTORS = [[[0.5, 0.0], [0.3, 1.0]], [[1.0, 0.0], [-0.8, 0.6]], [[2.0, 0.0], [0.0, 1.0]]]
LINE = ([-2.0, 0.0, 3.0], [0.5, 1.0, 2.0])
MIXED = {
    "normal": (td.Normal, LINE),
    "laplace": (td.Laplace, LINE),
    "cauchy": (td.Cauchy, LINE),
    "exponential": (td.Exponential, ([0.5, 2.0, 9.0],)),
    "student_t": (StudentT, ([1.5, 5.0, 20.0], [0.0, 2.0, 4.0], [1.0, 0.5, 2.0])),
    "gamma": (Gamma, ([0.5, 2.0, 9.0], [1.0, 2.0, 3.0])),
    "beta": (Beta, ([0.5, 2.0, 9.0], [1.0, 2.0, 3.0])),
    "von_mises": (VonMises, ([0.0, 2.8, -1.5], [2.0, 0.7, 9.0])),
}
TORCHS = {
    "gamma": Case(Gamma, (2.3, 1.7), stats.gamma(2.3, scale=1 / 1.7), -0.1),
    "gamma-small": Case(Gamma, (0.2, 0.5), stats.gamma(0.2, scale=2), -0.1),
    "gamma-large": Case(Gamma, (1e4, 3.0), stats.gamma(1e4, scale=1 / 3), -0.1),
    "beta": Case(Beta, (2.3, 0.7), stats.beta(2.3, 0.7), 1.1),
    "beta-small": Case(Beta, (0.2, 0.3), stats.beta(0.2, 0.3), -0.1),
    "beta-large": Case(Beta, (2e4, 30.0), stats.beta(2e4, 30.0), 1.1),
    "student_t": Case(StudentT, (3.5, 0.3, 1.7), stats.t(3.5, 0.3, 1.7)),
    "student_t-heavy": Case(StudentT, (0.4, 0.0, 2.0), stats.t(0.4, 0.0, 2.0)),
    "student_t-light": Case(StudentT, (1e3, -2.0, 0.1), stats.t(1e3, -2.0, 0.1)),
    "von_mises": Case(VonMises, (0.0, 1.3), stats.vonmises(1.3)),
    "von_mises-flat": Case(VonMises, (0.0, 1e-3), stats.vonmises(1e-3)),
    "von_mises-sharp": Case(VonMises, (0.0, 40.0), stats.vonmises(40.0)),
    "inverse_gaussian": inverse_gaussian(1.3, 0.7),
    "inverse_gaussian-sharp": inverse_gaussian(0.5, 20.0),
    "inverse_gaussian-flat": inverse_gaussian(3.0, 0.05),
}
UNIVARIATE = TORCHS | {
    "truncated": Case(dist.TruncatedNormal, (0.3, 1.5, -1.0, 2.0), unfit=2.1, slow=True),
    "truncated-tail": Case(dist.TruncatedNormal, (0.0, 1.0, 10.0, 12.0), unfit=9.0, slow=True),
    "truncated-left": Case(dist.TruncatedNormal, (1.0, 2.0, -30.0, -20.0), unfit=0.0, slow=True),
    "truncated-narrow": Case(dist.TruncatedNormal, (0.0, 1.0, 5.0, 5.1), unfit=0.0, slow=True),
    "truncated-gamma": Case(truncated_gamma, (2.0, 1.5, 0.5, 3.0), unfit=0.4, slow=True),
    "truncated-weibull": Case(truncated_weibull, (2.0, 1.5, 0.7), unfit=0.6, slow=True),
    "truncated-wald": Case(truncated_wald, (1.3, 0.7, 2.0), unfit=2.1, slow=True),
    "density": Case(well, (2.0, -1.7, 2.0), unfit=2.1, slow=True),
    **{f"mixed-{k}": Case(mixture(m), (LOGITS, *p), slow=True) for k, (m, p) in MIXED.items()},
}
MULTIVARIATE = {
    "dirichlet": Case(dist.Dirichlet, ([0.7, 2.0, 0.3, 1.5],), None, [0.5] * 4, 3),
    "lkj_cholesky": Case(lkj(4), (0.8,), None, [[1.0, 0, 0, 0]] * 4, 6),
    "multivariate_t": Case(dist.MultivariateStudentT, (3.5, LOC, FACTOR), None, [NAN, 0.0, 0.0], 3),
    "correlated": Case(mixture(correlated), (LOGITS, LOCS, FACTORS), None, [NAN, 0.0], 2, True),
    "gaussian_copula": Case(gaussian_copula, (FACTOR,), None, [1.1, 0.5, 0.5], 3),
    "clayton": Case(archimedean(dist.ClaytonCopula, 3), (1.7,), None, [-0.1, 0.5, 0.5], 3, True),
    "frank": Case(archimedean(dist.FrankCopula, 3), (4.0,), None, [0.5, 0.5, 1.1], 3, True),
    "frank-negative": Case(archimedean(dist.FrankCopula, 2), (-4.0,), None, [0.5, NAN], 2, True),
    "joined": Case(joined, (1.7, 2.3, 0.3, 1.5), None, [1.0, -1.0, 0.0], 3, True),
    "shared": Case(shared, (-3.0, [3.0, 5.0]), None, [NAN, 0.0], 2, True),
    "independent": Case(mixture(independent), (LOGITS, LOCS), None, [NAN, 0.0], 2, True),
}
ALL = UNIVARIATE | MULTIVARIATE


# --------------------------------------------------------------------- the checks of samples


def uniform_of(q, value):
    """Return the CDF, or the Rosenblatt transform."""
    return q.rosenblatt(value) if q.event_shape else q.cdf(value)


def value_of(q, u):
    """Return the inverse of ``uniform_of``."""
    return q.inverse_rosenblatt(u) if q.event_shape else q.icdf(u)


def assert_uniform(u):
    """Kolmogorov and Smirnov's test of each column."""
    for column in u.detach().reshape(len(u), -1).T.numpy():
        assert stats.kstest(column, "uniform").pvalue > 1e-4


def fixed(q, z):
    """The same samples, attached by the tool."""
    return dist.ImplicitReparameterization(q, validate_args=False).attach(z)


def size_of(p):
    return p.detach().abs().clamp(min=1)


def assert_constant(u, parameters, orders=2, rounding=0.0):
    """``u = F(z(phi); phi)`` does not change with ``phi``, nor does its derivative."""
    slopes = grad(u.sum(), parameters, create_graph=orders == 2)
    for slope, p in zip(slopes, parameters, strict=True):
        assert bool(((slope * size_of(p)).abs() < 1e-8 + rounding).all())
    if orders == 2:
        curvatures = grad(sum(s.sum() for s in slopes), parameters, materialize_grads=True)
        for curvature, p in zip(curvatures, parameters, strict=True):
            assert bool(((curvature * size_of(p)).abs() < 1e-7).all())


def check_expectations(make, parameters, rows, count=SLOPES):
    """Compare dE[cost]/dphi, a mean of samples, with the derivative of each ``(cost, E[cost])``."""
    torch.manual_seed(2)
    lanes = [p.expand(count, *p.shape).clone().requires_grad_() for p in parameters]
    z = make(*lanes).rsample()
    for cost, expectation in rows:
        exact = torch.func.grad(expectation, tuple(range(len(lanes))))(*parameters)
        for found, slope in zip(grad(cost(z).sum(), lanes, retain_graph=True), exact, strict=True):
            # the second half of a triangular factor is not used
            slope = slope.tril() if slope.shape[-2:] == (3, 3) else slope
            error = found.std(0) / count**0.5
            # the expectations are right to about 1e-7
            assert ((found.mean(0) - slope).abs() <= 4 * error + 1e-6 * (1 + slope.abs())).all()


def mean_over(places, log_density):
    """Return E as a function of the cost: the trapezoidal rule.

    ``places(*parameters)`` are points and their distances, up to a factor, as is the density.
    """

    def expectation(cost):
        def mean(*parameters):
            z, step = places(*parameters)
            density = log_density(z, *parameters)
            density = (density - density.detach().max()).exp() * step
            return torch.trapezoid(cost(z) * density) / torch.trapezoid(density)

        return mean

    return expectation
