"""Dogleg and Levenberg-Marquardt on equations: what they solve, how they fail, what they leave."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.problem import ResidualMap
from implicit_solvers.testing import problems

F32, F64 = torch.float32, torch.float64
SOLVERS = {"Dogleg": ims.Dogleg(), "LevenbergMarquardt": ims.LevenbergMarquardt()}
both = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def tensor(values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def error(ours, exact):
    assert ours.shape == exact.shape
    return float((ours - exact).detach().abs().max() / exact.detach().abs().max().clamp(min=1))


def hybr(fn, start):
    """Return what MINPACK's hybr makes of it: a root or None."""
    slope = jacfwd(fn)
    out = scipy.optimize.root(
        lambda x: fn(torch.from_numpy(x)).numpy(),
        start.numpy(),
        jac=lambda x: slope(torch.from_numpy(x)).numpy(),
    )
    root = torch.from_numpy(np.asarray(out.x))
    return root if float(fn(root).abs().max()) < 1e-6 * (1 + float(root.abs().max())) else None


# In the minimum that is no root: Freudenstein and Roth's function from two of its starts.
TRAPPED = (problems.FREUDENSTEIN_ROTH, problems.FREUDENSTEIN_ROTH_FAR)
ROOTS = [p for p in problems.ROOTS if p.solution is not None and p not in TRAPPED]
# These have more than one root.
MANY = (
    problems.CHEBYQUAD_7,
    problems.CHEBYQUAD_9,
    problems.TRIGONOMETRIC,
    problems.BROWN_ALMOST_LINEAR,
)
HARD = (
    problems.POWELL_BADLY_SCALED,
    problems.HELICAL_VALLEY,
    problems.ROSENBROCK,
    problems.WOOD,
    problems.BROYDEN_BANDED,
)
STARTS = [(p, F64) for p in ROOTS] + [(p, F32) for p in (*HARD, problems.BRATU, problems.CIRCLE)]


@both
@pytest.mark.parametrize(
    "problem, dtype", STARTS, ids=[f"{p}-{str(d).split('.')[1]}" for p, d in STARTS]
)
def test_root_from_the_standard_start(problem, dtype, solver):
    sol = problem.solve(problem.theta(dtype), solver=solver)
    assert bool(sol.converged) and sol.value.dtype == sol.residual.dtype == dtype
    assert int(sol.iterations) <= 40
    residual = problem.fn(sol.value.double(), problem.theta().to(dtype).double())
    assert float(residual.abs().max()) < (1e-9 if dtype == F64 else 1e-2)
    if problem.regular and problem not in MANY:
        # powell-badly-scaled: float32's tolerance of the residual, 5e-5, leaves 5e-4 of z open
        assert error(sol.value.double(), problem.solution) < (1e-9 if dtype == F64 else 2e-4)


@both
@pytest.mark.parametrize(
    "problem",
    [problems.BROYDEN_TRIDIAGONAL, problems.KEPLER, problems.CHANDRASEKHAR, problems.HEAT],
    ids=str,
)
def test_easy_problems_take_newton_steps(problem, solver):
    steps = int(problem.solve(solver=ims.Newton()).iterations)
    if isinstance(solver, ims.Dogleg):
        # old factors, where two steps with them are to end it
        assert int(problem.solve(solver=solver).iterations) <= steps + 2
        solver = ims.Dogleg(reuse=0)
    assert int(problem.solve(solver=solver).iterations) <= steps


def counting(fn):
    def counted(z, *args):
        counted.calls += 1
        return fn(z, *args)

    counted.calls = 0
    return counted


def test_old_factors_save_linearizations():
    fn = lambda z: torch.tanh(z) + z - torch.linspace(0, 2, 5, dtype=F64)
    evaluations, iterations = [], []
    for reuse in (0, 2, 100):
        counted = counting(fn)
        sol = ims.root(counted, torch.zeros(5, dtype=F64), solver=ims.Dogleg(reuse=reuse))
        evaluations.append(counted.calls - int(sol.iterations))
        iterations.append(int(sol.iterations))
        assert error(fn(sol.value), torch.zeros(5, dtype=F64)) < 1e-11
    # a linearization evaluates fn once more
    assert evaluations[0] > evaluations[1] > evaluations[2]
    assert iterations[0] < iterations[2]


