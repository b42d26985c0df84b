"""The incomplete beta function against mpmath at 50 digits, doubled nodes, every composition."""

import math

import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from implicit_solvers.problems.reparameterization.special import beta_evaluation as evaluation
from implicit_solvers.problems.reparameterization.special.beta import (
    beta_logit_sample,
    beta_logit_sample_derivatives,
    beta_sample,
    beta_sample_derivatives,
    betainc,
    betaincc,
    log_betainc,
    log_betaincc,
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
CDFS = [betainc, betaincc, log_betainc, log_betaincc]
PLACES = {"beta": "x", "beta_logit": "logit_x"}
SAMPLES = {"beta": beta_sample_derivatives, "beta_logit": beta_logit_sample_derivatives}
grids = pytest.mark.parametrize("name", PLACES)


def place(table, name):
    return {PLACES[name]: table[PLACES[name]]}


@grids
def test_the_grid_is_large(name):
    t = grid(name)
    assert len(t["a"]) >= 2000
    for key in "ab":
        assert t[key].min() <= 1.1e-3 and t[key].max() >= 0.98e5


@grids
def test_value(name):
    t = grid(name)
    p, q, log_p, log_q = (f(t["a"], t["b"], **place(t, name)) for f in CDFS)
    small, large = torch.where(t["upper"], q, p), torch.where(t["upper"], p, q)
    log, log_large = torch.where(t["upper"], log_q, log_p), torch.where(t["upper"], log_p, log_q)
    near = t["tail"] > 1e-13
    assert worst(small[near], t["tail"][near]) < VALUE
    assert worst(large, 1 - t["tail"]) < VALUE
    assert worst(log, t["log_tail"], t["log_tail"].abs().clamp(min=1.0)) < VALUE
    assert worst(log_large[near], (-t["tail"][near]).log1p()) < VALUE


@grids
def test_derivatives_of_a_sample(name):
    t = grid(name)
    by_a, by_b = SAMPLES[name](t["a"], t["b"], t[PLACES[name]])
    assert worst(by_a, t["slope_a"]) < SLOPE
    assert worst(by_b, t["slope_b"]) < SLOPE


@grids
@pytest.mark.parametrize("which", ["a", "b"])
def test_second_derivatives_of_a_sample(name, which):
    t = grid(name)
    a, b, x = leaves(t["a"], t["b"], t[PLACES[name]])
    SAMPLES[name](a, b, x)["ab".index(which)].sum().backward()
    for leaf, key in ((a, "a"), (b, "b"), (x, "place")):
        terms = t[f"terms_{which}_{key}"]
        normal = terms > 1e-290
        ours, reference = leaf.grad[normal], t[f"slope_{which}_{key}"][normal]
        assert worst(ours, reference, terms[normal]) < SECOND


@grids
@pytest.mark.parametrize("function,sign", [(betainc, 1.0), (betaincc, -1.0)])
def test_derivatives_of_the_cdf(name, function, sign):
    t = grid(name)
    a, b = leaves(t["a"], t["b"])
    out = function(a, b, **place(t, name)).sum()
    first = torch.autograd.grad(out, (a, b), create_graph=True)
    for ours, key in zip(first, "ab", strict=True):
        normal = t[f"value_{key}"].abs() > 1e-290
        assert worst(ours[normal], sign * t[f"value_{key}"][normal]) < SLOPE
    by_aa, by_ab = torch.autograd.grad(first[0].sum(), (a, b), retain_graph=True)
    by_ba, by_bb = torch.autograd.grad(first[1].sum(), (a, b))
    for ours, key in ((by_aa, "aa"), (by_ab, "ab"), (by_bb, "bb")):
        terms = t[f"value_terms_{key}"]
        normal = terms > 1e-290
        reference = sign * t[f"value_{key}"][normal]
        assert worst(ours[normal], reference, terms[normal]) < SECOND
    terms = t["value_terms_ab"].maximum(t["value_terms_aa"]).maximum(t["value_terms_bb"])
    assert worst(by_ab, by_ba, terms + 1e-290) < SECOND


@grids
def test_derivatives_of_the_logarithm_of_the_cdf(name):
    t = grid(name)
    near = t["tail"] > 1e-13
    t = {key: column[near] for key, column in t.items()}
    sign = 1 - 2.0 * t["upper"]
    for function, side in ((log_betainc, sign > 0), (log_betaincc, sign < 0)):
        a, b = leaves(t["a"], t["b"])
        function(a, b, **place(t, name)).sum().backward()
        for leaf, key in ((a, "a"), (b, "b")):
            assert worst(leaf.grad[side], (sign * t[f"value_{key}"] / t["tail"])[side]) < SLOPE


@grids
def test_float32(name):
    t = grid(name)
    a, b, x = (t[key].float() for key in ("a", "b", PLACES[name]))
    keep = torch.ones_like(x, dtype=torch.bool) if name == "beta_logit" else (x > 1e-37) & (x < 1)
    a, b, x = a[keep], b[keep], x[keep]
    functions = [lambda a, b, x, f=f: f(a, b, **{PLACES[name]: x}) for f in CDFS]
    functions += [lambda a, b, x, i=i: SAMPLES[name](a, b, x)[i] for i in (0, 1)]
    for function in functions:
        results = []
        for dtype in (torch.float32, F64):
            inputs = leaves(a.to(dtype), b.to(dtype))
            out = function(*inputs, x.to(dtype))
            assert out.dtype == dtype
            out.sum().backward()
            results.append([out.detach().double(), *(i.grad.double() for i in inputs)])
        for single, double in zip(*results, strict=True):
            normal = (double.abs() > 1e-37) & (double.abs() < 1e37)
            assert worst(single[normal], double[normal]) < 1e-6


def random_points(count, seed):
    """Return parameters in [1e-3, 1e5] and logits up to 8 deviations off, in x and in t."""
    generator = torch.Generator().manual_seed(seed)
    a, b = 10 ** (torch.rand(2, count, generator=generator, dtype=F64) * 8 - 3)
    k = torch.rand(count, generator=generator, dtype=F64) * 16 - 8
    # twice the asymptotic deviation of the logit covers the tails of 1e-12 on the short side
    return a, b, (a / b).log() + k * (1 / a + 1 / b).sqrt().clamp(max=4.0)


def check_doubled_nodes(monkeypatch, count, seed):
    a, b, t = random_points(count, seed)
    x = t.sigmoid()
    (w,) = evaluation.imbalance_of_logit(a, b, t)
    args = (a, b, x, t, w)
    names = ["tails", "slopes", "curvatures"]
    ours = {name: getattr(evaluation, name)(*args) for name in names}
    nodes = evaluation.clustered_nodes
    monkeypatch.setattr(evaluation, "clustered_nodes", lambda n: nodes(2 * n))
    doubled = {name: getattr(evaluation, name)(*args) for name in names}
    small, reference = (torch.minimum(*r["tails"][:2]) for r in (ours, doubled))
    near = reference > 1e-12
    assert worst(small[near], reference[near]) < VALUE
    slopes = doubled["slopes"]
    for mine, exact in zip(ours["slopes"], slopes, strict=True):
        assert worst(mine, exact) < SLOPE
    scores = (
        torch.nn.functional.logsigmoid(t) - a.digamma() + (a + b).digamma(),
        torch.nn.functional.logsigmoid(-t) - b.digamma() + (a + b).digamma(),
    )
    for place, (mine, exact) in enumerate(
        zip(ours["curvatures"], doubled["curvatures"], strict=True)
    ):
        terms = exact.abs() + (slopes[place // 2] * scores[place % 2]).abs()
        assert worst(mine, exact, terms) < SECOND


def test_random_points_against_doubled_nodes(monkeypatch):
    check_doubled_nodes(monkeypatch, 100_000, 0)


@pytest.mark.nightly
def test_a_million_random_points_against_doubled_nodes(monkeypatch):
    check_doubled_nodes(monkeypatch, 1_000_000, 1)


def test_the_mirror_image():
    a, b, t = random_points(2000, 2)
    close = lambda *pair: torch.testing.assert_close(*pair, rtol=1e-11, atol=0.0)
    for function, mirror in ((betainc, betaincc), (log_betainc, log_betaincc)):
        close(function(a, b, logit_x=t), mirror(b, a, logit_x=-t))
    by_a, by_b = beta_logit_sample_derivatives(a, b, t)
    mirrored_b, mirrored_a = beta_logit_sample_derivatives(b, a, -t)
    close(by_a, -mirrored_a)
    close(by_b, -mirrored_b)


EXTREME_SHAPES = [1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 4.0, 9.9, 10.0, 1e2, 1e5, 1e8]
EXTREME_PLACES = [0.0, 5e-324, 1e-300, 1e-38, 1e-10, 1e-3, 0.3, 0.5, 0.9, 1 - 1e-7, 1 - 1e-16, 1.0]
EXTREME_LOGITS = [-math.inf, -1e300, -1e6, -800.0, -10.0, 0.0, 0.1, 40.0, 800.0, 1e6, math.inf]


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "key,places", [("x", EXTREME_PLACES), ("logit_x", EXTREME_LOGITS)], ids=["x", "logit_x"]
)
def test_extreme_inputs_give_no_nan(dtype, key, places):
    a = torch.tensor(EXTREME_SHAPES, dtype=dtype)[:, None, None]
    b = torch.tensor(EXTREME_SHAPES, dtype=dtype)[:, None]
    x = torch.tensor(places, dtype=dtype)
    samples = beta_sample_derivatives if key == "x" else beta_logit_sample_derivatives
    functions = {f.__name__: lambda a, b, x, f=f: f(a, b, **{key: x}) for f in CDFS}
    functions |= {f"by_{n}": lambda a, b, x, i=i: samples(a, b, x)[i] for i, n in enumerate("ab")}
    for name, function in functions.items():
        inputs = leaves(*(t.contiguous() for t in torch.broadcast_tensors(a, b, x)))
        out = function(*inputs)
        assert not out.isnan().any(), name
        if name in ("betainc", "betaincc"):
            assert ((out >= 0) & (out <= 1)).all()
        elif name.startswith("log"):
            assert (out <= 0).all()
        else:
            assert (out >= 0).all() if name == "by_a" else (out <= 0).all()
        for leaf, slope in zip(inputs, torch.autograd.grad(out.sum(), inputs), strict=True):
            bad = slope.isnan()
            assert not bad.any(), (name, [float(t[bad][0]) for t in inputs])
            assert leaf.shape == slope.shape


def test_inputs_that_are_not_admissible_give_nan():
    nan, inf = math.nan, math.inf
    good, half = torch.tensor(2.0, dtype=F64), torch.tensor(0.5, dtype=F64)
    functions = [*CDFS, lambda *args: beta_sample_derivatives(*args)[0]]
    for function in functions:
        for bad in (0.0, -1.0, nan, inf):
            edges = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
            assert function(bad, good, edges).isnan().all()
            assert function(good, bad, edges).isnan().all()
        for bad in (-0.1, 1.1, nan, inf):
            assert function(good, good, bad).isnan()
    batch = torch.tensor([0.2, nan, 0.5], dtype=F64)
    assert torch.equal(betainc(good, good, batch)[2], betainc(good, good, half))


def test_the_edges():
    a, b = torch.tensor([0.5, 1.0, 2.0], dtype=F64), torch.tensor(3.0, dtype=F64)
    zero, one = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
    for at in ({"x": zero}, {"logit_x": zero - torch.inf}):
        assert betainc(a, b, **at).eq(0).all() and betaincc(a, b, **at).eq(1).all()
        assert log_betainc(a, b, **at).eq(-torch.inf).all()
        assert log_betaincc(a, b, **at).eq(0).all()
    for at in ({"x": one}, {"logit_x": zero + torch.inf}):
        assert betainc(a, b, **at).eq(1).all() and betaincc(a, b, **at).eq(0).all()
        assert log_betaincc(a, b, **at).eq(-torch.inf).all()
    # the density at 0 is infinite, b and 0
    (x,) = leaves(zero)
    betainc(a, b, x).sum().backward()
    assert x.grad[0] == torch.inf and x.grad[2] == 0
    torch.testing.assert_close(x.grad[1], b)
    assert all(s.eq(0).all() for at in (zero, one) for s in beta_sample_derivatives(a, b, at))


def test_the_edges_are_the_limits_of_the_inside():
    a, b = leaves(torch.tensor([0.3, 2.0, 40.0], dtype=F64), torch.tensor(3.0, dtype=F64))
    # dt/db tends to a constant at the lower edge, dt/da at the upper one
    for which, edge, near in ((1, -math.inf, -800.0), (0, math.inf, 800.0)):
        results = []
        for place in (edge, near):
            slope = beta_logit_sample_derivatives(a, b, place)[which]
            results.append([slope, *torch.autograd.grad(slope.sum(), (a, b))])
        for at_edge, inside in zip(*results, strict=True):
            torch.testing.assert_close(at_edge, inside, rtol=1e-12, atol=0)
    # and dx/da, dx/db at an edge of x have the same slope in x as just inside
    for which, edge, near in ((1, 0.0, 1e-300), (0, 1.0, math.nextafter(1.0, 0))):
        results = []
        for place in (edge, near):
            (x,) = leaves(torch.full((3,), place, dtype=F64))
            beta_sample_derivatives(a, b, x)[which].sum().backward()
            results.append(x.grad)
        torch.testing.assert_close(*results, rtol=1e-12, atol=0)


def test_wrong_use_is_an_error():
    t = torch.ones(())
    with pytest.raises(TypeError, match="betainc: pass either x or logit_x"):
        betainc(t, t)
    with pytest.raises(TypeError, match="betaincc: pass either x or logit_x"):
        betaincc(t, t, t, logit_x=t)
    with pytest.raises(TypeError, match="betainc: b has dtype torch.int64"):
        betainc(t, torch.tensor(3), t)
    with pytest.raises(TypeError, match="at least one of a, b, x must be a tensor"):
        beta_sample_derivatives(1.0, 2.0, 0.5)
    assert betainc(torch.ones(0, 1), 2.0, torch.ones(3)).shape == (0, 3)


POINTS = torch.tensor([[-0.4, -0.2, -0.3], [1.7, 2.0, 0.4], [2.0, 3.0, -2.0]], dtype=F64)


def scalar(function):
    return lambda p: function(p[0].exp(), p[1].exp(), p[2].sigmoid()).sin()


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


@pytest.mark.parametrize("outer", [jacrev, jacfwd], ids=["reverse", "forward"])
@pytest.mark.parametrize("inner", [jacrev, jacfwd], ids=["reverse", "forward"])
def test_a_third_derivative_is_an_error(inner, outer):
    args = tuple(POINTS[0].sigmoid())
    by_a = lambda *args: beta_sample_derivatives(*args)[0]
    torch.testing.assert_close(inner(by_a)(*args), jacrev(by_a)(*args))
    for function in (inner(by_a), inner(outer(betainc))):
        with pytest.raises(NotImplementedError, match="second derivatives? of a beta variable"):
            outer(function)(*args)


@pytest.mark.parametrize("function", [betainc, log_betaincc], ids=lambda f: f.__name__)
def test_gradcheck(function):
    inputs = leaves(POINTS[:2, 0].exp(), POINTS[:2, 1].exp(), POINTS[:2, 2].sigmoid())
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
    for a, b, x in ((0.02, 0.5, 1e-30), (0.5, 0.7, 0.1), (3.0, 4.0, 0.6), (80.0, 900.0, 0.07)):
        p, x = torch.tensor([a, b], dtype=F64), torch.tensor(x, dtype=F64)
        t = x.log() - (-x).log1p()
        by_x = lambda p, x=x: log_betainc(p[0], p[1], beta_sample(x, p[0], p[1]))
        by_t = lambda p, t=t: log_betaincc(p[0], p[1], logit_x=beta_logit_sample(t, p[0], p[1]))
        for function in (by_x, by_t):
            assert grad(function)(p).abs().max() < 1e-8
            for second in (hessian, lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacrev(f))):
                assert second(function)(p).abs().max() < 1e-6


def test_a_sample_is_returned_as_it_is():
    x, a, b = torch.rand(3), *leaves(torch.rand(3), torch.rand(3))
    out = beta_sample(x, a, b)
    assert torch.equal(out, x) and out.dtype == x.dtype
    out.sum().backward()
    by_a, by_b = beta_sample_derivatives(a.detach(), b.detach(), x)
    torch.testing.assert_close(a.grad, by_a)
    torch.testing.assert_close(b.grad, by_b)


@given(
    a=st.floats(-3, 5).map(lambda e: 10.0**e),
    b=st.floats(-3, 5).map(lambda e: 10.0**e),
    level=st.floats(-11.5, -0.31).map(lambda e: 10.0**e),
)
def test_against_scipy(a, b, level):
    x = float(scipy.special.betaincinv(a, b, level))
    if 1e-290 < x < 0.99:
        # where x is no more than a rounding error off the quantile
        value = float(betainc(a, b, torch.tensor(x, dtype=F64)))
        assert abs(value / float(scipy.special.betainc(a, b, x)) - 1) < 1e-8
