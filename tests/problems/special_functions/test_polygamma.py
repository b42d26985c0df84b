"""Polygamma functions and differences against mpmath, and what the special functions share."""

import math

import mpmath as mp
import pytest
import torch
from torch.func import grad, vmap

from implicit_solvers.problems import special_functions as special
from implicit_solvers.problems.special_functions import (
    derivatives,
    gamma_ratio,
    log_gamma,
    polygamma,
    relative,
)

F64 = torch.float64
X = torch.tensor(
    [10.0**e for e in torch.linspace(-3, 5, 41).tolist()]
    + [math.nextafter(10.0, 0), 10.0, math.nextafter(10.0, 11)],
    dtype=F64,
)
LARGE = X[X >= 10]
Y = torch.tensor([0.0, 1e-12, 1e-3, 0.5, 30.0, 1e5], dtype=F64)
SMALL = torch.tensor(
    [s * 10.0**e for e in range(-12, 1) for s in (-0.99, 0.3, 0.399, 0.401, 0.9)]
    + [10.0, 1e6, -0.999999],
    dtype=F64,
)


def stirling_error(x):
    return mp.loggamma(x) - (x - 0.5) * mp.log(x) + x - mp.log(2 * mp.pi) / 2


def difference(function):
    return lambda x, y: function(x + y) - function(x)


def excess(x, y):
    return mp.psi(0, x + y) - mp.psi(0, x) - mp.log1p(y / x)


def log_gamma_ratio(x):
    return mp.loggamma(x + mp.mpf(1) / 2) - mp.loggamma(x)


def half_excess(order):
    """Return the difference of digamma, or of trigamma, but for the first term of its expansion."""
    lead = (lambda x: 1 / (2 * x), lambda x: -1 / (2 * x * x))[order]
    return lambda x: mp.psi(order, x + mp.mpf(1) / 2) - mp.psi(order, x) - lead(x)


def size_of_difference(value, x, y):
    """Return at least ``y psi(x)``: what the difference is for small y, where it changes sign."""
    return value.abs().maximum(y * (x.log().abs() + 1 / x.clamp(min=y)).clamp(min=1.0))


def itself(value, *_):
    return value.abs()


def one(value, *_):
    return torch.ones_like(value)


def one_or_itself(value, *_):
    return value.abs().clamp(min=1)


def gamma_entropy(a):
    return a + mp.loggamma(a) + (1 - a) * mp.psi(0, a)


def gamma_kl(a, b):
    """Of equal rates."""
    return mp.loggamma(b) - mp.loggamma(a) + (a - b) * mp.psi(0, a)


def of_equal_rates(a, b):
    return log_gamma.gamma_divergence(a, b, a / b, (a - b) / b)


def excess_of_log_gamma(x, y):
    return mp.loggamma(x + y) - mp.loggamma(x) - y * mp.log(x)


# delta's derivatives
slopes = [
    lambda x: mp.psi(0, x) - mp.log(x) + 1 / (2 * x),
    lambda x: mp.psi(1, x) - 1 / x - 1 / (2 * x * x),
    lambda x: mp.psi(2, x) + 1 / x**2 + 1 / x**3,
]
of_order = [grad(log_gamma.stirling_error)]
for _ in slopes[1:]:
    of_order.append(grad(of_order[-1]))
