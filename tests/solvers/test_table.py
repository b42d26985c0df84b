"""What every solver must do, on every system of its row in SOLVERS."""

import itertools
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.testing import assert_implicit_gradients
from tests.solvers.systems import CONSTRAINED, F32, F64, PROX, Watch, entry, error, marked, tensor
from tests.solvers.table import SOLVERS
from tests.test_operations import Count

ONE = (ims.Bisection, ims.Chandrupatla, ims.Steffensen)  # they solve for one unknown
FAILED = [s for s in Status if s not in (Status.CONVERGED, Status.BUDGET)]
BOUNDED = "minimize with bounds", "least_squares with bounds"
EQUATIONS = ("root", "fixed_point", "minimize", "least_squares", PROX, CONSTRAINED, *BOUNDED)


def base(kind):
    return kind.removesuffix(" with bounds").removesuffix(" with constraints")


def over(pick, check=""):
    """Parametrize by rows and what ``pick`` finds in them, unless the row does ``without``."""
    pairs = [(row, one) for row in SOLVERS if check not in row.without for one in pick(row)]
    names = [" ".join(map(str, one)) if isinstance(one, tuple) else one for _, one in pairs]
    ids = [f"{row}-{name}" for (row, _), name in zip(pairs, names, strict=True)]
    return pytest.mark.parametrize("row, case", pairs, ids=ids)


costly = over(lambda row: row.tried[: row.costly])
first = over(lambda row: row.tried[:1])
kinds = over(lambda row: row.kinds if row.main else row.kinds[:1])
rows = pytest.mark.parametrize("row", SOLVERS, ids=str)


def lanes_of(system, count=5, bad=2):
    """Return starts and parameters of lanes, one of which is NaN."""
    generator = torch.Generator().manual_seed(0)
    start, theta = tensor(system.start), tensor(system.theta)
    thetas = theta * (1 + 0.05 * torch.rand(count, *theta.shape, generator=generator, dtype=F64))
    thetas[bad] *= math.nan
    scale = torch.linspace(0.9, 1.1, count, dtype=F64).reshape(count, *(1,) * start.dim())
    return start * scale, thetas


@over(lambda row: [(s, F64) for s in row.tried] + [(s, F32) for s in row.tried[:4]])
def test_value(row, case):
    """It is SciPy's, or the known one; nothing is warned of."""
    case, dtype = case
    loose = dtype == F32 and case.loose is not None
    solver = replace(row.solver, atol=case.loose, rtol=0.0) if loose else row.solver
    sol = case.solve(solver, dtype, on_failure="warn")
    assert sol.value.dtype == sol.residual.dtype == dtype
    assert bool(sol.converged) and int(sol.status) == Status.CONVERGED
    assert error(sol.value, case.solution) < case.accuracy(dtype)


@costly
def test_derivative(row, case):
    """In both modes it is the implicit function's."""
    exact = case.derivative
    for mode in (jacrev, jacfwd):
        ours = mode(lambda t: case.solve(row.solver, theta=t).value)(tensor(case.theta))
        # the value's error, times the change of the derivative with the value
        assert error(ours.reshape(exact.shape), exact) < 100 * case.accuracy(F64)


