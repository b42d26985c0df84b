"""The special functions of `special_families` against mpmath, doubled nodes, and themselves."""

import functools
import itertools
import math

import pytest
import scipy.special
import scipy.stats
import torch
from torch import distributions as td
from torch.func import jacfwd, jacrev
from torch.nn.functional import logsigmoid

from implicit_solvers.problems.special_functions import (
    beta,
    gamma_evaluation,
    quadrature,
    student_t_evaluation,
    von_mises,
)
from implicit_solvers.problems.special_functions.log_tails import student_t_motion
from tests.problems.reparameterization import derivative_checks
from tests.problems.reparameterization.derivative_checks import derivatives, leaves, worst
from tests.problems.special_functions.special_families import CDFS, F64, FAMILIES, table

INF, NAN, PI = math.inf, math.nan, math.pi
each = pytest.mark.parametrize("name", FAMILIES)
SYMMETRIC = ("student_t", "von_mises")
symmetric = pytest.mark.parametrize("name", SYMMETRIC)


def double(*values):
    return tuple(torch.tensor(v, dtype=F64) for v in values)


def scipy_of(function, *args):
    return torch.as_tensor(
        function(*(x.numpy() if isinstance(x, torch.Tensor) else x for x in args))
    )


def draw(name, count, seed):
    return FAMILIES[name].random(count, torch.Generator().manual_seed(seed))


def slope_of(family, place=0):
    return lambda *args: family.slopes(*args)[place]


def everything(family):
    """Return the functions and the slopes by name."""
    slopes = {f"slope {p}": slope_of(family, i) for i, p in enumerate(family.parameters)}
    return family.functions | slopes


EVERYTHING = [(name, key) for name, family in FAMILIES.items() for key in everything(family)]
each_function = pytest.mark.parametrize("name, key", EVERYTHING)


# ---------------------------------------------------------------------------- against mpmath


def near(seam, value, margin=1e-12):
    """Return places just below and just above a seam, as fractions of it."""
    gap = value / seam - 1
    return [((s * gap > 1e-14) & (s * gap < 2 * margin)).sum() for s in (-1, 1)]


def test_the_grids_are_large_and_reach_the_seams():
    lengths = {name: len(table(name)["tail"]) for name in FAMILIES}
    assert min(lengths.values()) >= 480 and sum(n >= 2000 for n in lengths.values()) >= 5
    for name in ("gamma", "beta", "beta_logit", *SYMMETRIC):
        for p in table(name)["args"][:-1]:
            assert p.min() <= 1.1e-3 and p.max() >= 0.98e5
    df, t = table("student_t")["args"]
    assert {1e-3, 1.0, 16.0, 1e5, 1e8} <= set(df.tolist())
    y = student_t_evaluation.growth(t, df)
    for seam in (student_t_evaluation.SERIES_ABOVE, student_t_evaluation.FLAT_BELOW):
        assert min(near(seam, y)) > 40
    assert (student_t_evaluation.score(y, df).abs() * df.clamp(max=1) * df < 1e-10).sum() > 100
    assert (table("student_t_log")["args"][1] > 710).sum() > 100
    k, z = table("von_mises")["args"]
    seam = von_mises.ASYMPTOTIC_ABOVE
    assert {0.0, 1e-3, seam, math.nextafter(seam, INF), 1e5, 1e8} <= set(k.tolist())
    assert ((z.cos() - 1 + von_mises._mean_deficit(k)).abs() < 1e-12).sum() > 100


def by_size(t, below, above):
    """Return the smaller tail and the larger one."""
    return torch.where(t["upper"], above, below), torch.where(t["upper"], below, above)


