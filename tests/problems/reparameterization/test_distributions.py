"""The distributions of `cases` against SciPy, closed forms, and what each sample must satisfy."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import jacrev, vmap

from implicit_solvers.problems import reparameterization as dist
from implicit_solvers.problems.reparameterization import Beta, Dirichlet, Gamma, StudentT, VonMises
from implicit_solvers.problems.reparameterization.precision import converted
from implicit_solvers.problems.reparameterization.tails import log_tails
from implicit_solvers.testing import check_implicit_gradients
from tests.problems.reparameterization import cases
from tests.problems.reparameterization.cases import ALL, TORCHS, UNIVARIATE, Case, double, mean_over

MULTIVARIATE = cases.MULTIVARIATE
each = pytest.mark.parametrize("case", ALL.values(), ids=ALL)
each_univariate = pytest.mark.parametrize("case", UNIVARIATE.values(), ids=UNIVARIATE)
each_multivariate = pytest.mark.parametrize("case", MULTIVARIATE.values(), ids=MULTIVARIATE)
each_of_scipy = pytest.mark.parametrize("case", TORCHS.values(), ids=TORCHS)


def jacfwd(function, argnums=0):
    return torch.func.jacfwd(function, argnums, randomness="same")


# -------------------------------------------------------------------------------------- samples


SAMPLED = [(n, torch.float64) for n in ALL] + [(n, torch.float32) for n in ALL if not ALL[n].slow]


@pytest.mark.parametrize("name, dtype", SAMPLED, ids=[f"{n}-{str(d)[6:]}" for n, d in SAMPLED])
def test_samples_have_the_distribution(name, dtype):
    case = ALL[name]
    parameters = [p.to(dtype) for p in double(*case.parameters)]
    q = case(*parameters)
    z = q.sample((cases.SAMPLES // 5 if case.slow else cases.SAMPLES,))
    assert z.dtype == dtype and not z.requires_grad
    assert bool(q.support.check(z).all())
    # in float32 many samples of a narrow distribution are equal: only the parameters are exact
    u = cases.uniform_of(case(*(p.double() for p in parameters)), z.double())
    cases.assert_uniform(u)
    if case.free:
        # independent: 4 standard errors of a correlation
        correlation = torch.corrcoef(u.T) - torch.eye(case.free)
        assert correlation.abs().max() < 4.5 / len(u) ** 0.5


@pytest.mark.parametrize("dim, eta", [(2, 0.5), (3, 0.6), (5, 1.0), (6, 3.0)])
def test_correlations_have_the_margins_of_the_lkj_distribution(dim, eta):
    factor = dist.LKJCholesky(dim, *double(eta)).sample((cases.SAMPLES // 2,))
    correlation = factor @ factor.mT
    b = eta + dim / 2 - 1
    margin = scipy.stats.beta(b, b, loc=-1, scale=2)
    for i, j in itertools.combinations(range(dim), 2):
        c = correlation[:, i, j]
        assert scipy.stats.kstest(c.numpy(), margin.cdf).pvalue > 1e-4
        error = c.square().std() / len(c) ** 0.5
        assert abs(c.square().mean() - 1 / (2 * eta + dim - 1)) < 4 * error


def test_tiny_shapes_have_the_distribution_in_logarithms():
    (a,) = double(1e-3)
    log_z = Gamma(a, a).rsample_log((cases.SAMPLES,))
    # P(a, z) = z^a / Gamma(a + 1) (1 - a z / (a + 1) + ...)
    below = log_z[log_z < -30]
    share = math.exp(1e-3 * (-30 + math.log(1e-3)) - math.lgamma(1.001))
    error = (share * (1 - share) / cases.SAMPLES) ** 0.5
    assert abs(len(below) / cases.SAMPLES - share) < 4 * error
    cases.assert_uniform(torch.exp(a * (below + a.log()) - (a + 1).lgamma()) / share)
    share = (Beta(a, 2 * a).rsample_logit((cases.SAMPLES,)) > 0).double().mean().item()
    assert abs(share - scipy.stats.beta(1e-3, 2e-3).sf(0.5)) < 4 * (share / cases.SAMPLES) ** 0.5


# expand is that of the mixture, or of the truncated distribution, whatever it is made of
MADE = [n for n in ALL if n.startswith(("mixed", "truncated-gamma")) and n != "mixed-normal"]


@pytest.mark.parametrize("name", [n for n in ALL if n not in MADE])
def test_batch_shapes_and_expand(name):
    case = ALL[name]
    q = case()
    event = q.event_shape
    for wide in (q.expand((3, 2)), q.expand((2,)).expand((3, 2)))[case.slow :]:
        assert type(wide) is type(q) and wide.has_rsample
        assert wide.batch_shape == (3, 2)
        z = wide.rsample((5,))
        assert z.shape == (5, 3, 2, *event)
        assert wide.log_prob(z).shape == (5, 3, 2)
        if not event or case is MULTIVARIATE["dirichlet"]:
            assert wide.entropy().shape == (3, 2)
        assert wide.mean.shape == wide.variance.shape == (3, 2, *event)
        u = cases.uniform_of(wide, z)
        torch.testing.assert_close(cases.value_of(wide, u), z, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
    if not isinstance(q, td.MixtureSameFamily):  # torch draws no empty batch of categories
        assert q.rsample((0, 2)).shape == (0, 2, *event)


def test_numbers_and_batches_as_parameters():
    for q in (Gamma(2.0, 1.0), Beta(2.0, 1.0), StudentT(3.0), dist.InverseGaussian(1.0, 2.0)):
        assert q.rsample().shape == ()
        assert q.icdf(0.25).dtype == torch.float32
    loc = torch.tensor(1.0, dtype=torch.float64)
    for q in (
        dist.InverseGaussian(loc, loc),
        Gamma(loc, loc),
        dist.Truncated(td.Exponential(loc), loc),
    ):
        assert torch.equal(q.icdf(0.3), q.icdf(0.3 * loc))  # which float32 does not hold
    assert dist.LKJCholesky(3, 2.0).rsample().shape == (3, 3)
    for make in (dist.InverseGaussian, Gamma, Beta):
        q = make(torch.ones(2), torch.ones(3, 1)).expand((4, 3, 2))
        assert q.batch_shape == q.entropy().shape == (4, 3, 2)


def functions_of(q):
    """Return what a distribution has as functions of a sample and of a probability."""
    moments = [lambda q, *_, name=name: getattr(q, name) for name in ("mean", "variance")]
    functions = [lambda q, z, _: q.log_prob(z), *moments]
    if not q.event_shape:
        functions += [lambda q, z, _: q.cdf(z), lambda q, _, u: q.icdf(u)]
    entropic = not q.event_shape or isinstance(q, Dirichlet)
    return [*functions, lambda q, *_: q.entropy()] if entropic else functions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@each
def test_half_precision_is_computed_in_float32_and_returned_in_kind(case, dtype):
    leaves = [p.to(dtype).requires_grad_() for p in double(*case.parameters)]
    q, u = case(*leaves), torch.tensor([0.25, 0.5, 0.75], dtype=dtype)
    z = q.rsample((3,))
    slopes = grad(z.float().sum(), leaves)
    assert {t.dtype for t in (z, q.sample(), *slopes)} == {dtype}
    assert all(bool(s.isfinite().all()) for s in slopes)
    single = converted(q, torch.float32)
    for function in functions_of(q):
        found = function(q, z.detach(), u)
        expected = function(single, z.detach().float(), u.float()).to(dtype)
        assert found.dtype == dtype
        rtol = torch.finfo(dtype).eps
        torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-6, equal_nan=True)


# torch's LKJCholesky and what its multivariate distributions make of a value fail without elements
WITH_ELEMENTS = ("lkj_cholesky", "correlated", "independent")


@pytest.mark.parametrize("name", [n for n in ALL if n not in WITH_ELEMENTS])
def test_batches_and_samples_without_elements(name):
    case = ALL[name]
    leaves = [p.expand(0, *p.shape).clone().requires_grad_() for p in double(*case.parameters)]
    q = case(*leaves)
    event, u = q.event_shape, double([])[0].expand(3, 0)
    if not isinstance(q, td.MixtureSameFamily):  # torch draws no empty batch of categories
        z = q.rsample((2,))
        assert z.shape == (2, 0, *event) and grad(z.sum(), leaves)[0].shape == leaves[0].shape
        assert case().sample((0,)).shape == (0, *event)
    places = torch.zeros(3, 0, *event, dtype=torch.float64)
    shapes = [(3, 0), (0, *event), (0, *event), (3, 0), (3, 0), (0,)]
    shapes = shapes if not event else [*shapes[:3], (0,)]
    for function, shape in zip(functions_of(q), shapes, strict=False):
        assert function(q, places, u).shape == shape


ALONE = {
    **{n: TORCHS[n] for n in ("gamma", "gamma-small", "beta", "von_mises", "inverse_gaussian")},
    **{n: ALL[n] for n in ("truncated", "dirichlet", "clayton", "multivariate_t")},
    "von_mises_fisher": cases.Case(
        lambda k, validate_args: dist.VonMisesFisher(k.new_ones(3), k, validate_args), (1.3,)
    ),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
@pytest.mark.parametrize("case", ALONE.values(), ids=ALONE)
def test_a_lane_of_nan_is_alone(case, dtype):
    first, *others = (p.to(dtype) for p in double(*case.parameters))
    lanes = torch.stack([first, first * math.nan, first]).requires_grad_()
    q = case(lanes, *others)
    z = q.rsample((100,))
    assert z[:, 1].reshape(100, -1).isnan().any(-1).all() and z[:, ::2].isfinite().all()
    assert grad(z.float().sum(), lanes)[0][::2].isfinite().all()


# ----------------------------------------------------------------- derivatives of an expectation


UNIT = torch.linspace(0, 1, 4001, dtype=torch.float64)
COSTS = (torch.square, torch.sin, lambda z: (-z * z).exp())
HEAVY = (torch.cos, torch.sin, lambda x: x.square().log1p())
# and one that is not periodic: all angles begin at -pi
CIRCULAR = (torch.cos, lambda x: (2 * x).sin(), lambda x: (2 * x.cos()).exp(), torch.tanh)


def line(*_):
    s = 80 * UNIT - 40
    return s.sinh(), s.cosh()


def half_line(*_):
    z = (165 * UNIT - 160).exp()
    return z, z


def unit_interval(*_):
    x = (94 * UNIT - 60).sigmoid()
    return x, x * (1 - x)


def circle(*_):
    return 2 * math.pi * (UNIT - 0.5), 1.0


def interval(*parameters):
    *_, low, high = parameters
    return low + UNIT * (high - low), high - low


def normal_density(z, m, s, *_):
    return -0.5 * ((z - m) / s) ** 2


def gamma_density(z, a, rate, *_):
    return (a - 1) * z.log() - rate * z


def beta_density(x, a, b):
    return (a - 1) * x.log() + (b - 1) * (-x).log1p()


def wald_density(z, m, k):
    return -1.5 * z.log() - k * (z - m) ** 2 / (2 * m * m * z)


def t_density(x, n, m, s):
    return -0.5 * (n + 1) * (((x - m) / s) ** 2 / n).log1p()


def angle_density(x, loc, k):
    return k * (x - loc).cos()


def well_density(z, depth, *_):
    return -depth * (z * z - 1) ** 2


def of_components(places, log_density):
    """Return E as a function of the cost, of a cases.mixture."""

    def expectation(cost):
        mean = mean_over(places, log_density)(cost)
        parts = lambda p: torch.stack([mean(*q) for q in zip(*p, strict=True)])
        return lambda logits, *p: logits.softmax(-1) @ parts(p)

    return expectation


def sum_of_two(cost):
    """Of the first and last coordinate of a multivariate t variable."""
    mean = mean_over(line, t_density)(cost)
    return lambda n, m, L: mean(n, m[0] + m[2], (L[0] + L[2]).square().sum().sqrt())


def gap_of_two(cost):
    """Of the two coordinates of a mixture of correlated normal variables."""
    mean = of_components(line, normal_density)(cost)
    scale = lambda L: (L[:, 0] - L[:, 1]).square().sum(-1).sqrt()
    return lambda w, m, L: mean(w, m[:, 0] - m[:, 1], scale(L.tril()))


def onion(eta):
    """Return the parameters of ``L_ii^2`` for ``d = 4``."""
    row = torch.arange(1, 4, dtype=torch.float64)
    return eta + 0.5 * (3 - row), 0.5 * row


def product_moment(logits, loc, factor):
    """E[z_1 z_2] = sum_k w_k (m_k1 m_k2 + (L_k L_k^T)_12)."""
    second = loc[:, 0] * loc[:, 1] + (factor.tril() @ factor.tril().mT)[:, 0, 1]
    return logits.softmax(-1) @ second


def t_product_moment(n, m, L):
    return m[0] * m[1] + (L @ L.mT)[0, 1] * n / (n - 2)


def mean_determinant(eta):
    return (onion(eta)[0] / sum(onion(eta))).prod()


def mean_log_determinant(eta):
    return (onion(eta)[0].digamma() - sum(onion(eta)).digamma()).sum()


diagonal = lambda L: L.diagonal(dim1=-2, dim2=-1)
angles = Case(VonMises, (2.8, 1.3))
mixed_angles = Case(cases.mixture(VonMises), (cases.LOGITS, [0.3, 2.8, -2.0], [2.0, 1.0, 3.0]))
tail = Case(dist.TruncatedNormal, (0.0, 1.0, 3.0, 5.0))
wald = Case(dist.InverseGaussian, (1.3, 2.7))
# costs, places, log-density
DENSITIES = [
    (UNIVARIATE["gamma"], (torch.log, *COSTS), mean_over(half_line, gamma_density)),
    (UNIVARIATE["gamma-small"], (torch.log, *COSTS), mean_over(half_line, gamma_density)),
    (UNIVARIATE["beta"], (torch.log, *COSTS), mean_over(unit_interval, beta_density)),
    (UNIVARIATE["student_t"], HEAVY, mean_over(line, t_density)),
    (angles, CIRCULAR[:3], mean_over(circle, angle_density)),
    (wald, COSTS, mean_over(half_line, wald_density)),
    (UNIVARIATE["inverse_gaussian-sharp"], COSTS, mean_over(half_line, wald_density)),
    (UNIVARIATE["truncated"], COSTS, mean_over(interval, normal_density)),
    (tail, COSTS, mean_over(interval, normal_density)),
    (UNIVARIATE["truncated-gamma"], COSTS, mean_over(interval, gamma_density)),
    (UNIVARIATE["density"], COSTS, mean_over(interval, well_density)),
    (UNIVARIATE["mixed-normal"], COSTS, of_components(line, normal_density)),
    (mixed_angles, CIRCULAR, of_components(circle, angle_density)),
]
# a case, the costs with their means
EXPECTATIONS = [(case, [(g, mean(g)) for g in costs]) for case, costs, mean in DENSITIES]
SEVERAL = {
    "correlated": [
        (lambda z: z[..., 0] * z[..., 1], product_moment),
        (lambda z: (z[..., 0] - z[..., 1]).sin(), gap_of_two(torch.sin)),
        (lambda z: COSTS[2](z[..., 0] - z[..., 1]), gap_of_two(COSTS[2])),
    ],
    "t": [
        (lambda x: x[..., 0] * x[..., 1], t_product_moment),
        (lambda x: (x[..., 0] + x[..., 2]).cos(), sum_of_two(torch.cos)),
        (lambda x: HEAVY[2](x[..., 0] + x[..., 2]), sum_of_two(HEAVY[2])),
    ],
    "dirichlet": [
        (lambda z: z[..., 0].log(), lambda a: a[0].digamma() - a.sum().digamma()),
        (lambda z: z[..., 2].square(), lambda a: a[2] * (a[2] + 1) / (a.sum() * (a.sum() + 1))),
        (lambda z: z[..., 1] * z[..., 2], lambda a: a[1] * a[2] / (a.sum() * (a.sum() + 1))),
    ],
    "lkj_cholesky": [
        (lambda L: (L @ L.mT)[..., 3, 2].square(), lambda eta: 1 / (2 * eta + 3)),
        (lambda L: diagonal(L).square().log().sum(-1), mean_log_determinant),
        (lambda L: diagonal(L).square().prod(-1), mean_determinant),
    ],
}
MANY = {**MULTIVARIATE, "t": Case(dist.MultivariateStudentT, (9.0, cases.LOC, cases.FACTOR))}
EXPECTATIONS += [(MANY[name], rows) for name, rows in SEVERAL.items()]


@pytest.mark.parametrize("case, rows", EXPECTATIONS)
def test_derivatives_of_expectations(case, rows):
    count = 4_000 if case is UNIVARIATE["density"] else 20_000
    cases.check_expectations(case, double(*case.parameters), rows, count)


# --------------------------------------------------------------------- derivatives of one sample


@each_univariate
def test_a_sample_keeps_its_cdf(case):
    """To second order; those that are cheap in many samples."""
    leaves = [p.expand(3, *p.shape).clone().requires_grad_() for p in double(*case.parameters)]
    q = case(*leaves)
    cases.assert_constant(q.cdf(q.rsample()), leaves)
    if not case.slow:
        leaves = [p.expand(2000).clone().requires_grad_() for p in double(*case.parameters)]
        q = case(*leaves)
        z = q.rsample()
        # where the density is infinite, that of z
        rounding = 1e-15 * q.log_prob(z).exp().detach()
        cases.assert_constant(q.cdf(z), leaves, 1, rounding)


KEPT = [n for n in MULTIVARIATE if n not in ("dirichlet", "lkj_cholesky")]


@pytest.mark.parametrize("name", KEPT)
def test_a_vector_keeps_its_transform(name):
    case = MULTIVARIATE[name]
    q = case(*(leaves := case.leaves))
    z = q.rsample((20,)) if case.slow else cases.fixed(q, q.sample((20,)))  # rsample moves chi2 too
    cases.assert_constant(q.rosenblatt(z), leaves)


@each
def test_a_quantile_keeps_its_cdf(case):
    q = case(*(leaves := case.leaves))
    u = cases.uniform_of(q, q.sample((20,))).detach().requires_grad_()
    kept = cases.uniform_of(q, cases.value_of(q, u))
    torch.testing.assert_close(kept, u, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn_like(kept)
    by_u, *slopes = grad(kept, (u, *leaves), cotangent)
    torch.testing.assert_close(by_u, cotangent, rtol=1e-8, atol=1e-8)
    for slope, p in zip(slopes, leaves, strict=True):
        assert float((slope * cases.size_of(p)).abs().max()) < 1e-8


@pytest.mark.parametrize("name", [n for n in ALL if not n.startswith(("truncated", "density"))])
def test_every_mode_of_a_sample(name):
    """All agree to second order; univariate ones with quantiles of the same noise."""
    case = ALL[name]
    parameters = double(*case.parameters)
    sizes = [p.numel() for p in parameters]
    flat = torch.cat([p.reshape(-1) for p in parameters])

    def of(flat):
        parts = zip(flat.split(sizes), parameters, strict=True)
        return case(*(part.reshape(p.shape) for part, p in parts))

    def sample(flat):
        torch.manual_seed(8)
        return of(flat).rsample((3,))

    reference = sample
    if not case.free:
        u = case().cdf(sample(flat))
        reference = lambda flat: of(flat).icdf(u)
    expected, curvature = jacrev(reference)(flat), jacrev(jacrev(reference))(flat)
    scale = float(curvature.abs().max())
    assert scale > 0
    for outer in (jacrev, jacfwd):
        torch.testing.assert_close(outer(sample)(flat), expected, rtol=1e-7, atol=1e-9)
        for inner in (jacrev, jacfwd):
            hessian = outer(inner(sample))(flat)
            torch.testing.assert_close(hessian, curvature, rtol=1e-6, atol=1e-8 * scale)


CHECKED = ("gamma", "beta-small", "student_t", "von_mises", "inverse_gaussian", "truncated-tail")
CHECKED += ("truncated-weibull", "density", "mixed-normal", *MULTIVARIATE)
ENDLESS = {
    "no-upper-end": Case(dist.TruncatedNormal, (0.0, 1.0, 10.0), slow=True),
    "no-lower-end": Case(
        lambda m, s, h, **o: dist.TruncatedNormal(m, s, high=h, **o), (0.0, 1.0, -2.0), slow=True
    ),
}
NOISY = {name: ALL[name] for name in CHECKED} | ENDLESS


@pytest.mark.parametrize("case", NOISY.values(), ids=NOISY)
def test_gradcheck_with_the_noise_held_fixed(case):
    q = case()
    u = cases.uniform_of(q, q.sample(() if case.free else (1,))).clamp(0.05, 0.95)

    def quantiles(u, *parameters):
        lower = [p.tril() if p.shape[-2:] == (3, 3) else p for p in parameters]
        return cases.value_of(case(*lower), u)

    inputs = [u.requires_grad_(), *case.leaves]
    modes = ["fast_mode", "check_forward_ad"]
    if not case.slow:
        modes += ["check_batched_grad", "check_batched_forward_grad"]
    assert gradcheck(quantiles, inputs, **dict.fromkeys(modes, True))
    assert gradgradcheck(quantiles, inputs, check_fwd_over_rev=not case.slow, fast_mode=True)


def with_tril(df, loc, log_diagonal, validate_args=None):
    below = 0.3 * torch.ones(3, 3, dtype=torch.float64).tril(-1)
    return dist.MultivariateStudentT(df, loc, below + log_diagonal.exp().diag(), validate_args)


def span(make):
    """By the lower end and the width in place of the upper end."""
    return lambda *p, **options: make(*p[:-1], p[-2] + p[-1], **options)


def correlated_from(logits, loc, validate_args=None):
    return cases.mixture(cases.correlated)(
        logits, loc, *double(cases.FACTORS), validate_args=validate_args
    )


positive = st.floats(-2, 3).map(lambda x: 10.0**x)
shape = st.floats(-1, 1.5).map(lambda x: 10.0**x)
unit, three = st.floats(-1, 1), st.tuples(*3 * [st.floats(-1, 1)])
spot, spots = st.floats(-3, 3), st.tuples(*3 * [st.floats(-3, 3)])
spread, width = st.floats(0.3, 3), st.floats(0.05, 5)
# make, strategies of its parameters, coordinates of the noise
DRAWN = {
    "gamma": (Gamma, (positive, positive), 0),
    "beta": (Beta, (positive, positive), 0),
    "student_t": (StudentT, (positive, st.floats(-5, 5), positive), 0),
    "von_mises": (VonMises, (unit, positive), 0),
    "inverse_gaussian": (dist.InverseGaussian, (st.floats(0.2, 4), st.floats(0.2, 8)), 0),
    "truncated": (span(dist.TruncatedNormal), (spot, spread, st.floats(-8, 8), width), 0),
    "truncated-gamma": (
        span(cases.truncated_gamma),
        (st.floats(0.5, 5), spread, st.floats(0.05, 2), st.floats(0.1, 3)),
        0,
    ),
    "density": (span(cases.well), (st.floats(0.1, 3), st.floats(-2, 0), st.floats(0.5, 2)), 0),
    "mixed-normal": (cases.mixture(td.Normal), (three, spots, st.tuples(*3 * [spread])), 0),
    "dirichlet": (Dirichlet, (st.tuples(*3 * [shape]),), 2),
    "lkj_cholesky": (cases.lkj(3), (shape,), 3),
    "multivariate_t": (with_tril, (shape, three, three), 3),
    "correlated": (correlated_from, (three, st.tuples(*3 * [st.tuples(spot, spot)])), 2),
}


def check_drawn(name, examples, noise, **options):
    """`check_implicit_gradients` of a quantile.

    It judges by what rounding changes in a result; where ``F`` is a sum of several terms, that is
    some times more: errors of 1e-9 are none.
    """
    make, strategies, free = DRAWN[name]

    @settings(max_examples=examples)
    @given(st.tuples(*strategies), noise)
    def check(parameters, u):
        # multivariate: other noise in each coordinate
        u = torch.linspace(1, 0.5, free, dtype=torch.float64) * u if free else double(u)[0]
        layer = lambda *p: cases.value_of(make(*p, validate_args=False), u)
        report = check_implicit_gradients(layer, None, double(*parameters), **options)
        for entry in report.failures:
            assert entry.error is not None and entry.error < 1e-9, str(report)

    check()


# long, each of a function that another row draws parameters for
LONG = {"truncated-gamma", "multivariate_t", "truncated", "mixed-normal"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.nightly if n in LONG else ()) for n in DRAWN]
)
def test_drawn_parameters(name):
    examples = 1 if name in ("truncated-gamma", "correlated") else 2  # seconds each
    check_drawn(name, examples, st.floats(0.2, 0.8), order=1, vmap=False, starts=0)


@pytest.mark.nightly
@pytest.mark.parametrize("name", DRAWN)
def test_more_drawn_parameters(name):
    check_drawn(name, 60, st.floats(0.01, 0.99))


# ------------------------------------------------------------------------------------------ vmap


# torch's samplers of their components, and the caches of its Weibull distribution, know no lanes
UNBATCHED = ["truncated-weibull", "mixed-laplace", "mixed-cauchy", "mixed-exponential"]
UNBATCHED += ["correlated", "independent"]


@pytest.mark.parametrize("name", [n for n in ALL if n not in UNBATCHED])
def test_vmap_draws_for_every_lane(name):
    case = ALL[name]
    parameters = double(*case.parameters)
    lanes = [torch.stack([p, p, p]) for p in parameters]
    sample = lambda *parameters: case(*parameters).rsample((2,))
    z = vmap(sample, randomness="different")(*lanes)
    shared = vmap(lambda _: sample(*parameters), randomness="different")(torch.zeros(3))
    for drawn in (z, shared):
        assert drawn.shape == (3, 2, *case().event_shape)
        assert len(drawn.reshape(6, -1)[:, -2:].unique(dim=0)) == 6
    same = vmap(lambda _: sample(*parameters), randomness="same")(torch.zeros(3))
    assert bool((same == same[0]).all())
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(sample)(*lanes)


@pytest.mark.parametrize("name", [n for n in UNIVARIATE if n not in UNBATCHED])
def test_vmap_of_gradients(name):
    """Each lane's gradient is that of the lane alone, of the same samples."""
    case = UNIVARIATE[name]
    scales = torch.tensor([1.0, 0.98, 1.02], dtype=torch.float64)
    lanes = [torch.stack([s * p for s in scales]) for p in double(*case.parameters)]

    def total(*parameters):
        z = case(*parameters).rsample((2,))
        return z.sum(), z

    slope = torch.func.grad(total, tuple(range(len(lanes))), has_aux=True)
    slopes, z = vmap(slope, randomness="different")(*lanes)
    for i in range(3):
        leaves = [p[i].clone().requires_grad_() for p in lanes]
        expected = grad(cases.fixed(case(*leaves), z[i]).sum(), leaves)
        for s, e, p in zip(slopes, expected, leaves, strict=True):
            size = cases.size_of(p)
            torch.testing.assert_close(s[i] * size, e * size, rtol=1e-9, atol=1e-9)


