"""Bracketing solvers: brackets given and searched for, and how a lane ends; against SciPy."""

import math

import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.solvers.systems import F32, F64, tensor

SOLVERS = [ims.Bisection(), ims.Chandrupatla()]
CASES = {
    "cubic": (lambda z, a: z**3 - a, 0.0, 10.0, 5.0),
    "kepler": (lambda z, a: z - a * torch.sin(z) - 0.3, 0.0, 3.0, 0.95),
    "exponential": (lambda z, a: torch.exp(z) - a, -20.0, 20.0, 1e3),
    "flat": (lambda z, a: (z - a) ** 5, -1.0, 8.0, 2.0),
    "logarithm": (lambda z, a: torch.log(z) + a, 1e-30, 9.0, 20.0),
    "ends swapped": (lambda z, a: a - z * torch.atan(z), 10.0, 0.1, 1.5),
    "infinite at an end": (lambda z, a: torch.log(z) + a, 0.0, 1.0, 3.0),
}


@pytest.fixture(params=SOLVERS, ids=lambda s: type(s).__name__)
def solver(request):
    return request.param


def within(fn, lo, hi, *args, **options):
    return ims.root(fn, None, args, bracket=(tensor(lo), hi), **options)


@pytest.mark.parametrize("name", CASES)
def test_value_against_brentq(solver, name):
    fn, lo, hi, a = CASES[name]
    expected = scipy.optimize.brentq(
        lambda z: float(fn(tensor(z), a)), max(lo, 1e-300) if lo == 0 else lo, hi,
        xtol=1e-15, rtol=1e-14, maxiter=1000,
    )  # fmt: skip
    sol = within(fn, lo, hi, tensor(a), solver=solver)
    # a root of multiplicity m is found to the m-th root of the tolerance
    tolerance = (4e-12 * max(1, abs(expected))) ** (0.2 if name == "flat" else 1)
    assert abs(float(sol.value) - expected) <= tolerance and bool(sol.converged)


def test_chandrupatla_takes_a_fraction_of_the_steps_of_bisection():
    steps = [int(within(*CASES["kepler"], solver=s).iterations) for s in SOLVERS]
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
        sol = within(fn, root - left, root + right, solver=solver)
        # beside ends that are far away, a root near zero is zero
        bound = 1.9e-12 * max(abs(root), left, right)
        assert abs(float(sol.value) - root) <= bound
        assert root - left <= float(sol.value) <= root + right and bool(sol.converged)


@given(*[st.floats(-1e4, 1e4).filter(lambda z: not 0 < abs(z) < 1e-9)] * 2)
def test_a_bracket_is_searched_for(root, start):
    for solver in SOLVERS:
        sol = ims.root(lambda z: torch.atan(z - root), tensor(start), solver=solver)
        assert abs(float(sol.value) - root) <= 3e-12 * max(abs(root), abs(start))


def test_the_search_for_a_bracket_stays_in_the_domain(solver):
    for fn, start, exact in (
        (lambda z: torch.log(z) - math.log(1e-9), 1.0, 1e-9),
        (lambda z: torch.sqrt(3 - z) - 0.1, 0.0, 2.99),
    ):
        sol = ims.root(fn, tensor(start), solver=solver)
        torch.testing.assert_close(sol.value, tensor(exact), rtol=1e-10, atol=0)


def test_lanes_end_on_their_own(solver):
    a = tensor([8.0, 27.0, -1.0, math.nan, 0.0])
    fn = lambda z, a: z * z * z.abs() - a
    options = {"solver": solver, "on_failure": "mask"}
    sol = within(fn, [0.0] * 5, torch.full((5,), 9.0, dtype=F64), a, batch_dims=1, in_dims=(0,),
                 **options)  # fmt: skip
    assert sol.status.tolist() == [0, 0, Status.BRACKET, Status.NONFINITE, 0]
    torch.testing.assert_close(sol.value[[0, 1, 4]], tensor([2.0, 3.0, 0.0]))
    for i in range(5):
        alone = within(fn, 0.0, 9.0, a[i], **options)
        assert int(alone.status) == int(sol.status[i])
        assert int(alone.iterations) == int(sol.iterations[i])
        torch.testing.assert_close(alone.value, sol.value[i], equal_nan=True)


def test_derivatives_with_a_bracket_that_depends_on_the_parameter(solver):
    def cube_root(a):
        bracket = (0 * a, a + 1)
        return ims.root(lambda z, a: z**3 - a, None, (a,), bracket=bracket, solver=solver).value

    a = tensor([0.5, 1.0, 8.0])
    first, second = a ** (-2 / 3) / 3, -2 / 9 * a ** (-5 / 3)
    for derivative, exact in ((grad, first), (jacfwd, first), (jacrev, first), (hessian, second)):
        got = vmap(derivative(cube_root))(a)
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=0)
    a.requires_grad_()
    fn = lambda z, a: z**3 - a
    sol = ims.root(fn, None, (a,), bracket=(0 * a, 9.0), batch_dims=1, solver=solver)
    torch.testing.assert_close(torch.autograd.grad(sol.value.sum(), a)[0], first, rtol=1e-9, atol=0)


def test_the_bracket_gets_no_gradient(solver):
    hi, a = tensor(3.0).requires_grad_(), tensor(2.0).requires_grad_()
    value = ims.root(lambda z, a: z**2 - a, None, (a,), bracket=(0 * hi, hi), solver=solver).value
    assert torch.autograd.grad(value, hi, allow_unused=True, retain_graph=True)[0] is None
    torch.testing.assert_close(torch.autograd.grad(value, a)[0], tensor(0.125**0.5))


