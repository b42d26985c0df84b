"""What was wrong without a word: starts that are nonsense, lanes that poison what others share."""

import warnings

import pytest
import torch

import implicit_solvers as ims

F64 = torch.float64
CELL = torch.tensor([[0.4, 0.1], [-0.2, 0.3]], dtype=F64)
X = torch.tensor([1.0, -2.0], dtype=F64)


def slope(linear_solver, start):
    """Return the gradient of the sum of the fixed point ``z = C z + x``, and what is kept."""
    x = X.clone().requires_grad_()
    adjoint = ims.ImplicitAdjoint(linear_solver)
    z = ims.fixed_point(
        lambda z, x: CELL @ z + x, X, (x,), adjoint=adjoint, adjoint_start=start
    ).value
    return torch.autograd.grad(z.sum(), x)[0]


NONSENSE = {
    "huge": torch.full((2,), 1e300, dtype=F64),
    "huge in one place": torch.tensor([0.0, -1e300], dtype=F64),
    "overflowing": torch.full((2,), 1.7e308, dtype=F64),
    "not a number": torch.full((2,), torch.nan, dtype=F64),
    "infinite": torch.full((2,), torch.inf, dtype=F64),
    "of another problem": torch.tensor([-40.0, 7.0], dtype=F64),
}
SOLVERS = {
    "budget": ims.Neumann(max_steps=4, rtol=None),
    "tolerance": ims.Neumann(),
    "gmres": ims.GMRES(),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("start", NONSENSE)
def test_a_nonsense_start_of_the_adjoint_changes_nothing(solver, start):
    kept = ims.AdjointStart(NONSENSE[start])
    expected = slope(SOLVERS[solver], None)
    # the same sums from the same start, zero
    torch.testing.assert_close(slope(SOLVERS[solver], kept), expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(kept.value, expected, rtol=1e-15, atol=0)


def test_a_nonsense_start_is_left_out_in_its_lane_alone():
    x = X.expand(2, 2).clone().requires_grad_()
    exact = torch.linalg.solve(torch.eye(2, dtype=F64) - CELL.T, torch.ones(2, dtype=F64))
    start = ims.AdjointStart(torch.stack([exact, torch.full((2,), 1e300, dtype=F64)]))
    options = {"adjoint": ims.ImplicitAdjoint(ims.Neumann()), "adjoint_start": start}
    z = ims.fixed_point(
        lambda z, x: z @ CELL.T + x, X.expand(2, 2), (x,), batch_dims=1, in_dims=0, **options
    ).value
    with ims.monitor() as log:
        z.sum().backward()
    assert log.adjoints()[0].iterations.tolist()[0] == 0 < log.adjoints()[0].iterations.tolist()[1]
    # the tolerance of Neumann, eps**(2/3) = 4e-11, over one minus the contraction, 0.5
    torch.testing.assert_close(x.grad, exact.expand(2, 2), rtol=1e-10, atol=1e-10)


# ---- Lanes of a linear solve that share a tensor ------------------------------------------------

MATRICES = torch.tensor([[[2.0, 1.0], [0.0, 4.0]], [[3.0, 0.5], [1.0, 5.0]]], dtype=F64)
B = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=F64)


def with_a_bad_lane(t):
    return torch.cat([t[:1], torch.full_like(t[:1], torch.nan), t[1:]])


def scaled(matrices, theta):
    return theta * ims.MatrixOperator(matrices)


def summed(matrices, theta):
    lanes, one = ims.MatrixOperator(matrices), ims.MatrixOperator(torch.diag(theta.expand(2)))
    return lanes @ one + lanes.T


def jacobian(matrices, theta):
    return ims.JacobianOperator(
        lambda z, m, theta: theta * (m @ z.unsqueeze(-1)).squeeze(-1),
        torch.zeros(len(matrices), 2, dtype=F64),
        (matrices, theta),
    )


def function(matrices, theta):
    def times(v):
        return theta * torch.stack([2 * v[..., 0] + v[..., 1], 4 * v[..., 1]], -1)

    return ims.FunctionOperator(times, like=torch.zeros(2, dtype=F64))


def captured(matrices, theta):
    def times(v):
        return theta * (matrices @ v.unsqueeze(-1)).squeeze(-1)

    return ims.FunctionOperator(times, like=torch.zeros(len(matrices), 2, dtype=F64))


OPERATORS = {
    "scaled": (scaled, None),
    "sum of products": (summed, None),
    "jacobian": (jacobian, (0, 0, None)),
    "function": (function, ()),
}
DIRECT_AND_KRYLOV = [ims.LU(), ims.GMRES()]


def gradient(make, matrices, b, in_dims, solver):
    theta = torch.tensor(1.5, dtype=F64, requires_grad=True)
    sol = ims.linear_solve(
        make(matrices, theta), b, batch_dims=1, in_dims=in_dims, solver=solver, on_failure="mask"
    )
    return torch.autograd.grad(sol.value[sol.converged].sum(), theta)[0], sol


@pytest.mark.parametrize("solver", DIRECT_AND_KRYLOV, ids=repr)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_lane_with_nan_is_kept_from_what_lanes_share(name, solver):
    make, in_dims = OPERATORS[name]
    expected, _ = gradient(make, MATRICES, B, in_dims, solver)
    got, sol = gradient(make, with_a_bad_lane(MATRICES), with_a_bad_lane(B), in_dims, solver)
    assert sol.status_names() == ["CONVERGED", "NONFINITE", "CONVERGED"]
    # the solver's eps**(2/3) = 4e-11 times the condition number, less than 6
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("make", [jacobian, captured])
def test_where_lanes_are_not_known_a_poisoned_gradient_is_said(make):
    matrices, b = with_a_bad_lane(MATRICES), with_a_bad_lane(B)
    with pytest.warns(ims.ConvergenceWarning, match=r"Pass in_dims, or .* torch\.func\.vmap"):
        value, _ = gradient(make, matrices, b, None, ims.LU())
    assert value.isnan()


def test_an_equation_without_in_dims_says_it_too():
    theta = torch.tensor(2.0, dtype=F64, requires_grad=True)
    a = torch.tensor([4.0, torch.nan], dtype=F64)

    def solve(**options):
        z0, args = torch.ones(2, dtype=F64), (a, theta)
        fn = lambda z, a, theta: theta * a * z**2 - 1
        return ims.root(fn, z0, args, batch_dims=1, on_failure="mask", **options).value

    with pytest.warns(ims.ConvergenceWarning, match="Pass in_dims"):
        assert torch.autograd.grad(solve()[0], theta)[0].isnan()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (got,) = torch.autograd.grad(solve(in_dims=(0, None))[0], theta)
    # z = 1 / sqrt(theta a), to the solver's eps**0.75
    expected = -0.5 / (a[0] * theta.detach() ** 3).sqrt()
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("in_dims, smallest", [((0, None), 2), (None, 8)])
def test_in_dims_let_lanes_leave(in_dims, smallest):
    rows, factor = [], torch.linspace(1, 50, 5, dtype=F64)
    powers = torch.cat([torch.zeros(6, 5), torch.ones(2, 5)]).to(F64)

    def fn(z, factor):
        rows.append(len(z))
        return z * factor ** z.detach()

    A = ims.JacobianOperator(fn, powers, (factor,), positive_definite=True)
    b = torch.linspace(-1, 1, 40, dtype=F64).reshape(8, 5)
    x = ims.linear_solve(A, b, solver=ims.CG(), batch_dims=1, in_dims=in_dims).value
    assert min(rows) == smallest
    # the tolerance eps**(2/3) = 4e-11 times the condition number, 50
    torch.testing.assert_close(x, b / factor**powers, rtol=1e-8, atol=1e-8)


def test_a_tensor_is_a_matrix():
    matrix = MATRICES.clone().requires_grad_()
    x = ims.linear_solve(matrix, B, batch_dims=1).value
    torch.testing.assert_close(x, torch.linalg.solve(MATRICES, B), rtol=1e-14, atol=0)
    got = torch.autograd.grad(x.sum(), matrix)[0]
    other = ims.linear_solve(ims.MatrixOperator(matrix), B, batch_dims=1).value
    torch.testing.assert_close(got, torch.autograd.grad(other.sum(), matrix)[0], rtol=0, atol=0)
