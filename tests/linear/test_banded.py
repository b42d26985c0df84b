"""Banded systems of any size and width against ``scipy.linalg.solve_banded`` and dense inverses."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import implicit_solvers as ims
from tests.linear.systems import F32, F64, error, seeded


@pytest.mark.parametrize("n", [1, 2, 3, 50, 1000])
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_sizes(n, dtype):
    lower, main, upper = (seeded(k, seed=i) for i, k in enumerate((n - 1, n, n - 1)))
    main, b = main + 3, seeded(n, seed=9)
    A = ims.TridiagonalOperator(*(t.to(dtype) for t in (lower, main, upper)))
    sol = ims.linear_solve(A, b.to(dtype))
    assert sol.value.dtype == dtype and bool(sol.converged)
    bands = np.zeros((3, n))
    bands[0, 1:], bands[1], bands[2, :-1] = upper, main, lower
    expected = b / main if n == 1 else scipy.linalg.solve_banded((1, 1), bands, b.numpy())
    # the condition number of a random tridiagonal matrix grows with n
    limit = 1e6 * torch.finfo(dtype).eps
    assert error(sol.value.double(), torch.as_tensor(expected)) < limit


@given(
    st.integers(1, 12), st.integers(0, 3), st.integers(0, 3), st.integers(0, 10**6),
    st.integers(1, 3), st.sampled_from([F64, F32]), st.booleans(),
)  # fmt: skip
def test_bands_of_any_width(n, below, above, seed, lanes, dtype, transposed):
    """Entries range over powers of ten and lanes are stacked."""
    kept = torch.ones(n, n, dtype=torch.bool).triu(-below).tril(above)
    matrices = torch.where(kept, seeded(lanes, n, n, seed=seed), 0.0) + 5 * torch.eye(n, dtype=F64)
    matrices = matrices * 10 ** seeded(lanes, n, 1, seed=seed + 1)
    if transposed:
        matrices, below, above = matrices.mT, above, below
    b = (matrices @ seeded(lanes, n, 1, seed=seed + 2)).squeeze(-1)

    class Operator(ims.MatrixOperator):
        bands = (below, above)

    # the backward pass of this is a solve with the transpose
    solve = vmap(lambda matrix, b: ims.linear_solve(Operator(matrix), b, solver=ims.Banded()).value)
    matrices, b = matrices.to(dtype), b.to(dtype)
    value = solve(matrices, b)
    backward = grad(lambda b: (solve(matrices, b) * b.detach()).sum())(b)
    for i in range(lanes):
        rows = matrices[i].abs() @ value[i].abs() + b[i].abs()
        limit = 200 * n * torch.finfo(dtype).eps
        assert ((matrices[i] @ value[i] - b[i]).abs() <= limit * rows).all()
        w = torch.linalg.solve_ex(matrices[i].double().T, b[i].double())[0]
        assert error(backward[i].double(), w) < 1e5 * torch.finfo(dtype).eps
