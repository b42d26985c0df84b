"""A warm start of backward solves saves steps and changes no gradient."""

import pytest
import torch
from torch.func import grad, hessian, jacrev, jvp, vmap

import implicit_solvers as ims

F64 = torch.float64
N = 40


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


Q = torch.linalg.qr(seeded(N, N))[0]
SPD = Q @ torch.diag(torch.linspace(1, 50, N, dtype=F64)) @ Q.T
GENERAL = torch.eye(N, dtype=F64) + 0.5 * seeded(N, N, seed=1) / N**0.5
B, W = seeded(N, seed=2), seeded(N, seed=3)
SOLVERS = {
    "CG": (ims.CG(), SPD),
    "MINRES": (ims.MINRES(), SPD),
    "GMRES": (ims.GMRES(), GENERAL),
    "BiCGStab": (ims.BiCGStab(), GENERAL),
    "Neumann": (ims.Neumann(), GENERAL),
}


def error(value, reference):
    assert value.shape == reference.shape
    return float((value - reference).abs().max() / reference.abs().max().clamp(min=1e-2))


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
def test_linear_solve(name):
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


def cell(z, M, x):
    return 0.9 * torch.tanh(M @ z + x)


M0 = 0.5 * Q
ENTRIES = {
    "root": (lambda x, **o: ims.root(lambda z, x: z - cell(z, M0, x), B, (x,), **o), ims.GMRES()),
    "fixed_point": (lambda x, **o: ims.fixed_point(cell, B, (M0, x), **o), ims.BiCGStab()),
    "minimize": (
        lambda x, **o: ims.minimize(
            lambda z, x: 0.5 * z @ SPD @ z + 0.1 * (z**4).sum() - z @ x, B, (x,), **o
        ),
        ims.CG(),
    ),
    "least_squares": (
        lambda x, **o: ims.least_squares(lambda z, x: GENERAL @ z + 0.1 * z**3 - x, B, (x,), **o),
        ims.GMRES(),
    ),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_training_loop(entry):
    """Parameters move a little from step to step, and so does the adjoint."""
    solve, linear_solver = ENTRIES[entry]
    adjoint = ims.ImplicitAdjoint(linear_solver)

    def train(start):
        x, steps, gradients = seeded(N, seed=5).requires_grad_(), [], []
        for _ in range(4):
            with ims.monitor() as log:
                z = solve(x, adjoint=adjoint, adjoint_start=start).value
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


def solve_root(x, start=None, adjoint=ims.ImplicitAdjoint(ims.GMRES())):  # noqa: B008
    return ims.root(lambda z: z - cell(z, M0, x), B, adjoint=adjoint, adjoint_start=start).value


@pytest.mark.parametrize("used", [False, True], ids=["empty", "filled"])
def test_every_derivative_is_as_without(used):
    x, v = seeded(N, seed=5), seeded(N, seed=6)

    def start():
        return ims.AdjointStart(seeded(N, seed=7) if used else None)

    def scalar(start):
        return lambda x: (solve_root(x, start) ** 2).sum()

    small = slice(0, 3)

    def of_few(start):
        return lambda p: scalar(start)(torch.cat([p, x[3:]]))

    assert error(grad(scalar(start()))(x), grad(scalar(None))(x)) < 1e-8
    forward = jvp(lambda x: solve_root(x, start()), (x,), (v,))[1]
    assert error(forward, jvp(solve_root, (x,), (v,))[1]) < 1e-12
    second = hessian(of_few(start()))(x[small])
    assert error(second, hessian(of_few(None))(x[small])) < 1e-7
    twice = jacrev(jacrev(of_few(start())))(x[small])
    assert error(twice, hessian(of_few(None))(x[small])) < 1e-7


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
    matrix = SPD
    for value in (seeded(2, N), seeded(N).float(), [seeded(N)], seeded(N + 1)):
        start = ims.AdjointStart(value)
        g, steps = backward(ims.CG(), matrix, start)
        plain, cold = backward(ims.CG(), matrix, None)
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


REFUSED = [
    (
        "direct",
        lambda: solve_root(B, ims.AdjointStart(), ims.ImplicitAdjoint(ims.LU())),
        ValueError,
        "adjoint_start.*LU has no start",
    ),
    (
        "default",
        lambda: solve_root(B, ims.AdjointStart(), None),
        ValueError,
        "adjoint_start.*LU has no start",
    ),
    ("tensor", lambda: solve_root(B, B), TypeError, "adjoint_start is a Tensor"),
    ("number", lambda: ims.AdjointStart(1.0), TypeError, "value has a leaf of type float"),
    (
        "linear",
        lambda: ims.linear_solve(ims.MatrixOperator(SPD), B, adjoint_start=ims.AdjointStart()),
        ValueError,
        "adjoint_start.*LU has no start",
    ),
    (
        "LSMR",
        lambda: ims.linear_solve(
            ims.MatrixOperator(SPD), B, solver=ims.LSMR(), adjoint_start=ims.AdjointStart()
        ),
        ValueError,
        "adjoint_start.*LSMR has no start",
    ),
    (
        "one-step",
        lambda: ims.fixed_point(
            cell, B, (M0, B), adjoint=ims.OneStepAdjoint(), adjoint_start=ims.AdjointStart()
        ),
        ValueError,
        "adjoint_start",
    ),
]


@pytest.mark.parametrize(
    "call, exception, words", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(call, exception, words):
    with pytest.raises(exception, match=words):
        call()
