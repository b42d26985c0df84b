"""Mixtures against SciPy, torch and closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as td

from implicit_solvers.problems.reparameterization import MixtureSameFamily, Truncated
from implicit_solvers.testing import assert_implicit_gradients
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


def test_gradients_of_multivariate_expectations():
    """E[z_i z_j] = sum_k w_k (m_ki m_kj + (L_k L_k^T)_ij), by the closed form's gradient."""
    parameters = double(NORMALS[0], LOCS, FACTORS)

    def moment(logits, loc, factor):
        second = loc[:, 0] * loc[:, 1] + (factor.tril() @ factor.tril().mT)[:, 0, 1]
        return (logits.softmax(-1) * second).sum()

    exact = torch.func.grad(moment, argnums=(0, 1, 2))(*parameters)
    found = checks.estimates(correlated, parameters, lambda z: z[..., 0] * z[..., 1])
    for (mean, error), slope in zip(found, exact, strict=True):
        assert (np.abs(mean - slope.flatten().numpy()) <= 4 * error + 1e-12).all()


def test_derivatives_of_all_orders():
    u = torch.tensor([0.3], dtype=torch.float64)
    checks.check_orders(lambda *p: normals(*p).icdf(u), double(*NORMALS))


@multivariate
@pytest.mark.nightly
def test_multivariate_derivatives_of_all_orders(make, parameters):
    u = torch.tensor([0.3, 0.8], dtype=torch.float64)
    checks.check_orders(lambda *p: make(*p).inverse_rosenblatt(u), double(*parameters))


@univariate
def test_the_cdf_of_a_sample_is_constant(make):
    checks.check_identity(make, double(*NORMALS), lambda q, z: q.cdf(z))


@multivariate
def test_the_transform_of_a_sample_is_constant(make, parameters):
    checks.check_identity(make, double(*parameters), lambda q, z: q.rosenblatt(z))


@pytest.mark.nightly
def test_gradients_against_differences():
    u = torch.tensor([0.1, 0.9], dtype=torch.float64)
    layer = lambda *p: normals(*p).icdf(u)
    assert_implicit_gradients(layer, None, double(*NORMALS), order=1, vmap=False)


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
