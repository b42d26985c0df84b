"""The von Mises CDF and its derivatives, against mpmath, SciPy and identities."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from implicit_solvers.problems.reparameterization.special import von_mises
from implicit_solvers.problems.reparameterization.special.von_mises import (
    von_mises_cdf,
    von_mises_logcdf,
    von_mises_logsf,
    von_mises_sample,
    von_mises_sample_derivative,
    von_mises_sf,
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


def derivative(z, k):
    return von_mises_sample_derivative(k, z)


@pytest.fixture(scope="module")
def grid():
    return load("von_mises")


# ---------------------------------------------------------------------------- against mpmath


def test_the_grid_is_large_and_reaches_the_seams(grid):
    k, z = grid["p"], grid["x"]
    assert len(k) >= 2000
    assert {0.0, 1e-3, 50.0, 1e5, 1e8} <= set(k.tolist())
    mean = 1 - von_mises._mean_deficit(k)
    assert ((z.cos() - mean).abs() < 1e-12).sum() > 50
    assert (k == math.nextafter(50.0, 99.0)).any()


def test_values_on_the_grid(grid):
    z, k = grid["x"], grid["p"]
    usual = grid["tail"] > 1e-13  # further out the exponent's rounding alone is larger
    for function, x in [(von_mises_sf, z), (von_mises_cdf, -z)]:
        value = function(x, k)
        assert worst(value[usual], grid["tail"][usual]) < 3e-14
        assert worst(value, grid["tail"]) < 3e-13
    for function, x in [(von_mises_sf, -z), (von_mises_cdf, z)]:
        assert worst(function(x, k), 1 - grid["tail"]) < 1e-15
    for function, x in [(von_mises_logsf, z), (von_mises_logcdf, -z)]:
        assert worst(function(x, k), grid["log_tail"]) < 3e-14
    for function, x in [(von_mises_logsf, -z), (von_mises_logcdf, z)]:
        assert worst(function(x, k), (-grid["tail"]).log1p()) < 3e-13


def test_sample_derivatives_on_the_grid(grid):
    z, k = grid["x"], grid["p"]
    value, by_z, by_k = first_derivatives(derivative, z, k)
    assert worst(value, grid["G"]) < 1e-11
    assert worst(by_z, grid["G_x"], grid["G_x_terms"]) < 1e-11
    assert worst(by_k, grid["G_p"], grid["G_p_terms"]) < 1e-11
    mirrored = first_derivatives(derivative, -z, k)
    assert torch.equal(mirrored[0], -value)
    assert torch.equal(mirrored[1], by_z)
    assert torch.equal(mirrored[2], -by_k)


@pytest.mark.parametrize("side", [1.0, -1.0], ids=["upper", "lower"])
def test_derivatives_of_the_cdf_on_the_grid(grid, side):
    z, k = grid["x"], grid["p"]
    # odd in z: F(-z) = 1 - F(z)
    _, by_z, by_k, zz, zk, kz, kk = derivatives(von_mises_cdf, side * z, k)
    usual = grid["log_f"] > -36
    f, F_p = grid["f"], -grid["f"] * grid["G"]
    F_pp_terms = f * (grid["G_p_terms"] + (grid["G"] * grid["F_px"] / f.clamp(min=1e-300)).abs())
    for value, expected, terms in [
        (by_z, f, None),
        (by_k, side * F_p, None),
        (zz, side * grid["F_xx"], None),
        (zk, grid["F_px"], grid["F_px_terms"]),
        (kz, grid["F_px"], grid["F_px_terms"] + (k * z.sin() * F_p).abs()),
        (kk, side * grid["F_pp"], F_pp_terms),
    ]:
        scale = None if terms is None else terms[usual]
        assert worst(value[usual], expected[usual], scale) < 1e-11


def test_derivatives_of_the_logarithms_on_the_grid(grid):
    z, k = grid["x"], grid["p"]
    _, by_z, by_k, zz, _, kz, kk = derivatives(von_mises_logsf, z, k)
    ratio = (grid["log_f"] - grid["log_tail"]).exp()
    usual = grid["log_tail"] > -600
    hazard = torch.where(usual, grid["f"] / grid["tail"], ratio)
    exact = torch.where(usual, 1e-12, 1e-15 * grid["log_f"].abs() + 1e-12)
    by_p = hazard * grid["G"]
    assert float(((by_z + hazard).abs() / hazard / exact).max()) < 1
    assert float(((by_k - by_p).abs() / (by_p.abs() + 1e-300) / exact)[z > 0].max()) < 10
    usual &= grid["f"] > 1e-290
    pp = -(grid["F_pp"] / grid["tail"] + by_p**2)[usual]
    pp_terms = hazard * (grid["G_p_terms"] + (grid["F_px"] / grid["f"] * grid["G"]).abs()) + by_p**2
    assert worst(kk[usual], pp, pp_terms[usual]) < 1e-11
    px = (hazard * (by_p - grid["F_px"] / grid["f"]))[usual]
    px_terms = hazard * (by_p.abs() + grid["F_px_terms"] / grid["f"])
    assert (
        worst(kz[usual], px, (px_terms + hazard * (k * z.sin() * grid["G"]).abs())[usual]) < 1e-11
    )
    xx = (-hazard * (hazard + grid["F_xx"] / grid["f"]))[usual]
    assert worst(zz[usual], xx, (hazard * (hazard + k * z.sin()))[usual]) < 1e-11


def test_single_precision_on_the_grid(grid):
    # where rounding z and k to float32 moves neither the exponent nor the distance to pi much
    z, k = grid["x"].float(), grid["p"].float()
    keep = (z < 3) & (k < 1e5) & (grid["x"] > 1e-30)
    z, k = z[keep], k[keep]
    exact = derivatives(von_mises_sf, z.double(), k.double())
    found = derivatives(von_mises_sf, z, k)
    usual = exact[0] > 1e-30
    assert found[0].dtype == torch.float32
    for value, expected in zip(found[:3], exact[:3], strict=True):
        assert worst(value.double()[usual], expected[usual]) < 1e-5
    exact = first_derivatives(derivative, z.double(), k.double())
    found = first_derivatives(derivative, z, k)
    assert worst(found[0].double(), exact[0]) < 1e-5
    terms = (k.double() * z.double().sin() * exact[0]).abs()
    assert worst(found[1].double(), exact[1], exact[1].abs() + terms) < 1e-5
    kept = {key: column[keep] for key, column in grid.items()}
    assert worst(found[2].double(), exact[2], kept["G_p_terms"]) < 1e-5


# ------------------------------------------------------------------------ random points


def random_points(count, seed):
    generator = torch.Generator().manual_seed(seed)
    k = 10 ** (torch.rand(count, generator=generator, dtype=DOUBLE) * 8 - 3)
    fall = 10 ** (torch.rand(count, generator=generator, dtype=DOUBLE) * 8.5 - 7)
    z = (1 - fall / k).clamp(min=-1).acos()
    everywhere = torch.rand(count, generator=generator, dtype=DOUBLE) * math.pi
    return torch.where((fall > 2 * k) | (z == 0), everywhere, z), k


@pytest.mark.parametrize(
    "count", [100_000, pytest.param(1_000_000, marks=pytest.mark.nightly)], ids=["1e5", "1e6"]
)
def test_random_points_against_doubled_nodes(count):
    z, k = random_points(count, seed=0)
    for function, nodes, bound in [
        (von_mises.tails, 24, 1e-12),
        (von_mises._slope, 22, 1e-11),
        (von_mises._curvature, 24, 1e-11),
    ]:
        value, reference = (function.__wrapped__(z, k, nodes=n)[0] for n in (nodes, 2 * nodes))
        terms = reference.abs()
        if function is von_mises._curvature:
            (slope,) = von_mises._slope.__wrapped__(z, k, nodes=24)
            terms = terms + (slope * von_mises._score_value(z, k)[0]).abs()
        assert worst(value, reference, terms) < bound
        assert value.isfinite().all()


# -------------------------------------------------------------------------- edges, inputs

EDGE_ANGLES = [0.0, 5e-324, 1e-300, 1e-8, 1.0, math.pi / 2, 3.0, math.nextafter(math.pi, 0)]
EDGE_ANGLES = [*EDGE_ANGLES, math.pi, float(torch.tensor(math.pi).double()), 4.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_no_nan_at_extreme_inputs(dtype):
    positive = torch.tensor(EDGE_ANGLES, dtype=DOUBLE)
    z = torch.cat([positive, -positive]).to(dtype)[:, None]
    k = torch.tensor([0.0, 5e-324, 1e-300, 1e-30, 1e-3, 1.0, 49.9, 50.1, 1e5, 1e8, 1e30]).to(dtype)
    z, k = (t.reshape(-1) for t in torch.broadcast_tensors(z, k))
    for function in (von_mises_cdf, von_mises_sf, von_mises_logcdf, von_mises_logsf, derivative):
        value, by_z, by_k = first_derivatives(function, z, k)
        assert value.isfinite().all()
        assert by_z.isfinite().all()
        assert by_k.isfinite().all()
    for function in (von_mises_cdf, von_mises_sf, von_mises_logcdf, von_mises_logsf):
        keep = k < 1e9  # the slope of the density overflows in float32
        for value in derivatives(function, z[keep], k[keep]):
            assert not value.isnan().any()


def test_the_uniform_distribution():
    z = torch.linspace(-3.1, 3.1, 63, dtype=DOUBLE)
    k = torch.zeros_like(z)
    _, by_z, by_k, _, zk, _, kk = derivatives(von_mises_cdf, z, k)
    torch.testing.assert_close(
        von_mises_cdf(z, k), (z + math.pi) / (2 * math.pi), rtol=1e-14, atol=0
    )
    torch.testing.assert_close(by_z, torch.full_like(z, 0.5 / math.pi), rtol=1e-14, atol=0)
    torch.testing.assert_close(by_k, z.sin() / (2 * math.pi), rtol=1e-13, atol=1e-17)
    torch.testing.assert_close(zk, z.cos() / (2 * math.pi), rtol=1e-13, atol=1e-16)
    # F_kk = int (cos^2 - 1/2) / (2 pi)
    torch.testing.assert_close(kk, (2 * z).sin() / (8 * math.pi), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(derivative(z, k), -z.sin(), rtol=1e-13, atol=1e-16)


def test_the_variance_of_the_cosine_at_small_concentrations():
    k = torch.logspace(-12, -1.5, 200, dtype=DOUBLE)
    series = 0.5 - 3 / 16 * k**2 + 5 / 96 * k**4
    torch.testing.assert_close(von_mises._mean_slope(k), series, rtol=1e-10, atol=0)


def test_the_normal_limit():
    k = torch.tensor(1e14, dtype=DOUBLE)
    x = torch.linspace(-7, 7, 29, dtype=DOUBLE)
    expected = torch.from_numpy(scipy.stats.norm.cdf(x.numpy()))
    torch.testing.assert_close(von_mises_cdf(x / k.sqrt(), k), expected, rtol=1e-10, atol=0)
    # z = x / sqrt(k): dz/dk = -z / (2 k)
    z = x / k.sqrt()
    torch.testing.assert_close(derivative(z, k), -z / (2 * k), rtol=1e-10, atol=0)


def test_scipy_agrees():
    z = torch.linspace(-3, 3, 41, dtype=DOUBLE)
    for k in (0.1, 2.0, 30.0):
        expected = torch.from_numpy(scipy.stats.vonmises.cdf(z.numpy(), k))
        torch.testing.assert_close(von_mises_cdf(z, k), expected, rtol=1e-9, atol=1e-12)


def test_inadmissible_inputs():
    nan = float("nan")
    z = torch.tensor([nan, 1.0, 1.0, 1.0, nan], dtype=DOUBLE)
    k = torch.tensor([1.0, nan, -1.0, torch.inf, nan], dtype=DOUBLE)
    for function in (von_mises_cdf, von_mises_sf, von_mises_logcdf, von_mises_logsf, derivative):
        assert function(z, k).isnan().all()
        for gradient in first_derivatives(function, z, k)[2:]:
            assert gradient.isnan().all()
        with pytest.raises(TypeError, match="must be a tensor"):
            function(1.0, 2.0)
        with pytest.raises(TypeError, match="real floating dtype"):
            function(torch.tensor(1), torch.tensor(2.0))
        assert function(torch.empty(0, 3), 2.0).shape == (0, 3)


def test_arguments_are_broadcast_and_promoted():
    z, k = torch.rand(3, 1), torch.rand(4, dtype=DOUBLE)
    assert von_mises_cdf(z, k).shape == (3, 4)
    assert von_mises_cdf(z, k).dtype == DOUBLE
    z.requires_grad_()
    von_mises_cdf(z, k).sum().backward()
    assert z.grad.shape == (3, 1)
    assert z.grad.dtype == torch.float32


# ------------------------------------------------------------------------- every mode

POINTS = [(0.05, 0.3), (1.2, 0.4), (0.3, 4.0), (1.0, 4.0), (-0.7, 60.0), (-2.5, 1.5), (3.1, 0.0)]


@pytest.mark.parametrize(
    "function, orders",
    [(von_mises_cdf, 2), (von_mises_logsf, 2), (derivative, 1)],
    ids=["cdf", "logsf", "sample_derivative"],
)
def test_every_mode(function, orders):
    # central differences need room below: no k = 0 here
    z, k = torch.tensor([(z, k or 0.1) for z, k in POINTS], dtype=DOUBLE).T
    check_every_mode(function, z, k, orders)


def test_a_third_order_is_refused():
    z, k = torch.tensor(0.5, dtype=DOUBLE), torch.tensor(2.0, dtype=DOUBLE)
    third = torch.func.grad(torch.func.grad(torch.func.grad(lambda k: von_mises_cdf(z, k))))
    with pytest.raises(NotImplementedError, match="von_mises.* has no derivative"):
        third(k)


# --------------------------------------------------------------------------- properties

angles = st.floats(-3.14, 3.14)
concentrations = st.floats(-3, 5).map(lambda e: 10**e)


def test_a_sample_keeps_its_level():
    # F(z(k), k) is constant in k, to second order
    z, k = random_points(2000, seed=1)
    z[::2].neg_()
    level = lambda k: von_mises_logcdf(von_mises_sample(z, k), k)
    _, by_z, by_k, zz, zk, _, kk = derivatives(von_mises_logcdf, z, k)
    g = derivative(z, k)
    terms = kk.abs() + 2 * (zk * g).abs() + (zz * g * g).abs() + (by_z / k * g).abs()
    slope, curvature = slope_and_curvature(level, k)
    assert (slope.abs() <= 1e-10 * by_k.abs()).all()
    assert (curvature.abs() <= 1e-9 * terms + 1e-290).all()


@given(angles, concentrations)
def test_the_sides_are_mirrored(z, k):
    z, k = torch.tensor(z, dtype=DOUBLE), torch.tensor(k, dtype=DOUBLE)
    assert torch.equal(von_mises_cdf(z, k), von_mises_sf(-z, k))
    torch.testing.assert_close(
        von_mises_cdf(z, k) + von_mises_sf(z, k), torch.ones_like(z), rtol=0, atol=3e-16
    )
    assert torch.equal(derivative(z, k), -derivative(-z, k))
    # a larger concentration moves every sample towards 0
    assert float(z * derivative(z, k)) <= 0


@given(concentrations, st.lists(angles, min_size=2, max_size=8))
def test_the_cdf_increases(k, places):
    z = torch.tensor(sorted(places), dtype=DOUBLE)
    levels = von_mises_logcdf(z, k) - von_mises_logsf(z, k)
    assert (levels.diff() >= -1e-13 * levels[1:].abs() - 1e-15).all()