@each
def test_values(name):
    family, t = FAMILIES[name], table(name)
    tail, rest = t["tail"], (-t["tail"]).log1p()
    usual = tail > 1e-13
    values = {key: function(*t["args"]) for key, function in family.functions.items()}
    pairs = [(values.get("logcdf", rest), values["logsf"])]
    if family.pair:
        pairs.append(family.pair(*t["args"]))
    for pair in pairs:
        small, large = by_size(t, *pair)
        assert worst(small, t["log_tail"]) < family.small
        assert worst(large, rest) < family.far
        assert worst(large[usual], rest[usual]) < max(family.small, 3e-13)
    if "cdf" in values:
        small, large = by_size(t, values["cdf"], values["sf"])
        assert worst(small[usual], tail[usual]) < family.small
        assert worst(small, tail) < family.far
        assert worst(large, 1 - tail) < family.large


@each
def test_slopes(name):
    family, t = FAMILIES[name], table(name)
    for i, p in enumerate(family.parameters):
        value, first, _ = derivatives(slope_of(family, i), *t["args"], order=1)
        assert worst(value, t[f"slope {p}"]) < family.slope
        for q, by_q in zip((*family.parameters, "place"), first, strict=True):
            assert worst(by_q, t[f"slope {p} {q}"], t[f"slope {p} {q} terms"]) < family.slope


def check_derivatives(family, found, first, second, terms, some):
    """Compare first and second derivatives by the arguments whose derivatives are known."""
    names = (*family.parameters, "place")
    for p, by_p, by_pq in zip(names, *found[1:], strict=True):
        if p in first:
            assert worst(by_p[some], first[p][some]) < family.slope
        for q, by_q in zip(names, by_pq, strict=True):
            if (p, q) in second:
                scale = terms[p, q][some]
                assert worst(by_q[some], second[p, q][some], scale) < family.slope


@pytest.mark.parametrize(
    "name, key", [(n, k) for n, k in EVERYTHING if "slope" not in k and n != "student_t_log"]
)
def test_derivatives_of_functions(name, key):
    family, t = FAMILIES[name], table(name)
    upper, tail = t["upper"], t["tail"]
    # a density that is not a normal number is not exact
    some = (tail > 1e-290) & (t.get("log_density", 0 * tail) > -660)
    sign, names = (-1 if "sf" in key else 1), (*family.parameters, "place")
    first = {p: sign * t[f"cdf {p}"] for p in names if f"cdf {p}" in t}
    pairs = [pair for pair in itertools.product(names, repeat=2) if f"cdf {' '.join(pair)}" in t]
    second = {(p, q): sign * t[f"cdf {p} {q}"] for p, q in pairs}
    terms = {(p, q): t[f"cdf {p} {q} terms"] for p, q in pairs}
    found = derivatives(family.functions[key], *t["args"])
    if key.startswith("log"):
        # ln T has the derivatives T_p / T and T_pq / T - (T_p / T) (T_q / T)
        some &= upper if sign < 0 else ~upper
        first = {p: v / tail for p, v in first.items()}
        products = {(p, q): first[p] * first[q] for p, q in pairs}
        second = {pq: v / tail - products[pq] for pq, v in second.items()}
        terms = {pq: v / tail + products[pq].abs() for pq, v in terms.items()}
    check_derivatives(family, found, first, second, terms, some)


@pytest.mark.parametrize("name", [n for n, family in FAMILIES.items() if family.pair])
def test_a_pair_of_tails_is_that_of_the_single_functions(name):
    family, args = FAMILIES[name], double(*FAMILIES[name].points)
    for i, key in enumerate(("logcdf", "logsf")):
        found = derivatives(lambda *args, i=i: family.pair(*args)[i], *args)
        expected = derivatives(family.functions[key], *args)
        torch.testing.assert_close(found[:2], expected[:2], rtol=1e-10, atol=1e-300)
        # of second order terms of both signs
        torch.testing.assert_close(found[2], expected[2], rtol=1e-8, atol=1e-9)


