"""What iterative linear solvers add: steps, budgets, starts, preconditioners, scales, lanes.

Steps are compared with SciPy's, budgets with the minimization that defines each method.
"""

import functools
import math

import hypothesis
import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.linear.systems import EYE, F32, F64, B, W, error, near, seeded, spd, with_eigenvalues

MIXED = functools.partial(ims.GMRES, inner_dtype=F32)
# how to make each solver, and a positive definite matrix on which it takes more than four steps
SPREAD = with_eigenvalues(torch.linspace(1, 100, 30))
NEAR = with_eigenvalues(torch.linspace(0.2, 1.8, 30))
ITERATIVE = {
    "CG": (ims.CG, SPREAD),
    "MINRES": (ims.MINRES, SPREAD),
    "GMRES": (ims.GMRES, SPREAD),
    "GMRES-10": (functools.partial(ims.GMRES, restart=10), SPREAD),
    "GMRES-mixed": (MIXED, SPREAD),
    "BiCGStab": (ims.BiCGStab, SPREAD),
    "Neumann": (ims.Neumann, NEAR),
    "LSMR": (ims.LSMR, SPREAD),
}
iterative = pytest.mark.parametrize("name", ITERATIVE)
DIRECT = {"LU": (ims.LU, None), "Cholesky": (ims.Cholesky, None), "QR": (ims.QR, None)}


def solve(matrix, b, solver, flag="positive_definite", **options):
    A = ims.MatrixOperator(matrix, **{flag: True} if flag else {})
    return ims.linear_solve(A, b, solver=solver, **options)


def rms(matrix, b, x):
    return torch.linalg.vector_norm(b - matrix @ x) / math.sqrt(len(b))


# -- one system goes the way of the same system among others: steps, status, iterate, residual --


def alone_and_among_others(matrix, b, solver, flag="positive_definite", x0=None, **options):
    options |= {"on_failure": "mask"}
    start = {} if x0 is None else {"x0": torch.stack([x0, x0])}
    lanes = solve(matrix, torch.stack([b, b]), solver, flag, batch_dims=1, **options, **start)
    alone = solve(matrix, b, solver, flag, **options, **({} if x0 is None else {"x0": x0}))
    assert int(alone.status) == int(lanes.status[0])
    assert abs(int(alone.iterations) - int(lanes.iterations[0])) <= 1
    return alone, lanes


@given(
    name=st.sampled_from([*ITERATIVE]),
    dtype=st.sampled_from([F32, F64]),
    n=st.integers(1, 12),
    decades=st.floats(0, 2),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 1e-25, 1e20]),
    jacobi=st.booleans(),
    started=st.booleans(),
)
def test_alone_as_among_others(name, dtype, n, decades, seed, scale, jacobi, started):
    decades = 0.0 if name == "Neumann" else min(decades, 1.0) if name == "BiCGStab" else decades
    matrix = with_eigenvalues(torch.logspace(-decades, 0, n, dtype=F64), seed=seed).to(dtype)
    b = scale * seeded(n, seed=seed).to(dtype)
    takes = {} if name == "LSMR" else {"preconditioner": ims.Jacobi() if jacobi else None}
    x0 = scale * torch.ones(n, dtype=dtype) if started and name != "LSMR" else None
    solver = ITERATIVE[name][0]()
    alone, lanes = alone_and_among_others(matrix, b, solver, x0=x0, **takes)
    assert bool(alone.converged)
    # each is off by the tolerance times the condition, LSMR's squared
    condition = 10 ** (decades * (2 if name == "LSMR" else 1))
    size = float(lanes.value[0].abs().max())
    limit = 30 * condition * torch.finfo(dtype).eps ** (2 / 3) * size
    assert float((alone.value - lanes.value[0]).abs().max()) <= limit


UNITS = {"LSMR": (ims.LSMR(), seeded(8, 5)), "BiCGStab": (ims.BiCGStab(), near(seeded(8, 8) / 9))}


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("dtype, exponents", [(F32, (-80, -40, 40, 80)), (F64, (-900, 900))])
def test_the_units_of_an_operator_change_no_digit(name, dtype, exponents):
    solver, matrix = UNITS[name]
    matrix, b = matrix.to(dtype), seeded(8, seed=1).to(dtype)
    x = solve(matrix, b, solver, None).value
    for exponent in exponents:
        for of_b in (0, 35, -35):
            unit, other = 2.0**exponent, 2.0**of_b
            found = solve(unit * matrix, other * b, solver, None).value
            assert torch.equal(found * unit / other, x)