def test_old_factors_are_each_lanes_own_choice():
    starts = torch.linspace(-3, 3, 40, dtype=F64).reshape(20, 2)
    fn = lambda z: torch.tanh(3 * z) + z**3 - z.flip(0) / 2 - 1
    solve = lambda z: ims.root(fn, z, solver=ims.Dogleg(reuse=4))
    together = vmap(solve)(starts)
    alone = [solve(z) for z in starts]
    counts = torch.stack([sol.iterations for sol in alone])
    assert len(counts.unique()) > 2
    assert int((together.iterations - counts).abs().max()) <= 1
    torch.testing.assert_close(together.value, torch.stack([sol.value for sol in alone]))


def test_reuse_is_a_number_of_steps():
    with pytest.raises(ValueError, match="reuse=-1"):
        ims.Dogleg(reuse=-1)


def from_random_starts(problem, solver, count):
    """Return in how many random starts ours and hybr find a root."""
    generator = torch.Generator().manual_seed(1)
    center = problem.start()
    noise = torch.randn(count, *center.shape, generator=generator, dtype=F64)
    starts = center + noise * (1 + center.abs())
    fn = lambda z: problem.fn(z, problem.theta())
    ours = vmap(lambda z: ims.root(fn, z, solver=solver, on_failure="mask"))(starts)
    assert float(vmap(fn)(ours.value[ours.converged]).abs().max()) < 1e-8
    return int(ours.converged.sum()), sum(hybr(fn, z) is not None for z in starts)


@both
@pytest.mark.parametrize("problem", HARD[:3], ids=str)
def test_random_starts(problem, solver):
    ours, theirs = from_random_starts(problem, solver, 15)
    assert ours >= theirs


@pytest.mark.nightly
@both
@pytest.mark.parametrize("problem", [*HARD, problems.WATSON], ids=str)
def test_a_thousand_random_starts(problem, solver):
    ours, theirs = from_random_starts(problem, solver, 1000)
    assert ours >= 0.99 * theirs


# -- failures --------------------------------------------------------------------------------------

NO_ROOTS = [
    ("square-plus-one", lambda z: z**2 + 1, 1.3),
    ("parallel-lines", lambda z: torch.stack([z.sum() - 1, 2 * z.sum() - 3]), [0.0, 1.0]),
    ("chebyquad-8", lambda z: problems.CHEBYQUAD_8.fn(z, problems.CHEBYQUAD_8.theta()),
     problems.CHEBYQUAD_8.z0),
    *((p.name, lambda z, p=p: p.fn(z, p.theta()), p.z0) for p in TRAPPED),
]  # fmt: skip


@both
@pytest.mark.parametrize("fn, start", [c[1:] for c in NO_ROOTS], ids=[c[0] for c in NO_ROOTS])
def test_minimum_that_is_no_root_is_a_failure(fn, start, solver):
    sol = ims.root(fn, tensor(start), solver=solver, on_failure="mask")
    assert int(sol.status) == Status.STALLED and not bool(sol.converged)
    assert int(sol.iterations) < solver.max_steps
    # SciPy cannot reduce |f| from there either
    flat = lambda x: fn(torch.from_numpy(x).reshape(sol.value.shape)).reshape(-1).numpy()
    found = flat(sol.value.reshape(-1).numpy())
    further = scipy.optimize.least_squares(flat, sol.value.reshape(-1).numpy())
    assert 2 * further.cost > 0.999 * (found @ found) > 1e-4
    with pytest.raises(ims.ConvergenceError, match="STALLED"):
        ims.root(fn, tensor(start), solver=solver)


@both
def test_stationary_start_stalls(solver):
    sol = ims.root(lambda z: z**2 - 1, tensor(0.0), solver=solver, on_failure="mask")
    assert int(sol.status) == Status.STALLED and int(sol.iterations) == 1


@both
def test_singular_jacobian_on_the_way_does_not_end_the_lane(solver):
    fn = lambda z: torch.stack([z[0] * z[1] - 6, z[0] + z[1] ** 2 - 7])
    start = tensor([2.0, 1.0])
    assert float(torch.linalg.det(jacfwd(fn)(start))) == 0
    assert int(ims.root(fn, start, solver=ims.Newton(), on_failure="mask").status) != 0
    sol = ims.root(fn, start, solver=solver)
    assert float(fn(sol.value).abs().max()) < 1e-10


