"""Bracketing solvers, against SciPy's ``brentq`` and ``bisect``, lane by lane."""

import math

import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status

F32, F64 = torch.float32, torch.float64
SOLVERS = [ims.Bisection(), ims.Chandrupatla()]
CASES = {
    "cubic": (lambda z, a: z**3 - a, 0.0, 10.0, 5.0),
    "kepler": (lambda z, a: z - a * torch.sin(z) - 0.3, 0.0, 3.0, 0.95),
    "exponential": (lambda z, a: torch.exp(z) - a, -20.0, 20.0, 1e3),
    "flat": (lambda z, a: (z - a) ** 5, -1.0, 8.0, 2.0),
    "logarithm": (lambda z, a: torch.log(z) + a, 1e-30, 9.0, 20.0),
    "ends swapped": (lambda z, a: a - z * torch.atan(z), 10.0, 0.1, 1.5),
}


@pytest.fixture(params=SOLVERS, ids=lambda s: type(s).__name__)
def solver(request):
    return request.param


def scalar(value, dtype=F64):
    return torch.tensor(value, dtype=dtype)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_against_brentq(solver, case):
    fn, lo, hi, a = case
    expected = scipy.optimize.brentq(
        lambda z: float(fn(scalar(z), a)), lo, hi, xtol=1e-15, rtol=1e-14, maxiter=1000
    )
    sol = ims.root(fn, None, (scalar(a),), bracket=(scalar(lo), scalar(hi)), solver=solver)
    # a root of multiplicity m is found to the m-th root of the tolerance
    multiplicity = 5 if fn is CASES["flat"][0] else 1
    tolerance = (4e-12 * max(1, abs(expected))) ** (1 / multiplicity)
    assert abs(float(sol.value) - expected) <= tolerance
    assert bool(sol.converged)


def test_chandrupatla_takes_a_fraction_of_the_steps_of_bisection():
    fn, lo, hi, a = CASES["kepler"]
    steps = [
        int(ims.root(fn, None, (a,), bracket=(scalar(lo), scalar(hi)), solver=s).iterations)
        for s in SOLVERS
    ]
    assert steps[1] < steps[0] / 3


@given(
    root=st.floats(-50, 50),
    left=st.floats(0.01, 100),
    right=st.floats(0.01, 100),
    power=st.sampled_from([1, 3]),
    slope=st.floats(0.1, 10),
)
def test_drawn_brackets(root, left, right, power, slope):
    def fn(z):
        return slope * ((z - root) + torch.sinh((z - root) / 50) ** power)

    for solver in SOLVERS:
        sol = ims.root(fn, None, bracket=(scalar(root - left), scalar(root + right)), solver=solver)
        # |f| is at least slope |z - root|
        bound = 1.9e-12 * (1 + abs(root)) / slope + 4e-16 * abs(root)
        assert abs(float(sol.value) - root) <= bound
        assert root - left <= float(sol.value) <= root + right
        assert bool(sol.converged)


@given(root=st.floats(-1e4, 1e4), start=st.floats(-1e4, 1e4))
def test_a_bracket_is_searched_for(root, start):
    def fn(z):
        return torch.atan(z - root)

    for solver in SOLVERS:
        sol = ims.root(fn, scalar(start), solver=solver)
        assert abs(float(sol.value) - root) <= 3e-12 * (1 + abs(root))


def test_the_search_for_a_bracket_stays_in_the_domain(solver):
    a = scalar(1e-9)
    sol = ims.root(lambda z: torch.log(z) - torch.log(a), scalar(1.0), solver=solver)
    torch.testing.assert_close(sol.value, a, rtol=1e-10, atol=0)
    sol = ims.root(lambda z: torch.sqrt(3 - z) - 0.1, scalar(0.0), solver=solver)
    torch.testing.assert_close(sol.value, scalar(2.99), rtol=1e-10, atol=0)