@symmetric
def test_hazards_where_tails_underflow(name):
    family, t = FAMILIES[name], table(name)
    (p, x), upper = t["args"], t["upper"]
    (slope,) = family.slopes(p, x)
    hazard = (t["log_density"] - t["log_tail"]).exp()[upper]
    _, (by_p, by_x), _ = derivatives(family.functions["logsf"], p, x, order=1)
    # of the exponents, rounded
    bound = family.slope + 1e-15 * t["log_density"][upper].abs()
    assert worst(by_x[upper] / bound, -hazard / bound, hazard) < 1
    assert (
        worst(by_p[upper] / bound, hazard * slope[upper] / bound, hazard * slope[upper].abs()) < 1
    )


@symmetric
def test_the_sides_are_mirrored(name):
    family, (p, x) = FAMILIES[name], table(name)["args"]
    assert torch.equal(family.functions["cdf"](p, x), family.functions["sf"](p, -x))
    assert torch.equal(family.functions["logcdf"](p, x), family.functions["logsf"](p, -x))
    value, (by_p, by_x), _ = derivatives(slope_of(family), p, x, order=1)
    mirrored, (by_p_there, by_x_there), _ = derivatives(slope_of(family), p, -x, order=1)
    assert torch.equal(mirrored, -value)
    assert torch.equal(by_p_there, -by_p) and torch.equal(by_x_there, by_x)


def test_the_slope_of_a_t_variable_comes_with_its_tails():
    t = table("student_t")
    df, x = t["args"]
    *tails, slope = student_t_motion(x, df)
    torch.testing.assert_close(tuple(tails), FAMILIES["student_t"].pair(df, x))
    assert worst(slope, t["slope df"]) < FAMILIES["student_t"].slope


@each_function
def test_float32(name, key):
    """Against float64 at the same arguments, wherever that is a normal number of float32."""
    family, t = FAMILIES[name], table(name)
    single = tuple(x.float() for x in t["args"])
    place, tail = single[-1].abs(), t["tail"]
    keep = place.isfinite() & (place > (1e-30 if family.symmetric else 1e-37))
    if name == "von_mises":
        # where rounding moves neither the exponent nor the distance to pi much
        keep &= (place < 3) & (single[0] < 1e5) & (tail > 1e-30)
    if name == "beta":
        keep &= place < 1
    single = [x[keep] for x in single]
    function = everything(family)[key]
    found = derivatives(function, *single, order=1)
    exact = derivatives(function, *(x.double() for x in single), order=1)
    assert found[0].dtype == torch.float32
    names = [key, *(f"{key} {q} terms" for q in (*family.parameters, "place"))]
    for value, expected, column in zip(
        (found[0], *found[1]), (exact[0], *exact[1]), names, strict=True
    ):
        value, size = value.double(), expected.abs()
        normal = (size > 1e-37) & (size < 1e37)
        if name == "von_mises" and column in t and column != key:
            size = torch.maximum(size, t[column][keep])
        assert worst(value[normal], expected[normal], size[normal]) < family.single
        size = expected.abs()
        assert value[size > 3.5e38].isinf().all()


# ------------------------------------------------------------------------ random points


def log_density_of_t(n, u):
    top = ((n + 1) / 2).lgamma() - (n / 2).lgamma() - n.log() / 2
    return top + (n + 1) / 2 * logsigmoid(n.log() - 2 * u)


NOWHERE = {"BULK": (1.0, 0.0), "FAR": (0.0, -math.inf), "FEW": math.inf, "MANY": math.inf}
LOG_DENSITIES = {
    "gamma": lambda a, z: a * z.log() - a.lgamma(),
    "beta_logit": lambda a, b, t: (
        a * logsigmoid(t) + b * logsigmoid(-t) - a.lgamma() - b.lgamma() + (a + b).lgamma()
    ),
    "student_t_log": log_density_of_t,
    "von_mises": lambda k, z: td.VonMises(torch.zeros_like(k), k).log_prob(z),
}


