"""Minimizers: descent, quasi-Newton, Newton's method by conjugate gradients and in a region."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, hessian, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.solvers import systems
from tests.solvers.systems import BEALE, F32, F64, ROSENBROCK, ROSENBROCK_10, Watch, error, tensor

WOLFE, ARMIJO = ims.StrongWolfe(), ims.Backtracking()
searches = pytest.mark.parametrize("search", [WOLFE, ARMIJO], ids=["wolfe", "armijo"])
bowl = lambda z: (0.5 * tensor([1.0, 4.0, 9.0]) * z**2 - z).sum()


def counting(fn):
    """Return ``fn``, and a list that grows with each call."""
    calls = []
    return lambda *args: calls.append(1) or fn(*args), calls


# -- gradient descent ----------------------------------------------------------------------------


def steps_of(fn, start, count, solver, **options):
    """Return the start and the steps of a minimizer, from budgets."""
    budget = lambda k: solver(rtol=None, max_steps=k, **options)
    return systems.accepted(lambda k: ims.minimize(fn, start, solver=budget(k)), count)


def test_backtracking_steps_are_armijos():
    """From the length ``lr`` in each step, against the rule written out in NumPy."""
    d, z = np.array([1.0, 40.0]), np.array([1.0, -0.3])
    f, slope = lambda z: 0.5 * (d * z**2).sum() - z.sum(), lambda z: d * z - 1
    fn = lambda z: (0.5 * torch.from_numpy(d) * z**2 - z).sum()
    for ours in steps_of(
        fn, tensor([1.0, -0.3]), 6, ims.GradientDescent, lr=0.7, line_search=ARMIJO
    )[1:]:
        g, t = slope(z), 0.7
        while f(z - t * g) > f(z) - 1e-4 * t * (g @ g):
            t /= 2
        z = z - t * g
        assert error(ours, torch.from_numpy(z)) < 1e-13


# -- line searches: one step down the slope, of many functions of one variable --------------------


def wavy(z, a, b, c, d):
    """A quartic with waves on it: bounded below, with many minima."""
    return 0.1 * a * z**4 + b * z + torch.sin(c * z + d)


def numbers(low, high):
    return st.floats(low, high)


lanes = st.lists(
    st.tuples(*(numbers(*ends) for ends in ((0.01, 5), (-3, 3), (0.1, 6), (-3, 3), (-3, 3)))),
    min_size=1,
    max_size=5,
)


def searched(search, fn, start, parameters=(), first=1.0, most=30):
    """Make one step down the slope in each lane ``(N,)``, from a first length.

    After ``most`` lengths a search goes back to the best, or is over.
    """
    options = {"lr": first, "line_search": search, "rtol": None}
    lanes = {"batch_dims": 1, "in_dims": (0,) * len(parameters), "on_failure": "mask"}
    value, k = start, 0
    while bool((value == start).any()) and k <= most:
        k += 1
        solver = ims.GradientDescent(max_steps=k, **options)
        new = ims.minimize(fn, start, tuple(parameters), solver=solver, **lanes).value
        value = torch.where(value == start, new, value)
    return value


def ends_of(parameters, start, end):
    """Return the length of a step, and objective and slope at both ends, by NumPy."""
    a, b, c, d = (p.numpy() for p in parameters)
    value = lambda z: 0.1 * a * z**4 + b * z + np.sin(c * z + d)
    slope = lambda z: 0.4 * a * z**3 + b + c * np.cos(c * z + d)
    z, w = start.numpy(), end.numpy()
    direction = -slope(z)
    with np.errstate(invalid="ignore"):
        length = (w - z) / direction
    return length, value, value(z), slope(z) * direction, value(w), slope(w) * direction


firsts = st.sampled_from([1e-4, 1e-2, 0.3, 1.0, 30.0, 1e4])


@given(lanes, firsts, st.sampled_from([0.1, 0.5, 0.9]))
def test_strong_wolfe_conditions_hold(cases, first, curvature):
    """In every lane that goes down at all, from first lengths of 1e-4 to 1e4."""
    *parameters, start = tensor(cases).unbind(-1)
    end = searched(ims.StrongWolfe(curvature=curvature), wavy, start, parameters, first)
    length, _, before, slope, after, slope_after = ends_of(parameters, start, end)
    steep = -slope > 1e-10
    fall = -1e-4 * length * slope
    noise = torch.finfo(F64).eps ** (2 / 3) * np.maximum(np.abs(before), 1)
    enough = (after <= before - fall + 1e-12 * (1 + np.abs(before))) | (
        (fall <= noise) & (after <= before + 1.1 * noise)
    )
    assert (enough & (length > 0))[steep].all()
    assert (np.abs(slope_after) <= -curvature * slope * (1 + 1e-9) + 1e-13)[steep].all()


@given(lanes, firsts)
def test_armijo_holds_and_twice_the_length_does_not_do(cases, first):
    *parameters, start = tensor(cases).unbind(-1)
    end = searched(ims.Backtracking(decrease=0.4), wavy, start, parameters, first)
    length, value, before, slope, after, _ = ends_of(parameters, start, end)
    steep = -slope > 1e-6
    with np.errstate(divide="ignore", invalid="ignore"):
        halvings = np.log2(first / length)
    assert (halvings > -1e-6)[steep].all()
    assert (np.abs(halvings - np.round(halvings)) < 1e-6)[steep].all()
    noise = 1e-10 * (1 + np.abs(before))
    assert (after <= before + 0.4 * length * slope + noise)[steep].all()
    twice = value(2 * end.numpy() - start.numpy())
    shortened = steep & (np.round(halvings) > 0)
    assert (twice > before + 0.8 * length * slope - noise)[shortened].all()


@searches
def test_searches_of_lanes_are_those_of_each_alone(search):
    generator = torch.Generator().manual_seed(0)
    draw = lambda low, high: low + (high - low) * torch.rand(40, generator=generator, dtype=F64)
    parameters, start = [draw(0.01, 5), draw(-3, 3), draw(0.1, 6), draw(-3, 3)], draw(-3, 3)
    batch = searched(search, wavy, start, parameters, 3.0)
    for i in range(40):
        found = searched(search, wavy, start[i : i + 1], [p[i : i + 1] for p in parameters], 3.0)
        torch.testing.assert_close(found, batch[i : i + 1], rtol=1e-12, atol=1e-14)


def test_exact_search_of_a_parabola():
    """With a small share of the slope left the minimum is hit, in four evaluations at most."""
    curves, fn = tensor([0.01, 1.0, 300.0]), lambda z, a: 0.5 * a * (z - 1) ** 2
    exact = ims.StrongWolfe(curvature=1e-3)
    end = searched(exact, fn, torch.zeros(3, dtype=F64), [curves], most=3)
    assert error(end, torch.ones(3, dtype=F64)) < 1e-3


HARD_LINES = {
    "cone": lambda z: -z / (z**2 + 2),
    "quintic": lambda z: (z + 0.004) ** 5 - 2 * (z + 0.004) ** 4,
    "kink": lambda z: torch.sqrt(1 + 1e4 * (z - 1) ** 2),
}


@pytest.mark.parametrize("fn", HARD_LINES.values(), ids=HARD_LINES)
@pytest.mark.parametrize("first", [1e-3, 1e-1, 10.0, 1e3])
def test_scipy_finds_a_length_too(fn, first):
    """On the functions that SciPy's search is tested with, from the same starts."""
    value = lambda x: float(fn(torch.as_tensor(x))[0])
    slope = lambda z: float(grad(fn)(z.reshape(())))
    zero = tensor(0.0)
    theirs = scipy.optimize.line_search(
        value, lambda x: np.array([slope(torch.from_numpy(x))]), np.zeros(1), np.ones(1), c2=0.1,
        amax=1e4,
    )[0]  # fmt: skip
    end = searched(
        ims.StrongWolfe(curvature=0.1), fn, zero.reshape(1), first=first / abs(slope(zero))
    )
    assert theirs is not None and abs(slope(end)) <= 0.1 * abs(slope(zero))
    assert float(fn(end)) <= float(fn(zero)) + 1e-4 * slope(zero) * float(end)


