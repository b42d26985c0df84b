"""Krylov solvers against SciPy's, and against the minimization that defines each of them."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import hessian, jacrev, vmap

import implicit_solvers as ims

F64 = torch.float64


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def symmetric(values, seed=0):
    """Return a symmetric matrix with the given eigenvalues."""
    q = torch.linalg.qr(seeded(len(values), len(values), seed=seed))[0]
    return q @ torch.diag(values.double()) @ q.T


def indefinite(n, seed=0):
    return symmetric(
        torch.cat([-torch.linspace(1, 5, n // 2), torch.linspace(1, 9, n - n // 2)]), seed
    )


def scipy_steps(solve, matrix, b, **options):
    steps = []
    x, info = solve(matrix.numpy(), b.numpy(), callback=steps.append, **options)
    assert info == 0
    return torch.from_numpy(x), len(steps)


RTOL = 2.2e-16 ** (2 / 3)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_minres_makes_the_steps_of_scipy(preconditioned):
    matrix, b = indefinite(60), seeded(60)
    M = 0.5 + torch.linspace(0, 1, 60, dtype=F64) if preconditioned else None
    expected, steps = scipy_steps(
        scipy.sparse.linalg.minres,
        matrix,
        b,
        rtol=1e-11,
        M=np.diag(M.numpy()) if preconditioned else None,
    )
    sol = ims.linear_solve(
        ims.MatrixOperator(matrix, symmetric=True),
        b,
        solver=ims.MINRES(),
        preconditioner=ims.DiagonalOperator(M, positive_definite=True) if preconditioned else None,
    )
    assert abs(int(sol.iterations) - steps) <= 3
    assert torch.allclose(sol.value, expected, rtol=1e-8, atol=1e-8)


def test_bicgstab_makes_the_steps_of_scipy():
    matrix, b = 3 * torch.eye(60, dtype=F64) + seeded(60, 60, seed=1) / 60**0.5, seeded(60)
    expected, steps = scipy_steps(scipy.sparse.linalg.bicgstab, matrix, b, rtol=RTOL)
    sol = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=ims.BiCGStab())
    assert abs(int(sol.iterations) - steps) <= 2
    assert torch.allclose(sol.value, expected, rtol=1e-8, atol=1e-8)


def krylov(matrix, b, k):
    powers = [torch.linalg.matrix_power(matrix, j) @ b for j in range(k)]
    return torch.linalg.qr(torch.stack(powers, 1))[0]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_budget_of_minres_has_the_least_residual(k):
    matrix, b = indefinite(7), seeded(7)
    AV = matrix @ krylov(matrix, b, k)
    least = b - AV @ torch.linalg.pinv(AV) @ b
    A = ims.MatrixOperator(matrix, symmetric=True)
    sol = ims.linear_solve(A, b, solver=ims.MINRES(rtol=None, max_steps=k))
    assert torch.allclose(b - matrix @ sol.value, least, atol=1e-11)


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_indefinite_systems_in_lanes(n, dtype):
    matrices = torch.stack([indefinite(n, seed) for seed in range(4)])
    b = seeded(4, n)

    def solve(matrix, b):
        A = ims.MatrixOperator(matrix, symmetric=True)
        return ims.linear_solve(A, b, solver=ims.MINRES())

    sol = vmap(solve)(matrices.to(dtype), b.to(dtype))
    expected = torch.from_numpy(np.linalg.solve(matrices.numpy(), b.numpy()[..., None])[..., 0])
    tolerance = 20 * torch.finfo(dtype).eps ** (2 / 3)
    assert bool(sol.converged.all()) and sol.value.dtype == dtype
    assert float((sol.value.double() - expected).abs().max()) < tolerance * float(expected.norm())
    sol = ims.linear_solve(
        ims.MatrixOperator(matrices, symmetric=True), b, solver=ims.MINRES(), batch_dims=1
    )
    assert torch.allclose(sol.value, expected, atol=1e-8)


def test_derivatives_of_an_indefinite_system():
    b, t = seeded(6), torch.tensor(0.3, dtype=F64)
    left, right = indefinite(6, 1), indefinite(6, 2)

    def ours(t):
        A = ims.MatrixOperator(left + t**2 * right, symmetric=True)
        return ims.linear_solve(A, b, solver=ims.MINRES()).value

    def oracle(t):
        return torch.linalg.inv(left + t**2 * right) @ b

    assert torch.allclose(jacrev(ours)(t), jacrev(oracle)(t), rtol=1e-8)
    second = hessian(lambda t: oracle(t).pow(2).sum())(t)
    assert torch.allclose(hessian(lambda t: ours(t).pow(2).sum())(t), second, rtol=1e-7)


@given(st.integers(2, 9), st.integers(1, 8), st.integers(0, 10**6))
def test_minres_solves_singular_systems_that_have_solutions(n, rank, seed):
    values = torch.linspace(1, 3, n) * torch.tensor([(-1.0) ** i for i in range(n)])
    values[rank:] = 0
    matrix = symmetric(values, seed)
    b = matrix @ seeded(n, seed=seed + 1)
    A = ims.MatrixOperator(matrix, symmetric=True)
    sol = ims.linear_solve(A, b, solver=ims.MINRES())
    # among the solutions it is the one of least norm: no step leaves the range of A
    least = np.linalg.pinv(matrix.numpy(), rcond=1e-10) @ b.numpy()
    assert torch.allclose(sol.value, torch.from_numpy(least), atol=1e-8)


def test_indefinite_preconditioner_is_reported():
    A, b = ims.MatrixOperator(indefinite(4), symmetric=True), seeded(4)
    M = ims.DiagonalOperator(-torch.ones(4, dtype=F64))
    sol = ims.linear_solve(A, b, solver=ims.MINRES(), preconditioner=M, on_failure="mask")
    assert ims.Status(int(sol.status)) == ims.Status.INDEFINITE


def test_bicgstab_begins_again_where_the_recurrence_is_lost():
    """After one step the residual is orthogonal to the shadow: SciPy's method ends here."""
    matrix = torch.tensor([[2.0, 1.0, -1.0], [-2.0, 1.0, 2.0], [2.0, -1.0, 2.0]], dtype=F64)
    b = torch.tensor([2.0, 1.0, 1.0], dtype=F64)
    with np.errstate(all="ignore"):
        _, info = scipy.sparse.linalg.bicgstab(matrix.numpy(), b.numpy())
    assert info < 0
    sol = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=ims.BiCGStab())
    assert torch.allclose(matrix @ sol.value, b, atol=1e-9)


def test_bicgstab_reports_a_breakdown_that_it_cannot_mend():
    skew = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 2.0], [0.0, -2.0, 0.0]], dtype=F64)
    sol = ims.linear_solve(
        ims.MatrixOperator(skew), seeded(3), solver=ims.BiCGStab(), on_failure="mask"
    )
    assert ims.Status(int(sol.status)) == ims.Status.BREAKDOWN
