"""Distributions against SciPy, closed forms, quadratures, and what each sample must satisfy."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import kl_divergence

from implicit_solvers.problems.reparameterization import ImplicitReparameterization
from implicit_solvers.problems.reparameterization.distributions import (
    Beta,
    Dirichlet,
    Gamma,
    LKJCholesky,
    MultivariateStudentT,
    StudentT,
    VonMises,
)
from tests.problems.reparameterization import sample_checks as checks

SAMPLES = 100_000


def double(*values):
    return tuple(torch.tensor(v, dtype=torch.float64) for v in values)


def LKJ4(concentration, validate_args=None):
    return LKJCholesky(4, concentration, validate_args)


@dataclass(frozen=True)
class Case:
    make: Any
    parameters: tuple
    reference: Any = None  # of SciPy
    unfit: Any = ()  # values outside of the support

    def distribution(self, dtype=torch.float64):
        return self.make(*(torch.tensor(p, dtype=dtype) for p in self.parameters))


LOC, FACTOR = [0.3, -1.0, 2.0], [[1.5, 0.0, 0.0], [-0.4, 0.7, 0.0], [0.2, 0.5, 1.1]]
UNIVARIATE = {
    "gamma": Case(Gamma, (2.3, 1.7), scipy.stats.gamma(2.3, scale=1 / 1.7), -0.1),
    "gamma-small": Case(Gamma, (0.2, 0.5), scipy.stats.gamma(0.2, scale=2), -0.1),
    "gamma-large": Case(Gamma, (1e4, 3.0), scipy.stats.gamma(1e4, scale=1 / 3), -0.1),
    "beta": Case(Beta, (2.3, 0.7), scipy.stats.beta(2.3, 0.7), 1.1),
    "beta-small": Case(Beta, (0.2, 0.3), scipy.stats.beta(0.2, 0.3), -0.1),
    "beta-large": Case(Beta, (2e4, 30.0), scipy.stats.beta(2e4, 30.0), 1.1),
    "student_t": Case(StudentT, (3.5, 0.3, 1.7), scipy.stats.t(3.5, 0.3, 1.7), math.nan),
    "student_t-heavy": Case(StudentT, (0.4, 0.0, 2.0), scipy.stats.t(0.4, 0.0, 2.0), math.nan),
    "student_t-light": Case(StudentT, (1e3, -2.0, 0.1), scipy.stats.t(1e3, -2.0, 0.1), math.nan),
    "von_mises": Case(VonMises, (0.0, 1.3), scipy.stats.vonmises(1.3), math.nan),
    "von_mises-flat": Case(VonMises, (0.0, 1e-3), scipy.stats.vonmises(1e-3), math.nan),
    "von_mises-sharp": Case(VonMises, (0.0, 40.0), scipy.stats.vonmises(40.0), math.nan),
}
MULTIVARIATE = {
    "dirichlet": Case(Dirichlet, ([0.7, 2.0, 0.3, 1.5],), unfit=[0.5, 0.5, 0.5, 0.5]),
    "lkj_cholesky": Case(LKJ4, (0.8,), unfit=[[1.0, 0, 0, 0]] * 4),
    "multivariate_student_t": Case(
        MultivariateStudentT, (3.5, LOC, FACTOR), unfit=[math.nan, 0.0, 0.0]
    ),
}
ALL = UNIVARIATE | MULTIVARIATE
each_univariate = pytest.mark.parametrize("case", UNIVARIATE.values(), ids=UNIVARIATE)
each_multivariate = pytest.mark.parametrize("case", MULTIVARIATE.values(), ids=MULTIVARIATE)
each = pytest.mark.parametrize("case", ALL.values(), ids=ALL)


jacfwd = functools.partial(torch.func.jacfwd, randomness="same")


def uniform_of(distribution, value):
    """Return the CDF, or the Rosenblatt transform."""
    if hasattr(distribution, "rosenblatt"):
        return distribution.rosenblatt(value)
    return distribution.cdf(value)


def value_of(distribution, u):
    """Return the inverse of ``uniform_of``."""
    if hasattr(distribution, "inverse_rosenblatt"):
        return distribution.inverse_rosenblatt(u)
    return distribution.icdf(u)


def assert_uniform(u):
    for column in u.detach().reshape(len(u), -1).T.numpy():
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-4


# -------------------------------------------------------------------------------------- samples


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_samples_have_the_distribution(case, dtype):
    torch.manual_seed(0)
    distribution = case.distribution(dtype)
    z = distribution.sample((SAMPLES,))
    assert z.dtype == dtype and not z.requires_grad
    assert bool(distribution.support.check(z).all())
    # in float32 many samples of a narrow distribution are equal: only the parameters are exact
    exact = case.make(*(torch.tensor(p, dtype=dtype).double() for p in case.parameters))
    exact._validate_args = False  # rows of norm 1 up to float32
    assert_uniform(uniform_of(exact, z.double()))


def test_samples_have_the_margins_of_scipy():
    torch.manual_seed(1)
    concentration = torch.tensor([0.7, 2.0, 0.3, 1.5], dtype=torch.float64)
    z = Dirichlet(concentration).sample((SAMPLES,))
    for a, column in zip(concentration, z.T, strict=True):
        margin = scipy.stats.beta(a.item(), (concentration.sum() - a).item())
        assert scipy.stats.kstest(column.numpy(), margin.cdf).pvalue > 1e-4
    loc, factor = double(LOC, FACTOR)
    x = MultivariateStudentT(3.5, loc, factor).sample((SAMPLES,))
    for m, s, column in zip(loc, (factor @ factor.mT).diagonal().sqrt(), x.T, strict=True):
        margin = scipy.stats.t(3.5, m.item(), s.item())
        assert scipy.stats.kstest(column.numpy(), margin.cdf).pvalue > 1e-4


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_correlations_have_the_margins_of_the_lkj_distribution(dim):
    torch.manual_seed(2)
    eta = 0.6
    factor = LKJCholesky(dim, torch.tensor(eta, dtype=torch.float64)).sample((SAMPLES,))
    correlation = factor @ factor.mT
    b = eta + dim / 2 - 1
    margin = scipy.stats.beta(b, b, loc=-1, scale=2)
    for i in range(1, dim):
        for j in range(i):
            c = correlation[:, i, j]
            assert scipy.stats.kstest(c.numpy(), margin.cdf).pvalue > 1e-4
            square = c.square()
            error = square.std().item() / len(c) ** 0.5
            assert abs(square.mean().item() - 1 / (2 * eta + dim - 1)) < 4 * error


def test_tiny_shapes_have_the_distribution_in_logarithms():
    torch.manual_seed(3)
    a = torch.tensor(1e-3, dtype=torch.float64)
    log_z = Gamma(a, a).rsample_log((SAMPLES,))
    # P(a, z) = z^a / Gamma(a + 1) (1 - a z / (a + 1) + ...)
    below = log_z[log_z < -30]
    u = torch.exp(a * (below + a.log()) - (a + 1).lgamma())
    share = math.exp(1e-3 * (-30 + math.log(1e-3)) - math.lgamma(1.001))
    assert abs(len(below) / SAMPLES - share) < 4 * (share * (1 - share) / SAMPLES) ** 0.5
    assert_uniform(u / share)
    logit = Beta(a, 2 * a).rsample_logit((SAMPLES,))
    share = (logit > 0).double().mean().item()
    assert abs(share - scipy.stats.beta(1e-3, 2e-3).sf(0.5)) < 4 * (share / SAMPLES) ** 0.5


@each
def test_batch_shapes_and_expand(case):
    torch.manual_seed(4)
    distribution = case.distribution()
    for wide in (distribution.expand((3, 2)), distribution.expand((2,)).expand((3, 2))):
        assert type(wide) is type(distribution)
        assert wide.batch_shape == (3, 2)
        z = wide.rsample((5,))
        assert z.shape == (5, 3, 2, *distribution.event_shape)
        assert wide.log_prob(z).shape == (5, 3, 2)
        assert wide.entropy().shape == (3, 2)
        assert wide.mean.shape == wide.variance.shape == (3, 2, *distribution.event_shape)
        u = uniform_of(wide, z)
        torch.testing.assert_close(value_of(wide, u), z, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(wide.log_prob(z), distribution.log_prob(z))
    assert distribution.rsample((0, 2)).shape == (0, 2, *distribution.event_shape)


def test_numbers_as_parameters():
    for distribution in (Gamma(2.0, 1.0), Beta(2.0, 1.0), StudentT(3.0)):
        assert distribution.rsample().shape == ()
        assert distribution.icdf(0.25).dtype == torch.float32
    assert LKJCholesky(3, 2.0).rsample().shape == (3, 3)


# ----------------------------------------------------------------- derivatives of an expectation


def integral_over_line(log_prob, g):
    """Integrate ``g p`` by the trapezoidal rule in ``arsinh x``."""
    s = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    x = s.sinh()
    weight = s.cosh() * (s[1] - s[0])
    return (g(x) * log_prob(x).exp() * weight).sum()


def t_expectation(g):
    def expectation(df, loc, scale):
        t = torch.distributions.StudentT(df, loc, scale, validate_args=False)
        return integral_over_line(t.log_prob, g)

    return expectation


def circle_expectation(g):
    def expectation(loc, k):
        x = torch.linspace(-math.pi, math.pi, 1001, dtype=torch.float64)[1:]
        return (g(x) * torch.softmax(k * (x - loc).cos(), 0)).sum()

    return expectation


def projected(g):
    """Return the expectation of ``g(x_1 + x_3)`` of a multivariate t variable."""

    def expectation(df, loc, factor):
        scale = (factor[0] + factor[2]).square().sum().sqrt()
        return t_expectation(g)(df, loc[0] + loc[2], scale)

    return expectation


def onion(eta):
    """Return the parameters of ``L_ii^2`` for ``d = 4``."""
    row = torch.arange(1, 4, dtype=torch.float64)
    return eta + 0.5 * (3 - row), 0.5 * row


def log_of_square(x):
    return x.square().log1p()


EXPECTATIONS = {
    "gamma": (
        Gamma,
        (2.3, 1.7),
        [
            (torch.log, lambda a, r: a.digamma() - r.log()),
            (torch.square, lambda a, r: a * (a + 1) / r**2),
            (lambda z: (-z).exp(), lambda a, r: (r / (r + 1)) ** a),
        ],
    ),
    "gamma-small": (
        Gamma,
        (0.2, 0.5),
        [
            (torch.log, lambda a, r: a.digamma() - r.log()),
            (torch.square, lambda a, r: a * (a + 1) / r**2),
            (lambda z: (-z).exp(), lambda a, r: (r / (r + 1)) ** a),
        ],
    ),
    "beta": (
        Beta,
        (2.3, 0.7),
        [
            (torch.log, lambda a, b: a.digamma() - (a + b).digamma()),
            (torch.square, lambda a, b: a * (a + 1) / ((a + b) * (a + b + 1))),
            (lambda x: x * (1 - x), lambda a, b: a * b / ((a + b) * (a + b + 1))),
        ],
    ),
    "student_t": (
        StudentT,
        (9.0, 0.3, 1.7),
        [
            (torch.square, lambda n, m, s: m**2 + s**2 * n / (n - 2)),
            (torch.cos, t_expectation(torch.cos)),
            (log_of_square, t_expectation(log_of_square)),
        ],
    ),
    "von_mises": (
        VonMises,
        (2.8, 1.3),
        [
            (torch.cos, circle_expectation(torch.cos)),
            (torch.sin, circle_expectation(torch.sin)),
            (lambda x: (2 * x.cos()).exp(), circle_expectation(lambda x: (2 * x.cos()).exp())),
        ],
    ),
    "dirichlet": (
        Dirichlet,
        ([0.7, 2.0, 0.3, 1.5],),
        [
            (lambda z: z[..., 0].log(), lambda a: a[0].digamma() - a.sum().digamma()),
            (lambda z: z[..., 2].square(), lambda a: a[2] * (a[2] + 1) / (a.sum() * (a.sum() + 1))),
            (lambda z: z[..., 1] * z[..., 2], lambda a: a[1] * a[2] / (a.sum() * (a.sum() + 1))),
        ],
    ),
    "lkj_cholesky": (
        LKJ4,
        (0.8,),
        [
            (lambda L: (L @ L.mT)[..., 3, 2].square(), lambda eta: 1 / (2 * eta + 3)),
            (
                lambda L: 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1),
                lambda eta: (onion(eta)[0].digamma() - sum(onion(eta)).digamma()).sum(),
            ),
            (
                lambda L: L.diagonal(dim1=-2, dim2=-1).square().prod(-1),
                lambda eta: (onion(eta)[0] / sum(onion(eta))).prod(),
            ),
        ],
    ),
    "multivariate_student_t": (
        MultivariateStudentT,
        (9.0, LOC, FACTOR),
        [
            (
                lambda x: x[..., 0] * x[..., 1],
                lambda n, m, L: m[0] * m[1] + (L @ L.mT)[0, 1] * n / (n - 2),
            ),
            (lambda x: (x[..., 0] + x[..., 2]).cos(), projected(torch.cos)),
            (lambda x: log_of_square(x[..., 0] + x[..., 2]), projected(log_of_square)),
        ],
    ),
}


@pytest.mark.parametrize("name", EXPECTATIONS)
@pytest.mark.parametrize("place", range(3))
def test_derivative_of_an_expectation(name, place):
    make, parameters, functions = EXPECTATIONS[name]
    g, expectation = functions[place]
    phi = double(*parameters)
    torch.manual_seed(5)
    lanes = [p.expand(20_000, *p.shape).clone().requires_grad_() for p in phi]
    gradients = torch.autograd.grad(g(make(*lanes).rsample()).sum(), lanes)
    expected = torch.func.grad(expectation, argnums=tuple(range(len(phi))))(*phi)
    expected = [mean.tril() if mean.dim() == 2 else mean for mean in expected]
    for one, mean in zip(gradients, expected, strict=True):
        error = one.std(0) / len(one) ** 0.5
        assert bool(((one.mean(0) - mean).abs() <= 4 * error + 1e-6 * mean.abs()).all())


# --------------------------------------------------------------------- derivatives of one sample


@each_univariate
def test_a_sample_keeps_its_cdf(case):
    torch.manual_seed(6)
    parameters = [
        torch.full((2000,), p, dtype=torch.float64, requires_grad=True) for p in case.parameters
    ]
    distribution = case.make(*parameters)
    moved = distribution.cdf(distribution.rsample())
    for gradient, p in zip(torch.autograd.grad(moved.sum(), parameters), parameters, strict=True):
        assert float((gradient * p.detach().abs().clamp(min=1)).abs().max()) < 1e-8


def test_an_attached_vector_keeps_its_transform():
    """``d/dphi F(z(phi); phi) = 0`` where ``z`` is all that moves: `rsample` moves chi2 too."""
    torch.manual_seed(6)
    parameters = [p.requires_grad_() for p in double(3.5, LOC, FACTOR)]
    distribution = MultivariateStudentT(*parameters, validate_args=False)
    kept = distribution.rosenblatt(ImplicitReparameterization(distribution).rsample((20,)))
    for gradient in torch.autograd.grad(kept, parameters, torch.randn_like(kept)):
        assert float(gradient.abs().max()) < 1e-8


@each
def test_a_quantile_keeps_its_cdf(case):
    torch.manual_seed(7)
    parameters = [p.requires_grad_() for p in double(*case.parameters)]
    distribution = case.make(*parameters)
    distribution._validate_args = False
    u = uniform_of(distribution, distribution.sample((20,))).detach().requires_grad_()
    kept = uniform_of(distribution, value_of(distribution, u))
    torch.testing.assert_close(kept, u, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn_like(kept)
    by_u, *by_parameters = torch.autograd.grad(kept, (u, *parameters), cotangent)
    torch.testing.assert_close(by_u, cotangent, rtol=1e-8, atol=1e-8)
    for gradient, p in zip(by_parameters, parameters, strict=True):
        assert float((gradient * p.detach().abs().clamp(min=1)).abs().max()) < 1e-8


@each_univariate
def test_samples_have_the_derivatives_of_quantiles(case):
    """Both from the same noise, to second order, in every composition of two modes."""
    parameters = torch.tensor(case.parameters, dtype=torch.float64)

    def sample(parameters):
        torch.manual_seed(8)
        return case.make(*parameters, validate_args=False).rsample((3,))

    u = case.make(*parameters).cdf(sample(parameters))

    def inverse(parameters):
        return case.make(*parameters, validate_args=False).icdf(u)

    jacrev = torch.func.jacrev
    expected = jacrev(inverse)(parameters)
    for mode in (jacrev, jacfwd):
        torch.testing.assert_close(mode(sample)(parameters), expected, rtol=1e-7, atol=1e-9)
    curvature = jacrev(jacrev(inverse))(parameters)
    scale = float(curvature.abs().max())
    for outer in (jacrev, jacfwd):
        for inner in (jacrev, jacfwd):
            hessian = outer(inner(sample))(parameters)
            torch.testing.assert_close(hessian, curvature, rtol=1e-6, atol=1e-8 * scale)


@each_multivariate
def test_every_mode_of_a_multivariate_sample(case):
    parameters = double(*case.parameters)

    def sample(*parameters):
        torch.manual_seed(9)
        return case.make(*parameters, validate_args=False).rsample((2,))

    jacrev, places = torch.func.jacrev, tuple(range(len(parameters)))
    expected = jacrev(sample, places)(*parameters)
    torch.testing.assert_close(jacfwd(sample, places)(*parameters), expected)
    hessians = [
        outer(inner(lambda c: sample(c, *parameters[1:])))(parameters[0])
        for outer in (jacrev, jacfwd)
        for inner in (jacrev, jacfwd)
    ]
    assert float(hessians[0].abs().max()) > 0
    for hessian in hessians[1:]:
        torch.testing.assert_close(hessian, hessians[0])


CHECKED = {
    name: ALL[name] for name in ("gamma", "beta-small", "student_t", "von_mises", *MULTIVARIATE)
}


@pytest.mark.parametrize("case", CHECKED.values(), ids=CHECKED)
def test_gradcheck_with_the_noise_held_fixed(case):
    torch.manual_seed(10)
    distribution = case.distribution()
    shape = () if distribution.event_shape else (2,)
    u = uniform_of(distribution, distribution.sample(shape)).clamp(0.05, 0.95)
    below = torch.ones(3, 3, dtype=torch.float64).tril()

    def quantiles(u, *parameters):
        lower = [p * below if p.dim() == 2 else p for p in parameters]
        return value_of(case.make(*lower, validate_args=False), u)

    inputs = [t.requires_grad_() for t in (u, *double(*case.parameters))]
    modes = dict.fromkeys(
        ("check_forward_ad", "check_batched_grad", "check_batched_forward_grad", "fast_mode"), True
    )
    assert gradcheck(quantiles, inputs, **modes)
    assert gradgradcheck(quantiles, inputs, check_fwd_over_rev=True, fast_mode=True)


def LKJ3(concentration, validate_args=None):
    return LKJCholesky(3, concentration, validate_args)


def with_tril(df, loc, log_diagonal, validate_args=None):
    below = torch.ones(3, 3, dtype=torch.float64).tril(-1)
    return MultivariateStudentT(df, loc, 0.3 * below + log_diagonal.exp().diag(), validate_args)


positive = st.floats(-2, 3).map(lambda x: 10.0**x)
shape_parameter = st.floats(-1, 1.5).map(lambda x: 10.0**x)
three = st.tuples(*3 * [st.floats(-1, 1)])
DRAWN = {
    "gamma": (Gamma, st.tuples(positive, positive)),
    "beta": (Beta, st.tuples(positive, positive)),
    "student_t": (StudentT, st.tuples(positive, st.floats(-5, 5), positive)),
    "von_mises": (VonMises, st.tuples(st.floats(-1, 1), positive)),
    "dirichlet": (Dirichlet, st.tuples(st.tuples(*3 * [shape_parameter]))),
    "lkj_cholesky": (LKJ3, st.tuples(shape_parameter)),
    "multivariate_student_t": (with_tril, st.tuples(shape_parameter, three, three)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_parameters(name):
    make, strategy = DRAWN[name]

    @settings(max_examples=2)
    @given(strategy, st.floats(0.2, 0.8))
    def check(parameters, u):
        check_quantile(make, parameters, u, FREE.get(name), order=1, vmap=False, starts=0)

    check()


@pytest.mark.nightly
@pytest.mark.parametrize("name", DRAWN)
def test_more_drawn_parameters(name):
    make, strategy = DRAWN[name]

    @settings(max_examples=60)
    @given(strategy, st.floats(0.01, 0.99))
    def check(parameters, u):
        check_quantile(make, parameters, u, FREE.get(name))

    check()


FREE = {"dirichlet": 2, "lkj_cholesky": 3, "multivariate_student_t": 3}


def check_quantile(make, parameters, u, free=None, **options):
    # multivariate: other noise in each coordinate
    noise = torch.tensor(u, dtype=torch.float64)
    noise = noise if free is None else torch.linspace(1, 0.5, free, dtype=torch.float64) * noise

    def layer(*parameters):
        return value_of(make(*parameters, validate_args=False), noise)

    checks.check_gradients(layer, double(*parameters), **options)


# ------------------------------------------------------------------------------------------ vmap


@each
def test_vmap_draws_for_every_lane(case):
    parameters = double(*case.parameters)
    lanes = [torch.stack([p, p, p]) for p in parameters]

    def sample(*parameters):
        return case.make(*parameters, validate_args=False).rsample((2,))

    vmap = torch.func.vmap
    torch.manual_seed(11)
    z = vmap(sample, randomness="different")(*lanes)
    shared = vmap(lambda _: sample(*parameters), randomness="different")(torch.zeros(3))
    for drawn in (z, shared):
        assert drawn.shape == (3, 2, *case.distribution().event_shape)
        assert len(drawn.reshape(6, -1)[:, -2:].unique(dim=0)) == 6
    same = vmap(lambda _: sample(*parameters), randomness="same")(torch.zeros(3))
    assert bool((same == same[0]).all())
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(sample)(*lanes)


@each_univariate
def test_vmap_of_gradients(case):
    lanes = [torch.stack([p, 0.7 * p, 1.3 * p]) for p in double(*case.parameters)]

    def moved(*parameters):
        distribution = case.make(*parameters, validate_args=False)
        return distribution.cdf(distribution.rsample())

    torch.manual_seed(12)
    places = tuple(range(len(lanes)))
    gradients = torch.func.vmap(torch.func.grad(moved, places), randomness="different")(*lanes)
    for gradient, p in zip(gradients, lanes, strict=True):
        assert float((gradient * p.abs().clamp(min=1)).abs().max()) < 1e-8


@each
def test_vmap_of_quantiles(case):
    torch.manual_seed(13)
    distribution = case.distribution()
    u = uniform_of(distribution, distribution.sample((3,)))
    lanes = [torch.stack([p, p, p]) for p in double(*case.parameters)]
    value = torch.func.vmap(lambda u, *p: value_of(case.make(*p, validate_args=False), u))(
        u, *lanes
    )
    torch.testing.assert_close(value, value_of(distribution, u), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------- functions of a value

PROBABILITIES = [1e-200, 1e-14, 1e-3, 0.2, 0.5, 0.9, 1 - 1e-6, 1 - 1e-14]


@each_univariate
def test_cdf_log_prob_and_moments_against_scipy(case):
    distribution, reference = case.distribution(), case.reference
    x = torch.from_numpy(reference.ppf([0.001, 0.2, 0.5, 0.7, 0.999]))
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)
    close(distribution.cdf(x), reference.cdf(x))
    close(distribution.log_prob(x), reference.logpdf(x))
    close(distribution.entropy(), reference.entropy())
    if case.make is VonMises:
        close(distribution.variance, 1 - reference.expect(np.cos, lb=-np.pi, ub=np.pi))
    elif case.parameters[0] > 2 or case.make is not StudentT:
        close(distribution.mean, reference.mean())
        close(distribution.variance, reference.var())


@each_univariate
def test_quantiles_in_both_tails_against_scipy(case):
    """At the quantile, SciPy's tails have the probability that was asked for."""
    distribution, reference = case.distribution(), case.reference
    p = torch.tensor(PROBABILITIES, dtype=torch.float64)
    quantiles = distribution.icdf(p)
    x = quantiles.numpy()
    if case.make is VonMises:  # SciPy's has no small tails; ours is tested for itself
        inner = ((p > 1e-6) & (p < 1 - 1e-5)).numpy()
        np.testing.assert_allclose(reference.cdf(x[inner]), p[inner], rtol=2e-8)
        torch.testing.assert_close(distribution.cdf(quantiles)[1:], p[1:], rtol=1e-8, atol=1e-15)
        return
    low, high = reference.support()
    exact = (x > low) & (x < high)  # 1e-200 of a gamma variable of the shape 0.2 underflows
    assert exact.sum() >= len(p) - 3
    for chosen, tail, wanted in (
        (p < 0.5, reference.cdf, p),
        (p >= 0.5, reference.sf, 1 - p),
    ):
        at = chosen.numpy() & exact
        rounding = reference.pdf(x[at]) * np.spacing(np.abs(x[at]))
        bound = 1e-9 * wanted[at].numpy() + rounding
        assert (np.abs(tail(x[at]) - wanted[at].numpy()) <= bound).all()


