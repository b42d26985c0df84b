"""Sparse systems against SciPy and dense inverses; the factors are made once."""

import math
import warnings

import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status

F32, F64 = torch.float32, torch.float64
# torch says of every first sparse CSR tensor of a process that its support is in beta
warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CSR tensor|invariant):UserWarning")


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def pattern(m, n, density=0.4, seed=0):
    """Return a sparse matrix that holds its diagonal."""
    draw = torch.rand(m, n, generator=torch.Generator().manual_seed(seed))
    kept = (draw < density) | torch.eye(m, n, dtype=torch.bool)
    return torch.where(kept, seeded(m, n, seed=seed + 1) + 4 * torch.eye(m, n), 0.0).to_sparse_csr()


MATRIX = pattern(6, 6)
VALUES, B = MATRIX.values().clone(), seeded(6, seed=3)
ROWS = torch.arange(6).repeat_interleave(MATRIX.crow_indices().diff())
COLUMNS = MATRIX.col_indices()
COUNT, PATTERN = len(VALUES), ims.SparseOperator(MATRIX)


def solve(values, b, solver=None):
    return ims.linear_solve(PATTERN.with_values(values), b, solver=solver).value


def dense(values):
    return torch.zeros(6, 6, dtype=values.dtype).index_put((ROWS, COLUMNS), values)


def oracle(values, b):
    return torch.linalg.inv(dense(values)) @ b


def error(value, reference):
    assert value.shape == reference.shape
    return float((value - reference).abs().max() / reference.abs().max().clamp(min=1e-2))


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "solver",
    [None, ims.SuperLU("NATURAL"), ims.SuperLU("MMD_ATA"), ims.SuperLU("MMD_AT_PLUS_A"), ims.LU(),
     ims.GMRES(), ims.BiCGStab(), ims.LSMR(), ims.SVD()],
    ids=["default", "natural", "ATA", "ATplusA", "LU", "GMRES", "BiCGStab", "LSMR", "SVD"],
)  # fmt: skip
def test_value(dtype, solver):
    sol = ims.linear_solve(ims.SparseOperator(MATRIX.to(dtype)), B.to(dtype), solver=solver)
    expected = scipy.sparse.linalg.spsolve(scipy.sparse.csc_array(dense(VALUES).numpy()), B.numpy())
    assert sol.value.dtype == dtype
    assert error(sol.value.double(), torch.from_numpy(expected)) < 200 * torch.finfo(dtype).eps ** (
        2 / 3
    )


def test_large():
    """The five-point Laplacian on a square, from SciPy's own construction."""
    side = 60
    one = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    eye = scipy.sparse.eye_array(side)
    matrix = scipy.sparse.csr_array(scipy.sparse.kron(one, eye) + scipy.sparse.kron(eye, one))
    tensor = torch.sparse_csr_tensor(
        matrix.indptr, matrix.indices, matrix.data, matrix.shape, dtype=F64
    )
    b = seeded(side**2)
    with ims.monitor() as log:
        x = ims.linear_solve(ims.SparseOperator(tensor), b).value
    assert log.records[0].solver == "SuperLU"
    expected = scipy.sparse.linalg.spsolve(matrix.tocsc(), b.numpy())
    assert error(x, torch.from_numpy(expected)) < 1e-12
    definite = ims.SparseOperator(tensor, positive_definite=True)
    assert error(ims.linear_solve(definite, b, solver=ims.CG()).value, x) < 1e-7


def test_gradient_of_the_matrix_is_sparse_on_its_pattern():
    matrix, values = MATRIX.clone().requires_grad_(), VALUES.clone().requires_grad_()
    ims.linear_solve(ims.SparseOperator(matrix), B).value.pow(2).sum().backward()
    oracle(values, B).pow(2).sum().backward()
    assert matrix.grad.layout == torch.sparse_csr
    assert torch.equal(matrix.grad.col_indices(), MATRIX.col_indices())
    assert error(matrix.grad.values(), values.grad) < 1e-12


def cube(x):
    return x.sum() ** 3 + (x**2).sum()


MODES = {
    "reverse": jacrev,
    "forward": jacfwd,
    "hessian": lambda f, i: hessian(lambda *t: cube(f(*t)), i),
    "rev-rev": lambda f, i: jacrev(jacrev(lambda *t: cube(f(*t)), i), i),
    "fwd-fwd": lambda f, i: jacfwd(jacfwd(lambda *t: cube(f(*t)), i), i),
}


@pytest.mark.parametrize("mode", MODES)
def test_derivatives(mode):
    for i in (0, 1):
        expected = MODES[mode](oracle, i)(VALUES, B)
        assert error(MODES[mode](solve, i)(VALUES, B), expected) < 1e-9


