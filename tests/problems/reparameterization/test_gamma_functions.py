"""Incomplete gamma functions against mpmath at 50 digits, doubled nodes, and every composition."""

import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from implicit_solvers.problems.reparameterization.special import gamma_evaluation as evaluation
from implicit_solvers.problems.reparameterization.special.gamma import (
    gamma_log_sample,
    gamma_log_sample_derivative,
    gamma_sample,
    gamma_sample_derivative,
    gammainc,
    gammaincc,
    log_gammainc,
    log_gammaincc,
)
from tests.problems.reparameterization.special_grids import (
    SECOND,
    SLOPE,
    VALUE,
    grid,
    leaves,
    worst,
)

F64 = torch.float64
CDFS = [gammainc, gammaincc, log_gammainc, log_gammaincc]


@pytest.fixture(scope="module")
def table():
    return grid("gamma")


@pytest.fixture(scope="module")
def log_table():
    return grid("gamma_log")


def test_the_grid_is_large(table):
    assert len(table["a"]) >= 2000
    assert table["a"].min() <= 1e-3 and table["a"].max() >= 1e5


@pytest.mark.parametrize("name", ["gamma", "gamma_log"])
def test_value(name):
    t = grid(name)
    place = {"z": t["z"]} if name == "gamma" else {"log_z": t["log_z"]}
    small = torch.where(t["upper"], gammaincc(t["a"], **place), gammainc(t["a"], **place))
    large = torch.where(t["upper"], gammainc(t["a"], **place), gammaincc(t["a"], **place))
    log = torch.where(t["upper"], log_gammaincc(t["a"], **place), log_gammainc(t["a"], **place))
    log_large = torch.where(
        t["upper"], log_gammainc(t["a"], **place), log_gammaincc(t["a"], **place)
    )
    near = t["tail"] > 1e-13
    assert worst(small[near], t["tail"][near]) < VALUE
    assert worst(large, 1 - t["tail"]) < VALUE
    assert worst(log, t["log_tail"], t["log_tail"].abs().clamp(min=1.0)) < VALUE
    assert worst(log_large[near], (-t["tail"][near]).log1p()) < VALUE


def test_derivative_of_a_sample(table):
    assert worst(gamma_sample_derivative(table["a"], table["z"]), table["slope_a"]) < SLOPE


def test_derivative_of_the_logarithm_of_a_sample(log_table):
    ours = gamma_log_sample_derivative(log_table["a"], log_table["log_z"])
    assert worst(ours, log_table["slope_a"]) < SLOPE


@pytest.mark.parametrize("name", ["gamma", "gamma_log"])
def test_second_derivatives_of_a_sample(name):
    t = grid(name)
    key, function = {
        "gamma": ("z", gamma_sample_derivative),
        "gamma_log": ("log_z", gamma_log_sample_derivative),
    }[name]
    a, place = leaves(t["a"], t[key])
    function(a, place).sum().backward()
    assert worst(a.grad, t["slope_a_a"], t["terms_a_a"]) < SECOND
    assert worst(place.grad, t["slope_a_place"], t["terms_a_place"]) < SECOND


@pytest.mark.parametrize("name", ["gamma", "gamma_log"])
@pytest.mark.parametrize("function,sign", [(gammainc, 1.0), (gammaincc, -1.0)])
def test_derivatives_of_the_cdf(name, function, sign):
    t = grid(name)
    (a,) = leaves(t["a"])
    place = {"z": t["z"]} if name == "gamma" else {"log_z": t["log_z"]}
    (first,) = torch.autograd.grad(function(a, **place).sum(), a, create_graph=True)
    normal = t["value_a"].abs() > 1e-290
    assert worst(first[normal], sign * t["value_a"][normal]) < SLOPE
    (second,) = torch.autograd.grad(first.sum(), a)
    normal = t["value_terms_aa"].double().abs() > 1e-30
    assert worst(second[normal], sign * t["value_aa"][normal], t["value_terms_aa"][normal]) < SECOND


