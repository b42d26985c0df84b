"""A linear solve commutes with scaling, however large or small the right-hand side is."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch.func import vmap

import implicit_solvers as ims

F32, F64 = torch.float32, torch.float64
SIZE = 7
SOLVERS = {
    "CG": ims.CG(),
    "MINRES": ims.MINRES(),
    "GMRES": ims.GMRES(),
    "GMRES, restarted": ims.GMRES(restart=3),
    "GMRES, mixed": ims.GMRES(inner_dtype=F32),
    "BiCGStab": ims.BiCGStab(),
    "LSMR": ims.LSMR(),
    "Neumann": ims.Neumann(),
    "LU": ims.LU(),
    "Cholesky": ims.Cholesky(),
    "QR": ims.QR(),
}
EXPONENTS = {F64: (-1000, 990), F32: (-120, 110)}


def system(dtype):
    """A positive definite matrix near the identity, and a right-hand side."""
    i = torch.arange(SIZE, dtype=F64)
    G = torch.sin(1 + 3 * i.unsqueeze(1) + i**2)
    A = torch.eye(SIZE, dtype=F64) + 0.1 * (G @ G.T) / SIZE
    return A.to(dtype), torch.cos(2 * i + 1).to(dtype)


def close(x, expected, dtype):
    return float((x - expected).abs().max() / expected.abs().max()) < torch.finfo(dtype).eps ** 0.6


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=10)
def test_every_solver(dtype, solver, data):
    A, b = system(dtype)
    exponent = data.draw(st.integers(*EXPONENTS[dtype]))
    scale = torch.tensor(2.0, dtype=F64) ** exponent
    operator = ims.MatrixOperator(A, positive_definite=True)
    sol = ims.linear_solve(operator, b * scale.to(dtype), solver=solver)
    assert bool(sol.converged)
    assert close(sol.value.double() / scale, torch.linalg.solve(A.double(), b.double()), dtype)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_lanes_of_all_sizes(solver):
    A, b = system(F32)
    scales = torch.tensor([0.0, 1e-36, 1e-25, 1e-12, 1.0, 1e15, 1e33]).unsqueeze(-1)
    operator = ims.MatrixOperator(A, positive_definite=True)
    sol = vmap(lambda b: ims.linear_solve(operator, b, solver=solver, on_failure="mask"))(
        scales * b
    )
    assert bool(sol.converged.all()) and bool((sol.value[0] == 0).all())
    exact = torch.linalg.solve(A.double(), b.double())
    for x, scale in zip(sol.value[1:].double(), scales[1:].double(), strict=True):
        assert close(x / scale, exact, F32)


@pytest.mark.parametrize("adjoint", [None, ims.GMRES(), ims.BiCGStab()], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e25])
def test_gradients_of_small_and_large_losses(adjoint, scale):
    A, b = system(F32)

    def loss(A, scale):
        how = {} if adjoint is None else {"adjoint": ims.ImplicitAdjoint(adjoint)}
        z = ims.root(lambda z, A: A @ z + z**3 - b, torch.zeros_like(b), (A,), **how).value
        return scale * z.sum()

    expected = torch.autograd.functional.jacobian(lambda A: loss(A, 1.0), A)
    actual = torch.autograd.functional.jacobian(lambda A: loss(A, scale), A)
    assert close(actual.double() / scale, expected.double(), F32)


def test_an_absolute_tolerance_is_that_of_the_system_as_given():
    A, b = system(F64)
    operator = ims.MatrixOperator(A, positive_definite=True)
    for scale, steps in ((1e-200, 0), (1e200, 1)):
        sol = ims.linear_solve(operator, scale * b, solver=ims.CG(rtol=0.0, atol=1e190))
        assert bool(sol.converged) and (int(sol.iterations) > 0) == (steps > 0)
        assert float(sol.residual) <= 1e190


def test_a_solution_out_of_range_is_not_finite():
    A = ims.MatrixOperator(1e-30 * torch.eye(3), positive_definite=True)
    sol = ims.linear_solve(A, 1e20 * torch.ones(3), solver=ims.CG(), on_failure="mask")
    assert int(sol.status) == ims.Status.NONFINITE


def test_a_start_of_another_size():
    A, b = system(F64)
    operator = ims.MatrixOperator(A, positive_definite=True)
    sol = ims.linear_solve(operator, 1e-180 * b, x0=1e-170 * b, solver=ims.CG())
    assert close(sol.value * 1e180, torch.linalg.solve(A, b), F64)
