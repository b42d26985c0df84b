"""A warm start of backward solves saves steps and changes no gradient."""

import pytest
import torch
from torch.func import grad, hessian, jacrev, jvp, vmap

import implicit_solvers as ims
from tests.linear.systems import F32, F64, error, near, seeded

N = 40
Q = torch.linalg.qr(seeded(N, N))[0]
SPD = Q @ torch.diag(torch.linspace(1, 50, N, dtype=F64)) @ Q.T
GENERAL = near(0.5 * seeded(N, N, seed=1) / N**0.5)
B, W = seeded(N, seed=2), seeded(N, seed=3)
SOLVERS = {
    "CG": (ims.CG(), SPD),
    "MINRES": (ims.MINRES(), SPD),
    "GMRES": (ims.GMRES(), GENERAL),
    "GMRES-mixed": (ims.GMRES(inner_dtype=F32), GENERAL),
    "BiCGStab": (ims.BiCGStab(), GENERAL),
    "Neumann": (ims.Neumann(), GENERAL),
}


def backward(solver, matrix, start, w=W):
    """Return the gradient in b, and the steps of the backward solve."""
    b = B.clone().requires_grad_()
    A = ims.MatrixOperator(matrix, positive_definite=matrix is SPD)
    with ims.monitor() as log:
        x = ims.linear_solve(A, b, solver=solver, adjoint_start=start).value
        (x @ w).backward()
    (record,) = log.adjoints()
    return b.grad, int(record.iterations)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver(name):
    solver, matrix = SOLVERS[name]
    exact = torch.linalg.inv(matrix).T @ W
    start = ims.AdjointStart()
    first, cold = backward(solver, matrix, start)
    assert torch.equal(start.value, first)
    again, there = backward(solver, matrix, start)
    assert there == 0 and torch.equal(again, first)
    near, few = backward(solver, matrix, start, W + 1e-7 * seeded(N, seed=4))
    assert 0 < few < 0.75 * cold
    assert error(first, exact) < 1e-8 and error(near, exact) < 1e-6
    given, none = backward(solver, matrix, ims.AdjointStart(exact))
    assert none == 0 and torch.equal(given, exact)


def cell(z, x):
    return 0.9 * torch.tanh(0.5 * Q @ z + x)


def energy(z, x):
    return 0.5 * z @ SPD @ z + 0.1 * (z**4).sum() - z @ x


