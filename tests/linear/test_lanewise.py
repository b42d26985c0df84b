"""Operators that take all lanes at once: solved with, and as preconditioners, lane by lane."""

import pytest
import torch
from torch.func import vmap

import implicit_solvers as ims

F64 = torch.float64
LANES, N = 6, 5


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64)


# from a matrix that is all but diagonal to one that is not: the lanes take different steps
SPREAD = torch.logspace(-6, -0.7, LANES, dtype=F64).reshape(-1, 1, 1)
DIAGONAL = torch.linspace(1, 50, N, dtype=F64) * (1 + 0.2 * drawn(LANES, N).abs())
MATRICES = torch.diag_embed(DIAGONAL) + SPREAD * drawn(LANES, N, N, seed=1)
RIGHT = drawn(LANES, N, seed=2)
INVERSES = {
    "diagonal": ims.DiagonalOperator(1 / DIAGONAL),
    "matrix": ims.MatrixOperator(torch.diag_embed(1 / DIAGONAL)),
    "function": ims.FunctionOperator(lambda v: v / DIAGONAL, like=RIGHT),
    "bare function": lambda v: v / DIAGONAL,
}


@pytest.mark.parametrize("solver", [None, ims.LU(), ims.CG(), ims.GMRES()])
def test_diagonals_of_each_lane(solver):
    entries = DIAGONAL.clone().requires_grad_()

    def solve(entries, b, lanes):
        operator = ims.DiagonalOperator(entries, positive_definite=True)
        return ims.linear_solve(operator, b, solver=solver, **lanes).value

    value = solve(entries, RIGHT, {"batch_dims": 1})
    torch.testing.assert_close(value, RIGHT / DIAGONAL)
    (got,) = torch.autograd.grad((value**2).sum(), entries)
    torch.testing.assert_close(got, -2 * RIGHT**2 / DIAGONAL**3)
    torch.testing.assert_close(vmap(lambda e, b: solve(e, b, {}))(DIAGONAL, RIGHT), value)


def test_functions_of_all_lanes():
    weights = MATRICES.clone().requires_grad_()
    operator = ims.FunctionOperator(
        lambda v: (weights @ v.unsqueeze(-1)).squeeze(-1), like=torch.zeros(LANES, N, dtype=F64)
    )
    for solver in (None, ims.GMRES(), ims.BiCGStab(), ims.QR()):
        sol = ims.linear_solve(operator, RIGHT, solver=solver, batch_dims=1)
        assert sol.status.shape == (LANES,)
        exact = torch.linalg.solve(weights, RIGHT)
        torch.testing.assert_close(sol.value, exact, rtol=1e-8, atol=1e-8)
        got, expected = (torch.autograd.grad((x**3).sum(), weights)[0] for x in (sol.value, exact))
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_trees_of_all_lanes():
    tree = {"a": DIAGONAL, "b": DIAGONAL[:, :2].reshape(LANES, 2, 1)}
    b = {"a": RIGHT, "b": torch.ones(LANES, 2, 1, dtype=F64)}
    value = ims.linear_solve(ims.DiagonalOperator(tree), b, batch_dims=1).value
    torch.testing.assert_close(value, {k: b[k] / tree[k] for k in b})


def test_an_operator_that_lanes_share_is_not_taken_for_one_of_all_lanes():
    b = drawn(N, N, seed=3)  # as many lanes as unknowns
    value = ims.linear_solve(ims.DiagonalOperator(DIAGONAL[0]), b, batch_dims=1).value
    torch.testing.assert_close(value, b / DIAGONAL[0])


@pytest.mark.parametrize("name", INVERSES)
@pytest.mark.parametrize("solver", [ims.GMRES(), ims.BiCGStab()])
def test_preconditioners_of_each_lane(name, solver):
    operator = ims.MatrixOperator(MATRICES)
    sol = ims.linear_solve(
        operator, RIGHT, solver=solver, preconditioner=INVERSES[name], batch_dims=1
    )
    plain = ims.linear_solve(operator, RIGHT, solver=solver, batch_dims=1)
    torch.testing.assert_close(sol.value, torch.linalg.solve(MATRICES, RIGHT))
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
        z = ims.root(
            lambda z, x, A: (A @ z.unsqueeze(-1)).squeeze(-1) + 0.01 * torch.tanh(z) - x,
            torch.zeros_like(RIGHT),
            (x, A),
            adjoint=adjoint,
            batch_dims=1,
            in_dims=(0, 0),
            on_failure=policy,
        ).value
        return torch.autograd.grad((z**2).sum(), (x, A))

    adjoint = ims.ImplicitAdjoint(solver, preconditioner=preconditioner)
    for got, expected in zip(gradient(adjoint), gradient(ims.ImplicitAdjoint()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
    assert products
