"""``x = A^+ b`` of rectangular and rank-deficient systems: what is not in the tables."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

import implicit_solvers as ims
from tests.linear.systems import F32, F64, PAIRS, SOLVERS, error, pairs, seeded


@pairs([name for name, (system, _) in PAIRS.items() if "L" in system.given and not system.columns])
def test_derivative_off_the_manifold_is_that_of_torch(system, solver):
    """With a full rank every direction is allowed; else the formula counts its part on it."""
    matrix, b = system.matrix(*system.tensors), system.b
    expected = jacrev(lambda A: torch.linalg.pinv(A, rtol=1e-10) @ b)(matrix)
    solve = lambda A: ims.linear_solve(ims.MatrixOperator(A), b, solver=SOLVERS[solver][0]).value
    assert error(jacrev(solve)(matrix), expected) < 1e-7


@given(
    st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6),
    st.sampled_from([ims.SVD(), ims.LSMR()]),
    st.sampled_from([F64, F32, torch.complex128, torch.complex64]),
)  # fmt: skip
def test_penrose(m, n, rank, seed, solver, dtype):
    """``A x`` is the projection of ``b``, and ``x`` has no part that ``A`` does not see."""
    rank, wide = min(m, n, rank), torch.promote_types(dtype, F64)
    u, v = (
        torch.linalg.qr(seeded(k, rank, seed=seed + i, dtype=wide))[0] for i, k in ((0, m), (1, n))
    )
    values = torch.logspace(0, 1, rank, dtype=F64).to(wide)
    matrix, b = u @ torch.diag(values) @ v.mH, seeded(m, seed=seed + 2, dtype=wide)
    # the rank is that of the float64 matrix: rounding makes a full one of it
    solver = ims.SVD(rcond=1e-5) if isinstance(solver, ims.SVD) else solver
    A = ims.MatrixOperator(matrix.to(dtype))
    x = ims.linear_solve(A, b.to(dtype), solver=solver).value.to(wide)
    # LSMR's tolerance times the square of a condition of 10
    tolerance = 500 * torch.finfo(dtype).eps ** (2 / 3) * float(b.norm())
    assert torch.allclose(matrix @ x, u @ (u.mH @ b), atol=tolerance)
    assert torch.allclose(x, v @ (v.mH @ x), atol=tolerance)


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
