"""Steffensen's and Aitken's methods, against SciPy's and the formulas of the textbooks."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.solvers.systems import (
    CONTRACTION,
    COSINE,
    CUBIC,
    F64,
    KEPLER,
    System,
    check_bad_lanes,
    check_budget,
    check_derivative,
    check_float32,
    check_lanes,
    check_value,
    error,
    tensor,
)

LOGARITHM = System(
    "logarithm", "root", lambda z, t: torch.log(z) + t[0] * z - t[1], 3.0, [0.2, 0.9]
)
EXPONENTIAL = System("exponential", "root", lambda z, t: t[0] - torch.exp(z), 2.0, [3.0])
ARCTANGENT = System("arctangent", "root", lambda z, t: torch.atan(z - t[0]), 4.0, [0.5])
FALLING = System("falling", "fixed_point", lambda z, t: t[0] * torch.exp(-z), 0.5, [2.0])
EXPANDING = System("expanding", "fixed_point", lambda z, t: 2 * z + t[0], 0.0, [1.0])
SCALARS = [CUBIC, LOGARITHM, EXPONENTIAL, ARCTANGENT, COSINE, FALLING, EXPANDING]


@pytest.mark.parametrize("system", SCALARS, ids=str)
def test_value_and_derivative(system):
    check_value(system, ims.Steffensen())
    check_derivative(system, ims.Steffensen())


@pytest.mark.parametrize("system", [COSINE, FALLING, EXPANDING, KEPLER, CONTRACTION], ids=str)
@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_aitken_value_and_derivative(system, damping):
    check_value(system, ims.Aitken(damping=damping))
    check_derivative(system, ims.Aitken(damping=damping))


@pytest.mark.parametrize(
    "solver, system",
    [
        (ims.Steffensen(), CUBIC),
        (ims.Steffensen(), COSINE),
        (ims.Aitken(), COSINE),
        (ims.Aitken(), CONTRACTION),
    ],
    ids=["steffensen-cubic", "steffensen-cosine", "aitken-cosine", "aitken-contraction"],
)
class TestEverySolver:
    def test_float32(self, solver, system):
        check_float32(system, solver)

    def test_lanes_equal_the_loop_over_lanes(self, solver, system):
        check_lanes(system, solver)

    def test_budget(self, solver, system):
        check_budget(system, type(solver), 3)


@pytest.mark.parametrize(
    "kind, solver, n",
    [
        ("root", ims.Steffensen(), 1),
        ("fixed_point", ims.Steffensen(), 1),
        ("fixed_point", ims.Aitken(), 1),
        ("fixed_point", ims.Aitken(), 3),
    ],
    ids=["root-steffensen", "fixed_point-steffensen", "aitken-1", "aitken-3"],
)
def test_bad_lanes_stay_alone(kind, solver, n):
    check_bad_lanes(kind, solver, n)


@pytest.mark.parametrize("system", [CUBIC, LOGARITHM, EXPONENTIAL], ids=str)
def test_roots_of_scipys_newton(system):
    theta = tensor(system.theta)
    exact = scipy.optimize.newton(
        lambda x: float(system.fn(tensor(x), theta)), system.start, tol=1e-14
    )
    assert abs(float(system.solve(ims.Steffensen()).value) - exact) < 1e-10


def test_a_step_is_aitkens_formula():
    """``z - (g(z) - z)^2 / (g(g(z)) - 2 g(z) + z)``."""
    g = lambda z: 0.9 * torch.cos(z)
    z = tensor(0.7)
    for steps in range(1, 4):
        z = z - (g(z) - z) ** 2 / (g(g(z)) - 2 * g(z) + z)
        solver = ims.Steffensen(rtol=None, max_steps=steps, reach=1e3)
        sol = ims.fixed_point(g, tensor(0.7), solver=solver)
        # the increment is at least sqrt(eps), where the textbook's loses its digits
        assert error(sol.value, z) < 1e-12


def test_steps_are_scipys():
    """SciPy's ``fixed_point`` makes the same steps."""
    seen = []

    def g(x):
        seen.append(float(x))
        return 0.9 * np.cos(x)

    scipy.optimize.fixed_point(g, 0.7, xtol=1e-12)
    iterates = seen[::2]
    for steps, iterate in enumerate(iterates[1:4], 1):
        solver = ims.Steffensen(rtol=None, max_steps=steps, reach=1e3)
        sol = ims.fixed_point(lambda z: 0.9 * torch.cos(z), tensor(0.7), solver=solver)
        assert abs(float(sol.value) - iterate) < 1e-12


def test_steffensen_is_quadratic():
    root = float(CUBIC.reference())
    errors = []
    for steps in range(1, 6):
        sol = CUBIC.solve(ims.Steffensen(rtol=None, max_steps=steps), z0=tensor(1.4))
        errors.append(abs(float(sol.value) - root))
    assert all(b <= 20 * a**2 + 1e-15 for a, b in itertools.pairwise(errors)) and errors[-1] < 1e-14


