"""Newton's method with old factors, with one, and with inexact steps."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.linear.direct import DirectSolver
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from tests.solvers.systems import (
    BRATU,
    CONTRACTION,
    COSINE,
    COUPLED,
    CUBIC,
    F64,
    H_EQUATION,
    KEPLER,
    ROOTS,
    TRIDIAGONAL,
    check_bad_lanes,
    check_budget,
    check_derivative,
    check_float32,
    check_lanes,
    check_value,
    error,
    tensor,
)

SOLVERS = {
    "reuse": ims.Newton(reuse=0.5),
    "reuse-little": ims.Newton(reuse=0.05),
    "reuse-full-steps": ims.Newton(reuse=0.3, halvings=0),
    "chord": ims.Chord(),
    "krylov": ims.Newton(linear_solver=ims.GMRES()),
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@pytest.fixture
def counted(monkeypatch):
    """Count factorizations, the lanes in them, and products with Jacobians."""
    count = {"factorizations": 0, "lanes": 0, "products": 0}
    factor, mv = ims.LU.factor, LaneMap.mv

    def counting_factor(self, A):
        count["factorizations"] += 1
        count["lanes"] += A.grid
        return factor(self, A)

    def counting_mv(self, v):
        count["products"] += 1
        return mv(self, v)

    monkeypatch.setattr(ims.LU, "factor", counting_factor)
    monkeypatch.setattr(LaneMap, "mv", counting_mv)
    return count


@solvers
@pytest.mark.parametrize("system", [*ROOTS, CONTRACTION, COSINE], ids=str)
def test_value(solver, system):
    check_value(system, solver)


@solvers
@pytest.mark.parametrize("system", [COUPLED, CUBIC], ids=str)
def test_derivative(solver, system):
    check_derivative(system, solver)


@solvers
@pytest.mark.parametrize("system", [H_EQUATION, COSINE], ids=str)
def test_float32(solver, system):
    check_float32(system, solver)


@solvers
@pytest.mark.parametrize("system", [TRIDIAGONAL, CUBIC], ids=str)
def test_lanes_equal_the_loop_over_lanes(solver, system):
    check_lanes(system, solver)


@solvers
@pytest.mark.parametrize("kind", ["root", "fixed_point"])
def test_bad_lanes_stay_alone(solver, kind):
    check_bad_lanes(kind, solver)


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: ims.Newton(reuse=0.5, **k),
        lambda **k: ims.Chord(**k),
        lambda **k: ims.Newton(linear_solver=ims.GMRES(), **k),
    ],
    ids=["reuse", "chord", "krylov"],
)
@pytest.mark.parametrize("system", [COUPLED, CUBIC], ids=str)
def test_budget(make, system):
    check_budget(system, make, 3)


# -- factors that serve again ------------------------------------------------------------------


@pytest.mark.parametrize("system", ROOTS, ids=str)
def test_reuse_factors_less_often_than_it_steps(counted, system):
    sol = system.solve(ims.Newton(reuse=0.5))
    reused = counted["factorizations"]
    assert 1 <= reused < int(sol.iterations) / 2
    counted["factorizations"] = 0
    newton = system.solve(ims.Newton())
    assert counted["factorizations"] == int(newton.iterations) > reused
    counted["factorizations"] = 0
    system.solve(ims.Chord())
    assert counted["factorizations"] == 1


@pytest.mark.parametrize("reuse", [0.05, 0.2, 0.5, 0.9])
def test_residuals_fall_as_reuse_says_or_the_next_step_factors(counted, reuse):
    """Step by step, from budgets: a step slower than ``reuse`` is followed by a factorization."""
    history = []
    for steps in range(12):
        counted["factorizations"] = 0
        sol = CUBIC.solve(ims.Newton(reuse=reuse, rtol=None, max_steps=steps))
        history.append((float(sol.residual), counted["factorizations"]))
    for (e0, _), (e1, f1), (_, f2) in zip(history, history[1:], history[2:], strict=False):
        if e1 > 0:
            assert f2 - f1 == (e1 > reuse * e0)


def test_only_the_lanes_that_need_it_factor(counted):
    """A curved lane among 63 nearly straight ones, whose first factors serve to the end."""
    curvature = torch.full((64,), 0.02, dtype=F64)
    curvature[17] = 3.0

    def f(z, c):
        return torch.stack([z[0] + c * z[0] ** 3 - 3, z[1] - z[0]])

    start = torch.full((2,), 3.0, dtype=F64)
    sol = vmap(lambda c: ims.root(f, start, (c,), solver=ims.Newton(reuse=0.4)))(curvature)
    others = torch.cat([sol.iterations[:17], sol.iterations[18:]])
    assert bool(sol.converged.all()) and int(others.min()) > 5
    assert counted["factorizations"] > 1
    assert counted["lanes"] == 64 + counted["factorizations"] - 1


def test_old_factors_that_mislead_are_not_the_end(counted):
    """A step by the small slope at the start overshoots: it is taken back, and a fresh one made."""
    f, start = (lambda z: z**3 + 0.1 * z - 5), tensor(0.3)
    history = []
    for steps in range(4):
        counted["factorizations"] = 0
        sol = ims.root(f, start, solver=ims.Newton(reuse=0.99, rtol=None, max_steps=steps))
        history.append((float(sol.value), counted["factorizations"]))
    assert [factorizations for _, factorizations in history] == [1, 1, 1, 2]
    assert history[0][0] != history[1][0] == history[2][0] != history[3][0]
    sol = ims.root(f, start, solver=ims.Newton(reuse=0.99))
    assert bool(sol.converged) and float(f(sol.value).abs()) < 1e-10


def test_singular_fresh_factors_are_the_end():
    f = lambda z: z**2 - 1
    assert (
        int(ims.root(f, tensor(0.0), solver=ims.Newton(reuse=0.5), on_failure="mask").status) == 5
    )
    assert int(ims.root(f, tensor(0.0), solver=ims.Chord(), on_failure="mask").status) == 5


def test_equation_without_a_root_fails_honestly():
    for solver in (*SOLVERS.values(), ims.Newton(reuse=0.99)):
        sol = ims.root(lambda z: z**2 + 1, tensor(1.3), solver=solver, on_failure="mask")
        assert int(sol.status) in (Status.MAX_STEPS, Status.STALLED, Status.SINGULAR)
        assert float(sol.residual) >= 1


LEAPERS = {
    "newton": ims.Newton(),
    "reuse": ims.Newton(reuse=0.5),
    "chord": ims.Chord(),
    "krylov": ims.Newton(linear_solver=ims.GMRES()),
    "broyden": ims.Broyden(linear_solver=ims.LU()),
}


@pytest.mark.parametrize("solver", LEAPERS.values(), ids=LEAPERS)
@pytest.mark.parametrize("offset", [3e-14, -1e-13, 4e-13], ids=str)
def test_a_leap_to_where_the_tolerance_is_large_is_no_root(solver, offset):
    """``|f| >= 1``, and the nearly flat start sends the full step to 1e13."""
    f = lambda z: 1 + 0.1 * torch.sin(z) ** 2
    solver = replace(solver, max_steps=60)
    sol = ims.root(f, tensor(torch.pi / 2 + offset), solver=solver, on_failure="mask")
    assert int(sol.status) in (Status.STALLED, Status.MAX_STEPS, Status.SINGULAR)
    assert float(sol.residual) >= 1


def test_chord_is_linear_with_the_rate_of_its_jacobian():
    """``z**2 = 2`` with the slope at 1.5: errors fall by ``1 - 2 sqrt(2) / 3`` a step."""
    errors = []
    for steps in range(1, 8):
        sol = ims.root(
            lambda z: z**2 - 2, tensor(1.5), solver=ims.Chord(rtol=None, max_steps=steps)
        )
        errors.append(float(sol.value) - 2**0.5)
    rate = 1 - 2 * 2**0.5 / 3
    ratios = [b / a for a, b in itertools.pairwise(errors)]
    assert all(abs(r - rate) < 2e-3 for r in ratios) and abs(ratios[-1] - rate) < 1e-6


def test_chord_stalls_where_its_slope_has_the_wrong_sign():
    """It climbs towards the local maximum at ``-1/sqrt(3)``, and says so."""
    f = lambda z: z**3 - z - 6
    sol = ims.root(f, tensor(0.0), solver=ims.Chord(), on_failure="mask")
    assert int(sol.status) == Status.STALLED
    assert 6 - 2 / 27**0.5 < float(sol.residual) < 6


def test_cholesky_serves_again():
    """A symmetric Jacobian, of a minimum."""
    c = tensor([0.3, -0.4, 1.0])
    objective = lambda z, c: torch.cosh(z).sum() + 0.5 * z.sum() ** 2 - (c * z).sum()
    exact = ims.minimize(objective, torch.zeros(3, dtype=F64), (c,)).value
    for solver in (
        ims.Newton(reuse=0.5, linear_solver=ims.Cholesky()),
        ims.Chord(linear_solver=ims.Cholesky()),
    ):
        c.requires_grad_()
        sol = ims.minimize(objective, torch.zeros(3, dtype=F64), (c,), solver=solver)
        assert error(sol.value, exact) < 1e-10
        (ours,) = torch.autograd.grad(sol.value.sum(), c)
        H = torch.diag(torch.cosh(exact)) + 1
        assert error(ours, torch.linalg.inv(H).sum(0)) < 1e-9


@settings(max_examples=10)
@given(
    reuse=st.floats(0.0, 0.99),
    scale=st.floats(0.1, 2.0),
    lanes=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_reuse_changes_the_way_and_not_the_root(reuse, scale, lanes, seed):
    """A monotone system has one root, and each lane finds it by itself."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(3, 3, generator=generator, dtype=F64)
    b = 2 * torch.randn(lanes, 3, generator=generator, dtype=F64)
    f = lambda z, b: A.T @ (A @ z) + scale * z**3 + z - b

    def solve(b, reuse):
        return ims.root(f, torch.zeros(3, dtype=F64), (b,), solver=ims.Newton(reuse=reuse))

    batch = vmap(lambda b: solve(b, reuse))(b)
    for i in range(lanes):
        assert error(batch.value[i], solve(b[i], 0.0).value) < 1e-9
        assert abs(int(batch.iterations[i]) - int(solve(b[i], reuse).iterations)) <= 1