@each_univariate
def test_quantiles_at_the_ends(case):
    distribution = case.distribution()
    ends = distribution.icdf(torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True))
    if case.make is VonMises:
        assert bool((ends.abs() > 3.14159265).all())
    else:
        assert ends.tolist() == pytest.approx(case.reference.support(), abs=0)
    assert not ends.isnan().any()


def test_modes_are_those_of_torch_also_in_lanes():
    vectors = [[0.5, 0.5, 2.0], [1, 1, 1], [2, 3, 4], [0.2, 0.5, 0.3], [1, 2, 3], [0.9, 0.5, 1]]
    concentration = torch.tensor(vectors, dtype=torch.float64)
    pairs = concentration[:, 0], concentration[:, 1]
    for ours, theirs, args in (
        (Dirichlet, torch.distributions.Dirichlet, (concentration,)),
        (Beta, torch.distributions.Beta, pairs),
    ):
        expected = theirs(*args).mode
        lanes = torch.func.vmap(lambda *a, make=ours: make(*a, validate_args=False).mode)(*args)
        for found in (ours(*args).mode, lanes):
            torch.testing.assert_close(found, expected, equal_nan=True)
    slope = torch.func.grad(lambda a: Beta(a, 4.0, validate_args=False).mode)
    # (a - 1) / (a + 2)
    torch.testing.assert_close(slope(*double(3.0)), double(3 / 25)[0])


