"""Rectangular and rank-deficient systems: ``x = A^+ b`` and every derivative of it.

The oracle writes the pseudo-inverse down from factors of full rank, ``A = L R^T`` and
``A^+ = R (R^T R)^-1 (L^T L)^-1 L^T``, with ``torch.linalg.inv`` only: its parameters keep the rank.
"""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status

F32, F64 = torch.float32, torch.float64


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def pinv(left, right):
    middle = torch.linalg.inv(right.mT @ right) @ torch.linalg.inv(left.mT @ left)
    return right @ middle @ left.mT


SHAPES = {
    "tall": (5, 3, 3),
    "wide": (3, 5, 3),
    "square": (4, 4, 4),
    "tall-deficient": (5, 3, 2),
    "wide-deficient": (3, 5, 2),
    "square-deficient": (4, 4, 2),
}
SOLVERS = {"QR": ims.QR(), "SVD": ims.SVD(), "LSMR": ims.LSMR(), "default": None}


def fits(shape, solver):
    return solver in ("SVD", "LSMR") or "deficient" not in shape


PAIRS = [(shape, solver) for shape in SHAPES for solver in SOLVERS if fits(shape, solver)]
pairs = pytest.mark.parametrize("shape, solver", PAIRS, ids=["-".join(pair) for pair in PAIRS])


def factors(shape, seed=0):
    m, n, rank = SHAPES[shape]
    return seeded(m, rank, seed=seed), seeded(n, rank, seed=seed + 1), seeded(m, seed=seed + 2)


def ours(solver, wrap=ims.MatrixOperator):
    def solve(left, right, b):
        return ims.linear_solve(wrap(left @ right.mT), b, solver=SOLVERS[solver]).value

    return solve


def oracle(left, right, b):
    return pinv(left, right) @ b


def error(value, reference):
    assert value.shape == reference.shape
    size = reference.detach().abs().max().clamp(min=1e-2)
    return float((value - reference).detach().abs().max() / size)


@pairs
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_value(shape, solver, dtype):
    left, right, b = factors(shape)
    matrix = (left @ right.mT).to(dtype)
    A = ims.MatrixOperator(matrix)
    sol = ims.linear_solve(A, b.to(dtype), solver=SOLVERS[solver])
    exact = np.linalg.pinv((left @ right.mT).numpy(), rcond=1e-10) @ b.numpy()
    assert sol.value.dtype == dtype and bool(sol.converged)
    assert error(sol.value.double(), torch.from_numpy(exact)) < 200 * torch.finfo(dtype).eps ** (
        2 / 3
    )
    residual = torch.linalg.vector_norm(b.to(dtype) - matrix @ sol.value) / len(b) ** 0.5
    assert torch.allclose(sol.residual, residual, atol=100 * torch.finfo(dtype).eps)


def cube(x):
    return x.sum() ** 3 + (x**2).sum()


MODES = {
    "reverse": jacrev,
    "forward": jacfwd,
    "hessian": lambda f, i: hessian(lambda *t: cube(f(*t)), i),
    "rev-fwd": lambda f, i: jacrev(jacfwd(lambda *t: cube(f(*t)), i), i),
    "rev-rev": lambda f, i: jacrev(jacrev(lambda *t: cube(f(*t)), i), i),
    "fwd-fwd": lambda f, i: jacfwd(jacfwd(lambda *t: cube(f(*t)), i), i),
}


@pairs
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_first_derivatives(shape, solver, mode):
    for i in range(3):
        expected = MODES[mode](oracle, i)(*factors(shape))
        assert error(MODES[mode](ours(solver), i)(*factors(shape)), expected) < 1e-7


@pytest.mark.parametrize(
    "shape, solver",
    [("tall", "QR"), ("wide", "QR"), ("tall-deficient", "SVD"), ("wide-deficient", "SVD"),
     ("square-deficient", "SVD"), ("tall-deficient", "LSMR")],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["hessian", "rev-fwd", "rev-rev", "fwd-fwd"])
def test_second_derivatives(shape, solver, mode):
    for i in range(3):
        expected = MODES[mode](oracle, i)(*factors(shape))
        assert error(MODES[mode](ours(solver), i)(*factors(shape)), expected) < 1e-6