@iterative
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_budgets_and_too_few_steps(name, steps):
    make, matrix = ITERATIVE[name]
    b = seeded(30)
    for rtol, status in ((None, Status.BUDGET), (1e-12, Status.MAX_STEPS)):
        solver = make(rtol=rtol, max_steps=steps)
        alone, lanes = alone_and_among_others(matrix, b, solver)
        assert int(alone.status) == status and not bool(alone.converged)
        assert int(alone.iterations) == int(lanes.iterations[0]) == steps
        # roundings of five products, of float32 in cycles of mixed precision
        assert error(lanes.value[0], alone.value) < (1e-4 if "mixed" in name else 1e-11)
        assert torch.allclose(alone.residual, rms(matrix, b, alone.value), rtol=1e-10)


def normal(matrix, b):
    return matrix.T @ matrix, matrix.T @ b


def least_energy(A, b, V):
    return V @ torch.linalg.inv(V.T @ A @ V) @ (V.T @ b)


def least_residual(A, b, V):
    return V @ torch.linalg.pinv(A @ V) @ b


BOTH_SIGNS = with_eigenvalues(torch.tensor([-1.0, -3.0, -5.0, 1.0, 3.0, 6.0, 9.0]))
KRYLOV = {
    "CG": (ims.CG, with_eigenvalues(torch.linspace(1, 9, 7)), least_energy),
    "MINRES": (ims.MINRES, BOTH_SIGNS, least_residual),
    "GMRES": (ims.GMRES, near(0.3 * seeded(7, 7, seed=3)), least_residual),
    "LSMR": (ims.LSMR, seeded(9, 7), lambda A, b, V: least_residual(*normal(A, b), V)),
}


@pytest.mark.parametrize("name", KRYLOV)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_budget_is_best_in_the_krylov_space(name, k):
    make, matrix, best = KRYLOV[name]
    b = seeded(len(matrix))
    flag = {ims.CG: "positive_definite", ims.MINRES: "symmetric"}.get(make)
    A, start = normal(matrix, b) if make is ims.LSMR else (matrix, b)
    powers = [torch.linalg.matrix_power(A, j) @ start for j in range(k)]
    V = torch.linalg.qr(torch.stack(powers, 1))[0]
    sol = solve(matrix, b, make(rtol=None, max_steps=k), flag)
    # the basis of powers loses digits: a condition of 9**8
    assert error(matrix @ sol.value, matrix @ best(matrix, b, V)) < 1e-9


@pytest.mark.parametrize("k", [0, 1, 2, 7])
def test_budget_of_neumann_is_the_explicit_sum(k):
    b, A = B[:3].clone().requires_grad_(), near(W).requires_grad_()
    value = solve(A, b, ims.Neumann(rtol=None, max_steps=k), None).value
    series = sum((torch.linalg.matrix_power(-W, j) for j in range(k)), 0 * EYE)
    assert error(value.detach(), series @ B[:3]) < 1e-14
    value.sum().backward()
    # the adjoint is the same series of the transpose
    w = series.T @ torch.ones(3, dtype=F64)
    assert error(b.grad, w) < 1e-14
    assert error(A.grad, -torch.outer(w, series @ B[:3])) < 1e-14


@iterative
def test_budget_may_outlast_the_residual(name):
    """Steps past an exact solution neither divide 0 by 0 nor move."""
    A, b = (0.5 * EYE).requires_grad_(), B[:3].clone().requires_grad_()
    sol = solve(A, b, ITERATIVE[name][0](rtol=None, max_steps=80))
    assert int(sol.status) == Status.BUDGET
    assert int(sol.iterations) == 80 or name == "GMRES-mixed"  # ends where nothing is left
    assert error(sol.value, 2 * B[:3]) < 1e-15
    sol.value.sum().backward()
    assert torch.isfinite(A.grad).all()
    assert error(b.grad, torch.full((3,), 2.0).double()) < 1e-15


def test_budget_is_spent_on_the_preconditioned_system():
    """Two terms of the Neumann series with a preconditioner: M b + M (b - A M b)."""
    solver = ims.Neumann(max_steps=2, rtol=None)
    M = ims.MatrixOperator(NEARLY)
    value = solve(ILL, B12, solver, None, preconditioner=M).value
    assert error(value, NEARLY @ B12 + NEARLY @ (B12 - ILL @ (NEARLY @ B12))) < 1e-12