def test_moments_that_do_not_exist():
    df = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64, requires_grad=True)
    t = StudentT(df)
    assert t.mean.isnan().tolist() == [True, False, False]
    assert t.variance.isnan().tolist() == [True, False, False]
    assert t.variance.isinf().tolist() == [False, True, False]
    gradient = torch.autograd.grad(t.variance[2], df)[0]
    torch.testing.assert_close(gradient, double([0.0, 0.0, -2.0])[0])
    eye = torch.eye(2, dtype=torch.float64)
    many = MultivariateStudentT(df, torch.zeros(2, dtype=torch.float64), eye)
    assert many.mean.isnan().all(-1).tolist() == [True, False, False]
    torch.testing.assert_close(many.covariance_matrix[2], 3 * eye)


def test_multivariate_log_prob_entropy_and_moments():
    loc, factor = double(LOC, FACTOR)
    t = MultivariateStudentT(3.5, loc, factor)
    reference = scipy.stats.multivariate_t(loc.numpy(), (factor @ factor.mT).numpy(), df=3.5)
    torch.manual_seed(14)
    x = t.sample((5,))
    np.testing.assert_allclose(t.log_prob(x), reference.logpdf(x.numpy()), rtol=1e-10)
    np.testing.assert_allclose(t.entropy(), reference.entropy(), rtol=1e-10)
    np.testing.assert_allclose(t.covariance_matrix, 3.5 / 1.5 * reference.shape, rtol=1e-12)
    concentration = [0.7, 2.0, 0.3, 1.5]
    dirichlet, theirs = Dirichlet(*double(concentration)), scipy.stats.dirichlet(concentration)
    z = dirichlet.sample((5,))
    np.testing.assert_allclose(dirichlet.log_prob(z), theirs.logpdf(z.numpy().T), rtol=1e-10)
    np.testing.assert_allclose(dirichlet.entropy(), theirs.entropy(), rtol=1e-10)
    np.testing.assert_allclose(dirichlet.variance, theirs.var(), rtol=1e-10)