@each
def test_vmap_of_quantiles(case):
    q = case()
    u = cases.uniform_of(q, q.sample((3,)))
    lanes = [torch.stack([p, p, p]) for p in double(*case.parameters)]
    value = vmap(lambda u, *p: cases.value_of(case(*p), u))(u, *lanes)
    torch.testing.assert_close(value, cases.value_of(q, u), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in UNIVARIATE if "-l" not in n or "laplace" in n])
def test_samples_in_float32_have_the_derivatives_of_float64(name):
    case = UNIVARIATE[name]
    single = [p.float().requires_grad_() for p in double(*case.parameters)]
    q = case(*single)
    z = q.rsample((50,))
    assert z.dtype == torch.float32 and q.log_prob(z).dtype == torch.float32
    found, leaves = grad(z.sum(), single), case.leaves
    expected = grad(cases.fixed(case(*leaves), z.detach().double()).sum(), leaves)
    # z is rounded: to 6e-8, times what its tail makes of it
    torch.testing.assert_close([s.double() for s in found], list(expected), rtol=2e-3, atol=2e-3)


# ---------------------------------------------------------------------------- functions of a value

PROBABILITIES = [1e-200, 1e-14, 1e-3, 0.2, 0.5, 0.9, 1 - 1e-6, 1 - 1e-14]


