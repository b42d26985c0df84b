"""Tridiagonal and banded systems against ``scipy.linalg.solve_banded`` and dense inverses."""

import math

import numpy as np
import pytest
import scipy.linalg
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


def diagonals(n, *lanes, seed=0):
    sizes = (n - 1, n, n - 1)
    return [seeded(*lanes, k, seed=seed + i) for i, k in enumerate(sizes)]


def matrix(lower, main, upper):
    return torch.diag(lower, -1) + torch.diag(main) + torch.diag(upper, 1)


def solve(lower, main, upper, b):
    return ims.linear_solve(ims.TridiagonalOperator(lower, main, upper), b).value


def oracle(lower, main, upper, b):
    return torch.linalg.inv(matrix(lower, main, upper)) @ b


def by_scipy(lower, main, upper, b):
    bands = np.zeros((3, len(main)))
    bands[0, 1:], bands[1], bands[2, :-1] = upper, main, lower
    return torch.from_numpy(scipy.linalg.solve_banded((1, 1), bands, b.numpy()))


def error(value, reference):
    assert value.shape == reference.shape
    return float((value - reference).abs().max() / reference.abs().max().clamp(min=1e-2))


@pytest.mark.parametrize("n", [1, 2, 3, 50, 1000])
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_value(n, dtype):
    lower, main, upper = diagonals(n)
    main = main + 3
    b = seeded(n, seed=9)
    tensors = [t.to(dtype) for t in (lower, main, upper, b)]
    with ims.monitor() as log:
        sol = ims.linear_solve(ims.TridiagonalOperator(*tensors[:3]), tensors[3])
    assert [record.solver for record in log.records] == ["Banded"]
    assert sol.value.dtype == dtype and bool(sol.converged)
    expected = b / main if n == 1 else by_scipy(lower, main, upper, b)
    # the condition number of a random tridiagonal matrix grows with n
    assert error(sol.value.double(), expected) < 1e6 * torch.finfo(dtype).eps


def test_rows_are_exchanged():
    """Without pivoting this one divides by zero at once."""
    A = ims.TridiagonalOperator(*(torch.tensor(t).double() for t in ([1, 4], [0, 0, 5], [2, 3])))
    b = seeded(3)
    assert error(ims.linear_solve(A, b).value, torch.linalg.inv(A.dense()) @ b) < 1e-14
    tiny = ims.TridiagonalOperator(*(torch.tensor(t).double() for t in ([1.0], [1e-20, 1], [1.0])))
    x = ims.linear_solve(tiny, torch.ones(2, dtype=F64)).value
    assert error(x, torch.tensor([0.0, 1.0], dtype=F64)) < 1e-14


def cube(x):
    return x.sum() ** 3 + (x**2).sum()


MODES = {
    "reverse": jacrev,
    "forward": jacfwd,
    "hessian": lambda f, i: hessian(lambda *t: cube(f(*t)), i),
    "rev-rev": lambda f, i: jacrev(jacrev(lambda *t: cube(f(*t)), i), i),
}


@pytest.mark.parametrize("mode", MODES)
def test_derivatives(mode):
    tensors = (*diagonals(5), seeded(5, seed=9))
    for i in range(4):
        expected = MODES[mode](oracle, i)(*tensors)
        assert error(MODES[mode](solve, i)(*tensors), expected) < 1e-9