@costly
def test_lanes_equal_each_alone(row, case):
    """Under vmap and as native lanes, compacted or not, beside a lane with NaN."""
    z0, thetas = lanes_of(case)

    def solve(z0, theta, solver=row.solver):
        return case.solve(solver, z0=z0, theta=theta, on_failure="mask")

    def native(fn, thetas, in_dims):
        options = {"solver": row.solver, "on_failure": "mask", "batch_dims": 1, "in_dims": in_dims}
        return case.entry(fn, z0, (thetas,), **options)

    static = replace(row.solver, compact=False)
    batches = [vmap(solve)(z0, thetas), vmap(lambda z, t: solve(z, t, static))(z0, thetas)]
    if row.main:
        batches.append(native(vmap(case.fn), thetas, (0,)))
    if row.main and z0.dim() == 1 and case.kind in ("root", "fixed_point"):
        batches.append(native(case.fn, thetas.T, None))  # lanes that cannot be selected
    for i in range(5):
        alone = solve(z0[i], thetas[i])
        for batch in batches:
            expected = Status.NONFINITE if i == 2 else Status.CONVERGED
            assert int(batch.status[i]) == int(alone.status) == expected, i
            apart = abs(int(batch.iterations[i]) - int(alone.iterations))
            assert apart <= 1, (i, apart)
            # batched kernels round differently; a step more or less is within the tolerance
            bound = 1e-10 if apart == 0 else case.accuracy(F64)
            assert error(batch.value[i], alone.value) < max(bound, 1e-10), i


def growing(z, slope, w):
    """The map has no fixed point where ``slope`` is 1, not even one by rounding."""
    return slope * z + (slope == 1) * 0.5 * z.abs() + w * (1 + 0.1 * torch.sin(z) ** 2)


GROWING = {
    "root": lambda z, slope, w: z - growing(z, slope, w),
    "continuation": lambda z, t, slope, w: z - t * growing(z, slope, w),
    "fixed_point": growing,
    "minimize": lambda z, slope, w: (0.5 * (1 - slope) * z**2 - w * (z - 0.1 * torch.cos(z))).sum(),
    "least_squares": lambda z, slope, w: torch.cat(
        [2 * (z - growing(z, slope, w)), 0.1 * z / slope]
    ),
}

GROWING[PROX] = GROWING["minimize"]


@over(lambda row: row.kinds if row.main else row.kinds[:1], "bad")
def test_bad_lanes_leave_no_trace(row, case):
    """Lanes with NaN, and without a solution, fail, and leave nothing in a shared gradient."""
    slopes = tensor([0.3, math.nan, 0.0 if base(case) == "least_squares" else 1.0, 0.5])
    most = 100 if case in ("root", "fixed_point") else 400
    solver, w = replace(row.solver, max_steps=most), tensor(0.7).requires_grad_()

    def solve(slope, w, on_failure="raise"):
        z0 = torch.full((1 if type(solver) in ONE else 2,), 0.5, dtype=F64)
        options = {"solver": solver, "on_failure": on_failure}
        return entry(case)(GROWING[base(case)], z0, (slope, w), **options)

    batch = vmap(lambda s: solve(s, w, "mask"))(slopes)
    assert batch.converged.tolist() == [True, False, False, True]
    assert int(batch.status[1]) == Status.NONFINITE and int(batch.status[2]) in FAILED
    assert bool(torch.isfinite(batch.value[2]).all())
    (ours,) = torch.autograd.grad(batch.value.sum(), w)
    good = sum(solve(slopes[i], w).value.sum() for i in (0, 3))
    (exact,) = torch.autograd.grad(good, w)
    assert error(batch.value[[0, 3]].sum(), good) < 1e-9 and error(ours, exact) < 1e-9


@over(lambda row: row.tried[:2], "budget")
def test_budget(row, case):
    """As many steps as asked for, whatever comes of them; at the solution they stay there."""

    def solve(steps, z0=None):
        return case.solve(replace(row.solver, rtol=None, max_steps=steps), z0=z0)

    sol = solve(3)
    assert int(sol.iterations) == 3 and int(sol.status) == Status.BUDGET
    assert not bool(sol.converged)
    none = solve(0)
    assert int(none.iterations) == 0 and torch.equal(none.value, tensor(case.start))
    sol = solve(12, case.solution)
    assert int(sol.iterations) == 12 and int(sol.status) == Status.BUDGET
    assert error(sol.value, case.solution) < 1e-7  # steps down are judged to sqrt(eps) only
    if not row.memory:
        z = tensor(case.start)
        for _ in range(3):
            z = solve(1, z).value
        assert error(solve(3).value, z) < 1e-12


