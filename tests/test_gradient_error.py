"""The estimate of a gradient's error, against the true error of problems stopped early."""

from dataclasses import replace

import pytest
import torch
from torch.func import grad, vmap

import implicit_solvers as ims
from tests.cases import P as X
from tests.cases import V, W

ONE_STEP = ims.Newton(max_steps=1, rtol=None)
Z0 = torch.zeros(3, dtype=torch.float64)


def f(z, x):
    return z + 0.5 * torch.tanh(W @ z) * x.sum() - x


def g(z, x):
    return torch.tanh(W @ z + x)


def objective(z, x):
    return ((z - x) ** 2).sum() + (z**4).sum() + 0.3 * torch.sin(z.sum())


def residuals(z, x):
    return torch.cat([f(z, x), 0.2 * z**2])


# solvers, and after how many steps they are stopped
PROBLEMS = {
    "root": (ims.root, f, ims.Newton(rtol=None), (1, 2)),
    "fixed_point": (ims.fixed_point, g, ims.FixedPointIteration(rtol=None), (3, 5, 8)),
    "minimize": (ims.minimize, objective, ims.GradientDescent(0.1, rtol=None), (5, 10, 20)),
    "least_squares": (ims.least_squares, residuals, ims.GaussNewton(rtol=None), (1, 2)),
}


def slope(entry, fn, **options):
    return grad(lambda x: entry(fn, Z0, (x,), **options).value.sum())(X)


@pytest.mark.parametrize("name", PROBLEMS)
def test_estimates_the_error_of_solves_stopped_early(name):
    entry, fn, endless, counts = PROBLEMS[name]
    exact = slope(entry, fn)
    for count in counts:
        solver = replace(endless, max_steps=count)
        rough = slope(entry, fn, solver=solver)
        true = float((rough - exact).norm() / exact.norm())
        sol = entry(fn, Z0, (X,), solver=solver)
        estimate = float(ims.gradient_error(sol, fn, (X,), equation=entry))
        # right to first order in the error: a factor of two at errors up to a half
        assert true > 1e-9
        assert true / 2 < estimate < 2 * true, (count, true, estimate)


def test_a_converged_solution_has_no_error_to_speak_of():
    sol = ims.root(f, Z0, (X,))
    assert float(ims.gradient_error(sol, f, (X,))) < 1e-9
    # what the rounding of z may have done counts, where the residual is zero by luck
    A = torch.tensor([[1, 1], [1, 1 + 1e-8]], dtype=torch.float64)
    one, ill = torch.ones(2, dtype=torch.float64), lambda z, b: A @ z**3 - b
    lucky = ims.root(ill, one, (A @ one,))
    assert lucky.residual == 0 and float(lucky.error) > 1e-9
    assert float(ims.gradient_error(lucky, ill, (A @ one,))) > float(lucky.error)


@pytest.mark.parametrize("steps", [1, 2])
def test_covers_the_adjoint_residual(steps):
    scale = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)

    def stiff(z, x):
        return (scale * (z - x) ** 2).sum() / 2 + (z.sum() * x.sum()) ** 2 / 4

    adjoint = ims.ImplicitAdjoint(ims.CG(max_steps=steps, rtol=None))
    sol = ims.minimize(stiff, Z0, (X,))
    true_gradient = slope(ims.minimize, stiff)
    rough = slope(ims.minimize, stiff, adjoint=adjoint)
    true = float((rough - true_gradient).norm() / true_gradient.norm())
    estimate = ims.gradient_error(sol, stiff, (X,), equation=ims.minimize, adjoint=adjoint)
    assert true > 1e-3
    assert float(estimate) == pytest.approx(true, rel=1e-4)


def test_captured_tensors_cotangents_and_lanes():
    x = X.clone().requires_grad_()
    rough = ims.root(lambda z: f(z, x), Z0, solver=ONE_STEP)
    in_args = ims.root(f, Z0, (X,), solver=ONE_STEP)
    captured = ims.gradient_error(rough, lambda z: f(z, x), cotangent=V)
    # W is captured by both, but requires no gradient
    torch.testing.assert_close(captured, ims.gradient_error(in_args, f, (X,), cotangent=V))

    def one(x):
        return ims.gradient_error(ims.root(f, Z0, (x,), solver=ONE_STEP), f, (x,))

    many = torch.stack([X, 0.1 * X])
    torch.testing.assert_close(vmap(one)(many), torch.stack([one(x) for x in many]))
