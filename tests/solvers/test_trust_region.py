"""Trust regions: from far starts, in any units, and where ranks are missing."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import hessian, jacfwd, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.testing import problems
from tests.solvers import systems
from tests.solvers.systems import EXPONENTIAL_FIT, F32, F64, SLOW, TRIDIAGONAL, Watch, error, tensor

SOLVERS = {"Dogleg": ims.Dogleg(), "LevenbergMarquardt": ims.LevenbergMarquardt()}
both = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
ROOTING = {"NewtonDogleg": ims.NewtonDogleg(), **SOLVERS}
rooting = pytest.mark.parametrize("solver", ROOTING.values(), ids=ROOTING)
FITTING = {**SOLVERS, "GaussNewton": ims.GaussNewton()}
fitting = pytest.mark.parametrize("solver", FITTING.values(), ids=FITTING)

# In the minimum that is no root: Freudenstein and Roth's function from two of its starts.
TRAPPED = (problems.FREUDENSTEIN_ROTH, problems.FREUDENSTEIN_ROTH_FAR)
ROOTS = [p for p in problems.ROOTS if p.solution is not None and p not in TRAPPED]
# These have more than one root.
MANY = (
    problems.CHEBYQUAD_7,
    problems.CHEBYQUAD_9,
    problems.TRIGONOMETRIC,
    problems.BROWN_ALMOST_LINEAR,
)
ALONE = [p for p in ROOTS if p.regular and p not in MANY]
HARD = (
    problems.POWELL_BADLY_SCALED,
    problems.HELICAL_VALLEY,
    problems.ROSENBROCK,
    problems.WOOD,
    problems.BROYDEN_BANDED,
)
STARTS = [(p, F64) for p in ROOTS] + [(p, F32) for p in (*HARD, problems.BRATU, problems.CIRCLE)]


@rooting
@pytest.mark.parametrize(
    "problem, dtype", STARTS, ids=[f"{p}-{str(d).split('.')[1]}" for p, d in STARTS]
)
def test_root_from_the_standard_start(problem, dtype, solver):
    sol = problem.solve(problem.theta(dtype), solver=solver)
    assert bool(sol.converged) and sol.value.dtype == sol.residual.dtype == dtype
    assert int(sol.iterations) <= 40
    residual = problem.fn(sol.value.double(), problem.theta().to(dtype).double())
    assert float(residual.abs().max()) < (1e-9 if dtype == F64 else 1e-2)
    if problem in ALONE:
        # in float32, twenty roundings of wood's are 7e-3, a root mean square of four unknowns
        known = 1e-9 if dtype == F64 else max(2e-4, 2 * float(sol.error))
        assert error(sol.value, problem.solution) < known


EASY = [
    problems.BROYDEN_TRIDIAGONAL,
    problems.KEPLER,
    problems.CHANDRASEKHAR,
    problems.CHANDRASEKHAR_ITERATION,
    problems.HEAT,
]


@rooting
@pytest.mark.parametrize("problem", EASY, ids=str)
def test_easy_problems_take_newton_steps(problem, solver):
    steps = int(problem.solve(solver=ims.Newton()).iterations)
    assert int(problem.solve(solver=solver).iterations) <= steps


def hybr(fn, start):
    """Tell whether MINPACK's hybr finds a root."""
    slope = jacfwd(fn)
    out = scipy.optimize.root(
        lambda x: fn(torch.from_numpy(x)).numpy(),
        start.numpy(),
        jac=lambda x: slope(torch.from_numpy(x)).numpy(),
    )
    root = torch.from_numpy(np.asarray(out.x))
    return float(fn(root).abs().max()) < 1e-6 * (1 + float(root.abs().max()))


NIGHTLY = [pytest.param(p, 1000, 0.99, marks=pytest.mark.nightly) for p in (*HARD, problems.WATSON)]


@rooting
@pytest.mark.parametrize("problem, count, share", [(p, 15, 1.0) for p in HARD[:3]] + NIGHTLY)
def test_random_starts(problem, count, share, solver):
    """A root is found as often as by hybr."""
    generator, center = torch.Generator().manual_seed(1), problem.start()
    noise = torch.randn(count, *center.shape, generator=generator, dtype=F64)
    starts = center + noise * (1 + center.abs())
    fn = lambda z: problem.fn(z, problem.theta())
    ours = vmap(lambda z: ims.root(fn, z, solver=solver, on_failure="mask"))(starts)
    assert float(vmap(fn)(ours.value[ours.converged]).abs().max()) < 1e-8
    assert int(ours.converged.sum()) >= share * sum(hybr(fn, z) for z in starts)


SYSTEMS = [p for p in ROOTS if "Moré" in p.source]


