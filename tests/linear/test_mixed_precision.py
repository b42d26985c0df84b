"""GMRES with float32 cycles: as accurate as float64, or it says so.

Oracles: NumPy's dense solves in float64, ``torch.linalg.inv`` for derivatives.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.linear.mixed_precision import RoundedTensors

F32, F64, C128 = torch.float32, torch.float64, torch.complex128
MIXED = ims.GMRES(inner_dtype=F32)
RTOL = torch.finfo(F64).eps ** (2 / 3)  # the default tolerance of float64


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def general(n, seed=0, dtype=F64):
    return 2 * torch.eye(n, dtype=dtype) + draw(n, n, seed=seed, dtype=dtype) / n**0.5


def with_condition(n, condition, seed=0):
    """Return a nonsymmetric matrix with singular values from 1 down to 1/condition."""
    left, right = (torch.linalg.qr(draw(n, n, seed=seed + i))[0] for i in range(2))
    return left @ torch.diag(torch.logspace(0, -float(np.log10(condition)), n, dtype=F64)) @ right


def exact(matrix, b):
    return torch.from_numpy(np.linalg.solve(matrix.numpy(), b.numpy()))


def relative_residual(matrix, x, b):
    r = b.numpy() - matrix.numpy() @ x.detach().numpy()
    return np.linalg.norm(r) / np.linalg.norm(b.numpy())


class Products(TorchDispatchMode):
    """Count the products with an n x n matrix by dtype, and its conversions to float32."""

    MULTIPLY = ("mv", "mm", "addmv", "addmv_", "bmm")

    def __init__(self, n):
        super().__init__()
        self.n, self.count = n, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [t for t in args if isinstance(t, torch.Tensor)]
        if name in self.MULTIPLY and any(t.shape[-2:] == (self.n, self.n) for t in tensors):
            self.count[out.dtype] += 1
        if name == "_to_copy" and out.dtype == F32 and out.shape[-2:] == (self.n, self.n):
            self.count["conversions"] += 1
        return out


def test_steps_are_made_in_float32_and_the_matrix_is_rounded_once_for_both_passes():
    matrix, b = general(40).requires_grad_(), draw(40, seed=1)
    with Products(40) as products:
        sol = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=MIXED)
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


N = 12
SPARSE = torch.where(draw(N, N, seed=5) > 0.8, draw(N, N, seed=6), 0.0) + 4 * torch.eye(N).double()
OFF, MAIN = 0.3 * draw(N - 1, seed=7), 2 + 0.1 * draw(N, seed=8)
TRIDIAGONAL = torch.diag(MAIN) + torch.diag(OFF, -1) - torch.diag(OFF, 1)
G, H = general(N, 1), general(N, 2)
SCALE = torch.tensor(1.7, dtype=F64)
POINT = draw(N, seed=9)


def sine(z, W):
    return 3 * z + torch.sin(W @ z)


OPERATORS = {
    "matrix": (lambda: ims.MatrixOperator(G), G),
    "transpose": (lambda: ims.MatrixOperator(G).T, G.T),
    "sparse": (lambda: ims.SparseOperator(SPARSE.to_sparse_csr()), SPARSE),
    "tridiagonal": (lambda: ims.TridiagonalOperator(OFF, MAIN, -OFF), TRIDIAGONAL),
    "sum": (
        lambda: ims.MatrixOperator(G) + SCALE * ims.DiagonalOperator(MAIN) + ims.IdentityOperator(),
        G + SCALE * torch.diag(MAIN) + torch.eye(N),
    ),
    "product": (lambda: ims.MatrixOperator(G) @ ims.MatrixOperator(H), G @ H),
    "function": (lambda: ims.FunctionOperator(lambda v: G @ v, like=POINT), G),
    "jacobian": (
        lambda: ims.JacobianOperator(sine, POINT, (G,)),
        3 * torch.eye(N).double() + torch.diag(torch.cos(G @ POINT)) @ G,
    ),
    "with-function": (
        lambda: ims.MatrixOperator(G) + ims.FunctionOperator(lambda v: 0.5 * v, like=POINT),
        G + 0.5 * torch.eye(N),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("solver", [MIXED, ims.GMRES(inner_dtype=F32, restart=4)], ids=["50", "4"])
def test_every_operator_is_solved_to_the_accuracy_of_float64(name, solver):
    make, matrix = OPERATORS[name]
    b = draw(N, seed=3)
    sol = ims.linear_solve(make(), b, solver=solver)
    assert sol.value.dtype == F64 and bool(sol.converged)
    assert relative_residual(matrix, sol.value, b) <= RTOL
    assert torch.allclose(sol.value, exact(matrix, b), rtol=1e-8, atol=1e-9)
    # the residual reported is that of the solution returned
    rms = float((b - matrix @ sol.value).norm()) / N**0.5
    assert abs(float(sol.residual) - rms) < 1e-14


@pytest.mark.parametrize("name", ["sum", "sparse", "product", "tridiagonal"])
def test_composed_operators_multiply_in_float32(name):
    seen = Counter()

    class Dtypes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            if name in ("mul", "mv", "mm", "addmv", "index_add") and out.numel() >= N:
                seen[out.dtype] += 1
            return out

    with Dtypes(), torch.no_grad():
        ims.linear_solve(OPERATORS[name][0](), draw(N, seed=3), solver=MIXED)
    assert seen[F32] > 3 * seen[F64]


def test_complex_systems():
    matrix, b = general(20, dtype=C128), draw(20, seed=1, dtype=C128)
    sol = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=MIXED)
    assert sol.value.dtype == C128 and relative_residual(matrix, sol.value, b) <= RTOL
    small = matrix[:4, :4].clone().requires_grad_()
    assert gradcheck(
        lambda m: ims.linear_solve(ims.MatrixOperator(m), b[:4], solver=MIXED).value, (small,)
    )


# -- derivatives -------------------------------------------------------------------------------


def solve(matrix, b, **options):
    return ims.linear_solve(ims.MatrixOperator(matrix), b, solver=MIXED, **options).value


def test_gradcheck():
    matrix, b = general(4).requires_grad_(), draw(4, seed=1).requires_grad_()
    assert gradcheck(
        solve,
        (matrix, b),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(solve, (matrix, b), check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("mode", [jacrev, jacfwd, hessian], ids=["reverse", "forward", "hessian"])
@pytest.mark.parametrize("name", ["matrix", "function"])
def test_derivatives_in_every_mode(mode, name):
    b, t = draw(5, seed=1), torch.tensor(0.4, dtype=F64)
    left, right = general(5, 2), general(5, 3)

    def ours(t):
        matrix = left + t**2 * right
        A = {
            "matrix": lambda: ims.MatrixOperator(matrix),
            "function": lambda: ims.FunctionOperator(lambda v: matrix @ v, like=b),
        }[name]()
        return ims.linear_solve(A, b, solver=MIXED).value.pow(3).sum()

    def oracle(t):
        return (torch.linalg.inv(left + t**2 * right) @ b).pow(3).sum()

    assert torch.allclose(mode(ours)(t), mode(oracle)(t), rtol=1e-8)


def test_a_matrix_in_lanes_and_many_right_hand_sides():
    matrices = torch.stack([general(6, seed) for seed in range(4)])
    b = draw(4, 6, seed=9)
    expected = torch.stack([exact(m, r) for m, r in zip(matrices, b, strict=True)])
    assert torch.allclose(vmap(solve)(matrices, b), expected, rtol=1e-8, atol=1e-9)
    assert torch.allclose(solve(matrices, b, batch_dims=1), expected, rtol=1e-8, atol=1e-9)
    many = solve(matrices[0], b.T)
    assert torch.allclose(many, exact(matrices[0], b.T), rtol=1e-8, atol=1e-9)
    jacobian = vmap(jacrev(solve, argnums=1))(matrices, b)
    assert torch.allclose(jacobian, torch.linalg.inv(matrices), rtol=1e-8, atol=1e-9)


# -- what float32 cannot carry -----------------------------------------------------------------

SAME_IN_FLOAT32 = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-8]], dtype=F64)


def test_a_matrix_that_is_singular_in_float32_is_solved_in_float64():
    assert np.linalg.matrix_rank(SAME_IN_FLOAT32.float().numpy()) == 1
    b = torch.tensor([1.0, 2.0], dtype=F64)
    sol = ims.linear_solve(ims.MatrixOperator(SAME_IN_FLOAT32), b, solver=MIXED)
    assert bool(sol.converged) and relative_residual(SAME_IN_FLOAT32, sol.value, b) <= RTOL


@pytest.mark.parametrize("scale", [1e-140, 1e-60, 1e-30, 1e-15, 1e15, 1e30, 1e60, 1e150])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_scales(scale, size):
    """Solutions stay in the range of float64; float32 ends at 1e38, and its norms at 1e19."""
    matrix, b = general(10), size * draw(10, seed=1)
    sol = ims.linear_solve(ims.MatrixOperator(scale * matrix), b, solver=MIXED)
    expected = exact(matrix, b / size)
    assert bool(sol.converged)
    assert torch.allclose(sol.value * scale / size, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_scales_whose_squares_leave_float64_are_failures(scale):
    sol = ims.linear_solve(
        ims.MatrixOperator(scale * general(10)), draw(10, seed=1), solver=MIXED, on_failure="mask"
    )
    assert int(sol.status) in (Status.NONFINITE, Status.BREAKDOWN, Status.STALLED)


def test_entries_out_of_range_in_one_lane_leave_the_others_in_float32():
    matrices = torch.stack([general(8, 0), 1e100 * general(8, 1), general(8, 2)])
    b = draw(3, 8, seed=1)
    sol = ims.linear_solve(ims.MatrixOperator(matrices), b, solver=MIXED, batch_dims=1)
    assert bool(sol.converged.all())
    alone = [
        ims.linear_solve(ims.MatrixOperator(m), r, solver=MIXED)
        for m, r in zip(matrices, b, strict=True)
    ]
    for i, single in enumerate(alone):
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
    matrix, b = scale * with_condition(n, condition, seed), draw(n, seed=seed + 7)
    A = ims.MatrixOperator(matrix)
    solver = ims.GMRES(inner_dtype=F32, restart=restart, max_steps=100)
    sol = ims.linear_solve(A, b, solver=solver, on_failure="mask")
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
    left, right = (torch.linalg.qr(draw(n, n, seed=i))[0] for i in range(2))
    values = torch.ones(n, dtype=F64)
    values[:6] = torch.logspace(0, -power, 6, dtype=F64)
    matrix, b = left @ torch.diag(values) @ left.T, draw(n, seed=3)
    matrix = matrix @ (torch.eye(n) + 0.01 * right)
    A = ims.MatrixOperator(matrix)
    rtol = max(RTOL, 10.0 ** (power - 14))
    plain, mixed = (
        ims.linear_solve(A, b, solver=ims.GMRES(rtol=rtol, inner_dtype=d), on_failure="mask")
        for d in (None, F32)
    )
    assert bool(plain.converged)  # or the comparison would say nothing
    assert bool(mixed.converged) and relative_residual(matrix, mixed.value, b) <= rtol


FAILURES = {
    "singular": (torch.diag(torch.tensor([1.0, 0.0], dtype=F64)), Status.BREAKDOWN),
    "zero": (torch.zeros(2, 2, dtype=F64), Status.BREAKDOWN),
    "nan": (torch.full((2, 2), torch.nan, dtype=F64), Status.NONFINITE),
    "rotation": (torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64), Status.MAX_STEPS),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(name):
    matrix, status = FAILURES[name]
    b = torch.tensor([1.0, 1.0], dtype=F64)
    solver = ims.GMRES(inner_dtype=F32, restart=1 if name == "rotation" else 50, max_steps=40)
    sol = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=solver, on_failure="mask")
    assert Status(int(sol.status)) == status and not bool(sol.converged)
    with pytest.raises(ims.ConvergenceError, match=status.name):
        ims.linear_solve(ims.MatrixOperator(matrix), b, solver=solver)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("native", [True, False])
def test_lanes_that_fail_leave_the_others_alone(compact, native):
    good = [general(8, seed) for seed in range(3)]
    singular = general(8, 3)
    singular[:, 0] = 0
    singular[0] = 0
    matrices = torch.stack(
        [good[0], singular, good[1], torch.full_like(singular, torch.nan), good[2]]
    )
    b = draw(5, 8, seed=4)
    solver = ims.GMRES(inner_dtype=F32, compact=compact, check_every=3 if native else 1)

    def one(matrix, b, **options):
        A = ims.MatrixOperator(matrix)
        return ims.linear_solve(A, b, solver=solver, on_failure="mask", **options)

    sol = one(matrices, b, batch_dims=1) if native else vmap(one)(matrices, b)
    for i in (0, 2, 4):
        alone = one(matrices[i], b[i])
        assert int(sol.status[i]) == int(alone.status) == Status.CONVERGED
        assert abs(int(sol.iterations[i]) - int(alone.iterations)) <= 1
        assert torch.allclose(sol.value[i], exact(matrices[i], b[i]), rtol=1e-8, atol=1e-9)
    assert int(sol.status[1]) in (Status.BREAKDOWN, Status.STALLED)
    assert int(sol.status[3]) == Status.NONFINITE
    leaf = matrices.clone().requires_grad_()
    vmap(lambda m, r: one(m, r).value)(leaf, b).sum().backward()
    assert bool((leaf.grad[[1, 3]] == 0).all())
    w = torch.linalg.inv(good[1]).T @ torch.ones(8, dtype=F64)
    expected = -torch.outer(w, exact(good[1], b[2]))
    assert torch.allclose(leaf.grad[2], expected, rtol=1e-8, atol=1e-9)


# -- steps, starts, preconditioners ------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 5, 8])
def test_the_number_of_steps_is_kept(most):
    A, b = ims.MatrixOperator(with_condition(30, 1e3)), draw(30, seed=1)
    solver = ims.GMRES(inner_dtype=F32, restart=3, max_steps=most)
    sol = ims.linear_solve(A, b, solver=solver, on_failure="mask")
    assert int(sol.status) == Status.MAX_STEPS and int(sol.iterations) == most
    budget = ims.GMRES(rtol=None, inner_dtype=F32, restart=3, max_steps=most)
    spent = ims.linear_solve(A, b, solver=budget)
    assert int(spent.status) == Status.BUDGET and int(spent.iterations) == most
    plain = ims.linear_solve(A, b, solver=ims.GMRES(rtol=None, restart=3, max_steps=most))
    assert torch.allclose(spent.value, plain.value, rtol=1e-4, atol=1e-5)


def test_a_budget_refines_past_float32():
    A, b = ims.MatrixOperator(general(30)), draw(30, seed=1)
    spent = ims.linear_solve(A, b, solver=ims.GMRES(rtol=None, inner_dtype=F32, max_steps=30))
    assert int(spent.iterations) == 30 and float(spent.residual) < 1e-11


def test_lanes_with_few_steps_left_do_not_take_more():
    """One lane's cycles are short and the other's long: each keeps to its own number."""
    matrices = torch.stack([torch.eye(30, dtype=F64) * 2, with_condition(30, 1e3)])
    solver = ims.GMRES(inner_dtype=F32, restart=7, max_steps=10)
    sol = ims.linear_solve(
        ims.MatrixOperator(matrices), draw(2, 30, seed=1), solver=solver, batch_dims=1,
        on_failure="mask",
    )  # fmt: skip
    assert sol.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS]
    assert int(sol.iterations[0]) <= 3 and int(sol.iterations[1]) == 10


def test_warm_start():
    matrix, b = general(20), draw(20, seed=1)
    A, x = ims.MatrixOperator(matrix), exact(matrix, b)
    assert int(ims.linear_solve(A, b, solver=MIXED, x0=x).iterations) == 0
    near = ims.linear_solve(A, b, solver=MIXED, x0=x + 1e-7 * draw(20, seed=2))
    far = ims.linear_solve(A, b, solver=MIXED)
    assert int(near.iterations) < int(far.iterations) - 5
    assert relative_residual(matrix, near.value, b) <= RTOL


def test_warm_start_of_the_backward_solve():
    start = ims.AdjointStart()
    matrix, b = general(20), draw(20, seed=1).requires_grad_()
    counts = []
    for _ in range(2):
        with ims.monitor() as log:
            x = solve(matrix, b, adjoint_start=start)
            (g,) = torch.autograd.grad(x.sum(), b)
        counts.append(int(log.records[-1].iterations.max()))
    assert counts[0] > 5 and counts[1] == 0
    assert torch.allclose(g, torch.linalg.inv(matrix).T @ torch.ones(20, dtype=F64), rtol=1e-8)


UNEVEN = torch.diag(torch.logspace(0, 5, 30, dtype=F64)) + 0.1 * draw(30, 30, seed=3) / 30**0.5
NEARLY = torch.linalg.inv(UNEVEN + 0.01 * draw(30, 30, seed=4))
PRECONDITIONERS = {
    "Jacobi": ims.Jacobi(),
    "operator": ims.MatrixOperator(NEARLY),
    "function": lambda r: NEARLY @ r,
}


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_preconditioners(name):
    b = draw(30, seed=1)
    A, leaf = ims.MatrixOperator(UNEVEN), b.clone().requires_grad_()
    M = PRECONDITIONERS[name]
    sol = ims.linear_solve(A, leaf, solver=MIXED, preconditioner=M)
    bare = ims.linear_solve(A, b, solver=MIXED)
    assert int(sol.iterations) <= 25 < int(bare.iterations)
    assert relative_residual(UNEVEN, sol.value, b) <= RTOL
    sol.value.sum().backward()
    w = exact(UNEVEN.T.contiguous(), torch.ones(30, dtype=F64))
    assert torch.allclose(leaf.grad, w, rtol=1e-7, atol=1e-9 * float(w.abs().max()))


def test_equations_solve_their_steps_and_adjoints_with_it():
    W, x = 0.5 * draw(20, 20, seed=1) / 20**0.5, draw(20, seed=2).requires_grad_()

    def equation(z, x):
        return z + torch.sin(W @ z) - x

    def root(solver):
        newton = ims.Newton(linear_solver=solver)
        adjoint = ims.ImplicitAdjoint(solver)
        z = ims.root(equation, torch.zeros(20, dtype=F64), (x,), solver=newton, adjoint=adjoint)
        return z.value, torch.autograd.grad(z.value.square().sum(), x)[0]

    for ours, reference in zip(root(MIXED), root(ims.LU()), strict=True):
        assert torch.allclose(ours, reference, rtol=1e-8, atol=1e-9)


# -- what is asked for -------------------------------------------------------------------------


@pytest.mark.parametrize("given", [torch.float64, torch.float16, torch.complex64])
def test_only_float32_is_lower_and_fast(given):
    with pytest.raises(ValueError, match=r"GMRES has inner_dtype=torch\..*pass torch.float32"):
        ims.GMRES(inner_dtype=given)


def test_what_is_no_dtype_is_refused():
    with pytest.raises(TypeError, match="GMRES has inner_dtype='float32': pass torch.float32"):
        ims.GMRES(inner_dtype="float32")


def test_float32_systems_are_solved_as_without():
    A, b = ims.MatrixOperator(general(20, dtype=F32)), draw(20, seed=1, dtype=F32)
    with_it, without = (ims.linear_solve(A, b, solver=s) for s in (MIXED, ims.GMRES()))
    assert torch.equal(with_it.value, without.value)
    assert int(with_it.iterations) == int(without.iterations)
    assert torch.equal(with_it.residual, without.residual)


def test_vectors_below_float32_are_refused():
    A, b = ims.MatrixOperator(torch.eye(4).bfloat16()), torch.ones(4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"inner_dtype=torch.float32 and the vectors are torch.bf"):
        ims.linear_solve(A, b, solver=MIXED)


def test_a_compiled_graph_says_that_it_cannot():
    def run(b):
        return solve(G, b, on_failure="mask")

    with pytest.raises(Exception, match=r"cannot use GMRES\(inner_dtype=torch.float32\)"):
        torch.compile(run, fullgraph=True, backend="eager")(draw(N))
    assert torch.allclose(torch.compile(run, backend="eager")(draw(N)), exact(G, draw(N)))


def test_tensors_are_rounded_again_when_they_change():
    kept, matrix = RoundedTensors(), general(5)
    (first,) = kept.of([matrix], "A", F32)
    assert kept.of([matrix], "A", F32)[0] is first
    assert kept.of([matrix.detach()], "A", F32)[0] is first
    assert kept.of([matrix.T], "A", F32)[0] is not first
    (first,) = kept.of([matrix], "A", F32)
    matrix.mul_(2)
    assert torch.equal(kept.of([matrix], "A", F32)[0], matrix.float())
    other = general(5, 1)
    assert torch.equal(kept.of([other], "A", F32)[0], other.float())
    indices = torch.arange(3)
    assert kept.of([indices], "A", F32)[0] is indices


def test_solvers_compare_and_print_as_their_hyperparameters():
    assert MIXED == ims.GMRES(inner_dtype=F32) != ims.GMRES()
    assert repr(MIXED).endswith("inner_dtype=torch.float32)")
    assert ims.GMRES().session() == ims.GMRES() and MIXED.session() == MIXED
