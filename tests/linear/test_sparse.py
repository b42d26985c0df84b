"""Sparse systems: what is not in the tables, against SciPy and dense inverses."""

import types

import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import implicit_solvers as ims
from tests.linear.systems import BY_NAME, F32, F64, KEPT, error, seeded

SYSTEM = BY_NAME["sparse"]


def pattern(m, n, density=0.4, seed=0):
    """Return a sparse matrix that holds its diagonal."""
    draw = torch.rand(m, n, generator=torch.Generator().manual_seed(seed))
    kept = (draw < density) | torch.eye(m, n, dtype=torch.bool)
    return torch.where(kept, seeded(m, n, seed=seed + 1) + 4 * torch.eye(m, n), 0.0).to_sparse_csr()


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
    x = ims.linear_solve(ims.SparseOperator(tensor), b).value
    expected = scipy.sparse.linalg.spsolve(matrix.tocsc(), b.numpy())
    assert error(x, torch.from_numpy(expected)) < 1e-12
    definite = ims.SparseOperator(tensor, positive_definite=True)
    # the tolerance of float64 times a condition of 1500
    assert error(ims.linear_solve(definite, b, solver=ims.CG()).value, x) < 1e-7


@pytest.mark.parametrize("dtype", [F64, torch.complex128], ids=["real", "complex"])
def test_gradient_of_the_matrix_is_sparse_on_its_pattern(dtype):
    values = SYSTEM.tensors[0] + (0.3j if dtype.is_complex else 0) * seeded(len(SYSTEM.tensors[0]))
    dense = torch.zeros(6, 6, dtype=dtype)
    dense[KEPT] = values
    b = SYSTEM.b.to(dtype)
    matrix, dense = dense.to_sparse_csr().requires_grad_(), dense.requires_grad_()
    A = ims.SparseOperator(matrix)
    ims.linear_solve(A, b).value.abs().pow(2).sum().backward()
    (torch.linalg.inv(dense) @ b).abs().pow(2).sum().backward()
    assert matrix.grad.layout == torch.sparse_csr
    assert torch.equal(matrix.grad.col_indices(), matrix.col_indices())
    assert error(matrix.grad.values(), dense.grad[KEPT]) < 1e-12
    assert torch.equal(A.T.dense(), dense.T) and torch.equal(A.H.dense(), dense.mH)


def test_products_transposes_and_rectangles():
    matrix = pattern(5, 3)
    A, M = ims.SparseOperator(matrix), matrix.to_dense()
    v, w = seeded(3), seeded(5)
    assert error(A @ v, M @ v) < 1e-14 and error(A.rmv(w), M.T @ w) < 1e-14
    assert error(A.T @ w, M.T @ w) < 1e-14 and error(A.T.dense(), M.T) == 0
    assert isinstance(A.T, ims.SparseOperator)
    for solver in (None, ims.SVD(), ims.LSMR()):
        assert error(ims.linear_solve(A, w, solver=solver).value, torch.linalg.pinv(M) @ w) < 1e-9


@given(st.integers(1, 12), st.floats(0.0, 0.6), st.integers(0, 10**6), st.sampled_from([F64, F32]))
def test_solution_and_gradient_solve(n, density, seed, dtype):
    matrix = pattern(n, n, density, seed).to(dtype)
    M, b, c = matrix.to_dense(), *(seeded(n, seed=seed + k).to(dtype) for k in (2, 3))
    b.requires_grad_()
    x = ims.linear_solve(ims.SparseOperator(matrix), b).value
    (w,) = torch.autograd.grad(x @ c, b)
    limit = 100 * n * torch.finfo(dtype).eps
    assert ((M @ x - b).abs() <= limit * (M.abs() @ x.abs() + b.abs())).all()
    assert ((M.T @ w - c).abs() <= limit * (M.T.abs() @ w.abs() + c.abs()) * 10).all()


META = torch.ones(1, 3, dtype=torch.float64, device="meta")
FAR = types.SimpleNamespace(entries=lambda: (META, types.SimpleNamespace(shape=(3, 3))))
ELSEWHERE = {
    "Banded": lambda: ims.Banded().factor_bands(META.expand(1, 3, 3), 1, 1),
    "SuperLU": lambda: ims.SuperLU().factor(FAR),
    "ILU": lambda: ims.ILU().of(FAR),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_factors_on_the_cpu_refuses_other_devices(name):
    with pytest.raises(ValueError, match=f"{name}.*on the CPU alone.*is on meta: use GMRES"):
        ELSEWHERE[name]()
