"""Complex operators and unknowns, with torch's convention for gradients.

The oracle of linear systems is ``torch.linalg.inv``; that of equations Newton steps on the real and
imaginary parts, unrolled in plain torch; of holomorphic ones a closed form as well.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jvp, vjp, vmap

import implicit_solvers as ims
from implicit_solvers import Status

C64, C128, F64 = torch.complex64, torch.complex128, torch.float64


def seeded(*shape, seed=0, dtype=C128):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def general(seed=0, n=3):
    return 2 * torch.eye(n, dtype=C128) + 0.5 * seeded(n, n, seed=seed)


def identity(L):
    return torch.eye(L.shape[-1], dtype=L.dtype)


def adjoint(L):
    # torch 2.13 asserts in batched forward mode through the lazy conj()
    return torch.complex(L.real, -L.imag).mT


def hermitian(L):
    return L + adjoint(L) + torch.diag(torch.tensor([4.0, -5.0, 6.0]))


def definite(L):
    return identity(L) + L @ adjoint(L)


KINDS = {
    "general": (lambda L: 2 * identity(L) + 0.5 * L, {}),
    "hermitian": (hermitian, {"symmetric": True}),
    "definite": (definite, {"positive_definite": True}),
}
SOLVERS = {
    "default": (None, "general"),
    "LU": (ims.LU(), "general"),
    "QR": (ims.QR(), "general"),
    "SVD": (ims.SVD(), "general"),
    "GMRES": (ims.GMRES(), "general"),
    "GMRES-2": (ims.GMRES(restart=2), "general"),
    "BiCGStab": (ims.BiCGStab(), "general"),
    "LSMR": (ims.LSMR(), "general"),
    "MINRES": (ims.MINRES(), "hermitian"),
    "LU-hermitian": (ims.LU(), "hermitian"),
    "CG": (ims.CG(), "definite"),
    "Cholesky": (ims.Cholesky(), "definite"),
    "Neumann": (ims.Neumann(), "general"),
}
solvers = pytest.mark.parametrize("name", SOLVERS)
L0, B0, M = seeded(3, 3), seeded(3, seed=1), general()


def ours(name):
    solver, kind = SOLVERS[name]
    matrix, flags = KINDS[kind]

    def solve(L, b):
        M = matrix(L)
        if name == "Neumann":
            M = 0.4 * M
        A = ims.MatrixOperator(M, **flags)
        return ims.linear_solve(A, b, solver=solver).value

    return solve


def oracle(name):
    matrix = KINDS[SOLVERS[name][1]][0]
    factor = 0.4 if name == "Neumann" else 1.0
    return lambda L, b: torch.linalg.inv(factor * matrix(L)) @ b


def error(value, reference):
    assert value.shape == reference.shape and value.dtype == reference.dtype
    return float((value - reference).abs().max() / reference.abs().max().clamp(min=1e-2))


@solvers
@pytest.mark.parametrize("dtype", [C128, C64], ids=["complex128", "complex64"])
def test_value(name, dtype):
    value = ours(name)(L0.to(dtype), B0.to(dtype))
    exact = oracle(name)(L0, B0)
    assert value.dtype == dtype
    assert error(value.to(C128), exact) < 100 * torch.finfo(dtype).eps ** (2 / 3)


def loss(x):
    """Return a real number that depends on every part of every entry, not holomorphically."""
    weight = torch.arange(1, x.shape[-1] + 1, dtype=F64)
    return ((x.real * weight).sum(-1) ** 3 + (x.abs() ** 2 * x.imag).sum(-1)).sum()


@solvers
def test_gradients(name):
    """Reverse, forward, and reverse of reverse, all against the same of ``inv``."""
    for i in (0, 1):
        first = grad(lambda *t: loss(ours(name)(*t)), i)(L0, B0)
        expected = grad(lambda *t: loss(oracle(name)(*t)), i)(L0, B0)
        assert error(first, expected) < 1e-7
        second, expected = (
            grad(lambda *t, f=f, i=i: loss(grad(lambda *t: loss(f(*t)), i)(*t)), i)(L0, B0)
            for f in (ours(name), oracle(name))
        )
        assert error(second, expected) < 1e-5
    tangents = (seeded(3, 3, seed=5), seeded(3, seed=6))
    value = jvp(ours(name), (L0, B0), tangents)[1]
    assert error(value, jvp(oracle(name), (L0, B0), tangents)[1]) < 1e-8


@pytest.mark.parametrize(
    "name", ["LU", "QR", "SVD", "CG", "GMRES", "MINRES", "BiCGStab", "Cholesky", "LSMR"]
)
def test_gradcheck(name):
    def solve(L, b):
        solver, kind = SOLVERS[name]
        matrix, flags = KINDS[kind]
        if solver is not None and hasattr(solver, "rtol"):
            solver = type(solver)(rtol=1e-12)
        A = ims.MatrixOperator(matrix(L), **flags)
        return ims.linear_solve(A, b, solver=solver, on_failure="warn").value

    inputs = (L0.clone().requires_grad_(), B0.clone().requires_grad_())
    assert gradcheck(
        solve,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    if name in ("LU", "SVD", "GMRES"):
        assert gradgradcheck(solve, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("name", ["LU", "QR", "SVD", "CG", "GMRES", "MINRES", "BiCGStab"])
@pytest.mark.parametrize("over", [(0, 0), (None, 0), (0, None)])
def test_vmap(name, over):
    lanes = (seeded(4, 3, 3, seed=2), seeded(4, 3, seed=3))
    tensors = [t if d == 0 else t[0] for t, d in zip(lanes, over, strict=True)]
    solve, exact = vmap(ours(name), over), vmap(oracle(name), over)
    assert error(solve(*tensors), exact(*tensors)) < 1e-8
    for i in (0, 1):
        first = grad(lambda *t: loss(solve(*t)), i)(*tensors)
        assert error(first, grad(lambda *t: loss(exact(*t)), i)(*tensors)) < 1e-6


@pytest.mark.parametrize("on_failure", ["raise", "mask"])
def test_masked_lanes(on_failure):
    """The same gradients, and none from a lane with NaN."""
    Ls, bs = seeded(4, 3, 3, seed=2), seeded(4, 3, seed=3)
    scale = torch.tensor(1.1 + 0.3j, dtype=C128)

    def solve(scale, L, b):
        A = ims.FunctionOperator(lambda v: scale * (M @ v) + 0.1 * (L @ v), like=b)
        return ims.linear_solve(A, b, on_failure=on_failure).value

    def total(scale, Ls, bs):
        x = vmap(solve, (None, 0, 0))(scale, Ls, bs)
        return loss(torch.where(torch.isfinite(bs.real), x, 0.0))

    def exact(scale, Ls, bs):
        return loss(vmap(lambda L, b: torch.linalg.inv(scale * M + 0.1 * L) @ b)(Ls, bs))

    for i in range(3):
        assert error(grad(total, i)(scale, Ls, bs), grad(exact, i)(scale, Ls, bs)) < 1e-9
        for_real = grad(lambda *t, i=i: grad(total, i)(*t).abs().pow(2).sum())(scale, Ls, bs)
        expected = grad(lambda *t, i=i: grad(exact, i)(*t).abs().pow(2).sum())(scale, Ls, bs)
        assert error(for_real, expected) < 1e-8
    if on_failure == "mask":
        good = torch.tensor([0, 2, 3])
        bad_L, bad_b = Ls.clone(), bs.clone()
        bad_L[1] = torch.nan
        bad_b[1] = torch.nan
        ours_ = grad(total)(scale, bad_L, bad_b)
        assert error(ours_, grad(exact)(scale, Ls[good], bs[good])) < 1e-9


# -- operators ---------------------------------------------------------------------------------


def times(v):
    return M @ v


OPERATORS = {
    "matrix": (lambda: ims.MatrixOperator(M), M),
    "function": (lambda: ims.FunctionOperator(times, like=B0), M),
    "diagonal": (lambda: ims.DiagonalOperator(B0), torch.diag(B0)),
    "scaled": (lambda: (1 + 2j) * ims.MatrixOperator(M), (1 + 2j) * M),
    "scaled-0d": (lambda: torch.tensor(2 - 1j) * ims.MatrixOperator(M), (2 - 1j) * M),
    "sum": (lambda: ims.MatrixOperator(M) + 1j * ims.IdentityOperator(), M + 1j * identity(M)),
    "product": (lambda: ims.DiagonalOperator(B0) @ ims.MatrixOperator(M), B0[:, None] * M),
    "transpose": (lambda: ims.MatrixOperator(M).T, M.T),
    "adjoint": (lambda: ims.MatrixOperator(M).H, M.mH),
    "adjoint-of-transpose": (lambda: ims.MatrixOperator(M).T.H, M.conj()),
    "transpose-of-adjoint": (lambda: ims.MatrixOperator(M).H.T, M.conj()),
    "hermitian": (lambda: ims.MatrixOperator(hermitian(M), symmetric=True), hermitian(M)),
    "hermitian-transposed": (
        lambda: ims.MatrixOperator(hermitian(M), symmetric=True).T,
        hermitian(M).T,
    ),
    "jacobian": (
        lambda: ims.JacobianOperator(lambda z: torch.sin(M @ z), B0),
        torch.diag(torch.cos(M @ B0)) @ M,
    ),
    "tridiagonal": (
        lambda: ims.TridiagonalOperator(B0[:2], M.diagonal(), B0[1:]),
        torch.diag(B0[:2], -1) + torch.diag(M.diagonal()) + torch.diag(B0[1:], 1),
    ),
    "tridiagonal-transposed": (
        lambda: ims.TridiagonalOperator(B0[:2], M.diagonal(), B0[1:]).T,
        (torch.diag(B0[:2], -1) + torch.diag(M.diagonal()) + torch.diag(B0[1:], 1)).T,
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name):
    make, matrix = OPERATORS[name]
    A = make()
    v = seeded(3, seed=8)
    assert error(A.dense(), matrix) < 1e-14
    assert error(A.mv(v), matrix @ v) < 1e-14
    assert error(A.rmv(v), matrix.mH @ v) < 1e-14
    assert error(A.T.mv(v), matrix.T @ v) < 1e-14
    assert error(A.H.mv(v), matrix.mH @ v) < 1e-14
    assert A.symmetric == (name == "hermitian")
    b = seeded(3, seed=9)
    for solver in (None, ims.GMRES()):
        x, pull = vjp(lambda b, s=solver: ims.linear_solve(make(), b, solver=s).value, b)
        assert error(x, torch.linalg.inv(matrix) @ b) < 1e-8
        assert error(pull(v)[0], torch.linalg.inv(matrix.mH) @ v) < 1e-8


@pytest.mark.filterwarnings("ignore:Sparse (CSR tensor|invariant):UserWarning")
def test_sparse_operator():
    A = ims.SparseOperator(M.to_sparse_csr())
    b = B0.clone().requires_grad_()
    x = ims.linear_solve(A, b).value
    assert error(x.detach(), torch.linalg.inv(M) @ B0) < 1e-13
    assert error(A.T.dense(), M.T) == 0 and error(A.H.dense(), M.mH) == 0
    (g,) = torch.autograd.grad(loss(x), b)
    assert error(g, grad(lambda b: loss(torch.linalg.inv(M) @ b))(B0)) < 1e-12


@pytest.mark.parametrize("solver", [ims.QR(), ims.SVD(), ims.LSMR()])
def test_least_squares(solver):
    matrix, b = seeded(5, 3), seeded(5, seed=1)

    def solve(A, b):
        return ims.linear_solve(ims.MatrixOperator(A), b, solver=solver).value

    def exact(A, b):
        return torch.linalg.inv(A.mH @ A) @ A.mH @ b

    assert error(solve(matrix, b), exact(matrix, b)) < 1e-9
    for i in (0, 1):
        first = grad(lambda *t: loss(solve(*t)), i)(matrix, b)
        assert error(first, grad(lambda *t: loss(exact(*t)), i)(matrix, b)) < 1e-7
        wide = grad(lambda *t: loss(solve(t[0].mH, t[1][:3])), i)(matrix, b)
        expected = grad(lambda *t: loss(torch.linalg.pinv(t[0].mH) @ t[1][:3]), i)(matrix, b)
        assert error(wide, expected) < 1e-7


def test_preconditioner_serves_both_passes():
    scale = torch.logspace(-2, 2, 12, dtype=F64) * torch.exp(
        1j * torch.linspace(0, 3, 12, dtype=F64)
    )
    matrix = torch.diag(scale) @ (torch.eye(12) + 0.05 * seeded(12, 12))
    for solver, P in [
        (ims.GMRES(), ims.DiagonalOperator(1 / scale)),
        (ims.BiCGStab(), lambda r: r / scale),
    ]:
        b = seeded(12, seed=3).requires_grad_()
        with ims.monitor() as log:
            x = ims.linear_solve(
                ims.MatrixOperator(matrix), b, solver=solver, preconditioner=P
            ).value
            loss(x).backward()
        assert all(int(record.iterations) <= 12 for record in log.records)
        expected = grad(lambda b: loss(torch.linalg.inv(matrix) @ b))(b.detach())
        assert error(b.grad, expected) < 1e-6


@pytest.mark.parametrize(
    "solver", [ims.LU(), ims.QR(), ims.GMRES(), ims.BiCGStab(), ims.CG(), ims.MINRES()]
)
def test_what_is_not_linear_over_complex_numbers_is_refuted(solver):
    """``v + conj(v) / 2`` is linear over the real numbers only: a solve fails, or is right.

    Real multiples of products may span the solution; coefficients that are complex do not.
    """

    def multiply(v):
        return v + 0.5 * v.conj()

    def solve(b):
        A = ims.FunctionOperator(multiply, like=B0, positive_definite=True)
        return ims.linear_solve(A, b, solver=solver).value

    failures = 0
    for seed in range(4):
        b, w = seeded(3, seed=seed), seeded(3, seed=seed + 10)
        try:
            x, pull = vjp(solve, b)
            g = pull(w)[0]
        except ims.ConvergenceError:
            failures += 1
        else:
            assert error(multiply(x), b) < 1e-9
            assert error(multiply(g), w) < 1e-9  # the operator is symmetric over real numbers
    J = ims.JacobianOperator(lambda z: z * z.abs(), B0, symmetric=True)
    sol = ims.linear_solve(J, B0, solver=solver, on_failure="mask")
    if bool(sol.converged):
        assert error(J.mv(sol.value), B0) < 1e-9
    if isinstance(solver, (ims.LU, ims.QR)):
        assert failures == 4 and not bool(sol.converged)


def test_wrong_flags_are_refuted():
    for flags, matrix in [
        ({"symmetric": True}, M),
        ({"symmetric": True}, M + M.T),  # complex symmetric is not Hermitian
        ({"positive_definite": True}, -definite(M)),
    ]:
        with pytest.raises(ValueError, match="A says"):
            ims.linear_solve(ims.MatrixOperator(matrix, **flags), B0, check=True)
    fine = ims.MatrixOperator(definite(M), positive_definite=True)
    assert bool(ims.linear_solve(fine, B0, check=True).converged)


@given(
    st.integers(1, 8), st.integers(0, 10**6), st.sampled_from([C128, C64]),
    st.sampled_from([ims.LU(), ims.QR(), ims.SVD(), ims.GMRES(), ims.BiCGStab(), ims.LSMR()]),
)  # fmt: skip
def test_solution_and_gradient_solve(n, seed, dtype, solver):
    matrix = (3 * torch.eye(n) + seeded(n, n, seed=seed) / n**0.5).to(dtype)
    b, c = (seeded(n, seed=seed + k).to(dtype) for k in (1, 2))
    x, pull = vjp(lambda b: ims.linear_solve(ims.MatrixOperator(matrix), b, solver=solver).value, b)
    tolerance = 200 * torch.finfo(dtype).eps ** (2 / 3)
    assert error(matrix @ x, b) < tolerance
    assert error(matrix.mH @ pull(c)[0], c) < tolerance


# -- equations: unknowns are solved for as pairs of real numbers --------------------------------


def polynomial(z, c):
    """Holomorphic: three roots, of which Newton finds one."""
    return z**3 + c[0] * z + c[1]


def antiholomorphic(z, c):
    # no z.abs(): torch's jacfwd of its second derivative raises, in the oracle
    square = z.real**2 + z.imag**2
    return z + 0.3 * z.conj() / (1 + square) - c[0] + 0.2 * c[1] * square.sqrt()


CENTER = torch.tensor([1.0 + 0.5j, -0.4 + 0.8j], dtype=C128)
EQUATIONS = {"holomorphic": polynomial, "nonholomorphic": antiholomorphic}


def newton_oracle(f, z, c, steps=2):
    """Return the root near ``z``, by Newton's method on pairs of real numbers, differentiable."""

    def step(x, c):
        def pairs(x):
            out = f(torch.complex(x[..., 0], x[..., 1]), c)
            return torch.stack((out.real, out.imag), -1)

        J = jacfwd(pairs)(x).reshape(x.numel(), x.numel())
        return x - (torch.linalg.inv(J) @ pairs(x).reshape(-1)).reshape(x.shape)

    x = torch.stack((z.real, z.imag), -1).detach()
    for _ in range(30):
        x = step(x, c.detach())
    x = x.detach()
    for _ in range(steps):
        x = step(x, c)
    return torch.complex(x[..., 0], x[..., 1])