# -- inexact steps -----------------------------------------------------------------------------


LARGE = [
    (H_EQUATION, torch.ones(60, dtype=F64), [0.99, 0.1]),
    (TRIDIAGONAL, torch.full((60,), -1.0, dtype=F64), [2.0, 1.0]),
    (BRATU, torch.zeros(60, dtype=F64), [3 / 61**2, 0.0]),
]


@pytest.mark.parametrize("system, z0, theta", LARGE, ids=[str(case[0]) for case in LARGE])
def test_forcing_needs_fewer_products_than_exact_steps(counted, system, z0, theta):
    options = {"z0": z0, "theta": tensor(theta)}
    forced = system.solve(ims.Newton(linear_solver=ims.GMRES()), **options)
    products = counted["products"]
    counted["products"] = 0
    exact = system.solve(ims.Newton(linear_solver=ims.GMRES(rtol=1e-11)), **options)
    assert products < 0.9 * counted["products"]
    assert int(forced.iterations) <= int(exact.iterations) + 1
    assert error(forced.value, exact.value) < 1e-9


def test_forced_steps_converge_superlinearly():
    """The exponent of ``|F_k+1| = |F_k|^q`` rises above 1.5 before rounding sets in."""
    z0 = LARGE[1][1]
    residuals = []
    for steps in range(8):
        solver = ims.Newton(linear_solver=ims.GMRES(), rtol=None, max_steps=steps)
        residuals.append(TRIDIAGONAL.solve(solver, z0=z0).residual)
    logs = torch.stack(residuals).log10()
    assert float(logs.min()) < -12
    drops = [b / a for a, b in itertools.pairwise(logs.tolist()) if a < -0.5 and b > -13]
    assert drops and drops[-1] > 1.5


