"""Gauss-Newton: the solver with products, where it ends, and its Hessian in derivatives."""

import math

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.problem import ResidualMap
from implicit_solvers.testing import problems

F64 = torch.float64
FREE = ims.GaussNewton(linear_solver=ims.CG(rtol=1e-4))


def tensor(values):
    return torch.tensor(values, dtype=F64)


def error(ours, exact):
    assert ours.shape == exact.shape
    return float((ours - exact).detach().abs().max() / exact.detach().abs().max().clamp(min=1))


TIMES = torch.linspace(0, 2, 9, dtype=F64)
DATA = tensor([2.1, 1.5, 1.22, 0.84, 0.65, 0.55, 0.31, 0.3, 0.25])
START = tensor([1.0, 0.5])


def exponential(z, y):
    return z[0] * torch.exp(-z[1] * TIMES) - y


def fit(y, **options):
    return ims.least_squares(exponential, START, (y,), **options).value


# -- products only ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem",
    [problems.RIDGE_RESIDUALS, problems.MICHAELIS_MENTEN, problems.OSBORNE_1, problems.OSBORNE_2],
    ids=str,
)
def test_products_alone_find_the_fit(problem, monkeypatch):
    dense = problem.solve(solver=ims.GaussNewton())
    assert error(dense.value, problem.solution) < 1e-9

    def refuse(self):
        raise AssertionError("the Jacobian was formed")

    monkeypatch.setattr(ResidualMap, "dense", refuse)
    assert error(problem.solve(solver=FREE).value, problem.solution) < 1e-9


def test_large_fits_use_products(monkeypatch):
    monkeypatch.setattr(ResidualMap, "dense", None)
    c = torch.linspace(1, 2, 600, dtype=F64)
    fn = lambda z: torch.cat([torch.exp(z) - c, torch.exp(z) + c - 2])
    sol = ims.least_squares(fn, torch.full((600,), 0.5, dtype=F64), solver=ims.GaussNewton())
    assert error(sol.value, torch.zeros(600, dtype=F64)) < 1e-9


def test_lanes_with_products():
    ys = DATA * torch.linspace(0.9, 1.1, 5, dtype=F64).unsqueeze(-1)
    ys[3] = math.nan
    options = {"solver": FREE, "on_failure": "mask"}
    batch = vmap(lambda y: ims.least_squares(exponential, START, (y,), **options))(ys)
    assert batch.status.tolist() == [0, 0, 0, Status.NONFINITE, 0]
    for i in (0, 1, 2, 4):
        single = ims.least_squares(exponential, START, (ys[i],), **options)
        assert abs(int(batch.iterations[i]) - int(single.iterations)) <= 1
        assert error(batch.value[i], single.value) < 1e-9


# -- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("linear_solver", [ims.LU(), ims.CG], ids=["LU", "class"])
def test_linear_solver_must_be_iterative(linear_solver):
    with pytest.raises(TypeError, match="GaussNewton has linear_solver"):
        fit(DATA, solver=ims.GaussNewton(linear_solver=linear_solver))


@pytest.mark.parametrize("solver", [ims.GaussNewton(), FREE], ids=["dense", "free"])
def test_fewer_residuals_than_unknowns(solver):
    with pytest.raises(ValueError, match="1 residuals for 2 unknowns.*LevenbergMarquardt"):
        ims.least_squares(lambda z: z.sum(), tensor([1.0, 2.0]), solver=solver)


def test_rank_deficient_jacobian_is_singular():
    fn = lambda z: torch.stack([z.sum() - 1, z.sum() + 1, z.sum()])
    sol = ims.least_squares(fn, START, solver=ims.GaussNewton(), on_failure="mask")
    assert int(sol.status) == Status.SINGULAR


def test_tolerance_below_rounding_stalls():
    """It does not use its steps up where none of them helps."""
    exact = ims.GaussNewton(atol=1e-30, rtol=0.0)
    sol = ims.least_squares(exponential, START, (DATA,), solver=exact, on_failure="mask")
    assert int(sol.status) in (Status.STALLED, Status.CONVERGED)
    assert int(sol.iterations) < 60 and float(sol.residual) < 1e-14


def test_budget_stays_at_the_solution():
    value = fit(DATA)
    past = ims.GaussNewton(rtol=None, max_steps=5)
    sol = ims.least_squares(exponential, value, (DATA,), solver=past)
    assert int(sol.status) == Status.BUDGET and error(sol.value, value) < 1e-8


# -- derivatives with J^T J ------------------------------------------------------------------------


def closed_forms(y):
    """Return ``-(J^T J)^-1 d(J^T r)/dy`` and the derivative with the full Hessian."""
    z = fit(y)
    J = jacfwd(exponential)(z, y)
    condition = grad(lambda z, y: 0.5 * (exponential(z, y) ** 2).sum())
    mixed = jacfwd(condition, argnums=1)(z, y)
    return -torch.linalg.inv(J.T @ J) @ mixed, -torch.linalg.inv(jacfwd(condition)(z, y)) @ mixed


