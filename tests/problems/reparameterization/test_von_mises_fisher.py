"""The von Mises-Fisher distribution against mpmath, SciPy, and expectations in closed form."""

import itertools
import math

import mpmath as mp
import pytest
import scipy.stats
import torch
from torch import distributions as td
from torch.autograd import grad
from torch.func import jacfwd, jacrev, vmap

from implicit_solvers.problems.reparameterization import VonMisesFisher
from implicit_solvers.problems.special_functions.von_mises_fisher import angle
from tests.problems.reparameterization import cases, derivative_checks
from tests.problems.reparameterization.cases import Case, double

CONCENTRATIONS = [1e-8, 1e-3, 0.5, 20.0, 1e3, 1e8, 1e100]
DIMENSIONS = [2, 3, 10, 101, 2000]


def pole(dim, dtype=torch.float64):
    return torch.eye(dim, dtype=dtype)[0]


def angle_of(x, loc):
    return 2 * torch.atan2((x - loc).norm(dim=-1), (x + loc).norm(dim=-1))


# ------------------------------------------------------------------------------ special functions


def scaled_bessel(order, k):
    """Return ``exp(-k) I_order(k)``, for large ``k`` by Hankel's expansion."""
    if k < 1e6:
        return mp.exp(-k) * mp.besseli(order, k)
    total = term = mp.mpf(1)
    for j in range(1, 60):
        term *= -(4 * order**2 - (2 * j - 1) ** 2) / (8 * j * k)
        total += term
    return total / mp.sqrt(2 * mp.pi * k)


def integrals(dim, k):
    """Return ``N``, ``1 - A``, ``A`` and ``A'``."""
    order = mp.mpf(dim) / 2 - 1
    bessel = scaled_bessel(order, k)
    mean = scaled_bessel(order + 1, k) / bessel
    area = mp.log(mp.pi) / 2 + mp.loggamma(mp.mpf(dim - 1) / 2)
    log_normalizer = area + order * mp.log(2 / k) + mp.log(bessel)
    return log_normalizer, 1 - mean, mean, 1 - mean**2 - (dim - 1) * mean / k


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_bessel_functions_and_their_quotients(dim):
    functions = angle(dim)
    (k,) = double(CONCENTRATIONS)
    found = functions.log_normalizer(k), functions.deficit(k), functions.mean(k)
    found = torch.stack([*found, functions.variance(k)], -1)
    with mp.workdps(320):
        wanted = [[float(x) for x in integrals(dim, mp.mpf(x))] for x in k.tolist()]
    # the logarithm vanishes somewhere
    (wanted,) = double(wanted)
    size = wanted.abs()
    size[:, 0].clamp_(min=1)
    # 40 units in the last place and more: the logarithm of the density, where it ends, is -40
    assert float(((found - wanted).abs() / size).max()) < 4e-14


def slope_by_mpmath(dim, k, t):
    power, k, t = dim - 2, mp.mpf(k), mp.mpf(t)
    mean, width = integrals(dim, k)[2], 1 / mp.sqrt(k + dim)

    def integrand(s):
        ratio = mp.exp(k * (mp.cos(s) - mp.cos(t))) * (mp.sin(s) / mp.sin(t)) ** power
        return (mp.cos(s) - mean) * ratio

    ends = sorted({max(mp.mpf(0), t - j * width) for j in (0, 1, 3, 6, 10, 20, 40, 10**6)})
    return -mp.quad(integrand, ends)


PLACES = itertools.product([2, 3, 20, 300], [1e-6, 0.5, 20.0, 3e3], [-3.0, -1.0, 0.1, 3.0])


@pytest.mark.parametrize("dim, k, deviations", PLACES)
def test_how_an_angle_moves(dim, k, deviations):
    functions, (concentration,) = angle(dim), double(k)
    middle = functions.mean(concentration).acos().item()
    t = abs(middle + deviations / (k + dim) ** 0.5)
    if t < math.pi:
        found = functions.slope(*double(t), concentration, functions.deficit(concentration))
        with mp.workdps(30):
            wanted = float(slope_by_mpmath(dim, k, t))
        # of the two terms of one sign
        assert abs(found.item() - wanted) <= 1e-12 * abs(wanted)


def with_deficit(name, dim):
    functions = angle(dim)
    function = getattr(functions, name)
    return lambda t, k: function(t, k, functions.deficit(k))


MODES = [(getattr(angle(3), n), [0.5, 4.0], 2) for n in ("log_normalizer", "deficit", "mean")]
MODES += [(angle(4).variance, [0.5, 4.0], 1), (angle(4).divergence, ([0.5, 4.0], [0.6, 9.0]), 1)]
ANGLES = [0.4, 2.0], [2.0, 0.5]
MODES += [(with_deficit("cdf", d), ANGLES, 2) for d in (2, 5)]
MODES += [(with_deficit("slope", d), ANGLES, 1) for d in (2, 5)]


