"""Newton's method with old factors and inexact steps, the chord method, and Broyden's updates."""

import itertools
from functools import partial

import pytest
import torch
from torch.func import jacfwd, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.solvers import systems
from tests.solvers.systems import BRATU, COUPLED, F64, H_EQUATION, TRIDIAGONAL, Watch, error, tensor

FACTOR = "linalg_lu_factor"


def watched(solve):
    """Return a solution, how often matrices were factored, and in how many numbers."""
    with Watch() as watch:
        sol = solve()
    return sol, watch.calls[FACTOR], watch.numbers[FACTOR]


def test_a_linear_equation_takes_one_step():
    A, b = tensor([[2.0, 1.0], [-1.0, 3.0]]), tensor([1.0, 2.0])
    sol = ims.root(lambda z: A @ z - b, torch.zeros(2, dtype=F64), solver=ims.Newton())
    assert int(sol.iterations) == 1 and error(sol.value, torch.linalg.inv(A) @ b) < 1e-14


# -- factors that serve again --------------------------------------------------------------------


@pytest.mark.parametrize("system", systems.ROOTS, ids=str)
def test_reuse_factors_less_often_than_it_steps(system):
    sol, reused, _ = watched(lambda: system.solve(ims.Newton(reuse=0.5)))
    assert 1 <= reused < int(sol.iterations) / 2
    newton, fresh, _ = watched(lambda: system.solve(ims.Newton()))
    # one more is made at the solution, for the backward pass
    assert fresh - int(newton.iterations) in (0, 1) and fresh > reused
    # one at the start, and one at the solution
    assert watched(lambda: system.solve(ims.Chord()))[1] == 2


@pytest.mark.parametrize("reuse", [0.05, 0.2, 0.5, 0.9])
def test_residuals_fall_as_reuse_says_or_the_next_step_factors(reuse):
    """Step by step, from budgets: a step slower than ``reuse`` is followed by a factorization."""
    solve = lambda k: systems.CUBIC.solve(ims.Newton(reuse=reuse, rtol=None, max_steps=k))
    history = [watched(lambda k=k: solve(k))[:2] for k in range(12)]
    history = [(float(sol.residual), factored) for sol, factored in history]
    for (e0, _), (e1, f1), (_, f2) in zip(history, history[1:], history[2:], strict=False):
        if e1 > 0:
            assert f2 - f1 == (e1 > reuse * e0)


def test_only_the_lanes_that_need_it_factor():
    """A curved lane among 63 nearly straight ones, whose first factors serve to the end."""
    curvature = torch.full((64,), 0.02, dtype=F64)
    curvature[17] = 3.0
    f = lambda z, c: torch.stack([z[0] + c * z[0] ** 3 - 3, z[1] - z[0]])
    start, solver = torch.full((2,), 3.0, dtype=F64), ims.Newton(reuse=0.4)
    sol, calls, numbers = watched(
        lambda: vmap(lambda c: ims.root(f, start, (c,), solver=solver))(curvature)
    )
    others = torch.cat([sol.iterations[:17], sol.iterations[18:]])
    assert bool(sol.converged.all()) and int(others.min()) > 5
    # at the end all are factored once more
    assert calls > 2 and numbers == 4 * (2 * 64 + calls - 2)


def test_old_factors_that_mislead_are_not_the_end():
    """A step by the small slope at the start overshoots: it is taken back, and a fresh one made."""
    f = lambda z: z**3 + 0.1 * z - 5

    def solve(**options):
        return watched(lambda: ims.root(f, tensor(0.3), solver=ims.Newton(reuse=0.99, **options)))

    history = [solve(rtol=None, max_steps=trials) for trials in range(12)]
    sizes = [float(sol.residual) for sol, _, _ in history]
    back = [torch.equal(a.value, b.value) for (a, *_), (b, *_) in itertools.pairwise(history)]
    last = len(back) - 1 - back[::-1].index(True)
    assert not all(back[:last]) and sizes[-1] < sizes[last]
    sol, factored, _ = solve()
    assert bool(sol.converged) and float(f(sol.value).abs()) < 1e-10 and factored > 1


@pytest.mark.parametrize("make", [ims.Newton, ims.Chord, ims.Broyden])
def test_trials_are_bounded_and_steps_are_those_accepted(make):
    """From 20, ``atan`` needs a dozen halvings for its first step."""
    solve = lambda **bound: ims.root(
        torch.atan, tensor(20.0), solver=make(**bound), on_failure="mask"
    )
    few, one = solve(max_trials=3), solve(max_steps=1)
    assert int(few.status) == int(one.status) == ims.Status.MAX_STEPS
    assert int(few.iterations) <= 3 and int(one.iterations) <= 1


