"""Polygamma functions and differences against mpmath."""

import math

import mpmath as mp
import pytest
import torch
from torch.func import grad, vmap

from implicit_solvers.problems.reparameterization.special import derivatives, polygamma, quadrature

F64 = torch.float64
X = torch.tensor(
    [10.0**e for e in torch.linspace(-3, 5, 41).tolist()]
    + [math.nextafter(10.0, 0), 10.0, math.nextafter(10.0, 11)],
    dtype=F64,
)
Y = torch.tensor([0.0, 1e-12, 1e-3, 0.5, 30.0, 1e5], dtype=F64)
SMALL = torch.tensor(
    [s * 10.0**e for e in range(-12, 1) for s in (-0.99, 0.3, 0.399, 0.401, 0.9)]
    + [10.0, 1e6, -0.999999],
    dtype=F64,
)


def exact(function, *grids):
    with mp.workdps(60):
        places = torch.cartesian_prod(*grids).reshape(-1, len(grids)).tolist()
        values = [float(function(*map(mp.mpf, place))) for place in places]
    return torch.tensor(values, dtype=F64)


def every_pair(function):
    x, y = torch.cartesian_prod(X, Y).T
    return function(x, y)


@pytest.mark.parametrize("order", [1, 2])
def test_polygamma(order):
    ours = polygamma.trigamma(X) if order == 1 else vmap(grad(polygamma.trigamma))(X)
    torch.testing.assert_close(
        ours, exact(lambda x: mp.psi(order, x), X), rtol=2e-15 if order == 1 else 2e-14, atol=0
    )


@pytest.mark.parametrize("order", [0, 1])
def test_differences_of_polygammas(order):
    ours = every_pair((polygamma.digamma_difference, polygamma.trigamma_difference)[order])
    reference = exact(lambda x, y: mp.psi(order, x + y) - mp.psi(order, x), X, Y)
    torch.testing.assert_close(ours, reference, rtol=4e-15, atol=0)


def test_differences_of_log_gammas():
    ours = every_pair(polygamma.log_gamma_difference)
    reference = exact(lambda x, y: mp.loggamma(x + y) - mp.loggamma(x), X, Y)
    # relative to y psi(x), what the difference is for small y, where it changes sign
    x, y = torch.cartesian_prod(X, Y).T
    scale = torch.maximum(reference.abs(), y * (x.log().abs() + 1 / x.clamp(min=y)).clamp(min=1.0))
    assert ((ours - reference).abs() <= 4e-15 * scale).all()


def test_functions_of_large_arguments():
    large, pairs = X[X >= 10], torch.cartesian_prod(X[X >= 10], Y).T
    torch.testing.assert_close(
        polygamma.digamma_minus_log(large),
        exact(lambda x: mp.psi(0, x) - mp.log(x), large),
        rtol=2e-15,
        atol=0,
    )
    excess = exact(lambda x, y: mp.psi(0, x + y) - mp.psi(0, x) - mp.log1p(y / x), large, Y)
    torch.testing.assert_close(polygamma.digamma_excess(*pairs), excess, rtol=4e-15, atol=0)


def test_stirling_error():
    def reference(x):
        return mp.loggamma(x) - (x - 0.5) * mp.log(x) + x - mp.log(2 * mp.pi) / 2

    torch.testing.assert_close(polygamma.stirling_error(X), exact(reference, X), rtol=0, atol=4e-15)
    large = X[X >= 10]
    torch.testing.assert_close(
        polygamma.stirling_error(large), exact(reference, large), rtol=2e-15, atol=0
    )


def test_log1p_minus():
    reference = exact(lambda x: mp.log1p(x) - x, SMALL)
    torch.testing.assert_close(polygamma.log1p_minus(SMALL), reference, rtol=2e-15, atol=0)
    assert polygamma.log1p_minus(torch.tensor(torch.inf)) == -torch.inf


def test_arguments_that_are_not_positive_give_nan():
    for bad in (0.0, -0.5, -math.inf, math.nan):
        assert polygamma.trigamma(torch.tensor(bad)).isnan()
    assert polygamma.trigamma(torch.tensor(2.0)).dtype == torch.float32


@pytest.mark.parametrize("count", [3, 20, 24])
def test_quadrature_is_exact_for_polynomials(count):
    # of degree d in x = u (1 + u) / 2, times dx/du: of degree 2 d + 1 in u
    for degree in range(count):
        total = sum(w * x**degree for x, w in quadrature.clustered_nodes(count))
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