@pytest.mark.parametrize("name", ["CG", "GMRES", "GMRES-mixed", "MINRES"])
def test_a_failed_solve_returns_its_best_iterate(name):
    """Residuals go up and down; more steps never return a worse one."""
    matrix, least = with_eigenvalues(torch.logspace(-6, 0, 40, dtype=F64), seed=3), math.inf
    b = seeded(40)
    for steps in range(2, 30, 3):
        solver = ITERATIVE[name][0](rtol=1e-14, max_steps=steps)
        sol, _ = alone_and_among_others(matrix, b, solver)
        assert int(sol.status) == Status.MAX_STEPS and int(sol.iterations) == steps
        assert float(sol.residual) <= least * (1 + 1e-9)
        assert torch.allclose(rms(matrix, b, sol.value), sol.residual, rtol=1e-6)
        least = float(sol.residual)


# -- against SciPy, and where a method ends ------------------------------------------------------

INDEFINITE = with_eigenvalues(torch.cat([-torch.linspace(1, 5, 30), torch.linspace(1, 9, 30)]))
M60 = 0.5 + torch.linspace(0, 1, 60, dtype=F64)
SCIPY = {
    "minres": (ims.MINRES(), INDEFINITE, {"rtol": 1e-11}),
    "minres preconditioned": (ims.MINRES(), INDEFINITE, {"rtol": 1e-11, "M": M60}),
    "bicgstab": (ims.BiCGStab(), 3 * near(seeded(60, 60, seed=1) / 23), {"rtol": 3.7e-11}),
    "cg": (ims.CG(), SPREAD, {"rtol": 3.7e-11}),
}


@pytest.mark.parametrize("name", SCIPY)
def test_steps_are_those_of_scipy(name):
    solver, matrix, options = SCIPY[name]
    b, steps, M = seeded(len(matrix)), [], options.get("M")
    given = options | ({"M": np.diag(M.numpy())} if M is not None else {})
    method = getattr(scipy.sparse.linalg, name.split()[0])
    x, info = method(matrix.numpy(), b.numpy(), callback=steps.append, **given)
    assert info == 0
    M = ims.DiagonalOperator(M, positive_definite=True) if M is not None else None
    flag = {"bicgstab": None, "cg": "positive_definite"}.get(name, "symmetric")
    sol = solve(matrix, b, solver, flag, preconditioner=M)
    assert abs(int(sol.iterations) - len(steps)) <= 3
    assert torch.allclose(sol.value, torch.from_numpy(x), rtol=1e-8, atol=1e-8)


def test_lsmr_makes_the_steps_of_scipy():
    matrix = seeded(80, 40) @ torch.diag(torch.logspace(0, 1.5, 40, dtype=F64))
    b, stop = seeded(80, seed=1), {"atol": 3.7e-11, "btol": 3.7e-11, "maxiter": 500}
    x, _, steps, *_ = scipy.sparse.linalg.lsmr(matrix.numpy(), b.numpy(), **stop)
    sol = solve(matrix, b, ims.LSMR(), None)
    assert abs(int(sol.iterations) - steps) <= 0.1 * steps
    assert error(sol.value, torch.from_numpy(x)) < 1e-7


@given(st.integers(2, 9), st.integers(1, 8), st.integers(0, 10**6))
def test_minres_solves_singular_systems_that_have_solutions(n, rank, seed):
    values = torch.linspace(1, 3, n) * torch.tensor([(-1.0) ** i for i in range(n)])
    values[rank:] = 0
    matrix = with_eigenvalues(values, seed=seed)
    b = matrix @ seeded(n, seed=seed + 1)
    # among the solutions it is the one of least norm: no step leaves the range of A
    least = np.linalg.pinv(matrix.numpy(), rcond=1e-10) @ b.numpy()
    value = solve(matrix, b, ims.MINRES(), "symmetric").value
    assert torch.allclose(value, torch.from_numpy(least), atol=1e-8)