@each_multivariate
def test_entropy_and_moments_are_those_of_the_samples(case):
    torch.manual_seed(15)
    distribution = case.distribution()
    z = distribution.sample((40_000,))
    if case.make is MultivariateStudentT:
        distribution = case.make(*double(9.0, LOC, FACTOR))
        z = distribution.sample((40_000,))
    surprise = -distribution.log_prob(z)
    error = surprise.std() / len(z) ** 0.5
    assert abs(surprise.mean() - distribution.entropy()) < 4 * error
    for power, moment in ((1, distribution.mean), (2, distribution.variance)):
        sample = z if power == 1 else (z - distribution.mean).square()
        bound = 4.5 * sample.std(0) / len(z) ** 0.5 + 1e-12
        assert bool(((sample.mean(0) - moment).abs() < bound).all())


@each_multivariate
def test_the_rosenblatt_transform_has_the_density(case):
    """``|det du/dz| = p(z)``, in the coordinates that are free."""
    torch.manual_seed(16)
    distribution = case.distribution()
    distribution._validate_args = False
    u = uniform_of(distribution, distribution.sample())
    jacobian = jacfwd(distribution.inverse_rosenblatt)(u)
    if case.make is Dirichlet:
        jacobian = jacobian[:-1]
    if case.make is LKJ4:
        row, column = torch.tril_indices(4, 4, -1)
        jacobian = jacobian[row, column]
    density = distribution.log_prob(distribution.inverse_rosenblatt(u))
    torch.testing.assert_close(-torch.linalg.det(jacobian).abs().log(), density)