@searches
@pytest.mark.parametrize("first", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_where_the_fall_drowns_in_rounding_slopes_judge(search, first, dtype):
    """The parabola is lost beside 1e4 with its rounding, its slope is not."""
    away, scale = [1e-3, 1e-2, -1e-2, 2e-2, -2e-3], 1e-5 if dtype == F64 else 1
    start, eps = 1 + scale * torch.tensor(away, dtype=dtype), torch.finfo(dtype).eps
    offset = lambda z: 1e4 * (1 + 3 * eps * torch.sin(1e12 * z).detach())
    end = searched(search, lambda z: offset(z) + 0.5 * (z - 1) ** 2, start, first=first)
    assert bool(((end - 1).abs() < 0.95 * (start - 1).abs()).all())


NOWHERE = {
    "linear": lambda z: -z,
    "parabola": lambda z: -(z**2),
    "cone": lambda z: -torch.sqrt(1 + z**2),
    "exponential": lambda z: -torch.exp(z),
}


@pytest.mark.parametrize("fn", NOWHERE.values(), ids=NOWHERE)
def test_unbounded_line_is_no_step(fn):
    start = tensor([0.5, 2.0])
    assert torch.equal(searched(WOLFE, fn, start), start)


@searches
def test_it_comes_back_into_the_domain(search):
    fn, start = lambda z: z - torch.log(z) + torch.sqrt(3 - z), tensor([0.1, 0.5, 2.5])
    end = searched(search, fn, start, first=1e3)
    assert bool((fn(end) < fn(start)).all())


LEARNING = [ims.LBFGS, ims.BFGS, ims.NonlinearCG]
minimizers = pytest.mark.parametrize("solver", [*LEARNING, ims.TrustRegion])


# -- without a minimum ---------------------------------------------------------------------------


DESCENTS = [
    (ims.LBFGS(), 600),
    (ims.BFGS(), 600),
    (ims.NonlinearCG(), 600),
    (ims.NewtonCG(), 1500),
    (ims.TrustRegion(), 1500),
    (ims.GradientDescent(0.1, line_search=ARMIJO, max_steps=200), math.inf),
    (ims.GradientDescent(0.1, line_search=WOLFE, max_steps=200), math.inf),
]


NAMES = ["LBFGS", "BFGS", "NonlinearCG", "NewtonCG", "TrustRegion", "armijo", "wolfe"]


@pytest.mark.parametrize("solver, most", DESCENTS, ids=NAMES)
@pytest.mark.parametrize("name", systems.UNBOUNDED)
def test_unbounded_below_is_a_failure(solver, most, name):
    """Beside a lane with a minimum; in a bounded number of evaluations, with no gradient."""
    fn, calls = counting(
        lambda z, t: torch.where(
            t[0] > 0, systems.UNBOUNDED[name](z, t.abs()), (0.1 * (z - 1) ** 4 + z**2).sum()
        )
    )
    t, start = tensor([[1.0], [-1.0], [0.3]]).requires_grad_(), tensor([0.5, 2.0]).expand(3, 2)
    sol = vmap(lambda z, t: ims.minimize(fn, z, (t,), solver=solver, on_failure="mask"))(start, t)
    assert sol.status[1] == Status.CONVERGED
    assert (sol.status[[0, 2]] > Status.BUDGET).all() and len(calls) < most
    sol.value.sum().backward()
    assert torch.equal(t.grad, torch.zeros(3, 1, dtype=F64))


@pytest.mark.parametrize("solver", [*LEARNING, ims.NewtonCG, ims.TrustRegion, ims.Newton])
@pytest.mark.parametrize("n", [2, 600])
def test_a_saddle_is_left_unless_the_solve_begins_there(solver, n):
    """By factors and by products; a maximum is no minimum either, nor is a point of inflection."""
    well, rest = (lambda z: z[0] ** 4 - z[0] ** 2 + (z[1:] ** 2).sum()), tensor([1.0] * (n - 1))
    for fn in (well, lambda z: -(z**2).sum()):
        sol = ims.minimize(fn, torch.zeros(n, dtype=F64), solver=solver(), on_failure="mask")
        assert int(sol.iterations) == 0 and int(sol.status) == Status.SADDLE
    sol = ims.minimize(well, torch.cat([tensor([0.0]), rest]), solver=solver())
    assert abs(abs(float(sol.value[0])) - 0.5**0.5) < 1e-10
    assert bool(sol.error.isfinite()) == (n == 2)
    sol = ims.minimize(lambda z: z**3, tensor(1.0), solver=solver(), on_failure="mask")
    assert not bool(sol.converged)


# -- BFGS, with a limited memory too, and conjugate gradients -------------------------------------


SCIPY = {
    ims.LBFGS: ("L-BFGS-B", 1.3, {"ftol": 0, "maxcor": 10}),
    ims.BFGS: ("BFGS", 1.3, {}),
    # (in a long valley a formula more or less is luck; on most problems it makes fewer)
    ims.NonlinearCG: ("CG", 1.7, {}),
    ims.TrustRegion: ("trust-exact", 1.3, {}),
}


@pytest.mark.parametrize("system", [ROSENBROCK, ROSENBROCK_10, BEALE, systems.LOGISTIC], ids=str)
@minimizers
def test_it_takes_no_more_steps_than_scipy(system, solver):
    method, most, options = SCIPY[solver]
    fn = lambda z: system.fn(z, tensor(system.theta))
    theirs = systems.by_scipy(fn, system.start, method, gtol=1e-8, **options)
    ours = system.solve(solver(atol=1e-8, rtol=0.0))
    assert int(ours.iterations) <= most * theirs.nit + 3


@pytest.mark.parametrize("memory", [1, 3, 5, None])
def test_directions_are_those_of_the_dense_update(memory):
    """The inverse Hessian from the last pairs, or from all, and ``s.y / y.y`` times the identity.

    Of the newest pair where the memory is limited, and else of the first.
    """
    fn = lambda z: ROSENBROCK_10.fn(z, tensor(ROSENBROCK_10.theta))
    limited = {} if memory is None else {"memory": memory}
    kind = ims.LBFGS if limited else ims.BFGS
    z = steps_of(fn, tensor(ROSENBROCK_10.start), 7, kind, **limited)
    g = [grad(fn)(v) for v in z]
    for k in range(1, 7):
        B = None
        for i in range(max(0, k - memory) if memory else 0, k):
            s, y = z[i + 1] - z[i], g[i + 1] - g[i]
            if B is None:
                pair = (z[k] - z[k - 1], g[k] - g[k - 1]) if memory else (s, y)
                B = (pair[0] @ pair[1]) / (pair[1] @ pair[1]) * torch.eye(10, dtype=F64)
            V = torch.eye(10, dtype=F64) - torch.outer(y, s) / (s @ y)
            B = V.T @ B @ V + torch.outer(s, s) / (s @ y)
        step, expected = z[k + 1] - z[k], -B @ g[k]
        assert error(step / step.norm(), expected / expected.norm()) < 1e-9, k


def test_exact_searches_on_a_quadratic_are_conjugate_gradients():
    """So that n steps end at the minimum, whatever is remembered."""
    d, b = tensor([1.0, 3.0, 7.0, 20.0]), tensor([1.0, -1.0, 2.0, 1.0])
    fn = lambda z: 0.5 * (d * z**2).sum() - (b * z).sum()
    exact = ims.StrongWolfe(decrease=1e-9, curvature=1e-7)
    start = torch.zeros(4, dtype=F64)
    ours = [steps_of(fn, start, 4, ims.LBFGS, memory=m, line_search=exact) for m in (1, 4)]
    ours += [steps_of(fn, start, 4, kind, line_search=exact) for kind in LEARNING[1:]]
    x, r = np.zeros(4), b.numpy().copy()
    p = r.copy()
    for steps in range(1, 5):
        alpha = (r @ r) / (p @ (d.numpy() * p))
        x, new = x + alpha * p, r - alpha * d.numpy() * p
        p, r = new + (new @ new) / (r @ r) * p, new
        for values in ours:
            assert error(values[steps], torch.from_numpy(x)) < 1e-5, steps


def test_memory_is_bounded_and_more_of_it_takes_fewer_steps():
    steps = []
    for memory in (3, 20):
        with Watch() as watch:
            sol = ROSENBROCK_10.solve(ims.LBFGS(memory=memory))
        steps.append(int(sol.iterations))
        assert steps[-1] > 20 and watch.largest <= max(2 * memory * 10, memory**2, 10**2)
        assert error(sol.value, ROSENBROCK_10.solution) < 1e-9
    assert steps[1] < steps[0]


def test_objective_is_less_after_more_steps():
    values = [
        float(ROSENBROCK.fn(ROSENBROCK.solve(ims.LBFGS(rtol=None, max_steps=k)).value,
                            tensor(ROSENBROCK.theta)))
        for k in (0, 4, 7)
    ]  # fmt: skip
    assert values[0] > values[1] > values[2]


@minimizers
def test_a_small_gradient_is_reached_beside_a_large_value(solver):
    """Differences of the objective are noise near the minimum, and its slopes are not."""
    fn = lambda z: 1e4 + (torch.cosh(z - 1) * tensor([1.0, 7.0])).sum()
    # (a budget has no verdict to help it)
    for how in ({}, {"rtol": None, "max_steps": 40}):
        sol = ims.minimize(fn, torch.zeros(2, dtype=F64), solver=solver(**how))
        assert error(sol.value, torch.ones(2, dtype=F64)) < 1e-11


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@minimizers
def test_a_kink_is_no_minimum_that_it_claims(dtype, solver):
    fn, start = lambda z: (z - 1).abs().sum() + 0.1 * z.sum() ** 2, tensor([0.3, -2.0], dtype)
    sol = ims.minimize(fn, start, solver=solver(), on_failure="mask")
    assert int(sol.status) in (Status.STALLED, Status.SINGULAR) and bool(sol.value.isfinite().all())


def test_rounding_above_the_tolerance_is_said():
    """The gradient cannot be computed to 1e-12 beside slopes of 1e8 that cancel."""
    sol = ims.minimize(
        lambda z: 1e8 * ((z - math.pi) ** 2).sum() + 1e8 * ((z + math.e) ** 2).sum(),
        tensor([1.0, 2.0, 0.1]),
        solver=ims.LBFGS(rtol=0.0),
    )
    off = error(sol.value, torch.full((3,), (math.pi - math.e) / 2, dtype=F64))
    assert off < 1e-14 and 1e-17 < float(sol.error) < 1e-14


@pytest.mark.parametrize("solver", LEARNING)
def test_it_forgets_and_goes_on(solver):
    """A long first step ends before a wall, too near to it for the direction that it promises."""

    def fn(z):
        beyond = z - 1e4
        valley = torch.where(beyond < 1e-7, 2.0**22 * beyond**2 - 0.5 * beyond - 1e4, math.nan)
        return torch.where(beyond < 0, -z, valley)

    sol = ims.minimize(fn, tensor(0.0), solver=solver(f_atol=1e-4, rtol=0.0, max_trials=200))
    assert abs(float(sol.value) - 1e4 - 2.0**-24) < 1e-11


@minimizers
def test_it_leaves_a_saddle_that_it_does_not_start_in(solver):
    fn = lambda z: z[0] ** 4 - z[0] ** 2 + z[1] ** 2
    sol = ims.minimize(fn, tensor([1e-5, 1.0]), solver=solver())
    assert error(sol.value, tensor([0.5**0.5, 0.0])) < 1e-10


@pytest.mark.parametrize("off", [2e-16, 1e-13, 1e-10], ids=str)
@pytest.mark.parametrize("power", [1, 2, -2], ids=["line", "bowl", "hill"])
@pytest.mark.parametrize("solver", [ims.ProjectedNewton(), ims.LBFGSB()], ids=["Newton", "LBFGSB"])
def test_a_start_next_to_bounds_is_brought_to_them(solver, power, off):
    """However near, it is no minimum, though steps to one drown in rounding."""
    fn = lambda z: math.copysign(1, power) * (z ** abs(power)).sum()
    lo = tensor([0.9, 0.7]) if power > 0 else tensor([-0.9, -0.7])
    sol = ims.minimize(fn, lo + off, solver=solver, bounds=(lo, 2.0 if power > 0 else 0.5))
    assert torch.equal(sol.value, lo) and not bool(sol.degenerate)


# -- Newton by conjugate gradients, and in a region -----------------------------------------------

SADDLES = {
    "double-well": lambda z: z[0] ** 4 - z[0] ** 2 + z[1] ** 2,
    "double-well-flat": lambda z: z[0] ** 4 - 1e-4 * z[0] ** 2 + z[1] ** 2,
    "double-well-steep": lambda z: 1e3 * (z[0] ** 4 - z[0] ** 2) + z[1] ** 2,
    "monkey": lambda z: z[0] ** 3 - 3 * z[0] * z[1] ** 2 + (z**2).sum() ** 2,
    "hill": lambda z: 0.25 * (z**4).sum() - 0.5 * (z**2).sum() + 0.1 * z[0] * z[1],
}


@pytest.mark.parametrize("name", SADDLES)
@pytest.mark.parametrize("start", [[1e-2, 1.0], [1e-6, 1e-3], [-1e-5, 2e-5]], ids=str)
@pytest.mark.parametrize("solver", [ims.NewtonCG, ims.TrustRegion])
def test_a_minimum_is_found_from_beside_a_saddle(name, start, solver):
    fn = SADDLES[name]
    sol = ims.minimize(fn, tensor(start), solver=solver())
    assert torch.linalg.eigvalsh(hessian(fn)(sol.value)).min() > 0
    assert int(sol.iterations) < 60
    # SciPy finds its own minimum, the same or a mirrored one: the values agree
    theirs = systems.by_scipy(fn, start, "trust-exact", gtol=1e-12)
    assert abs(float(fn(sol.value)) - theirs.fun) < 1e-9 * max(1, abs(theirs.fun))


def test_how_exact_a_step_is_is_a_lanes_own():
    """Steps of lanes of different gradients, which ask for different accuracies."""
    d, scales = torch.logspace(0, 2, 12, dtype=F64), tensor([1e-6, 1e2, 1e-3, 1.0, 1e-9])
    fn = lambda z, a: a * (0.5 * d * z**2 - z).sum()
    step = lambda a: ims.minimize(
        fn, torch.zeros(12, dtype=F64), (a,), solver=ims.NewtonCG(rtol=None, max_steps=1)
    )
    batch = vmap(step)(scales).value
    for i, a in enumerate(scales):
        # sums of one lane have another order, and by the last of 12 directions of conjugate
        # gradients the loss of orthogonality leaves 1e-7 of a residual; a step more or less, 1e-3
        assert error(batch[i], step(a).value) < 1e-6


@pytest.mark.parametrize("curvature", [1e-3, 1.0, 1e3])
def test_the_distance_from_a_saddle_doubles(curvature):
    """Whatever the curvature."""
    fn = lambda z: curvature * (z[1] ** 2 - z[0] ** 2)
    for k, z in enumerate(steps_of(fn, tensor([1e-6, 0.0]), 5, ims.NewtonCG)):
        assert error(z / 1e-6, tensor([2.0**k, 0.0])) < 1e-9


def test_a_quadratic_takes_no_more_products_than_unknowns():
    """One product with the Hessian for each step of conjugate gradients, no more."""
    d, z0, calls = torch.linspace(1, 9, 8, dtype=F64), torch.zeros(8, dtype=F64), []
    fn = lambda z: 1e-12 * (0.5 * z @ (torch.diag(d) @ z) - z.sum())
    for steps in range(7):
        with Watch() as watch:
            sol = ims.minimize(fn, z0, solver=ims.NewtonCG(rtol=None, max_steps=steps))
        calls.append(watch.calls["mv"])
    assert error(sol.value, 1 / d) < 1e-10
    # a product with the Hessian takes two with the diagonal; value and gradient there take three
    assert max(after - before for before, after in pairwise(calls)) <= 16 + 5


def in_region(H, g, radius):
    """Return the step of `TrustRegion` for ``g p + p H p / 2``, made from a start of that length.

    One unknown more is as long as the region, and has nothing to say.
    """
    n = len(g)
    fn = lambda z: (
        g @ z[:n]
        + 0.5 * z[:n] @ H @ z[:n]
        + 0.5 * H.diagonal().abs().max() * (z[n:] - radius).square().sum()
    )
    start = torch.cat([torch.zeros(n, dtype=F64), tensor([radius])])
    solver = ims.TrustRegion(rtol=None, max_steps=1)
    return ims.minimize(fn, start, solver=solver).value[:n]


@given(st.integers(0, 2**31), st.sampled_from([1e-3, 0.1, 1.0, 30.0]), st.integers(0, 2))
def test_a_step_is_the_least_of_the_model_in_the_region(seed, radius, hard):
    """By the conditions of Moré and Sorensen; in the hard case too, where the gradient is
    orthogonal to the lowest curvature."""
    generator = torch.Generator().manual_seed(seed)
    H, g = (torch.randn(*shape, generator=generator, dtype=F64) for shape in ((5, 5), (5,)))
    # (a unit diagonal: the region is a ball)
    H = H + H.mT
    H = H - torch.diag(H.diagonal()) + torch.eye(5, dtype=F64)
    if hard == 2:  # to the last bit
        H, g[0] = torch.diag(tensor([-1.0, 1.0, 1.0, 1.0, 1.0])), 0.0
    values, vectors = torch.linalg.eigh(H)
    if hard == 1:
        g = g - (g @ vectors[:, 0]) * vectors[:, 0]
    p = in_region(H, g, radius)
    size = float(p.norm())
    multiplier = max(0.0, -float(p @ (g + H @ p)) / size**2)
    # (each is solved to rounding, times the condition of what is nearly singular)
    off = float((g + H @ p + multiplier * p).norm())
    assert off < 1e-6 * float(g.norm() + values.abs().max() * size)
    assert multiplier >= -float(values[0]) - 1e-6
    assert size <= 1.11 * radius and (size >= 0.999 * radius or multiplier < 1e-8)


@pytest.mark.parametrize(
    "system", [ROSENBROCK, BEALE, systems.LOGISTIC, systems.HIMMELBLAU], ids=str
)
@given(st.lists(st.integers(-20, 20), min_size=4, max_size=4))
def test_units_of_single_unknowns_change_no_step_of_a_region(system, powers):
    start = tensor(system.start)
    units = torch.exp2(tensor(powers[: len(start)]))
    fn = lambda z: system.fn(z / units, tensor(system.theta))
    plain = system.solve(ims.TrustRegion())
    sol = ims.minimize(fn, start * units, solver=ims.TrustRegion())
    # (the verdict is one on the norm of all unknowns, in which units count)
    assert abs(int(sol.iterations) - int(plain.iterations)) <= 1
    assert error(sol.value / units, plain.value) < 1e-6


@pytest.mark.parametrize("curvature", [1.0, -1.0])
def test_steps_by_products_end_at_the_edge_of_the_region(curvature):
    """Beyond 512 unknowns; a step that stays within is that of Newton, but for the forcing term."""
    d = curvature * torch.linspace(1, 2, 600, dtype=F64)
    fn = lambda z: 0.5 * (d * z**2).sum() - z.sum()
    start = torch.full((600,), 2.0, dtype=F64)
    step = lambda radius: (
        ims.minimize(fn, start, solver=ims.TrustRegion(radius, rtol=None, max_steps=1)).value
        - start
    )
    reach = float(start.norm())
    assert abs(float(step(0.1).norm()) - 0.1 * reach) < 1e-10 * reach
    if curvature > 0:
        assert error(step(10.0), 1 / d - start) < 0.3 * float((1 / d - start).norm())
    else:
        assert abs(float(step(10.0).norm()) - 10 * reach) < 1e-9 * reach


CHAINS = {
    "standard": lambda i: torch.where(i % 2 == 0, -1.2, 1.0),
    "first": lambda i: torch.where(i == 0, -1.2, 1.0),
    "zeros": lambda i: 0.0 * i,
    "far": lambda i: -1.2 - 0.0 * i,
}


@pytest.mark.parametrize("name", CHAINS)
def test_chained_rosenbrock_by_default(name):
    fn = lambda z: (100 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2).sum()
    start = CHAINS[name](torch.arange(100)).to(F64)
    sol = ims.minimize(fn, start)
    assert bool(sol.converged) and float(sol.error) < 1e-10
    # there are two minima: SciPy's methods too end in one or the other
    assert torch.linalg.eigvalsh(hessian(fn)(sol.value)).min() > 0 and float(fn(sol.value)) < 4
    assert float(sol.residual) < 1e-10
