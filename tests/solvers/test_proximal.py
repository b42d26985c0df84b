"""Minima of ``f + h``: kinks, saddles, captures, and what cvxpy and closed forms say."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.func import grad, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.problems.projections import (
    group_soft_threshold,
    project_simplex,
    singular_value_threshold,
    soft_threshold,
)
from tests.solvers.systems import F64, tensor

BOTH = pytest.mark.parametrize("solver", [ims.FISTA(), ims.ProximalGradient()], ids=["fista", "pg"])


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def squares(z, X, y, lam):
    return 0.5 * (X @ z - y).square().sum()


def shrunk(v, step, X, y, lam):
    return soft_threshold(v, step * lam)


def lasso(X, y, lam, **options):
    return ims.minimize(squares, torch.zeros_like(X[0]), (X, y, lam), prox=shrunk, **options)


def regression(seed, m, n, condition):
    """Draw a sparse regression whose Hessian has that condition (without its zeros)."""
    k = min(m, n)
    s = torch.logspace(0, -0.5 * np.log10(condition), k, dtype=F64)
    X = torch.linalg.qr(normal(seed, m, k))[0] * s @ torch.linalg.qr(normal(seed + 1, n, k))[0].mT
    w = normal(seed + 2, n) * (torch.arange(n) % 5 == 0)
    return X, X @ w + 0.01 * normal(seed + 3, m)


@BOTH
@pytest.mark.parametrize("m, n, condition, most", [(100, 50, 1e4, 300), (30, 80, 1e2, 600)])
def test_lasso_is_that_on_its_support(solver, m, n, condition, most):
    """Its value, and its derivative, follow from the entries that are not zero and their signs."""
    X, y = regression(0, m, n, condition)
    lam = 0.05 * (X.mT @ y).abs().max()
    X, y, lam = (t.clone().requires_grad_() for t in (X, y, lam))
    sol = lasso(X, y, lam, solver=solver)
    z = sol.value
    on = z.detach() != 0
    assert 0 < int(on.sum()) < n and not bool(sol.degenerate) and int(sol.iterations) < most
    slope = (X.mT @ (X @ z - y)).detach()[~on].abs()
    assert bool((slope < lam).all())
    A = X[:, on]
    exact = torch.linalg.solve(A.mT @ A, A.mT @ y - lam * z.detach()[on].sign())
    # the condition on the support, times rounding
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(z[on], exact, **close)
    w = normal(9, int(on.sum()))
    ours, theirs = (torch.autograd.grad(v @ w, (X, y, lam)) for v in (z[on], exact))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_beyond_the_limit_the_contraction_is_believed():
    """The error is bounded, and the derivative is solved for by products."""
    n = 600
    c, w = torch.linspace(0.5, 2, n, dtype=F64), normal(0, n)
    lam = tensor(0.5).requires_grad_()
    energy = lambda z, lam: 0.5 * (c * (z - w) ** 2).sum() + 0.05 * (z[1:] - z[:-1]).square().sum()
    prox = lambda v, step, lam: soft_threshold(v, step * lam)
    sol = ims.minimize(energy, torch.zeros(n, dtype=F64), (lam,), prox=prox)
    on = sol.value.detach() != 0
    H = torch.func.hessian(lambda z: energy(z, lam))(w.detach()).detach()
    right = -grad(lambda z: energy(z, lam))(torch.zeros_like(w)).detach()
    on_exact = torch.linalg.solve(H[on][:, on], right[on] - lam * sol.value.detach()[on].sign())
    off = float((sol.value[on] - on_exact).detach().square().sum().div(n).sqrt())
    assert off <= float(sol.error) <= 1e-10
    ours, theirs = (torch.autograd.grad(v.sum(), lam)[0] for v in (sol.value, on_exact))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=0)


@BOTH
def test_low_rank_is_that_of_cvxpy(solver):
    m = 8
    B, seen = normal(1, m, 2) @ normal(2, 2, m), (normal(3, m, m) > -0.5).double()
    misfit = lambda Z, lam: 0.5 * (seen * (Z - B)).square().sum()
    prox = lambda V, step, lam: singular_value_threshold(V, step * lam)
    solve = lambda lam: ims.minimize(
        misfit, torch.zeros(m, m, dtype=F64), (lam,), prox=prox, solver=solver
    )
    sol = solve(tensor(0.5))
    x = cp.Variable((m, m))
    fit = 0.5 * cp.sum_squares(cp.multiply(seen.numpy(), x - B.numpy()))
    cp.Problem(cp.Minimize(fit + 0.5 * cp.normNuc(x))).solve(cp.SCS, eps=1e-10)
    np.testing.assert_allclose(sol.value, x.value, atol=1e-7)
    assert int((torch.linalg.svdvals(sol.value) > 1e-9).sum()) == 3 and not bool(sol.degenerate)
    norm = lambda lam: solve(lam).value.square().sum()
    h = 1e-4
    difference = (norm(tensor(0.5 + h)) - norm(tensor(0.5 - h))) / (2 * h)
    # the error of the difference is h^2 times the third derivative
    torch.testing.assert_close(grad(norm)(tensor(0.5)), difference, rtol=1e-6, atol=0)


def on_simplex(v, step):
    return project_simplex(v)


def by_rows(v, step):
    return group_soft_threshold(v.reshape(-1, 2), 0.3 * step).reshape(-1)


def by_entries(v, step):
    return soft_threshold(v, 0.3 * step)


def multiplier(name, seed, strict):
    """Return a solution, and the negative gradient there; one inequality is not ``strict``."""
    z, s, share = normal(seed, 6), normal(seed + 1, 6), 1.0 if not strict else 0.9
    if name == "simplex":
        z = torch.cat([z[:3].abs() + 0.1, torch.zeros(3, dtype=F64)])
        gap = torch.where((torch.arange(6) == 3) & (share == 1), 0.0, 0.1 + s.abs())
        return z / z.sum(), torch.where(z > 0, 1.0, 1 - gap)
    if name == "entries":
        z = torch.where(torch.arange(6) < 3, z + 0.1 * z.sign(), 0.0)
        rest = torch.where(torch.arange(6) == 3, share, 0.8 * torch.tanh(s))
        return z, 0.3 * torch.where(z != 0, z.sign(), rest)
    z, s = z.reshape(3, 2), s.reshape(3, 2)
    z = torch.where(torch.arange(3)[:, None] < 1, z, 0.0)
    unit, other = (t / torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (z, s))
    rest = other * tensor([0.0, share, 0.5])[:, None]
    return z.reshape(-1), 0.3 * torch.where(z != 0, unit, rest).reshape(-1)


KINKS = {"simplex": on_simplex, "entries": by_entries, "rows": by_rows}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", KINKS)
def test_a_kink_at_the_solution_is_told(name, strict):
    """Where an inequality is neither strict nor idle, from any start, and in any unit."""
    for seed in range(0, 60, 3):
        z, g = multiplier(name, seed, strict)
        R = normal(seed + 2, 9, 6)
        c, H = R.mT @ R @ z + g, R.mT @ R
        f = lambda z, c, H: 0.5 * z @ H @ z - c @ z
        for start in (0.1 * torch.ones_like(z), 3 * normal(seed, 6)):
            sol = ims.minimize(f, start, (c, H), prox=lambda v, s, *_, p=KINKS[name]: p(v, s))
            torch.testing.assert_close(sol.value, z, rtol=0, atol=1e-9)
            assert bool(sol.degenerate) != strict, (seed, start)


def well(z):
    return (0.25 * z**4 - 0.5 * z**2).sum()


@BOTH
def test_a_maximum_along_what_is_free_is_no_minimum(solver):
    """It is a SADDLE where the solve begins there, and left if not; also on a simplex."""
    plain = lambda v, step: 1.0 * v
    options = {"solver": solver, "on_failure": "mask"}
    top = ims.minimize(well, tensor([0.0, 0.0]), prox=plain, **options)
    assert int(top.status) == Status.SADDLE and top.error == torch.inf
    near = ims.minimize(well, tensor([0.3, 1e-9]), prox=plain, **options)
    torch.testing.assert_close(near.value.abs(), tensor([1.0, 1.0]), rtol=1e-12, atol=0)
    middle = tensor([0.5, 0.5])
    top = ims.minimize(lambda z: -(z**2).sum(), middle, prox=on_simplex, **options)
    assert int(top.status) == Status.SADDLE
    # curvature that the simplex holds is none
    mixed = lambda z: -(z.sum() ** 2) + (z[0] - z[1]) ** 2
    assert bool(ims.minimize(mixed, tensor([1.0, 0.0]), prox=on_simplex, **options).converged)


@BOTH
def test_steps_to_where_nothing_is_finite_are_made_again_shorter(solver):
    logs = lambda z: -torch.log(z).sum() + 3 * z.sum()
    sol = ims.minimize(logs, tensor([1e-3, 5.0]), prox=by_entries, solver=solver)
    torch.testing.assert_close(sol.value, tensor([1, 1]) / 3.3, rtol=1e-10, atol=0)


def test_what_is_captured_has_its_derivatives():
    """Of the objective and of the proximal operator, alone and in lanes."""
    H = tensor([[3.0, 1.0], [1.0, 2.0]])
    c, lam = tensor([2.0, -1.0]).requires_grad_(), tensor(0.3).requires_grad_()
    f = lambda z, c: 0.5 * z @ H @ z - c @ z

    def captured(shift):
        h = lambda v, step: soft_threshold(v, step * lam)
        return ims.minimize(lambda z: f(z, c + shift), torch.zeros_like(c), prox=h).value

    def passed(shift):
        h = lambda v, step, c, lam: soft_threshold(v, step * lam)
        g = lambda z, c, lam: f(z, c)
        return ims.minimize(g, torch.zeros_like(c), (c + shift, lam), prox=h).value

    shifts = tensor([0.0, 0.4, -0.7])
    for lanes in (lambda fn: fn(shifts[0]), lambda fn: vmap(fn)(shifts)):
        values = lanes(captured), lanes(passed)
        torch.testing.assert_close(*values)
        ours, theirs = (torch.autograd.grad(v.square().sum(), (c, lam)) for v in values)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
        assert all(bool((t != 0).any()) for t in ours)


def test_no_gradient_or_curvature_at_the_start_is_no_matter():
    """The step of the equation is then that of another direction, or as far as the start."""
    bowl = lambda z: 0.5 * (z**2).sum() + 0 * z.sum()
    inside = lambda v, step: v.clamp(min=1)
    assert ims.minimize(bowl, tensor([0.0, 0.0]), prox=inside).value.tolist() == [1, 1]
    slope = lambda z: z.sum()
    assert ims.minimize(slope, tensor([3.0, 1e5]), prox=inside).value.tolist() == [1, 1]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("exponent", [0, 2, 4, 8, 10])
def test_rounding_of_short_steps_is_in_the_error(solver, dtype, exponent):
    """The step is as short as the largest curvature asks for, and little beside a flat unknown."""
    k = 10.0 ** (exponent if dtype == F64 else exponent / 2)
    top, a = torch.tensor([0.5, 9.0], dtype=dtype), torch.tensor(2.0, dtype=dtype)
    energy = lambda z: k * (z[0] - 0.6) ** 2 + (z[1] - a) ** 2 + 0.1 * z[1] ** 4
    start, options = 0.1 * torch.ones_like(top), {"on_failure": "mask", "solver": solver}
    sol = ims.minimize(energy, start, prox=lambda v, step: torch.minimum(v, top), **options)
    flat = next(z.real for z in np.roots([0.4, 0, 2, -4]) if abs(z.imag) < 1e-9)
    off, eps = abs(float(sol.value[1]) - flat), torch.finfo(dtype).eps
    assert off <= 4 * max(float(sol.error), eps)