@each_multivariate
def test_a_multivariate_distribution_has_no_cdf(case):
    distribution = case.distribution()
    for function in (distribution.cdf, distribution.icdf):
        with pytest.raises(NotImplementedError):
            function(distribution.mean)


LARGE = {
    "gamma": (Gamma, (1e5, 2.0)),
    "beta": (Beta, (1e5, 2e5)),
    "student_t": (StudentT, (1e5, 0.0, 1.0)),
    "von_mises": (VonMises, (0.5, 1e4)),
}


@pytest.mark.parametrize("name", LARGE)
def test_float32_has_its_precision_for_large_parameters(name):
    make, parameters = LARGE[name]
    single = make(*(torch.tensor(p) for p in parameters))
    exact = make(*double(*parameters))
    torch.manual_seed(17)
    x = single.sample((20,))
    for ours, wanted in [
        (single.log_prob(x), exact.log_prob(x.double())),
        (single.entropy(), exact.entropy()),
        (single.cdf(x), exact.cdf(x.double())),
        (single.icdf(single.cdf(x)), exact.icdf(single.cdf(x).double())),
    ]:
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, wanted.float(), rtol=1e-6, atol=1e-6)


# -------------------------------------------------------------------------------------- divergences


def test_divergences_are_expectations():
    torch.manual_seed(18)
    pairs = [
        (Gamma(*double(2.3, 1.7)), Gamma(*double(1.3, 0.7))),
        (Beta(*double(2.3, 0.7)), Beta(*double(1.3, 1.7))),
        (Dirichlet(*double([2.3, 0.7, 1.0])), Dirichlet(*double([1.3, 1.7, 0.5]))),
        (VonMises(*double(0.3, 2.0)), VonMises(*double(-0.5, 0.7))),
        (Gamma(*double(2.3, 1.7)), torch.distributions.Exponential(*double(0.7))),
        (Beta(*double(2.3, 0.7)), torch.distributions.Normal(*double(0.7, 1.0))),
    ]
    for p, q in pairs:
        z = p.sample((40_000,))
        ratio = p.log_prob(z) - q.log_prob(z)
        kl = kl_divergence(p, q)
        assert abs(ratio.mean() - kl) < 4 * ratio.std() / len(z) ** 0.5
        assert abs(kl_divergence(p, p)) < 1e-12 if type(p) is type(q) else True