def test_no_more_exact_than_the_tolerance_asks(counted):
    """A loose tolerance ends with a loose step."""
    loose = ims.Newton(linear_solver=ims.GMRES(), rtol=0.0, atol=1e-3)
    sol = H_EQUATION.solve(loose)
    few = counted["products"]
    counted["products"] = 0
    H_EQUATION.solve(ims.Newton(linear_solver=ims.GMRES()))
    assert bool(sol.converged) and few < counted["products"]


def test_a_solver_with_a_tolerance_or_a_budget_keeps_it(counted):
    """``rtol`` of the linear solver, if given, is not touched: one product a step."""
    solver = ims.Newton(linear_solver=ims.GMRES(rtol=None, max_steps=1), max_steps=500)
    sol = H_EQUATION.solve(solver)
    # GMRES starts at zero, where the residual costs no product
    assert bool(sol.converged) and counted["products"] == int(sol.iterations)


class Anywhere:
    """A map of any selection of lanes."""

    separable = True

    def take(self, index):
        return self


def test_forcing_is_selected_with_its_lanes():
    b, forcing = torch.arange(1.0, 9.0).reshape(4, 2), tensor([0.5, 0.1, 0.01, 0.9])
    index = torch.tensor([3, 1])
    problem = ForcedProblem(LinearProblem(Anywhere(), b), forcing)
    part = problem.take(index)
    assert torch.equal(part.tolerance(None, b[index]), problem.tolerance(None, b)[index])
    assert error(problem.tolerance(None, b), forcing * (b**2).mean(-1).sqrt()) < 1e-6


