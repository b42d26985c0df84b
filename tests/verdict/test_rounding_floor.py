"""Maps whose rounding is more than that of their value: where their iterations end."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import implicit_solvers as ims
from implicit_solvers import Status

F32, F64 = torch.float32, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, F64], ids=str)
N = 4
SOLVERS = [ims.FixedPointIteration(), ims.Anderson(), ims.Aitken()]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
# the terms of a sum, in sizes of its value: some of its digits cancel, but not all
TERMS = {F32: (0, 10, 100), F64: (0, 1e2, 1e4, 1e6)}


def rounded(z, A, b, term):
    """Return ``A z + b`` with the rounding of a larger term."""
    return term + ((A @ z.unsqueeze(-1)).squeeze(-1) + b) - term


def solve(A, b, term, solver):
    """Return the solutions in lanes, with their errors and those that are said, as parts of them.

    The exact solutions are those of the equations with the numbers as they are rounded.
    """
    options = {"batch_dims": 1, "in_dims": 0, "on_failure": "mask", "solver": solver}
    sol = ims.fixed_point(rounded, torch.zeros_like(b), (A, b, term), **options)
    with mpmath.workdps(50):
        errors = []
        for lane in range(len(b)):
            M = mpmath.eye(N) - mpmath.matrix(A[lane].double().tolist())
            x = mpmath.lu_solve(M, mpmath.matrix(b[lane].double().tolist()))
            z = mpmath.matrix(sol.value[lane].double().tolist())
            errors.append([float(mpmath.norm(z - x)), float(mpmath.norm(x))])
    error, size = torch.tensor(errors, dtype=F64).unbind(-1)
    return sol, error / size, sol.error.double() * N**0.5 / size


def contraction(rate, turned, seed, dtype):
    """Return a matrix of a spectral radius, which turns where it contracts least, or does not."""
    draw = {"generator": torch.Generator().manual_seed(seed), "dtype": F64}
    Q = torch.linalg.qr(torch.randn(N, N, **draw))[0]
    T = torch.diag(torch.rand(N, **draw) / 2 - 0.2)
    T[0, 0] = rate
    if turned:
        T[:2, :2] = rate * torch.tensor([[0.54, -0.84], [0.84, 0.54]], dtype=F64)
    return (Q @ T @ Q.T).to(dtype), torch.randn(N, **draw).to(dtype)


@DTYPES
@each_solver
@settings(max_examples=8)
@given(
    rate=st.sampled_from([0.5, -0.9, 0.9, 0.99, 0.999, 0.9999, -0.999]),
    turned=st.booleans(),
    seed=st.integers(0, 9),
    unit=st.integers(-66, 66).map(lambda power: 2.0**power),
)
def test_what_is_said_to_converge_is_as_near_as_is_said(solver, dtype, rate, turned, seed, unit):
    """Contractions that are slow, in any unit, with any rounding, by an oracle of 50 digits."""
    A, b = contraction(rate, turned, seed, dtype)
    terms = torch.tensor(TERMS[dtype], dtype=dtype).unsqueeze(-1) * unit
    lanes = (len(terms), *(-1,) * 2)
    sol, error, said = solve(A.expand(lanes), unit * b.expand(lanes[:2]), terms, solver)
    solved = sol.converged
    # a tenth is the least digit; where nothing is cancelled, the tolerance
    assert (error[solved] <= 0.1).all()
    rtol = torch.finfo(dtype).eps ** 0.75
    # samples of what rounding does, and of the contraction, are right to a factor
    assert (error[solved] <= 30 * said[solved].clamp(min=rtol)).all()
    assert (
        (sol.status[~solved] == Status.MAX_STEPS)
        .logical_or(sol.status[~solved] == Status.SINGULAR)
        .all()
    )


@DTYPES
@pytest.mark.parametrize("unit", [2.0**-66, 1.0, 2.0**66])
@each_solver
def test_an_iteration_at_its_rounding_has_converged(solver, unit, dtype):
    """Residuals stand at tens to millions of roundings of the unknown."""
    A, b = contraction(0.7, True, 1, dtype)
    terms = torch.tensor(TERMS[dtype], dtype=dtype).unsqueeze(-1) * unit
    lanes = (len(terms), *(-1,) * 2)
    sol, error, said = solve(A.expand(lanes), unit * b.expand(lanes[:2]), terms, solver)
    assert sol.converged.all()
    # a few roundings of the largest term over one minus the contraction
    assert (error <= 100 * torch.finfo(dtype).eps * (1 + terms[:, 0] / unit) + said).all()


@DTYPES
@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[1]], ids=["Picard", "Anderson"])
def test_a_slow_iteration_that_is_out_of_steps_has_not_converged(solver, dtype):
    A, b = contraction(0.9999, False, 2, dtype)
    short = type(solver)(max_steps=4)
    sol = ims.fixed_point(lambda z: A @ z + b, 0 * b, solver=short, on_failure="mask")
    assert sol.status == Status.MAX_STEPS and sol.error == torch.inf


@DTYPES
def test_a_kink_is_no_rounding(dtype):
    """Across it, steps do not become shorter, and the differences are no linear function."""
    slope = torch.tensor([0.5, 1.9998], dtype=dtype)

    def g(z):
        return 1 - torch.where(z > 1, slope[0] * (z - 1), slope[1] * (z - 1))

    start = torch.full((1,), 1 + 1e-3, dtype=dtype)
    picard = ims.FixedPointIteration(max_steps=100)
    sol = ims.fixed_point(g, start, solver=picard, on_failure="mask")
    off = (sol.value - 1).abs()
    assert not sol.converged or off <= 2 * sol.error


@DTYPES
@pytest.mark.parametrize("n", [1, 700])
def test_stairs_that_hide_the_way_are_said(n, dtype):
    """The step is zero, and the solution far: the map moves in stairs."""
    q, K = 0.99, {F32: 1e3, F64: 1e9}[dtype]
    A, b = torch.tensor(q, dtype=dtype), torch.linspace(0.9, 1.1, n, dtype=dtype)
    big = torch.tensor(K, dtype=dtype)
    sol = ims.fixed_point(
        lambda z: big + (A * z + b) - big, 0 * b, solver=ims.FixedPointIteration(max_steps=3000)
    )
    exact = b.double() / (1 - A.double())
    off = (sol.value.double() - exact).square().mean().sqrt()
    assert off <= 30 * sol.error