def test_gradcheck_and_double_backward():
    inputs = (VALUES.clone().requires_grad_(), B.clone().requires_grad_())
    assert gradcheck(
        solve,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(solve, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("over", [(0, 0), (None, 0), (0, None)])
def test_vmap(over):
    lanes = (VALUES + 0.1 * seeded(4, COUNT), seeded(4, 6, seed=5))
    tensors = [t if d == 0 else t[0] for t, d in zip(lanes, over, strict=True)]
    assert error(vmap(solve, over)(*tensors), vmap(oracle, over)(*tensors)) < 1e-11
    for i in (0, 1):
        whole = grad(lambda *t: cube(vmap(solve, over)(*t)), i)(*tensors)
        assert error(whole, grad(lambda *t: cube(vmap(oracle, over)(*t)), i)(*tensors)) < 1e-9
        each = vmap(jacrev(solve, i), over)(*tensors)
        assert error(each, vmap(jacrev(oracle, i), over)(*tensors)) < 1e-9


def test_batch_dims_and_columns():
    values, b = VALUES + 0.1 * seeded(4, COUNT), seeded(4, 6, seed=5)
    A = PATTERN.with_values(values)
    assert error(A.dense(), vmap(dense)(values)) == 0
    assert error(ims.linear_solve(A, b, batch_dims=1).value, vmap(oracle)(values, b)) < 1e-11
    several = seeded(6, 3)
    expected = torch.linalg.inv(dense(VALUES)) @ several
    assert error(solve(VALUES, several), expected) < 1e-11


@pytest.fixture
def factorizations(monkeypatch):
    calls, original = [], scipy.sparse.linalg.splu

    def counting(matrix, **options):
        calls.append(matrix.shape)
        return original(matrix, **options)

    monkeypatch.setattr(scipy.sparse.linalg, "splu", counting)
    return calls


ONCE = {
    "value": lambda: solve(VALUES, B),
    "jacrev-values": lambda: jacrev(solve)(VALUES, B),
    "jacrev-b": lambda: jacrev(solve, 1)(VALUES, B),
    "jacfwd": lambda: jacfwd(solve)(VALUES, B),
    "hessian": lambda: hessian(lambda v: cube(solve(v, B)))(VALUES),
    "vmap-over-b": lambda: vmap(solve, (None, 0))(VALUES, seeded(5, 6)),
    "vmap-over-b-of-jacrev": lambda: vmap(jacrev(solve), (None, 0))(VALUES, seeded(5, 6)),
    "columns": lambda: solve(VALUES, seeded(6, 5)),
}


@pytest.mark.parametrize("name", ONCE)
def test_one_factorization(name, factorizations):
    ONCE[name]()
    assert factorizations == [(6, 6)]


def test_factors_serve_backward_and_are_let_go(factorizations):
    import gc
    import weakref

    class Witness(list):
        pass

    solver = ims.SuperLU()
    values = VALUES.clone().requires_grad_()
    x = solve(values, B, solver)
    x.sum().backward(retain_graph=True)
    x.pow(2).sum().backward()
    assert len(factorizations) == 1
    assert solver._kept == []  # what the user holds keeps nothing
    session = solver.session()
    object.__setattr__(session, "_kept", Witness())
    reference = weakref.ref(session._kept)
    del session, x
    gc.collect()
    assert reference() is None


def test_products_transposes_and_rectangles():
    matrix = pattern(5, 3)
    A, M = ims.SparseOperator(matrix), matrix.to_dense()
    v, w = seeded(3), seeded(5)
    assert error(A @ v, M @ v) < 1e-14 and error(A.rmv(w), M.T @ w) < 1e-14
    assert error(A.T @ w, M.T @ w) < 1e-14 and error(A.T.dense(), M.T) == 0
    assert isinstance(A.T, ims.SparseOperator)
    assert error((2.0 * A).dense(), 2 * M) < 1e-14
    for solver in (None, ims.SVD(), ims.LSMR()):
        assert error(ims.linear_solve(A, w, solver=solver).value, torch.linalg.pinv(M) @ w) < 1e-9
    square = ims.SparseOperator(MATRIX)
    x = ims.linear_solve(square.T, B, solver=ims.SuperLU()).value
    assert error(dense(VALUES).T @ x, B) < 1e-12


@given(st.integers(1, 12), st.floats(0.0, 0.6), st.integers(0, 10**6), st.sampled_from([F64, F32]))
def test_solution_and_gradient_solve(n, density, seed, dtype):
    matrix = pattern(n, n, density, seed).to(dtype)
    M, b, c = (
        matrix.to_dense(),
        seeded(n, seed=seed + 2).to(dtype),
        seeded(n, seed=seed + 3).to(dtype),
    )
    b.requires_grad_()
    x = ims.linear_solve(ims.SparseOperator(matrix), b).value
    (w,) = torch.autograd.grad(x @ c, b)
    limit = 100 * n * torch.finfo(dtype).eps
    assert ((M @ x - b).abs() <= limit * (M.abs() @ x.abs() + b.abs())).all()
    assert ((M.T @ w - c).abs() <= limit * (M.T.abs() @ w.abs() + c.abs()) * 10).all()


@pytest.mark.parametrize("what", ["nan", "inf", "singular", "b-nan"])
def test_bad_lane_changes_no_other(what):
    values, b = VALUES + 0.1 * seeded(4, COUNT), seeded(4, 6, seed=5)
    clean = vmap(solve)(values, b)
    if what == "b-nan":
        b[1, 2] = math.nan
    else:
        values[1] = {"nan": math.nan, "inf": math.inf, "singular": 0.0}[what]
    values, b = values.requires_grad_(), b.requires_grad_()
    sol = vmap(lambda v, b: ims.linear_solve(PATTERN.with_values(v), b, on_failure="mask"))(
        values, b
    )
    bad = Status.SINGULAR if what == "singular" else Status.NONFINITE
    assert sol.status.tolist() == [0, int(bad), 0, 0]
    good = torch.tensor([0, 2, 3])
    assert torch.equal(sol.value.detach()[good], clean[good])
    torch.where(sol.converged.unsqueeze(-1), sol.value, 0.0).sum().backward()
    assert torch.isfinite(values.grad).all() and torch.isfinite(b.grad).all()
    assert torch.equal(values.grad[1], torch.zeros(COUNT, dtype=F64))


SINGULAR = {
    "structurally": [[1.0, 0.0], [1.0, 0.0]],
    "laplacian": [[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]],
    "tenths": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]],
}


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_singular(name, dtype):
    matrix = torch.tensor(SINGULAR[name], dtype=dtype).to_sparse_csr()
    b = torch.arange(1.0, len(matrix) + 1, dtype=dtype)
    sol = ims.linear_solve(ims.SparseOperator(matrix), b, on_failure="mask")
    assert Status(int(sol.status)) == Status.SINGULAR


