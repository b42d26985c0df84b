"""One system goes the way of the same system among others: steps, status, iterate, residual."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.linear import cg

F32, F64 = torch.float32, torch.float64


def both(A, b, solver, preconditioner=None, x0=None):
    """Solve one system, and a batch that holds it twice."""
    how = {"solver": solver, "preconditioner": preconditioner, "on_failure": "mask"}
    operator = ims.MatrixOperator(A, symmetric=True)
    alone = ims.linear_solve(operator, b, x0=x0, **how)
    twice = torch.stack([b, b])
    start = None if x0 is None else torch.stack([x0, x0])
    lanes = ims.linear_solve(operator, twice, x0=start, batch_dims=1, **how)
    return alone, lanes


def agree(alone, lanes, tolerance):
    assert int(alone.status) == int(lanes.status[0])
    assert abs(int(alone.iterations) - int(lanes.iterations[0])) <= 1
    size = lanes.value[0].abs().max() + 1e-300
    assert float((alone.value - lanes.value[0]).abs().max()) <= tolerance * float(size)


def matrix(n, decades, seed, dtype=F64):
    """A symmetric matrix with eigenvalues over so many decades."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, dtype=F64, generator=generator))[0]
    return ((Q * torch.logspace(-decades, 0, n, dtype=F64)) @ Q.T).to(dtype), Q[0].to(dtype)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@hypothesis.given(
    n=st.integers(1, 12),
    decades=st.floats(0, 2),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 1e-25, 1e20]),
    jacobi=st.booleans(),
    started=st.booleans(),
)
def test_definite_systems(dtype, n, decades, seed, scale, jacobi, started):
    A, b = matrix(n, decades, seed, dtype)
    M = ims.Jacobi() if jacobi else None
    x0 = scale * torch.ones(n, dtype=dtype) if started else None
    alone, lanes = both(A, scale * b, ims.CG(), M, x0)
    assert bool(alone.converged)
    agree(alone, lanes, 30 * 10**decades * torch.finfo(dtype).eps ** (2 / 3))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_budgets_and_too_few_steps(steps):
    A, b = matrix(9, 2, 0)
    for rtol, status in ((None, Status.BUDGET), (1e-12, Status.MAX_STEPS)):
        alone, lanes = both(A, b, ims.CG(rtol=rtol, max_steps=steps))
        assert int(alone.status) == status and int(alone.iterations) == steps
        agree(alone, lanes, 1e-12)
        torch.testing.assert_close(alone.residual, lanes.residual[0])


def test_a_budget_beyond_the_solution_stays_there():
    A, b = torch.diag(torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=F64)), torch.ones(4, dtype=F64)
    alone, lanes = both(A, b, ims.CG(rtol=None, max_steps=9))
    agree(alone, lanes, 1e-14)
    torch.testing.assert_close(alone.value, b / A.diagonal())


FAILURES = {
    "indefinite at once": (torch.diag(torch.tensor([-1.0, 1.0, 2.0])), torch.tensor([1.0, 0, 0])),
    "indefinite later": (torch.diag(torch.tensor([-0.1, 1.0, 2.0])), torch.ones(3)),
    "no curvature": (torch.zeros(3, 3), torch.ones(3)),
    "nan in the matrix": (torch.diag(torch.tensor([1.0, torch.nan, 2.0])), torch.ones(3)),
    "inf in the matrix": (torch.diag(torch.tensor([1.0, torch.inf, 2.0])), torch.ones(3)),
    "curvature out of range": (1e200 * torch.eye(3, dtype=F64), 1e60 * torch.ones(3, dtype=F64)),
    "nan on the right": (torch.eye(3), torch.tensor([1.0, torch.nan, 0.0])),
    "inf on the right": (torch.eye(3), torch.tensor([1.0, torch.inf, 0.0])),
    "zero on the right": (torch.eye(3), torch.zeros(3)),
}


@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize("rtol", [1e-10, None])
def test_failures(case, rtol):
    A, b = (t.double() for t in FAILURES[case])
    alone, lanes = both(A, b, ims.CG(rtol=rtol, max_steps=20))
    agree(alone, lanes, 1e-14)
    assert int(alone.iterations) == int(lanes.iterations[0])
    torch.testing.assert_close(alone.residual, lanes.residual[0], equal_nan=True)


def test_the_best_iterate_is_returned():
    """Residuals of conjugate gradients go up and down; a failed solve returns the least."""
    A, b = matrix(40, 6, 3)
    for steps in range(2, 30):
        alone, lanes = both(A, b, ims.CG(rtol=1e-14, max_steps=steps))
        assert int(alone.status) == Status.MAX_STEPS
        agree(alone, lanes, 1e-6)


def test_what_goes_step_by_step(monkeypatch):
    calls = []

    def noted(*args):
        calls.append(1)
        return original(*args)

    original = cg.cg_alone
    monkeypatch.setattr(cg, "cg_alone", noted)
    A, b = matrix(5, 1, 0)
    both(A, b, ims.CG())
    assert len(calls) == 1
    complex_A = ims.MatrixOperator(A.to(torch.complex128), positive_definite=True)
    ims.linear_solve(complex_A, b.to(torch.complex128), solver=ims.CG())
    with pytest.raises(ValueError, match="not known to be symmetric"):
        ims.linear_solve(ims.MatrixOperator(A), b, solver=ims.CG())
    assert len(calls) == 1
