"""Kullback-Leibler divergences, and the log-densities of which they are made, of any parameters."""

import itertools
import math

import mpmath as mp
import pytest
import torch
from torch import distributions as td
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.distributions import kl_divergence
from torch.func import vmap

from implicit_solvers.problems.reparameterization import (
    Beta,
    Dirichlet,
    Gamma,
    LKJCholesky,
    MultivariateStudentT,
    StudentT,
    TruncatedNormal,
    VonMises,
    VonMisesFisher,
)
from tests.problems.reparameterization.cases import double, lkj

# ------------------------------------------------------------------------------------ log-densities


def gamma_log_density(z, a, rate):
    return a * mp.log(rate) + (a - 1) * mp.log(z) - rate * z - mp.loggamma(a)


def t_log_density(x, n, loc=0, scale=1, dim=1):
    ratio = mp.loggamma((n + dim) / 2) - mp.loggamma(n / 2) - dim * mp.log(n * mp.pi) / 2
    fall = (n + dim) / 2 * mp.log1p(dim * ((x - loc) / scale) ** 2 / n)
    return ratio - fall - dim * mp.log(scale)


def beta_log_density(x, a, b):
    total = mp.loggamma(a + b) - mp.loggamma(a) - mp.loggamma(b)
    return total + (a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x)


def triple(a, b, validate_args=None):
    return Dirichlet(torch.stack([a, b, b]), validate_args)


def triple_log_density(x, a, b):
    """At (x, y, y)."""
    normal = mp.loggamma(a + 2 * b) - mp.loggamma(a) - 2 * mp.loggamma(b)
    return normal + (a - 1) * mp.log(x) + 2 * (b - 1) * mp.log((1 - x) / 2)


def diagonal(df, validate_args=None):
    eye = torch.eye(3, dtype=torch.float64)
    return MultivariateStudentT(df, torch.zeros(3, dtype=torch.float64), eye, validate_args)


def correlation_log_density(c, eta):
    """For the dimension 2, by the correlation."""
    b = eta - 1
    return b * mp.log1p(-c * c) + mp.loggamma(b + 1.5) - mp.loggamma(b + 1) - mp.log(mp.pi) / 2


def factor(c):
    return torch.stack([torch.stack([0 * c + 1, 0 * c]), torch.stack([c, (1 - c * c).sqrt()])])


itself = lambda x: x
# make, the event of a number, log-density, that number, parameters
DENSITIES = [
    (Gamma, itself, gamma_log_density, 1e8 + 1e4, (1e8, 1.0)),
    (Gamma, itself, gamma_log_density, 3e7, (1e8, 2.0)),
    (Gamma, itself, gamma_log_density, 0.3, (1e-3, 0.7)),
    (Gamma, itself, gamma_log_density, 11.0, (9.0, 1.2)),
    (StudentT, itself, t_log_density, 1.3, (1e10, 0.0, 1.0)),
    (StudentT, itself, t_log_density, 1e6, (1e10, 3.0, 2.0)),
    (StudentT, itself, t_log_density, 3.6, (50.0, 0.5, 2.0)),
    (StudentT, itself, t_log_density, 1e120, (0.7, 0.5, 2.0)),
    (Beta, itself, beta_log_density, 0.25, (1e8, 3e8)),
    (Beta, itself, beta_log_density, 0.9, (0.3, 1e5)),
    (triple, lambda x: torch.stack([x, (1 - x) / 2, (1 - x) / 2]), triple_log_density, 0.5,
     (2e8, 1e8)),
    (diagonal, lambda x: x.expand(3), lambda x, n: t_log_density(x, n, dim=3), 1.5, (1e10,)),
    (lkj(2), factor, correlation_log_density, 0.0, (1e8,)),
]  # fmt: skip


