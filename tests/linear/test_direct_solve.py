"""Direct solves: what CONVERGED says of the error, in any units, and where no digit is left."""

import mpmath
import pytest
import torch

import implicit_solvers as ims
from implicit_solvers import Status
from tests.linear.systems import F32, F64, seeded

SOLVERS = {"LU": ims.LU(), "QR": ims.QR(), "Cholesky": ims.Cholesky()}


def solved(A, b, name, **options):
    operator = ims.MatrixOperator(A, positive_definite=name == "Cholesky")
    return ims.linear_solve(operator, b, solver=SOLVERS[name], on_failure="mask", **options)


def random_systems(n=5, count=40, definite=False, seed=0):
    """Return systems of conditions 1 to 1e17 and sizes 1e-20 to 1e20, rows of one matrix each."""
    draw = torch.Generator().manual_seed(seed)
    q = [torch.linalg.qr(torch.randn(count, n, n, generator=draw, dtype=F64))[0] for _ in "uv"]
    fall = 10.0 ** -torch.linspace(0, 17, count, dtype=F64)
    values = fall.unsqueeze(-1) ** torch.linspace(0, 1, n, dtype=F64)
    size = 10.0 ** (40 * torch.rand(count, 1, 1, generator=draw, dtype=F64) - 20)
    A = (q[0] * values.unsqueeze(-2)) @ (q[0] if definite else q[1]).mT * size
    return (A + A.mT) / 2 if definite else A, torch.randn(count, n, generator=draw, dtype=F64)


def exactly(A, b):
    with mpmath.workdps(60):
        x = mpmath.lu_solve(mpmath.matrix(A.tolist()), mpmath.matrix(b.tolist()))
        return torch.tensor([float(v) for v in x], dtype=F64)


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SOLVERS)
def test_converged_means_an_error_that_is_said(name, dtype):
    """400 systems in all: never off by more than a hundred estimates, in units of ``x``."""
    systems = random_systems(definite=name == "Cholesky", count=80 if name == "LU" else 60)
    A, b = (t.to(dtype) for t in systems)
    found, solved_ones = solved(A, b, name, batch_dims=1), 0
    tolerance = 1e3 * torch.finfo(dtype).eps ** 0.75
    for k in range(len(b)):
        if int(found.status[k]) == 0:
            x = exactly(A[k], b[k])
            off = ims.rms(found.value[k].double() - x)
            assert off <= max(100 * float(found.error[k]), tolerance * float(ims.rms(x)))
            solved_ones += 1
        assert int(found.status[k]) in (0, Status.SINGULAR, Status.INDEFINITE)
    assert solved_ones > 0.3 * len(b)
    # units of the matrix and of the right-hand side are powers of two: no bit changes
    for i, j in [(8, 0), (-6, 0), (0, 10), (4, -12)]:
        other = solved(A * 2.0**i, b * 2.0**j, name, batch_dims=1)
        assert torch.equal(other.status, found.status)
        same = (other.value * 2.0 ** (i - j) == found.value).all(-1)
        assert bool((same | ~found.converged).all())


N = 60


def grows(n):
    """Return Wilkinson's matrix: the last column doubles with each step of the elimination."""
    matrix = torch.eye(n, dtype=F64) - torch.ones(n, n, dtype=F64).tril(-1)
    matrix[:, -1] = 1.0
    return matrix


SHIFTED = torch.eye(N, dtype=F64) + 3 * torch.eye(N, dtype=F64).roll(1, 0).tril()
UNITS = torch.logspace(-12, 12, 6, dtype=F64)
ROWS = UNITS[:, None] * seeded(6, 6, seed=2)
WEAK = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 2**-40]], dtype=F64)
# the matrix, the solution, the solver, the largest relative error, and the status
NAMED = {
    "growth": (grows(N), seeded(N, seed=1), "LU", 1e-12, 0),
    "shift": (SHIFTED, seeded(N, seed=1), "LU", 0.1, Status.SINGULAR),
    "shift-QR": (SHIFTED, seeded(N, seed=1), "QR", 0.1, Status.SINGULAR),
    "rows-QR": (ROWS, seeded(6), "QR", 1e-12, 0),
    "rows-LU": (ROWS, seeded(6), "LU", 1e-12, 0),
    "growth-100": (grows(100), seeded(100), "LU", 1e-12, 0),
    "growth-transposed": (grows(N).mT, seeded(N, seed=1), "LU", 1e-12, 0),
    "columns-QR": (ROWS.mT, seeded(6) / UNITS, "QR", 1e-12, 0),
    "columns-LU": (ROWS.mT, seeded(6) / UNITS, "LU", 1e-12, 0),
    "weak": (WEAK, torch.tensor([1.0, 2.0], dtype=F64), "LU", 1e-2, 0),
}


@pytest.mark.parametrize("name", NAMED)
def test_it_is_solved_or_said_to_be_singular(name):
    A, x, solver, most, status = NAMED[name]
    sol = solved(A, A @ x, solver)
    off = ims.rms(sol.value - x)
    assert int(sol.status) == status and off <= 100 * sol.error
    assert status or (off <= most * ims.rms(x) and sol.error < 100 * most * ims.rms(x))


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)], ids=["tall", "wide"])
@pytest.mark.parametrize("solver", [ims.QR(), ims.SVD()], ids=["QR", "SVD"])
def test_the_error_of_least_squares_is_said(solver, shape):
    """With a residual that is not small, it grows with the square of the condition."""
    for k, weak in enumerate((1.0, 1e-3, 1e-6)):
        m, n = shape
        A = seeded(m, n, seed=k)
        A[:, -1], A[-1] = (A[:, 0] + weak * A[:, -1], A[-1]) if m > n else (
            A[:, -1], A[0] + weak * A[-1])  # fmt: skip
        b = seeded(m, seed=k + 9)
        sol = ims.linear_solve(A, b, solver=solver)
        with mpmath.workdps(60):
            M, v = mpmath.matrix(A.tolist()), mpmath.matrix(b.tolist())
            x = mpmath.lu_solve(M.T * M, M.T * v) if m > n else M.T * mpmath.lu_solve(M * M.T, v)
        exact = torch.tensor([float(t) for t in x], dtype=F64)
        assert ims.rms(sol.value - exact) <= 10 * sol.error < 1e-2 * ims.rms(exact)


@pytest.mark.parametrize("weak", [1e-9, 2.0**-52])
def test_a_gradient_is_as_good_as_arithmetic_allows_or_a_failure(weak):
    J = torch.tensor([[1.0, 1.0], [1.0, 1.0 + weak]], dtype=F64)
    theta, zero = torch.zeros(2, dtype=F64, requires_grad=True), torch.zeros(2, dtype=F64)
    z = ims.attach(lambda z, t: J @ z - t, zero, (theta,))
    if weak < 1e-15:
        with pytest.raises(ims.ConvergenceError, match="adjoint.*SINGULAR"):
            z[0].backward()
    else:
        z[0].backward()
        weak = float(J[1, 1]) - 1
        exact = torch.tensor([(1 + weak) / weak, -1 / weak], dtype=F64)
        assert ims.rms(theta.grad - exact) < 1e-6 * ims.rms(exact)