@pytest.mark.parametrize(
    "shape, solver", [("tall", "QR"), ("wide", "QR"), ("square-deficient", "SVD")]
)
def test_gradcheck(shape, solver):
    inputs = tuple(t.clone().requires_grad_() for t in factors(shape))
    solve = ours(solver)
    assert gradcheck(
        solve,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(solve, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@pairs
def test_derivative_off_the_manifold_is_that_of_torch(shape, solver):
    """With a full rank every direction is allowed; else the formula counts its part on it."""
    left, right, b = factors(shape)
    matrix = left @ right.mT
    expected = jacrev(lambda A: torch.linalg.pinv(A, rtol=1e-10) @ b)(matrix)
    value = jacrev(
        lambda A: ims.linear_solve(ims.MatrixOperator(A), b, solver=SOLVERS[solver]).value
    )(matrix)
    assert error(value, expected) < 1e-7


OVER = {"b": (None, None, 0), "A": (0, 0, None), "both": (0, 0, 0)}


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize(
    "shape, solver",
    [
        ("tall", "QR"),
        ("wide", "QR"),
        ("tall", "LSMR"),
        ("wide", "LSMR"),
        ("square-deficient", "SVD"),
    ],
)
def test_vmap(shape, solver, over):
    lanes = [torch.stack(t) for t in zip(*(factors(shape, 10 * k) for k in range(4)), strict=True)]
    tensors = [t if d == 0 else t[0] for t, d in zip(lanes, OVER[over], strict=True)]
    solve, exact = ours(solver), oracle
    assert error(vmap(solve, OVER[over])(*tensors), vmap(exact, OVER[over])(*tensors)) < 1e-7
    for i in range(3):
        of_batch = grad(lambda *t: cube(vmap(solve, OVER[over])(*t)), i)(*tensors)
        assert (
            error(of_batch, grad(lambda *t: cube(vmap(exact, OVER[over])(*t)), i)(*tensors)) < 1e-6
        )
        for mode in (jacrev, jacfwd):
            batch_of = vmap(mode(solve, i), OVER[over])(*tensors)
            assert error(batch_of, vmap(mode(exact, i), OVER[over])(*tensors)) < 1e-6
    second = vmap(hessian(lambda *t: cube(solve(*t)), 2), OVER[over])(*tensors)
    expected = vmap(hessian(lambda *t: cube(exact(*t)), 2), OVER[over])(*tensors)
    assert error(second, expected) < 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_batch_dims_and_columns(solver):
    matrices, b = seeded(4, 5, 3), seeded(4, 5)
    expected = torch.linalg.pinv(matrices)
    sol = ims.linear_solve(ims.MatrixOperator(matrices), b, solver=SOLVERS[solver], batch_dims=1)
    assert sol.status.shape == (4,)
    assert error(sol.value, (expected @ b.unsqueeze(-1)).squeeze(-1)) < 1e-9
    several = seeded(5, 2)
    A = ims.MatrixOperator(matrices[0])
    value = ims.linear_solve(A, several, solver=SOLVERS[solver]).value
    assert error(value, expected[0] @ several) < 1e-9


@pytest.mark.parametrize("solver", ["QR", "SVD", "LSMR"])
@pytest.mark.parametrize("way", ["vmap", "batch_dims"])
@pytest.mark.parametrize("what", ["matrix", "right-hand side"])
def test_bad_lane_changes_no_other(solver, way, what):
    """A NaN lane (LAPACK's SVD would refuse the batch) leaves values and gradients alone."""
    matrices, b = seeded(4, 5, 3), seeded(4, 5, seed=1)
    if what == "matrix":
        matrices[1, 2, 0] = torch.nan
    else:
        b[1, 2] = torch.inf
    good = torch.tensor([0, 2, 3])

    def run(matrices, b):
        matrices, b = matrices.clone().requires_grad_(), b.clone().requires_grad_()
        scale = torch.tensor(1.1, dtype=F64, requires_grad=True)

        def one(A, b):
            times = ims.FunctionOperator(lambda v: scale * (A @ v), b[:3], out_like=b)
            return ims.linear_solve(times, b, solver=SOLVERS[solver], on_failure="mask")

        if way == "vmap":
            sol = vmap(one)(matrices, b)
        else:
            A = ims.MatrixOperator(1.1 * matrices)
            sol = ims.linear_solve(A, b, solver=SOLVERS[solver], on_failure="mask", batch_dims=1)
        torch.where(sol.converged.unsqueeze(-1), sol.value, 0.0).pow(2).sum().backward()
        return sol, matrices.grad, b.grad, scale.grad

    sol, gA, gb, gs = run(matrices, b)
    alone, alone_A, alone_b, alone_s = run(matrices[good], b[good])
    assert sol.status.tolist() == [0, int(Status.NONFINITE), 0, 0]
    assert error(sol.value.detach()[good], alone.value.detach()) < 1e-12
    assert error(gb[good], alone_b) < 1e-8 and error(gA[good], alone_A) < 1e-8
    assert torch.equal(gb[1], torch.zeros(5, dtype=F64))
    assert torch.equal(gA[1], torch.zeros(5, 3, dtype=F64))
    if way == "vmap":
        assert error(gs, alone_s) < 1e-8
        weights = matrices.clone().requires_grad_()
        scale = torch.tensor(1.1, dtype=F64, requires_grad=True)

        def gradient(A, b):
            def loss(b):
                times = ims.FunctionOperator(lambda v: scale * (A @ v), b[:3], out_like=b)
                sol = ims.linear_solve(times, b, solver=SOLVERS[solver], on_failure="mask")
                return torch.where(sol.converged, sol.value, 0.0).pow(2).sum()

            return grad(loss)(b)

        # a gradient's gradient: zero in the lane, finite in what lanes share
        vmap(gradient)(weights, b).pow(2).sum().backward()
        assert torch.equal(weights.grad[1], torch.zeros(5, 3, dtype=F64))
        assert torch.isfinite(weights.grad).all() and torch.isfinite(scale.grad)


def test_second_derivative_under_mask_is_that_without():
    left, right, b = factors("square-deficient")

    def solve(policy):
        def value(left):
            A = ims.MatrixOperator(left @ right.mT)
            return cube(ims.linear_solve(A, b, solver=ims.SVD(), on_failure=policy).value)

        return value

    for mode in (lambda f: jacrev(jacrev(f)), hessian, lambda f: jacfwd(jacfwd(f))):
        assert error(mode(solve("mask"))(left), mode(solve("raise"))(left)) < 1e-9


# -- operators of other kinds ------------------------------------------------------------------


def curve(z, t):
    return torch.stack([z[0] * torch.exp(-z[1] * s) + t * z[0] ** 2 for s in (0.1, 0.7, 1.3, 2.0)])


Z, T = torch.tensor([1.2, 0.6], dtype=F64), torch.tensor(0.3, dtype=F64)


@pytest.mark.parametrize("solver", SOLVERS)
def test_jacobian_operator(solver):
    b = seeded(4)

    def solve(z, t):
        A = ims.JacobianOperator(curve, z, (t,), out_like=b)
        return ims.linear_solve(A, b, solver=SOLVERS[solver]).value

    def exact(z, t):
        J = jacfwd(curve)(z, t)
        return torch.linalg.inv(J.T @ J) @ J.T @ b

    assert error(solve(Z, T), exact(Z, T)) < 1e-9
    for i in (0, 1):
        for mode in (jacrev, jacfwd):
            assert error(mode(solve, i)(Z, T), mode(exact, i)(Z, T)) < 1e-7


def test_trees_in_and_out():
    matrix, b = seeded(4, 3), seeded(4)

    def multiply(v):
        flat = matrix @ torch.cat([v["a"], v["b"].reshape(1)])
        return flat[:1], flat[1:]

    like = {"a": b[:2], "b": b[2]}
    A = ims.FunctionOperator(multiply, like, out_like=(b[:1], b[1:]))
    assert error(A.dense(), matrix) < 1e-14
    assert error(A.T.dense(), matrix.T) < 1e-14
    for solver in SOLVERS.values():
        x = ims.linear_solve(A, (b[:1], b[1:]), solver=solver).value
        flat = torch.cat([x["a"], x["b"].reshape(1)])
        assert error(flat, torch.linalg.pinv(matrix) @ b) < 1e-9


def test_algebra_of_rectangular_operators():
    m, k, b = seeded(4, 3), seeded(2, 4, seed=1), seeded(2)
    A, K = ims.MatrixOperator(m), ims.MatrixOperator(k)
    assert error((K @ A).dense(), k @ m) < 1e-14
    assert error((K @ A).T.dense(), (k @ m).T) < 1e-14
    assert error((2.0 * A + A).dense(), 3 * m) < 1e-14
    assert error((A.T @ A).dense(), m.T @ m) < 1e-14
    value = ims.linear_solve(K @ A, b, solver=ims.SVD()).value
    assert error(value, torch.linalg.pinv(k @ m) @ b) < 1e-10
    value = ims.linear_solve((K @ A).T, seeded(3), solver=ims.QR()).value
    assert error(value, torch.linalg.pinv((k @ m).T) @ seeded(3)) < 1e-10


# -- properties --------------------------------------------------------------------------------


@given(
    st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6),
    st.sampled_from(["SVD", "LSMR"]), st.sampled_from([F64, F32]),
)  # fmt: skip
def test_penrose(m, n, rank, seed, solver, dtype):
    """``A x`` is the projection of ``b``, and ``x`` has no part that ``A`` does not see."""
    rank = min(m, n, rank)
    u = torch.linalg.qr(seeded(m, rank, seed=seed))[0]
    v = torch.linalg.qr(seeded(n, rank, seed=seed + 1))[0]
    matrix, b = (
        u @ torch.diag(torch.logspace(0, 1, rank, dtype=F64)) @ v.T,
        seeded(m, seed=seed + 2),
    )
    A = ims.MatrixOperator(matrix.to(dtype))
    # the rank is that of the float64 matrix: rounding makes a full one of it
    chosen = ims.SVD(rcond=1e-5) if solver == "SVD" else ims.LSMR()
    x = ims.linear_solve(A, b.to(dtype), solver=chosen).value.double()
    tolerance = 500 * torch.finfo(dtype).eps ** (2 / 3) * float(b.norm())
    assert torch.allclose(matrix @ x, u @ (u.T @ b), atol=tolerance)
    assert torch.allclose(x, v @ (v.T @ x), atol=tolerance)


def test_lsmr_makes_the_steps_of_scipy():
    matrix, b = (
        seeded(80, 40) @ torch.diag(torch.logspace(0, 1.5, 40, dtype=F64)),
        seeded(80, seed=1),
    )
    reference = scipy.sparse.linalg.lsmr(
        matrix.numpy(), b.numpy(), atol=3.7e-11, btol=3.7e-11, maxiter=500
    )
    sol = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=ims.LSMR())
    assert abs(int(sol.iterations) - reference[2]) <= 0.1 * reference[2]
    assert error(sol.value, torch.from_numpy(reference[0])) < 1e-7


