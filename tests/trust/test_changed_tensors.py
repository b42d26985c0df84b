"""Tensors written to: by the user before ``backward()``, or by a function that is solved."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vjp, vmap

import implicit_solvers as ims

D = torch.float64
ZERO, ONE = torch.zeros((), dtype=D), torch.ones((), dtype=D)


class Scaled(nn.Module):
    """``z = t sin(z) / 2 + w``, of a buffer ``t``."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3, dtype=D))
        self.register_buffer("temperature", torch.tensor(1.0, dtype=D))

    def forward(self, z):
        return self.temperature * torch.sin(z) / 2 + self.w


def solved_module():
    cell = Scaled()
    return ims.fixed_point(cell, ZERO).value, cell.w, cell.temperature


def solved_closure():
    w, t = torch.tensor(0.3, dtype=D, requires_grad=True), torch.tensor(1.0, dtype=D)
    return ims.root(lambda z: z - t * torch.sin(z) / 2 - w, ZERO).value, w, t


def solved_linear_residual():
    # no saved tensor of the function's own graph needs t: only its Jacobian does
    w, t = torch.tensor(0.3, dtype=D, requires_grad=True), torch.tensor(2.0, dtype=D)
    return ims.root(lambda z: z * t - w, ZERO).value, w, t


def solved_minimum():
    w, t = torch.tensor(0.3, dtype=D, requires_grad=True), torch.tensor(1.0, dtype=D)
    return ims.minimize(lambda z: t * z**2 + (z - w) ** 2, ZERO).value, w, t


def solved_argument():
    w, t = torch.tensor(0.3, dtype=D, requires_grad=True), torch.tensor(1.0, dtype=D)
    return ims.root(lambda z, t: z * t - w, ZERO, (t,)).value, w, t


def solved_system():
    w = torch.tensor([0.3, 0.4], dtype=D, requires_grad=True)
    t = torch.tensor([2.0, 3.0], dtype=D)
    operator = ims.FunctionOperator(lambda v: t * v, like=w)
    return ims.linear_solve(operator, w, solver=ims.GMRES()).value.sum(), w, t


def solved_matrix():
    w = torch.tensor([0.3, 0.4], dtype=D, requires_grad=True)
    t = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=D)
    return ims.linear_solve(ims.MatrixOperator(t), w).value.sum(), w, t


SOLVED = [solved_module, solved_closure, solved_linear_residual, solved_minimum]
SOLVED += [solved_argument, solved_system, solved_matrix]


@pytest.mark.parametrize("solve", SOLVED, ids=lambda s: s.__name__)
def test_a_constant_written_to_before_the_backward_pass_is_an_error(solve):
    z, w, t = solve()
    t.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(z, w)


def test_the_error_names_the_buffer():
    z, w, temperature = solved_module()
    temperature.fill_(0.1)
    with pytest.raises(RuntimeError, match="'temperature'"):
        torch.autograd.grad(z, w)


def test_under_transforms_too():
    t = torch.tensor(2.0, dtype=D)

    w = torch.tensor(0.3, dtype=D)
    _, pull = vjp(lambda w: ims.root(lambda z: z * t - w, ZERO).value, w)
    t.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pull(ZERO + 1)


@pytest.mark.parametrize("order", [1, 2])
def test_a_buffer_that_is_replaced_keeps_its_value(order):
    cell = Scaled()
    z = ims.fixed_point(cell, ZERO).value
    cell.temperature = torch.tensor(0.1, dtype=D)
    (g,) = torch.autograd.grad(z, cell.w, create_graph=order == 2)
    slope = 1 / (1 - torch.cos(z) / 2)
    torch.testing.assert_close(g.detach(), slope.detach())
    if order == 2:
        (h,) = torch.autograd.grad(g, cell.w)
        torch.testing.assert_close(h, (-(slope**3) * torch.sin(z) / 2).detach())
    assert float(cell.temperature) == 0.1


class Multiply(nn.Module):
    """``t v`` of a buffer ``t``; nothing in it requires grad."""

    def __init__(self):
        super().__init__()
        self.register_buffer("t", torch.tensor([2.0, 4.0], dtype=D))

    def forward(self, v):
        return self.t * v


def system(module, w, solver):
    return ims.linear_solve(ims.FunctionOperator(module, like=w), w, solver=solver).value


def equation(module, w, solver):
    adjoint = ims.ImplicitAdjoint(solver)
    return ims.root(lambda z, w: module(z) - w, torch.ones_like(w), (w,), adjoint=adjoint).value


@pytest.mark.parametrize("solver", [ims.LU(), ims.GMRES(), ims.BiCGStab(), ims.LSMR()])
@pytest.mark.parametrize("solve", [system, equation])
def test_a_buffer_that_is_replaced_keeps_its_value_where_nothing_else_is_captured(solve, solver):
    module, w = Multiply(), torch.ones(2, dtype=D, requires_grad=True)
    z = solve(module, w, solver)
    (g,) = torch.autograd.grad((z**2).sum(), w, create_graph=True)
    _, pull = vjp(lambda w: solve(module, w, solver), w.detach())
    module.t = 10 * module.t
    expected = torch.tensor([0.5, 0.25], dtype=D)
    for found, exact in (
        (torch.autograd.grad(z.sum(), w, retain_graph=True)[0], expected),
        (torch.autograd.grad(g.sum(), w)[0], 2 * expected**2),
        (pull(torch.ones_like(w))[0], expected),
    ):
        torch.testing.assert_close(found, exact)