@both
def test_steps_out_of_the_domain_are_shortened(solver):
    for fn, start, exact in (
        (torch.log, 20.0, 1.0),
        (lambda z: torch.log(z) + z - 1, 10.0, 1.0),
        (lambda z: torch.sqrt(z) - 0.1, 4.0, 0.01),
        (lambda z: torch.where(z > 0, 1 / z - 2, torch.nan), 1.5, 0.5),
        (torch.atan, 30.0, 0.0),
    ):
        sol = ims.root(fn, tensor(start), solver=solver)
        assert error(sol.value, tensor(exact)) < 1e-10


@both
@pytest.mark.parametrize("start", [math.nan, math.inf, -1.0])
def test_start_where_the_function_is_not_finite(start, solver):
    sol = ims.root(torch.log, tensor(start), solver=solver, on_failure="mask")
    assert int(sol.status) == Status.NONFINITE and int(sol.iterations) == 0


@both
def test_jacobian_that_is_not_finite(solver):
    """sqrt(|z|) has an infinite slope at 0, where it is finite."""
    fn = lambda z: torch.sqrt(z.abs()) + 1
    sol = ims.root(fn, tensor([0.0, 4.0]), solver=solver, on_failure="mask")
    assert int(sol.status) in (Status.NONFINITE, Status.STALLED)
    assert bool(torch.isfinite(sol.value).all())


# -- budgets, other kinds, hyperparameters ---------------------------------------------------------


@both
def test_budget(solver):
    problem, kind = problems.WOOD, type(solver)
    errors = []
    for steps in range(6):
        sol = problem.solve(solver=kind(rtol=None, max_steps=steps))
        assert int(sol.iterations) == steps and int(sol.status) == Status.BUDGET
        errors.append(float(sol.residual))
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]
    # at the solution, and in a minimum that is none, further steps stay
    for fn, start in ((lambda z: z**3 - 8, 2.0), (lambda z: z**2 + 1, 0.0)):
        sol = ims.root(fn, tensor(start), solver=kind(rtol=None, max_steps=4))
        assert int(sol.status) == Status.BUDGET and float(sol.value) == start


@both
def test_fixed_points(solver):
    problem = problems.CHANDRASEKHAR_ITERATION
    sol = problem.solve(solver=solver)
    assert error(sol.value, problem.solution) < 1e-10
    assert int(sol.iterations) <= 8


@both
@pytest.mark.parametrize(
    "linear_solver", [ims.LU(), ims.CG, "cg", ims.Newton], ids=["LU", "class", "name", "Newton"]
)
def test_linear_solver_must_be_iterative(linear_solver, solver):
    with pytest.raises(TypeError, match=f"{type(solver).__name__} has linear_solver.*iterative"):
        type(solver)(linear_solver=linear_solver)


@both
@settings(max_examples=8)
@given(
    exponents=st.lists(st.integers(-20, 20), min_size=4, max_size=4),
    start=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
)
def test_units_of_the_unknowns_do_not_matter(solver, exponents, start):
    """Powers of two round nothing: the iterates are the same in other units."""
    unit = 2.0 ** tensor(exponents)
    few = type(solver)(rtol=None, max_steps=5)
    fn = lambda z: problems.WOOD.fn(z, problems.WOOD.theta())
    one = ims.root(fn, tensor(start), solver=few)
    other = ims.root(lambda z: fn(z * unit), tensor(start) / unit, solver=few)
    assert error(other.value * unit, one.value) < 1e-6
    assert float((one.residual - other.residual).abs()) <= 1e-6 * (1 + float(one.residual))


# -- products only ---------------------------------------------------------------------------------

FREE = {
    "Dogleg-GMRES": ims.Dogleg(linear_solver=ims.GMRES(rtol=1e-4)),
    "LevenbergMarquardt-CG": ims.LevenbergMarquardt(linear_solver=ims.CG(rtol=1e-4)),
}
free = pytest.mark.parametrize("solver", FREE.values(), ids=FREE)


@pytest.fixture
def never_dense(monkeypatch):
    def refuse(self):
        raise AssertionError("the Jacobian was formed")

    monkeypatch.setattr(ResidualMap, "dense", refuse)