START = torch.tensor([0.3 + 0.9j], dtype=C128)


def solve_root(f, solver=None, adjoint=None):
    return lambda c: ims.root(f, START, (c,), solver=solver, adjoint=adjoint).value


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize(
    "solver, adjoint",
    [(None, None), (ims.Newton(), ims.ImplicitAdjoint(ims.GMRES())),
     (ims.Newton(linear_solver=ims.GMRES()), ims.ImplicitAdjoint(ims.BiCGStab())),
     (ims.Broyden(), ims.ImplicitAdjoint(ims.QR())), (ims.LevenbergMarquardt(), None)],
    ids=["default", "Newton-GMRES", "Krylov-BiCGStab", "Broyden-QR", "LevenbergMarquardt"],
)  # fmt: skip
def test_root(name, solver, adjoint):
    f = EQUATIONS[name]
    solve = solve_root(f, solver, adjoint)
    z = solve(CENTER)
    assert z.dtype == C128 and float(f(z, CENTER).abs().max()) < 1e-9

    def exact(c):
        return newton_oracle(f, z, c)

    tangent = seeded(2, seed=4)
    assert error(jvp(solve, (CENTER,), (tangent,))[1], jvp(exact, (CENTER,), (tangent,))[1]) < 1e-7
    first = grad(lambda c: loss(solve(c)))(CENTER)
    assert error(first, grad(lambda c: loss(exact(c)))(CENTER)) < 1e-7
    second = grad(lambda c: loss(grad(lambda c: loss(solve(c)))(c)))(CENTER)
    assert error(second, grad(lambda c: loss(grad(lambda c: loss(exact(c)))(c)))(CENTER)) < 1e-5