@each_of_scipy
def test_cdf_log_prob_and_moments_against_scipy(case):
    q, reference = case(), case.reference
    x = torch.from_numpy(reference.ppf([0.001, 0.2, 0.5, 0.7, 0.999]))
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)
    close(q.cdf(x), reference.cdf(x))
    close(q.log_prob(x), reference.logpdf(x))
    # SciPy's is a quadrature for the inverse Gaussian distribution
    rtol = 1e-6 if case.make is dist.InverseGaussian else 1e-8
    np.testing.assert_allclose(q.entropy(), reference.entropy(), rtol=rtol, atol=1e-9)
    if case.make is VonMises:
        close(q.variance, 1 - reference.expect(np.cos, lb=-np.pi, ub=np.pi))
    elif case.parameters[0] > 2 or case.make is not StudentT:
        close(q.mean, reference.mean())
        close(q.variance, reference.var())


INTEGRATED = ["truncated", "truncated-tail", "truncated-left", "truncated-narrow", "density"]
INTEGRATED += ["truncated-weibull", "truncated-wald", "inverse_gaussian", "mixed-normal"]
INTEGRATED += ["mixed-laplace", "mixed-student_t", "mixed-von_mises"]


@pytest.mark.parametrize("name", INTEGRATED)
def test_moments_are_those_of_the_density(name):
    q, angles = UNIVARIATE[name](), "von_mises" in name
    low, high = (float(getattr(q.support, f"{end}_bound", math.inf)) for end in ("lower", "upper"))
    low, high = (-math.pi, math.pi) if angles else (low, high)
    if high < math.inf:  # Gauss's rule
        x, step = torch.from_numpy(np.array(np.polynomial.legendre.leggauss(400)))
        z, step = low + (high - low) * (x + 1) / 2, step * (high - low) / 2
    elif low < math.inf:
        z, step = (low + half_line()[0], half_line()[1] * 165 / 4000)
    else:
        z, step = (line()[0], line()[1] * 80 / 4000)
    log_p = q.log_prob(z)
    p = log_p.exp() * step
    # a Laplace density has kinks, one with 1.5 degrees of freedom heavy tails
    rtol = {"mixed-laplace": 1e-4, "mixed-student_t": 1e-7}.get(name, 1e-9)
    close = lambda ours, wanted: torch.testing.assert_close(ours, wanted, rtol=rtol, atol=1e-10)
    close(p.sum(), *double(1.0))
    close(q.entropy(), -(p * log_p.clamp(min=-1e4)).sum())
    if not angles:
        close(q.mean, (p * z).sum())
    if not angles and q.variance.isfinite():
        close(q.variance, (p * (z - q.mean) ** 2).sum())


