"""``compile=True`` on linear solvers: what they find, and how each lane ends, stays what it was."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.utils import counters

import implicit_solvers as ims

from .comparison import nightly_but

SOLVERS = {
    "CG": ims.CG,
    "MINRES": ims.MINRES,
    "BiCGStab": ims.BiCGStab,
    "GMRES": ims.GMRES,
    "LSMR": ims.LSMR,
    "Neumann": ims.Neumann,
}
RESTARTED = functools.partial(ims.GMRES, restart=4)


def drawn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


pytestmark = pytest.mark.usefixtures("traced_only")


def graphs():
    """The number of graphs compiled since the test began."""
    return counters["stats"]["unique_graphs"]


def definite(lanes, n, dtype=torch.float64):
    """Symmetric positive definite matrices near the identity, the last lanes the farthest."""
    B = drawn(lanes, n, n, dtype=dtype)
    size = torch.linspace(0.05, 0.6, lanes).reshape(-1, 1, 1)
    turned = B + B.mH
    norm = torch.linalg.matrix_norm(turned, 2, keepdim=True)
    return torch.eye(n, dtype=dtype) + size * turned / norm


def agree(solver, matrix, b, *, steps=1, tolerance=1e-8, leave=False, **options):
    """Assert that solution, statuses, iterations and gradients are those of the eager solver."""
    results = []
    for compiled in (False, True):
        M, rhs = (t.clone().requires_grad_() for t in (matrix, b))
        chosen = solver(compile=compiled)

        def solve(M, b, lanes=0, chosen=chosen):
            operator = ims.MatrixOperator(M, symmetric=True, positive_definite=True)
            return ims.linear_solve(operator, b, solver=chosen, batch_dims=lanes, **options)

        # lanes of a vmap can leave, those of batch_dims cannot
        sol = torch.func.vmap(solve)(M, rhs) if leave else solve(M, rhs, b.dim() - 1)
        loss = (sol.value.abs() ** 2).sum()
        results.append((sol, torch.autograd.grad(loss, (M, rhs))))
    (expected, gradients), (actual, compiled_gradients) = results
    assert torch.equal(actual.status, expected.status)
    assert int((actual.iterations - expected.iterations).abs().max()) <= steps
    torch.testing.assert_close(actual.value, expected.value, rtol=tolerance, atol=tolerance)
    for a, e in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=10 * tolerance, atol=10 * tolerance)
    return actual


@pytest.mark.parametrize("dtype", nightly_but([torch.float64], [torch.float64, torch.complex128]))
@pytest.mark.parametrize("name", SOLVERS)
def test_lanes_that_leave_one_after_the_other(name, dtype):
    b = drawn(40, 6, seed=1, dtype=dtype)
    b[:30] = 0
    agree(SOLVERS[name], definite(40, 6, dtype), b, leave=True)
    assert graphs() >= 1


def test_restarts():
    b = drawn(20, 8, seed=1)
    b[:12] *= 0
    sol = agree(RESTARTED, definite(20, 8), b, leave=True)
    assert sol.iterations.max() > 4


@pytest.mark.parametrize("name", nightly_but(["CG", "LSMR"], SOLVERS))
def test_float32_of_one_system(name):
    A, b = definite(3, 5, torch.float32)[2], drawn(5, seed=2, dtype=torch.float32)
    sol = agree(SOLVERS[name], A, b, tolerance=1e-4)
    exact = torch.linalg.solve(A.double(), b.double())
    torch.testing.assert_close(sol.value.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", nightly_but(["CG", "GMRES", "LSMR"], SOLVERS))
def test_a_lane_that_fails_changes_nothing_for_the_others(name):
    A, b = definite(18, 4), drawn(18, 4, seed=3)
    A[5], b[11, 0] = torch.nan, torch.inf
    sol = agree(SOLVERS[name], A, b, on_failure="mask")
    assert (~sol.converged).nonzero().flatten().tolist() == [5, 11]
    good = sol.converged
    alone = ims.linear_solve(
        ims.MatrixOperator(A[good], symmetric=True), b[good], solver=ims.LU(), batch_dims=1
    )
    torch.testing.assert_close(sol.value[good], alone.value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", nightly_but(["GMRES", "Neumann"], SOLVERS))
def test_a_budget_makes_exactly_its_steps(name):
    solver = functools.partial(SOLVERS[name], rtol=None, max_steps=3)
    sol = agree(solver, definite(9, 6), drawn(9, 6, seed=4), steps=0)
    assert (sol.status == ims.Status.BUDGET).all() and (sol.iterations == 3).all()


@pytest.mark.parametrize("name", nightly_but(["CG", "MINRES"], SOLVERS))
def test_several_steps_between_two_questions(name):
    solver = functools.partial(SOLVERS[name], check_every=3, max_steps=100)
    agree(solver, definite(9, 6), drawn(9, 6, seed=5))


@pytest.mark.parametrize(
    "name", nightly_but(["MINRES", "GMRES"], ["CG", "MINRES", "BiCGStab", "GMRES", "Neumann"])
)
@pytest.mark.parametrize("preconditioner", [ims.Jacobi(), lambda v: 0.9 * v])
def test_preconditioned(name, preconditioner):
    agree(
        SOLVERS[name],
        definite(7, 6)[6],
        drawn(6, seed=6),
        preconditioner=preconditioner,
    )


@pytest.mark.parametrize("name", ["GMRES", "BiCGStab"])
def test_preconditioners_of_each_lane(name):
    A = torch.diag_embed(1 + drawn(6, 5).abs() * 20) + 0.1 * definite(6, 5)
    M = ims.DiagonalOperator(1 / A.diagonal(dim1=-2, dim2=-1))
    agree(SOLVERS[name], A, drawn(6, 5, seed=6), preconditioner=M)


def test_a_function_that_captures_what_is_differentiated():
    weight = definite(3, 6)[2].requires_grad_()
    b = drawn(6, seed=7)

    def gradient(compiled):
        operator = ims.FunctionOperator(lambda v: weight @ v, like=b, positive_definite=True)
        sol = ims.linear_solve(operator, b, solver=ims.CG(compile=compiled))
        return torch.autograd.grad(sol.value.sum(), weight)[0]

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-8, atol=1e-8)
    assert graphs() >= 1


def test_under_vmap_grad_and_twice():
    A, b = definite(3, 4)[1], drawn(9, 4, seed=8)

    def solve(b, A, compiled):
        operator = ims.MatrixOperator(A, positive_definite=True)
        return ims.linear_solve(operator, b, solver=ims.CG(compile=compiled)).value

    def loss(A, compiled):
        return torch.func.vmap(solve, in_dims=(0, None, None))(b, A, compiled).pow(2).sum()

    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        torch.testing.assert_close(transform(loss)(A, True), transform(loss)(A, False))
    assert graphs() >= 1


ADJOINTS = ["Neumann", "BiCGStab", "GMRES"]


@pytest.mark.parametrize("name", nightly_but(["Neumann"], ADJOINTS))
def test_the_adjoint_of_a_module(name):
    """Its captured parameters are read where they are: nothing keeps the steps from a graph."""
    cell = nn.Linear(5, 5).double()
    nn.init.orthogonal_(cell.weight, 0.6)
    x = drawn(12, 5, seed=9)
    gradients = []
    for compiled in (False, True):
        adjoint = ims.ImplicitAdjoint(SOLVERS[name](compile=compiled))
        sol = ims.fixed_point(
            lambda z, x: torch.tanh(cell(z) + x),
            torch.zeros_like(x),
            (x,),
            adjoint=adjoint,
            batch_dims=1,
            in_dims=(0,),
        )
        gradients.append(torch.autograd.grad(sol.value.pow(2).sum(), cell.parameters()))
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-8)
    assert graphs() >= 1


def test_parameters_that_have_moved_since():
    """The backward pass knows those of the forward pass, or says that it does not."""
    weight = nn.Parameter(torch.tensor([[0.2, 0.1], [0.0, 0.3]], dtype=torch.float64))
    module = nn.Module()
    module.weight = weight
    x = drawn(2, seed=10)
    adjoint = ims.ImplicitAdjoint(ims.Neumann(compile=True))
    sol = ims.fixed_point(
        lambda z, x: torch.tanh(module.weight @ z) + x,
        torch.zeros(2).double(),
        (x,),
        adjoint=adjoint,
    )
    expected = torch.autograd.functional.jacobian(
        lambda w: ims.fixed_point(
            lambda z, x, w: torch.tanh(w @ z) + x, torch.zeros(2).double(), (x, w)
        ).value.sum(),
        weight.detach(),
    )
    module.weight = nn.Parameter(5 * weight.detach())
    got = torch.autograd.grad(sol.value.sum(), weight)[0]
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_operators_of_one_class_share_graphs():
    for seed in range(5):
        A, b = definite(12, 6)[seed], drawn(6, seed=seed)
        sol = ims.linear_solve(
            ims.MatrixOperator(A, positive_definite=True), b, solver=ims.CG(compile=True)
        )
        torch.testing.assert_close(A @ sol.value, b, rtol=1e-9, atol=1e-9)
    assert graphs() == 1


def test_tensors_that_share_memory():
    storage = definite(4, 6)
    A, b = storage[2], storage[2, 0]
    operator = ims.MatrixOperator(A, positive_definite=True) + ims.MatrixOperator(
        A.mT, positive_definite=True
    )
    for solver in (ims.CG(compile=True), ims.GMRES(compile=True)):
        sol = ims.linear_solve(operator, b, solver=solver)
        torch.testing.assert_close(2 * A @ sol.value, b, rtol=1e-9, atol=1e-9)


def test_a_loop_that_cannot_be_traced_is_made_of_compiled_steps():
    """Dynamo cannot read attributes of captured tensors in the body of a loop."""
    W, x = 0.3 * drawn(4, 4), drawn(9, 4, seed=1)
    sol = ims.root(
        lambda z, x: torch.tanh(z @ W.T) + z - x,
        torch.zeros_like(x),
        (x,),
        solver=ims.Newton(compile=True),
        batch_dims=1,
        in_dims=(0,),
    )
    z = sol.value
    torch.testing.assert_close(torch.tanh(z @ W.T) + z, x, rtol=1e-9, atol=1e-9)
    assert graphs() >= 1


def test_mixed_precision_is_not_compiled():
    with pytest.raises(ValueError, match="compile=True and inner_dtype=torch.float32: leave one"):
        ims.GMRES(compile=True, inner_dtype=torch.float32)


@settings(deadline=None, max_examples=30)
@given(
    zeros=st.integers(0, 19),
    scale=st.integers(-30, 30),
    seed=st.integers(0, 2**20),
    name=st.sampled_from(list(SOLVERS)),
)
def test_compiled_solutions_are_those_of_lapack(zeros, scale, seed, name):
    A, b = definite(20, 5), drawn(20, 5, seed=seed) * 10.0**scale
    b[:zeros] = 0
    solver = SOLVERS[name](compile=True)

    def solve(A, b):
        operator = ims.MatrixOperator(A, symmetric=True, positive_definite=True)
        return ims.linear_solve(operator, b, solver=solver).value

    exact = torch.linalg.solve(A, b)
    error = torch.linalg.vector_norm(torch.func.vmap(solve)(A, b) - exact, dim=-1)
    assert (error <= 1e-8 * torch.linalg.vector_norm(exact, dim=-1)).all()