def test_derivative_of_a_holomorphic_root():
    """``dz/dc1 = -1 / (3 z^2 + c0)``; torch's gradient of it is the conjugate."""
    z, pull = vjp(solve_root(polynomial), CENTER)
    slope = -1 / (3 * z**2 + CENTER[0])
    expected = torch.cat([(slope * z).conj(), slope.conj()])
    assert error(pull(torch.ones_like(z))[0], expected) < 1e-10


@pytest.mark.parametrize("name", EQUATIONS)
def test_root_gradcheck(name):
    solve = solve_root(EQUATIONS[name])
    c = CENTER.clone().requires_grad_()
    assert gradcheck(
        solve,
        (c,),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(solve, (c,), check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("name", EQUATIONS)
def test_root_in_lanes(name):
    f, cs = EQUATIONS[name], CENTER + 0.2 * seeded(4, 2, seed=7)
    single = [grad(lambda c: loss(solve_root(f)(c)))(c) for c in cs]
    batched = vmap(grad(lambda c: loss(solve_root(f)(c))))(cs)
    assert error(batched, torch.stack(single)) < 1e-8
    whole = grad(lambda cs: loss(vmap(solve_root(f))(cs)))(cs)
    assert error(whole, torch.stack(single)) < 1e-8

    def native(cs):
        return ims.root(
            lambda z, c: f(z, c.T), START.expand(4).clone(), (cs,), batch_dims=1, in_dims=(0,)
        ).value

    assert error(grad(lambda cs: loss(native(cs)[:, None]))(cs), torch.stack(single)) < 1e-8


def test_tree_and_complex64():
    c = CENTER.to(C64)

    def f(z, c):
        return {"a": z["a"] ** 2 - c, "b": z["b"] - z["a"].conj().sum()}

    z0 = {"a": torch.ones(2, dtype=C64), "b": torch.ones((), dtype=C64)}
    z = ims.root(f, z0, (c,)).value
    assert z["a"].dtype == C64
    assert torch.allclose(z["a"] ** 2, c, atol=1e-4)
    assert torch.allclose(z["b"], z["a"].conj().sum(), atol=1e-4)


def test_captured_complex_tensors_and_real_parameters():
    c, t = CENTER.clone().requires_grad_(), torch.tensor(0.7, dtype=F64, requires_grad=True)
    z = ims.root(lambda z: antiholomorphic(z, c) * t - 0.1 * z, START).value
    loss(z).backward()

    def exact(c, t):
        return newton_oracle(lambda z, c: antiholomorphic(z, c) * t - 0.1 * z, z, c)

    assert error(c.grad, grad(lambda c: loss(exact(c, t.detach())))(CENTER)) < 1e-8
    slope = grad(
        lambda t: loss(newton_oracle(lambda z, t: antiholomorphic(z, CENTER) * t - 0.1 * z, z, t))
    )(t.detach())
    assert error(t.grad, slope) < 1e-8


def test_fixed_point_minimum_fit_and_own_solver():
    c = CENTER[:1]

    def cell(z, c):
        return 0.3 * z.conj() ** 2 + c

    def exact(c):
        return newton_oracle(lambda z, c: z - cell(z, c), START, c)

    expected = grad(lambda c: loss(exact(c)))(0.4 * c)
    found = grad(lambda c: loss(ims.fixed_point(cell, START, (c,)).value))(0.4 * c)
    assert error(found, expected) < 1e-7
    unrolled = ims.UnrolledAdjoint()
    picard = ims.FixedPointIteration()
    found = grad(
        lambda c: loss(ims.fixed_point(cell, START, (c,), solver=picard, adjoint=unrolled).value)
    )(0.4 * c)
    assert error(found, expected) < 1e-6

    def objective(z, c):
        return ((z - c).abs() ** 2).sum() + 0.1 * (z.real**4).sum()

    def residuals(z, c):
        return {"complex": z - c, "real": 0.1**0.5 * z.real**2}

    for solver in (None, ims.LBFGS(), ims.GradientDescent(lr=0.2, max_steps=5000)):
        z = ims.minimize(objective, START, (c,), solver=solver).value
        assert torch.allclose(z.imag, c.imag, atol=1e-6)
        assert torch.allclose(
            2 * (z.real - c.real) + 0.4 * z.real**3, torch.zeros(1).double(), atol=1e-6
        )
    fit = ims.least_squares(residuals, START, (c,)).value
    assert torch.allclose(fit, z, atol=1e-6)

    @ims.custom_root(polynomial)
    def by_numpy(z0, c):
        roots = np.roots([1, 0, *c.numpy()])
        return roots[np.abs(roots - z0.numpy()).argmin()][None]

    value, pull = vjp(lambda c: by_numpy(START, c).value, CENTER)
    slope = -1 / (3 * value**2 + CENTER[0])
    assert (
        error(pull(torch.ones_like(value))[0], torch.cat([(slope * value).conj(), slope.conj()]))
        < 1e-9
    )


def test_preconditioner_of_the_adjoint():
    def precondition(z, c):
        return ims.DiagonalOperator(1 / (3 * z**2 + c[0]))

    adjoint = ims.ImplicitAdjoint(ims.GMRES(), preconditioner=precondition)
    with ims.monitor() as log:
        value = grad(lambda c: loss(solve_root(polynomial, adjoint=adjoint)(c)))(CENTER)
    assert error(value, grad(lambda c: loss(solve_root(polynomial)(c)))(CENTER)) < 1e-9
    assert int(log.adjoints()[0].iterations) == 1


def test_failed_lane_contributes_nothing():
    cs = CENTER + 0.2 * seeded(3, 2, seed=7)
    cs[1] = torch.nan
    scale = torch.tensor(1.0 + 0.2j, dtype=C128, requires_grad=True)

    def solve(c):
        return ims.root(lambda z, c: polynomial(z, scale * c), START, (c,), on_failure="mask")

    sol = vmap(solve)(cs)
    assert sol.status.tolist() == [0, int(Status.NONFINITE), 0]
    loss(torch.where(sol.converged[:, None], sol.value, 0.0)).backward()
    expected = grad(
        lambda s: sum(
            loss(newton_oracle(polynomial, sol.value[i].detach(), s * cs[i])) for i in (0, 2)
        )
    )(scale.detach())
    assert error(scale.grad, expected) < 1e-8


REFUSED = [
    (
        "residual-real",
        lambda: ims.root(lambda z: z.abs(), START),
        TypeError,
        "returned torch.float64 where z0 has torch.complex128",
    ),
    (
        "objective-complex",
        lambda: ims.minimize(lambda z: (z**2).sum(), START),
        TypeError,
        "an objective is real",
    ),
    ("hessian", lambda: ims.HessianOperator(abs, START), TypeError, "z is complex.*view_as_real"),
    ("mixed", lambda: ims.root(abs, (START, START.real)), ValueError, "z0 mixes"),
    (
        "bracket",
        lambda: ims.root(lambda z: z, START[0], bracket=(-1.0, 1.0)),
        ValueError,
        "2 unknowns",
    ),
    (
        "real-operator",
        lambda: ims.linear_solve(ims.MatrixOperator(torch.eye(3).double()), B0),
        TypeError,
        "b has torch.complex128.*A has torch.float64",
    ),
]


@pytest.mark.parametrize(
    "call, exception, words", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(call, exception, words):
    with pytest.raises(exception, match=words):
        call()