@rooting
@pytest.mark.parametrize("unit", [8.0, 10.0])
@pytest.mark.parametrize("problem", SYSTEMS, ids=str)
def test_units_of_the_function_and_of_the_unknown_do_not_matter(problem, unit, solver):
    """Powers of two change no bit, powers of ten no step."""
    powers = [unit**k for k in (0, 3, -3, 8, -8, 20, -20)]
    c, s = tensor(list(product(powers, powers))).unbind(-1)
    fn = vmap(lambda z, c, s: c * problem.fn(z / s, problem.theta()))
    how = {"batch_dims": 1, "in_dims": (0, 0), "solver": solver}
    sol, alike = (
        ims.root(fn, vmap(torch.mul, (0, None))(s, problem.start()), (c, s), **how)
        for c, s in ((c, s), (c**0, s**0))
    )
    assert torch.equal(sol.iterations, alike.iterations)
    if unit == 8:
        assert torch.equal(vmap(torch.div)(sol.value, s), alike.value)


@both
@settings(max_examples=8)
@given(
    exponents=st.lists(st.integers(-20, 20), min_size=4, max_size=4),
    start=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
)
def test_units_of_the_unknowns_do_not_matter(solver, exponents, start):
    """Powers of two round nothing: the iterates are the same in other units."""
    unit, few = 2.0 ** tensor(exponents), replace(solver, rtol=None, max_steps=5)
    fn = lambda z: problems.WOOD.fn(z, problems.WOOD.theta())
    one = ims.root(fn, tensor(start), solver=few)
    other = ims.root(lambda z: fn(z * unit), tensor(start) / unit, solver=few)
    assert error(other.value * unit, one.value) < 1e-6
    assert float((one.residual - other.residual).abs()) <= 1e-6 * (1 + float(one.residual))


@rooting
def test_budgets_never_make_it_worse(solver):
    kind = type(solver)
    for problem in (problems.WOOD, EXPONENTIAL_FIT)[: len(solver.solves) - 1]:
        sizes, theta = [], problem.theta
        theta = tensor(theta) if isinstance(theta, list) else theta()
        for steps in range(6):
            z = problem.solve(solver=kind(rtol=None, max_steps=steps)).value
            sizes.append(float(problem.fn(z, theta).norm()))
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.5 * sizes[0]
    # at the solution, and in a minimum that is none, further steps stay
    for fn, start in ((lambda z: z**3 - 8, 2.0), (lambda z: z**2 + 1, 0.0)):
        sol = ims.root(fn, tensor(start), solver=kind(rtol=None, max_steps=4))
        assert int(sol.status) == Status.BUDGET and float(sol.value) == start


@pytest.mark.parametrize("solver", [ims.NewtonDogleg(), ims.Dogleg()])
def test_factors_are_left_to_the_backward_pass(solver):
    problem = problems.BROYDEN_BANDED
    theta = problem.theta().requires_grad_()
    with Watch() as forward:
        sol = problem.solve(theta, solver=solver)
    with Watch() as backward:
        (ours,) = torch.autograd.grad(sol.value.sum(), theta)
    assert error(ours, problem.derivative.sum(0)) < 1e-9
    assert forward.calls["linalg_lu_factor"] and not backward.calls["linalg_lu_factor"]


# -- products only ---------------------------------------------------------------------------------

FREE = {
    "Dogleg-GMRES": ims.Dogleg(linear_solver=ims.GMRES(rtol=1e-4)),
    "LevenbergMarquardt-CG": ims.LevenbergMarquardt(linear_solver=ims.CG(rtol=1e-4)),
    "GaussNewton-CG": ims.GaussNewton(linear_solver=ims.CG(rtol=1e-4)),
}


@pytest.mark.parametrize("solver", list(FREE.values())[:2], ids=list(FREE)[:2])
@pytest.mark.parametrize("problem", [*HARD[1:], problems.KEPLER], ids=str)
def test_products_alone_find_the_same_root(problem, solver):
    assert error(problem.solve(solver=solver).value, problem.solution) < 1e-9


@pytest.mark.parametrize("solver", FREE.values(), ids=FREE)
def test_with_an_iterative_solver_no_jacobian_is_formed(solver):
    theta, n = tensor(TRIDIAGONAL.theta), 90
    z0, fn = torch.full((n,), -1.0, dtype=F64), lambda z: TRIDIAGONAL.fn(z, theta)
    with Watch() as watch:
        sol = ims.least_squares(fn, z0, solver=solver)
    assert float(fn(sol.value).abs().max()) < 1e-9
    assert watch.largest < n**2
    with Watch() as dense:
        ims.least_squares(fn, z0, solver=replace(solver, linear_solver=None))
    assert dense.largest >= n**2


@pytest.mark.parametrize("name", [*FITTING, "root-Dogleg", "root-LevenbergMarquardt"])
def test_large_problems_are_solved_with_products(name):
    """600 unknowns, one or two residuals of each, and a closed form."""
    c, z0 = torch.linspace(1, 2, 600, dtype=F64), torch.full((600,), 0.5, dtype=F64)
    fit = lambda z: torch.cat([torch.exp(z) - c, torch.exp(z) + c - 2])
    with Watch() as watch:
        if name in FITTING:
            sol = ims.least_squares(fit, z0, solver=FITTING[name])
        else:
            sol = ims.root(lambda z: z**3 - c, z0, solver=FITTING[name.removeprefix("root-")])
    exact = 0 * c if name in FITTING else c ** (1 / 3)
    assert error(sol.value, exact) < 1e-9 and watch.largest < 600**2