JUMPS = {
    "pole": (lambda z: 1 / (z - 0.3), Status.BRACKET),
    "jump": (lambda z: torch.sign(z - 0.3) + 0.5 + z, Status.STALLED),
    "jump between slopes": (
        lambda z: z - 0.3 + torch.where(z < 0.3, -0.02, 0.02),
        Status.STALLED,
    ),
    "jump of a step": (lambda z: torch.where(z < 0.3, -40.0, 20.0), Status.STALLED),
    "stairs": (lambda z: 1e7 * torch.log(1 + 1e-7 * z.float()).to(z) - 0.3, Status.STALLED),
    "nan on the way": (
        lambda z: torch.where((z - 0.5).abs() < 0.01, torch.nan, z - 0.505),
        Status.NONFINITE,
    ),
}


@pytest.mark.parametrize("end", [1.0, 1e4, 1e8, "infinite"])
@pytest.mark.parametrize("name", JUMPS)
def test_a_change_of_sign_that_is_no_root(solver, name, end):
    fn, status = JUMPS[name]
    far = (lambda z: torch.where(z == 2, torch.inf, z)) if end == "infinite" else torch.square
    wide = lambda z: torch.where(z > 1, fn(torch.ones_like(z)) + far(z) - 1, fn(z))
    sol = within(wide, 0.0, 2.0 if end == "infinite" else end, solver=solver, on_failure="mask")
    assert int(sol.status) == status and not bool(sol.converged)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", [F32, F64])
@given(root=st.floats(0.1, 1), noise=st.floats(0, 2), seed=st.integers(0, 100))
def test_rounding_of_the_function_is_in_the_error(solver, dtype, root, noise, seed):
    """What oscillates quicker than roots are told apart stands for rounding."""
    unit = torch.finfo(dtype).eps
    size = 10**noise * unit
    fn = lambda z: z - root + size * torch.sin(z / unit * (7 + seed))
    ends = tensor(0.0, dtype), 10.0
    sol = ims.root(fn, None, bracket=ends, solver=solver, on_failure="mask")
    # at a change of sign by chance, values may have come nearer by chance, too
    assert abs(float(sol.value) - root) <= max(100 * float(sol.error), 8 * unit)
    assert not sol.converged or float(sol.error) <= 2 * unit**0.5


@pytest.mark.parametrize("dtype", [F32, F64])
def test_ends_at_the_edge_of_the_dtype(solver, dtype):
    ends = (tensor(-1e30, dtype), 0.3e30)
    far = ims.root(torch.atan, None, bracket=ends, solver=solver)
    # beside ends that are far away, this is zero
    assert far.value.dtype == dtype and abs(float(far.value)) <= 1e-5 * 1e30
    largest = torch.finfo(dtype).max
    ends = (tensor(-largest, dtype), largest / 2)
    halved = ims.root(torch.atan, None, bracket=ends, solver=solver, on_failure="mask")
    # |atan| is far below rtol |z| at the ends, which must not pass for a root
    assert not halved.converged or abs(float(halved.value)) <= 1e-5 * largest
    ends = (-math.inf, 1.0)
    infinite = ims.root(torch.atan, tensor(0.0), bracket=ends, solver=solver, on_failure="mask")
    assert int(infinite.status) == Status.NONFINITE


def test_a_root_at_an_end_takes_no_step(solver):
    sol = within(lambda z: z - 1, 1.0, 2.0, solver=solver)
    assert float(sol.value) == 1.0 and int(sol.iterations) == 0


def test_a_budget_halves_exactly_so_often():
    sol = within(lambda z: z - 0.3, 0.0, 1.0, solver=ims.Bisection(max_steps=10, rtol=None))
    assert int(sol.status) == Status.BUDGET and int(sol.iterations) == 10
    assert abs(float(sol.value) - 0.3) <= 2.0**-10


def test_pytrees_shared_ends_and_empty_batches(solver):
    a, ends = tensor([4.0, 9.0]), ({"x": tensor(0.0)}, {"x": tensor(5.0)})
    fn = lambda z, a: {"x": z["x"] ** 2 - a}
    sol = vmap(lambda a: ims.root(fn, None, (a,), bracket=ends, solver=solver))(a)
    torch.testing.assert_close(sol.value["x"], tensor([2.0, 3.0]))
    sol = within(lambda z: z, [], 1.0, batch_dims=1, solver=solver)
    assert sol.value.shape == sol.status.shape == (0,)


def test_the_first_bracket_found_stays_while_other_lanes_search(solver):
    fn = lambda z, a: torch.cos(a * z) - 0.2
    a, zeros = tensor([1.0, 1e-6]), torch.zeros(2, dtype=F64)
    both = ims.root(fn, zeros, (a,), batch_dims=1, in_dims=(0,), solver=solver)
    alone = ims.root(fn, zeros[0], (a[0],), solver=solver)
    torch.testing.assert_close(both.value[0], alone.value)
    assert abs(float(both.value[0])) < 1.5 and abs(float(both.value[1])) > 1e6


def test_the_last_bits_are_bisected():
    assert float(within(lambda z: z**3 - 1e6, 0.0, 1e3).value) == 100.0