@each_of_scipy
def test_quantiles_in_both_tails_against_scipy(case):
    """At the quantile, SciPy's tails have the probability that was asked for."""
    q, reference = case(), case.reference
    p = torch.tensor(PROBABILITIES, dtype=torch.float64)
    quantiles = q.icdf(p)
    x = quantiles.numpy()
    if case.make is VonMises:  # SciPy's has no small tails; ours is tested for itself
        inner = ((p > 1e-6) & (p < 1 - 1e-5)).numpy()
        np.testing.assert_allclose(reference.cdf(x[inner]), p[inner], rtol=2e-8)
        torch.testing.assert_close(q.cdf(quantiles)[1:], p[1:], rtol=1e-8, atol=1e-15)
        return
    low, high = reference.support()
    exact = (x > low) & (x < high)  # 1e-200 of a gamma variable of the shape 0.2 underflows
    assert exact.sum() >= len(p) - 3
    for chosen, tail, wanted in ((p < 0.5, reference.cdf, p), (p >= 0.5, reference.sf, 1 - p)):
        at = chosen.numpy() & exact
        rounding = reference.pdf(x[at]) * np.spacing(np.abs(x[at]))
        bound = 1e-9 * wanted[at].numpy() + rounding
        assert (np.abs(tail(x[at]) - wanted[at].numpy()) <= bound).all()