def test_chord_is_linear_with_the_rate_of_its_jacobian():
    """``z**2 = 2`` with the slope at 1.5: errors fall by ``1 - 2 sqrt(2) / 3`` a step."""
    solve = lambda k: ims.root(
        lambda z: z**2 - 2, tensor(1.5), solver=ims.Chord(rtol=None, max_steps=k)
    )
    errors = [float(solve(k).value) - 2**0.5 for k in range(1, 8)]
    ratios = [b / a - (1 - 2 * 2**0.5 / 3) for a, b in itertools.pairwise(errors)]
    assert all(abs(r) < 2e-3 for r in ratios) and abs(ratios[-1]) < 1e-6


@pytest.mark.parametrize("make", [partial(ims.Newton, reuse=0.5), ims.Chord])
def test_cholesky_serves_again(make):
    """A symmetric Jacobian, of a minimum."""
    c, z0 = tensor([0.3, -0.4, 1.0]).requires_grad_(), torch.zeros(3, dtype=F64)
    objective = lambda z, c: torch.cosh(z).sum() + 0.5 * z.sum() ** 2 - (c * z).sum()
    exact = ims.minimize(objective, z0, (c.detach(),)).value
    sol = ims.minimize(objective, z0, (c,), solver=make(linear_solver=ims.Cholesky()))
    assert error(sol.value, exact) < 1e-10
    (ours,) = torch.autograd.grad(sol.value.sum(), c)
    H = torch.diag(torch.cosh(exact)) + 1
    assert error(ours, torch.linalg.inv(H).sum(0)) < 1e-9


# -- inexact steps -------------------------------------------------------------------------------

LARGE = [
    (H_EQUATION, torch.ones(60, dtype=F64), [0.99, 0.1]),
    (TRIDIAGONAL, torch.full((60,), -1.0, dtype=F64), [2.0, 1.0]),
    (BRATU, torch.zeros(60, dtype=F64), [3 / 61**2, 0.0]),
]


def work(system, linear_solver=None, z0=None, theta=None, **options):
    """Return a solution by Newton's method with GMRES, and how often the function was called."""
    calls = []

    def fn(z, t):
        calls.append(1)
        return system.fn(z, t)

    z0 = tensor(system.start) if z0 is None else z0
    theta = tensor(system.theta if theta is None else theta)
    solver = ims.Newton(linear_solver=linear_solver or ims.GMRES(), **options)
    with Watch() as watch:
        sol = ims.root(fn, z0, (theta,), solver=solver)
    return sol, sum(watch.calls.values())


@pytest.mark.parametrize("system, z0, theta", LARGE, ids=[str(case[0]) for case in LARGE])
def test_forcing_takes_less_work_than_exact_steps(system, z0, theta):
    forced, few = work(system, z0=z0, theta=theta)
    exact, many = work(system, ims.GMRES(rtol=1e-11), z0=z0, theta=theta)
    assert few < 0.9 * many
    assert int(forced.iterations) <= int(exact.iterations) + 1
    assert error(forced.value, exact.value) < 1e-9


def test_no_more_exact_than_the_tolerance_asks():
    """A loose tolerance ends with a loose step."""
    loose, few = work(H_EQUATION, rtol=0.0, atol=1e-3)
    assert bool(loose.converged) and few < work(H_EQUATION)[1]


def best_multiple(f, z):
    """Return ``z - c f(z)`` with the ``c`` whose linear model is least."""
    image = jacfwd(f)(z) @ f(z)
    return z - (f(z) @ image) / (image @ image) * f(z)


def test_a_linear_solver_with_a_budget_keeps_it():
    """One product a step: the best multiple of the residual."""
    one_product = ims.GMRES(rtol=None, max_steps=1)
    f, z = (lambda z: COUPLED.condition(z, tensor(COUPLED.theta))), tensor(COUPLED.start)
    for steps in (1, 2, 3):
        z = best_multiple(f, z)
        solver = ims.Newton(linear_solver=one_product, rtol=None, max_steps=steps, halvings=0)
        assert error(COUPLED.solve(solver).value, z) < 1e-12
    sol = H_EQUATION.solve(ims.Newton(linear_solver=one_product, max_steps=500))
    assert error(sol.value, H_EQUATION.solution) < H_EQUATION.accuracy(F64)


def test_forcing_is_a_lanes_own():
    """A lane near its root asks for exact steps, one far from it does not hear of that."""
    thetas = torch.stack([tensor([c, 0.0]) for c in (0.9, 0.999, 0.5, 0.99)])
    far = tensor([1e-3, 1.0, 1e-5, 0.3]).unsqueeze(-1) * torch.cos(torch.arange(20.0)).double()
    starts = vmap(lambda t: H_EQUATION.solve(None, theta=t).value)(thetas) + far
    for steps in (2, 3, 4):
        solver = ims.Newton(linear_solver=ims.GMRES(), rtol=None, max_steps=steps)
        solve = lambda z, t, solver=solver: H_EQUATION.solve(solver, z0=z, theta=t).value
        batch = vmap(solve)(starts, thetas)
        for i in range(4):
            assert error(batch[i], solve(starts[i], thetas[i])) < 1e-12, (steps, i)


# -- Broyden's updates ---------------------------------------------------------------------------

updates = pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])