@pytest.mark.parametrize("k", [1, 3])
def test_budget_of_lsmr_has_the_least_normal_residual(k):
    """Over the Krylov space of ``A^T A`` and ``A^T b``: what defines the method."""
    matrix, b = seeded(9, 6), seeded(9, seed=1)
    normal, start = matrix.T @ matrix, matrix.T @ b
    V = torch.linalg.qr(
        torch.stack([torch.linalg.matrix_power(normal, j) @ start for j in range(k)], 1)
    )[0]
    best = V @ torch.linalg.pinv(normal @ V) @ start
    sol = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=ims.LSMR(rtol=None, max_steps=k))
    assert error(sol.value, best) < 1e-10
    assert int(sol.status) == Status.BUDGET


def test_budget_may_outlast_the_residual():
    A = ims.MatrixOperator(2 * torch.eye(3, dtype=F64))
    b = torch.tensor([1.0, -2.0, 4.0], dtype=F64)
    sol = ims.linear_solve(A, b, solver=ims.LSMR(rtol=None, max_steps=30))
    assert error(sol.value, b / 2) < 1e-15


@pytest.mark.parametrize("solver", [ims.QR(), ims.SVD(), ims.LSMR()])
def test_right_hand_side_of_zero_or_out_of_the_range(solver):
    A = torch.cat([torch.eye(2, dtype=F64), torch.zeros(1, 2, dtype=F64)])
    for b in (torch.zeros(3, dtype=F64), torch.tensor([0.0, 0.0, 2.0], dtype=F64)):
        b, matrix = b.clone().requires_grad_(), A.clone().requires_grad_()
        sol = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=solver)
        assert torch.equal(sol.value, torch.zeros(2, dtype=F64)) and bool(sol.converged)
        sol.value.sum().backward()
        assert error(b.grad, torch.tensor([1.0, 1.0, 0.0], dtype=F64)) < 1e-12
        assert torch.isfinite(matrix.grad).all()


