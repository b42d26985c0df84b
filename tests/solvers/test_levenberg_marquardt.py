"""Levenberg-Marquardt and Dogleg on least squares: fits, ranks, residuals that stay, lanes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.problem import ResidualMap
from implicit_solvers.testing import problems

F32, F64 = torch.float32, torch.float64
SOLVERS = {"LevenbergMarquardt": ims.LevenbergMarquardt(), "Dogleg": ims.Dogleg()}
both = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def tensor(values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def error(ours, exact):
    assert ours.shape == exact.shape
    return float((ours - exact).detach().abs().max() / exact.detach().abs().max().clamp(min=1))


def scipy_fit(fn, start, theta, method="lm", solve=scipy.optimize.least_squares):
    """Return SciPy's fit, its last digits from the root of the gradient."""

    def call(f):
        return lambda x: f(torch.from_numpy(np.asarray(x)), theta).numpy()

    out = solve(
        call(fn), start.numpy(), jac=call(jacfwd(fn)), method=method,
        xtol=1e-15, ftol=1e-15, gtol=1e-15,
    )  # fmt: skip
    half = lambda z, t: 0.5 * (fn(z, t) ** 2).sum()
    out = scipy.optimize.root(call(grad(half)), out.x, jac=call(hessian(half)), tol=1e-15)
    return torch.from_numpy(np.asarray(out.x))


TIMES = torch.linspace(0, 2, 9)


def exponential(z, t):
    return z[0] * torch.exp(-z[1] * TIMES.to(z)) - t


def rosenbrock(z, t):
    return torch.stack([10 * (z[1] - z[0] ** 2), t[0] - z[0]])


def large_residual(z, t):
    """A minimum at 0, where Gauss-Newton multiplies the error by ``t0 t1``."""
    return torch.cat([z + 0.5 * t[0] * z**2 - t[1], z - 0.5 * t[0] * z**2 + t[1]])


def circle(z, t):
    points = t.reshape(-1, 2)
    return torch.linalg.vector_norm(points - z[:2], dim=-1) - z[2]


FITS = {
    "exponential": (
        exponential, tensor([1.0, 0.5]),
        tensor([2.1, 1.5, 1.22, 0.84, 0.65, 0.55, 0.31, 0.3, 0.25]),
    ),
    "rosenbrock": (rosenbrock, tensor([-1.2, 1.0]), tensor([1.0])),
    "circle": (
        circle, tensor([0.1, 0.2, 0.8]),
        tensor([1.0, 0.1, 0.1, 1.1, -0.9, 0.1, 0.05, -1.0, 0.7, 0.75]),
    ),
    "michaelis-menten": (
        problems.MICHAELIS_MENTEN.fn, problems.MICHAELIS_MENTEN.start(),
        problems.MICHAELIS_MENTEN.theta(),
    ),
    "slow": (large_residual, tensor([0.5, -0.4]), tensor([0.7, 1.0])),
    "overshooting": (large_residual, tensor([0.5, -0.4]), tensor([-2.0, 1.0])),
}  # fmt: skip


@both
@pytest.mark.parametrize(
    "name, method",
    [*((name, "lm") for name in FITS), ("exponential", "dogbox"), ("michaelis-menten", "trf")],
)
def test_fit_equals_scipy(name, method, solver):
    fn, start, theta = FITS[name]
    sol = ims.least_squares(fn, start, (theta,), solver=solver)
    assert bool(sol.converged)
    assert error(sol.value, scipy_fit(fn, start, theta, method)) < 1e-9


@both
@pytest.mark.parametrize(
    "problem",
    [problems.RIDGE_RESIDUALS, problems.MICHAELIS_MENTEN, problems.OSBORNE_1, problems.OSBORNE_2],
    ids=str,
)
def test_fit_and_derivative_equal_the_reference(problem, solver):
    theta = problem.theta().requires_grad_()
    sol = problem.solve(theta, solver=solver)
    assert error(sol.value, problem.solution) < 1e-9
    (slope,) = torch.autograd.grad(sol.value[0], theta)
    size = problem.derivative.abs().max()
    assert float((slope - problem.derivative[0]).abs().max() / size) < 1e-7


@both
def test_badly_scaled_fit(solver):
    """Meyer: the gradient's rounding alone is 1e-5, for parameters from 0.005 to 6,000."""
    sol = problems.MEYER.solve(solver=replace(solver, atol=1e-2))
    exact = problems.MEYER.solution
    assert float(((sol.value - exact) / exact).abs().max()) < 1e-9
    assert int(sol.iterations) < 150


@both
@pytest.mark.parametrize("name", ["exponential", "rosenbrock", "circle"])
def test_float32(name, solver):
    fn, start, theta = FITS[name]
    chosen = replace(solver, atol=1e-5)
    sol = ims.least_squares(fn, start.float(), (theta.float(),), solver=chosen)
    assert sol.value.dtype == sol.residual.dtype == F32
    assert error(sol.value.double(), scipy_fit(fn, start, theta)) < 1e-4


