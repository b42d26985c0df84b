"""Newton with conjugate gradients: minima against SciPy's, saddles, and what a step costs."""

import math

import pytest
import torch
from torch.func import hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.linear.lane_map import LaneMap
from tests.solvers.objectives import (
    BARRIER,
    BEALE,
    F32,
    F64,
    HIMMELBLAU,
    LOGISTIC,
    OBJECTIVES,
    ROSENBROCK,
    UNBOUNDED,
    by_scipy,
    error,
    lanes_are_alone,
    tensor,
)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_value(objective, dtype):
    loose = dtype == F32 and objective.float32_atol is not None
    solver = ims.NewtonCG(atol=objective.float32_atol, rtol=0.0) if loose else ims.NewtonCG()
    sol = objective.solve(solver, dtype)
    assert sol.value.dtype == dtype and int(sol.status) == Status.CONVERGED
    assert error(sol.value, objective.minimum) < (1e-9 if dtype == F64 else 1e-3)


# -- negative curvature --------------------------------------------------------------------------

SADDLES = {
    "double-well": lambda z: z[0] ** 4 - z[0] ** 2 + z[1] ** 2,
    "double-well-flat": lambda z: z[0] ** 4 - 1e-4 * z[0] ** 2 + z[1] ** 2,
    "double-well-steep": lambda z: 1e3 * (z[0] ** 4 - z[0] ** 2) + z[1] ** 2,
    "monkey": lambda z: z[0] ** 3 - 3 * z[0] * z[1] ** 2 + (z**2).sum() ** 2,
    "hill": lambda z: 0.25 * (z**4).sum() - 0.5 * (z**2).sum() + 0.1 * z[0] * z[1],
}


@pytest.mark.parametrize("name", SADDLES)
@pytest.mark.parametrize("start", [[1e-2, 1.0], [1e-6, 1e-3], [-1e-5, 2e-5]], ids=str)
def test_a_minimum_is_found_from_beside_a_saddle(name, start):
    fn = SADDLES[name]
    sol = ims.minimize(fn, tensor(start), solver=ims.NewtonCG())
    assert torch.linalg.eigvalsh(hessian(fn)(sol.value)).min() > 0
    assert int(sol.iterations) < 60
    # SciPy finds its own minimum, the same or a mirrored one: the values agree
    theirs = by_scipy(fn, start, "trust-exact", gtol=1e-12)
    assert abs(float(fn(sol.value)) - theirs.fun) < 1e-9 * max(1, abs(theirs.fun))


def test_the_distance_from_a_saddle_doubles():
    """Whatever the curvature; the last of a few steps is 2^k times as far as the start."""
    for curvature in (1e-3, 1.0, 1e3):
        for steps in (1, 2, 5):
            solver = ims.NewtonCG(rtol=None, max_steps=steps)
            fn = lambda z, c=curvature: c * (z[1] ** 2 - z[0] ** 2)
            sol = ims.minimize(fn, tensor([1e-6, 0.0]), solver=solver)
            assert error(sol.value / 1e-6, tensor([2.0**steps, 0.0])) < 1e-9


def test_a_stationary_start_counts_as_solved():
    """A saddle and a maximum; the docstring says so."""
    for fn in (SADDLES["double-well"], lambda z: -(z**2).sum()):
        sol = ims.minimize(fn, torch.zeros(2, dtype=F64), solver=ims.NewtonCG())
        assert int(sol.iterations) == 0 and bool(sol.converged)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded_below_is_a_failure(name):
    calls = []

    def fn(z, t):
        calls.append(1)
        return torch.where(t[0] > 0, UNBOUNDED[name](z, t.abs()), ((z - 1) ** 4 + z**2).sum())

    t = tensor([[1.0], [-1.0], [0.3]])
    start = tensor([0.5, 2.0]).expand(3, 2)
    sol = vmap(lambda z, t: ims.minimize(fn, z, (t,), on_failure="mask"))(start, t)
    assert sol.status[1] == Status.CONVERGED
    assert (sol.status[[0, 2]] > Status.BUDGET).all()
    assert len(calls) < 1500


# -- what it costs ------------------------------------------------------------------------------


def test_a_quadratic_takes_no_more_products_than_unknowns(monkeypatch):
    """One product with the Hessian for each step of conjugate gradients, no more."""
    products = []
    product = LaneMap.mv
    monkeypatch.setattr(LaneMap, "mv", lambda A, v: products.append(1) or product(A, v))
    d = torch.linspace(1, 9, 8, dtype=F64)
    solver = ims.NewtonCG(rtol=None, max_steps=1)
    sol = ims.minimize(
        lambda z: 1e-12 * (0.5 * d * z**2 - z).sum(), torch.zeros(8, dtype=F64), solver=solver
    )
    assert error(sol.value, 1 / d) < 1e-4  # sqrt(|grad|) is the accuracy asked for
    assert len(products) <= 9  # and the residual of the start


def test_convergence_is_superlinear():
    solution = ROSENBROCK.solve(ims.NewtonCG())
    errors = []
    for steps in range(int(solution.iterations) - 3, int(solution.iterations) + 1):
        sol = ROSENBROCK.solve(ims.NewtonCG(rtol=None, max_steps=steps))
        errors.append(float((sol.value - 1).norm()))
    assert errors[2] < 0.1 * errors[1] or errors[3] < 1e-2 * errors[2]


@pytest.mark.parametrize("objective", [ROSENBROCK, HIMMELBLAU, LOGISTIC, BARRIER], ids=str)
def test_lanes_are_alone(objective):
    lanes_are_alone(objective, ims.NewtonCG())


def test_budget_at_the_solution_stays_there():
    for z in (ROSENBROCK.solve(ims.NewtonCG()).value, torch.ones(2, dtype=F64)):
        sol = ROSENBROCK.solve(ims.NewtonCG(rtol=None, max_steps=4), start=z)
        assert int(sol.status) == Status.BUDGET and error(sol.value, z) < 1e-10


@pytest.mark.parametrize("start", [math.nan, math.inf])
def test_not_finite(start):
    sol = ims.minimize(lambda z: z**2, tensor(start), on_failure="mask")
    assert int(sol.status) == Status.NONFINITE


@pytest.mark.parametrize("objective", [BEALE, LOGISTIC, BARRIER], ids=str)
def test_derivative(objective):
    theta = tensor(objective.theta)
    solve = lambda t: objective.solve(ims.NewtonCG(), theta=t).value.reshape(-1)
    exact = objective.derivative(objective.minimum, theta)
    for mode in (jacrev, jacfwd):
        assert error(mode(solve)(theta), exact) < 1e-7