@each_univariate
def test_quantiles_at_the_ends(case):
    u = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    ends, support = case().icdf(u), case().support
    assert not ends.isnan().any()
    if case.make is VonMises or case is UNIVARIATE["mixed-von_mises"]:
        assert bool((ends.abs() > 3.14159265).all())
    elif case.reference:
        assert ends.tolist() == pytest.approx(case.reference.support(), abs=0)
    elif hasattr(support, "upper_bound"):
        low, high = float(support.lower_bound), float(support.upper_bound)
        assert ends.tolist() == [low, high]
        if case is UNIVARIATE["mixed-beta"]:  # incomplete beta functions are NaN outside
            return
        assert case().cdf(double([low, low - 1, high, high + 1])[0]).tolist() == [0, 0, 1, 1]


@each_univariate
def test_log_tails_add_up_and_have_the_density(case):
    """F + (1 - F) = 1; d ln F/dz = q / F and d ln(1 - F)/dz = -q / (1 - F)."""
    q = case()
    z = q.icdf(*double([1e-6, 0.2, 0.5, 0.99])).requires_grad_()
    below, above = log_tails(q, z)
    assert float(torch.logaddexp(below, above).detach().abs().max()) < 1e-13
    density = q.log_prob(z)
    for tail, sign in ((below, 1), (above, -1)):
        (slope,) = grad(tail.sum(), z, retain_graph=True)
        rate = sign * (density - tail).exp().detach()
        torch.testing.assert_close(slope, rate, rtol=1e-9, atol=0)


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
    many = dist.MultivariateStudentT(df, torch.zeros(2, dtype=torch.float64), eye)
    assert many.mean.isnan().all(-1).tolist() == [True, False, False]
    torch.testing.assert_close(many.covariance_matrix[2], 3 * eye)