def test_derivatives_of_the_logarithm_of_the_cdf(table):
    # d ln F = dF / F, for the smaller tail
    near = table["tail"] > 1e-13
    a, z, tail = (table[k][near] for k in ("a", "z", "tail"))
    sign = 1 - 2.0 * table["upper"][near]
    for function, side in ((log_gammainc, sign > 0), (log_gammaincc, sign < 0)):
        (leaf,) = leaves(a)
        (first,) = torch.autograd.grad(function(leaf, z).sum(), leaf)
        assert worst(first[side], (sign * table["value_a"][near] / tail)[side]) < SLOPE


def test_float32(table):
    a, z = table["a"].float(), table["z"].float()
    keep = (z > 1e-37) & (z < 1e37)
    a, z = a[keep], z[keep]
    for function in [*CDFS, gamma_sample_derivative]:
        ours, reference = function(a, z), function(a.double(), z.double())
        assert ours.dtype == torch.float32
        normal = reference.abs() > 1e-37
        assert worst(ours.double()[normal], reference[normal]) < 1e-6
        (leaf,) = leaves(a)
        function(leaf, z).sum().backward()
        (exact,) = leaves(a.double())
        function(exact, z.double()).sum().backward()
        normal = exact.grad.abs() > 1e-37
        assert worst(leaf.grad.double()[normal], exact.grad[normal]) < 1e-6


def random_points(count, seed):
    """Return shapes in [1e-3, 1e5] with places up to 7.5 deviations off, in the scale of ln z."""
    generator = torch.Generator().manual_seed(seed)
    a = 10 ** (torch.rand(count, generator=generator, dtype=F64) * 8 - 3)
    k = torch.rand(count, generator=generator, dtype=F64) * 15 - 7.5
    root = a.sqrt()
    z = torch.where(a > 1, a * (1 + k / (3 * root) - 1 / (9 * a)).clamp(min=0.02) ** 3, 0.0)
    small = 10 ** (torch.rand(count, generator=generator, dtype=F64) * 4 - 2.5)
    return a, torch.where(a > 1, z, small)


def check_doubled_nodes(monkeypatch, count, seed):
    a, z = random_points(count, seed)
    u = z.log()
    names = ["tails", "slope", "curvature"]
    ours = {name: getattr(evaluation, name)(a, z, u) for name in names}
    nodes, terms = evaluation.clustered_nodes, evaluation.SERIES_TERMS
    monkeypatch.setattr(evaluation, "clustered_nodes", lambda n: nodes(2 * n))
    monkeypatch.setattr(evaluation, "SERIES_TERMS", 2 * terms)
    doubled = {name: getattr(evaluation, name)(a, z, u) for name in names}
    assert worst(torch.minimum(*ours["tails"][:2]), torch.minimum(*doubled["tails"][:2])) < VALUE
    assert worst(ours["slope"][0], doubled["slope"][0]) < SLOPE
    slope = doubled["slope"][0]
    terms = doubled["curvature"][0].abs() + (slope * (u - a.digamma())).abs()
    assert worst(ours["curvature"][0], doubled["curvature"][0], terms) < SECOND


def test_random_points_against_doubled_nodes(monkeypatch):
    check_doubled_nodes(monkeypatch, 100_000, 0)


@pytest.mark.nightly
def test_a_million_random_points_against_doubled_nodes(monkeypatch):
    check_doubled_nodes(monkeypatch, 1_000_000, 1)


EXTREME_SHAPES = [1e-6, 1e-3, 0.1, 0.5, 1.0, 1.5, 2.0, 2.4, 9.9, 10.0, 1e2, 1e3, 1e5, 1e8]
EXTREME_PLACES = [0.0, 5e-324, 2.2e-308, 1e-100, 1e-10, 0.5, 2.0, 5.0, 1e2, 1e5, 1e8, 1e300]


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
def test_extreme_inputs_give_no_nan(dtype):
    a = torch.tensor(EXTREME_SHAPES, dtype=dtype)[:, None]
    z = torch.tensor([*EXTREME_PLACES, torch.inf], dtype=dtype)
    u = torch.tensor([-torch.inf, -1e300, -1e6, -800.0, 0.0, 5.0, 800.0, torch.inf], dtype=dtype)
    for function in CDFS:
        for by in ({"z": z}, {"log_z": u}):
            leaf, (key, place) = leaves(a)[0], *by.items()
            place = place.clone().requires_grad_()
            out = function(leaf, **{key: place})
            assert not out.isnan().any(), (function.__name__, key)
            if "log" not in function.__name__:
                assert ((out >= 0) & (out <= 1)).all()
            else:
                assert (out <= 0).all()
            out.sum().backward()
            assert not leaf.grad.isnan().any() or not out.isfinite().all()
            assert not place.grad.isnan().any()
    for function, place in ((gamma_sample_derivative, z), (gamma_log_sample_derivative, u)):
        slope = function(a, place)
        assert not slope.isnan().any() and (slope >= 0).all()
        finite = place.isfinite()
        if dtype == F64:
            assert slope[:, finite & (place > -1e100)].isfinite().all()
        leaf, inner = leaves(a, place[finite])
        function(leaf, inner).sum().backward()
        assert not leaf.grad.isnan().any() and not inner.grad.isnan().any()