@pytest.mark.parametrize("make, event, exact, place, parameters", DENSITIES)
def test_log_densities_of_large_parameters(make, event, exact, place, parameters):
    """The value, both derivatives, relative to what one rounding of the place changes in them."""
    leaves = double(*parameters, requires_grad=True)
    log_density = make(*leaves, validate_args=False).log_prob(event(*double(place)))
    slopes = grad(log_density, leaves, create_graph=True)
    with mp.workdps(160):
        of = lambda *p: exact(mp.mpf(place), *p)
        moved = lambda *p: exact(mp.mpf(place) * (1 + mp.mpf(2) ** -52), *p)
        numbers = [mp.mpf(p) for p in parameters]
        by_place = mp.diff(lambda x: exact(x, *numbers), mp.mpf(place))
        wanted = of(*numbers)
        bound = 1e-14 * abs(wanted) + 4e-16 * abs(by_place * place)
        assert abs(mp.mpf(log_density.item()) - wanted) <= bound
        for i, slope in enumerate(slopes):
            order = [int(i == k) for k in range(len(numbers))]
            step = mp.mpf(10) ** -15 * max(abs(numbers[i]), 1)
            first = mp.diff(of, tuple(numbers), tuple(order), h=step)
            rounding = mp.diff(moved, tuple(numbers), tuple(order), h=step)
            bound = 1e-13 * abs(first) + 4 * abs(rounding - first)
            assert abs(mp.mpf(slope.item()) - first) <= bound
            (curvature,) = grad(slope, leaves[i], retain_graph=True, materialize_grads=True)
            order[i] = 2
            second = mp.diff(of, tuple(numbers), tuple(order), h=step)
            assert abs(mp.mpf(curvature.item()) - second) <= 1e-10 * abs(second) + 1e-40


# -------------------------------------------------------------------------------------- divergences


def gamma_kl(a, r, b, s):
    return (
        b * mp.log(r / s)
        + mp.loggamma(b)
        - mp.loggamma(a)
        + (a - b) * mp.psi(0, a)
        + (s - r) * a / r
    )


def beta_kl(a, b, c, d):
    log_beta = lambda a, b: mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)
    change = (a - c) * mp.psi(0, a) + (b - d) * mp.psi(0, b)
    return log_beta(c, d) - log_beta(a, b) + change + (c - a + d - b) * mp.psi(0, a + b)


def lkj_kl(eta, other):
    return beta_kl(mp.mpf(1) / 2, eta, mp.mpf(1) / 2, other)


def angle_kl(m, k, other, rate):
    log_bessel = lambda k: mp.log(mp.besseli(0, k))
    mean = mp.besseli(1, k) / mp.besseli(0, k)
    return log_bessel(rate) - log_bessel(k) + mean * (k - rate * mp.cos(m - other))


def t_kl(n, m, s, df, loc, scale):
    """By quadrature between decades around both locations, and in the logarithm beyond."""
    decades = [sign * mp.mpf(10) ** k for k in range(-8, 12) for sign in (-1, 1)]
    places = sorted({c + w * d for c, w in ((m, s), (loc, scale)) for d in [0, *decades]})

    def integrand(x):
        log_p = t_log_density(x, n, m, s)
        return mp.exp(log_p) * (log_p - t_log_density(x, df, loc, scale))

    total = mp.quad(integrand, places)
    for sign, last in ((1, places[-1]), (-1, -places[0])):
        start = mp.log(last)
        beyond = lambda w, sign=sign: integrand(sign * mp.exp(w)) * mp.exp(w)
        total += mp.quad(beyond, [start, start + 10, start + 50, start + 200, start + 1000])
    return total


def normal_kl(m, s, low, high, loc, scale, start, end):
    """Of truncated normal distributions, the second with the wider interval."""
    mass = lambda m, s, a, b: mp.quad(lambda x: mp.exp(-(((x - m) / s) ** 2) / 2), [a, b])
    inside, other = mass(m, s, low, high), mass(loc, scale, start, end)
    gap = lambda x: (((x - loc) / scale) ** 2 - ((x - m) / s) ** 2) / 2
    density = lambda x: mp.exp(-(((x - m) / s) ** 2) / 2) / inside
    mean = mp.quad(lambda x: density(x) * gap(x), [low, high])
    return mean + mp.log(other / inside)


