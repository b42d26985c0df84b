"""Student's t CDF and its derivatives, against mpmath, SciPy and identities."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from implicit_solvers.problems.reparameterization.special import student_t_evaluation
from implicit_solvers.problems.reparameterization.special.gamma_ratio import (
    digamma_excess,
    log_gamma_ratio,
    trigamma_excess,
)
from implicit_solvers.problems.reparameterization.special.student_t import (
    student_t_cdf,
    student_t_log_sample,
    student_t_log_sample_derivative,
    student_t_log_tail,
    student_t_logcdf,
    student_t_logsf,
    student_t_sample,
    student_t_sample_derivative,
    student_t_sf,
)
from tests.problems.reparameterization.derivative_checks import (
    check_every_mode,
    derivatives,
    first_derivatives,
    load,
    slope_and_curvature,
    worst,
)

DOUBLE = torch.float64
LOG_COLUMNS = "x p log_tail d d_p d_x d_p_terms d_x_terms"


def derivative(t, df):
    return student_t_sample_derivative(df, t)


def log_derivative(log_t, df):
    return student_t_log_sample_derivative(df, log_t)


@pytest.fixture(scope="module")
def grid():
    return load("student_t")


@pytest.fixture(scope="module")
def log_grid():
    return load("student_t", "log_t", LOG_COLUMNS)


# ---------------------------------------------------------------------------- against mpmath


def test_the_grid_is_large_and_reaches_the_seams(grid, log_grid):
    t, df = grid["x"], grid["p"]
    assert len(df) >= 2000
    assert {1e-3, 1.0, 16.0, 1e5, 1e8} <= set(df.tolist())
    y = student_t_evaluation.growth(t, df)
    score = student_t_evaluation.score(y, df)
    for seam in (student_t_evaluation.SERIES_ABOVE, student_t_evaluation.FLAT_BELOW):
        below, above = (
            (s * (y / seam - 1) > 1e-14) & (s * (y / seam - 1) < 2e-12) for s in (-1, 1)
        )
        assert below.sum() > 20
        assert above.sum() > 20
    assert (score.abs() * df.clamp(max=1) * df < 1e-10).sum() > 50
    assert (log_grid["x"] > 710).sum() > 100


def test_values_on_the_grid(grid):
    t, df = grid["x"], grid["p"]
    usual = grid["tail"] > 1e-13  # further out the exponent's rounding alone is larger
    for function, x in [(student_t_sf, t), (student_t_cdf, -t)]:
        value = function(x, df)
        assert worst(value[usual], grid["tail"][usual]) < 3e-14
        assert worst(value, grid["tail"]) < 3e-13
    for function, x in [(student_t_sf, -t), (student_t_cdf, t)]:
        assert worst(function(x, df), 1 - grid["tail"]) < 1e-15
    for function, x in [(student_t_logsf, t), (student_t_logcdf, -t)]:
        assert worst(function(x, df), grid["log_tail"]) < 3e-14
    for function, x in [(student_t_logsf, -t), (student_t_logcdf, t)]:
        assert worst(function(x, df), (-grid["tail"]).log1p()) < 3e-13


def test_sample_derivatives_on_the_grid(grid):
    t, df = grid["x"], grid["p"]
    value, by_t, by_df = first_derivatives(derivative, t, df)
    assert worst(value, grid["G"]) < 1e-11
    assert worst(by_t, grid["G_x"], grid["G_x_terms"]) < 1e-11
    assert worst(by_df, grid["G_p"], grid["G_p_terms"]) < 1e-11
    mirrored = first_derivatives(derivative, -t, df)
    assert torch.equal(mirrored[0], -value)
    assert torch.equal(mirrored[1], by_t)
    assert torch.equal(mirrored[2], -by_df)


def test_logarithms_of_samples_on_the_grid(log_grid):
    log_t, df = log_grid["x"], log_grid["p"]
    assert worst(student_t_log_tail(log_t, df), log_grid["log_tail"]) < 3e-14
    value, by_log, by_df = first_derivatives(log_derivative, log_t, df)
    assert worst(value, log_grid["d"]) < 1e-11
    assert worst(by_log, log_grid["d_x"], log_grid["d_x_terms"]) < 1e-11
    assert worst(by_df, log_grid["d_p"], log_grid["d_p_terms"]) < 1e-11


@pytest.mark.parametrize("side", [1.0, -1.0], ids=["upper", "lower"])
def test_derivatives_of_the_cdf_on_the_grid(grid, side):
    t, df = grid["x"], grid["p"]
    # odd in t: F(-t) = 1 - F(t)
    _, by_t, by_df, tt, t_df, df_t, df_df = derivatives(student_t_cdf, side * t, df)
    usual = grid["tail"] > 1e-16
    f, F_p = grid["f"], -grid["f"] * grid["G"]
    F_pp_terms = f * (grid["G_p_terms"] + (grid["G"] * grid["F_px"] / f).abs())
    mixed_terms = grid["F_px_terms"] + (F_p / t).abs() + (F_p * grid["F_xx"] / f).abs()
    for value, expected, terms in [
        (by_t, f, None),
        (by_df, side * F_p, None),
        (tt, side * grid["F_xx"], None),
        (t_df, grid["F_px"], grid["F_px_terms"]),
        (df_t, grid["F_px"], mixed_terms),
        (df_df, side * grid["F_pp"], F_pp_terms),
    ]:
        scale = None if terms is None else terms[usual]
        assert worst(value[usual], expected[usual], scale) < 1e-11


def test_derivatives_of_the_logarithms_on_the_grid(grid):
    t, df = grid["x"], grid["p"]
    _, by_t, by_df, tt, _, df_t, df_df = derivatives(student_t_logsf, t, df)
    usual = (grid["f"] > 1e-290) & (grid["tail"] > 1e-290)
    hazard, score = grid["f"] / grid["tail"], grid["F_px"] / grid["f"]
    slope = grid["F_xx"] / grid["f"]
    by_p = hazard * grid["G"]
    pp = -(grid["F_pp"] / grid["tail"] + by_p**2)
    pp_terms = hazard * (grid["G_p_terms"] + (score * grid["G"]).abs()) + by_p**2
    px_terms = hazard * (by_p.abs() + grid["F_px_terms"] / grid["f"])
    px_terms = px_terms + (by_p / t).abs() + (by_p * slope).abs()
    for value, expected, terms in [
        (by_t, -hazard, None),
        (by_df, by_p, None),
        (tt, -hazard * (hazard + slope), hazard * (hazard - slope)),
        (df_t, hazard * (by_p - score), px_terms),
        (df_df, pp, pp_terms),
    ]:
        scale = None if terms is None else terms[usual]
        assert worst(value[usual], expected[usual], scale) < 1e-11


def test_single_precision_on_the_grid(grid):
    t, df = grid["x"].float(), grid["p"].float()
    keep = (t > 1e-30) & t.isfinite() & (grid["tail"] > 1e-30)
    t, df = t[keep], df[keep]
    exact, found = (
        derivatives(student_t_cdf, -x, p) for x, p in ((t.double(), df.double()), (t, df))
    )
    assert found[0].dtype == torch.float32
    for value, expected in zip(found[:3], exact[:3], strict=True):
        value, normal = value.double(), expected.abs() > 1e-37
        assert worst(value[normal], expected[normal]) < 1e-6
    exact, found = (
        first_derivatives(derivative, x, p) for x, p in ((t.double(), df.double()), (t, df))
    )
    for value, expected in zip(found, exact, strict=True):
        value, normal = value.double(), (expected.abs() > 1e-37) & (expected.abs() < 3e38)
        assert worst(value[normal], expected[normal]) < 1e-6
        assert value[expected.abs() > 3.5e38].isinf().all()


# ------------------------------------------------------------------------ random points


def random_points(count, seed):
    """Return ``ln t`` and degrees of freedom; levels down to 1e-12 and further."""
    generator = torch.Generator().manual_seed(seed)
    df = 10 ** (torch.rand(count, generator=generator, dtype=DOUBLE) * 8 - 3)
    fall = 10 ** (torch.rand(count, generator=generator, dtype=DOUBLE) * 8.5 - 7)
    y = 2 * fall / df
    return 0.5 * (df.log() + y + (-torch.expm1(-y)).log()), df


@pytest.mark.parametrize(
    "count", [100_000, pytest.param(1_000_000, marks=pytest.mark.nightly)], ids=["1e5", "1e6"]
)
def test_random_points_against_doubled_nodes(count, monkeypatch):
    log_t, df = random_points(count, seed=0)
    y = student_t_evaluation.growth_of_log(log_t, df)

    def evaluate(factor):
        (log_small, ratio) = student_t_evaluation.tails(y, df, 24 * factor)
        slope = student_t_evaluation.relative_slope(y, df, 22 * factor)
        return log_small, ratio, slope, student_t_evaluation.curvature(y, df, 24 * factor)

    found = evaluate(1)
    monkeypatch.setattr(student_t_evaluation, "SERIES_TERMS", 40)
    exact = evaluate(2)
    assert all(value.isfinite().all() for value in found)
    assert (found[0] - exact[0]).abs().max() < 1e-12
    assert worst(found[1], exact[1]) < 1e-12
    assert worst(found[2], exact[2]) < 1e-11
    terms = exact[3].abs() + (exact[2] * student_t_evaluation.score(y, df)).abs()
    assert worst(found[3], exact[3], terms) < 1e-11


# -------------------------------------------------------------------------- edges, inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_no_nan_at_extreme_inputs(dtype):
    info = torch.finfo(dtype)
    positive = [0.0, info.smallest_normal / 4, info.tiny, 1e-20, 1e-8, 1.0, 2.13, 1e10, info.max]
    df = torch.tensor([1e-3, 0.5, 1.0, 1.0001, 2.0, 16.0, 1e3, 1e5, 1e8, 1e30]).to(dtype)
    t = torch.tensor([*positive, torch.inf], dtype=dtype)
    t, df = (x.reshape(-1) for x in torch.broadcast_tensors(torch.cat([t, -t])[:, None], df))
    for function in (student_t_cdf, student_t_sf, student_t_logcdf, student_t_logsf):
        for value in derivatives(function, t, df):
            assert not value.isnan().any()
    level = student_t_cdf(t, df)
    assert ((level >= 0) & (level <= 1)).all()
    for function in (student_t_logcdf, student_t_logsf):
        assert function(t, df)[t.isfinite()].isfinite().all()
    for value in first_derivatives(derivative, t, df):
        assert not value.isnan().any()
        assert value[t.abs() <= 1e10].isfinite().all()
    log_t = torch.tensor([-torch.inf, -1e30, -100.0, 0.0, 0.3, 1.0, 100.0, 1e6, 1e30]).to(dtype)
    log_t, df = (x.reshape(-1) for x in torch.broadcast_tensors(log_t[:, None], df[:10]))
    for function in (student_t_log_tail, log_derivative):
        for value in first_derivatives(function, log_t, df):
            assert not value.isnan().any()


def test_infinite_variables():
    t = torch.tensor([-torch.inf, torch.inf], dtype=DOUBLE, requires_grad=True)
    assert student_t_cdf(t, 3.0).tolist() == [0.0, 1.0]
    assert student_t_sf(t, 3.0).tolist() == [1.0, 0.0]
    assert student_t_logcdf(t, 3.0).tolist() == [-math.inf, 0.0]
    assert derivative(t, 3.0).tolist() == [math.inf, -math.inf]
    student_t_cdf(t, 3.0).sum().backward()
    assert t.grad.tolist() == [0.0, 0.0]


def test_tiny_and_huge_degrees_of_freedom():
    t = torch.linspace(-6, 6, 25, dtype=DOUBLE)
    normal = torch.from_numpy(scipy.stats.norm.cdf(t.numpy()))
    torch.testing.assert_close(student_t_cdf(t, 1e300), normal, rtol=1e-13, atol=0)
    # dt/dn = -(t + t^3) / (4 n^2) + O(n^-3)
    limit = -(t + t**3) / 4e20
    torch.testing.assert_close(derivative(t, 1e10), limit, rtol=1e-8, atol=0)
    half = student_t_cdf(t[t != 0].abs(), 1e-200)
    torch.testing.assert_close(half, torch.full_like(half, 0.5), rtol=1e-13, atol=0)
    df = torch.tensor(1e-200, dtype=DOUBLE)
    for value in first_derivatives(derivative, torch.ones_like(df), df):
        assert not value.isnan()


def test_scipy_agrees():
    t = torch.linspace(-40, 40, 101, dtype=DOUBLE)
    for df in (0.3, 1.0, 4.5, 300.0):
        expected = torch.from_numpy(scipy.stats.t.cdf(t.numpy(), df))
        torch.testing.assert_close(student_t_cdf(t, df), expected, rtol=1e-11, atol=0)


def test_closed_forms():
    t = torch.linspace(-20, 20, 81, dtype=DOUBLE)
    cauchy = 0.5 + t.atan() / math.pi
    torch.testing.assert_close(student_t_cdf(t, 1.0), cauchy, rtol=1e-13, atol=0)
    two = 0.5 + t / (2 * (2 + t * t).sqrt())
    torch.testing.assert_close(student_t_cdf(t, 2.0), two, rtol=1e-12, atol=0)


def test_inadmissible_inputs():
    nan = float("nan")
    t = torch.tensor([nan, 1.0, 1.0, 1.0, 1.0, torch.inf], dtype=DOUBLE)
    df = torch.tensor([1.0, nan, -1.0, 0.0, torch.inf, -1.0], dtype=DOUBLE)
    functions = (student_t_cdf, student_t_sf, student_t_logcdf, student_t_logsf, derivative)
    for function in (*functions, student_t_log_tail, log_derivative):
        value, _, by_df = first_derivatives(function, t, df)
        assert value.isnan().all()
        assert by_df.isnan().all()
        with pytest.raises(TypeError, match="must be a tensor"):
            function(1.0, 2.0)
        with pytest.raises(TypeError, match="real floating dtype"):
            function(torch.tensor(1), torch.tensor(2.0))
        assert function(torch.empty(0, 3), 2.0).shape == (0, 3)
        assert function(torch.ones(3, 1), torch.ones(4, dtype=DOUBLE)).shape == (3, 4)
        assert function(torch.ones(3, 1), torch.ones(4, dtype=DOUBLE)).dtype == DOUBLE


def test_gamma_ratio_against_scipy():
    x = torch.logspace(-3, 8, 400, dtype=DOUBLE)
    psi = lambda x: torch.from_numpy(scipy.special.digamma(x.numpy()))
    expected = scipy.special.gammaln(x.numpy() + 0.5) - scipy.special.gammaln(x.numpy())
    small = x < 1e3  # SciPy's differences cancel
    torch.testing.assert_close(
        log_gamma_ratio(x)[small], torch.from_numpy(expected)[small], rtol=1e-11, atol=1e-12
    )
    excess = psi(x + 0.5) - psi(x) - 0.5 / x
    torch.testing.assert_close(digamma_excess(x)[small], excess[small], rtol=1e-8, atol=1e-13)
    step = 1e-5 * x
    central = (digamma_excess(x + step) - digamma_excess(x - step)) / (2 * step)
    torch.testing.assert_close(trigamma_excess(x), central, rtol=1e-8, atol=0)


# ------------------------------------------------------------------------- every mode

POINTS = [(0.1, 0.4), (3.0, 0.4), (0.7, 3.0), (-2.5, 3.0), (1.2, 30.0), (-4.0, 12.0), (0.0, 5.0)]


@pytest.mark.parametrize(
    "function, orders",
    [
        (student_t_cdf, 2),
        (student_t_logsf, 2),
        (derivative, 1),
        (student_t_log_tail, 2),
        (log_derivative, 1),
    ],
    ids=["cdf", "logsf", "sample_derivative", "log_tail", "log_sample_derivative"],
)
def test_every_mode(function, orders):
    t, df = torch.tensor(POINTS, dtype=DOUBLE).T
    check_every_mode(function, t, df, orders)


def test_a_third_order_is_refused():
    t, df = torch.tensor(0.5, dtype=DOUBLE), torch.tensor(2.0, dtype=DOUBLE)
    third = torch.func.grad(torch.func.grad(torch.func.grad(lambda df: student_t_cdf(t, df))))
    with pytest.raises(NotImplementedError, match="student_t has no derivative"):
        third(df)


# --------------------------------------------------------------------------- properties

freedoms = st.floats(-3, 5).map(lambda e: 10**e)
variables = st.tuples(st.floats(-6, 3), st.booleans()).map(lambda v: 10 ** v[0] * (-1) ** v[1])


def test_a_sample_keeps_its_level():
    # F(t(n), n) is constant in n, to second order
    log_t, df = random_points(2000, seed=1)
    keep = log_t < 300
    t, df = log_t[keep].exp(), df[keep]
    t[::2].neg_()
    level = lambda df: student_t_logcdf(student_t_sample(t, df), df)
    _, by_t, by_df, tt, t_df, _, df_df = derivatives(student_t_logcdf, t, df)
    g = derivative(t, df)
    terms = df_df.abs() + 2 * (t_df * g).abs() + (tt * g * g).abs() + (by_t / df * g).abs()
    slope, curvature = slope_and_curvature(level, df)
    assert (slope.abs() <= 1e-10 * by_df.abs()).all()
    assert (curvature.abs() <= 1e-9 * terms + 1e-290).all()


def test_the_logarithm_of_a_sample_keeps_its_level():
    log_t, df = random_points(2000, seed=2)
    level = lambda df: student_t_log_tail(student_t_log_sample(log_t, df), df)
    _, by_log, by_df, xx, x_df, _, df_df = derivatives(student_t_log_tail, log_t, df)
    d = log_derivative(log_t, df)
    terms = df_df.abs() + 2 * (x_df * d).abs() + (xx * d * d).abs() + (by_log / df * d).abs()
    slope, curvature = slope_and_curvature(level, df)
    assert (slope.abs() <= 1e-10 * by_df.abs()).all()
    assert (curvature.abs() <= 1e-9 * terms).all()


@given(variables, freedoms)
def test_the_forms_agree(t, df):
    t, df = torch.tensor(t, dtype=DOUBLE), torch.tensor(df, dtype=DOUBLE)
    log_t = t.abs().log()
    relative = log_derivative(log_t, df)
    torch.testing.assert_close(derivative(t, df), t * relative, rtol=1e-10, atol=0)
    small = student_t_sf(t.abs(), df)
    torch.testing.assert_close(student_t_log_tail(log_t, df).exp(), small, rtol=1e-10, atol=1e-300)
    torch.testing.assert_close(
        student_t_logsf(t, df).exp(), student_t_sf(t, df), rtol=1e-12, atol=0
    )
    assert torch.equal(student_t_cdf(t, df), student_t_sf(-t, df))
    # more degrees of freedom move every sample towards 0
    assert float(relative) < 0


@given(freedoms, st.lists(variables, min_size=2, max_size=8))
def test_the_cdf_increases(df, places):
    t = torch.tensor(sorted(places), dtype=DOUBLE)
    levels = student_t_logcdf(t, df) - student_t_logsf(t, df)
    assert (levels.diff() >= -1e-13 * levels[1:].abs() - 1e-15).all()
