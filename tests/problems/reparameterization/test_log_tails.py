"""Both tails from one evaluation, against mpmath's grids and the functions of one tail."""

import math

import mpmath as mp
import pytest
import torch
from torch import distributions as td

from implicit_solvers.problems.reparameterization import (
    Beta,
    Gamma,
    InverseGaussian,
    StudentT,
    TruncatedNormal,
    VonMises,
)
from implicit_solvers.problems.reparameterization.distributions.von_mises import log_arc_tails
from implicit_solvers.problems.reparameterization.special.beta import log_betainc, log_betaincc
from implicit_solvers.problems.reparameterization.special.gamma import log_gammainc, log_gammaincc
from implicit_solvers.problems.reparameterization.special.log_tails import (
    log_beta_tails,
    log_gamma_tails,
    student_t_log_tails,
    student_t_motion,
    von_mises_log_tails,
)
from implicit_solvers.problems.reparameterization.special.student_t import (
    student_t_logcdf,
    student_t_logsf,
)
from implicit_solvers.problems.reparameterization.special.von_mises import (
    von_mises_logcdf,
    von_mises_logsf,
)
from implicit_solvers.problems.reparameterization.tails import log_tails
from tests.problems.reparameterization.derivative_checks import check_every_mode, load
from tests.problems.reparameterization.sample_checks import double
from tests.problems.reparameterization.special_grids import grid

# each with the functions of one tail, and points
PAIRS = {
    "gamma": (
        log_gamma_tails,
        (log_gammainc, log_gammaincc),
        ([0.2, 3.0, 50.0, 3.0], [0.1, 2.5, 60.0, 400.0]),
    ),
    "beta": (
        log_beta_tails,
        (log_betainc, log_betaincc),
        ([0.2, 3.0, 50.0], [0.7, 2.0, 9.0], [0.1, 0.6, 0.3]),
    ),
    "student_t": (
        student_t_log_tails,
        (student_t_logcdf, student_t_logsf),
        ([-1.5, 0.3, 40.0, -2.0], [0.7, 3.0, 20.0, 900.0]),
    ),
    "von_mises": (
        von_mises_log_tails,
        (von_mises_logcdf, von_mises_logsf),
        ([-1.5, 0.3, 2.5, -3.0], [0.7, 3.0, 60.0, 500.0]),
    ),
}
each = pytest.mark.parametrize("pair, single, points", PAIRS.values(), ids=PAIRS)


def derivatives(function, points):
    """Value, gradient and Hessian by all arguments, elementwise."""
    leaves = [p.clone().requires_grad_() for p in points]
    value = function(*leaves)
    slopes = torch.autograd.grad(value.sum(), leaves, create_graph=True)
    curvatures = [torch.autograd.grad(s.sum(), leaves, retain_graph=True) for s in slopes]
    return value.detach(), slopes, curvatures