@pytest.mark.parametrize("name", ["slow", "overshooting"])
@pytest.mark.parametrize(
    "solver", [*SOLVERS.values(), ims.GaussNewton()], ids=[*SOLVERS, "GaussNewton"]
)
def test_large_residuals(name, solver):
    """Full Gauss-Newton steps are slow, or overshoot by more each time; the fit is found."""
    fn, start, theta = FITS[name]
    J = jacfwd(fn)(0 * start, theta)
    H = hessian(lambda z: 0.5 * (fn(z, theta) ** 2).sum())(0 * start)
    rate = torch.eye(2, dtype=F64) - torch.linalg.inv(J.T @ J) @ H
    assert error(rate, theta.prod() * torch.eye(2, dtype=F64)) < 1e-12
    sol = ims.least_squares(fn, start, (theta,), solver=solver)
    assert error(sol.value, 0 * start) < 1e-10 and int(sol.iterations) < 100


# -- ranks -----------------------------------------------------------------------------------------

WIDE = tensor([[1.0, 2.0, 0.5, -1.0], [0.3, -1.0, 2.0, 0.7]])


@both
def test_underdetermined_solution_changes_least(solver):
    """Least in the norm that scales the unknowns: ``|D (z - z0)|``, with ``D`` the column norms."""
    start, b = tensor([1.0, -1.0, 2.0, 0.5]), tensor([1.0, 2.0])
    sol = ims.least_squares(lambda z: WIDE @ z - b, start, solver=solver)
    weight = torch.diag(1 / torch.linalg.vector_norm(WIDE, dim=0) ** 2)
    step = weight @ WIDE.T @ torch.linalg.inv(WIDE @ weight @ WIDE.T) @ (b - WIDE @ start)
    assert error(sol.value, start + step) < 1e-9


@both
def test_rank_deficient_fit_changes_least(solver):
    """Three residuals of the sum of two unknowns: the sum is fitted, the difference stays."""
    fn = lambda z: torch.stack([z.sum() - 1, z.sum() + 2, z.sum()])
    start = tensor([1.0, 4.0])
    sol = ims.least_squares(fn, start, solver=solver)
    assert error(sol.value, tensor([-1 / 6 - 1.5, -1 / 6 + 1.5])) < 1e-9
    # rounding hides the rank of this one
    A = tensor([[0.1, 0.3], [0.2, 0.6], [0.3, 0.9]])
    fit = ims.least_squares(lambda z: A @ z - 1, start, solver=solver).value
    assert error(A @ fit, A @ torch.linalg.pinv(A) @ torch.ones(3, dtype=F64)) < 1e-9
    assert float(fit.abs().max()) < 10


@both
def test_solution_that_is_not_alone_has_no_derivative(solver):
    b = tensor([1.0, 2.0]).requires_grad_()
    sol = ims.least_squares(lambda z: WIDE @ z - b, torch.zeros(4, dtype=F64), solver=solver)
    with pytest.raises(ims.ConvergenceError, match="adjoint of least_squares.*SINGULAR"):
        sol.value.sum().backward()


@both
def test_column_of_zeros(solver):
    """An unknown that nothing depends on stays."""
    fn = lambda z: torch.stack([torch.exp(z[0]) - 2, z[0] - 1])
    both = lambda z: fn(z) + 0 * z[1]
    sol = ims.least_squares(both, tensor([0.0, 3.0]), solver=solver)
    alone = ims.least_squares(fn, tensor([0.0]), solver=solver)
    assert float(sol.value[1]) == 3 and error(sol.value[:1], alone.value) < 1e-12


@both
@pytest.mark.parametrize("start", [5.0, [5.0]], ids=["0-d", "1"])
def test_one_unknown(start, solver):
    fn = lambda z: torch.stack([torch.log(z), torch.sqrt(z) - 1])
    sol = ims.least_squares(fn, tensor(start), solver=solver)
    assert error(sol.value, torch.ones_like(sol.value)) < 1e-10


# -- failures and budgets --------------------------------------------------------------------------


@both
def test_failures(solver):
    kind = type(solver)
    nan = ims.least_squares(
        lambda z: z * math.nan, tensor([1.0, 2.0]), solver=solver, on_failure="mask"
    )
    assert int(nan.status) == Status.NONFINITE
    few = ims.least_squares(*FITS["exponential"][:2], (FITS["exponential"][2],),
                            solver=kind(max_steps=2), on_failure="mask")  # fmt: skip
    assert int(few.status) == Status.MAX_STEPS
    # below the rounding of the gradient no step settles any more
    exact = replace(solver, atol=1e-30, rtol=0.0)
    fn, start, theta = FITS["circle"]
    stalled = ims.least_squares(fn, start, (theta,), solver=exact, on_failure="mask")
    assert int(stalled.status) in (Status.STALLED, Status.CONVERGED)
    assert int(stalled.iterations) < 60 and float(stalled.residual) < 1e-14