def test_bicgstab_begins_again_where_the_recurrence_is_lost():
    """After one step the residual is orthogonal to the shadow: SciPy's method ends here."""
    matrix = torch.tensor([[2.0, 1.0, -1.0], [-2.0, 1.0, 2.0], [2.0, -1.0, 2.0]], dtype=F64)
    b = torch.tensor([2.0, 1.0, 1.0], dtype=F64)
    with np.errstate(all="ignore"):
        assert scipy.sparse.linalg.bicgstab(matrix.numpy(), b.numpy())[1] < 0
    assert torch.allclose(matrix @ solve(matrix, b, ims.BiCGStab(), None).value, b, atol=1e-9)


# -- exactness (wrong answer 3 of the design) --------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("atol", [0.0, 1e-30])
def test_residual_that_is_exactly_zero(dtype, atol):
    """Powers of two: the first step is exact, and its result is the one that is returned."""
    b = torch.tensor([1.0, -2.0, 4.0], dtype=dtype, requires_grad=True)
    sol = solve((2 * EYE).to(dtype), b, ims.CG(rtol=0.0, atol=atol))
    assert torch.equal(sol.value, b / 2)
    assert int(sol.iterations) == 1 and float(sol.residual) == 0
    assert int(sol.status) == Status.CONVERGED
    sol.value.sum().backward()
    assert torch.equal(b.grad, torch.full_like(b, 0.5))


