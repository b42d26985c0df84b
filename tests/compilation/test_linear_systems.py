"""`linear_solve` in one compiled graph, and with compiled steps."""

import functools
from typing import NamedTuple

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers import MatrixOperator, Status

from .comparison import agree, compare, compare_lanes, drawn, nightly_but

N = 6
EYE = torch.eye(N, dtype=torch.float64)
ROOT = drawn(N, N)
DEFINITE = ROOT @ ROOT.T + EYE
GENERAL = DEFINITE + 0.1 * drawn(N, N, seed=1)
DEFICIENT = drawn(6, 3) @ drawn(3, 5, seed=1)


def positive(A):
    return MatrixOperator(A, positive_definite=True)


def tridiagonal(d):
    return ims.TridiagonalOperator(d[..., 1:], d + 9, -d[..., :-1])


class Row(NamedTuple):
    solver: object
    operator: object
    A: torch.Tensor
    singular: float | None = 0.0  # this times A has no solution; None where everything has

    def run(self, lanes=0, **options):
        options = {"solver": self.solver, **options}

        def run(A, b):
            operator = self.operator(A)
            return ims.linear_solve(operator, b, batch_dims=lanes, on_failure="mask", **options)

        return run

    @property
    def rows(self):
        return self.A.shape[0]

    def right(self, *lanes):
        return drawn(*lanes, self.rows, seed=2).to(self.A.dtype)


ROWS = {
    "LU": Row(ims.LU(), MatrixOperator, GENERAL),
    "Cholesky": Row(ims.Cholesky(), positive, DEFINITE, -1.0),
    "Diagonal": Row(ims.Diagonal(), ims.DiagonalOperator, DEFINITE.diagonal().clone()),
    "Banded": Row(ims.Banded(), tridiagonal, drawn(N, seed=2) + 1, None),
    "CG": Row(ims.CG(), positive, DEFINITE, -1.0),
    "GMRES": Row(ims.GMRES(), MatrixOperator, GENERAL),
    "GMRES, restarted": Row(ims.GMRES(restart=4, max_steps=200), MatrixOperator, GENERAL),
    "BiCGStab": Row(ims.BiCGStab(), MatrixOperator, GENERAL),
    "QR, tall": Row(ims.QR(), MatrixOperator, drawn(7, 4), None),
    "QR, wide": Row(ims.QR(), MatrixOperator, drawn(4, 7), None),
    "SVD, deficient": Row(ims.SVD(), MatrixOperator, DEFICIENT, None),
    "SVD, complex": Row(ims.SVD(), MatrixOperator, drawn(5, 3) + 1j * drawn(5, 3, seed=1), None),
    "LSMR, deficient": Row(ims.LSMR(), MatrixOperator, DEFICIENT, None),
    "default, rectangular": Row(None, MatrixOperator, drawn(6, 3), None),
}
LONG = {"GMRES", "GMRES, restarted", "BiCGStab", "LSMR, deficient"}
ITERATIVE = {*LONG, "CG"}


def in_lanes(row, lanes=5):
    scale = torch.linspace(1.0, 2.0, lanes, dtype=row.A.dtype).reshape(-1, *(1,) * row.A.dim())
    A, b = scale * row.A, row.right(lanes)
    bad = [2]
    if row.singular is not None:
        A[1], bad = row.singular * A[1], [1, 2]
    A[2].view(-1)[0] = torch.nan
    return (A, b), bad


@pytest.mark.parametrize("name", nightly_but(["LU", "QR, tall"], ROWS))
def test_lanes_in_one_graph(name, graphs):
    row = ROWS[name]
    run = row.run(lanes=1)
    backend = "aot_eager" if name in ("LU", "Banded", *LONG) else "eager"
    inputs, bad = in_lanes(row)
    options = {"factor": 1e3 if name in ITERATIVE else 1.0}
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    sol = compare_lanes(compiled, run, inputs, (True, True), bad, **options)
    assert graphs() == 1
    if name in ("LU", "CG"):
        assert sol.status[1] == (Status.INDEFINITE if name == "CG" else Status.SINGULAR)


CASES = [(name, 0) for name in ROWS if ROWS[name].rows == N] + [("LU", 2), ("Banded", 2)]


