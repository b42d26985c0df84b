"""Limited-memory BFGS: its minima against SciPy's, its directions against the dense update."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.solvers.lbfgs import LBFGSState, _times_inverse_hessian
from tests.solvers.objectives import (
    BARRIER,
    BEALE,
    F32,
    F64,
    HIMMELBLAU,
    LOGISTIC,
    OBJECTIVES,
    ROSENBROCK,
    ROSENBROCK_10,
    UNBOUNDED,
    Functions,
    by_scipy,
    error,
    lanes_are_alone,
    tensor,
)

# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_value(objective, dtype):
    """Down to the default tolerance, eps**0.75, where float64 or the scale allows it."""
    solver = ims.LBFGS()
    if dtype == F32 and objective.float32_atol is not None:
        solver = replace(solver, atol=objective.float32_atol, rtol=0.0)
    sol = objective.solve(solver, dtype)
    assert sol.value.dtype == sol.residual.dtype == dtype
    assert int(sol.status) == Status.CONVERGED
    assert error(sol.value, objective.minimum) < (1e-9 if dtype == F64 else 1e-3)


@pytest.mark.parametrize("objective", [ROSENBROCK, ROSENBROCK_10, BEALE, LOGISTIC], ids=str)
def test_it_takes_no_more_steps_than_scipy(objective):
    theta = tensor(objective.theta)
    theirs = by_scipy(
        lambda z: objective.fn(z, theta), objective.start, "L-BFGS-B", gtol=1e-8, ftol=0, maxcor=10
    )
    ours = objective.solve(ims.LBFGS(atol=1e-8, rtol=0.0))
    assert int(ours.iterations) <= 1.3 * theirs.nit + 3


def test_a_small_gradient_is_reached_beside_a_large_value():
    """Differences of the objective are noise near the minimum, and its slopes are not."""
    sol = ims.minimize(
        lambda z: 1e4 + (torch.cosh(z - 1) * tensor([1.0, 7.0])).sum(),
        torch.zeros(2, dtype=F64),
        solver=ims.LBFGS(),
    )
    assert error(sol.value, torch.ones(2, dtype=F64)) < 1e-11


def test_least_squares():
    t = torch.linspace(0, 2, 9, dtype=F64)
    y = tensor([2.1, 1.5, 1.22, 0.84, 0.65, 0.55, 0.31, 0.3, 0.25]).requires_grad_()

    def residuals(z, y):
        return z[0] * torch.exp(-z[1] * t) - y

    fit = ims.least_squares(residuals, tensor([1.0, 0.5]), (y,), solver=ims.LBFGS()).value
    theirs = scipy.optimize.least_squares(
        lambda x: residuals(torch.from_numpy(x), y.detach()).numpy(),
        [1.0, 0.5], xtol=1e-15, ftol=1e-15, gtol=1e-15,
    )  # fmt: skip
    assert error(fit, torch.from_numpy(theirs.x)) < 1e-7
    other = ims.least_squares(residuals, tensor([1.0, 0.5]), (y,)).value
    ours, reference = (torch.autograd.grad(v.sum(), y)[0] for v in (fit, other))
    assert error(ours, reference) < 1e-9


# -- directions --------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [0, 1, 3, 5])
def test_direction_is_that_of_the_dense_update(pairs):
    """BFGS's inverse Hessian, updated in NumPy from ``s.y / y.y`` times the identity."""
    generator = torch.Generator().manual_seed(pairs)
    n, memory = 6, 5
    H = torch.randn(n, n, generator=generator, dtype=F64)
    H = H @ H.T + torch.eye(n, dtype=F64)
    s = torch.randn(2, memory, n, generator=generator, dtype=F64)
    y = s @ H
    weights = 1 / (s * y).sum(-1)
    weights[:, pairs:] = 0
    weights[1, min(pairs, 2) :] = 0  # the other lane has two pairs at most
    g = torch.randn(2, n, generator=generator, dtype=F64)
    state = LBFGSState(g, g[:, 0], g, s, y, weights, g[:, 0], g[:, 0])
    ours = _times_inverse_hessian(state)
    for lane in range(2):
        B = np.eye(n)
        kept = int((weights[lane] > 0).sum())
        for i in reversed(range(kept)):  # from the oldest on
            a, b = s[lane, i].numpy(), y[lane, i].numpy()
            if i == kept - 1:
                new = s[lane, 0].numpy() @ y[lane, 0].numpy() / (y[lane, 0].numpy() ** 2).sum()
                B = new * B
            V = np.eye(n) - np.outer(b, a) / (a @ b)
            B = V.T @ B @ V + np.outer(a, a) / (a @ b)
        assert error(ours[lane], torch.from_numpy(B @ g[lane].numpy())) < 1e-11


