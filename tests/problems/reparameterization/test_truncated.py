"""Truncated and inverse Gaussian distributions against SciPy, mpmath and closed forms."""

import functools
import math

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import distributions as td

from implicit_solvers.problems import reparameterization as dist
from implicit_solvers.problems.reparameterization import InverseGaussian, Truncated, TruncatedNormal
from implicit_solvers.problems.reparameterization.tails import bounds
from implicit_solvers.problems.special_functions import truncated_normal
from tests.cases import default_dtype
from tests.problems.reparameterization.cases import assert_uniform, double
from tests.problems.reparameterization.derivative_checks import check_every_mode, leaves, worst
from tests.problems.special_functions.make_grids import GRIDS, TRUNCATED, truncated_law

INF = math.inf
SLOPES = TRUNCATED[1:]


# ------------------------------------------------------------- truncated normal, against mpmath


@functools.cache
def grid():
    with np.load(GRIDS / "truncated_normal.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def standardized(z, loc, scale, low, high):
    """Return ``x``, ``a``, ``b``, of which infinite ones are 0, and ``x - a``, ``b - x``."""
    differences = z - loc, low - loc, high - loc, z - low, high - z
    return [torch.where(t.isfinite(), t / scale, 0.0) for t in differences]


def test_the_grid_is_wide_and_reaches_the_seams():
    args = [grid()[name] for name in TRUNCATED]
    x, a, b, down, _ = (t.abs() for t in standardized(*args))
    assert len(x) > 2000 and sum((t > 0.99e5).sum() for t in (a, b)) > 100
    width = (args[4] - args[3]) / args[2]
    assert width.min() < 1.01e-8 and (width > 1e3).sum() > 500 and width.isinf().sum() > 100
    seams = {truncated_normal.FRACTION_ABOVE: (x, a, b), 1.0: (x, down * (a + 0.5 * down))}
    for seam, places in seams.items():
        assert sum(((t / seam - 1).abs() < 1e-9).sum() for t in places) > 20


def test_tails_densities_and_slopes_of_the_grid():
    args = [grid()[name] for name in TRUNCATED]
    tails = truncated_normal.truncated_normal_tails(*args)
    for name, found in zip(("log_cdf", "log_survival", "log_density"), tails, strict=True):
        torch.testing.assert_close(found, grid()[name], rtol=1e-14, atol=1e-14)
    slopes = truncated_normal.truncated_normal_slopes(*args)
    for name, slope in zip(SLOPES, slopes, strict=True):
        exact = grid()[f"slope_{name}"]
        assert worst(slope(), exact, grid()["terms"] if name == "scale" else None) < 1e-12


def test_second_derivatives_of_the_grid():
    """Relative to the sum of their terms: dA = (phi(a) / P) (D dphi - dz) + A (x dx - a da)."""
    args = leaves(*(grid()[name] for name in TRUNCATED))
    x, a, b, down, up = (t.abs() for t in standardized(*(t.detach() for t in args)))
    by_loc, by_scale, by_low, by_high = (grid()[f"slope_{name}"].abs() for name in SLOPES)
    log_cdf, log_survival, log_density = (
        grid()[f"log_{name}"] for name in ("cdf", "survival", "density")
    )
    at_low = by_low * (log_density - log_survival).exp()
    at_high = by_high * (log_density - log_cdf).exp()
    zero, scale = 0 * x, args[2].detach()
    moves = [(1, 0, 0), (1, 1, 1), (x, a, b), (0, 1, 0), (0, 0, 1)]
    flows = [1 + zero, by_loc, by_scale, by_low, by_high]
    falls = [x, down, down * (x + a), a, zero]
    rises = [x, up, up * (x + b), zero, b]
    for i, name in enumerate(SLOPES):
        slope = truncated_normal.truncated_normal_slopes(*args)[i]()
        found_by = torch.autograd.grad(slope.sum(), args)
        for j, (found, (x_1, a_1, b_1)) in enumerate(zip(found_by, moves, strict=True)):
            low = at_low * flows[j] + by_low * falls[j] / scale
            high = at_high * flows[j] + by_high * rises[j] / scale
            whole = (x_1 + a_1 * by_low + b_1 * by_high) / scale + a * low + b * high
            terms = {"loc": low + high, "scale": whole, "low": low, "high": high}[name]
            known = terms > 1e-90  # to differences of 160 digits
            exact = grid()[f"slope_{name}_{TRUNCATED[j]}"]
            assert worst(found[known], exact[known], terms[known]) < 1e-11


RANGES = [(0.0, 1.0, *ends) for ends in ((-1e5, INF), (-INF, -1e5), (1e5, 1.0001e5), (-3.0, 8.0))]
RANGES += [(5.0, 0.01, 0.0, 1.0), (0.0, 1.0, -INF, -30.0), (0.0, 1.0, 40.0, 41.0)]
RANGES += [(0.0, 1.0, 1000.0, INF), (0.0, 1.0, 4.0, 4.001), (0.0, 1.0, -0.01, 0.02)]
RANGES += [(0.0, 1.0, 0.0, INF), (0.3, 20.0, -1.0, 1.0), (-7.0, 0.5, -INF, INF)]
NARROW = [(0.0, 1.0, a, a + 1e-8) for a in (0.0, 5.0, -40.0)]


@pytest.mark.parametrize(
    "dtype, parameters",
    [(torch.float64, p) for p in RANGES + NARROW] + [(torch.float32, p) for p in RANGES],
    ids=lambda p: str(p).removeprefix("torch."),
)
def test_the_derivatives_of_a_sample_as_it_is_represented(dtype, parameters):
    bound = 1e-11 if dtype == torch.float64 else 2e-7
    lanes = [torch.full((12,), p, dtype=dtype, requires_grad=True) for p in parameters]
    torch.manual_seed(3)
    q = TruncatedNormal(*lanes)
    z = q.rsample()
    assert z.dtype == dtype and bool(q.support.check(z).all())
    found = dict(zip(SLOPES, torch.autograd.grad(z.sum(), lanes), strict=True))
    ends = (t[0].item() for t in lanes[2:])
    low, high = (mp.mpf(end) if math.isfinite(end) else None for end in ends)
    with mp.workdps(160):
        middle = [mp.mpf(t[0].item()) for t in lanes[:2]]
        for i, place in enumerate(z.tolist()):
            if place in (q.low[i], q.high[i]):  # rounded to an end, with which it moves
                moved = [found[name][i].item() for name in SLOPES]
                assert moved == [0.0, 0.0, float(place == q.low[i]), float(place == q.high[i])]
                continue
            exact, terms = truncated_law(mp.mpf(place), *middle, low, high)
            for name in SLOPES:
                size = terms if name == "scale" else exact[f"slope_{name}"]
                error = abs(found[name][i].item() - exact[f"slope_{name}"])
                assert error <= bound * size + torch.finfo(dtype).tiny


POINTS = double(
    [0.4, -1.2, 3.1], [0.3, 0.0, 0.1], [1.5, 1.0, 0.7], [-1.0, -INF, 3.0], [2.0, 0.0, INF]
)
OF_POINTS = [lambda *args, i=i: truncated_normal.truncated_normal_tails(*args)[i] for i in range(3)]
OF_POINTS += [
    lambda *args, i=i: truncated_normal.truncated_normal_slopes(*args)[i]() for i in range(4)
]


@pytest.mark.parametrize("function", OF_POINTS)
def test_every_mode_of_tails_and_slopes(function):
    check_every_mode(function, *(p[:1] for p in POINTS))
    z, loc, scale, low, high = (p[1:] for p in POINTS)
    check_every_mode(lambda *args: function(*args, low[0], high[0]), z[:1], loc[:1], scale[:1])
    check_every_mode(lambda *args: function(*args, high[1]), z[1:], loc[1:], scale[1:], low[1:])


def test_scores_far_in_a_tail():
    """d ln q/dm = x - E[t], with E[t] = a + 1/a - 2/a^3 + ... on the half-line."""
    a, far = 1e5, 0.7e-5
    loc, scale, low, z = double(0.0, 1.0, a, a + far, requires_grad=True)
    log_q = TruncatedNormal(loc, scale, low).log_prob(z)
    by_loc, by_low, by_z = torch.autograd.grad(log_q, (loc, low, z))
    off = float(mp.mpf(z.item()) - a) - (1 / a - 2 / a**3)
    expected = [off, a + 1 / a, -z.item()]
    np.testing.assert_allclose([by_loc.item(), by_low.item(), by_z.item()], expected, rtol=1e-12)


@pytest.mark.parametrize("parameters", RANGES + NARROW, ids=str)
def test_draws_are_uniform_and_quantiles_keep_their_level(parameters):
    torch.manual_seed(4)
    q = TruncatedNormal(*double(*parameters))
    z = q.sample((20_000,))
    assert_uniform(q.cdf(z))
    u = torch.cat([torch.linspace(0, 1, 41, dtype=z.dtype), *double([1e-300, 1e-20, 1e-12])])
    place = q.icdf(u)
    assert place[0] == q.low and place[40] == q.high
    inner = place.isfinite() & (u < 1)
    # a rounded place has the level of its neighbours
    rounding = (2.3e-16 * place.abs().log().exp() * q.log_prob(place).exp())[inner]
    error = (q.cdf(place) - u).abs()[inner]
    assert bool((error <= 2 * rounding + 1e-12 * u[inner].clamp(min=1e-3)).all())


def test_a_quantile_near_an_end_keeps_its_distance():
    """``z - low = u P / phi(a)`` for small ``u``, where it is representable."""
    for loc in (0.0, 1.0, -3.0):
        q = TruncatedNormal(*double(loc, 1.0, 0.0))
        u = double([1e-300, 1e-100, 1e-20])[0]
        exact = u * (-q.log_prob(double(0.0)[0])).exp()
        torch.testing.assert_close(q.icdf(u), exact, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------- moments


def exact_moments(loc, scale, low, high):
    """Mean, variance, entropy, ln(mass), with 40 digits."""
    mp.mp.dps = 40
    a, b = ((mp.mpf(end) - loc) / scale for end in (low, high))
    mode = min(max(a, mp.mpf(0)), b)
    ends = mp.linspace(max(a, mode - 40), min(b, mode + 40), 41)
    density = lambda t: mp.exp((mode * mode - t * t) / 2)
    mass = mp.quad(density, ends)
    mean = mp.quad(lambda t: t * density(t), ends) / mass
    variance = mp.quad(lambda t: (t - mean) ** 2 * density(t), ends) / mass
    square = mp.quad(lambda t: t * t * density(t), ends) / mass
    log_mass = mp.log(mass) - mode * mode / 2
    entropy = mp.log(scale) + log_mass + square / 2
    return loc + scale * mean, scale**2 * variance, entropy, log_mass - mp.log(2 * mp.pi) / 2


INTERVALS = [
    (0.0, 1.0, 10.0, INF),
    (0.0, 1.0, -INF, INF),
    (0.3, 1.5, -1.0, 2.0),
    (1.0, 2.0, -INF, -75.0),
    (0.0, 1.0, 5.0, 5.001),
    (0.0, 1.0, -0.1, 0.1),
    (0.0, 1.0, -9.0, 0.5),
]


@pytest.mark.parametrize("parameters", INTERVALS, ids=str)
def test_moments_are_exact(parameters):
    q = TruncatedNormal(*double(*parameters))
    mean, variance, entropy, log_mass = exact_moments(*parameters)
    z = torch.as_tensor(float(mean), dtype=torch.float64)
    standard = (mp.mpf(z.item()) - parameters[0]) / parameters[1]
    log_prob = -(standard**2) / 2 - mp.log(2 * mp.pi) / 2 - mp.log(parameters[1]) - log_mass
    np.testing.assert_allclose(q.mean.item(), float(mean), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(q.variance.item(), float(variance), rtol=1e-11)
    np.testing.assert_allclose(q.entropy().item(), float(entropy), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(q.log_prob(z).item(), float(log_prob), rtol=1e-11, atol=1e-11)


def test_derivatives_of_moments_in_the_tail():
    """mean = loc + scale h(a) with h' = h (h - a), h the hazard, for a = 10 without upper end."""
    mp.mp.dps = 40
    a = mp.mpf(10)
    h = mp.npdf(a) / (mp.erfc(a / mp.sqrt(2)) / 2)
    slope = h * (h - a)
    loc, scale, low = double(0.0, 1.0, 10.0, requires_grad=True)
    q = TruncatedNormal(loc, scale, low)
    found = torch.autograd.grad(q.mean, (loc, scale, low))
    expected = [float(x) for x in (1 - slope, h - a * slope, slope)]
    np.testing.assert_allclose([f.item() for f in found], expected, rtol=1e-11)


@pytest.mark.parametrize("p", [1e-12, 0.3, 0.999999])
def test_quantiles_in_the_tail_are_exact(p):
    """And their derivatives: dz/dlow = q(low) (1 - F) / q(z)."""
    mp.mp.dps = 40
    survival = lambda x: mp.erfc(x / mp.sqrt(2)) / 2
    target = survival(mp.mpf(10)) * (1 - mp.mpf(p))
    # the distance in units of the hazard is a start for a bracket
    z = mp.findroot(lambda x: mp.log(survival(x) / target), (10, 10.5), solver="secant", tol=1e-30)
    slope = mp.npdf(10) * (1 - mp.mpf(p)) / mp.npdf(z)
    low = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    q = TruncatedNormal(*double(0.0, 1.0), low)
    found = q.icdf(torch.tensor(p, dtype=torch.float64))
    np.testing.assert_allclose(found.item(), float(z), rtol=1e-13)
    (derivative,) = torch.autograd.grad(found, low)
    np.testing.assert_allclose(derivative.item(), float(slope), rtol=1e-10)


def test_a_truncated_normal_distribution_has_its_closed_forms():
    loc, scale, low = double(0.0, 1.0, 40.0)
    q, expected = Truncated(td.Normal(loc, scale), low), TruncatedNormal(loc, scale, low)
    assert type(q) is type(q.expand((2,))) is TruncatedNormal
    z = double([40.0, 40.01, 43.0])[0]
    assert torch.equal(q.log_prob(z), expected.log_prob(z))


def test_an_exponential_has_no_memory():
    rate, low = double(2.0, 300.0, requires_grad=True)
    q = Truncated(td.Exponential(rate), low)
    np.testing.assert_allclose((q.mean - low).item(), 0.5, rtol=1e-11)
    np.testing.assert_allclose(q.variance.item(), 0.25, rtol=1e-10)
    np.testing.assert_allclose(q.entropy().item(), 1 - math.log(2), rtol=1e-10)
    z = q.rsample((1000,))
    by_rate, by_low = torch.autograd.grad(z.sum(), (rate, low))
    np.testing.assert_allclose(by_low.item(), 1000, rtol=1e-9)
    np.testing.assert_allclose(by_rate.item(), -(z - low).sum().item() / 2, rtol=1e-9)


def beyond(df, low):
    """Return mean and variance of the part of a Student distribution beyond ``low``."""
    density = lambda x: (1 + x * x / df) ** (-(df + 1) / 2)
    places = [mp.log(low), *(mp.mpf(10) ** k for k in range(1, 5))]
    of = lambda k: mp.quad(lambda v: density(mp.exp(v)) * mp.exp(v * (k + 1)), places)
    mass, mean, square = of(0), of(1) / of(0), of(2)
    return float(mean), float(square / mass - mean**2)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("df, low", [(2.1, 1.0), (3.0, 1.0), (3.0, 1e3), (30.0, 1.0)])
def test_moments_of_heavy_tails(df, low, dtype, rtol):
    base = dist.StudentT(*torch.tensor([df, 0.0, 1.0], dtype=dtype))
    df, low = float(base.df), torch.tensor(low, dtype=dtype)
    mean, variance = beyond(mp.mpf(df), mp.mpf(float(low)))
    for q, sign in ((Truncated(base, low), 1), (Truncated(base, high=-low), -1)):
        assert q.variance.dtype == dtype
        np.testing.assert_allclose(sign * q.mean.item(), mean, rtol=rtol)
        np.testing.assert_allclose(q.variance.item(), variance, rtol=rtol)


def test_moments_whose_tails_cannot_be_seen_are_nan():
    """Of a variance that nearly diverges, and of a base whose CDF ends at 1 - 1e-16."""
    student = dist.StudentT(*double(2.01, 0.0, 1.0))
    assert Truncated(student, 1.0).variance.isnan() and Truncated(student, 1.0).mean.isfinite()
    pareto = Truncated(td.Pareto(*double(1.0, 3.0)), 1.2)
    assert pareto.variance.isnan()
    np.testing.assert_allclose(pareto.mean.item(), 1.8, rtol=1e-8)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_quantiles_far_in_a_tail_with_either_default_dtype(default):
    u = double([0.1, 0.5, 0.9])[0]
    with default_dtype(default):
        for low in (37.6, 38.0, 38.2, 38.4, 39.0):
            q = TruncatedNormal(*double(0.0, 1.0, low))
            torch.testing.assert_close(q.cdf(q.icdf(u)), u, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("parameters", [(0.0, 1.0, 1.0, INF), (0.5, 2.0, 0.1, 1.0), (0, 1, -1, 2)])
def test_derivatives_of_the_entropy(parameters):
    q = lambda *p: TruncatedNormal(*p, validate_args=False).entropy()
    ends = [t for t in double(*parameters, requires_grad=True) if t.isfinite()]
    rest = double(*[p for p in parameters if not math.isfinite(p)])
    assert torch.autograd.gradcheck(lambda *p: q(*p, *rest), ends)
    assert torch.autograd.gradgradcheck(lambda *p: q(*p, *rest), ends)


def test_moments_of_a_batch_are_those_of_each():
    """Of intervals without, with one and with two ends, and a moment that diverges."""
    df, low, high = double([3.0, 3.0, 3.0, 1.5], [-INF, 1.0, -1.0, 1.0], [INF, INF, 2.0, INF])
    base = dist.StudentT(df)
    together = Truncated(base, low, high).variance
    alone = [Truncated(dist.StudentT(df[i]), low[i], high[i]).variance for i in range(4)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-14, atol=0.0)
    assert together[0] == 3.0 and together[3] == INF
    assert Truncated(base, low, high).entropy().isfinite().all()


def test_a_moment_that_diverges():
    base = td.HalfCauchy(torch.tensor(1.0, dtype=torch.float64))
    assert Truncated(base, 1.0).mean == INF
    assert Truncated(base, 1.0, 2.0).mean.isfinite()


# -------------------------------------------------------------------------------------- supports

EXPONENTIAL, UNIFORM = td.Exponential(2.0), td.Uniform(0.0, 3.0)
LANES = torch.tensor([0.0, -INF]), torch.tensor([INF, 2.0])
SUPPORTS = [
    (TruncatedNormal(0.0, 1.0), "Real()"),
    (TruncatedNormal(0.0, 1.0, low=0.5), "GreaterThanEq(lower_bound=0.5)"),
    (TruncatedNormal(0.0, 1.0, high=0.5), "LessThanEq(upper_bound=0.5)"),
    (TruncatedNormal(0.0, 1.0, 0.5, 2.0), "Interval(lower_bound=0.5, upper_bound=2.0)"),
    (TruncatedNormal(0.0, 1.0, *LANES), "LaneInterval"),
    (Truncated(EXPONENTIAL), "GreaterThanEq(lower_bound=0.0)"),
    (Truncated(EXPONENTIAL, high=2.0), "Interval(lower_bound=0.0, upper_bound=2.0)"),
    (Truncated(UNIFORM, 1.0), "Interval(lower_bound=1.0, upper_bound=3.0)"),
]


@pytest.mark.parametrize(
    "q, expected", SUPPORTS, ids=[f"{e[:12]}-{i}" for i, (_, e) in enumerate(SUPPORTS)]
)
def test_supports_are_torchs_and_can_be_mapped_onto(q, expected):
    assert repr(q.support).startswith(expected)
    y = torch.tensor([[-1.3], [0.4], [2.0]]).expand(3, *(q.batch_shape or (1,)))
    for registry in (td.biject_to, td.transform_to):
        transform = registry(q.support)
        z = transform(y)
        assert bool(q.support.check(z).all())
        torch.testing.assert_close(transform.inv(z), y, rtol=1e-5, atol=1e-6)
        slope = torch.func.grad(lambda y, of=transform: of(y).sum())(y).abs().log()
        torch.testing.assert_close(transform.log_abs_det_jacobian(y, z), slope)
    assert bool(q.log_prob(z).isfinite().all())
    outside = [end for end in (-INF, INF) if not bool(q.support.check(torch.tensor(end)).any())]
    for end in outside:
        with pytest.raises(ValueError, match="support"):
            q.log_prob(torch.full(q.batch_shape, end))


MIXED = [
    (TruncatedNormal(torch.zeros(3), 1.0, *torch.tensor([[0.0, 1, -2], [1.0, 5, 0]])), (-2, 5)),
    (TruncatedNormal(torch.zeros(2), 1.0, torch.tensor([0.0, 1.0])), (0, INF)),
    (TruncatedNormal(torch.zeros(2), 1.0, *LANES), (-INF, INF)),
    (Truncated(td.Exponential(torch.ones(2)), *torch.tensor([[0.5, 4], [1.0, 5]])), (0.5, 5)),
    (td.Uniform(*torch.tensor([[0.0, 1.0], [2.0, 4.0]])), (0, 4)),
]


VECTOR = torch.tensor([[0.0, 1.0], [-1.0, 1.5], [1.0, -INF]]), torch.tensor([2.0, INF])
INDEPENDENT = td.Independent(TruncatedNormal(torch.zeros(3, 2), 1.0, *VECTOR), 1)
MIXED.append((INDEPENDENT, None))


@pytest.mark.parametrize("component, ends", MIXED, ids=[str(e) for _, e in MIXED])
def test_a_mixture_of_different_intervals_accepts_its_samples(component, ends):
    logits = torch.zeros(component.batch_shape, requires_grad=True)
    q = dist.MixtureSameFamily(td.Categorical(logits=logits), component)
    z = q.rsample((200,))
    assert bool(q.support.check(z).all()) and bool(q.log_prob(z).isfinite().all())
    assert bool(torch.autograd.grad(z.sum(), logits)[0].isfinite().all())
    assert ends is None or tuple(map(float, bounds(q))) == ends
    mapped = td.biject_to(q.support)(torch.randn(50, *q.event_shape))
    assert bool(q.support.check(mapped).all())
    if ends is None:
        again = q.inverse_rosenblatt(q.rosenblatt(z))
        torch.testing.assert_close(again, z, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------- edges


def test_float32_parameters_under_a_default_of_float64():
    with default_dtype(torch.float64):
        one = torch.ones((), dtype=torch.float32, requires_grad=True)
        for q in (
            TruncatedNormal(one, 1.0),
            TruncatedNormal(one, one, -1.0, 2.0),
            Truncated(td.Exponential(one), 0.5),
        ):
            z = q.rsample((3,))
            functions = z, q.cdf(z), q.log_prob(z), q.mean, q.variance, q.entropy(), q.icdf(0.5)
            assert {f.dtype for f in functions} == {torch.float32}
            assert torch.autograd.grad(z.sum(), one)[0].dtype == torch.float32


def test_outside():
    q = TruncatedNormal(*double(0.0, 1.0, -1.0, 2.0), validate_args=False)
    log_prob = q.log_prob(*double([-1.0, 2.0, -3.0, 5.0]))
    assert log_prob[:2].isfinite().all() and log_prob[2:].tolist() == [-INF, -INF]


def test_ends_of_several_shapes():
    q = TruncatedNormal(torch.zeros(2), 1.0, torch.zeros(3, 1))
    assert q.batch_shape == (3, 2) and q.rsample((4,)).shape == (4, 3, 2)
    torch.testing.assert_close(q.expand((5, 3, 2)).mean[0], q.mean)
    assert Truncated(td.Exponential(1.0), 1.0).expand((2,)).rsample().shape == (2,)


# ---------------------------------------------------------------- the inverse Gaussian distribution


def exact_tails(x, loc, concentration):
    mp.mp.dps = 60
    x, loc, concentration = (mp.mpf(v) for v in (x, loc, concentration))
    root = mp.sqrt(concentration / x)
    phi = lambda y: mp.erfc(-y / mp.sqrt(2)) / 2
    second = mp.exp(2 * concentration / loc) * phi(-root * (x / loc + 1))
    return mp.log(phi(root * (x / loc - 1)) + second), mp.log(phi(root * (1 - x / loc)) - second)


@pytest.mark.parametrize("parameters", [(1.3, 0.7), (0.5, 20.0), (2.0, 3000.0)], ids=str)
def test_tails_are_exact(parameters):
    q = InverseGaussian(*double(*parameters))
    loc, spread = parameters[0], (parameters[0] ** 3 / parameters[1]) ** 0.5
    for x in [loc / 20, loc / 2, loc, loc + 0.5 * spread, loc + 5 * spread, loc + 30 * spread]:
        below, above = exact_tails(x, *parameters)
        place = torch.tensor(x, dtype=torch.float64)
        np.testing.assert_allclose(q.log_cdf(place).item(), float(below), rtol=1e-12, atol=1e-50)
        found = q.log_survival(place).item()
        np.testing.assert_allclose(found, float(above), rtol=1e-12, atol=1e-50)


@pytest.mark.parametrize("loc, concentration", [(1.3, 0.7), (0.5, 20.0), (3.0, 0.05)])
def test_the_mode_is_where_the_density_is_flat(loc, concentration):
    q = InverseGaussian(*double(loc, concentration))
    by_x = torch.func.grad(q.log_prob)(q.mode)
    # the roundings of terms of this size cancel
    assert abs(by_x.item()) < 1e-9 * (concentration / q.mode.item() ** 2 + 1)
