"""Mixtures against SciPy, torch and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import distributions as td

from implicit_solvers.problems.reparameterization import (
    Beta,
    Gamma,
    MixtureSameFamily,
    StudentT,
    Truncated,
    VonMises,
)
from tests.problems.reparameterization import sample_checks as checks
from tests.problems.reparameterization.sample_checks import double

NORMALS = ([0.3, -0.2, 0.1], [-2.0, 0.0, 3.0], [0.5, 1.0, 2.0])
LOCS = [[-1.0, 0.5], [0.0, 0.0], [2.0, -1.0]]
FACTORS = [[[0.5, 0.0], [0.3, 1.0]], [[1.0, 0.0], [-0.8, 0.6]], [[2.0, 0.0], [0.0, 1.0]]]


def mixture(logits, component):
    return MixtureSameFamily(td.Categorical(logits=logits, validate_args=False), component, False)


def normals(logits, loc, scale):
    return mixture(logits, td.Normal(loc, scale, validate_args=False))


def laplaces(logits, loc, scale):
    return mixture(logits, td.Laplace(loc, scale, validate_args=False))


def correlated(logits, loc, factor):
    return mixture(
        logits, td.MultivariateNormal(loc, scale_tril=factor.tril(), validate_args=False)
    )


def independent(logits, loc):
    marginal = td.Laplace(loc, 0.7, validate_args=False)
    return mixture(logits, td.Independent(marginal, 1, validate_args=False))


UNIVARIATE = {"normal": normals, "laplace": laplaces}
MULTIVARIATE = {
    "correlated": (correlated, (NORMALS[0], LOCS, FACTORS)),
    "independent": (independent, (NORMALS[0], LOCS)),
}
univariate = pytest.mark.parametrize("make", UNIVARIATE.values(), ids=UNIVARIATE)
multivariate = pytest.mark.parametrize("make, parameters", MULTIVARIATE.values(), ids=MULTIVARIATE)


@univariate
def test_samples_follow_the_cdf(make):
    q = make(*double(*NORMALS))
    checks.check_distribution(q, q.cdf)


@multivariate
def test_the_rosenblatt_transform_of_samples_is_uniform(make, parameters):
    q = make(*double(*parameters))
    checks.check_distribution(q, q.rosenblatt)
    with torch.no_grad():
        u = q.rosenblatt(q.rsample((20_000,))).numpy()
    # independent: 4 standard errors of a correlation
    assert abs(np.corrcoef(u.T)[0, 1]) < 4 / 20_000**0.5


def test_gradients_of_expectations():
    def density(z, logits, loc, scale):
        w = np.exp(logits) / np.exp(logits).sum()
        return sum(w * np.exp(-(((z - loc) / scale) ** 2) / 2) / scale) / (2 * np.pi) ** 0.5

    ends = lambda *_: (-30.0, 40.0)
    checks.check_expectations(normals, double(*NORMALS), density, ends, (-4.0, -1.0, 2.0, 8.0))


def test_samples_have_the_margins_of_scipy():
    q = correlated(*double(NORMALS[0], LOCS, FACTORS))
    torch.manual_seed(4)
    z = q.rsample((checks.SAMPLES,))
    w = q.mixture_distribution.probs.numpy()
    factor = q.component_distribution.scale_tril
    deviation = (factor @ factor.mT).diagonal(dim1=-2, dim2=-1).sqrt().numpy()
    for i, column in enumerate(z.T.numpy()):
        normal = stats.norm(np.array(LOCS)[:, i], deviation[:, i])
        assert stats.kstest(column, lambda x, n=normal: n.cdf(x[..., None]) @ w).pvalue > 1e-4


def normal_moments(logits, loc, factor, direction):
    """Weights, means and variances of the components along a direction."""
    along = (factor.tril().mT @ direction).square().sum(-1)
    return logits.softmax(-1), loc @ direction, along


def gauss_expectation(cost):
    """Return E[cost(z_1 - z_2)] of the mixture of correlated normals, by the trapezoidal rule."""
    x = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    direction = torch.tensor([1.0, -1.0], dtype=torch.float64)

    def expectation(logits, loc, factor):
        w, mean, variance = normal_moments(logits, loc, factor, direction)
        z = mean.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * x
        density = (-0.5 * x * x).exp() / (2 * np.pi) ** 0.5
        return (w * torch.trapezoid(cost(z) * density, x)).sum()

    return expectation


def product_moment(logits, loc, factor):
    """E[z_1 z_2] = sum_k w_k (m_k1 m_k2 + (L_k L_k^T)_12)."""
    second = loc[:, 0] * loc[:, 1] + (factor.tril() @ factor.tril().mT)[:, 0, 1]
    return (logits.softmax(-1) * second).sum()


@pytest.mark.parametrize(
    "cost, expectation",
    [
        (lambda z: z[..., 0] * z[..., 1], product_moment),
        (lambda z: (z[..., 0] - z[..., 1]).sin(), gauss_expectation(torch.sin)),
        (
            lambda z: (-(z[..., 0] - z[..., 1]).square()).exp(),
            gauss_expectation(lambda x: (-x.square()).exp()),
        ),
    ],
    ids=["product", "sine", "bell"],
)
def test_gradients_of_multivariate_expectations(cost, expectation):
    parameters = double(NORMALS[0], LOCS, FACTORS)
    exact = torch.func.grad(expectation, argnums=(0, 1, 2))(*parameters)
    found = checks.estimates(correlated, parameters, cost)
    for (mean, error), slope in zip(found, exact, strict=True):
        assert (np.abs(mean - slope.flatten().numpy()) <= 4 * error + 1e-12).all()


# -------------------------------------------------------------- families with their own derivatives

FAMILIES = {
    "normal": (td.Normal, ([-2.0, 0.0, 3.0], [0.5, 1.0, 2.0])),
    "laplace": (td.Laplace, ([-2.0, 0.0, 3.0], [0.5, 1.0, 2.0])),
    "cauchy": (td.Cauchy, ([-2.0, 0.0, 3.0], [0.5, 1.0, 2.0])),
    "exponential": (td.Exponential, ([0.5, 2.0, 9.0],)),
    "student_t": (StudentT, ([1.5, 5.0, 20.0], [0.0, 2.0, 4.0], [1.0, 0.5, 2.0])),
    "gamma": (Gamma, ([0.5, 2.0, 9.0], [1.0, 2.0, 3.0])),
    "beta": (Beta, ([0.5, 2.0, 9.0], [1.0, 2.0, 3.0])),
    "von_mises": (VonMises, ([0.0, 2.8, -1.5], [2.0, 0.7, 9.0])),
}
each_family = pytest.mark.parametrize("kind, values", FAMILIES.values(), ids=FAMILIES)


def of_family(kind):
    return lambda logits, *p: mixture(logits, kind(*p, validate_args=False))


@each_family
def test_samples_of_a_family_follow_the_cdf(kind, values):
    q = of_family(kind)(*double(NORMALS[0], *values))
    checks.check_distribution(q, q.cdf)


@each_family
def test_samples_of_a_family_move_as_quantiles_do(kind, values):
    """To second order, in every composition of two modes, and in lanes."""
    parts = double(NORMALS[0], *values)
    make, flat = of_family(kind), torch.cat(parts)
    z = make(*parts).sample((3,))
    u = make(*parts).cdf(z)

    def sample(flat):
        torch.manual_seed(4)
        q = make(*flat.split(3))
        q.sample = lambda _: z
        return q.rsample((3,))

    def inverse(flat):
        return make(*flat.split(3)).icdf(u)

    func = torch.func
    slopes, curvature = func.jacrev(inverse)(flat), func.jacrev(func.jacrev(inverse))(flat)
    small = 1e-8 * float(curvature.abs().max())
    for outer in (func.jacrev, func.jacfwd):
        torch.testing.assert_close(outer(sample)(flat), slopes, rtol=1e-7, atol=1e-9)
        for inner in (func.jacrev, func.jacfwd):
            hessian = outer(inner(sample))(flat)
            torch.testing.assert_close(hessian, curvature, rtol=1e-6, atol=small)
    lanes = func.vmap(func.jacrev(sample))(torch.stack([flat, flat]))
    torch.testing.assert_close(lanes[1], slopes, rtol=1e-7, atol=1e-9)


@each_family
def test_a_sample_of_a_family_keeps_its_cdf(kind, values):
    checks.check_identity(of_family(kind), double(NORMALS[0], *values), lambda q, z: q.cdf(z))


def test_components_that_do_not_reach_a_sample():
    """A component far away has no part in it, and nothing is NaN."""
    leaves = double([0.0, 0.0], [3.0, 5.0], [0.0, 1e200], [1.0, 1.0], requires_grad=True)
    q = of_family(StudentT)(*leaves)
    q.sample = lambda _: torch.tensor([0.5, -1e100, 1e150], dtype=torch.float64)
    z = q.rsample((3,))
    slopes = torch.autograd.grad(z[0], leaves, retain_graph=True)
    assert all(bool(s.isfinite().all()) for s in slopes)
    torch.testing.assert_close(slopes[2], torch.tensor([1.0, 0.0], dtype=torch.float64))
    for i in (1, 2):
        assert not any(
            s.isnan().any() for s in torch.autograd.grad(z[i], leaves, retain_graph=True)
        )


def test_von_mises_components_begin_at_one_angle():
    """Weights move angles around the circle: E[g] of g that are periodic, and one that is not."""
    parameters = double([0.3, -0.2, 0.1], [0.3, 2.8, -2.0], [2.0, 1.0, 3.0])
    x = torch.linspace(-np.pi, np.pi, 4001, dtype=torch.float64)

    def expectation(logits, loc, k, cost):
        density = (k.unsqueeze(-1) * ((x - loc.unsqueeze(-1)).cos() - 1)).exp()
        density = density / torch.trapezoid(density, x).unsqueeze(-1)
        return (logits.softmax(-1) * torch.trapezoid(cost(x) * density, x)).sum()

    for cost in (torch.cos, lambda x: (2 * x).sin(), torch.tanh):
        exact = torch.func.grad(lambda *p, g=cost: expectation(*p, g), argnums=(0, 1, 2))(
            *parameters
        )
        found = checks.estimates(of_family(VonMises), parameters, cost)
        for (mean, error), slope in zip(found, exact, strict=True):
            assert (np.abs(mean - slope.numpy()) <= 4 * error + 1e-12).all()
    q = of_family(VonMises)(*parameters)
    p = q.log_prob(x).exp()
    expected = -torch.trapezoid(p * p.log(), x)
    torch.testing.assert_close(q.entropy(), expected, rtol=1e-6, atol=0)
    mass = torch.trapezoid(p[:2501], x[:2501])
    torch.testing.assert_close(q.cdf(x[2500]), mass, rtol=1e-6, atol=0)


def test_derivatives_of_all_orders():
    u = torch.tensor([0.3], dtype=torch.float64)
    checks.check_orders(lambda u, *p: normals(*p).icdf(u), (u, *double(*NORMALS)))


@multivariate
def test_multivariate_derivatives_of_all_orders(make, parameters):
    u = torch.tensor([0.3, 0.8], dtype=torch.float64)
    checks.check_orders(lambda u, *p: make(*p).inverse_rosenblatt(u), (u, *double(*parameters)))


@univariate
def test_the_cdf_of_a_sample_is_constant(make):
    checks.check_identity(make, double(*NORMALS), lambda q, z: q.cdf(z))


@multivariate
def test_the_transform_of_a_sample_is_constant(make, parameters):
    checks.check_identity(make, double(*parameters), lambda q, z: q.rosenblatt(z))


logit, location, spread = (
    st.tuples(*3 * [st.floats(a, b)]) for a, b in ((-1, 1), (-3, 3), (0.3, 2))
)


@settings(max_examples=2)
@given(logit, location, spread, st.floats(0.1, 0.9))
def test_drawn_parameters(logits, loc, scale, u):
    u = torch.tensor(u, dtype=torch.float64)
    layer = lambda *p: normals(*p).icdf(u)
    checks.check_gradients(layer, double(logits, loc, scale), order=1, vmap=False, starts=0)


@settings(max_examples=1)
@given(logit, location, location, st.floats(0.2, 0.8))
def test_drawn_parameters_in_two_dimensions(logits, first, second, u):
    noise = torch.tensor([u, 0.4], dtype=torch.float64)
    (loc,) = double(list(zip(first, second, strict=True)))
    layer = lambda *p: correlated(*p).inverse_rosenblatt(noise)
    parameters = (*double(logits), loc, *double(FACTORS))
    checks.check_gradients(layer, parameters, order=1, vmap=False, starts=0)


@multivariate
def test_the_inverse_transform(make, parameters):
    q = make(*double(*parameters))
    u = torch.rand(7, 2, dtype=torch.float64)
    torch.testing.assert_close(q.rosenblatt(q.inverse_rosenblatt(u)), u, rtol=1e-10, atol=0)
    one = q.inverse_rosenblatt(u[0])
    torch.testing.assert_close(q.rosenblatt(one), u[0], rtol=1e-10, atol=0)


def test_the_paper_formula():
    """dz = sum_k r_k dz_k - sum_k F_k dw_k / q."""
    logits, loc, scale = double(*NORMALS, requires_grad=True)
    z = normals(logits, loc, scale).rsample((50,))
    by_logits, by_loc, by_scale = torch.autograd.grad(z.sum(), (logits, loc, scale))
    z, w = z.detach().numpy()[:, None], logits.detach().softmax(-1).numpy()
    m, s = loc.detach().numpy(), scale.detach().numpy()
    joint = w * stats.norm.pdf(z, m, s)
    q = joint.sum(-1, keepdims=True)
    below = stats.norm.cdf(z, m, s)
    weights = -w * (below - (w * below).sum(-1, keepdims=True)) / q
    np.testing.assert_allclose(by_loc.numpy(), (joint / q).sum(0), rtol=1e-9)
    np.testing.assert_allclose(by_scale.numpy(), (joint / q * (z - m) / s).sum(0), rtol=1e-9)
    np.testing.assert_allclose(by_logits.numpy(), weights.sum(0), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("far", [9.0, -9.0])
def test_weights_move_samples_in_both_tails(far):
    """Far out, one component remains: dz = -(1 - F_k) dw_k / q and its mirror image."""
    logits, loc, scale = double([0.0, 0.0], [0.0, 0.0], [1.0, 0.5], requires_grad=True)
    q = normals(logits, loc, scale)
    z = checks.fixed(q, torch.tensor(far, dtype=torch.float64))
    (slope,) = torch.autograd.grad(z, logits)
    # with w = 1/2 the tail is that of the first component; dw_1 = dlogit_1 / 4 - dlogit_2 / 4
    tail = np.sign(far) * stats.norm.sf(9.0) / (2 * stats.norm.pdf(9.0))
    np.testing.assert_allclose(slope.numpy(), [tail, -tail], rtol=1e-10)


def test_components_on_different_intervals():
    logits, low = double([0.2, -0.1], [0.0, 2.0], requires_grad=True)
    uniform = td.Normal(*double([0.5, 2.5], [1.0, 1.0]), validate_args=False)
    q = mixture(logits, Truncated(uniform, low, low + 1, False))
    z = q.rsample((20,))
    for slope in torch.autograd.grad(z.sum(), (logits, low)):
        assert slope.isfinite().all()


def test_lanes_and_single_precision():
    checks.check_lanes(normals, double(*NORMALS))
    checks.check_single(normals, double(*NORMALS))


@univariate
def test_moments_and_density_are_those_of_torch(make):
    q = make(*double(*NORMALS))
    base = td.MixtureSameFamily(q.mixture_distribution, q.component_distribution)
    x = torch.linspace(-5, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(q.cdf(x), base.cdf(x))
    torch.testing.assert_close(q.log_prob(x), base.log_prob(x))
    torch.testing.assert_close((q.mean, q.variance), (base.mean, base.variance))
    torch.testing.assert_close(q.icdf(q.cdf(x)), x)


def test_entropy():
    q = normals(*double(*NORMALS))
    w = q.mixture_distribution.probs.numpy()
    z = np.linspace(-30, 40, 700_001)
    p = stats.norm.pdf(z[:, None], NORMALS[1], NORMALS[2]) @ w
    expected = -np.trapezoid(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), z)
    np.testing.assert_allclose(q.entropy().item(), expected, rtol=1e-9)


def test_expand_and_shapes():
    q = MixtureSameFamily(
        td.Categorical(torch.ones(2)), td.Normal(torch.zeros(3, 2), torch.ones(2))
    )
    bigger = q.expand((4, 3))
    assert isinstance(bigger, MixtureSameFamily) and bigger.has_rsample
    assert bigger.rsample((5,)).shape == (5, 4, 3) and bigger.entropy().shape == (4, 3)
    matrix = td.Independent(td.Normal(torch.zeros(2, 3, 2), 1.0), 2)
    q = MixtureSameFamily(td.Categorical(torch.ones(2)), matrix)
    assert q.rsample((5,)).shape == (5, 3, 2) and q.rosenblatt(q.sample()).shape == (3, 2)


def dirichlets():
    return MixtureSameFamily(td.Categorical(torch.ones(2)), td.Dirichlet(torch.ones(2, 3)))


@pytest.mark.parametrize(
    "build, error, message",
    [
        (
            lambda: MixtureSameFamily(td.Categorical(torch.ones(2)), td.Poisson(torch.ones(2))),
            ValueError,
            "discrete",
        ),
        (lambda: dirichlets().rsample(), NotImplementedError, "conditional CDFs"),
        (lambda: dirichlets().cdf(torch.ones(3)), NotImplementedError, "rosenblatt"),
        (lambda: dirichlets().entropy(), NotImplementedError, "Monte Carlo"),
        (
            lambda: MixtureSameFamily(td.Categorical(torch.ones(3)), td.Normal(torch.ones(2), 1.0)),
            ValueError,
            "component",
        ),
        (
            lambda: MixtureSameFamily(
                td.Categorical(torch.ones(2)), td.Normal(torch.ones(2), 1.0)
            ).icdf(torch.tensor(2.0)),
            ValueError,
            "outside",
        ),
    ],
    ids=range(6),
)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()