def test_aitkens_second_step_is_delta_squared():
    """Of two iterates and their images; then it is the secant method on ``z - g(z)``."""
    g = lambda z: torch.exp(-z)
    z0 = tensor(0.3)
    z1 = g(z0)
    z2 = g(z1)
    expected = z0 - (z1 - z0) ** 2 / (z2 - 2 * z1 + z0)
    sol = ims.fixed_point(g, z0, solver=ims.Aitken(rtol=None, max_steps=2))
    assert error(sol.value, expected) < 1e-14
    f = lambda z: z - g(z)
    third = expected - f(expected) * (expected - z1) / (f(expected) - f(z1))
    sol = ims.fixed_point(g, z0, solver=ims.Aitken(rtol=None, max_steps=3))
    assert error(sol.value, third) < 1e-13


@pytest.mark.parametrize("system", [COSINE, FALLING, CONTRACTION], ids=str)
def test_aitken_is_faster_than_picard(system):
    picard = ims.FixedPointIteration(damping=0.7)
    assert int(system.solve(ims.Aitken()).iterations) < int(system.solve(picard).iterations)


def test_a_relaxation_that_misleads_is_taken_back():
    """A jump in the slope sends the third iterate far away; the lane goes on from the second."""
    g = lambda z: torch.where(z < 1, 0.9 * z + 0.2, 0.1 * z + 1)
    values = [
        ims.fixed_point(g, tensor(0.0), solver=ims.Aitken(rtol=None, max_steps=k, growth=0.5)).value
        for k in range(5)
    ]
    taken_back = [torch.equal(a, b) for a, b in itertools.pairwise(values)]
    assert any(taken_back) and not taken_back[0]
    at = taken_back.index(True)
    # a plain step follows
    assert error(values[at + 2], g(values[at + 1])) < 1e-14
    sol = ims.fixed_point(g, tensor(0.0), solver=ims.Aitken())
    assert error(sol.value, tensor(10 / 9)) < 1e-10


def test_native_lanes_and_vmap_make_elements_lanes():
    a = tensor([2.0, 9.0, 0.25])
    f = lambda z, a: z**2 - a
    by_vmap = vmap(lambda a: ims.root(f, a, (a,), solver=ims.Steffensen()).value)(a)
    native = ims.root(f, a, (a,), solver=ims.Steffensen(), batch_dims=1, in_dims=(0,)).value
    assert error(by_vmap, a.sqrt()) < 1e-12 and error(native, a.sqrt()) < 1e-12


@pytest.mark.parametrize("shape", [(2,), (3, 1)])
def test_more_than_one_unknown_is_refused(shape):
    n = torch.Size(shape).numel()
    with pytest.raises(ValueError, match=f"one unknown, and z0 has {n} in a lane.*vmap or batch_d"):
        ims.root(lambda z: z - 1, torch.zeros(shape), solver=ims.Steffensen())
    one = ims.root(lambda z: z - 1, torch.zeros(1, 1, dtype=F64), solver=ims.Steffensen())
    assert error(one.value, torch.ones(1, 1, dtype=F64)) < 1e-12


@pytest.mark.parametrize("reach", [0.0, -1.0, float("nan")])
def test_reach_has_to_be_positive(reach):
    with pytest.raises(ValueError, match="reach.*pass a number > 0"):
        ims.Steffensen(reach=reach)


ENDS = [
    ("no-root", lambda z: z**2 + 1, 1.3, {"STALLED", "MAX_STEPS", "SINGULAR"}),
    ("flat", lambda z: 0 * z + 1, 1.0, {"SINGULAR"}),
    ("nan-around", lambda z: torch.where(z == 1, z, torch.nan), 1.0, {"STALLED"}),
    ("nan", lambda z: z * torch.nan, 1.0, {"NONFINITE"}),
]


@pytest.mark.parametrize("f, start, names", [c[1:] for c in ENDS], ids=[c[0] for c in ENDS])
def test_honest_failure(f, start, names):
    sol = ims.root(f, tensor(start), solver=ims.Steffensen(), on_failure="mask")
    assert Status(int(sol.status)).name in names and not bool(sol.converged)


@pytest.mark.parametrize(
    "f, start, exact",
    [
        (torch.log, 20.0, 1.0),
        (lambda z: torch.log(z) + 5, 0.05, float(np.exp(-5))),
        (lambda z: torch.sqrt(z) - 0.1, 4.0, 0.01),
        (lambda z: torch.exp(z) - 1, 5.0, 0.0),
    ],
    ids=["log", "log-near-zero", "sqrt", "exp-far"],
)
def test_quotients_and_steps_stay_in_the_domain(f, start, exact):
    """The increment or the full step leads to NaN, or to where the function is flat."""
    sol = ims.root(f, tensor(start), solver=ims.Steffensen())
    assert error(sol.value, tensor(exact)) < 1e-10


def test_no_fixed_point():
    sol = ims.fixed_point(
        lambda z: z + 1, tensor(0.0), solver=ims.Aitken(max_steps=50), on_failure="mask"
    )
    assert int(sol.status) == Status.MAX_STEPS and float(sol.residual) == 1