def test_gradcheck():
    inputs = tuple(t.requires_grad_() for t in (*diagonals(4), seeded(4, seed=9)))
    assert gradcheck(
        solve,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(solve, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("over", [(0, 0, 0, 0), (None, None, None, 0), (0, 0, 0, None)])
def test_vmap(over):
    tensors = [
        t if d == 0 else t[0]
        for t, d in zip((*diagonals(5, 4), seeded(4, 5, seed=9)), over, strict=True)
    ]
    assert error(vmap(solve, over)(*tensors), vmap(oracle, over)(*tensors)) < 1e-11
    for i in range(4):
        whole = grad(lambda *t: cube(vmap(solve, over)(*t)), i)(*tensors)
        assert error(whole, grad(lambda *t: cube(vmap(oracle, over)(*t)), i)(*tensors)) < 1e-9
        lanes = vmap(jacrev(solve, i), over)(*tensors)
        assert error(lanes, vmap(jacrev(oracle, i), over)(*tensors)) < 1e-9


def test_batch_dims_and_columns():
    lower, main, upper = diagonals(5, 4)
    b = seeded(4, 5, seed=9)
    A = ims.TridiagonalOperator(lower, main, upper)
    assert error(A.dense(), torch.stack([matrix(*t) for t in zip(lower, main, upper)])) == 0  # noqa: B905
    sol = ims.linear_solve(A, b, batch_dims=1)
    assert error(sol.value, vmap(oracle)(lower, main, upper, b)) < 1e-11
    several = seeded(5, 3)
    one = ims.TridiagonalOperator(lower[0], main[0], upper[0])
    assert (
        error(ims.linear_solve(one, several).value, torch.linalg.inv(one.dense()) @ several) < 1e-11
    )


def test_algebra():
    A, d = ims.TridiagonalOperator(*diagonals(5)), ims.DiagonalOperator(seeded(5, seed=4))
    v, b = seeded(5, seed=5), seeded(5, seed=6)
    for operator, bands in [
        (A, (1, 1)), (A.T, (1, 1)), (2.0 * A + d, (1, 1)), (A @ A, (2, 2)), (A.T @ A @ A, (3, 3)),
        (d @ A - ims.IdentityOperator(), (1, 1)),
    ]:  # fmt: skip
        assert operator.bands == bands
        dense = operator.dense()
        assert error(operator.mv(v), dense @ v) < 1e-12
        assert error(operator.rmv(v), dense.T @ v) < 1e-12
        with ims.monitor() as log:
            x = ims.linear_solve(operator, b).value
        assert log.records[0].solver == "Banded"
        assert error(dense @ x, b) < 1e-9
    assert (A + ims.MatrixOperator(torch.eye(5, dtype=F64))).bands is None


@given(
    st.integers(1, 12), st.integers(0, 3), st.integers(0, 3), st.integers(0, 10**6),
    st.integers(1, 3), st.sampled_from([F64, F32]), st.booleans(),
)  # fmt: skip
def test_bands_of_any_width(n, below, above, seed, lanes, dtype, transposed):
    """Against SciPy, where entries range over powers of ten and lanes are stacked."""
    kept = torch.ones(n, n, dtype=torch.bool).triu(-below).tril(above)
    matrices = torch.where(kept, seeded(lanes, n, n, seed=seed), 0.0) + 5 * torch.eye(n, dtype=F64)
    matrices = matrices * 10 ** seeded(lanes, n, 1, seed=seed + 1)
    if transposed:
        matrices, below, above = matrices.mT, above, below
    b = (matrices @ seeded(lanes, n, 1, seed=seed + 2)).squeeze(-1)

    class Operator(ims.MatrixOperator):
        bands = (below, above)

    def solve(matrix, b):
        A = Operator(matrix)
        # the backward pass of this is a solve with the transpose
        return ims.linear_solve(A, b, solver=ims.Banded()).value

    matrices, b = matrices.to(dtype), b.to(dtype)
    value = vmap(solve)(matrices, b)
    backward = grad(lambda b: (vmap(solve)(matrices, b) * b.detach()).sum())(b)
    for i in range(lanes):
        rows = matrices[i].abs() @ value[i].abs() + b[i].abs()
        limit = 200 * n * torch.finfo(dtype).eps
        assert ((matrices[i] @ value[i] - b[i]).abs() <= limit * rows).all()
        w = torch.linalg.solve_ex(matrices[i].double().T, b[i].double())[0]
        assert error(backward[i].double(), w) < 1e5 * torch.finfo(dtype).eps


def test_one_call_of_lapack_factors_all_lanes(monkeypatch):
    from implicit_solvers.linear import banded

    calls, original = [], banded.get_lapack_funcs

    def counting(names, **options):
        calls.extend(names)
        return original(names, **options)

    monkeypatch.setattr(banded, "get_lapack_funcs", counting)
    tensors = (*diagonals(5, 7), seeded(7, 5))
    jacrev(lambda *t: vmap(solve)(*t).sum(0), argnums=3)(*tensors)
    assert calls.count("gbtrf") == 1 and calls.count("gbtrs") == 2


@pytest.mark.parametrize("what", ["nan", "inf", "singular", "b-nan", "overflow"])
def test_bad_lane_changes_no_other(what):
    """Though all lanes go to LAPACK as one matrix: not by a bit."""
    lower, main, upper = diagonals(6, 4)
    b = seeded(4, 6, seed=9)
    clean = vmap(solve)(lower, main, upper, b)
    if what in ("nan", "inf"):
        main[1, 3] = math.nan if what == "nan" else math.inf
    elif what == "singular":
        upper[1], main[1] = 0.0, 0.0
    elif what == "b-nan":
        b[1, 2] = math.nan
    else:
        main[1], lower[1], upper[1], b[1] = 1e-160, 0.0, 0.0, 1e160
    tensors = [t.clone().requires_grad_() for t in (lower, main, upper, b)]
    sol = vmap(
        lambda lower, main, upper, b: ims.linear_solve(
            ims.TridiagonalOperator(lower, main, upper), b, on_failure="mask"
        )
    )(*tensors)
    bad = Status.SINGULAR if what == "singular" else Status.NONFINITE
    assert sol.status.tolist() == [0, int(bad), 0, 0]
    good = torch.tensor([0, 2, 3])
    assert torch.equal(sol.value.detach()[good], clean[good])
    torch.where(sol.converged.unsqueeze(-1), sol.value, 0.0).sum().backward()
    for t in tensors:
        assert torch.isfinite(t.grad).all()
        assert torch.equal(t.grad[1], torch.zeros_like(t.grad[1]))


SINGULAR = {
    "laplacian": ([-1.0, -1.0], [1.0, 2.0, 1.0], [-1.0, -1.0]),
    "zero": ([0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0]),
    "odd": ([1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0]),
    "tenths": ([0.2], [0.1, 0.6], [0.3]),
    "scaled-rows": ([2e10], [1e-10, 6e10], [3e-10]),
}


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SINGULAR)
def test_singular(name, dtype):
    A = ims.TridiagonalOperator(*(torch.tensor(t, dtype=dtype) for t in SINGULAR[name]))
    b = torch.arange(1.0, A.structure.size + 1, dtype=dtype)
    sol = ims.linear_solve(A, b, on_failure="mask")
    assert Status(int(sol.status)) == Status.SINGULAR


def test_badly_scaled_rows_are_not_called_singular():
    lower, main, upper = diagonals(5)
    scale = torch.logspace(-12, 12, 5, dtype=F64)
    A = ims.TridiagonalOperator(lower * scale[1:], main * scale, upper * scale[:-1])
    b = seeded(5, seed=9)
    assert error(ims.linear_solve(A, b * scale).value, oracle(lower, main, upper, b)) < 1e-12


def t(*shape):
    return torch.ones(shape, dtype=F64)


REFUSED = [
    ("lower", lambda: ims.TridiagonalOperator(t(3), t(3), t(2)), ValueError, r"lower.*\(2,\)"),
    ("upper", lambda: ims.TridiagonalOperator(t(2), t(3), t(1)), ValueError, "upper has shape"),
    ("lanes", lambda: ims.TridiagonalOperator(t(2), t(4, 3), t(4, 2)), ValueError, "lower"),
    ("0d", lambda: ims.TridiagonalOperator(t(1), t(), t(1)), ValueError, "main"),
    ("mixed", lambda: ims.TridiagonalOperator(t(2), t(3).float(), t(2)), ValueError, "mixes"),
    ("list", lambda: ims.TridiagonalOperator([1.0], t(2), t(1)), TypeError, "Tridiagonal.*float"),
    (
        "dense",
        lambda: ims.linear_solve(ims.MatrixOperator(t(2, 2)), t(2), solver=ims.Banded()),
        ValueError,
        "Banded.*banded",
    ),
    (
        "adjoint",
        lambda: ims.root(
            lambda z, a: z - a, t(2), (t(2).requires_grad_(),),
            adjoint=ims.ImplicitAdjoint(ims.Banded()),
        ).value.sum().backward(),
        ValueError,
        "Banded.*banded",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "call, exception, words", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(call, exception, words):
    with pytest.raises(exception, match=words):
        call()