def test_inputs_that_are_not_admissible_give_nan():
    nan, inf = float("nan"), float("inf")
    good = torch.tensor(2.0, dtype=F64)
    for bad in (0.0, -1.0, nan, inf):
        for function in [*CDFS, gamma_sample_derivative]:
            assert function(bad, good).isnan(), (function, bad)
            assert function(torch.tensor(bad), torch.tensor([0.0, inf])).isnan().all()
    for bad in (-1.0, -inf, nan):
        for function in [*CDFS, gamma_sample_derivative]:
            assert function(good, bad).isnan(), (function, bad)
    batch = torch.tensor([1.0, nan, 3.0], dtype=F64)
    expected = gammainc(good, torch.tensor([1.0, 3.0], dtype=F64))
    assert torch.equal(gammainc(good, batch)[::2], expected)


def test_the_edges():
    a = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    zero, inf = torch.zeros(3, dtype=F64), torch.full((3,), torch.inf, dtype=F64)
    assert gammainc(a, zero).eq(0).all() and gammaincc(a, zero).eq(1).all()
    assert gammainc(a, inf).eq(1).all() and gammaincc(a, inf).eq(0).all()
    assert log_gammainc(a, zero).eq(-torch.inf).all() and log_gammaincc(a, zero).eq(0).all()
    assert log_gammainc(a, inf).eq(0).all() and log_gammaincc(a, inf).eq(-torch.inf).all()
    # the density at 0 is infinite, 1 and 0
    (z,) = leaves(zero)
    gammainc(a, z).sum().backward()
    assert torch.equal(z.grad, torch.tensor([torch.inf, 1.0, 0.0], dtype=F64))


def test_the_limit_of_small_shapes():
    # Q(a, z) / a tends to E1(z), with an error of order a
    z = torch.tensor([0.01, 0.5, 1.9, 2.1, 20.0], dtype=F64)
    a, limit = 1e-9, torch.from_numpy(scipy.special.exp1(z.numpy()))
    torch.testing.assert_close(gammaincc(a, z) / a, limit, rtol=1e-7, atol=0)
    torch.testing.assert_close(log_gammaincc(a, z), (a * limit).log(), rtol=0, atol=1e-8)
    torch.testing.assert_close(
        gamma_sample_derivative(a, z) * a, z * z.exp() * limit, rtol=1e-7, atol=0
    )


def test_wrong_use_is_an_error():
    t = torch.ones(())
    with pytest.raises(TypeError, match="gammainc: pass either z or log_z"):
        gammainc(t)
    with pytest.raises(TypeError, match="gammaincc: pass either z or log_z"):
        gammaincc(t, t, log_z=t)
    with pytest.raises(TypeError, match="gammainc: z has dtype torch.int64"):
        gammainc(t, torch.tensor(3))
    with pytest.raises(TypeError, match="at least one of a, z must be a tensor"):
        gamma_sample_derivative(1.0, 2.0)
    assert gammainc(torch.ones(0, 1), torch.ones(3)).shape == (0, 3)


def scalar(function):
    return lambda p: function(p[0].exp(), (p[0] + p[1]).exp()).sin()


POINTS = torch.tensor([[-0.4, -0.2], [0.7, 0.9], [3.0, -0.1], [4.0, 0.05]], dtype=F64)


