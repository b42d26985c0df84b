"""Copulas against mixed derivatives of their CDFs, quadrature, and their marginals."""

import itertools

import mpmath as mp
import pytest
import scipy.stats
import torch
from torch import distributions as td
from torch.autograd import grad

from implicit_solvers.problems.reparameterization import (
    ClaytonCopula,
    CopulaDistribution,
    FrankCopula,
    Gamma,
    GaussianCopula,
    StudentT,
    VonMises,
)
from tests.problems.reparameterization import cases
from tests.problems.reparameterization.cases import Case, archimedean, double


def clayton_cdf(theta, *u):
    return (sum(x**-theta for x in u) - len(u) + 1) ** (-1 / theta)


def frank_cdf(theta, *u):
    product = mp.fprod(mp.expm1(-theta * x) for x in u)
    return -mp.log1p(product / mp.expm1(-theta) ** (len(u) - 1)) / theta


CLAYTON = (1e-10, 1e-7, 0.1, 2.0, 12.0)
PLACES = [(0.3, 0.6, 0.8), (0.02, 0.9, 0.5), (0.97, 0.99, 0.4)]
ARCHIMEDEAN = [
    *((ClaytonCopula, clayton_cdf, theta, dim) for theta in CLAYTON for dim in (2, 3)),
    *((FrankCopula, frank_cdf, theta, dim) for theta in (0.1, 4.0, 40.0) for dim in (2, 3)),
    *((FrankCopula, frank_cdf, theta, 2) for theta in (-0.1, -4.0, -40.0)),
]


@pytest.mark.parametrize("make, cdf, theta, dim", ARCHIMEDEAN)
def test_densities_are_mixed_derivatives_of_the_cdf(make, cdf, theta, dim):
    """And their derivatives by ``theta``, once and twice."""
    (leaf,) = double(theta, requires_grad=True)
    for place in PLACES:
        log_density = make(leaf, dim).log_prob(*double(place[:dim]))
        with mp.workdps(80):
            of = lambda t, place=place: mp.log(
                mp.diff(lambda *u: cdf(t, *u), tuple(map(mp.mpf, place[:dim])), (1,) * dim)
            )
            wanted = [of(mp.mpf(theta))]
            step = mp.mpf(10) ** -8 * min(theta, 1)
            wanted += [mp.diff(of, mp.mpf(theta), n, h=step) for n in (1, 2)]
        slope = grad(log_density, leaf, create_graph=True)[0]
        found = [log_density, slope, *grad(slope, leaf)]
        # mpmath's second difference has a third of its digits
        torch.testing.assert_close(
            torch.stack(found).detach(), *double([float(x) for x in wanted]), rtol=1e-8, atol=1e-9
        )


