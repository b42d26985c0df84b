"""Structure found by probing: what it costs, and that a wrong guess is refuted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.linear.banded import Banded
from implicit_solvers.linear.diagonal import Diagonal
from implicit_solvers.linear.structured import Structured

F64 = torch.float64


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def error(value, reference):
    assert value.shape == reference.shape
    return float((value - reference).abs().max() / reference.abs().max().clamp(min=1e-2))


def elementwise(z, a):
    return z + 0.5 * torch.tanh(z * a) - a


def chain(z, a):
    """Discretized: each unknown sees its neighbours."""
    left, right = torch.nn.functional.pad(z[:-1], (1, 0)), torch.nn.functional.pad(z[1:], (0, 1))
    return 3 * z - left - 0.5 * right + 0.1 * a * z**3 - a


def full(z, a):
    return z + 0.1 * torch.tanh(z).sum() - a


EQUATIONS = {"diagonal": elementwise, "tridiagonal": chain, "full": full}


@pytest.fixture
def chosen(monkeypatch):
    """Record who solves, by the factors that are handed over."""
    found = []
    original = Structured._solver

    def recording(self, factors):
        solver = original(self, factors)
        found.append(type(solver))
        return solver

    monkeypatch.setattr(Structured, "_solver", recording)
    return found


EXPECTED = {"diagonal": Diagonal, "tridiagonal": Banded, "full": ims.LU}


@pytest.mark.parametrize("name", EQUATIONS)
def test_jacobian_operator(name, chosen):
    fn, z, a, b = EQUATIONS[name], seeded(6), seeded(6, seed=1), seeded(6, seed=2)

    def solve(z, a, b):
        A = ims.JacobianOperator(fn, z, (a,), detect=True)
        return ims.linear_solve(A, b).value

    def oracle(z, a, b):
        return torch.linalg.inv(jacfwd(fn)(z, a)) @ b

    assert error(solve(z, a, b), oracle(z, a, b)) < 1e-12
    assert set(chosen) == {EXPECTED[name]}
    for i in range(3):
        for mode in (jacrev, jacfwd):
            assert error(mode(solve, i)(z, a, b), mode(oracle, i)(z, a, b)) < 1e-10
        second = hessian(lambda *t: (solve(*t) ** 2).sum(), i)(z, a, b)
        expected = hessian(lambda *t: (oracle(*t) ** 2).sum(), i)(z, a, b)
        assert error(second, expected) < 1e-9


@pytest.mark.parametrize("name", EQUATIONS)
def test_newton_and_adjoint(name, chosen):
    """The hook for equations: both the step and the backward solve look for structure."""
    fn, a = EQUATIONS[name], seeded(6, seed=1)
    options = {
        "solver": ims.Newton(linear_solver=ims.Structured()),
        "adjoint": ims.ImplicitAdjoint(ims.Structured()),
    }

    def solve(a, **options):
        return ims.root(fn, torch.full((6,), 0.3, dtype=F64), (a,), **options).value

    assert error(solve(a, **options), solve(a)) < 1e-10
    value = jacrev(lambda a: solve(a, **options))(a)
    assert set(chosen) == {EXPECTED[name]}
    assert error(value, jacrev(solve)(a)) < 1e-9
    lanes = seeded(4, 6, seed=3)
    first = vmap(grad(lambda a: (solve(a, **options) ** 2).sum()))(lanes)
    assert error(first, vmap(grad(lambda a: (solve(a) ** 2).sum()))(lanes)) < 1e-9
    second = hessian(lambda a: (solve(a, **options) ** 2).sum())(a)
    assert error(second, hessian(lambda a: (solve(a) ** 2).sum())(a)) < 1e-8


def test_an_elementwise_equation_costs_one_batch_of_two_products_and_no_factorization(monkeypatch):
    from implicit_solvers.linear.lane_map import LaneMap

    probes = []
    original = LaneMap.probe

    def counting(self, vectors):
        probes.append(len(vectors))
        return original(self, vectors)

    def refuse(*args, **kwargs):
        raise AssertionError("a matrix was formed or factored")

    monkeypatch.setattr(LaneMap, "probe", counting)
    monkeypatch.setattr(LaneMap, "dense", refuse)
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", refuse)
    n = 5000
    A = ims.JacobianOperator(elementwise, seeded(n), (seeded(n, seed=1),), detect=True)
    ims.linear_solve(A, seeded(n, seed=2))
    assert probes == [2]


def test_structure_may_change_from_step_to_step():
    """At zero the Jacobian is the identity: a guess from there would be wrong ever after."""
    W = 0.3 * seeded(5, 5)

    def fn(z, a):
        return z + (W @ z) ** 2 - a

    a = 0.3 * seeded(5, seed=1)
    z0 = torch.zeros(5, dtype=F64)
    solver = ims.Newton(linear_solver=ims.Structured())
    sol = ims.root(fn, z0, (a,), solver=solver)
    plain = ims.root(fn, z0, (a,), solver=ims.Newton())
    assert error(sol.value, plain.value) < 1e-10
    assert int(sol.iterations) == int(plain.iterations)


@given(
    st.integers(2, 8), st.integers(0, 10**6), st.floats(-8, 0), st.integers(0, 63),
    st.sampled_from([F64, torch.complex128]),
)  # fmt: skip
def test_a_single_entry_refutes_the_guess(n, seed, exponent, place, dtype):
    """One entry anywhere outside of the bands, small as it may be, and in one lane of three."""
    matrices = torch.diag_embed(1 + seeded(3, n, seed=seed).abs()).to(dtype)
    i, j = divmod(place % (n * n), n)
    matrices[seed % 3, i, j] += 10**exponent
    b = seeded(3, n, seed=seed + 1).to(dtype)
    sol = ims.linear_solve(ims.MatrixOperator(matrices), b, solver=ims.Structured(), batch_dims=1)
    exact = (torch.linalg.inv(matrices) @ b.unsqueeze(-1)).squeeze(-1)
    assert float((sol.value - exact).abs().max()) < 1e-12 * float(exact.abs().max())
    w = grad(
        lambda b: ims.linear_solve(
            ims.MatrixOperator(matrices), b, solver=ims.Structured(), batch_dims=1
        ).value.real.sum()
    )(b)
    ones = torch.ones(n, dtype=dtype)
    assert float((w - torch.linalg.inv(matrices).mH @ ones).abs().max()) < 1e-11


@pytest.mark.parametrize("widest", [0, 1, 2, 3])
def test_widest(widest, chosen):
    matrix = (seeded(7, 7) + 5 * torch.eye(7)).triu(-2).tril(2)
    b = seeded(7, seed=1)
    solver = ims.Structured(widest=widest)
    x = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=solver).value
    assert error(matrix @ x, b) < 1e-13
    assert set(chosen) == {Banded if widest >= 2 else ims.LU}


def test_fallback():
    matrix, b = seeded(4, 4), seeded(4, seed=1)
    for fallback in (ims.QR(), ims.LU()):
        solver = ims.Structured(fallback=fallback)
        x = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=solver).value
        assert error(matrix @ x, b) < 1e-13
    definite = ims.MatrixOperator(matrix @ matrix.T, positive_definite=True)
    solver = ims.Structured(fallback=ims.Cholesky())
    assert error(definite @ ims.linear_solve(definite, b, solver=solver).value, b) < 1e-10


def test_bad_lanes_do_not_hide_the_structure(chosen):
    entries, b = 1 + seeded(4, 6).abs(), seeded(4, 6, seed=1)
    entries[1, 2] = torch.nan
    entries[2, 3] = 0.0
    A = ims.MatrixOperator(torch.diag_embed(entries))
    sol = ims.linear_solve(A, b, solver=ims.Structured(), batch_dims=1, on_failure="mask")
    assert sol.status.tolist() == [0, int(Status.NONFINITE), int(Status.SINGULAR), 0]
    assert set(chosen) == {Diagonal}
    assert error(sol.value[[0, 3]], (b / entries)[[0, 3]]) < 1e-14


REFUSED = [
    ("widest", lambda: ims.Structured(widest=-1), ValueError, "widest=-1"),
    ("fallback", lambda: ims.Structured(fallback=ims.GMRES()), TypeError, "fallback.*direct"),
    ("singular", lambda: ims.Structured(fallback=ims.SVD()), ValueError, "singular systems"),
    (
        "reuse",
        lambda: ims.root(
            lambda z: z, seeded(2), solver=ims.Newton(linear_solver=ims.Structured(), reuse=0.1)
        ),
        ValueError,
        "reuse=0.1.*Structured",
    ),
    ("Broyden", lambda: ims.Broyden(linear_solver=ims.Structured()), ValueError, "Structured"),
]


@pytest.mark.parametrize(
    "call, exception, words", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(call, exception, words):
    with pytest.raises(exception, match=words):
        call()


def test_chord_keeps_what_it_found():
    a = seeded(6, seed=1)
    solver = ims.Chord(linear_solver=ims.Structured())
    z = ims.root(chain, torch.full((6,), 0.3, dtype=F64), (a,), solver=solver).value
    assert float(chain(z, a).abs().max()) < 1e-10