@pytest.mark.parametrize("outer", [jacrev, jacfwd], ids=["reverse", "forward"])
@pytest.mark.parametrize("inner", [jacrev, jacfwd], ids=["reverse", "forward"])
def test_a_third_derivative_is_an_error(inner, outer):
    a, z = torch.tensor(2.0, dtype=F64), torch.tensor(3.0, dtype=F64)
    torch.testing.assert_close(
        inner(gamma_sample_derivative)(a, z), jacrev(gamma_sample_derivative)(a, z)
    )
    with pytest.raises(NotImplementedError, match="second derivative of a gamma variable"):
        outer(inner(gamma_sample_derivative))(a, z)
    with pytest.raises(NotImplementedError, match="second derivative of a gamma variable"):
        outer(inner(outer(gammainc)))(a, z)


@pytest.mark.parametrize("function", CDFS, ids=lambda f: f.__name__)
def test_every_composition_agrees(function):
    f = scalar(function)
    reference = torch.stack([jacrev(jacrev(f))(p) for p in POINTS])
    first = torch.stack([grad(f)(p) for p in POINTS])
    torch.testing.assert_close(vmap(jacfwd(f))(POINTS), first, rtol=1e-12, atol=1e-14)
    for outer in (jacrev, jacfwd):
        for inner in (jacrev, jacfwd):
            second = vmap(outer(inner(f)))(POINTS)
            torch.testing.assert_close(second, reference, rtol=1e-11, atol=1e-13)
    push = lambda p: jvp(lambda p: jvp(f, (p,), (p,))[1], (p,), (p,))[1]
    expected = torch.stack(
        [p @ h @ p + g @ p for p, h, g in zip(POINTS, reference, first, strict=True)]
    )
    torch.testing.assert_close(vmap(push)(POINTS), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("function", [gammainc, log_gammaincc], ids=lambda f: f.__name__)
def test_gradcheck(function):
    inputs = leaves(POINTS[:3, 0].exp(), POINTS[:3].sum(-1).exp())
    assert gradcheck(
        function,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(
        function, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


def test_a_sample_moves_along_a_level_of_the_cdf():
    # the CDF of the moved sample is constant: its total derivatives vanish, to second order
    level = lambda a: log_gammainc(a, gamma_sample(z, a))
    log_level = lambda a: log_gammaincc(a, log_z=gamma_log_sample(u, a))
    for a, z in ((0.02, 1e-30), (0.5, 0.1), (3.0, 4.0), (80.0, 60.0), (1e4, 1.02e4)):
        a, z = torch.tensor(a, dtype=F64), torch.tensor(z, dtype=F64)
        u = z.log()
        scale = gamma_sample_derivative(a, z) * (a / z - 1).abs()
        for function in (level, log_level):
            assert function(a) == function(a.clone())
            assert abs(grad(function)(a)) < 1e-9 * (1 + scale)
            assert abs(hessian(function)(a)) < 1e-7 * (1 + scale) ** 2
            assert abs(jacfwd(jacfwd(function))(a)) < 1e-7 * (1 + scale) ** 2


def test_a_sample_is_returned_as_it_is():
    z, a = torch.rand(3), torch.rand(3, requires_grad=True)
    out = gamma_sample(z, a)
    assert torch.equal(out, z) and out.dtype == z.dtype
    out.sum().backward()
    torch.testing.assert_close(a.grad, gamma_sample_derivative(a.detach(), z))
    torch.testing.assert_close(
        gamma_log_sample_derivative(a.detach(), z.log()), a.grad / z, rtol=1e-5, atol=0
    )


@given(
    a=st.floats(-3, 5).map(lambda e: 10.0**e),
    level=st.floats(-11.5, -0.31).map(lambda e: 10.0**e),
    upper=st.booleans(),
)
def test_against_scipy(a, level, upper):
    inverse = scipy.special.gammainccinv if upper else scipy.special.gammaincinv
    z = float(inverse(a, level))
    if z > 1e-300:
        function = gammaincc if upper else gammainc
        # SciPy's own errors are up to 1e-9 in these tails
        assert abs(float(function(a, torch.tensor(z, dtype=F64))) / level - 1) < 1e-7