def test_root_with_a_sparse_linear_solve_inside():
    """A boundary value problem, its Picard step by SuperLU: ``A z = 1 - 0.1 z^3``."""
    values = VALUES.clone().requires_grad_()

    def cell(z, values):
        return solve(values, 1 - 0.1 * z**3)

    z = ims.fixed_point(cell, torch.zeros(6, dtype=F64), (values,)).value
    z.sum().backward()
    J = dense(VALUES) + torch.diag(0.3 * z.detach() ** 2)
    w = torch.linalg.inv(J).T @ torch.ones(6, dtype=F64)
    expected = -w[ROWS] * z.detach()[COLUMNS]
    assert error(values.grad, expected) < 1e-8


INTEGER = torch.eye(2).long().to_sparse_csr()
REFUSED = [
    ("dense", lambda: ims.SparseOperator(torch.eye(2)), TypeError, "matrix is torch.strided.*csr"),
    ("coo", lambda: ims.SparseOperator(torch.eye(2).to_sparse()), TypeError, "torch.sparse_coo"),
    ("list", lambda: ims.SparseOperator([[1.0]]), TypeError, "matrix is list"),
    ("integer", lambda: ims.SparseOperator(INTEGER), TypeError, "int64"),
    ("values-count", lambda: PATTERN.with_values(B[:3]), ValueError, r"\(3,\).*entries"),
    ("values-list", lambda: PATTERN.with_values([1.0]), TypeError, "values is list"),
    (
        "lanes",
        lambda: ims.SparseOperator(torch.eye(2).expand(3, 2, 2).to_sparse_csr()),
        ValueError,
        "matrix has shape",
    ),
    (
        "symmetric-rectangle",
        lambda: ims.SparseOperator(pattern(3, 2), symmetric=True),
        ValueError,
        "square",
    ),
    (
        "SuperLU-of-a-matrix",
        lambda: ims.linear_solve(ims.MatrixOperator(dense(VALUES)), B, solver=ims.SuperLU()),
        ValueError,
        "SuperLU.*SparseOperator",
    ),
    (
        "SuperLU-of-a-sum",
        lambda: ims.linear_solve(
            ims.SparseOperator(MATRIX) + ims.IdentityOperator(), B, solver=ims.SuperLU()
        ),
        ValueError,
        "SuperLU.*SparseOperator",
    ),
    (
        "SuperLU-of-a-rectangle",
        lambda: ims.linear_solve(ims.SparseOperator(pattern(6, 3)), B, solver=ims.SuperLU()),
        ValueError,
        "rectangular",
    ),
    ("ordering", lambda: ims.SuperLU("METIS"), ValueError, "ordering='METIS'"),
]  # fmt: skip


@pytest.mark.parametrize(
    "call, exception, words", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(call, exception, words):
    with pytest.raises(exception, match=words):
        call()


def test_flag_that_is_wrong_is_refuted():
    A = ims.SparseOperator(MATRIX, symmetric=True)
    with pytest.raises(ValueError, match="symmetric=True"):
        ims.linear_solve(A, B, check=True)
