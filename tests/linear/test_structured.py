"""Structure found by probing: what it costs, and that a wrong guess is refuted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, hessian, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.linear.systems import C128, F64, chain, error, near, seeded
from tests.solvers.systems import Watch


def elementwise(z, a):
    return z + 0.5 * torch.tanh(z * a) - a


def full(z, a):
    return z + 0.1 * torch.tanh(z).sum() - a


class Noted(ims.LU):
    """A fallback that notes how often it factors."""

    count = 0

    def factor(self, A):
        type(self).count += 1
        return super().factor(A)


@pytest.fixture
def fallback(monkeypatch):
    monkeypatch.setattr(Noted, "count", 0)
    return Noted()


EQUATIONS = {"diagonal": elementwise, "tridiagonal": chain, "full": full}


@pytest.mark.parametrize("name", EQUATIONS)
def test_newton_and_adjoint(name, fallback):
    """The hook for equations: both the step and the backward solve look for structure."""
    fn, a, structured = EQUATIONS[name], seeded(6, seed=1), ims.Structured(fallback=fallback)
    options = {
        "solver": ims.Newton(linear_solver=structured),
        "adjoint": ims.ImplicitAdjoint(structured),
    }

    def solve(a, **options):
        return ims.root(fn, torch.full((6,), 0.3, dtype=F64), (a,), **options).value

    assert error(solve(a, **options), solve(a)) < 1e-10
    value = jacrev(lambda a: solve(a, **options))(a)
    assert (fallback.count > 1) == (name == "full")
    assert error(value, jacrev(solve)(a)) < 1e-9
    lanes = seeded(4, 6, seed=3)
    first = vmap(grad(lambda a: (solve(a, **options) ** 2).sum()))(lanes)
    assert error(first, vmap(grad(lambda a: (solve(a) ** 2).sum()))(lanes)) < 1e-9
    second = hessian(lambda a: (solve(a, **options) ** 2).sum())(a)
    assert error(second, hessian(lambda a: (solve(a) ** 2).sum())(a)) < 1e-8


def test_an_elementwise_equation_costs_two_products_of_one_batch(monkeypatch):
    """However many unknowns: no matrix is formed, and nothing is factored."""
    calls = []

    def refuse(*args, **kwargs):
        raise AssertionError("a matrix was factored")

    def counted(z, a):
        calls.append(z)
        return elementwise(z, a)

    monkeypatch.setattr(torch.linalg, "lu_factor_ex", refuse)
    costs = []
    for n in (50, 5000):
        calls.clear()
        A = ims.JacobianOperator(counted, seeded(n), (seeded(n, seed=1),), detect=True)
        with Watch() as watch:
            ims.linear_solve(A, seeded(n, seed=2))
        assert watch.largest <= 4 * n
        costs.append(len(calls))
    assert costs[0] == costs[1] <= 3


def test_structure_may_change_from_step_to_step():
    """At zero the Jacobian is the identity: a guess from there would be wrong ever after."""
    W, a, z0 = 0.3 * seeded(5, 5), 0.3 * seeded(5, seed=1), torch.zeros(5, dtype=F64)
    fn = lambda z, a: z + (W @ z) ** 2 - a
    sol = ims.root(fn, z0, (a,), solver=ims.Newton(linear_solver=ims.Structured()))
    plain = ims.root(fn, z0, (a,), solver=ims.Newton())
    assert error(sol.value, plain.value) < 1e-10
    assert int(sol.iterations) == int(plain.iterations)


@given(
    st.integers(5, 8), st.integers(0, 10**6), st.integers(-8, 0), st.integers(0, 63),
    st.sampled_from([F64, C128]),
)  # fmt: skip
def test_a_single_entry_refutes_the_guess(n, seed, exponent, place, dtype):
    """One entry off the diagonal, small as it may be, and in one lane of three."""
    matrices = torch.diag_embed(1 + seeded(3, n, seed=seed).abs()).to(dtype)
    i, away = place % n, 1 + place // n % (n - 1)
    matrices[seed % 3, i, (i + away) % n] += 10.0**exponent
    b = seeded(3, n, seed=seed + 1).to(dtype)
    A = ims.MatrixOperator(matrices)
    solve = lambda b: ims.linear_solve(A, b, solver=ims.Structured(), batch_dims=1).value
    inverse = torch.linalg.inv(matrices)
    exact = (inverse @ b.unsqueeze(-1)).squeeze(-1)
    assert float((solve(b) - exact).abs().max()) < 1e-12 * float(exact.abs().max())
    w = grad(lambda b: solve(b).real.sum())(b)
    assert float((w - inverse.mH @ torch.ones(n, dtype=dtype)).abs().max()) < 1e-11


@pytest.mark.parametrize("widest", [0, 1, 2, 3])
def test_widest(widest, fallback):
    matrix, b = (seeded(7, 7) + 5 * torch.eye(7)).triu(-2).tril(2), seeded(7, seed=1)
    solver = ims.Structured(widest=widest, fallback=fallback)
    x = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=solver).value
    assert error(matrix @ x, b) < 1e-13
    assert fallback.count == (widest < 2)


@pytest.mark.parametrize("fallback", [ims.QR(), ims.LU(), ims.Cholesky()])
def test_fallback(fallback):
    matrix, b = near(0.2 * seeded(4, 4)), seeded(4, seed=1)
    A = ims.MatrixOperator(matrix @ matrix.T, positive_definite=True)
    x = ims.linear_solve(A, b, solver=ims.Structured(fallback=fallback)).value
    assert error(A @ x, b) < 1e-13


def test_bad_lanes_do_not_hide_the_structure(fallback):
    entries, b = 1 + seeded(4, 6).abs(), seeded(4, 6, seed=1)
    entries[1, 2] = torch.nan
    entries[2, 3] = 0.0
    A, solver = ims.MatrixOperator(torch.diag_embed(entries)), ims.Structured(fallback=fallback)
    sol = ims.linear_solve(A, b, solver=solver, batch_dims=1, on_failure="mask")
    assert sol.status.tolist() == [0, int(Status.NONFINITE), int(Status.SINGULAR), 0]
    assert fallback.count == 0
    assert error(sol.value[[0, 3]], (b / entries)[[0, 3]]) < 1e-14


def test_chord_keeps_what_it_found():
    a = seeded(6, seed=1)
    solver = ims.Chord(linear_solver=ims.Structured())
    z = ims.root(chain, torch.full((6,), 0.3, dtype=F64), (a,), solver=solver).value
    assert float(chain(z, a).abs().max()) < 1e-10