SOLVERS = {
    "GaussNewton": ims.GaussNewton(),
    "LevenbergMarquardt": ims.LevenbergMarquardt(),
    "Dogleg": ims.Dogleg(),
    "Newton": ims.Newton(),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_gauss_newton_derivative_is_the_closed_form(solver):
    approximate, full = closed_forms(DATA)
    assert error(approximate, full) > 1e-3
    solve = lambda y: (
        ims.least_squares(exponential, fit(DATA), (y,), solver=solver, gauss_newton=True).value
    )
    for mode in (jacrev, jacfwd):
        assert error(mode(solve)(DATA), approximate) < 1e-8
    y = DATA.clone().requires_grad_()
    (g,) = torch.autograd.grad(solve(y) @ tensor([1.0, -2.0]), y)
    assert error(g, tensor([1.0, -2.0]) @ approximate) < 1e-8
    tangent = torch.sin(torch.arange(9, dtype=F64))
    assert error(jvp(solve, (DATA,), (tangent,))[1], approximate @ tangent) < 1e-8


def test_gauss_newton_derivative_in_a_parameter_of_the_jacobian():
    """The derivative of ``J^T r`` in the parameter stays in full: ``J`` depends on it."""

    def fn(z, a):
        return torch.stack([torch.exp(a * z) - 2, z - 1.5, a * z**2])

    a = tensor(0.7)
    z = ims.least_squares(fn, tensor(1.0), (a,)).value
    J = jacfwd(fn)(z, a)
    condition = grad(lambda z, a: 0.5 * (fn(z, a) ** 2).sum())
    exact = -grad(condition, argnums=1)(z, a) / (J @ J)
    frozen = -(J @ jacfwd(fn, argnums=1)(z, a)) / (J @ J)
    assert abs(float(exact - frozen)) > 1e-2
    solve = lambda a: ims.least_squares(fn, tensor(1.0), (a,), gauss_newton=True).value
    assert error(grad(solve)(a), exact) < 1e-10


def test_gauss_newton_derivative_is_exact_where_residuals_vanish():
    y = 2 * torch.exp(-0.7 * TIMES)
    exact = jacrev(fit)(y)
    assert error(jacrev(lambda y: fit(y, gauss_newton=True))(y), exact) < 1e-8


@pytest.mark.parametrize(
    "linear_solver",
    [ims.CG(), ims.Cholesky(), ims.GMRES(), ims.LU()],
    ids=["CG", "Cholesky", "GMRES", "LU"],
)
def test_gauss_newton_derivative_by_every_linear_solver(linear_solver):
    adjoint = ims.ImplicitAdjoint(linear_solver)
    ours = jacrev(lambda y: fit(y, gauss_newton=True, adjoint=adjoint))(DATA)
    assert error(ours, closed_forms(DATA)[0]) < 1e-8


def test_gauss_newton_derivative_under_vmap():
    ys = DATA * torch.linspace(0.9, 1.1, 3, dtype=F64).unsqueeze(-1)
    exact = torch.stack([closed_forms(y)[0] for y in ys])
    for mode in (jacrev, jacfwd):
        assert error(vmap(mode(lambda y: fit(y, gauss_newton=True)))(ys), exact) < 1e-8
    total = lambda y: vmap(lambda y: fit(y, gauss_newton=True))(y)[:, 0].sum()
    assert error(grad(total)(ys), exact[:, 0]) < 1e-8


def test_gauss_newton_derivative_leaves_failed_lanes_out():
    ys = torch.stack([DATA, DATA * math.nan, 1.1 * DATA])
    fn = lambda z, scale, y: exponential(z, scale * y)

    def total(scale):
        options = {"gauss_newton": True, "on_failure": "mask"}
        one = lambda y: ims.least_squares(fn, START, (scale, y), **options).value
        return vmap(one)(ys)[:, 0].sum()

    expected = sum(closed_forms(y)[0][0] @ y for y in (ys[0], ys[2]))
    assert error(grad(total)(tensor(1.0)), expected) < 1e-8


def test_gauss_newton_derivative_is_of_first_order_only():
    fn = lambda y: fit(y, gauss_newton=True)
    for second in (
        lambda: jacrev(jacrev(fn))(DATA),
        lambda: jacfwd(jacrev(fn))(DATA),
        lambda: jacrev(jacfwd(fn))(DATA),
        lambda: jacfwd(jacfwd(fn))(DATA),
    ):
        with pytest.raises(RuntimeError, match=r"gauss_newton=True.*of first order only"):
            second()
    y = DATA.clone().requires_grad_()
    (g,) = torch.autograd.grad(fn(y).sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match=r"gauss_newton=True.*of first order only"):
        g.sum().backward()


def test_gauss_newton_is_refused_where_it_means_nothing():
    descent = ims.GradientDescent(lr=1e-2, rtol=None, max_steps=3)
    with pytest.raises(ValueError, match="gauss_newton=True with adjoint=UnrolledAdjoint"):
        fit(DATA, gauss_newton=True, solver=descent, adjoint=ims.UnrolledAdjoint())
    with pytest.raises(TypeError, match="gauss_newton is a str"):
        fit(DATA, gauss_newton="yes")