def test_the_gaussian_copula_against_scipy():
    torch.manual_seed(3)
    factor = double(cases.FACTOR)[0]
    covariance = factor @ factor.mT
    scale = covariance.diagonal().sqrt()
    correlation = covariance / scale / scale.unsqueeze(-1)
    q = GaussianCopula(factor)
    u = q.sample((50,))
    z = scipy.stats.norm.ppf(u.numpy())
    joint = scipy.stats.multivariate_normal(cov=correlation.numpy()).logpdf(z)
    wanted = torch.from_numpy(joint - scipy.stats.norm.logpdf(z).sum(-1))
    torch.testing.assert_close(q.log_prob(u), wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(q.entropy(), 0.5 * torch.logdet(correlation))


GRID = (60 * torch.linspace(0, 1, 601, dtype=torch.float64) - 30).sigmoid()


def of_density(log_density):
    """Return E as a function of the cost: the trapezoidal rule in both logits."""
    u, v = torch.cartesian_prod(GRID, GRID).T
    weight = u * (1 - u) * v * (1 - v)

    def expectation(cost):
        def mean(*parameters):
            mass = weight * log_density(u, v, *parameters).exp()
            return (cost(torch.stack([u, v], -1)) * mass).sum() / mass.sum()

        return mean

    return expectation


def clayton_density(u, v, theta):
    total = u**-theta + v**-theta - 1
    return theta.log1p() - (theta + 1) * (u.log() + v.log()) - (2 + 1 / theta) * total.log()


def frank_density(u, v, theta):
    rest = -(-theta).expm1() - (-theta * u).expm1() * (-theta * v).expm1()
    return (-theta * (-theta).expm1()).log() - theta * (u + v) - 2 * rest.abs().log()


def spearman(factor):
    correlation = factor[1, 0] / (factor[1, 0].square() + factor[1, 1].square()).sqrt()
    return 0.25 + (correlation / 2).asin() / (2 * torch.pi)


COSTS = [
    lambda u: u.prod(-1),
    lambda u: (u[..., 0] - u[..., 1]).square(),
    lambda u: (3 * u[..., 0] + u[..., 1]).sin(),
]
PAIRS = [
    (archimedean(ClaytonCopula, 2), 1.7, clayton_density),
    (archimedean(FrankCopula, 2), 4.0, frank_density),
    (archimedean(FrankCopula, 2), -4.0, frank_density),
]


@pytest.mark.parametrize("make, theta, log_density", PAIRS)
def test_derivatives_of_expectations(make, theta, log_density):
    rows = [(cost, of_density(log_density)(cost)) for cost in COSTS]
    cases.check_expectations(Case(make, (theta,)), double(theta), rows)


def test_derivatives_of_expectations_of_the_gaussian_copula():
    case = Case(cases.gaussian_copula, (cases.FACTOR,))
    cost = lambda u: u[..., 0] * u[..., 1]
    cases.check_expectations(case, double(cases.FACTOR), [(cost, spearman)])


def test_marginals_and_dependence_add_up():
    """E[(x - y)^2] of a Gaussian copula with normal marginals, by all parameters."""

    def make(factor, loc, scale, validate_args=None):
        copula = GaussianCopula(factor, validate_args)
        return CopulaDistribution(copula, td.Normal(loc, scale, validate_args), validate_args)

    def expectation(factor, loc, scale):
        unit = factor / factor.square().sum(-1, keepdim=True).sqrt()
        root = unit.tril() * scale.unsqueeze(-1)
        return (loc[0] - loc[1]).square() + (root[0] - root[1]).square().sum()

    parameters = double([[1.0, 0.0], [0.6, 0.8]], [0.3, -0.5], [1.0, 2.0])
    case = Case(make, ())
    cost = lambda x: (x[..., 0] - x[..., 1]).square()
    cases.check_expectations(case, parameters, [(cost, expectation)])
    q, root = make(*parameters), parameters[0] * parameters[2].unsqueeze(-1)
    theirs = td.MultivariateNormal(parameters[1], scale_tril=root)
    x = torch.cat([theirs.sample((20,)), *double([[30.0, 90.0], [-40.0, -70.0]])[:1]])
    torch.testing.assert_close(q.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(q.entropy(), theirs.entropy())


EXTREME = [0.0, 5e-324, 1e-300, 1e-20, 0.5, 1 - 2**-53, 1.0]
THETAS = [1e-12, 1e-6, 1.0, 30.0, 700.0]
SINGLE = [GaussianCopula(torch.tensor([[1.0, 0.0], [1.0, 1e-3]], dtype=torch.float64))]
SINGLE += [make(*double(t)) for make in (ClaytonCopula, FrankCopula) for t in THETAS]
SINGLE += [FrankCopula(*double(-t)) for t in (0.0, *THETAS)]


@pytest.mark.parametrize("q", SINGLE, ids=str)
def test_extreme_parameters_and_places_give_no_nan(q):
    u = double(list(itertools.product(EXTREME, EXTREME)))[0].requires_grad_()
    parameter = q._like.requires_grad_()
    for function in (q.log_prob, q.rosenblatt, q.inverse_rosenblatt):
        value = function(u)
        assert not value.isnan().any()
    x = q.rsample((500,))
    assert bool(((x > 0) & (x < 1)).all())
    results = [x, q.log_prob(x.detach())]
    for result in results:
        assert grad(result.sum(), parameter, retain_graph=True)[0].isfinite().all()


def test_no_dependence_is_the_limit():
    u = torch.rand(50, 3, dtype=torch.float64)
    assert float(FrankCopula(*double(0.0), 3).log_prob(u).abs().max()) < 1e-7
    u = u[:, :2]
    for q in (ClaytonCopula(*double(1e-9)), FrankCopula(*double(0.0)), FrankCopula(*double(1e-9))):
        assert float(q.log_prob(u).abs().max()) < 1e-7
        torch.testing.assert_close(q.rosenblatt(u), u, rtol=0, atol=1e-7)


def test_marginals_of_any_family():
    """What has no ``icdf`` of its own is solved for; floats stay what they are."""
    angle = VonMises(torch.tensor(0.3), torch.tensor(2.0))
    marginals = [Gamma(2.0, 1.0), td.Gamma(2.0, 1.0), td.Beta(2.0, 3.0), angle, StudentT(3.0)]
    q = CopulaDistribution(FrankCopula(3.0, 5), marginals)
    x = q.rsample((200,))
    assert x.shape == (200, 5) and x.dtype == torch.float32
    assert bool(q.support.check(x).all())
    u = q.rosenblatt(x)
    torch.testing.assert_close(q.inverse_rosenblatt(u), x, rtol=2e-3, atol=2e-3)
    alone = torch.stack([m.log_prob(x[:, i]) for i, m in enumerate(marginals)], -1).sum(-1)
    independent = CopulaDistribution(FrankCopula(1e-6, 5), marginals)
    torch.testing.assert_close(independent.log_prob(x), alone, rtol=1e-4, atol=1e-4)
    wide = q.expand((3, 2))
    assert wide.batch_shape == (3, 2) and wide.rsample((4,)).shape == (4, 3, 2, 5)
    assert wide.log_prob(x[:6].reshape(3, 2, 5)).shape == (3, 2)