def test_lanes_end_on_their_own(solver):
    a = scalar([8.0, 27.0, -1.0, math.nan, 0.0])

    def fn(z, a):
        return z * z * z.abs() - a

    bracket = (torch.zeros(5, dtype=F64), torch.full((5,), 9.0, dtype=F64))
    options = {"bracket": bracket, "solver": solver, "on_failure": "mask"}
    sol = ims.root(fn, None, (a,), batch_dims=1, in_dims=(0,), **options)
    assert sol.status.tolist() == [0, 0, Status.BRACKET, Status.NONFINITE, 0]
    torch.testing.assert_close(sol.value[[0, 1, 4]], scalar([2.0, 3.0, 0.0]))
    for i in range(5):
        alone = ims.root(
            fn, None, (a[i],), bracket=(scalar(0.0), 9.0), solver=solver, on_failure="mask"
        )
        assert int(alone.status) == int(sol.status[i])
        assert int(alone.iterations) == int(sol.iterations[i])
        torch.testing.assert_close(alone.value, sol.value[i], equal_nan=True)


def test_derivatives_of_every_kind(solver):
    def cube_root(a):
        return ims.root(lambda z, a: z**3 - a, None, (a,), bracket=(0 * a, a + 1), solver=solver)

    a = scalar([0.5, 1.0, 8.0])
    first, second = a ** (-2 / 3) / 3, -2 / 9 * a ** (-5 / 3)
    for derivative in (grad, jacfwd, jacrev):
        got = vmap(derivative(lambda a: cube_root(a).value))(a)
        torch.testing.assert_close(got, first, rtol=1e-9, atol=0)
    got = vmap(hessian(lambda a: cube_root(a).value))(a)
    torch.testing.assert_close(got, second, rtol=1e-9, atol=0)
    a.requires_grad_()
    sol = ims.root(
        lambda z, a: z**3 - a, None, (a,), bracket=(0 * a, 9.0), batch_dims=1, solver=solver
    )
    assert torch.autograd.gradcheck(
        lambda a: (
            ims.root(
                lambda z, a: z**3 - a, None, (a,), bracket=(0 * a, 9.0), batch_dims=1, solver=solver
            ).value
        ),
        (a,),
        check_forward_ad=True,
        check_batched_grad=True,
    )
    torch.testing.assert_close(torch.autograd.grad(sol.value.sum(), a)[0], first, rtol=1e-9, atol=0)


def test_the_bracket_gets_no_gradient(solver):
    hi = scalar(3.0).requires_grad_()
    a = scalar(2.0).requires_grad_()
    value = ims.root(lambda z, a: z**2 - a, None, (a,), bracket=(0 * hi, hi), solver=solver).value
    assert torch.autograd.grad(value, hi, allow_unused=True, retain_graph=True)[0] is None
    torch.testing.assert_close(torch.autograd.grad(value, a)[0], scalar(0.125**0.5))


def test_a_pole_is_no_root(solver):
    sol = ims.root(
        lambda z: 1 / (z - 0.3), None, bracket=(scalar(0.0), 1.0), solver=solver, on_failure="mask"
    )
    assert int(sol.status) == Status.STALLED and not bool(sol.converged)
    with pytest.raises(ims.ConvergenceError, match="STALLED"):
        ims.root(lambda z: torch.sign(z - 0.3) + 0.5, None, bracket=(scalar(0.0), 1.0))


def test_no_sign_change_is_an_error_that_says_what_to_pass(solver):
    with pytest.raises(ims.ConvergenceError, match=r"BRACKET.*pass bracket=\(lo, hi\)"):
        ims.root(lambda z: z**2 + 1, None, bracket=(scalar(-1.0), 1.0), solver=solver)
    with pytest.raises(ims.ConvergenceError, match="BRACKET"):
        ims.root(lambda z: z**2 + 1, scalar(0.5), solver=solver)


def test_nan_on_the_way_ends_the_lane(solver):
    def fn(z):
        return torch.where((z - 0.5).abs() < 0.01, torch.nan, z - 0.505)

    sol = ims.root(fn, None, bracket=(scalar(0.0), 1.0), solver=solver, on_failure="mask")
    assert int(sol.status) == Status.NONFINITE


@pytest.mark.parametrize("dtype", [F32, F64])
def test_ends_at_the_edge_of_the_dtype(solver, dtype):
    far = ims.root(torch.atan, None, bracket=(scalar(-1e30, dtype), 0.3e30), solver=solver)
    assert far.value.dtype == dtype and abs(float(far.value)) <= 1e-5
    largest = torch.finfo(dtype).max
    halved = ims.root(
        torch.atan,
        None,
        bracket=(scalar(-largest, dtype), largest / 2),
        solver=solver,
        on_failure="mask",
    )
    # |atan| is far below rtol |z| at the ends, which must not pass for a root
    assert bool(halved.converged) == (abs(float(halved.value)) <= 1e-5)
    infinite = ims.root(
        torch.atan, scalar(0.0), bracket=(-math.inf, 1.0), solver=solver, on_failure="mask"
    )
    assert int(infinite.status) == Status.NONFINITE