def test_batch_norm_that_went_on_training_is_no_change():
    torch.manual_seed(0)
    cell = nn.Sequential(nn.BatchNorm1d(2, dtype=D), nn.Linear(2, 2, dtype=D))
    x = torch.randn(8, 2, dtype=D)
    layer = ims.nn.FixedPoint(lambda z, x: 0.1 * cell(z) + x, init=torch.zeros_like)
    first = layer(x)
    layer(2 * x)
    (g,) = torch.autograd.grad(first.sum(), cell[1].bias)
    assert bool(torch.isfinite(g).all())


def doubles(z, a):
    a.mul_(2)
    return z**2 - a


def overwrites(z, a):
    z.clamp_(min=0)
    return z**2 - a


@pytest.mark.parametrize("solver", [None, ims.Broyden(), ims.LevenbergMarquardt()])
def test_a_function_that_writes_into_its_arguments_is_refused(solver):
    a = torch.full((2,), 2.0, dtype=D)
    with pytest.raises(ValueError, match=r"wrote into args\[0\]"):
        ims.root(doubles, torch.ones(2, dtype=D), (a,), solver=solver)
    with pytest.raises(ValueError, match=r"wrote into args\[0\]"):
        vmap(lambda a: ims.root(doubles, ONE, (a,), solver=solver).value)(torch.ones(3, dtype=D))


def test_a_function_that_writes_into_z_is_refused():
    with pytest.raises(ValueError, match="wrote into z"):
        ims.root(
            overwrites, torch.ones(2, dtype=D), (torch.ones(2, dtype=D),), solver=ims.Broyden()
        )


WRITES = {
    "mul_": lambda v: v.mul_(2),
    "a view": lambda v: [v[1:].mul_(2), 2 * v][1],
    "an entry": lambda v: [v.__setitem__(0, 7.0), 2 * v][1],
}
PRECONDITIONED = [ims.GMRES(), ims.BiCGStab(), ims.CG(), ims.MINRES(), ims.Neumann()]
FACTORED = [ims.LU(), ims.QR(), ims.SVD(), ims.Cholesky(), ims.LSMR()]


def refused_for_writing(b, call):
    before = b.detach().clone()
    with pytest.raises(ValueError, match="wrote into v"):
        call(b)
    assert torch.equal(b.detach(), before)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("solver", PRECONDITIONED + FACTORED, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", WRITES)
def test_a_product_that_writes_into_its_vector_is_refused_and_changes_nothing(name, solver, mode):
    fn, known = WRITES[name], {"symmetric": True, "positive_definite": True}
    with mode():
        b = torch.arange(1.0, 4.0, dtype=D)
        A = ims.FunctionOperator(fn, like=b, **known)
        refused_for_writing(b, lambda b: ims.linear_solve(A, b, solver=solver))
        if solver in PRECONDITIONED:
            A, how = ims.MatrixOperator(torch.diag(b), **known), {"preconditioner": fn}
            refused_for_writing(b, lambda b: ims.linear_solve(A, b, solver=solver, **how))
        if mode is torch.enable_grad and solver == ims.LU():
            b.requires_grad_()
            A = ims.FunctionOperator(fn, like=b)
            refused_for_writing(b, lambda b: ims.linear_solve(A, b))
            refused_for_writing(b, lambda b: vmap(lambda b: ims.linear_solve(A, b))(b.expand(2, 3)))


@pytest.mark.parametrize("name", ["z", r"args\[0\]"])
@pytest.mark.parametrize("kind", [ims.JacobianOperator, ims.HessianOperator])
def test_a_function_of_a_derivative_that_writes_is_refused(kind, name):
    def fn(z, a):
        (z if name == "z" else a).mul_(2)
        return z * a if kind is ims.JacobianOperator else (a * z**2).sum()

    b = torch.ones(3, dtype=D)
    with pytest.raises(ValueError, match=f"the function of {kind.__name__} wrote into {name}"):
        ims.linear_solve(kind(fn, b.clone(), (b.clone(),)), b)


def test_a_numpy_solver_that_writes_into_what_it_is_given_changes_nothing():
    @ims.custom_root(lambda x, A, b: A @ x - b)
    def solve(x0, A, b):
        A, b = A.numpy(), b.numpy()
        x = np.linalg.solve(A, b)
        A *= 2
        b += 1
        x0.numpy()[:] = 7
        return x

    A = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=D)
    b = torch.tensor([1.0, 2.0], dtype=D, requires_grad=True)
    x0 = torch.zeros(2, dtype=D)
    x = solve(x0, A, b).value
    (g,) = torch.autograd.grad(x.sum(), b)
    torch.testing.assert_close(g, torch.linalg.inv(A).sum(0))
    assert A[0, 0].item() == 2.0 and b[0].item() == 1.0 and x0[0].item() == 0.0