@pytest.mark.parametrize(
    "count", [50_000, pytest.param(1_000_000, marks=pytest.mark.nightly)], ids=["5e4", "1e6"]
)
@pytest.mark.parametrize("name", LOG_DENSITIES)
def test_random_points_against_doubled_nodes(name, count, monkeypatch):
    family, args = FAMILIES[name], draw(name, count, 0)
    logs = [family.functions[key] for key in CDFS[2:] if key in family.functions]
    slopes = [slope_of(family, i) for i in range(len(family.parameters))]
    found = [derivatives(f, *args, order=1) for f in (*logs, *slopes)]
    nodes = quadrature.clustered_nodes
    for module in (quadrature, family.module):
        monkeypatch.setattr(module, "clustered_nodes", lambda n: nodes(2 * n), raising=False)
    for name_, nowhere in NOWHERE.items():  # nor by polynomials
        if hasattr(family.module, name_):
            monkeypatch.setattr(family.module, name_, nowhere)
    if hasattr(family.module, "SERIES_TERMS"):
        monkeypatch.setattr(family.module, "SERIES_TERMS", 2 * family.module.SERIES_TERMS)
    exact = [derivatives(f, *args, order=1) for f in (*logs, *slopes)]
    _, scores, _ = derivatives(LOG_DENSITIES[name], *args, order=1)
    for i, ((value, first, _), (expected, wanted, _)) in enumerate(zip(found, exact, strict=True)):
        if i < len(logs):
            error = (value - expected).abs()
            assert error.max() < family.far and error[expected > math.log(1e-12)].max() < 1e-12
            assert worst(first[-1], wanted[-1]) < family.far  # a hazard
            scales = [w.abs() for w in wanted[:-1]]
        else:
            assert worst(value, expected) < family.slope
            scales = [
                w.abs() + (expected * s).abs() for w, s in zip(wanted, scores[:-1], strict=False)
            ]
        for ours, theirs, scale in zip(first, wanted, scales, strict=False):
            assert worst(ours, theirs, scale) < family.slope


def seams_of_gamma():
    """Return pairs (a, z) on both sides of what is computed by polynomials."""
    a, z = torch.logspace(0.31, 5, 50, dtype=F64), torch.logspace(-3, 1.5, 50, dtype=F64)
    few = torch.logspace(-3, 0.3, 50, dtype=F64)
    edges = [(a, a * math.exp(v)) for v in gamma_evaluation.BULK]
    edges += [(few, torch.full_like(few, math.exp(u))) for u in gamma_evaluation.FAR]
    return [(torch.cat([p, torch.full_like(z, 2.0)]), torch.cat([q, z])) for p, q in edges]


def seams_of_student_t():
    n, t = torch.logspace(1, 6, 50, dtype=F64), torch.logspace(-3, 1, 50, dtype=F64)
    few = torch.logspace(-1, 0.9, 50, dtype=F64)
    edges = [(n, 36 / n), (few, torch.full_like(few, 45.0))]
    edges = [(m, (m * y.expm1()).sqrt()) for m, y in edges]
    few, many = student_t_evaluation.FEW, student_t_evaluation.MANY
    return edges + [(torch.full_like(t, m), t) for m in (few, many)]


@pytest.mark.parametrize(
    "name, seams", [("gamma", seams_of_gamma), ("student_t", seams_of_student_t)]
)
def test_polynomials_join_the_quadratures(name, seams):
    for p, z in seams():
        sides = [FAMILIES[name].slopes(p * (1 + s), z * (1 + s))[0] for s in (-1e-14, 0.0, 1e-14)]
        for side in (sides[0], sides[2]):
            assert worst(side, sides[1]) < 2e-12  # and the slope over 1e-14


