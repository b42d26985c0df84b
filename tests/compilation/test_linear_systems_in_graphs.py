"""`linear_solve` inside one compiled graph."""

import pytest
import torch

import implicit_solvers as ims

from .comparison import agree

N = 6


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


ROOT = drawn(N, N)
DEFINITE = ROOT @ ROOT.T + torch.eye(N, dtype=torch.float64)
GENERAL = DEFINITE + 0.1 * drawn(N, N, seed=1)
RIGHT = drawn(N, seed=2)


def matrix(A, **flags):
    return ims.MatrixOperator(A, **flags)


CASES = {
    "LU": (ims.LU(), matrix, GENERAL),
    "Cholesky": (ims.Cholesky(), lambda A: matrix(A, positive_definite=True), DEFINITE),
    "Diagonal": (ims.Diagonal(), ims.DiagonalOperator, DEFINITE.diagonal().clone()),
    "CG": (ims.CG(), lambda A: matrix(A, positive_definite=True), DEFINITE),
    "GMRES": (ims.GMRES(), matrix, GENERAL),
    "GMRES, restarted": (ims.GMRES(restart=4), matrix, GENERAL),
    "BiCGStab": (ims.BiCGStab(), matrix, GENERAL),
}


LONG = ("GMRES", "GMRES, restarted", "BiCGStab")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.nightly) if n in LONG else n for n in CASES]
)
def test_one_system(name):
    solver, operator, A = CASES[name]
    agree(
        lambda A, b: ims.linear_solve(operator(A), b, solver=solver, on_failure="mask"),
        (A, RIGHT),
        backend="aot_eager" if name in ("LU", "CG", *LONG) else "eager",
        factor=1.0 if name in ("LU", "Cholesky", "Diagonal") else 1e2,
    )


def test_lanes_of_matrices_of_which_one_is_singular():
    A = torch.stack([GENERAL, torch.zeros_like(GENERAL), GENERAL.T.contiguous()])
    b = drawn(3, N, seed=3)
    (sol, (gA, gb)), _ = agree(
        lambda A, b: ims.linear_solve(matrix(A), b, batch_dims=1, on_failure="mask"), (A, b)
    )
    assert sol.converged.tolist() == [True, False, True]
    assert not gA[1].any() and not gb[1].any()


def test_a_function_that_captures_and_a_preconditioner():
    A = DEFINITE.clone().requires_grad_()

    def run(b):
        operator = ims.FunctionOperator(lambda v: A @ v + v, like=b, positive_definite=True)
        return ims.linear_solve(
            operator, b, solver=ims.CG(), preconditioner=ims.Jacobi(), on_failure="mask"
        )

    agree(run, (RIGHT,), (A,), factor=1e2)


@pytest.mark.nightly
def test_a_start():
    def run(A, b):
        operator = matrix(A, positive_definite=True)
        return ims.linear_solve(
            operator, b, solver=ims.CG(), x0=torch.ones_like(b), on_failure="mask"
        )

    agree(run, (DEFINITE, RIGHT), factor=1e2)


def test_an_indefinite_matrix_fails_alone():
    A = torch.stack([DEFINITE, -DEFINITE])

    def run(A, b):
        operator = matrix(A, positive_definite=True)
        return ims.linear_solve(operator, b, solver=ims.CG(), batch_dims=1, on_failure="mask")

    (sol, (gA, _)), _ = agree(run, (A, drawn(2, N, seed=3)), factor=1e2)
    assert sol.status[1] == ims.Status.INDEFINITE
    assert not gA[1].any()