def test_multivariate_log_prob_entropy_and_moments():
    loc, factor = double(cases.LOC, cases.FACTOR)
    t = dist.MultivariateStudentT(3.5, loc, factor)
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
    distribution = case()
    z = distribution.sample((40_000,))
    if case.make is dist.MultivariateStudentT:
        distribution = case.make(*double(9.0, cases.LOC, cases.FACTOR))
        z = distribution.sample((40_000,))
    if not case.slow:
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
    distribution = case()
    u = cases.uniform_of(distribution, distribution.sample())
    jacobian = jacfwd(distribution.inverse_rosenblatt)(u)
    if case.make is Dirichlet:
        jacobian = jacobian[:-1]
    if case is MULTIVARIATE["lkj_cholesky"]:
        row, column = torch.tril_indices(4, 4, -1)
        jacobian = jacobian[row, column]
    density = distribution.log_prob(distribution.inverse_rosenblatt(u))
    torch.testing.assert_close(-torch.linalg.det(jacobian).abs().log(), density)


@each_multivariate
def test_a_multivariate_distribution_has_no_cdf(case):
    distribution = case()
    for function in (distribution.cdf, distribution.icdf):
        with pytest.raises(NotImplementedError):
            function(distribution.mean)


LARGE = [Case(Gamma, (1e5, 2.0)), Case(Beta, (1e5, 2e5))]
LARGE += [Case(StudentT, (1e5, 0.0, 1.0)), Case(VonMises, (0.5, 1e4))]