@each
def test_a_sample_keeps_its_level(name):
    """``F(z(p), p)`` is constant in ``p``, to second order, in every mode."""
    family, (*p, z) = FAMILIES[name], draw(name, 2000, 1)
    function = family.functions["logsf" if name == "student_t_log" else "logcdf"]
    level = lambda z, *p: function(*p, family.sample(z, *p))
    value, first, second = derivatives(function, *p, z)
    kept, slope, curvature = derivatives(lambda *p: level(z, *p), *p)
    assert torch.equal(kept, value)
    numbers, g = range(len(p)), family.slopes(*p, z)
    hessians = [
        torch.func.vmap(outer(inner(lambda p, z: level(z, *p))))(torch.stack(p, -1)[:50], z[:50])
        for outer, inner in itertools.product((jacrev, jacfwd), repeat=2)
    ]
    for i in numbers:
        # of the two terms, which cancel
        assert (slope[i].abs() <= 1e-10 * first[i].abs() + 1e-290).all()
        for j in numbers:
            terms = [second[i][j], second[-1][i] * g[j], second[-1][j] * g[i]]
            terms += [second[-1][-1] * g[i] * g[j], first[-1] / p[i] * g[j]]
            scale = 1e-9 * sum(t.abs() for t in terms) + 1e-290
            assert (curvature[i][j].abs() <= scale).all()
            assert all((h[:, i, j].abs() <= scale[:50]).all() for h in hessians)


@each
def test_a_sample_is_returned_as_it_is(name):
    family, (*p, z) = FAMILIES[name], (x.float() for x in draw(name, 20, 3))
    p = leaves(*p)
    out = family.sample(z, *p)
    assert torch.equal(out, z) and out.dtype == z.dtype
    gradients = torch.autograd.grad(out.sum(), p)
    torch.testing.assert_close(gradients, family.slopes(*p, z))