@updates
@pytest.mark.parametrize("system", [COUPLED, TRIDIAGONAL, BRATU], ids=str)
def test_steps_are_those_of_a_dense_update(good, system):
    """Broyden's 1965 formulas, as dense matrices in plain torch, from the Jacobian at the start."""
    z, theta = tensor(system.start), tensor(system.theta)
    B = jacfwd(system.condition)(z, theta)
    H = torch.linalg.inv(B)
    options = {"good": good, "linear_solver": ims.LU(), "halvings": 0, "rtol": None}
    for steps in range(1, 7):
        step = -H @ system.condition(z, theta)
        change = system.condition(z + step, theta) - system.condition(z, theta)
        z = z + step
        if good:
            B = B + torch.outer(change - B @ step, step) / (step @ step)
            H = torch.linalg.inv(B)
        else:
            H = H + torch.outer(step - H @ change, change) / (change @ change)
        sol = system.solve(ims.Broyden(max_steps=steps, **options))
        assert error(sol.value, z) < 1e-11, steps


@updates
@pytest.mark.parametrize("sign", [1.0, -2.0], ids=["rising", "falling"])
def test_the_first_step_is_the_best_multiple_of_the_residual(good, sign):
    """From the identity, whatever the sign."""
    z, theta = tensor(COUPLED.start), tensor(COUPLED.theta)
    f = lambda z: sign * COUPLED.condition(z, theta)
    one = ims.root(f, z, solver=ims.Broyden(good=good, halvings=0, rtol=None, max_steps=1))
    assert error(one.value, best_multiple(f, z)) < 1e-13


@updates
def test_negative_and_rotating_jacobians(good):
    """The identity has the wrong sign, or is at a right angle to the Jacobian."""
    falling, J = lambda z: -3 * (z - 2) - 0.1 * torch.sin(z), tensor([[0.0, 1.0], [-1.0, 0.0]])
    for f in (falling, lambda z: J @ z - torch.ones(2, dtype=F64)):
        z0 = torch.zeros(2, dtype=F64)
        sol = ims.root(f, z0, solver=ims.Broyden(good=good))
        assert error(sol.value, ims.root(f, z0).value) < 1e-10


def test_linear_equations_end_within_2n_steps():
    """Gay's theorem, for the good update with full steps (1979)."""
    generator = torch.Generator().manual_seed(0)
    for n in (2, 3, 5):
        A = torch.eye(n, dtype=F64) + 0.4 * torch.randn(n, n, generator=generator, dtype=F64)
        b = torch.randn(n, generator=generator, dtype=F64)
        solver = ims.Broyden(halvings=0, atol=1e-9, max_steps=2 * n)
        sol = ims.root(lambda z, A=A, b=b: A @ z - b, torch.zeros(n, dtype=F64), solver=solver)
        assert error(sol.value, torch.linalg.inv(A) @ b) < 1e-7


@updates
def test_full_memory_starts_again(good):
    """From the identity, at the iterate reached; with room for all pairs never."""
    f, z0 = (lambda z: COUPLED.condition(z, tensor(COUPLED.theta))), tensor(COUPLED.start)

    def fresh(memory):
        options = {"good": good, "memory": memory, "halvings": 0, "rtol": None}
        z = [ims.root(f, z0, solver=ims.Broyden(max_steps=k, **options)).value for k in range(8)]
        return [error(z[k + 1], best_multiple(f, z[k])) < 1e-12 for k in range(7)]

    assert fresh(20) == [True] + 6 * [False]
    assert sum(fresh(3)) > 1


@pytest.mark.parametrize("memory", [1, 3, 8])
def test_memory_is_bounded_and_the_jacobian_never_formed(memory):
    """After many steps and restarts, too; beyond 512 unknowns, where nothing is examined."""
    n, theta = 600, tensor(TRIDIAGONAL.theta)
    z0, solver = torch.full((n,), -1.0, dtype=F64), ims.Broyden(memory=memory)
    with Watch() as watch:
        sol = TRIDIAGONAL.solve(solver, z0=z0, theta=theta)
    assert bool(sol.converged) and int(sol.iterations) > memory
    assert watch.largest <= (memory + 1) * n
    with Watch() as dense:
        TRIDIAGONAL.solve(ims.Broyden(linear_solver=ims.LU()), z0=z0, theta=theta)
    assert dense.largest >= n**2


def test_what_a_step_of_broyden_costs():
    """One product at the start, and an evaluation a step where the search accepts at once."""
    calls = []

    def fn(z, t):
        calls.append(1)
        return COUPLED.fn(z, t)

    theta = tensor(COUPLED.theta)
    sol = ims.root(fn, tensor(COUPLED.start), (theta,), solver=ims.Broyden())
    spent = len(calls)
    calls.clear()
    none = ims.Broyden(rtol=None, max_steps=0)
    assert int(ims.root(fn, tensor(COUPLED.start), (theta,), solver=none).status) == Status.BUDGET
    # and two at the end, for the Jacobian and for rounding
    assert len(calls) <= 4 and spent - len(calls) == int(sol.iterations) + 2