def test_exact_searches_on_a_quadratic_are_conjugate_gradients():
    """So that n steps end at the minimum, whatever the memory."""
    d, b = tensor([1.0, 3.0, 7.0, 20.0]), tensor([1.0, -1.0, 2.0, 1.0])
    fn = lambda z: 0.5 * (d * z**2).sum() - (b * z).sum()
    x, r = np.zeros(4), b.numpy().copy()
    p = r.copy()
    for steps in range(1, 5):
        alpha = (r @ r) / (p @ (d.numpy() * p))
        x, new = x + alpha * p, r - alpha * d.numpy() * p
        p, r = new + (new @ new) / (r @ r) * p, new
        for memory in (1, 4):
            exact = ims.StrongWolfe(decrease=1e-9, curvature=1e-7)
            solver = ims.LBFGS(rtol=None, max_steps=steps, memory=memory, line_search=exact)
            ours = ims.minimize(fn, torch.zeros(4, dtype=F64), solver=solver).value
            assert error(ours, torch.from_numpy(x)) < 1e-5, (steps, memory)


@pytest.mark.parametrize("memory", [1, 3, 20])
def test_memory(memory):
    """What is remembered does not grow with the steps, and more of it takes fewer of them."""
    sol = ROSENBROCK_10.solve(ims.LBFGS(memory=memory))
    assert error(sol.value, ROSENBROCK_10.minimum) < 1e-9
    if memory == 20:
        assert int(sol.iterations) < int(ROSENBROCK_10.solve(ims.LBFGS(memory=1)).iterations)
    seen = []

    class Watched(ims.LBFGS):
        def step(self, problem, state):
            seen.append(sum(t.numel() for t in state))
            return super().step(problem, state)

    ROSENBROCK_10.solve(Watched(memory=memory))
    assert len(seen) > 20 and set(seen) == {10 * (2 + 2 * memory) + memory + 3}


# -- how lanes end -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded_below_is_a_failure(name, monkeypatch):
    """Beside a lane with a minimum, which converges; in a bounded number of evaluations."""
    calls = []

    def fn(z, t):
        calls.append(1)
        return torch.where(t[0] > 0, UNBOUNDED[name](z, t.abs()), ((z - 1) ** 4 + z**2).sum())

    t = tensor([[1.0], [-1.0], [0.3]])
    start = tensor([0.5, 2.0]).expand(3, 2)
    solve = lambda z, t: ims.minimize(fn, z, (t,), solver=ims.LBFGS(), on_failure="mask")
    sol = vmap(solve)(start, t)
    assert sol.status[1] == Status.CONVERGED
    assert (sol.status[[0, 2]] > Status.BUDGET).all()
    assert len(calls) < 600
    t.requires_grad_()
    vmap(solve)(start, t).value.sum().backward()
    assert torch.equal(t.grad, torch.zeros(3, 1, dtype=F64))


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_a_kink_is_no_minimum_that_it_claims(dtype):
    sol = ims.minimize(
        lambda z: (z - 1).abs().sum() + 0.1 * z.sum() ** 2,
        torch.tensor([0.3, -2.0], dtype=dtype),
        solver=ims.LBFGS(),
        on_failure="mask",
    )
    assert int(sol.status) == Status.STALLED and bool(torch.isfinite(sol.value).all())


def test_rounding_above_the_tolerance_is_said():
    """The gradient cannot be computed to 1e-12 beside slopes of 1e8 that cancel."""
    sol = ims.minimize(
        lambda z: 1e8 * ((z - math.pi) ** 2).sum() + 1e8 * ((z + math.e) ** 2).sum(),
        tensor([1.0, 2.0, 0.1]),
        solver=ims.LBFGS(atol=1e-14, rtol=0.0, max_steps=60),
        on_failure="mask",
    )
    expected = torch.full((3,), (math.pi - math.e) / 2, dtype=F64)
    assert error(sol.value, expected) < 1e-10
    assert bool(sol.converged) == (float(sol.residual) <= 1e-14)
    assert bool(sol.converged) or int(sol.status) in (Status.STALLED, Status.MAX_STEPS)


def test_it_forgets_and_goes_on():
    """A pair that promises a step beyond all numbers: it is dropped, and only then is it over."""
    problem = Functions(lambda z: torch.where(z < 1e9, torch.cosh(z - 1), torch.nan))
    solver, z = ims.LBFGS(), tensor([[3.0]])
    state = solver.init(problem, z)
    pair = torch.zeros(1, 10, 1, dtype=F64)
    pair[:, 0] = 1.0
    misled = state._replace(
        steps=pair * 1e60, changes=pair * 1e-60, weights=pair.squeeze(-1)
    )  # fmt: skip
    forgot = solver.step(problem, misled)
    assert torch.equal(forgot.z, z) and int(forgot.flag) == 0
    assert not bool(forgot.weights.any())
    down = solver.step(problem, forgot)
    assert float(down.value) < float(state.value) and bool(down.weights[:, 0] > 0)
    stuck = Functions(lambda z: -(z**1.0))
    assert int(solver.step(stuck, solver.init(stuck, z)).flag) == Status.STALLED