def test_a_root_at_an_end_takes_no_step(solver):
    sol = ims.root(lambda z: z - 1, None, bracket=(scalar(1.0), 2.0), solver=solver)
    assert float(sol.value) == 1.0 and int(sol.iterations) == 0


def test_a_function_that_is_infinite_at_an_end(solver):
    sol = ims.root(lambda z: torch.log(z) + 3, None, bracket=(scalar(0.0), 1.0), solver=solver)
    torch.testing.assert_close(sol.value, scalar(math.exp(-3)), rtol=1e-10, atol=0)


def test_a_budget_halves_exactly_so_often():
    budget = ims.Bisection(max_steps=10, rtol=None)
    sol = ims.root(lambda z: z - 0.3, None, bracket=(scalar(0.0), 1.0), solver=budget)
    assert int(sol.status) == Status.BUDGET and int(sol.iterations) == 10
    assert abs(float(sol.value) - 0.3) <= 2.0**-10


def test_fixed_points(solver):
    sol = ims.fixed_point(torch.cos, scalar(0.0), solver=solver)
    torch.testing.assert_close(sol.value, scalar(0.7390851332151607), rtol=1e-11, atol=0)


def test_pytrees_shared_ends_and_empty_batches(solver):
    a = scalar([4.0, 9.0])
    ends = ({"x": scalar(0.0)}, {"x": scalar(5.0)})
    sol = vmap(
        lambda a: ims.root(
            lambda z, a: {"x": z["x"] ** 2 - a}, None, (a,), bracket=ends, solver=solver
        )
    )(a)
    torch.testing.assert_close(sol.value["x"], scalar([2.0, 3.0]))
    empty = torch.zeros(0, dtype=F64)
    sol = ims.root(lambda z: z, None, bracket=(empty, 1.0), batch_dims=1, solver=solver)
    assert sol.value.shape == sol.status.shape == (0,)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"bracket": 1.0}, TypeError, "bracket is 1.0: pass a pair"),
        ({"bracket": (0.0, 1.0), "z0": None}, TypeError, "bracket.0. is no tensor"),
        ({"bracket": (torch.tensor(0), 1)}, TypeError, "bracket.0. is torch.int64"),
        ({"bracket": (torch.zeros(1), 1)}, TypeError, "float32.*where z0 is torch.float64"),
        ({"bracket": (torch.zeros(3, dtype=F64), 1.0)}, ValueError, r"shape \(3,\) where z0"),
        ({"bracket": ([0.0], 1.0)}, ValueError, "structure"),
        ({"solver": ims.Newton()}, ValueError, "does not use one.*Chandrupatla"),
        ({"z0": torch.zeros(2, dtype=F64)}, ValueError, "2 unknowns.*batch_dims or vmap"),
        ({"z0": torch.tensor(1), "bracket": (0, 1)}, TypeError, "z0 has dtype torch.int64"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_brackets(change, error, message):
    arguments = {"z0": scalar(0.5), "bracket": (0.0, 1.0), **change}
    with pytest.raises(error, match=message):
        ims.root(lambda z: z - 0.3, **arguments)


def test_the_first_bracket_found_stays_while_other_lanes_search(solver):
    def fn(z, a, c):
        return torch.cos(a * z) - c

    a, c = scalar([1.0, 1e-6]), scalar([0.2, 0.2])
    zeros = torch.zeros(2, dtype=F64)
    both = ims.root(fn, zeros, (a, c), batch_dims=1, in_dims=(0, 0), solver=solver)
    alone = ims.root(fn, zeros[0], (a[0], c[0]), solver=solver)
    torch.testing.assert_close(both.value[0], alone.value)
    assert abs(float(both.value[0])) < 1.5 and abs(float(both.value[1])) > 1e6


def test_the_last_bits_are_bisected():
    a = scalar(1e6)
    sol = ims.root(lambda z, a: z**3 - a, None, (a,), bracket=(scalar(0.0), 1e3))
    assert float(sol.value) == 100.0