ENTRIES = {
    "root": (ims.root, lambda z, x: z - cell(z, x), ims.GMRES()),
    "fixed_point": (ims.fixed_point, cell, ims.BiCGStab()),
    "minimize": (ims.minimize, energy, ims.CG()),
    "least_squares": (ims.least_squares, lambda z, x: GENERAL @ z + 0.1 * z**3 - x, ims.GMRES()),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_training_loop(entry):
    """Parameters move a little from step to step, and so does the adjoint."""
    solve, fn, linear_solver = ENTRIES[entry]
    adjoint = ims.ImplicitAdjoint(linear_solver)

    def train(start):
        x, steps, gradients = seeded(N, seed=5).requires_grad_(), [], []
        for _ in range(4):
            with ims.monitor() as log:
                z = solve(fn, B, (x,), adjoint=adjoint, adjoint_start=start).value
                (g,) = torch.autograd.grad((z * W).sum(), x)
            steps.append(int(log.adjoints()[0].iterations))
            gradients.append(g)
            x = (x - 1e-6 * g).detach().requires_grad_()
        return steps, gradients

    cold_steps, cold = train(None)
    warm_steps, warm = train(ims.AdjointStart())
    assert warm_steps[0] == cold_steps[0]
    assert all(w < 0.75 * c for w, c in zip(warm_steps[1:], cold_steps[1:], strict=True))
    assert all(error(w, c) < 1e-7 for w, c in zip(warm, cold, strict=True))


def solve_root(x, start=None):
    adjoint = ims.ImplicitAdjoint(ims.GMRES())
    return ims.root(lambda z: z - cell(z, x), B, adjoint=adjoint, adjoint_start=start).value


@pytest.mark.parametrize("used", [False, True], ids=["empty", "filled"])
def test_every_derivative_is_as_without(used):
    x, v, value = (seeded(N, seed=k) for k in (5, 6, 7))

    def derivatives(start):
        scalar = lambda x: (solve_root(x, start()) ** 2).sum()
        of_few = lambda p: scalar(torch.cat([p, x[3:]]))
        yield grad(scalar)(x), 1e-8
        yield jvp(lambda x: solve_root(x, start()), (x,), (v,))[1], 1e-12
        yield hessian(of_few)(x[:3]), 1e-7
        yield jacrev(jacrev(of_few))(x[:3]), 1e-7

    ours = derivatives(lambda: ims.AdjointStart(value if used else None))
    for (found, limit), (expected, _) in zip(ours, derivatives(lambda: None), strict=True):
        assert error(found, expected) < limit


def test_lanes():
    xs, start = seeded(3, N, seed=8), ims.AdjointStart()

    def gradient(xs):
        return grad(lambda xs: (vmap(lambda x: solve_root(x, start))(xs) * W).sum())(xs)

    first = gradient(xs)
    assert start.value.shape == (3, N)
    with ims.monitor() as log:
        again = gradient(xs)
    assert log.adjoints()[0].iterations.tolist() == [0, 0, 0]
    assert torch.equal(first, again)
    each = vmap(grad(lambda x: (solve_root(x) * W).sum()))(xs)
    assert error(first, each) < 1e-8


def test_a_start_that_does_not_fit_is_zero():
    """Another batch size, dtype or structure: as if there were none, and then it fits."""
    for value in (seeded(2, N), seeded(N).float(), [seeded(N)], seeded(N + 1)):
        start = ims.AdjointStart(value)
        g, steps = backward(ims.CG(), SPD, start)
        plain, cold = backward(ims.CG(), SPD, None)
        assert steps == cold and torch.equal(g, plain)
        assert torch.equal(start.value, g)


def test_trees_and_complex_unknowns():
    start = ims.AdjointStart()
    c = torch.tensor([0.3 + 0.4j, -0.2 + 0.1j], dtype=torch.complex128)

    def fn(z, c):
        return {"a": z["a"] + 0.3 * z["a"].conj() * z["b"] - c, "b": z["b"] - 0.2 * z["a"].sum()}

    z0 = {"a": torch.zeros_like(c), "b": torch.zeros((), dtype=c.dtype)}
    adjoint = ims.ImplicitAdjoint(ims.GMRES())

    def gradient(c, start):
        value = ims.root(fn, z0, (c,), adjoint=adjoint, adjoint_start=start).value
        return (value["a"].real * value["b"].imag).sum()

    first = grad(lambda c: gradient(c, start))(c)
    assert start.value["a"].shape == (2,) and start.value["a"].is_complex()
    with ims.monitor() as log:
        assert torch.equal(grad(lambda c: gradient(c, start))(c), first)
    assert int(log.adjoints()[0].iterations) == 0
    assert error(first, grad(lambda c: gradient(c, None))(c)) < 1e-9


def test_budget_continues():
    """Two budgets of three steps, one after the other, reach what one of CG with a restart does."""
    solver, start = ims.CG(max_steps=3, rtol=None), ims.AdjointStart()
    backward(solver, SPD, start)
    g, _ = backward(solver, SPD, start)
    A = ims.MatrixOperator(SPD, positive_definite=True)
    halfway = ims.linear_solve(A, W, solver=solver).value
    assert error(g, ims.linear_solve(A, W, solver=solver, x0=halfway).value) < 1e-12


def test_lanes_that_nothing_depends_on_and_that_failed():
    start = ims.AdjointStart(seeded(3, N))
    b = seeded(3, N, seed=9).requires_grad_()
    A = ims.MatrixOperator(SPD, positive_definite=True)

    def solve(b):
        return ims.linear_solve(A, b, solver=ims.CG(), on_failure="mask", adjoint_start=start)

    sol = vmap(solve)(b)
    sol.value[0].sum().backward()
    assert torch.equal(start.value[1:], torch.zeros(2, N, dtype=F64))
    bad = b.detach().clone()
    bad[1] = torch.nan
    bad.requires_grad_()
    sol = vmap(solve)(bad)
    torch.where(sol.converged[:, None], sol.value, 0.0).sum().backward()
    assert torch.isfinite(start.value).all() and torch.isfinite(bad.grad).all()


def test_starts_are_shown():
    assert repr(ims.AdjointStart()) == "AdjointStart()"
    assert repr(ims.AdjointStart({"a": torch.ones(2)})) == "AdjointStart(shapes=[(2,)])"
