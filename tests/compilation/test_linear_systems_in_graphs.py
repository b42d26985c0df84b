"""`linear_solve` inside one compiled graph."""

from dataclasses import replace

import pytest
import torch

import implicit_solvers as ims

from .comparison import agree, nightly_but

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
    "Banded": (ims.Banded(), lambda d: ims.TridiagonalOperator(d[1:], d + 9, -d[:-1]), RIGHT + 1),
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
        backend="aot_eager" if name in ("LU", "Banded", "CG", *LONG) else "eager",
        factor=1.0 if name in ("LU", "Cholesky", "Diagonal", "Banded") else 1e2,
    )


def test_lanes_of_matrices_of_which_one_is_singular():
    A = torch.stack([GENERAL, torch.zeros_like(GENERAL), GENERAL.T.contiguous()])
    b = drawn(3, N, seed=3)
    (sol, (gA, gb)), _ = agree(
        lambda A, b: ims.linear_solve(matrix(A), b, batch_dims=1, on_failure="mask"), (A, b)
    )
    assert sol.converged.tolist() == [True, False, True]
    assert not gA[1].any() and not gb[1].any()


@pytest.mark.parametrize("name", ["LU", "Banded"])
def test_a_grid_of_lanes(name):
    solver, operator, A = CASES[name]
    scale = torch.linspace(1, 2, 6, dtype=A.dtype).reshape(2, 3, *(1,) * A.dim())
    if name == "Banded":

        def operator(d):
            return ims.TridiagonalOperator(d[..., 1:], d + 9, -d[..., :-1])

    agree(
        lambda A, b: ims.linear_solve(
            operator(A), b, solver=solver, batch_dims=2, on_failure="mask"
        ),
        (scale * A, drawn(2, 3, N, seed=4)),
    )


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


PSEUDO = {
    "QR, tall": (ims.QR(), drawn(7, 4)),
    "QR, wide": (ims.QR(), drawn(4, 7)),
    "SVD, deficient": (ims.SVD(), drawn(6, 3) @ drawn(3, 5, seed=1)),
    "LSMR, deficient": (ims.LSMR(), drawn(6, 3) @ drawn(3, 5, seed=1)),
    "SVD, complex": (ims.SVD(), torch.complex(drawn(5, 3), drawn(5, 3, seed=1))),
}


@pytest.mark.parametrize("name", nightly_but([n for n in PSEUDO if "LSMR" not in n], PSEUDO))
def test_pseudo_inverses(name):
    solver, A = PSEUDO[name]
    scale = torch.tensor([1.0, 0.5, -2.0], dtype=A.dtype).reshape(-1, 1, 1)
    matrices = torch.stack([A, A, A]) * scale
    matrices[1, 0, 0] = torch.nan
    b = drawn(3, A.shape[0], seed=2).to(A.dtype)

    def run(A, b):
        sol = ims.linear_solve(matrix(A), b, solver=solver, batch_dims=1, on_failure="mask")
        return replace(sol, value=torch.view_as_real(sol.value)) if A.is_complex() else sol

    (sol, gradients), _ = agree(run, (matrices, b), factor=1e3)
    assert sol.converged.tolist() == [True, False, True]
    assert not any(g[1].any() for g in gradients)


def test_the_default_of_a_rectangular_operator_in_a_graph():
    agree(lambda A, b: ims.linear_solve(matrix(A), b, on_failure="mask"), (drawn(6, 3), RIGHT))