# which lanes need new factors, or a decomposition: the answer costs less than these do; and what
# solves linear systems in a loop has the questions of that loop
ASKED = {"Broyden": 1, "NewtonDogleg": 1, "Dogleg": 1, "LevenbergMarquardt": 2, "TrustRegion": 2}
ASKED |= {"ProjectedNewton": 1, "FilterInteriorPoint": 1, "NewtonCG": 4}


@pytest.mark.parametrize("row", [row for row in SOLVERS if row.main], ids=str)
def test_a_step_asks_the_host_nothing(row):
    """For an answer a GPU would be waited for; the loop asks as ``check_every`` says."""
    z0, thetas = lanes_of(row.systems[0], 3, bad=slice(0))

    def questions(steps):
        options = {"rtol": None, "max_steps": steps, "check_every": 1000, "compact": False}
        solver = replace(row.solver, **options)
        with Count() as count, torch.no_grad():
            vmap(lambda z, t: row.systems[0].solve(solver, z0=z, theta=t, on_failure="mask").value)(
                z0, thetas
            )
        return count.questions

    assert questions(12) - questions(6) <= 6 * ASKED.get(row.name, 0)


@first
def test_too_few_steps(row, case):
    solver = replace(row.solver, max_steps=1)
    with pytest.raises(ims.ConvergenceError, match="MAX_STEPS"):
        case.solve(solver)
    with pytest.warns(ims.ConvergenceWarning, match="MAX_STEPS"):
        warned = case.solve(solver, on_failure="warn")
    for sol in (warned, case.solve(solver, on_failure="mask")):
        assert int(sol.status) == Status.MAX_STEPS and int(sol.iterations) == 1
        assert not bool(sol.converged) and bool(torch.isfinite(sol.value).all())


@over(lambda row: row.tried[:2], "start")
def test_start_that_is_the_solution(row, case):
    """At most one step is made, to where it is as good."""
    z = case.solve(row.solver).value
    again = case.solve(row.solver, z0=z)
    assert int(again.iterations) <= 1 and bool(again.converged)
    assert error(again.value, z) < case.accuracy(F64)


NOT_FINITE = {
    "root": lambda z: torch.log(z) + 0.5 * (z - 1),
    "continuation": lambda z, t: torch.log(z) + 0.5 * t * (z - 1),
    "fixed_point": lambda z: 1 + 0.5 * torch.log(z),
    "minimize": lambda z: (torch.log(z) ** 2 + 0.1 * (z - 1) ** 2).sum(),
    "least_squares": lambda z: torch.cat([torch.log(z), 0.3 * (z - 1)]),
}
NOT_FINITE[PROX] = NOT_FINITE["minimize"]


@kinds
def test_start_where_the_function_is_not_finite(row, case):
    z0 = tensor([[2.0], [-1.0], [math.nan], [math.inf]])
    solve = entry(case)
    sol = vmap(lambda z: solve(NOT_FINITE[base(case)], z, solver=row.solver, on_failure="mask"))(z0)
    assert sol.status.tolist() == [Status.CONVERGED, *[Status.NONFINITE] * 3]
    assert sol.iterations[1:].tolist() == [0, 0, 0]
    # the gradient of the objective falls below the tolerance, the value is as near
    assert error(sol.value[0], tensor([1.0])) < 1e-10 and float(sol.value[1]) == -1


NO_SOLUTION = {
    "root": lambda z: z**2 + 1,
    "fixed_point": lambda z: z + 1 + 0.5 * z.abs() + 0.1 * torch.cos(z),
    "minimize": lambda z: (0.1 * torch.sin(z) - z).sum(),
}
NO_SOLUTION[PROX] = NO_SOLUTION["minimize"]


