"""Broyden's methods, against SciPy's and dense updates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacfwd, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.problem import EquationProblem
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
    "good": ims.Broyden(),
    "bad": ims.Broyden(good=False),
    "good-LU": ims.Broyden(linear_solver=ims.LU()),
    "bad-LU": ims.Broyden(good=False, linear_solver=ims.LU()),
    "short-memory": ims.Broyden(memory=4),
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@solvers
@pytest.mark.parametrize("system", [*ROOTS, KEPLER, COSINE], ids=str)
def test_value(solver, system):
    check_value(system, solver)


@solvers
@pytest.mark.parametrize("system", [COUPLED, COSINE], ids=str)
def test_derivative(solver, system):
    check_derivative(system, solver)


@pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])
@pytest.mark.parametrize("system", [COUPLED, H_EQUATION], ids=str)
def test_roots_of_scipys_broyden(system, good):
    check_value(system, ims.Broyden(good=good), "broyden1" if good else "broyden2")


@solvers
@pytest.mark.parametrize("system", [H_EQUATION], ids=str)
def test_float32(solver, system):
    check_float32(system, solver)


@solvers
@pytest.mark.parametrize("system", [CUBIC, CONTRACTION], ids=str)
def test_lanes_equal_the_loop_over_lanes(solver, system):
    check_lanes(system, solver)


@solvers
@pytest.mark.parametrize("kind", ["root", "fixed_point"])
def test_bad_lanes_stay_alone(solver, kind):
    check_bad_lanes(kind, solver)


@pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])
@pytest.mark.parametrize("system", [COUPLED, CUBIC], ids=str)
def test_budget(good, system):
    check_budget(system, lambda **k: ims.Broyden(good=good, **k), 3)


# -- the updates -------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])
@pytest.mark.parametrize("system", [COUPLED, TRIDIAGONAL, BRATU], ids=str)
def test_steps_are_those_of_a_dense_update(good, system):
    """Broyden's 1965 formulas, as dense matrices in plain torch, from the Jacobian at the start."""
    z, theta = tensor(system.start), tensor(system.theta)
    B = jacfwd(system.condition)(z, theta)
    H = torch.linalg.inv(B)
    for steps in range(1, 7):
        step = -H @ system.condition(z, theta)
        change = system.condition(z + step, theta) - system.condition(z, theta)
        z = z + step
        if good:
            B = B + torch.outer(change - B @ step, step) / (step @ step)
            H = torch.linalg.inv(B)
        else:
            H = H + torch.outer(step - H @ change, change) / (change @ change)
        solver = ims.Broyden(
            good=good, linear_solver=ims.LU(), halvings=0, rtol=None, max_steps=steps
        )
        assert error(system.solve(solver).value, z) < 1e-11, steps


@pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])
@pytest.mark.parametrize("sign", [1.0, -2.0], ids=["rising", "falling"])
def test_the_first_step_is_the_best_multiple_of_the_residual(good, sign):
    """From the identity: the step ``-c F`` whose linear model is least, whatever the sign."""
    z, theta = tensor(COUPLED.start), tensor(COUPLED.theta)
    f = lambda z: sign * COUPLED.condition(z, theta)
    image = jacfwd(f)(z) @ f(z)
    expected = z - (f(z) @ image) / (image @ image) * f(z)
    one = ims.root(f, z, solver=ims.Broyden(good=good, halvings=0, rtol=None, max_steps=1))
    assert error(one.value, expected) < 1e-13


@pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])
def test_negative_and_rotating_jacobians(good):
    """The identity has the wrong sign, or is at a right angle to the Jacobian."""
    sol = ims.root(
        lambda z: -3 * (z - 2) - 0.1 * torch.sin(z), torch.zeros(3, dtype=F64),
        solver=ims.Broyden(good=good),
    )  # fmt: skip
    newton = ims.root(lambda z: -3 * (z - 2) - 0.1 * torch.sin(z), torch.zeros(3, dtype=F64))
    assert error(sol.value, newton.value) < 1e-10
    J = tensor([[0.0, 1.0], [-1.0, 0.0]])
    turn = ims.root(
        lambda z: J @ z - torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64),
        solver=ims.Broyden(good=good),
    )  # fmt: skip
    assert error(turn.value, tensor([-1.0, 1.0])) < 1e-10


def test_linear_equations_end_within_2n_steps():
    """Gay's theorem, for the good update with full steps (1979)."""
    generator = torch.Generator().manual_seed(0)
    for n in (2, 3, 5):
        A = torch.eye(n, dtype=F64) + 0.4 * torch.randn(n, n, generator=generator, dtype=F64)
        b = torch.randn(n, generator=generator, dtype=F64)
        solver = ims.Broyden(halvings=0, atol=1e-9, max_steps=2 * n)
        sol = ims.root(lambda z, A=A, b=b: A @ z - b, torch.zeros(n, dtype=F64), solver=solver)
        assert error(sol.value, torch.linalg.inv(A) @ b) < 1e-7