@pytest.mark.parametrize("name", ["CG", "MINRES", "GMRES"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_converged_iterate_is_returned(name, k):
    """With k different eigenvalues k steps suffice; the step before is off by far more."""
    matrix, b = with_eigenvalues(torch.linspace(1, 5, k), 8), seeded(8)
    sol = solve(matrix, b, ITERATIVE[name][0](max_steps=k))
    assert int(sol.iterations) == k and bool(sol.converged)
    assert error(sol.value, torch.linalg.inv(matrix) @ b) < 1e-12


@pytest.mark.parametrize("name", [*ITERATIVE, *DIRECT])
def test_right_hand_side_of_zero(name):
    solver = (ITERATIVE | DIRECT)[name][0]()
    b, A = torch.zeros(3, dtype=F64, requires_grad=True), spd(W).requires_grad_()
    sol = solve(A, b, solver)
    assert torch.equal(sol.value, torch.zeros(3, dtype=F64))
    assert bool(sol.converged) and float(sol.residual) == 0
    sol.value.sum().backward()
    assert torch.equal(A.grad, torch.zeros(3, 3, dtype=F64))
    assert error(b.grad, torch.linalg.inv(spd(W)) @ torch.ones(3, dtype=F64)) < 1e-9
    lanes = torch.stack([B[:3], 0 * B[:3], -B[:3]])
    sol = vmap(lambda b: solve(spd(W), b, solver))(lanes)
    assert bool(sol.converged.all()) and (name in DIRECT or int(sol.iterations[1]) == 0)
    assert error(sol.value, lanes @ torch.linalg.inv(spd(W))) < 1e-9


@pytest.mark.parametrize("name", ["CG", "GMRES", "MINRES", "BiCGStab"])
@pytest.mark.parametrize("options", [{}, {"rtol": 1e-15}, {"rtol": 1e-15, "max_steps": 200}])
def test_recursive_residuals_are_not_believed(name, options):
    """On a Hilbert matrix, condition 1e16, what is called converged has the residual asked for."""
    i, b = torch.arange(12, dtype=F64), torch.ones(12, dtype=F64)
    hilbert = 1 / (i[:, None] + i + 1)
    sol = solve(hilbert, b, ITERATIVE[name][0](**options), on_failure="mask")
    true = rms(hilbert, b, sol.value)
    assert torch.allclose(sol.residual, true, rtol=0.5, atol=1e-15)
    assert bool(sol.converged) == (int(sol.status) == Status.CONVERGED)
    if bool(sol.converged):
        assert true <= 1.2 * options.get("rtol", 2.2e-16 ** (2 / 3))


# -- starts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ITERATIVE if name != "LSMR"])
def test_start(name):
    make, matrix = ITERATIVE[name]
    b, solver = seeded(30), make()
    exact = torch.linalg.inv(matrix) @ b
    cold = solve(matrix, b, solver)
    x0 = (exact + 1e-8 * seeded(30, seed=1)).requires_grad_()
    warm, there = solve(matrix, b, solver, x0=x0), solve(matrix, b, solver, x0=exact)
    assert int(there.iterations) == 0 and torch.equal(there.value, exact)
    assert int(warm.iterations) < 0.75 * int(cold.iterations)
    assert error(warm.value, exact) < 1e-8
    assert not warm.value.requires_grad  # b and A do not: a start gets no gradient
    jacobian = jacrev(lambda x0: solve(matrix, b, solver, x0=x0).value)(exact)
    assert torch.equal(jacobian, torch.zeros(30, 30, dtype=F64))
    # of several right-hand sides, and of lanes
    b = seeded(30, 3)
    exact = torch.linalg.inv(matrix) @ b
    assert solve(matrix, b, solver, x0=exact).iterations.tolist() == [0, 0, 0]
    sol = vmap(lambda b, x: solve(matrix, b, solver, x0=x))(b.T, exact.T)
    assert sol.iterations.tolist() == [0, 0, 0]


# -- preconditioners ---------------------------------------------------------------------------

SCALES = torch.logspace(-3, 3, 12, dtype=F64)
ILL_SPD = SCALES[:, None].sqrt() * with_eigenvalues(torch.linspace(1, 3, 12)) * SCALES.sqrt()
ILL = SCALES[:, None] * near(0.125 * seeded(12, 12, seed=4))
NEARLY = torch.linalg.inv(ILL) @ near(1e-3 * seeded(12, 12, seed=5))
B12 = seeded(12, seed=6)
# diagonally dominant at every scale, and not symmetric: a Jacobi preconditioner suits A and A^T
BAND = torch.diag(SCALES) + 0.2 * torch.diag((SCALES[1:] * SCALES[:-1]).sqrt(), 1)
TURNED = torch.logspace(-2, 2, 12, dtype=F64) * torch.exp(1j * torch.linspace(0, 3, 12, dtype=F64))
COMPLEX = torch.diag(TURNED) @ near(0.05 * seeded(12, 12, dtype=torch.complex128))
DIAGONAL = ims.DiagonalOperator(1 / SCALES, positive_definite=True)

# solver, matrix, preconditioner, and how many steps it leaves
PRECONDITIONED = {
    "CG-Jacobi": (ims.CG(), ILL_SPD, ims.Jacobi(), 15),
    "CG-operator": (ims.CG(), ILL_SPD, DIAGONAL, 15),
    "CG-function": (ims.CG(), ILL_SPD, lambda r: r / SCALES, 15),
    "MINRES-Jacobi": (ims.MINRES(), ILL_SPD, ims.Jacobi(), 15),
    "BiCGStab-operator": (ims.BiCGStab(), ILL, ims.MatrixOperator(NEARLY), 8),
    "GMRES-Jacobi": (ims.GMRES(restart=6), BAND, ims.Jacobi(), 60),
    "GMRES-operator": (ims.GMRES(restart=6), ILL, ims.MatrixOperator(NEARLY), 8),
    "GMRES-function": (ims.GMRES(restart=6), ILL, lambda r: NEARLY @ r, 8),
    "mixed-operator": (MIXED(restart=6), ILL, ims.MatrixOperator(NEARLY), 16),
    "mixed-function": (MIXED(restart=6), ILL, lambda r: NEARLY @ r, 16),
    "Neumann-operator": (ims.Neumann(), ILL, ims.MatrixOperator(NEARLY), 12),
    "complex-operator": (ims.GMRES(), COMPLEX, ims.DiagonalOperator(1 / TURNED), 12),
    "complex-function": (ims.BiCGStab(), COMPLEX, lambda r: r / TURNED, 12),
}


@pytest.mark.parametrize("name", PRECONDITIONED)
def test_preconditioner(name):
    """It saves steps, forward and backward; the backward pass needs its transpose."""
    solver, matrix, M, most = PRECONDITIONED[name]
    flag = "positive_definite" if matrix is ILL_SPD else None
    ones = torch.ones(12, dtype=matrix.dtype)
    plain = solve(matrix, B12.to(ones), solver, flag, on_failure="mask")
    A, b = matrix.clone().requires_grad_(), B12.to(ones).clone().requires_grad_()
    with ims.monitor() as log:
        sol = solve(A, b, solver, flag, preconditioner=M)
        sol.value.real.sum().backward()
    assert int(sol.iterations) <= most
    assert most < int(plain.iterations) or "complex" in name  # 12 unknowns take 12 steps at most
    (adjoint,) = log.adjoints()
    assert int(adjoint.iterations) <= most
    inv = torch.linalg.inv(matrix)
    w = inv.mH @ ones
    # in the norm that the tolerance is stated in: the residual of each system
    assert torch.linalg.vector_norm(matrix @ sol.value.detach() - b.detach()) < 1e-10 * B12.norm()
    assert torch.linalg.vector_norm(matrix.mH @ b.grad - 1) < 1e-10 * math.sqrt(12)
    assert error(b.grad, w) < 1e-6
    assert error(A.grad, -w[:, None] * (inv @ b.detach()).conj()) < 1e-6
    lanes = seeded(3, 12, seed=7).to(ones)
    sol = vmap(lambda b: solve(matrix, b, solver, flag, preconditioner=M))(lanes)
    assert bool((sol.iterations <= most).all())
    assert bool((torch.linalg.vector_norm(sol.value @ matrix.mT - lanes, dim=-1) < 1e-9).all())


def test_preconditioner_gets_no_gradient():
    for wrap in (ims.MatrixOperator, lambda M: lambda r: M @ r):
        M, b = NEARLY.clone().requires_grad_(), B12.clone().requires_grad_()
        solve(ILL, b, ims.GMRES(), None, preconditioner=wrap(M)).value.sum().backward()
        assert M.grad is None
        assert b.grad is not None


# from a matrix that is all but diagonal to one that is not: the lanes take different steps
ENTRIES = torch.linspace(1, 50, 5, dtype=F64) * (1 + 0.2 * seeded(6, 5).abs())
MATRICES = torch.diag_embed(ENTRIES)
MATRICES = MATRICES + torch.logspace(-6, -0.7, 6, dtype=F64)[:, None, None] * seeded(6, 5, 5)
RIGHT = seeded(6, 5, seed=2)
INVERSES = {
    "diagonal": ims.DiagonalOperator(1 / ENTRIES),
    "matrix": ims.MatrixOperator(torch.diag_embed(1 / ENTRIES)),
    "function": ims.FunctionOperator(lambda v: v / ENTRIES, like=RIGHT),
    "bare function": lambda v: v / ENTRIES,
}


@pytest.mark.parametrize("name", INVERSES)
@pytest.mark.parametrize("solver", [ims.GMRES(), ims.BiCGStab(), MIXED()], ids=["G", "B", "mixed"])
def test_preconditioners_of_each_lane(name, solver):
    how = {"flag": None, "batch_dims": 1}
    sol = solve(MATRICES, RIGHT, solver, preconditioner=INVERSES[name], **how)
    plain = solve(MATRICES, RIGHT, solver, **how)
    exact = (torch.linalg.inv(MATRICES) @ RIGHT.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(sol.value, exact)
    assert sol.iterations.max() > sol.iterations.min()
    assert sol.iterations.sum() < plain.iterations.sum()


@pytest.mark.parametrize("policy", ["raise", "mask"])
@pytest.mark.parametrize("name", ["diagonal", "matrix", "function"])
@pytest.mark.parametrize("solver", [ims.GMRES(), ims.BiCGStab()])
def test_preconditioned_adjoints_of_each_lane(name, solver, policy):
    """Lanes of the adjoint end at different steps; the preconditioner of each stays its own."""
    products = []

    def preconditioner(z, x, A):
        products.append(name)
        return INVERSES[name]

    def gradient(adjoint):
        x, A = RIGHT.clone().requires_grad_(), MATRICES.clone().requires_grad_()
        fn = lambda z, x, A: (A @ z.unsqueeze(-1)).squeeze(-1) + 0.01 * torch.tanh(z) - x
        options = {"batch_dims": 1, "in_dims": (0, 0), "on_failure": policy, "adjoint": adjoint}
        z = ims.root(fn, torch.zeros_like(RIGHT), (x, A), **options).value
        return torch.autograd.grad((z**2).sum(), (x, A))

    adjoint = ims.ImplicitAdjoint(solver, preconditioner=preconditioner)
    for got, expected in zip(gradient(adjoint), gradient(ims.ImplicitAdjoint()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
    assert products


# -- lanes that end at different steps ---------------------------------------------------------


@pytest.mark.parametrize("restart", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("rtol", [1e-2, 1e-8])
def test_lanes_end_on_their_own(restart, compact, rtol):
    """A lane that has converged keeps its iterate while others go on, past their restarts too."""
    matrices = torch.stack([with_eigenvalues(torch.linspace(1, 20, k), 9, k) for k in (1, 3, 9, 9)])
    b, solver = seeded(4, 9), ims.GMRES(rtol=rtol, restart=restart, compact=compact)
    batch = vmap(lambda A, b: solve(A, b, solver, None))(matrices, b)
    for i in range(4):
        single = solve(matrices[i], b[i], solver, None)
        assert int(batch.status[i]) == int(single.status)
        assert abs(int(batch.iterations[i]) - int(single.iterations)) <= 1
        if int(batch.iterations[i]) == int(single.iterations):
            assert error(batch.value[i], single.value) < 1e-10


@iterative
def test_compact_or_not_is_the_same(name):
    matrices = torch.stack(
        [with_eigenvalues(torch.linspace(0.5, 1.5, k), 6, k) for k in (1, 2, 4, 6)]
    )

    def run(compact):
        solver = ITERATIVE[name][0](compact=compact)
        return vmap(lambda A, b: solve(A, b, solver))(matrices, seeded(4, 6))

    whole, compacted = run(False), run(True)
    assert torch.equal(whole.iterations, compacted.iterations)
    assert error(compacted.value, whole.value) < 1e-10


# -- a linear solve commutes with scaling, however large or small the right-hand side is -------

SOLVERS = {name: make() for name, (make, _) in (ITERATIVE | DIRECT).items()}
SOLVERS |= {"GMRES-3": ims.GMRES(restart=3)}
EXPONENTS = {F64: (-1000, 990), F32: (-120, 110)}
every = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def system(dtype):
    """A positive definite matrix near the identity, and a right-hand side."""
    G = seeded(7, 7)
    return near(0.1 * (G @ G.T) / 7).to(dtype), seeded(7, seed=1).to(dtype)


def close(x, A, b, dtype):
    exact = torch.linalg.inv(A.double()) @ b.double()
    # a condition of 2, and the tolerance eps**(2/3)
    return float((x - exact).abs().max() / exact.abs().max()) < torch.finfo(dtype).eps ** 0.6


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@every
@given(data=st.data())
@hypothesis.settings(max_examples=10)
def test_right_hand_sides_of_every_size(dtype, solver, data):
    A, b = system(dtype)
    scale = torch.tensor(2.0, dtype=F64) ** data.draw(st.integers(*EXPONENTS[dtype]))
    sol = solve(A, b * scale.to(dtype), solver)
    assert bool(sol.converged)
    assert close(sol.value.double() / scale, A, b, dtype)


@every
def test_lanes_of_all_sizes(solver):
    A, b = system(F32)
    scales = torch.tensor([0.0, 1e-36, 1e-25, 1e-12, 1.0, 1e15, 1e33]).unsqueeze(-1)
    sol = vmap(lambda b: solve(A, b, solver, on_failure="mask"))(scales * b)
    assert bool(sol.converged.all()) and bool((sol.value[0] == 0).all())
    for x, scale in zip(sol.value[1:].double(), scales[1:].double(), strict=True):
        assert close(x / scale, A, b, F32)


@pytest.mark.parametrize("adjoint", [None, ims.GMRES(), ims.BiCGStab()], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e25])
def test_gradients_of_small_and_large_losses(adjoint, scale):
    A, b = system(F32)

    def loss(A, scale):
        how = {} if adjoint is None else {"adjoint": ims.ImplicitAdjoint(adjoint)}
        z = ims.root(lambda z, A: A @ z + z**3 - b, torch.zeros_like(b), (A,), **how).value
        return scale * z.sum()

    expected, actual = (jacrev(loss)(A, s).double() / s for s in (1.0, scale))
    assert error(actual, expected) < torch.finfo(F32).eps ** 0.6


def test_tolerances_and_starts_of_other_sizes():
    A, b = system(F64)
    for scale, moves in ((1e-200, False), (1e200, True)):  # an absolute one is that of the system
        sol = solve(A, scale * b, ims.CG(rtol=0.0, atol=1e190))
        assert bool(sol.converged) and (int(sol.iterations) > 0) == moves
        assert float(sol.residual) <= 1e190
    sol = solve(A, 1e-180 * b, ims.CG(), x0=1e-170 * b)
    assert close(sol.value * 1e180, A, b, F64)
    sol = solve(1e-30 * EYE.float(), 1e20 * torch.ones(3), ims.CG(), on_failure="mask")
    assert int(sol.status) == Status.NONFINITE  # the solution is out of range
