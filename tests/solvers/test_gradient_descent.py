"""Gradient descent: fixed steps, and lengths found by a line search."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.solvers.objectives import (
    BARRIER,
    F32,
    F64,
    HIMMELBLAU,
    LOGISTIC,
    UNBOUNDED,
    error,
    lanes_are_alone,
    tensor,
)

SEARCHES = {"armijo": ims.Backtracking(), "wolfe": ims.StrongWolfe(curvature=0.5)}
searches = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)


@searches
@pytest.mark.parametrize("objective", [HIMMELBLAU, LOGISTIC, BARRIER], ids=str)
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_value(objective, search, dtype):
    """Where a fixed step of 1 would diverge (but for the logistic regression)."""
    options = {"atol": 1e-3 if objective is HIMMELBLAU else 1e-5, "rtol": 0.0}
    solver = ims.GradientDescent(
        1.0, line_search=search, max_steps=1000, **(options if dtype == F32 else {})
    )
    sol = objective.solve(solver, dtype)
    assert sol.value.dtype == dtype and int(sol.status) == Status.CONVERGED
    assert error(sol.value, objective.minimum) < (1e-9 if dtype == F64 else 1e-3)


def test_fixed_steps_are_the_recursion():
    d, z, v = np.array([1.0, 4.0, 9.0]), np.ones(3), np.zeros(3)
    for _ in range(16):
        v = 0.3 * v - 0.1 * (d * z - 1)
        z = z + v
    fn = lambda z: (0.5 * torch.from_numpy(d) * z**2 - z).sum()
    solver = ims.GradientDescent(lr=0.1, max_steps=16, rtol=None, momentum=0.3)
    sol = ims.minimize(fn, torch.ones(3, dtype=F64), solver=solver)
    assert error(sol.value, torch.from_numpy(z)) < 1e-14


def test_backtracking_steps_are_armijos():
    """From the length ``lr`` in each step, against the rule written out in NumPy."""
    d, z = np.array([1.0, 40.0]), np.array([1.0, -0.3])
    f, slope = lambda z: 0.5 * (d * z**2).sum() - z.sum(), lambda z: d * z - 1
    for _ in range(6):
        g, t = slope(z), 0.7
        while f(z - t * g) > f(z) - 1e-4 * t * (g @ g):
            t /= 2
        z = z - t * g
    solver = ims.GradientDescent(0.7, line_search=ims.Backtracking(), max_steps=6, rtol=None)
    fn = lambda z: (0.5 * torch.from_numpy(d) * z**2 - z).sum()
    sol = ims.minimize(fn, tensor([1.0, -0.3]), solver=solver)
    assert error(sol.value, torch.from_numpy(z)) < 1e-13


@searches
def test_least_squares(search):
    t, y = torch.linspace(0, 1, 6, dtype=F64), tensor([1.0, 1.2, 1.5, 1.7, 2.2, 2.7])
    residuals = lambda z: torch.exp(z * t) - y
    solver = ims.GradientDescent(1.0, line_search=search)
    sol = ims.least_squares(residuals, tensor(0.0), solver=solver)
    assert error(sol.value, ims.least_squares(residuals, tensor(0.0)).value) < 1e-10


@searches
@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded_below_is_a_failure(search, name):
    solver = ims.GradientDescent(0.1, line_search=search, max_steps=200)
    sol = ims.minimize(
        lambda z: UNBOUNDED[name](z, tensor([1.0])), tensor([0.5, 2.0]), solver=solver,
        on_failure="mask",
    )  # fmt: skip
    assert int(sol.status) > Status.BUDGET and not bool(sol.converged)


@searches
def test_lanes_are_alone(search):
    lanes_are_alone(LOGISTIC, ims.GradientDescent(4.0, line_search=search))


@searches
def test_derivative(search):
    theta = tensor(LOGISTIC.theta)
    solver = ims.GradientDescent(4.0, line_search=search)
    exact = LOGISTIC.derivative(LOGISTIC.minimum, theta)
    for mode in (jacrev, jacfwd):
        ours = mode(lambda t: LOGISTIC.solve(solver, theta=t).value)(theta)
        assert error(ours, exact) < 1e-7


@searches
def test_budget(search):
    """At the solution too, where no step goes down."""
    solver = ims.GradientDescent(1.0, line_search=search, rtol=None, max_steps=5)
    for start in (tensor(0.5), tensor(1.0)):
        sol = ims.minimize(lambda z: (z - 1) ** 2, start, solver=solver)
        assert int(sol.status) == Status.BUDGET and int(sol.iterations) == 5
        assert error(sol.value, tensor(1.0)) < 1e-6


@searches
def test_not_finite(search):
    solver = ims.GradientDescent(line_search=search)
    fn = lambda z: torch.log(z) ** 2
    sol = vmap(lambda z: ims.minimize(fn, z, solver=solver, on_failure="mask"))(
        tensor([3.0, -1.0, math.nan])
    )
    assert sol.status.tolist() == [0, Status.NONFINITE, Status.NONFINITE]
    assert error(sol.value[0], tensor(1.0)) < 1e-10


def test_unrolling_is_for_fixed_steps():
    a = tensor(1.5).requires_grad_()
    fn = lambda z, a: 0.5 * (z - a) ** 2
    options = {"rtol": None, "max_steps": 3}
    unrolled = ims.UnrolledAdjoint()
    sol = ims.minimize(
        fn, tensor(0.0), (a,), solver=ims.GradientDescent(0.1, **options), adjoint=unrolled
    )
    (slope,) = torch.autograd.grad(sol.value, a)
    assert error(slope, tensor(1 - 0.9**3)) < 1e-14
    searched = ims.GradientDescent(0.1, line_search=ims.Backtracking(), **options)
    with pytest.raises(ValueError, match="UnrolledAdjoint.*GradientDescent"):
        ims.minimize(fn, tensor(0.0), (a,), solver=searched, adjoint=unrolled)


def test_momentum_with_a_line_search_is_refused():
    with pytest.raises(ValueError, match="momentum=0.5 and a line_search"):
        ims.GradientDescent(momentum=0.5, line_search=ims.Backtracking())


def test_solver_is_a_value():
    solver = ims.GradientDescent(0.3, line_search=ims.StrongWolfe())
    copy = pickle.loads(pickle.dumps(solver))
    assert copy == solver and hash(copy) == hash(solver) and copy != ims.GradientDescent(0.3)