A = 1e8
# make, torch's class, parameters of both, the divergence by mpmath, its rounding
KL = [
    (Gamma, td.Gamma, (A, 1.0), (A * 1.0001, 1.0001), gamma_kl, 1e-13),
    (Gamma, td.Gamma, (A, 1.0), (A + 1, 1.0), gamma_kl, 1e-13),
    (Gamma, td.Gamma, (0.3, 2.0), (0.3 + 1e-9, 2.0), gamma_kl, 1e-13),
    (Gamma, td.Gamma, (0.01, 2.0), (A, 0.1), gamma_kl, 1e-13),
    (Beta, td.Beta, (A, 3e8), (A + 1e3, 3e8), beta_kl, 1e-13),
    (Beta, td.Beta, (0.3, 2.0), (5.0, 1e-3), beta_kl, 1e-13),
    (lkj(2), lambda *p: td.LKJCholesky(2, *p), (A,), (A + 100.0,), lkj_kl, 1e-13),
    (VonMises, td.VonMises, (0.3, 1.7), (2.0, 1e-3), angle_kl, 1e-13),
    (VonMises, td.VonMises, (0.3, 1e5), (0.301, 1.5e5), angle_kl, 1e-12),
    (StudentT, td.StudentT, (3.0, 0.0, 1.0), (5.0, 0.3, 2.0), t_kl, 1e-13),
    (StudentT, td.StudentT, (1.0, 0.0, 1.0), (0.5, 10.0, 0.1), t_kl, 1e-13),
    (StudentT, td.StudentT, (50.0, 1.0, 2.0), (4.0, 1e3, 0.5), t_kl, 1e-13),
    (StudentT, td.StudentT, (3.0, 0.0, 1.0), (3.0, 0.0, 1.0001), t_kl, 1e-11),
    (TruncatedNormal, None, (0.3, 1.0, -1.0, 2.0), (1.0, 2.0, -1.0, 2.5), normal_kl, 1e-12),
    (TruncatedNormal, None, (0.0, 1.0, 10.0, 11.0), (1.0, 2.0, 9.0, 12.0), normal_kl, 1e-12),
]


@pytest.mark.parametrize("make, theirs, first, second, exact, rounding", KL)
def test_divergences_against_mpmath(make, theirs, first, second, exact, rounding):
    kinds = [(make, make)] + ([(make, theirs), (theirs, make)] if theirs else [])
    with mp.workdps(40 if exact is not t_kl else 25):
        wanted = exact(*(mp.mpf(x) for x in (*first, *second)))
        for left, right in kinds:
            found = kl_divergence(left(*double(*first)), right(*double(*second))).item()
            assert abs(found - wanted) <= rounding * abs(wanted)


@pytest.mark.parametrize(
    "first, second",
    [
        ((0.0, 1.0, 10.0, 11.0), (0.0, 1 + 2**-10, 10.0, 11.0)),
        ((0.0, 1.0, 2.0, 5.0), (0.0, 1 + 2**-20, 2.0, 5.0)),
    ],
)
def test_truncated_normal_distributions_in_single_precision(first, second):
    """In densities that are rounded to float32 nothing would be left."""
    p, q = (TruncatedNormal(*torch.tensor(parameters)) for parameters in (first, second))
    with mp.workdps(40):
        wanted = normal_kl(*(mp.mpf(x) for x in (*first, *second)))
    assert abs(kl_divergence(p, q).item() - wanted) <= 2e-4 * wanted


def eta_of(dim):
    return lambda eta: LKJCholesky(dim, eta, validate_args=False)


def simplex_of(*a):
    return Dirichlet(torch.stack(a), validate_args=False)


def direction(x, y, z, k):
    return VonMisesFisher(torch.stack([x, y, z]), k, validate_args=False)


DIFFERENTIATED = [
    (direction, (1.0, 2.0, -1.0, 3.0), (0.3, 1.0, 1.0, 0.7)),
    (direction, (1.0, 2.0, -1.0, 3.0), (1.0, 2.0, -1.0, 3.0)),
    (Gamma, (2.3, 1.7), (1.3, 0.7)),
    (Gamma, (2.3, 1.7), (2.3, 1.7)),
    (Beta, (2.3, 0.7), (1.3, 1.7)),
    (simplex_of, (2.3, 0.7, 1.0), (1.3, 1.7, 0.5)),
    (VonMises, (0.3, 2.0), (-0.5, 0.7)),
    (eta_of(4), (0.8,), (3.0,)),
    (StudentT, (2.3, 0.5, 1.7), (5.0, -1.0, 0.6)),
    (StudentT, (40.0, 0.5, 1.7), (0.7, 0.5, 1.0)),
    (TruncatedNormal, (0.3, 1.5, -1.0, 2.0), (0.0, 1.0, -2.0, 3.0)),
]


@pytest.mark.parametrize("make, first, second", DIFFERENTIATED)
def test_derivatives_of_divergences(make, first, second):
    options = {"validate_args": False} if isinstance(make, type) else {}
    leaves = double(*first, *second, requires_grad=True)

    def divergence(*parameters):
        p, q = parameters[: len(first)], parameters[len(first) :]
        return kl_divergence(make(*p, **options), make(*q, **options))

    assert gradcheck(divergence, leaves, check_forward_ad=True)
    assert gradgradcheck(divergence, leaves, fast_mode=True)
    lanes = [torch.stack([p, p]).detach() for p in leaves]
    torch.testing.assert_close(vmap(divergence)(*lanes), divergence(*leaves).detach().expand(2))