@pytest.mark.parametrize("function, points, orders", MODES)
def test_every_mode(function, points, orders):
    points = points if isinstance(points, tuple) else (points,)
    derivative_checks.check_every_mode(function, *double(*points), orders=orders)


@pytest.mark.parametrize("dim", [2, 3, 50])
def test_an_angle_keeps_its_cdf(dim):
    functions = angle(dim)
    k = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64).repeat(40).requires_grad_()
    t = angle_of(VonMisesFisher(pole(dim), k.detach()).sample(), pole(dim))
    lack = functions.deficit(k)
    cases.assert_constant(functions.cdf(functions.sample(t, k, lack), k, lack), [k])


# ---------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "dim, k", [(2, 1.3), (3, 1e-8), (3, 40.0), (10, 5.0), (200, 1e3), (5, 1e8)]
)
def test_samples_have_the_distribution(dim, k, dtype):
    torch.manual_seed(5)
    q = VonMisesFisher(pole(dim, dtype), torch.tensor(k, dtype=dtype))
    x = q.sample((20_000,))
    assert x.dtype == dtype and not x.requires_grad and bool(q.support.check(x).all())
    x = x.double()
    functions, concentration = angle(dim), q.concentration.double().expand(len(x))
    t = angle_of(x, pole(dim))
    cases.assert_uniform(functions.cdf(t, concentration, functions.deficit(concentration)))
    if dim > 2:
        # the direction across is uniform: the share of one component is a beta variable
        share = x[:, 1].square() / x[:, 1:].square().sum(-1)
        assert scipy.stats.kstest(share, scipy.stats.beta(0.5, dim / 2 - 1).cdf).pvalue > 1e-4
    for power, moment in ((1, q.mean), (2, q.variance)):
        sample = x if power == 1 else (x - q.mean.double()).square()
        # of two components; a float32 sample is rounded
        bound = 4.5 * sample.std(0) / len(x) ** 0.5 + 1e-6
        assert bool(((sample.mean(0) - moment).abs() < bound)[:2].all())


def unit(loc):
    return loc / loc.square().sum().sqrt()


SIDE = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)


def langevin(k):
    return 1 / k.tanh() - 1 / k


def second_moment(loc, k):
    across = langevin(k) / k
    return across * SIDE.square().sum() + (1 - 3 * across) * (unit(loc) @ SIDE).square()


def exponential_moment(loc, k):
    moved = (k * unit(loc) + SIDE).square().sum().sqrt()
    return k / k.sinh() * moved.sinh() / moved


ROWS = [
    (lambda x: x @ SIDE, lambda loc, k: langevin(k) * (unit(loc) @ SIDE)),
    (lambda x: (x @ SIDE).square(), second_moment),
    (lambda x: (x @ SIDE).exp(), exponential_moment),
]
PARAMETERS = ([0.5, 1.0, -2.0], 1.7)


def test_derivatives_of_expectations():
    cases.check_expectations(Case(VonMisesFisher, PARAMETERS), double(*PARAMETERS), ROWS)


def test_derivatives_of_expectations_on_the_circle():
    def make(loc, k, validate_args=None):
        return VonMisesFisher(loc, k, validate_args)

    side = SIDE[:2]
    mean = lambda loc, k: torch.special.i1(k) / torch.special.i0(k) * (unit(loc) @ side)
    rows = [(lambda x: x @ side, mean)]
    cases.check_expectations(Case(make, ()), double([0.5, -2.0], 1.7), rows)


@pytest.mark.parametrize("cost, expectation", ROWS)
def test_second_derivatives_of_expectations(cost, expectation):
    """By the concentration, by the direction, and by both."""
    torch.manual_seed(9)
    lanes = [p.expand(20_000, *p.shape).clone().requires_grad_() for p in double(*PARAMETERS)]
    x = VonMisesFisher(*lanes).rsample()
    slopes = grad(cost(x).sum(), lanes, create_graph=True)
    exact = torch.func.hessian(expectation, (0, 1))(*double(*PARAMETERS))
    for slope, row in zip(slopes, exact, strict=True):
        flat = slope.reshape(len(slope), -1)
        for i, j in itertools.product(range(flat.shape[1]), (0, 1)):
            (found,) = (grad(flat[:, i].sum(), lanes[j], retain_graph=True)[:1],)
            found = found[0].reshape(len(x), -1)
            wanted = row[j].reshape(flat.shape[1], -1)[i]
            error = found.std(0) / len(x) ** 0.5
            assert bool(((found.mean(0) - wanted).abs() <= 4.5 * error + 1e-9).all())


