"""GMRES with float32 cycles: as accurate as float64, or it says so. What it shares is in tables."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import implicit_solvers as ims
from implicit_solvers import Status
from tests.linear.systems import BY_NAME, F32, F64, near, seeded

MIXED = ims.GMRES(inner_dtype=F32)
RTOL = torch.finfo(F64).eps ** (2 / 3)  # the default tolerance of float64


def general(n, seed=0):
    return 2 * near(seeded(n, n, seed=seed) / (2 * n**0.5))


def with_condition(n, condition, seed=0):
    """Return a nonsymmetric matrix with singular values from 1 down to 1/condition."""
    left, right = (torch.linalg.qr(seeded(n, n, seed=seed + i))[0] for i in range(2))
    return left @ torch.diag(torch.logspace(0, -float(np.log10(condition)), n, dtype=F64)) @ right


def exact(matrix, b):
    return torch.from_numpy(np.linalg.solve(matrix.numpy(), b.numpy()))


def relative_residual(matrix, x, b):
    r = b.numpy() - matrix.numpy() @ x.detach().numpy()
    return np.linalg.norm(r) / np.linalg.norm(b.numpy())


def solve(matrix, b, solver=MIXED, **options):
    return ims.linear_solve(ims.MatrixOperator(matrix), b, solver=solver, **options)


class Operations(TorchDispatchMode):
    """Count operations on tensors of this size by dtype, and conversions to float32."""

    NAMES = ("mv", "mm", "addmv", "addmv_", "bmm", "mul", "index_add")

    def __init__(self, n, names=NAMES):
        super().__init__()
        self.n, self.names, self.count = n, names, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [t for t in args if isinstance(t, torch.Tensor)]
        matrix = any(t.shape[-2:] == (self.n, self.n) for t in tensors)
        entries = name in ("mul", "index_add") and out.numel() >= self.n
        if name in self.names and (matrix or entries):
            self.count[out.dtype] += 1
        if name == "_to_copy" and out.dtype == F32 and out.shape[-2:] == (self.n, self.n):
            self.count["conversions"] += 1
        return out


def test_steps_are_made_in_float32_and_the_matrix_is_rounded_once_for_both_passes():
    matrix, b = general(40).requires_grad_(), seeded(40, seed=1)
    with Operations(40, Operations.NAMES[:5]) as products:
        sol = solve(matrix, b)
        forward = dict(products.count)
        (sol.value.square().sum() / 2).backward()
    steps = int(sol.iterations)
    assert forward[F32] == steps > 15
    assert forward[F64] == 2  # one residual for each cycle
    assert products.count["conversions"] == 1
    assert products.count[F32] > 1.8 * steps
    x = exact(matrix.detach(), b)
    w = exact(matrix.detach().T, x)
    assert torch.allclose(sol.value, x, rtol=1e-9, atol=1e-9)
    assert torch.allclose(matrix.grad, -torch.outer(w, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["sum", "sparse", "product-of-matrices", "tridiagonal"])
def test_composed_operators_multiply_in_float32(name):
    system = BY_NAME[name]
    with Operations(len(system.b)) as operations, torch.no_grad():
        system.solve(MIXED, system.b, *system.tensors)
    # two residuals are made in float64, and steps until nothing is left in float32
    assert operations.count[F32] > 1.5 * operations.count[F64]


# -- what float32 cannot carry -----------------------------------------------------------------

SAME_IN_FLOAT32 = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-8]], dtype=F64)


def test_a_matrix_that_is_singular_in_float32_is_solved_in_float64():
    assert np.linalg.matrix_rank(SAME_IN_FLOAT32.float().numpy()) == 1
    b = torch.tensor([1.0, 2.0], dtype=F64)
    sol = solve(SAME_IN_FLOAT32, b)
    assert bool(sol.converged) and relative_residual(SAME_IN_FLOAT32, sol.value, b) <= RTOL


@pytest.mark.parametrize("scale", [1e-140, 1e-60, 1e-30, 1e-15, 1e15, 1e30, 1e60, 1e150])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_scales(scale, size):
    """Solutions stay in the range of float64; float32 ends at 1e38, and its norms at 1e19."""
    matrix, b = general(10), size * seeded(10, seed=1)
    sol = solve(scale * matrix, b)
    assert bool(sol.converged)
    expected = exact(matrix, b / size)
    assert torch.allclose(sol.value * scale / size, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_scales_whose_squares_leave_float64_are_failures(scale):
    sol = solve(scale * general(10), seeded(10, seed=1), on_failure="mask")
    assert int(sol.status) in (Status.NONFINITE, Status.BREAKDOWN, Status.STALLED)


def test_entries_out_of_range_in_one_lane_leave_the_others_in_float32():
    matrices = torch.stack([general(8, 0), 1e100 * general(8, 1), general(8, 2)])
    b = seeded(3, 8, seed=1)
    sol = solve(matrices, b, batch_dims=1)
    assert bool(sol.converged.all())
    for i, single in enumerate(solve(m, r) for m, r in zip(matrices, b, strict=True)):
        assert torch.allclose(sol.value[i], single.value, rtol=1e-8, atol=0)
        assert abs(int(sol.iterations[i]) - int(single.iterations)) <= 1


@given(
    n=st.integers(2, 12),
    condition=st.floats(0, 13).map(lambda p: 10.0**p),
    scale=st.integers(-45, 45).map(lambda p: 10.0**p),
    restart=st.integers(1, 15),
    seed=st.integers(0, 10**6),
)
def test_converged_means_that_the_true_residual_is_small(n, condition, scale, restart, seed):
    matrix, b = scale * with_condition(n, condition, seed), seeded(n, seed=seed + 7)
    solver = ims.GMRES(inner_dtype=F32, restart=restart, max_steps=100)
    sol = solve(matrix, b, solver, on_failure="mask")
    small = relative_residual(matrix, sol.value, b) <= 1.001 * RTOL
    assert bool(sol.converged) == (int(sol.status) == Status.CONVERGED)
    assert small or not bool(sol.converged)
    assert int(sol.iterations) <= 100
    # whatever happens, the iterate returned is no worse than the start, zero
    assert relative_residual(matrix, sol.value, b) <= 1 + 1e-9
    if condition < 1e4 and restart >= n:
        assert bool(sol.converged)
        difference = (sol.value - exact(matrix, b)).norm() / sol.value.norm()
        assert float(difference) <= 2 * condition * RTOL


@pytest.mark.parametrize("power", [6, 8, 10, 12])
def test_ill_conditioned_systems_end_as_in_float64(power):
    """With clustered singular values full GMRES takes few steps, whatever the condition."""
    n = 60
    left, right = (torch.linalg.qr(seeded(n, n, seed=i))[0] for i in range(2))
    values = torch.ones(n, dtype=F64)
    values[:6] = torch.logspace(0, -power, 6, dtype=F64)
    matrix, b = left @ torch.diag(values) @ left.T, seeded(n, seed=3)
    matrix = matrix @ (torch.eye(n) + 0.01 * right)
    rtol = max(RTOL, 10.0 ** (power - 14))
    plain, mixed = (
        solve(matrix, b, ims.GMRES(rtol=rtol, inner_dtype=d), on_failure="mask")
        for d in (None, F32)
    )
    assert bool(plain.converged)  # or the comparison would say nothing
    assert bool(mixed.converged) and relative_residual(matrix, mixed.value, b) <= rtol


# -- steps and budgets -------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 5, 8])
def test_steps_and_budgets_go_past_restarts_as_in_float64(most):
    matrix, b = with_condition(30, 1e3), seeded(30, seed=1)
    options = {"restart": 3, "max_steps": most}
    sol = solve(matrix, b, ims.GMRES(inner_dtype=F32, **options), on_failure="mask")
    assert int(sol.status) == Status.MAX_STEPS and int(sol.iterations) == most
    spent = solve(matrix, b, ims.GMRES(rtol=None, inner_dtype=F32, **options))
    assert int(spent.status) == Status.BUDGET and int(spent.iterations) == most
    plain = solve(matrix, b, ims.GMRES(rtol=None, **options))
    assert torch.allclose(spent.value, plain.value, rtol=1e-4, atol=1e-5)


def test_a_budget_refines_past_float32():
    spent = solve(
        general(30), seeded(30, seed=1), ims.GMRES(rtol=None, inner_dtype=F32, max_steps=30)
    )
    assert int(spent.iterations) == 30 and float(spent.residual) < 1e-11


def test_lanes_with_few_steps_left_do_not_take_more():
    """One lane's cycles are short and the other's long: each keeps to its own number."""
    matrices = torch.stack([torch.eye(30, dtype=F64) * 2, with_condition(30, 1e3)])
    solver = ims.GMRES(inner_dtype=F32, restart=7, max_steps=10)
    sol = solve(matrices, seeded(2, 30, seed=1), solver, batch_dims=1, on_failure="mask")
    assert sol.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS]
    assert int(sol.iterations[0]) <= 3 and int(sol.iterations[1]) == 10


def test_equations_solve_their_steps_and_adjoints_with_it():
    W, x = 0.5 * seeded(20, 20, seed=1) / 20**0.5, seeded(20, seed=2).requires_grad_()

    def equation(z, x):
        return z + torch.sin(W @ z) - x

    def root(solver):
        newton, adjoint = ims.Newton(linear_solver=solver), ims.ImplicitAdjoint(solver)
        z = ims.root(equation, torch.zeros(20, dtype=F64), (x,), solver=newton, adjoint=adjoint)
        return z.value, torch.autograd.grad(z.value.square().sum(), x)[0]

    for ours, reference in zip(root(MIXED), root(ims.LU()), strict=True):
        assert torch.allclose(ours, reference, rtol=1e-8, atol=1e-9)


# -- what is asked for -------------------------------------------------------------------------


def test_float32_systems_are_solved_as_without():
    matrix, b = general(20).float(), seeded(20, seed=1).float()
    with_it, without = (solve(matrix, b, s) for s in (MIXED, ims.GMRES()))
    assert torch.equal(with_it.value, without.value)
    assert int(with_it.iterations) == int(without.iterations)
    assert torch.equal(with_it.residual, without.residual)


def test_a_matrix_that_changed_is_rounded_again():
    matrix, b = general(5), seeded(5)
    for change in (1.0, 2.0, -0.5):
        matrix.mul_(change)
        for seen in (matrix, matrix.detach(), matrix.T):
            assert relative_residual(seen, solve(seen, b).value, b) <= RTOL