@over(lambda row: [kind for kind in row.kinds if base(kind) in NO_SOLUTION])
def test_equation_without_a_solution_fails_honestly(row, case):
    z0 = tensor([1.3] if type(row.solver) in ONE else [1.3, 0.7])
    solver = replace(row.solver, max_steps=60)
    sol = entry(case)(NO_SOLUTION[base(case)], z0, solver=solver, on_failure="mask")
    assert int(sol.status) in FAILED and not bool(sol.converged)
    assert float(sol.residual) >= 0.9 - 1e-12 or int(sol.status) == Status.BRACKET


@over(lambda row: [s for s in row.tried if row.main and tensor(s.start).dim() == 1][:1], "tree")
def test_unknown_may_be_a_tree(row, case):
    z0 = tensor(case.start)

    def as_tree(fn):
        def on_tree(z, *args):
            out = fn(torch.cat([z["a"], z["b"].reshape(-1)]), *args)
            return {"a": out[:1], "b": out[1:].reshape(1, -1)} if out.shape == z0.shape else out

        return on_tree

    tree = lambda t: {"a": t[:1], "b": t[1:].reshape(1, -1)}
    options = {"solver": row.solver}
    if case.prox is not None:
        options["prox"] = as_tree(case.prox)
    if case.bounds is not None:
        options["bounds"] = [tree(side) for side in case.tight()]
    for name, fn in (case.constraints or {}).items():
        options[name] = as_tree(fn)
    sol = case.entry(as_tree(case.fn), tree(z0), (tensor(case.theta),), **options)
    plain = case.solve(row.solver)
    assert int(sol.iterations) == int(plain.iterations) and sol.value["b"].shape[0] == 1
    assert error(torch.cat([sol.value["a"], sol.value["b"][0]]), plain.value) < 1e-10


@pytest.mark.parametrize("row", [row for row in SOLVERS if row.order], ids=str)
def test_order_of_convergence(row):
    """``e_k+1 / e_k`` is constant, falls, or is at most some multiple of ``e_k``."""
    case, errors = row.systems[0], []
    for steps in range(1, 40):
        value = case.solve(replace(row.solver, rtol=None, max_steps=steps)).value
        errors.append(float((value - case.solution).norm()))
        if errors[-1] < 1e-13:
            break
    # neither far away nor lost in rounding
    pairs = [(a, b) for a, b in itertools.pairwise(errors) if a < 0.3 and b > 1e-14]
    ratios = [b / a for a, b in pairs]
    assert len(pairs) > 1
    if row.order == 1:
        assert max(ratios[-5:]) < 1 and max(ratios[-5:]) < 1.5 * min(ratios[-5:])
    elif row.order == 2:
        assert all(b <= 20 * a**2 + 1e-14 for a, b in pairs)
    else:
        assert ratios[-1] < 0.3 * max(ratios)


# -- what a lane costs, and what judges it -------------------------------------------------------


def rotation(z, a):
    """Return a map that Anderson's window of 1 does not solve at once: slopes a and -a / 2."""
    return torch.stack([a, -0.5 * a], -1) * z.flip(-1) + 1 + 0.1 * a.unsqueeze(-1) * z.sin()


def quartic(z, a):
    return torch.where(a < 1, 0.5 * (z**2).sum(-1), ((z - 1) ** 4).sum(-1))


def cubes(z, a):
    return torch.where(a.unsqueeze(-1) < 1, 2 * z - 1, (z - 1) ** 3)


# by the names of rows: what is quick at the first parameter and slow at the second, and the start
STRAGGLERS = {
    "FixedPointIteration": ("fixed_point", lambda z, a: a * z + 1, 0.3, 0.91, 3.0),
    "GradientDescent": ("minimize", lambda z, a: (0.5 * (1 - a) * z**2 - z) / 0.15, 0.3, 0.91, 3.0),
    "Newton": ("root", lambda z, a: torch.where(a > 0.5, (z - 1) ** 3, 2 * z - 2), 0.3, 0.9, 3.0),
    "Anderson-1": ("fixed_point", rotation, 0.0, 1.3, [30.0, 45.0]),
    "NewtonCG": ("minimize", quartic, 0.0, 2.0, [30.0, 45.0]),
    "GaussNewton": ("least_squares", cubes, 0.5, 1.5, [30.0, 45.0]),
}