def test_divergences_are_expectations():
    torch.manual_seed(18)
    vectors = Dirichlet(*double([2.3, 0.7, 1.0])), Dirichlet(*double([1.3, 1.7, 0.5]))
    angles = VonMises(*double(0.3, 2.0)), td.VonMises(*double(-0.5, 0.7))
    pairs = [
        vectors,
        angles,
        angles[::-1],
        (LKJCholesky(4, *double(0.8)), td.LKJCholesky(4, *double(3.0))),
        (StudentT(*double(3.0, 0.5, 1.0)), td.StudentT(*double(7.0, 0.0, 2.0))),
        (TruncatedNormal(*double(0.3, 1.0, -1.0, 2.0)), td.Normal(*double(0.5, 2.0))),
        (Gamma(*double(2.3, 1.7)), td.Exponential(*double(0.7))),
        (Beta(*double(2.3, 0.7)), td.Normal(*double(0.7, 1.0))),
    ]
    for p, q in pairs:
        z = p.sample((40_000,))
        ratio = p.log_prob(z) - q.log_prob(z)
        assert abs(ratio.mean() - kl_divergence(p, q)) < 4 * ratio.std() / len(z) ** 0.5


@pytest.mark.parametrize("exponent", [-8, -6, -3, -1])
@pytest.mark.parametrize("k", [1e-6, 0.3, 2.0, 1e3, 1e6])
def test_divergences_of_von_mises_of_nearly_equal_concentrations(k, exponent):
    loc, k, other = double(0.3, k, k * (1 + 10.0**exponent))
    found = kl_divergence(VonMises(loc, k), VonMises(loc, other)).item()
    with mp.workdps(60):
        p, q = mp.mpf(k.item()), mp.mpf(other.item())
        mean = mp.besseli(1, p) / mp.besseli(0, p)
        exact = mp.log(mp.besseli(0, q) / mp.besseli(0, p)) - (q - p) * mean
    assert abs(found - exact) <= 1e-12 * exact


def test_divergences_of_equal_distributions_are_zero():
    makes = [(Gamma, (2.3, 1.7)), (Beta, (2.3, 1.7)), (VonMises, (0.3, 1.7))]
    makes += [(StudentT, (0.3, 2.0, 1.7)), (lkj(3), (1.7,))]
    for make, parameters in makes:
        p = make(*double(*parameters)).expand((2,))
        assert kl_divergence(p, p).tolist() == [0.0, 0.0]


def test_the_divergence_is_infinite_where_the_second_does_not_reach():
    ends = itertools.product([-1.0, 0.5], [2.0, 1.5])
    low, high = double(*zip(*ends, strict=True))
    p, q = (
        TruncatedNormal(*double(0.0, 1.0, 0.0, 1.7)),
        TruncatedNormal(*double(0.0, 1.0), low, high),
    )
    assert kl_divergence(p, q).isinf().tolist() == [False, True, True, True]


def test_a_lane_of_nan_has_no_divergence():
    unchecked = TruncatedNormal(*double([0.0, math.nan], 1.0, 0.0, 1.7), validate_args=False)
    for q in (td.Normal(*double(0.0, 1.0)), TruncatedNormal(*double(0.0, 1.0))):
        assert kl_divergence(unchecked, q).isnan().tolist() == [False, True]


def test_float32_divergences_of_large_parameters():
    alpha = torch.tensor([1e5, 2e5, 3e5])
    for make, p, q in (
        (Gamma, (1e5, 2e5), (1.001e5, 2e5)),
        (Beta, (1e5, 2e5), (1.001e5, 2e5)),
        (StudentT, (1e5, 0.1, 2.0), (1.001e3, 0.0, 2.0)),
        (Dirichlet, (alpha,), (alpha * 1.001,)),
    ):
        pairs = [[torch.as_tensor(x) for x in args] for args in (p, q)]
        kl, exact = (
            kl_divergence(*(make(*(x.to(dtype) for x in args)) for args in pairs))
            for dtype in (torch.float32, torch.float64)
        )
        torch.testing.assert_close(kl, exact.float(), rtol=1e-5, atol=0)
        assert float(kl) > 0