@each
def test_the_pair_is_that_of_the_single_functions(pair, single, points):
    points = double(*points)
    for place in (0, 1):
        found = derivatives(lambda *p, i=place: pair(*p)[i], points)
        expected = derivatives(single[place], points)
        torch.testing.assert_close(found[:2], expected[:2], rtol=1e-10, atol=1e-300)
        for ours, theirs in zip(found[2], expected[2], strict=True):
            # of the second order terms of both signs
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["student_t", "von_mises"])
def test_both_tails_on_the_grid(name):
    table, pair = load(name), PAIRS[name][0]
    for x, near, far in ((table["x"], 1, 0), (-table["x"], 0, 1)):
        tails = pair(x, table["p"])
        torch.testing.assert_close(tails[near], table["log_tail"], rtol=1e-12, atol=0)
        torch.testing.assert_close(tails[far], (-table["tail"]).log1p(), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name, arguments", [("gamma", ("a", "z")), ("beta", ("a", "b", "x"))])
def test_both_tails_on_the_grids_of_two_sides(name, arguments):
    table = grid(name)
    below, above = PAIRS[name][0](*(table[key] for key in arguments))
    small = torch.where(table["upper"], above, below)
    scale = table["log_tail"].abs().clamp(min=1)
    assert float(((small - table["log_tail"]).abs() / scale).max()) < 1e-12
    large = torch.where(table["upper"], below, above)
    near = table["tail"] > 1e-13
    expected = (-table["tail"][near]).log1p()
    torch.testing.assert_close(large[near], expected, rtol=1e-12, atol=0)


def test_the_slope_of_a_t_variable_comes_with_its_tails():
    table = load("student_t")
    for sign in (1, -1):
        t = sign * table["x"]
        *tails, slope = student_t_motion(t, table["p"])
        torch.testing.assert_close(tuple(tails), student_t_log_tails(t, table["p"]))
        torch.testing.assert_close(slope, sign * table["G"], rtol=1e-11, atol=0)


@pytest.mark.parametrize("side", [0, 1], ids=["below", "above"])
@pytest.mark.parametrize("name", ["gamma", "student_t", "von_mises"])
def test_every_mode(name, side):
    pair, _, (x, p) = PAIRS[name]
    check_every_mode(lambda x, p: pair(x, p)[side], *double(x[:2], p[:2]))


@pytest.mark.parametrize("place", range(3), ids=["below", "above", "slope"])
def test_every_mode_of_the_motion(place):
    function = lambda t, df: student_t_motion(t, df)[place]
    check_every_mode(function, *double([-1.5, 0.3], [0.7, 3.0]), orders=1)


# -------------------------------------------------------------------------------------- the ends


def test_no_tail_at_the_ends():
    nothing, everything = -math.inf, 0.0
    for tails in (
        log_gamma_tails(*double([2.0, 2.0], [0.0, math.inf])),
        log_beta_tails(*double([2.0, 2.0], [3.0, 3.0], [0.0, 1.0])),
        student_t_log_tails(*double([-math.inf, math.inf], [3.0, 3.0])),
    ):
        assert [tail.tolist() for tail in tails] == [
            [nothing, everything],
            [everything, nothing],
        ]
    *tails, slope = student_t_motion(*double([-math.inf, math.inf], [3.0, 3.0]))
    assert [tail.tolist() for tail in tails] == [[nothing, everything], [everything, nothing]]
    assert slope.tolist() == [math.inf, -math.inf]


def test_inadmissible_arguments_are_nan_and_disturb_no_others():
    for pair, arguments in (
        (log_gamma_tails, ([-1.0, 2.0], [1.0, 1.0])),
        (log_beta_tails, ([-1.0, 2.0], [1.0, 1.0], [0.5, 0.5])),
        (student_t_log_tails, ([1.0, 1.0], [0.0, 2.0])),
        (student_t_motion, ([math.nan, 1.0], [2.0, 2.0])),
        (von_mises_log_tails, ([0.5, 0.5], [-1.0, 2.0])),
    ):
        for found in pair(*double(*arguments)):
            assert found.isnan().tolist() == [True, False]


@pytest.mark.parametrize("pair", [pair for pair, *_ in PAIRS.values()], ids=PAIRS)
def test_numbers_alone_are_an_error(pair):
    with pytest.raises(TypeError):
        pair(*[0.5] * (3 if pair is log_beta_tails else 2))


# --------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("loc", [0.0, 0.7, -2.5])
@pytest.mark.parametrize("kind", [VonMises, td.VonMises], ids=["ours", "torch"])
def test_a_von_mises_variable_in_the_tail(kind, loc):
    """Where the tail itself underflows, at angles on both sides of the location."""
    k, x = 1e3, 1.5
    # the second side of P(Z > x) = C int_x^pi exp(k cos t) dt, by mpmath
    with mp.workdps(40):
        whole = 2 * mp.pi * mp.besseli(0, k)
        tail = mp.quad(lambda t: mp.exp(k * mp.cos(t)), mp.linspace(x, x + 0.1, 9))
        log_tail = torch.tensor(float(mp.log(tail / whole)), dtype=torch.float64)
    q = kind(*double(loc, k), validate_args=False)
    near, far = (
        torch.remainder(double(loc + s * x + math.pi)[0], 2 * math.pi) - math.pi for s in (1, -1)
    )
    for z, place in ((near, 1), (far, 0)):
        tails = log_tails(q, z)
        torch.testing.assert_close(tails[place], log_tail, rtol=1e-12, atol=1e-15 * k)
        assert float(tails[1 - place]) == 0


DISTRIBUTIONS = {
    "gamma": (Gamma, (2.3, 1.7), 30.0),
    "beta": (Beta, (2.3, 0.7), 0.4),
    "student_t": (StudentT, (3.5, 0.3, 1.7), -4.0),
    "inverse_gaussian": (InverseGaussian, (1.3, 0.7), 6.0),
    "truncated_normal": (TruncatedNormal, (0.0, 1.0, 9.0, 12.0), 9.5),
    "normal": (td.Normal, (0.3, 1.7), 4.0),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_tails_of_distributions_add_up_and_have_the_density(name):
    """F + (1 - F) = 1; d ln F/dz = q / F and d ln(1 - F)/dz = -q / (1 - F)."""
    kind, parameters, place = DISTRIBUTIONS[name]
    q = kind(*double(*parameters))
    z = torch.tensor(place, dtype=torch.float64, requires_grad=True)
    below, above = log_tails(q, z)
    assert float(torch.logaddexp(below, above).detach().abs()) < 1e-14
    density = q.log_prob(z)
    for tail, sign in ((below, 1), (above, -1)):
        (slope,) = torch.autograd.grad(tail, z, retain_graph=True)
        torch.testing.assert_close(slope, sign * (density - tail).exp().detach(), rtol=1e-9, atol=0)


def test_arcs_from_the_opposite_of_zero():
    """Against a trapezoidal rule on a fine grid, exact for periodic functions but for its ends."""
    loc, k = 2.0, 1.5
    x = torch.linspace(-math.pi, math.pi, 200_001, dtype=torch.float64)
    density = (k * (x - loc).cos()).exp()
    mass = torch.cumulative_trapezoid(density, x)
    mass = mass / mass[-1]
    some = torch.tensor([10_000, 50_000, 100_000, 160_000, 195_000])
    below, above = log_arc_tails(x[some], *double(loc, k))
    torch.testing.assert_close(below.exp(), mass[some - 1], rtol=1e-8, atol=0)
    torch.testing.assert_close(above.exp(), 1 - mass[some - 1], rtol=1e-8, atol=1e-10)