def test_float32_divergences_of_large_parameters():
    for make in (Gamma, Beta):
        p, q = (torch.tensor([a, 2e5]) for a in (1e5, 1.001e5))
        kl = kl_divergence(make(*p), make(*q))
        expected = kl_divergence(make(*p.double()), make(*q.double()))
        torch.testing.assert_close(kl, expected.float(), rtol=1e-5, atol=0)
        assert float(kl) > 0
    alpha = torch.tensor([1e5, 2e5, 3e5])
    kl = kl_divergence(Dirichlet(alpha), Dirichlet(alpha * 1.001))
    exact = kl_divergence(Dirichlet(alpha.double()), Dirichlet((alpha * 1.001).double()))
    torch.testing.assert_close(kl, exact.float(), rtol=1e-5, atol=0)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "name", "parameters"),
    [
        (Gamma, "concentration", (-1.0, 1.0)),
        (Gamma, "rate", (1.0, 0.0)),
        (Beta, "concentration", (math.nan, 1.0)),
        (Beta, "concentration", (1.0, -1.0)),
        (Dirichlet, "concentration", ([1.0, 0.0],)),
        (StudentT, "df", (0.0, 0.0, 1.0)),
        (StudentT, "scale", (1.0, 0.0, -1.0)),
        (StudentT, "loc", (1.0, math.nan, 1.0)),
        (VonMises, "concentration", (0.0, -1.0)),
        (LKJ4, "concentration", (0.0,)),
        (MultivariateStudentT, "df", (-1.0, [0.0], [[1.0]])),
        (MultivariateStudentT, "loc", (1.0, [math.nan], [[1.0]])),
        (MultivariateStudentT, "scale_tril", (1.0, [0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]])),
    ],
)
def test_parameters_outside_of_their_constraints(make, name, parameters):
    with pytest.raises(ValueError, match=name):
        make(*double(*parameters))


@each
def test_values_outside_of_the_support(case):
    distribution = case.distribution()
    value = torch.tensor(case.unfit, dtype=torch.float64)
    for function in (distribution.log_prob, lambda value: uniform_of(distribution, value)):
        with pytest.raises(ValueError, match="support"):
            function(value)


@each
@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_probabilities_outside_of_the_unit_interval(case, p):
    distribution = case.distribution()
    free = {Dirichlet: 3, LKJ4: 6, MultivariateStudentT: 3}.get(case.make)
    u = torch.full(() if free is None else (free,), p, dtype=torch.float64)
    with pytest.raises(ValueError, match="probabilities in \\[0, 1\\]"):
        value_of(distribution, u)
    distribution._validate_args = False
    assert value_of(distribution, u).isnan().any()


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="loc has no dimension"):
        MultivariateStudentT(1.0, torch.tensor(0.0), torch.eye(1))
    with pytest.raises(ValueError, match=r"scale_tril has the shape \(3, 3\)"):
        MultivariateStudentT(1.0, torch.zeros(2), torch.eye(3))
    with pytest.raises(ValueError, match="dim"):
        LKJCholesky(1, 1.0)