@pytest.mark.parametrize("case", LARGE)
def test_float32_has_its_precision_for_large_parameters(case):
    single, exact = case(*(torch.tensor(p) for p in case.parameters)), case()
    x = single.sample((20,))
    for ours, wanted in [
        (single.log_prob(x), exact.log_prob(x.double())),
        (single.entropy(), exact.entropy()),
        (single.cdf(x), exact.cdf(x.double())),
        (single.icdf(single.cdf(x)), exact.icdf(single.cdf(x).double())),
    ]:
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, wanted.float(), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------- bad input


@each
def test_values_and_probabilities_that_are_refused(case):
    strict = case.make(*double(*case.parameters))
    value, u = double(case.unfit, [-0.1] * case.free if case.free else -0.1)
    functions = [strict.log_prob]
    if not case.slow:
        functions.append(lambda value: cases.uniform_of(strict, value))
    for function in functions:
        with pytest.raises(ValueError, match="support"):
            function(value)
    for p in (-0.1, 1.1, math.nan):
        if not (case.slow and case.free):
            with pytest.raises(ValueError, match="\\[0, 1\\]"):
                cases.value_of(strict, u * 0 + p)
            assert cases.value_of(case(), u * 0 + p).isnan().any()


def test_tails_of_a_wide_inverse_gaussian_in_float32():
    """They are differences of numbers that are nearly equal, and as good as their arguments."""
    p = torch.tensor([0.5, 0.99, 0.9999, 0.999999])
    single, double_ = (
        dist.InverseGaussian(torch.tensor(1e6, dtype=d), torch.tensor(1.0, dtype=d)).icdf(p.to(d))
        for d in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double_, rtol=1e-4, atol=0)
