"""Derivatives of fits with Gauss and Newton's Hessian, ``J^T J``, in the place of the full one."""

import math

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import implicit_solvers as ims
from tests.solvers.systems import EXPONENTIAL_FIT, F64, TIMES, error, tensor

exponential = EXPONENTIAL_FIT.fn
START, DATA = tensor(EXPONENTIAL_FIT.start), tensor(EXPONENTIAL_FIT.theta)


def fit(y, start=START, gauss_newton=True, **options):
    solve = ims.least_squares(exponential, start, (y,), gauss_newton=gauss_newton, **options)
    return solve.value


def closed_form(y, full=False):
    """Return ``-(J^T J)^-1 d(J^T r)/dy``, or the derivative with the full Hessian."""
    z = fit(y)
    J, condition = jacfwd(exponential)(z, y), EXPONENTIAL_FIT.condition
    H = jacfwd(condition)(z, y) if full else J.T @ J
    return -torch.linalg.inv(H) @ jacfwd(condition, argnums=1)(z, y)


@pytest.mark.parametrize(
    "solver",
    [ims.GaussNewton(), ims.LevenbergMarquardt(), ims.Dogleg(), ims.Newton()],
    ids=lambda solver: type(solver).__name__,
)
def test_it_is_the_closed_form(solver):
    approximate = closed_form(DATA)
    assert error(approximate, closed_form(DATA, full=True)) > 1e-3
    solve = lambda y: fit(y, start=fit(DATA), solver=solver)
    for mode in (jacrev, jacfwd):
        assert error(mode(solve)(DATA), approximate) < 1e-8
    y, w = DATA.clone().requires_grad_(), tensor([1.0, -2.0])
    (g,) = torch.autograd.grad(solve(y) @ w, y)
    assert error(g, w @ approximate) < 1e-8
    tangent = torch.sin(torch.arange(9, dtype=F64))
    assert error(jvp(solve, (DATA,), (tangent,))[1], approximate @ tangent) < 1e-8


def test_in_a_parameter_of_the_jacobian():
    """The derivative of ``J^T r`` in the parameter stays in full: ``J`` depends on it."""

    def fn(z, a):
        return torch.stack([torch.exp(a * z) - 2, z - 1.5, a * z**2])

    a, one = tensor(0.7), tensor(1.0)
    z = ims.least_squares(fn, one, (a,)).value
    J = jacfwd(fn)(z, a)
    condition = grad(lambda z, a: 0.5 * (fn(z, a) ** 2).sum())
    exact = -grad(condition, argnums=1)(z, a) / (J @ J)
    frozen = -(J @ jacfwd(fn, argnums=1)(z, a)) / (J @ J)
    assert abs(float(exact - frozen)) > 1e-2
    solve = lambda a: ims.least_squares(fn, one, (a,), gauss_newton=True).value
    assert error(grad(solve)(a), exact) < 1e-10


def test_it_is_exact_where_residuals_vanish():
    y = 2 * torch.exp(-0.7 * TIMES.double())
    assert error(jacrev(fit)(y), jacrev(lambda y: fit(y, gauss_newton=False))(y)) < 1e-8


@pytest.mark.parametrize(
    "linear_solver",
    [ims.CG(), ims.Cholesky(), ims.GMRES(), ims.LU()],
    ids=["CG", "Cholesky", "GMRES", "LU"],
)
def test_by_every_linear_solver(linear_solver):
    adjoint = ims.ImplicitAdjoint(linear_solver)
    assert error(jacrev(lambda y: fit(y, adjoint=adjoint))(DATA), closed_form(DATA)) < 1e-8


def test_under_vmap():
    ys = DATA * torch.linspace(0.9, 1.1, 3, dtype=F64).unsqueeze(-1)
    exact = torch.stack([closed_form(y) for y in ys])
    for mode in (jacrev, jacfwd):
        assert error(vmap(mode(fit))(ys), exact) < 1e-8
    assert error(grad(lambda y: vmap(fit)(y)[:, 0].sum())(ys), exact[:, 0]) < 1e-8


def test_failed_lanes_are_left_out():
    ys = torch.stack([DATA, DATA * math.nan, 1.1 * DATA])
    fn = lambda z, scale, y: exponential(z, scale * y)

    def total(scale):
        options = {"gauss_newton": True, "on_failure": "mask"}
        one = lambda y: ims.least_squares(fn, START, (scale, y), **options).value
        return vmap(one)(ys)[:, 0].sum()

    expected = sum(closed_form(y)[0] @ y for y in (ys[0], ys[2]))
    assert error(grad(total)(tensor(1.0)), expected) < 1e-8


def test_it_is_of_first_order_only():
    y = DATA.clone().requires_grad_()
    (g,) = torch.autograd.grad(fit(y).sum(), y, create_graph=True)
    for second in (
        lambda: jacrev(jacrev(fit))(DATA),
        lambda: jacfwd(jacrev(fit))(DATA),
        lambda: jacrev(jacfwd(fit))(DATA),
        lambda: jacfwd(jacfwd(fit))(DATA),
        lambda: g.sum().backward(),
    ):
        with pytest.raises(RuntimeError, match=r"gauss_newton=True.*of first order only"):
            second()