def test_forcing_is_a_lanes_own():
    """A lane near its root asks for exact steps, one far from it does not hear of that."""
    thetas = torch.stack([tensor([0.999, 0.0]), tensor(H_EQUATION.theta)])
    starts = torch.stack([torch.ones(20, dtype=F64), H_EQUATION.solve(None).value + 1e-3])
    solver = ims.Newton(linear_solver=ims.GMRES())
    batch = vmap(lambda z, t: H_EQUATION.solve(solver, z0=z, theta=t))(starts, thetas)
    for i in range(2):
        alone = H_EQUATION.solve(solver, z0=starts[i], theta=thetas[i])
        assert int(alone.iterations) == int(batch.iterations[i])
        assert error(batch.value[i], alone.value) < 1e-9


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [-0.1, 1.0, 2.0, float("nan")])
def test_reuse_that_is_no_contraction_is_refused(reuse):
    with pytest.raises(ValueError, match=r"reuse=.*\[0, 1\).*Chord"):
        ims.Newton(reuse=reuse)


def test_iterative_solvers_have_no_factors():
    with pytest.raises(ValueError, match=r"reuse=0.5.*GMRES.*linear_solver=LU"):
        COUPLED.solve(ims.Newton(reuse=0.5, linear_solver=ims.GMRES()))
    with pytest.raises(ValueError, match=r"reuse=0.5.*GMRES.*600 unknowns"):
        ims.root(lambda z: z - 1, torch.zeros(600), solver=ims.Newton(reuse=0.5))
    with pytest.raises(TypeError, match=r"Chord has linear_solver=GMRES.*LU"):
        ims.Chord(linear_solver=ims.GMRES())
    assert issubclass(ims.LU, DirectSolver)


def test_the_start_may_be_the_solution():
    for solver in SOLVERS.values():
        z = KEPLER.solve(ims.Newton()).value
        sol = KEPLER.solve(solver, z0=z)
        assert int(sol.iterations) == 0 and torch.equal(sol.value, z)