WIDE = torch.tensor([1e-8, 1e-3, 0.3, 4.0, 9.9, 10.1, 1e3, 1e8], dtype=F64)
CLOSE = torch.cat([WIDE, WIDE * (1 + 1e-6), WIDE * 0.6])
half_ratio = lambda x: mp.loggamma(x + 0.5) - mp.loggamma(x)
# function, its values by mpmath, arguments, some units of rounding, relative to
ROWS = [
    (polygamma.trigamma, lambda x: mp.psi(1, x), (X,), 2e-15, itself),
    (vmap(grad(polygamma.trigamma)), lambda x: mp.psi(2, x), (X,), 2e-14, itself),
    (polygamma.digamma_difference, difference(mp.digamma), (X, Y), 4e-15, itself),
    (polygamma.trigamma_difference, difference(lambda x: mp.psi(1, x)), (X, Y), 4e-15, itself),
    (polygamma.log_gamma_difference, difference(mp.loggamma), (X, Y), 4e-15, size_of_difference),
    (polygamma.digamma_minus_log, lambda x: mp.psi(0, x) - mp.log(x), (LARGE,), 2e-15, itself),
    (polygamma.digamma_excess, excess, (LARGE, Y), 4e-15, itself),
    (polygamma.stirling_error, stirling_error, (X,), 4e-15, one),
    (polygamma.stirling_error, stirling_error, (LARGE,), 2e-15, itself),
    (gamma_ratio.log_gamma_ratio, half_ratio, (X,), 4e-14, itself),
    (gamma_ratio.digamma_excess, half_excess(0), (X,), 4e-15, itself),
    (gamma_ratio.trigamma_excess, half_excess(1), (X,), 4e-15, itself),
    (log_gamma.stirling_error, stirling_error, (X,), 4e-15, one),
    # the series ends where its terms are smallest, beyond 10
    (vmap(of_order[0]), slopes[0], (X,), 2e-15, one_or_itself),
    (vmap(of_order[0]), slopes[0], (LARGE,), 4e-15, itself),
    (vmap(of_order[1]), slopes[1], (X,), 4e-14, itself),
    (vmap(of_order[2]), slopes[2], (X,), 4e-13, itself),
    (log_gamma.log_gamma_excess, excess_of_log_gamma, (LARGE, Y[2:]), 1e-15, one_or_itself),
    (log_gamma.digamma_rise, difference(mp.digamma), (X, Y[1:]), 4e-15, itself),
    (log_gamma.gamma_entropy, gamma_entropy, (X,), 4e-15, one_or_itself),
    (of_equal_rates, gamma_kl, (WIDE, CLOSE), 2e-14, itself),
    (polygamma.log1p_minus, lambda x: mp.log1p(x) - x, (SMALL,), 2e-15, itself),
]


# with the k-th derivative, by the series about zero
def quotient(numerator, term):
    return lambda k: (
        lambda x: (
            mp.fsum(term(j) * mp.ff(j, k) * x ** (j - k) for j in range(k, 200))
            if abs(x) < 0.4
            else mp.diff(lambda y: numerator(y) / y, x, k)
        )
    )


RELATIVE = [
    (relative.exprel, quotient(mp.expm1, lambda j: 1 / mp.factorial(j + 1))),
    (relative.log1prel, quotient(mp.log1p, lambda j: mp.mpf(-1) ** j / (j + 1))),
]
NEAR = torch.tensor([0.0, 1e-300, -1e-9, 0.01, 0.149, -0.151, 0.39, -0.7, 2.0], dtype=F64)
for of, exact in RELATIVE:
    for k, bound in enumerate((1e-15, 4e-15, 1e-13, 4e-12)):
        ROWS.append((vmap(of), exact(k), (NEAR,), bound, itself))
        of = grad(of)


@pytest.mark.parametrize("function, exact, axes, bound, scale", ROWS)
def test_values(function, exact, axes, bound, scale):
    args = torch.cartesian_prod(*axes).reshape(-1, len(axes)).T
    with mp.workdps(60):
        expected = [float(exact(*map(mp.mpf, place))) for place in args.T.tolist()]
    expected = torch.tensor(expected, dtype=F64)
    assert ((function(*args) - expected).abs() <= bound * scale(expected, *args)).all()


def test_arguments_at_the_ends():
    for bad in (0.0, -0.5, -math.inf, math.nan):
        assert polygamma.trigamma(torch.tensor(bad)).isnan()
    assert polygamma.trigamma(torch.tensor(2.0)).dtype == torch.float32
    assert polygamma.log1p_minus(torch.tensor(torch.inf)) == -torch.inf


@pytest.mark.parametrize("count", [3, 20, 24])
def test_quadrature_is_exact_for_polynomials(count):
    # of degree d in x = u (1 + u) / 2, times dx/du: of degree 2 d + 1 in u
    for degree in range(count):
        total = sum(w * x**degree for x, w in special.quadrature.clustered_nodes(count))
        assert abs(total * (degree + 1) - 1) < 4e-14


def test_blocks_join_to_the_whole():
    @derivatives.in_double(3)
    def squares(x, *, nodes):
        assert x.dim() == 1 and len(x) <= derivatives.BLOCK and x.dtype == F64
        return x * x, x + nodes

    x = torch.arange(2 * derivatives.BLOCK + 10).reshape(2, -1).float() / 7
    square, more = squares(x)
    assert square.shape == more.shape == x.shape and square.dtype == torch.float32
    torch.testing.assert_close(square, x * x)
    torch.testing.assert_close(more, x + 3)
    assert squares(x[:, :0])[0].shape == (2, 0)