@pytest.mark.parametrize("way", ["vmap", "in_dims", "grid", "mixed"])
@pytest.mark.parametrize("name", STRAGGLERS)
def test_straggler_does_not_cost_full_batch_steps(name, way):
    """One lane of 2,048 takes many times the steps, and the others do not wait for it."""
    kind, fn, quick, slow, start = STRAGGLERS[name]
    solver = next(row.solver for row in SOLVERS if row.name == name)
    parameters = torch.full((2048,), quick, dtype=F64)
    parameters[777] = slow
    start = tensor(start).expand(2048, *tensor(start).shape)

    def solve(z, a, **options):
        return getattr(ims, kind)(marked(fn), z, (a,), solver=solver, **options)

    alone = {}
    for i in (0, 777):
        with Watch() as watch:
            sol = solve(start[i], parameters[i])
        alone[i] = int(sol.iterations), watch.numbers["erfc"]
    assert alone[777][0] >= 10 * alone[0][0]
    if way in ("grid", "mixed"):
        start, parameters = (t.reshape(32, 64, *t.shape[1:]) for t in (start, parameters))
    lanes = {"batch_dims": 2 if way == "grid" else 1, "in_dims": (0,)}
    run = lambda z, a: solve(z, a, **({} if way == "vmap" else lanes))
    with Watch() as watch:
        sol = (vmap(run) if way in ("vmap", "mixed") else run)(start, parameters)
    steps = 2047 * (alone[0][0] + 1) + alone[777][0] + 1
    assert int(sol.iterations.sum()) <= 1.01 * steps and bool(sol.converged.all())
    # under vmap, one call more looks for captured tensors
    more = start.numel() if way in ("vmap", "mixed") else 0
    assert watch.numbers["erfc"] - more <= 1.3 * (2047 * alone[0][1] + alone[777][1])


def test_norm_is_the_one_that_judges():
    """The largest entry instead of the root mean square."""
    z0 = torch.full((100,), 0.5, dtype=F64)
    z0[0] = 10.0
    largest = {"norm": lambda lanes: lanes.abs().amax(-1), "atol": 1e-3, "rtol": 0.0}
    sol = ims.fixed_point(lambda z: 0.5 * z + 0.5, z0, solver=ims.FixedPointIteration(**largest))
    assert torch.allclose(sol.residual, 0.5 * (sol.value - 1).abs().max(), rtol=1e-12)
    assert int(sol.iterations) == math.ceil(math.log2(9 / 1e-3))


# -- small equations for the library's own check -------------------------------------------------

A = tensor([0.7, -0.4])
MIX = tensor([[0.2, -0.1], [0.3, 0.1]])
SMALL = {
    "root": lambda z, a: z + 0.5 * torch.tanh(MIX @ z) * a[0] - a,
    "fixed_point": lambda z, a: torch.tanh(MIX @ z * a[0] + a),
    "minimize": lambda z, a: (
        0.25 * (z**4).sum() + (1 + a[0] ** 2) * (z**2).sum() + torch.sin(z.sum()) - (z * a).sum()
    ),
    "least_squares": lambda z, a: torch.cat(
        [SMALL["root"](z, a), 0.3 * (z.sum(-1, keepdim=True) - a[1])]
    ),
}
SCALAR = {
    "root": lambda z, a: z + 0.3 * torch.sin(z) * a[0] - a[1],
    "fixed_point": lambda z, a: 0.4 * torch.cos(z) * a[0] + a[1],
}


def thoroughly(row):
    """Return kinds to check every derivative of; variants differ in the factors they hand over."""
    if row.kinds[0] not in SMALL:
        return []
    if not row.main:
        return row.kinds[:1] if row.name.startswith("Newton-") and row.costly > 1 else []
    return row.kinds[:1] if base(row.kinds[0]) == "minimize" else row.kinds[:2]


