"""Complex unknowns of equations, with torch's convention for gradients.

Complex linear systems are rows of the tables in systems.py. The oracle of equations is Newton's
method on the real and imaginary parts, unrolled in plain torch; of holomorphic ones a closed form
as well.
"""

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jvp, vjp, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.cases import check_gradients
from tests.linear.systems import C64, C128, F64, error
from tests.linear.systems import seeded as seeded_real


def seeded(*shape, seed=0):
    return seeded_real(*shape, seed=seed, dtype=C128)


B0 = seeded(3, seed=1)


def loss(x):
    """Return a real number that depends on every part of every entry, not holomorphically."""
    weight = torch.arange(1, x.shape[-1] + 1, dtype=F64)
    return ((x.real * weight).sum(-1) ** 3 + (x.abs() ** 2 * x.imag).sum(-1)).sum()


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
    check_gradients(solve_root(EQUATIONS[name]), CENTER, batched=False)


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


@pytest.mark.parametrize("name", ["SuperLU", "Banded", "ILU"])
def test_imaginary_parts_of_conjugates_are_taken(name):
    """torch marks such a tensor as negated, and NumPy does not read marks."""
    below, main, above = (-torch.ones(n, dtype=F64) * k for n, k in ((2, 1), (3, -4), (2, 2)))
    matrix = torch.diag(below, -1) + torch.diag(main) + torch.diag(above, 1)
    pattern = ims.SparseOperator(torch.ones_like(matrix).to_sparse_csr())
    negated = lambda t: torch.complex(t, -t).conj().imag
    b = negated(B0.real)
    assert b.is_neg() and negated(matrix).is_neg()

    def solve(matrix, b):
        if name == "Banded":
            diagonals = [negated(matrix.diagonal(k)) for k in (-1, 0, 1)]
            return ims.linear_solve(ims.TridiagonalOperator(*diagonals), b).value
        A = pattern.with_values(negated(matrix.reshape(-1)))
        if name == "SuperLU":
            return ims.linear_solve(A, b, solver=ims.SuperLU()).value
        return ims.linear_solve(A, b, solver=ims.GMRES(), preconditioner=ims.ILU()).value

    x, pull = vjp(solve, matrix, b)
    expected, pulled = vjp(torch.linalg.solve, matrix, b)
    assert error(x, expected) < 1e-9
    w = torch.complex(B0.imag, B0.imag).conj().imag
    assert w.is_neg()
    entries = pull(w)[0]
    assert error(pull(w)[1], pulled(w)[1]) < 1e-9
    assert error(entries[entries != 0], pulled(w)[0][entries != 0]) < 1e-9