@each
def test_the_cdf_increases(name):
    family, args = FAMILIES[name], draw(name, 400, 4)
    *p, z = (x[: len(x) // 8 * 8].reshape(-1, 8) for x in args)
    z, p = z.sort(dim=1).values, [x[:, :1] for x in p]
    odds = -family.functions["logsf"](*p, z)
    if "logcdf" in family.functions:
        odds = odds + family.functions["logcdf"](*p, z)
    assert (odds.diff() >= -1e-13 * odds[:, 1:].abs() - 1e-15).all()


# -------------------------------------------------------------------------- edges, inputs


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
@each_function
def test_extreme_inputs_give_no_nan(name, key, dtype):
    family = FAMILIES[name]
    axes = torch.meshgrid(*(torch.tensor(x, dtype=dtype) for x in family.extreme), indexing="ij")
    args = [x.reshape(-1) for x in axes]
    place = args[-1]
    slope = "slope" in key
    value, first, second = derivatives(everything(family)[key], *args, order=1 if slope else 2)
    assert not any(x.isnan().any() for x in (value, *first))
    if slope:
        sign = family.signs[list(family.parameters).index(key.removeprefix("slope "))]
        assert (sign * value * (place.sign() if family.symmetric else 1) >= 0).all()
    elif "log" in key:
        assert (value <= 0).all()
    else:
        assert ((value >= 0) & (value <= 1)).all()
    if slope or name == "von_mises":
        some = place.isfinite() & (place.abs() <= family.finite)
        assert all(x[some].isfinite().all() for x in (value, *first))
    if family.symmetric:
        assert not any(x.isnan().any() for row in second for x in row)
        assert "log" not in key or value[place.isfinite()].isfinite().all()


@each_function
def test_inadmissible_inputs_give_nan_alone(name, key):
    family = FAMILIES[name]
    function = everything(family)[key]
    good = [x[0] for x in double(*family.points)]
    rows = [(i, bad) for i in range(len(good) - 1) for bad in family.bad_parameters]
    rows += [(len(good) - 1, bad) for bad in family.bad_places]
    args = [x.repeat(len(rows) + 1) for x in good]
    for k, (i, bad) in enumerate(rows):
        args[i][k] = bad
    value, first, _ = derivatives(function, *args, order=1)
    # the derivatives of gamma and beta variables are 0 or NaN there
    nan = (value,) if name.startswith(("gamma", "beta")) else (value, *first[:-1])
    assert all(x[:-1].isnan().all() for x in nan)
    torch.testing.assert_close(value[-1], function(*good), rtol=1e-14, atol=0)
    assert function(*good[:-1], torch.empty(0, 3)).shape == (0, 3)
    wide = torch.ones(3, 1, requires_grad=True) * good[-1].float()
    mixed = function(good[0].repeat(4), *good[1:-1], wide)
    assert mixed.shape == (3, 4) and mixed.dtype == F64
    (slope,) = torch.autograd.grad(mixed.sum(), wide)
    assert slope.shape == (3, 1) and slope.dtype == torch.float32


def test_pairs_of_tails_at_inadmissible_inputs_and_at_the_ends():
    ends = {"gamma": (0.0, INF), "beta": (0.0, 1.0), "student_t": (-INF, INF), "von_mises": None}
    for name, places in ends.items():
        family = FAMILIES[name]
        good = [x[:2].clone() for x in double(*family.points)]
        pairs = [family.pair]
        if name == "student_t":
            pairs.append(lambda df, t: student_t_motion(t, df))
        for pair in pairs:
            if places:
                *tails, slope = (*pair(*good[:-1], *double(places)), None)[:3]
                assert [tail.tolist() for tail in tails] == [[-INF, 0.0], [0.0, -INF]]
                assert slope is None or slope.tolist() == [INF, -INF]
            bad = [x.clone() for x in good]
            bad[0][0] = -1.0
            assert all(x.isnan().tolist() == [True, False] for x in pair(*bad))


# ---------------------------------------------------------------------------- closed forms

FINE = torch.linspace(-6, 6, 25, dtype=F64)
EDGE_SHAPES = double([0.5, 1.0, 2.0])[0]
HUGE_K = 1e14
E1_PLACES = double([0.01, 0.5, 1.9, 2.1, 20.0])[0]
E1 = scipy_of(scipy.special.exp1, E1_PLACES)
normal = functools.partial(scipy_of, scipy.stats.norm.cdf)
# name, function, parameters, places, what is expected, rtol, atol
CLOSED = [
    # Q(a, z) / a tends to E1(z), with an error of order a
    ("gamma", "sf", 1e-9, E1_PLACES, 1e-9 * E1, 1e-7, 0),
    ("gamma", "logsf", 1e-9, E1_PLACES, (1e-9 * E1).log(), 0, 1e-8),
    ("gamma", "slope a", 1e-9, E1_PLACES, E1_PLACES * E1_PLACES.exp() * E1 / 1e-9, 1e-7, 0),
    ("student_t", "cdf", 1e300, FINE, normal(FINE), 1e-13, 0),
    ("student_t", "cdf", 1e-200, FINE[13:], 0.5 + 0 * FINE[13:], 1e-13, 0),
    # dt/dn = -(t + t^3) / (4 n^2) + O(n^-3)
    ("student_t", "slope df", 1e10, FINE, -(FINE + FINE**3) / 4e20, 1e-8, 0),
    # x / sqrt(k) is that of a normal variable x: dz/dk = -z / (2 k)
    ("von_mises", "cdf", HUGE_K, FINE / HUGE_K**0.5, normal(FINE), 1e-10, 0),
    ("von_mises", "slope k", HUGE_K, FINE / HUGE_K**0.5, -FINE / (2 * HUGE_K**1.5), 1e-10, 0),
]


@pytest.mark.parametrize("name, key, parameter, places, expected, rtol, atol", CLOSED)
def test_closed_forms_and_limits(name, key, parameter, places, expected, rtol, atol):
    found = everything(FAMILIES[name])[key](parameter, places)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


ENDS = [
    ("gamma", 0.0, INF),
    ("gamma_log", -INF, INF),
    ("beta", 0.0, 1.0),
    ("beta_logit", -INF, INF),
    ("student_t", -INF, INF),
]


@pytest.mark.parametrize("name, low, high", ENDS)
def test_the_edges(name, low, high):
    family, p = FAMILIES[name], [EDGE_SHAPES, *double(3.0)][: len(FAMILIES[name].parameters)]
    expected = {"cdf": (0, 1), "sf": (1, 0), "logcdf": (-INF, 0), "logsf": (0, -INF)}
    for key, values in expected.items():
        for place, value in zip((low, high), values, strict=True):
            assert family.functions[key](*p, torch.full_like(EDGE_SHAPES, place)).eq(value).all()
    edge = torch.full_like(EDGE_SHAPES, low)
    density = derivatives(family.functions["cdf"], *p, edge, order=1)[1][-1]
    if low == 0:
        # the constant at the shape 1 is 1 or b
        torch.testing.assert_close(
            density, *double([INF, p[-1].item() if name == "beta" else 1.0, 0.0])
        )
        assert all(s.eq(0).all() for s in family.slopes(*p, edge))
    else:
        assert density.eq(0).all()


def test_the_edges_of_beta_variables_are_the_limits_of_the_inside():
    a, b = leaves(*double([0.3, 2.0, 40.0], 3.0))
    # dt/db tends to a constant at the lower edge, dt/da at the upper one
    for which, edge, inside in ((1, -INF, -800.0), (0, INF, 800.0)):
        results = []
        for place in (edge, inside):
            slope = beta.beta_logit_sample_derivatives(a, b, place)[which]
            results.append((slope, *torch.autograd.grad(slope.sum(), (a, b))))
        torch.testing.assert_close(*results, rtol=1e-12, atol=0)
    # and dx/da, dx/db at an edge of x have the same slope in x as just inside
    for which, edge, inside in ((1, 0.0, 1e-300), (0, 1.0, math.nextafter(1.0, 0))):
        slopes = [
            derivatives(
                lambda x, i=which: beta.beta_sample_derivatives(a, b, x)[i],
                double([x] * 3)[0],
                order=1,
            )[1]
            for x in (edge, inside)
        ]
        torch.testing.assert_close(*slopes, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------- every mode

COMPOSED = {
    f"{n}-{k}": (everything(FAMILIES[n])[k], FAMILIES[n].points, 1 if "slope" in k else 2)
    for n, k in EVERYTHING
}
for _name, _side in itertools.product(("gamma", "beta", "student_t", "von_mises"), (0, 1)):
    _pair = lambda *args, f=FAMILIES[_name].pair, i=_side: f(*args)[i]
    COMPOSED[f"{_name}-pair-{_side}"] = (_pair, FAMILIES[_name].points, 2)
for _side in range(3):
    _motion = lambda df, t, i=_side: student_t_motion(t, df)[i]
    COMPOSED[f"motion-{_side}"] = (_motion, ([0.7, 3.0], [-1.5, 0.3]), 1)


@pytest.mark.parametrize("function, points, orders", COMPOSED.values(), ids=COMPOSED)
def test_every_mode(function, points, orders):
    derivative_checks.check_every_mode(function, *double(*points), orders=orders)


@pytest.mark.parametrize("outer", [jacrev, jacfwd], ids=["reverse", "forward"])
@pytest.mark.parametrize("inner", [jacrev, jacfwd], ids=["reverse", "forward"])
@each
def test_a_third_derivative_is_refused(name, inner, outer):
    family = FAMILIES[name]
    args = [x[1] for x in double(*family.points)]
    slope, level = slope_of(family), next(iter(family.functions.values()))
    torch.testing.assert_close(inner(slope)(*args), jacrev(slope)(*args))
    for function in (inner(slope), inner(outer(level))):
        with pytest.raises(NotImplementedError, match=family.third):
            outer(function)(*args)