@over(thoroughly)
def test_gradients(row, case):
    """Every derivative, of second order and in batches too, by the library's own check."""
    one = type(row.solver) in ONE
    fn, z0 = (SCALAR, tensor(0.1)) if one else (SMALL, tensor([0.1, -0.2]))
    if case == PROX:
        solve = lambda a: entry(case)(fn["minimize"], z0, (a,), solver=row.solver).value
        assert_implicit_gradients(solve, args=(A,))
        return
    if case == CONSTRAINED:
        held = {"inequalities": lambda z, a: 0.1 * a[:1] - z[1:], "solver": row.solver}
        solve = lambda a: ims.minimize(fn["minimize"], z0, (a,), **held).value
        assert_implicit_gradients(solve, args=(A,))
        return
    how = {"kind": base(case), "solver": row.solver}
    if case in BOUNDED:
        how["bounds"] = tensor([-1.0, 0.1]), None  # the second is active
    assert_implicit_gradients(fn[base(case)], z0, (A,), **how)


ADJOINTS = [
    ("root", ims.ImplicitAdjoint(ims.GMRES())),
    ("fixed_point", ims.ImplicitAdjoint(ims.Neumann(max_steps=500))),
    ("minimize", ims.ImplicitAdjoint(ims.CG())),
    ("minimize", ims.ImplicitAdjoint(ims.Cholesky())),
    ("least_squares", ims.ImplicitAdjoint(ims.CG(), preconditioner=ims.Jacobi())),
]


@pytest.mark.parametrize(
    "kind, adjoint",
    ADJOINTS,
    ids=lambda v: v if isinstance(v, str) else type(v.linear_solver).__name__,
)
def test_adjoints(kind, adjoint):
    z0 = tensor([0.1, -0.2])
    assert_implicit_gradients(SMALL[kind], z0, (A,), kind=kind, adjoint=adjoint)


# -- solvers as values ---------------------------------------------------------------------------

VALUES = [
    *dict.fromkeys(row.solver for row in SOLVERS if row.name != "own"),
    *(ims.LU(), ims.Cholesky(), ims.Diagonal(), ims.CG(), ims.CG(rtol=None), ims.GMRES()),
    *(ims.Neumann(), ims.Jacobi(), ims.ImplicitAdjoint(), ims.ImplicitAdjoint(ims.CG(rtol=1e-3))),
]


@pytest.mark.parametrize("solver", VALUES, ids=lambda solver: type(solver).__name__)
def test_solver_is_a_value(solver):
    copy = pickle.loads(pickle.dumps(solver))
    assert copy == solver and hash(copy) == hash(solver)
    assert [other == solver for other in VALUES].count(True) == 1
    assert len({solver, copy, *VALUES}) == len(VALUES)
    with pytest.raises((AttributeError, TypeError)):
        solver.rtol = 1.0
    for row in SOLVERS:
        if row.main and row.solver is solver:
            case = row.systems[0]
            assert torch.equal(case.solve(copy).value, case.solve(solver).value)


def test_every_solver_has_a_row():
    tested = {type(row.solver).__name__ for row in SOLVERS} - {"HeavyBall"}
    assert tested == {name for name in ims.__all__ if getattr(getattr(ims, name), "solves", ())}


SMALLEST = {
    kind: next(s for r in SOLVERS for s in r.systems if s.kind == kind) for kind in EQUATIONS
}


@pytest.mark.parametrize("kind", EQUATIONS)
@rows
def test_equations_of_another_kind_are_refused(row, kind):
    if kind in {k for r in SOLVERS if type(r.solver) is type(row.solver) for k in r.kinds}:
        return
    with pytest.raises(ValueError, match=f"solver={type(row.solver).__name__}.*{kind}"):
        SMALLEST[kind].solve(row.solver)