def test_stationary_start_counts_as_solved():
    sol = ims.minimize(lambda z: (z**4 - z**2).sum(), torch.zeros(2, dtype=F64), solver=ims.LBFGS())
    assert int(sol.iterations) == 0 and bool(sol.converged)


def test_it_leaves_a_saddle_that_it_does_not_start_in():
    sol = ims.minimize(
        lambda z: z[0] ** 4 - z[0] ** 2 + z[1] ** 2, tensor([1e-5, 1.0]), solver=ims.LBFGS()
    )
    assert error(sol.value, tensor([0.5**0.5, 0.0])) < 1e-10


@pytest.mark.parametrize("start", [math.nan, math.inf])
def test_not_finite(start):
    sol = ims.minimize(
        lambda z: z**2, tensor(start), solver=ims.LBFGS(), on_failure="mask"
    )  # fmt: skip
    assert int(sol.status) == Status.NONFINITE
    constant = ims.minimize(
        lambda z: z**2 + start, tensor(1.0), solver=ims.LBFGS(), on_failure="mask"
    )
    assert int(constant.status) == Status.NONFINITE and float(constant.value) == 1


@pytest.mark.parametrize("objective", [ROSENBROCK, HIMMELBLAU, LOGISTIC, BARRIER], ids=str)
def test_lanes_are_alone(objective):
    lanes_are_alone(objective, ims.LBFGS())


def test_compact_or_not_is_the_same():
    start = ROSENBROCK_10.start * torch.linspace(0.2, 2, 6, dtype=F64).unsqueeze(-1).numpy()

    def solve(compact):
        return vmap(lambda z: ROSENBROCK_10.solve(ims.LBFGS(compact=compact), start=z))(
            torch.from_numpy(start)
        )

    whole, part = solve(False), solve(True)
    assert torch.equal(whole.status, part.status)
    assert int((whole.iterations - part.iterations).abs().max()) <= 1
    assert error(part.value, whole.value) < 1e-9


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_budget(steps):
    sol = ROSENBROCK.solve(ims.LBFGS(rtol=None, max_steps=steps))
    assert int(sol.iterations) == steps and int(sol.status) == Status.BUDGET
    theta = tensor(ROSENBROCK.theta)
    value = [float(ROSENBROCK.fn(z, theta)) for z in (tensor(ROSENBROCK.start), sol.value)]
    assert value[1] < value[0] or steps == 0


def test_budget_goes_on_at_the_solution():
    start = ROSENBROCK.solve(ims.LBFGS()).value
    for z in (start, torch.ones(2, dtype=F64)):
        sol = ROSENBROCK.solve(ims.LBFGS(rtol=None, max_steps=6), start=z)
        assert int(sol.status) == Status.BUDGET and error(sol.value, z) < 1e-10


# -- derivatives -------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [BEALE, LOGISTIC, BARRIER], ids=str)
def test_derivative(objective):
    theta = tensor(objective.theta)
    solve = lambda t: objective.solve(ims.LBFGS(), theta=t).value.reshape(-1)
    exact = objective.derivative(objective.minimum, theta)
    for mode in (jacrev, jacfwd):
        assert error(mode(solve)(theta), exact) < 1e-7


@pytest.mark.parametrize("modes", [(jacfwd, jacrev), (jacrev, jacfwd)], ids=["fwd-rev", "rev-fwd"])
def test_second_derivative(modes):
    """Of ``argmin 0.5 a z^2 + z^4 / 4 - b z`` by Newton steps unrolled in plain torch."""
    p = tensor([1.3, 0.7])
    slope = lambda z, p: p[0] * z + z**3 - p[1]

    def unrolled(p):
        z = tensor(0.5)
        for _ in range(9):
            z = z - slope(z, p) / (p[0] + 3 * z**2)
        return z

    def solve(p):
        fn = lambda z, p: 0.5 * p[0] * z**2 + 0.25 * z**4 - p[1] * z
        return ims.minimize(fn, tensor(0.1), (p,), solver=ims.LBFGS()).value

    exact = modes[0](modes[1](unrolled))(p)
    assert error(modes[0](modes[1](solve))(p), exact) < 1e-9


# -- as a value --------------------------------------------------------------------------------


def test_solver_is_a_value():
    solver = ims.LBFGS(memory=3, line_search=ims.StrongWolfe(curvature=0.5))
    copy = pickle.loads(pickle.dumps(solver))
    assert copy == solver and hash(copy) == hash(solver) and copy != ims.LBFGS()


def test_no_memory_is_refused():
    with pytest.raises(ValueError, match="memory=0.*GradientDescent"):
        ims.LBFGS(memory=0)


@pytest.mark.parametrize("kind", ["root", "fixed_point"])
def test_other_equations_are_refused(kind):
    with pytest.raises(ValueError, match=f"solver=LBFGS.*{kind}"):
        getattr(ims, kind)(torch.cos, tensor(1.0), solver=ims.LBFGS())