@free
@pytest.mark.parametrize(
    "problem",
    [
        problems.ROSENBROCK,
        problems.HELICAL_VALLEY,
        problems.BROYDEN_BANDED,
        problems.WOOD,
        problems.KEPLER,
    ],
    ids=str,
)
def test_products_alone_find_the_same_root(problem, solver, never_dense):
    sol = problem.solve(solver=solver)
    assert error(sol.value, problem.solution) < 1e-9


@both
def test_large_problems_are_solved_with_products(solver, never_dense):
    """700 unknowns, against the closed form of each."""
    c = torch.linspace(1, 8, 700, dtype=F64)
    sol = ims.root(lambda z: z**3 - c, torch.full((700,), 3.0, dtype=F64), solver=solver)
    assert error(sol.value, c ** (1 / 3)) < 1e-9


# -- derivatives and lanes -------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [p for p in ROOTS if p.regular and p not in MANY], ids=str)
def test_derivative(problem):
    ours = jacrev(lambda theta: problem.solve(theta, solver=ims.Dogleg()).value)(problem.theta())
    size = problem.derivative.abs().max()
    assert float((ours - problem.derivative).abs().max() / size) < 1e-6


def test_dogleg_leaves_its_factors_to_the_backward_pass(monkeypatch):
    problem, count = problems.BROYDEN_BANDED, []
    theta = problem.theta().requires_grad_()
    sol = problem.solve(theta, solver=ims.Dogleg())
    original = ims.LU.factor
    monkeypatch.setattr(ims.LU, "factor", lambda self, A: count.append(1) or original(self, A))
    (ours,) = torch.autograd.grad(sol.value.sum(), theta)
    assert error(ours, problem.derivative.sum(0)) < 1e-9
    assert not count


@both
@pytest.mark.parametrize(
    "problem", [problems.POWELL_BADLY_SCALED, problems.HELICAL_VALLEY, problems.KEPLER], ids=str
)
def test_lanes_are_on_their_own(problem, solver):
    generator = torch.Generator().manual_seed(3)
    theta = problem.theta()
    noise = 1 + 0.02 * torch.rand(6, *theta.shape, generator=generator, dtype=F64)
    thetas = theta * noise
    thetas[2] = math.nan
    starts = problem.start() * torch.linspace(0.9, 1.1, 6, dtype=F64).reshape(
        6, *(1,) * problem.start().dim()
    )

    def solve(start, theta):
        return problem.solve(theta, start=start, solver=solver, on_failure="mask")

    batch = vmap(solve)(starts, thetas)
    for i in range(6):
        single = solve(starts[i], thetas[i])
        assert int(batch.status[i]) == int(single.status)
        assert abs(int(batch.iterations[i]) - int(single.iterations)) <= 1
        assert error(batch.value[i], single.value) < 1e-9
    assert batch.status.tolist() == [0, 0, Status.NONFINITE, 0, 0, 0]


@both
def test_lane_with_nan_gives_nothing_to_shared_parameters(solver):
    def root(shared, x):
        fn = lambda z, a, x: z**3 + a * z - x
        return ims.root(fn, torch.ones_like(x), (shared, x), solver=solver, on_failure="mask")

    def total(shared, xs):
        return vmap(lambda x: root(shared, x).value)(xs).sum()

    shared, xs = tensor(1.5), tensor([1.0, 2.0, 0.3])
    exact = grad(total)(shared, xs)
    z = vmap(lambda x: root(shared, x).value)(xs)
    assert error(exact, (-z / (3 * z**2 + shared)).sum()) < 1e-10
    ours = grad(total)(shared, tensor([1.0, math.nan, 2.0, 0.3]))
    assert error(ours, exact) < 1e-12


@both
def test_compact_or_not_is_the_same(solver):
    thetas = torch.linspace(0.5, 3, 9, dtype=F64)
    starts = torch.linspace(-4, 9, 9, dtype=F64)

    def solve(compact):
        one = type(solver)(compact=compact)
        fn = lambda z, t: torch.atan(z) + t * z**3 - t
        return vmap(lambda z, t: ims.root(fn, z, (t,), solver=one))(starts, thetas)

    whole, compacted = solve(False), solve(True)
    assert torch.equal(whole.status, compacted.status)
    assert int((whole.iterations - compacted.iterations).abs().max()) <= 1
    assert error(compacted.value, whole.value) < 1e-10