# -- fits ------------------------------------------------------------------------------------------


@both
def test_badly_scaled_fit(solver):
    """Meyer: the gradient's rounding alone is 1e-5, for parameters from 0.005 to 6,000."""
    sol = problems.MEYER.solve(solver=solver)
    exact = problems.MEYER.solution
    assert float(((sol.value - exact) / exact).abs().max()) < 1e-9
    assert int(sol.iterations) < 150


@pytest.mark.parametrize("problem", problems.NIST, ids=str)
def test_every_regression_of_nist_from_both_starts(problem):
    theta = problem.theta()
    least = problem.squares * (1 + 1e-6) + 1e-20 * float(theta.square().sum())
    assert float(problem.fn(problem.solve().value, theta).square().sum()) <= least


@fitting
@pytest.mark.parametrize("system", [SLOW, systems.OVERSHOOTING], ids=str)
def test_large_residuals(system, solver):
    """Full Gauss-Newton steps are slow, or overshoot by more each time; the fit is found."""
    theta, zero = tensor(system.theta), torch.zeros(2, dtype=F64)
    J = jacfwd(system.fn)(zero, theta)
    H = hessian(lambda z: 0.5 * (system.fn(z, theta) ** 2).sum())(zero)
    rate = torch.eye(2, dtype=F64) - torch.linalg.inv(J.T @ J) @ H
    assert error(rate, theta.prod() * torch.eye(2, dtype=F64)) < 1e-12
    sol = system.solve(solver)
    assert error(sol.value, zero) < 1e-10 and int(sol.iterations) < 100


@fitting
@pytest.mark.parametrize("system", [systems.CIRCLE_FIT, EXPONENTIAL_FIT], ids=str)
def test_tolerance_below_rounding_stalls(system, solver):
    """Steps are not used up where none of them helps."""
    sol = system.solve(replace(solver, atol=1e-30, rtol=0.0), on_failure="mask")
    assert int(sol.status) in (Status.STALLED, Status.CONVERGED)
    assert int(sol.iterations) < 60 and float(sol.residual) < 1e-14


WIDE = tensor([[1.0, 2.0, 0.5, -1.0], [0.3, -1.0, 2.0, 0.7]])


def alone_not(fn, start, solver):
    """Return a fit that is one of many, which is said."""
    sol = ims.least_squares(fn, start, solver=solver, on_failure="mask")
    assert int(sol.status) == Status.SINGULAR and float(sol.error) == math.inf
    return sol


@both
def test_underdetermined_solution_changes_least(solver):
    """Least in the norm that scales the unknowns: ``|D (z - z0)|``, with ``D`` the column norms."""
    start, b = tensor([1.0, -1.0, 2.0, 0.5]), tensor([1.0, 2.0])
    sol = alone_not(lambda z: WIDE @ z - b, start, solver)
    weight = torch.diag(1 / torch.linalg.vector_norm(WIDE, dim=0) ** 2)
    step = weight @ WIDE.T @ torch.linalg.inv(WIDE @ weight @ WIDE.T) @ (b - WIDE @ start)
    assert error(sol.value, start + step) < 1e-9


@both
def test_rank_deficient_fit_changes_least(solver):
    """Three residuals of the sum of two unknowns: the sum is fitted, the difference stays."""
    fn = lambda z: torch.stack([z.sum() - 1, z.sum() + 2, z.sum()])
    sol = alone_not(fn, tensor([1.0, 4.0]), solver)
    assert error(sol.value, tensor([-1 / 6 - 1.5, -1 / 6 + 1.5])) < 1e-9
    # rounding hides the rank of this one
    A = tensor([[0.1, 0.3], [0.2, 0.6], [0.3, 0.9]])
    fit = alone_not(lambda z: A @ z - 1, tensor([1.0, 4.0]), solver).value
    assert error(A @ fit, A @ torch.linalg.pinv(A) @ torch.ones(3, dtype=F64)) < 1e-9
    assert float(fit.abs().max()) < 10


@both
def test_solution_that_is_not_alone_has_no_derivative(solver):
    b = tensor([1.0, 2.0]).requires_grad_()
    with pytest.warns(ims.ConvergenceWarning, match="SINGULAR"):
        sol = ims.least_squares(
            lambda z: WIDE @ z - b, torch.zeros(4, dtype=F64), solver=solver, on_failure="warn"
        )
    with pytest.warns(ims.ConvergenceWarning, match="adjoint of least_squares.*SINGULAR"):
        sol.value.sum().backward()


@both
def test_unknown_that_nothing_depends_on_stays(solver):
    fn = lambda z: torch.stack([torch.exp(z[0]) - 2, z[0] - 1])
    sol = alone_not(lambda z: fn(z) + 0 * z[1], tensor([0.0, 3.0]), solver)
    alone = ims.least_squares(fn, tensor([0.0]), solver=solver)
    assert float(sol.value[1]) == 3 and error(sol.value[:1], alone.value) < 1e-12