@pytest.mark.nightly
@pytest.mark.parametrize("name, lanes", CASES)
def test_one_system_and_a_grid(name, lanes):
    row = ROWS[name]
    scale = torch.linspace(1, 2, 6, dtype=row.A.dtype).reshape(2, 3, *(1,) * row.A.dim())
    A = scale * row.A if lanes else row.A
    agree(row.run(lanes), (A, row.right(*(2, 3)[:lanes])), factor=1e3)


BUDGET = {"solver": ims.CG(max_steps=3, rtol=None)}
OPTIONS = {
    "start": {"x0": torch.ones(N, dtype=torch.float64)},
    "Jacobi": {"preconditioner": ims.Jacobi(), **BUDGET},
    "diagonal": {"preconditioner": ims.DiagonalOperator(1 / DEFINITE.diagonal()), **BUDGET},
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    """The adjoint of a linear solve is preconditioned as the solve is: a budget tells."""
    agree(ROWS["CG"].run(**OPTIONS[name]), (DEFINITE, drawn(N, seed=2)), factor=1e3)


def test_a_function_that_captures_and_a_preconditioner():
    A = DEFINITE.clone().requires_grad_()

    def run(b):
        operator = ims.FunctionOperator(lambda v: A @ v + v, like=b, positive_definite=True)
        options = {"solver": ims.CG(), "preconditioner": ims.Jacobi(), "on_failure": "mask"}
        return ims.linear_solve(operator, b, **options)

    agree(run, (drawn(N, seed=2),), (A,), factor=1e3)


# -- compile=True ----------------------------------------------------------------------------------


KRYLOV = {
    "CG": ims.CG,
    "MINRES": ims.MINRES,
    "BiCGStab": ims.BiCGStab,
    "GMRES": ims.GMRES,
    "GMRES, restarted": functools.partial(ims.GMRES, restart=4),
    "LSMR": ims.LSMR,
    "Neumann": ims.Neumann,
}


def definite(lanes, n, dtype=torch.float64):
    """Symmetric positive definite matrices near the identity, the last lanes the farthest."""
    B = drawn(lanes, n, n, dtype=dtype)
    size = torch.linspace(0.05, 0.6, lanes).reshape(-1, 1, 1)
    turned = B + B.mH
    norm = torch.linalg.matrix_norm(turned, 2, keepdim=True)
    return torch.eye(n, dtype=dtype) + size * turned / norm


def steps_agree(name, A, b, *, vmap=False, factor=1e3, **options):
    """Compare with the solver that is not compiled, all solver's options being among these."""
    for_solver = {k: options.pop(k) for k in ("rtol", "max_steps", "check_every") if k in options}

    def run(compiled):
        solver = KRYLOV[name](compile=compiled, **for_solver)

        def solve(A, b, lanes=0):
            operator = MatrixOperator(A, symmetric=True, positive_definite=True)
            return ims.linear_solve(operator, b, solver=solver, batch_dims=lanes, **options)

        # lanes of a vmap can leave, those of batch_dims cannot
        return torch.func.vmap(solve) if vmap else lambda A, b: solve(A, b, b.dim() - 1)

    return compare(run(True), run(False), (A, b), factor=factor)[0]


# with the error of float32 solves, of condition 4
DTYPES = {torch.float64: 1e-8, torch.complex128: 1e-8, torch.float32: 1e-4}


@pytest.mark.parametrize(
    "name, dtype",
    nightly_but([("GMRES, restarted", torch.float64)], [(n, d) for d in DTYPES for n in KRYLOV]),
)
def test_lanes_that_leave_one_after_the_other(name, dtype, graphs):
    A, b = definite(40, 8, dtype), drawn(40, 8, seed=1, dtype=dtype)
    b[:30] = 0
    sol = steps_agree(name, A, b, vmap=True)
    assert "restarted" not in name or sol.iterations.max() > 4
    close = {"rtol": DTYPES[dtype], "atol": DTYPES[dtype]}
    torch.testing.assert_close(sol.value, torch.linalg.solve(A, b), **close)
    assert graphs() >= 1


@pytest.mark.parametrize("name", nightly_but(["GMRES"], KRYLOV))
def test_a_lane_that_fails_changes_nothing_for_the_others(name):
    A, b = definite(18, 4), drawn(18, 4, seed=3)
    A[5], b[11, 0] = torch.nan, torch.inf
    sol = steps_agree(name, A, b, on_failure="mask")
    assert (~sol.converged).nonzero().flatten().tolist() == [5, 11]
    good = sol.converged
    exact = torch.linalg.solve(A[good], b[good])
    torch.testing.assert_close(sol.value[good], exact, rtol=1e-8, atol=1e-8)


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{"rtol": None, "max_steps": 3}, {"check_every": 3}], ids=str)
@pytest.mark.parametrize("name", KRYLOV)
def test_a_budget_and_several_steps_between_two_questions(name, options):
    sol = steps_agree(name, definite(9, 6), drawn(9, 6, seed=4), **options)
    if "rtol" in options:
        assert (sol.status == Status.BUDGET).all() and (sol.iterations == 3).all()