# -- failures, counts, refusals ----------------------------------------------------------------

DEFICIENT = {
    "columns": [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]],
    "rows": [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]],
    "numerically": [[0.1, 0.3], [0.2, 0.6], [0.7, 2.1]],
    "zero-column": [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]],
    "zero": [[0.0, 0.0], [0.0, 0.0]],
    "badly-scaled": [[1e-10, 3e10], [2e-10, 6e10], [3e-10, 9e10]],
}


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", DEFICIENT)
def test_qr_refuses_a_deficient_rank(name, dtype):
    matrix = torch.tensor(DEFICIENT[name], dtype=dtype)
    A, b = ims.MatrixOperator(matrix), torch.ones(len(matrix), dtype=dtype)
    sol = ims.linear_solve(A, b, solver=ims.QR(), on_failure="mask")
    assert Status(int(sol.status)) == Status.SINGULAR
    svd = ims.linear_solve(A, b, solver=ims.SVD())
    exact = np.linalg.pinv(matrix.numpy(), rcond=1e-5 if dtype == F32 else 1e-14) @ b.numpy()
    assert torch.allclose(svd.value, torch.from_numpy(exact), rtol=1e-3, atol=1e-5)


def test_qr_accepts_columns_of_any_scale():
    scale, b = torch.tensor([1e-12, 1.0, 1e12], dtype=F64), seeded(6, seed=1)
    sol = ims.linear_solve(ims.MatrixOperator(seeded(6, 3) * scale), b, solver=ims.QR())
    assert error(sol.value * scale, torch.linalg.pinv(seeded(6, 3)) @ b) < 1e-12