def test_convergence_is_superlinear():
    """Ratios of residuals tend to zero, where those of the chord method stay."""

    def ratio(kind, steps):
        sols = [TRIDIAGONAL.solve(kind(rtol=None, max_steps=s)) for s in (steps, steps + 1)]
        return float(sols[1].residual / sols[0].residual)

    broyden = lambda **k: ims.Broyden(linear_solver=ims.LU(), **k)
    assert ratio(broyden, 10) < 0.5 * ratio(broyden, 3)
    assert ratio(ims.Chord, 10) > 0.9 * ratio(ims.Chord, 3)


# -- what it costs -----------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1, 3, 8])
def test_memory_is_bounded(memory):
    """The state's tensors, after many steps and restarts."""
    solver = ims.Broyden(memory=memory)
    largest = {"numbers": 0, "pairs": 0}
    step = ims.Broyden.step

    def watching(self, problem, state):
        new = step(self, problem, state)
        for t in new:
            if isinstance(t, torch.Tensor):
                largest["numbers"] = max(largest["numbers"], t.numel())
        largest["pairs"] = max(largest["pairs"], int(new.pairs.max()))
        return new

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ims.Broyden, "step", watching)
        sol = TRIDIAGONAL.solve(solver)
    assert bool(sol.converged) and int(sol.iterations) > memory
    assert largest == {"numbers": memory * 10, "pairs": memory}


def test_the_jacobian_is_never_formed(monkeypatch):
    """One product at the start, and an evaluation a step where the search accepts at once."""
    count = {"products": 0, "evaluations": 0}
    mv, residual = LaneMap.mv, EquationProblem.residual

    def counting_mv(self, v):
        count["products"] += 1
        return mv(self, v)

    def counting_residual(self, z):
        count["evaluations"] += 1
        return residual(self, z)

    def refuse(self):
        raise AssertionError("formed")

    monkeypatch.setattr(LaneMap, "mv", counting_mv)
    monkeypatch.setattr(LaneMap, "dense", refuse)
    monkeypatch.setattr(EquationProblem, "residual", counting_residual)
    sol = COUPLED.solve(ims.Broyden())
    assert count == {"products": 1, "evaluations": int(sol.iterations) + 1}
    with pytest.raises(AssertionError, match="formed"):
        COUPLED.solve(ims.Broyden(linear_solver=ims.LU()))


# -- the search --------------------------------------------------------------------------------


@solvers
def test_nan_in_a_trial_shortens_the_step(solver):
    """The full step leaves the domain of the logarithm."""
    f = lambda z: torch.stack([torch.log(z[0]) + 0.1 * z[1], z[1] - 0.1 * z[0]])
    sol = ims.root(f, tensor([8.0, 1.0]), solver=solver)
    newton = ims.root(f, tensor([1.0, 0.1]))
    assert error(sol.value, newton.value) < 1e-9


@solvers
def test_equation_without_a_root_fails_honestly(solver):
    sol = ims.root(lambda z: z**2 + 1, tensor([1.3, 0.7]), solver=solver, on_failure="mask")
    assert int(sol.status) in (Status.MAX_STEPS, Status.STALLED, Status.SINGULAR)
    assert float(sol.residual) >= 1 - 1e-12


def test_lane_that_gets_stuck_after_a_start_is_stalled():
    """Every step leads to NaN."""
    f = lambda z: torch.where(z == 1.0, z, torch.nan)
    sol = ims.root(f, tensor([1.0, 1.0]), solver=ims.Broyden(), on_failure="mask")
    assert int(sol.status) in (Status.STALLED, Status.NONFINITE) and int(sol.iterations) <= 1
    assert torch.equal(sol.value, tensor([1.0, 1.0]))


def test_singular_jacobian_at_the_start():
    f = lambda z: torch.stack([z[0] * z[1] - 1, z[0] ** 2 - z[1] ** 2])
    solver = ims.Broyden(linear_solver=ims.LU())
    sol = ims.root(f, tensor([0.0, 0.0]), solver=solver, on_failure="mask")
    assert int(sol.status) == Status.SINGULAR and int(sol.iterations) == 0


@settings(max_examples=10)
@given(
    good=st.booleans(),
    memory=st.integers(1, 6),
    scale=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
)
def test_lanes_of_monotone_systems(good, memory, scale, seed):
    """Each lane of a batch finds the one root that Newton finds for it alone."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(3, 3, generator=generator, dtype=F64) / 3
    b = torch.randn(4, 3, generator=generator, dtype=F64)
    f = lambda z, b: z + A.T @ (A @ z) + scale * z**3 - b
    z0 = torch.zeros(3, dtype=F64)
    solver = ims.Broyden(good=good, memory=memory)
    batch = vmap(lambda b: ims.root(f, z0, (b,), solver=solver))(b)
    exact = vmap(lambda b: ims.root(f, z0, (b,)))(b)
    assert error(batch.value, exact.value) < 1e-9


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"memory": 0}, "memory=0.*>= 1"),
        ({"growth": 0.5}, "growth=0.5.*>= 1"),
        ({"growth": float("nan")}, "growth=nan"),
    ],
    ids=["memory", "growth", "growth-nan"],
)
def test_bad_hyperparameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ims.Broyden(**options)


def test_iterative_solvers_are_refused():
    with pytest.raises(TypeError, match=r"Broyden has linear_solver=CG.*LU"):
        ims.Broyden(linear_solver=ims.CG())