def test_every_mode_of_a_sample():
    def sample(flat):
        torch.manual_seed(8)
        return VonMisesFisher(flat[:3], flat[3], validate_args=False).rsample((3,))

    forward = lambda function: jacfwd(function, randomness="same")
    flat = torch.cat([p.reshape(-1) for p in double(*PARAMETERS)])
    torch.testing.assert_close(forward(sample)(flat), jacrev(sample)(flat))
    curvature = jacrev(jacrev(sample))(flat)
    assert float((curvature - curvature.mT).abs().max()) < 1e-12
    for outer, inner in itertools.product((jacrev, forward), repeat=2):
        torch.testing.assert_close(outer(inner(sample))(flat), curvature)


def test_lanes_and_batches():
    loc, k = torch.randn(3, 4, dtype=torch.float64), double([0.5, 2.0, 50.0])[0]
    q = VonMisesFisher(loc, k)
    wide = q.expand((2, 3))
    x = wide.rsample((5,))
    assert type(wide) is VonMisesFisher and x.shape == (5, 2, 3, 4)
    assert wide.mean.shape == wide.variance.shape == wide.mode.shape == (2, 3, 4)
    assert wide.log_prob(x).shape == (5, 2, 3) and wide.entropy().shape == (2, 3)
    torch.testing.assert_close(wide.log_prob(x), q.log_prob(x))
    assert q.rsample((0,)).shape == (0, 3, 4)
    assert VonMisesFisher(loc[:0], 1.0).rsample().shape == (0, 4)
    make = lambda loc, k: VonMisesFisher(loc, k, validate_args=False)
    lanes = vmap(lambda loc, k: make(loc, k).rsample((2,)), randomness="different")(loc, k)
    assert lanes.shape == (3, 2, 4) and len(lanes.reshape(6, 4).unique(dim=0)) == 6
    density = vmap(lambda loc, k, x: make(loc, k).log_prob(x))(loc, k, x[0, 0])
    torch.testing.assert_close(density, q.log_prob(x[0, 0]))


# ---------------------------------------------------------------------------- functions of a value


@pytest.mark.parametrize("dim, k", [(2, 1.3), (3, 40.0), (10, 5.0), (60, 200.0)])
def test_log_prob_and_entropy_against_scipy(dim, k):
    torch.manual_seed(2)
    loc = unit(torch.randn(dim, dtype=torch.float64))
    q, theirs = VonMisesFisher(loc, *double(k)), scipy.stats.vonmises_fisher(loc.numpy(), k)
    x = q.sample((20,))
    torch.testing.assert_close(q.log_prob(x), torch.from_numpy(theirs.logpdf(x.numpy())))
    torch.testing.assert_close(q.entropy(), *double(float(theirs.entropy())))


def test_on_the_circle_it_is_the_von_mises_distribution():
    theta, m, k = double([-3.0, 0.2, 2.0], 0.7, 2.5)
    q = VonMisesFisher(torch.stack([m.cos(), m.sin()]), k)
    x = torch.stack([theta.cos(), theta.sin()], -1)
    torch.testing.assert_close(q.log_prob(x), td.VonMises(m, k).log_prob(theta))


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_densities_and_entropies_of_all_concentrations(dim):
    """With derivatives; the angle of the place is one standard deviation of a component."""
    for k in CONCENTRATIONS:
        concentration = double(k, requires_grad=True)[0]
        t = mp.mpf(1) / mp.sqrt(dim + k)
        x = float(mp.cos(t)) * pole(dim) + float(mp.sin(t)) * pole(dim).roll(1)
        q = VonMisesFisher(pole(dim), concentration)
        log_density, entropy = q.log_prob(x), q.entropy()
        found = [log_density, *grad(log_density, concentration), entropy]
        with mp.workdps(320):
            # as the place is represented
            fall = ((1 - mp.mpf(x[0].item())) ** 2 + mp.mpf(x[1].item()) ** 2) / 2
            area = (
                mp.log(2) + mp.mpf(dim - 1) / 2 * mp.log(mp.pi) - mp.loggamma((dim - 1) / mp.mpf(2))
            )
            log_normalizer, deficit, *_ = integrals(dim, mp.mpf(k))
            wanted = [-k * fall - log_normalizer - area, deficit - fall]
            wanted.append(log_normalizer + k * deficit + area)
        sizes = [1 + abs(log_normalizer) + abs(area), deficit, 1 + abs(log_normalizer) + abs(area)]
        for ours, exact, size in zip(found, wanted, sizes, strict=True):
            assert abs(ours.item() - exact) <= 2e-14 * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_returned_in_kind(dtype):
    loc, k = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in ([0.3, -0.5, 1.0], 30.0))
    q = VonMisesFisher(loc, k)
    z = q.rsample((1000,))
    assert q.support.check(z).all() and not q.support.check(1.03 * z).any()
    slopes = torch.autograd.grad(z.float().sum(), (loc, k))
    for t in (z, q.log_prob(z.detach()), q.mean, q.variance, q.entropy(), *slopes):
        assert t.dtype == dtype and t.isfinite().all()