@both
def test_budget(solver):
    fn, start, theta = FITS["exponential"]
    kind, sizes = type(solver), []
    for steps in range(6):
        sol = ims.least_squares(fn, start, (theta,), solver=kind(rtol=None, max_steps=steps))
        assert int(sol.iterations) == steps and int(sol.status) == Status.BUDGET
        sizes.append(float(fn(sol.value, theta).norm()))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.5 * sizes[0]
    value = ims.least_squares(fn, start, (theta,), solver=solver).value
    past = ims.least_squares(fn, value, (theta,), solver=kind(rtol=None, max_steps=5))
    assert int(past.status) == Status.BUDGET and error(past.value, value) < 1e-8


# -- products only ---------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["exponential", "rosenbrock", "circle", "slow"])
def test_products_alone_find_the_same_fit(name, solver, monkeypatch):
    fn, start, theta = FITS[name]
    dense = ims.least_squares(fn, start, (theta,), solver=solver).value

    def refuse(self):
        raise AssertionError("the Jacobian was formed")

    monkeypatch.setattr(ResidualMap, "dense", refuse)
    free = replace(solver, linear_solver=ims.CG(rtol=1e-4))
    assert error(ims.least_squares(fn, start, (theta,), solver=free).value, dense) < 1e-9


@both
def test_large_fits_use_products(solver, monkeypatch):
    """600 unknowns; two residuals of each, and a closed form."""
    monkeypatch.setattr(ResidualMap, "dense", None)
    c = torch.linspace(1, 2, 600, dtype=F64)
    fn = lambda z: torch.cat([torch.exp(z) - c, torch.exp(z) + c - 2])
    sol = ims.least_squares(fn, torch.zeros(600, dtype=F64) + 0.5, solver=solver)
    assert error(sol.value, torch.zeros(600, dtype=F64)) < 1e-9


# -- derivatives and lanes -------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["exponential", "circle"])
def test_derivative_is_that_of_the_full_hessian(name, solver):
    """By central differences of SciPy's fits; the residuals do not vanish."""
    fn, start, theta = FITS[name]
    start = scipy_fit(fn, start, theta)
    assert float(fn(start, theta).norm()) > 0.05
    solve = lambda t: ims.least_squares(fn, start + 1e-2, (t,), solver=solver).value
    ours = jacrev(solve)(theta)
    for i in (0, 3):
        step = 1e-4 * torch.eye(len(theta), dtype=F64)[i]
        ends = [scipy_fit(fn, start, theta + s * step) for s in (1, -1)]
        assert error(ours[:, i], (ends[0] - ends[1]) / 2e-4) < 1e-6
    assert error(jacfwd(solve)(theta), ours) < 1e-10


@both
@pytest.mark.parametrize("name", ["exponential", "rosenbrock", "circle"])
def test_lanes_are_on_their_own(name, solver):
    fn, start, theta = FITS[name]
    generator = torch.Generator().manual_seed(3)
    thetas = theta * (1 + 0.05 * torch.rand(5, *theta.shape, generator=generator, dtype=F64))
    thetas[2] = math.nan
    starts = start * torch.linspace(0.9, 1.1, 5, dtype=F64).unsqueeze(-1)

    def solve(start, theta):
        return ims.least_squares(fn, start, (theta,), solver=solver, on_failure="mask")

    batch = vmap(solve)(starts, thetas)
    for i in range(5):
        single = solve(starts[i], thetas[i])
        assert int(batch.status[i]) == int(single.status)
        assert abs(int(batch.iterations[i]) - int(single.iterations)) <= 1
        assert error(batch.value[i], single.value) < 1e-9
    assert batch.status.tolist() == [0, 0, Status.NONFINITE, 0, 0]


@both
def test_lane_with_nan_gives_nothing_to_shared_parameters(solver):
    def total(shared, data):
        def fit(data):
            fn = lambda z, s, y: torch.cat([torch.exp(s * z) - y, z - 0.5])
            zero = torch.zeros(2, dtype=F64)
            return ims.least_squares(fn, zero, (shared, data), solver=solver, on_failure="mask")

        return vmap(lambda y: fit(y).value)(data).sum()

    shared, data = tensor(0.8), tensor([[1.0, 2.0], [2.0, 1.5]])
    exact = grad(total)(shared, data)
    assert abs(float(exact)) > 1e-3
    bad = torch.cat([data[:1], tensor([[math.nan, 1.0]]), data[1:]])
    assert error(grad(total)(shared, bad), exact) < 1e-12