@pytest.mark.parametrize("name", ["qr", "svd"])
def test_one_factorization(name, monkeypatch):
    """For value, gradient and Jacobian, however many cotangents and right-hand sides."""
    calls, original = [], getattr(torch.linalg, name)

    def counting(A, *args, **kwargs):
        calls.append(A.shape)
        return original(A, *args, **kwargs)

    monkeypatch.setattr(torch.linalg, name, counting)
    matrix, b = seeded(5, 3), seeded(5)
    solver = ims.QR() if name == "qr" else ims.SVD()

    def solve(A, b):
        return ims.linear_solve(ims.MatrixOperator(A), b, solver=solver).value

    for run in (
        lambda: jacrev(solve)(matrix, b),
        lambda: vmap(solve, (None, 0))(matrix, seeded(4, 5)),
        lambda: hessian(lambda A: cube(solve(A, b)))(matrix),
    ):
        calls.clear()
        run()
        assert calls == [(1, 5, 3)]


RECT, B = ims.MatrixOperator(seeded(4, 3)), seeded(4)
REFUSED = [
    ("LU", lambda: ims.linear_solve(RECT, B, solver=ims.LU()), "A is rectangular, 4 x 3.*LU"),
    ("GMRES", lambda: ims.linear_solve(RECT, B, solver=ims.GMRES()), "A is rectangular.*GMRES"),
    ("b-like-x", lambda: ims.linear_solve(RECT, B[:3]), r"b has leaves of shapes \[\(3,\)\]"),
    ("x0", lambda: ims.linear_solve(RECT, B, solver=ims.LSMR(), x0=B[:3]), "x0"),
    ("x0-of-QR", lambda: ims.linear_solve(RECT, B, solver=ims.QR(), x0=B[:3]), "x0.*QR.*direct"),
    (
        "preconditioner",
        lambda: ims.linear_solve(RECT, B, solver=ims.LSMR(), preconditioner=lambda r: r),
        "preconditioner is given.*LSMR",
    ),
    ("product", lambda: RECT @ RECT, r"cannot multiply.*\(3,\).*\(4,\)"),
    ("sum", lambda: RECT + RECT.T, "cannot add"),
    (
        "function",
        lambda: ims.linear_solve(
            ims.FunctionOperator(lambda v: v, B[:3], out_like=B), B, solver=ims.QR()
        ),
        "returned.*",
    ),
]  # fmt: skip


@pytest.mark.parametrize("call, words", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_default_of_a_large_rectangular_operator():
    like, out = torch.ones(600, dtype=F64), torch.ones(601, dtype=F64)
    A = ims.FunctionOperator(lambda v: torch.cat([2 * v, v[:1]]), like, out_like=out)
    with ims.monitor() as log:
        ims.linear_solve(A, out)
    assert [record.solver for record in log.records] == ["LSMR"]