PRECONDITIONED = [name for name in KRYLOV if name not in ("LSMR", "GMRES, restarted")]
DIAGONAL = torch.diag_embed(1 + drawn(6, 5).abs() * 20) + 0.1 * definite(6, 5)
INVERSE = ims.DiagonalOperator(1 / DIAGONAL.diagonal(dim1=-2, dim2=-1))
PRECONDITIONERS = {
    "Jacobi": (ims.Jacobi(), definite(7, 6)[6], drawn(6, seed=6)),
    "function": (lambda v: 0.9 * v, definite(7, 6)[6], drawn(6, seed=6)),
    "lanes": (INVERSE, DIAGONAL, drawn(6, 5, seed=6)),
}
PAIRS = [(n, p) for n in PRECONDITIONED for p in PRECONDITIONERS if n != "Neumann" or p != "lanes"]


@pytest.mark.nightly
@pytest.mark.parametrize("name, kind", PAIRS)
def test_preconditioned(name, kind):
    preconditioner, A, b = PRECONDITIONERS[kind]
    steps_agree(name, A, b, preconditioner=preconditioner)


@pytest.mark.parametrize("name", KRYLOV)
def test_results_do_not_depend_on_check_every(name):
    A, b = definite(9, 6), drawn(9, 6, seed=5)
    b[3] = torch.nan
    solvers, options = [KRYLOV[name](check_every=k) for k in (1, 5)], {"on_failure": "mask"}
    A = MatrixOperator(A, symmetric=True, positive_definite=True)
    one, five = (ims.linear_solve(A, b, solver=s, batch_dims=1, **options) for s in solvers)
    assert torch.equal(one.status, five.status) and torch.equal(one.iterations, five.iterations)
    torch.testing.assert_close(one.value, five.value, rtol=1e-13, atol=1e-13, equal_nan=True)


def test_operators_of_one_class_share_graphs(graphs):
    for seed in range(5):
        A, b = definite(12, 6)[seed], drawn(6, seed=seed)
        sol = ims.linear_solve(positive(A), b, solver=ims.CG(compile=True))
        torch.testing.assert_close(A @ sol.value, b, rtol=1e-9, atol=1e-9)
    assert graphs() == 1


@pytest.mark.nightly
def test_tensors_that_share_memory():
    storage = definite(4, 6)
    A, b = storage[2], storage[2, 0]
    for solver in (ims.CG(compile=True), ims.GMRES(compile=True)):
        sol = ims.linear_solve(positive(A) + positive(A.mT), b, solver=solver)
        torch.testing.assert_close(2 * A @ sol.value, b, rtol=1e-9, atol=1e-9)


@pytest.mark.nightly
def test_a_function_that_captures_what_is_differentiated(graphs):
    weight = definite(3, 6)[2].requires_grad_()
    b = drawn(6, seed=7)

    def gradient(compiled):
        operator = ims.FunctionOperator(lambda v: weight @ v, like=b, positive_definite=True)
        sol = ims.linear_solve(operator, b, solver=ims.CG(compile=compiled))
        return torch.autograd.grad(sol.value.sum(), weight)[0]

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-8, atol=1e-8)
    assert graphs() >= 1


@pytest.mark.nightly
def test_under_vmap_grad_and_twice(graphs):
    A, b = definite(3, 4)[1], drawn(9, 4, seed=8)

    def solve(b, A, compiled):
        return ims.linear_solve(positive(A), b, solver=ims.CG(compile=compiled)).value

    def loss(A, compiled):
        return torch.func.vmap(solve, in_dims=(0, None, None))(b, A, compiled).pow(2).sum()

    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        torch.testing.assert_close(transform(loss)(A, True), transform(loss)(A, False))
    assert graphs() >= 1
