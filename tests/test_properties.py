"""Drawn problems, every solver and adjoint: right within a bound, or flagged.

A new solver is one line in ``CASES``, a new linear solver one in ``LINEAR``. Nothing of the library
judges the results: the root of a drawn equation is known, and its derivative is the implicit
formula, in NumPy, with slopes by complex steps, which round but do not truncate.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp, vmap
from torch.utils._pytree import tree_leaves, tree_map

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.testing import strategies as draws

F32, F64 = torch.float32, torch.float64
EXACT, STEP = ims.ImplicitAdjoint(), 1e-30


@dataclass(frozen=True)
class Case:
    """A solver and an adjoint for one kind of equation.

    Up to the condition ``reach``, and not far from the unit of length, the solver has to converge:
    a solver that flags everything is no solver. ``inverse`` is what the adjoint makes of the
    Jacobian's inverse; ``steps`` is the length of the steps, for an adjoint that unrolls them.
    """

    kind: str
    name: str
    solver: Any
    adjoint: Any = EXACT
    reach: float = 100.0
    inverse: Callable = np.linalg.inv
    steps: float | None = None
    options: tuple = ()

    def __str__(self):
        return f"{self.kind}-{self.name}"


def neumann_sum(terms):
    def inverse(J):
        G = np.eye(len(J)) - J
        return sum(np.linalg.matrix_power(G, k) for k in range(terms))

    return inverse


def neumann(terms, **how):
    return ims.ImplicitAdjoint(ims.Neumann(max_steps=terms, **how))


# a budget that well-conditioned problems keep: the others are flagged, and cost no more
SPARSE = ims.SuperLU()  # with a pattern that is full
PICARD, DESCENT = ims.FixedPointIteration(max_steps=150), ims.GradientDescent(1.0, max_steps=150)
# nothing is held, so that the condition is the gradient's, in units of z
FREE = (("prox", lambda v, *_: 1.0 * v),)
IDLE = (("inequalities", lambda z, *_: tree_map(lambda t: -1 - t**2, z)),)
CASES = [
    Case("root", "Newton", ims.Newton()),
    Case("root", "Newton, reuse", ims.Newton(reuse=0.5)),
    Case("root", "Chord", ims.Chord(max_steps=150), reach=1.0),
    Case("root", "Broyden", ims.Broyden(), reach=3.0),
    Case("root", "NewtonDogleg", ims.NewtonDogleg()),
    Case("root", "Dogleg", ims.Dogleg()),
    Case("root", "LevenbergMarquardt", ims.LevenbergMarquardt()),
    Case("root", "Newton-GMRES", ims.Newton(linear_solver=ims.GMRES())),
    Case("root", "Newton-SuperLU", ims.Newton(linear_solver=SPARSE), ims.ImplicitAdjoint(SPARSE)),
    Case("root", "Newton, GMRES adjoint", ims.Newton(), ims.ImplicitAdjoint(ims.GMRES())),
    Case("fixed_point", "Anderson", ims.Anderson()),
    Case("fixed_point", "Newton", ims.Newton()),
    Case("fixed_point", "Dogleg", ims.Dogleg()),
    Case("fixed_point", "Aitken", ims.Aitken(max_steps=300), reach=3.0),
    Case("fixed_point", "Picard", PICARD, reach=3.0),
    Case("fixed_point", "damped", ims.FixedPointIteration(damping=0.7), reach=10.0),
    Case("fixed_point", "GMRES adjoint", ims.Anderson(), ims.ImplicitAdjoint(ims.GMRES())),
    Case("fixed_point", "Neumann adjoint", ims.Anderson(), neumann(200), reach=10.0),
    Case("fixed_point", "3 terms", ims.Anderson(), neumann(3, rtol=None), inverse=neumann_sum(3)),
    Case("fixed_point", "one step", ims.Anderson(), ims.OneStepAdjoint(), inverse=neumann_sum(1)),
    Case("fixed_point", "unrolled", PICARD, ims.UnrolledAdjoint(), reach=3.0, steps=1.0),
    Case("minimize", "NewtonCG", ims.NewtonCG()),
    Case("minimize", "Newton", ims.Newton()),
    Case("minimize", "Newton-SuperLU", ims.Newton(linear_solver=SPARSE)),
    Case("minimize", "GradientDescent", DESCENT, reach=3.0),
    Case("minimize", "LBFGS", ims.LBFGS(), reach=10.0),
    Case("minimize", "BFGS", ims.BFGS(), reach=10.0),
    Case("minimize", "NonlinearCG", ims.NonlinearCG(), reach=10.0),
    Case("minimize", "TrustRegion", ims.TrustRegion()),
    Case("minimize", "line search", replace(DESCENT, line_search=ims.Backtracking()), reach=3.0),
    Case("minimize", "CG adjoint", ims.NewtonCG(), ims.ImplicitAdjoint(ims.CG())),
    Case("minimize", "Cholesky adjoint", ims.NewtonCG(), ims.ImplicitAdjoint(ims.Cholesky())),
    Case("minimize", "FISTA", ims.FISTA(), reach=10.0, options=FREE),
    Case("minimize", "ProximalGradient", ims.ProximalGradient(), reach=10.0, options=FREE),
    Case("minimize", "FilterInteriorPoint", ims.FilterInteriorPoint(), reach=10.0, options=IDLE),
    Case("minimize", "unrolled", DESCENT, ims.UnrolledAdjoint(), reach=3.0, steps=1.0),
    Case("least_squares", "GaussNewton", ims.GaussNewton()),
    Case("least_squares", "LevenbergMarquardt", ims.LevenbergMarquardt()),
    Case("least_squares", "Dogleg", ims.Dogleg()),
    Case("least_squares", "Newton", ims.Newton()),
    Case("least_squares", "GradientDescent", DESCENT, reach=3.0),
    Case("least_squares", "GMRES adjoint", ims.GaussNewton(), ims.ImplicitAdjoint(ims.GMRES())),
]


BOUNDED = [
    Case("minimize", "ProjectedNewton", ims.ProjectedNewton()),
    Case("minimize", "LBFGSB", ims.LBFGSB(), reach=10.0),
    Case("minimize", "GradientDescent", DESCENT, reach=3.0),
    Case("least_squares", "LevenbergMarquardt", ims.LevenbergMarquardt()),
    Case("least_squares", "LBFGSB", ims.LBFGSB(), reach=3.0),
]


@dataclass(frozen=True)
class LinearCase:
    """A linear solver and the operators that it is for; ``reach`` as in `Case`."""

    name: str
    solver: Any
    operators: Callable
    reach: float = 100.0

    def __str__(self):
        return self.name


def near_identity(**bounds):
    """Draw ``I - G`` with a contraction ``G``, whose Neumann series converges."""

    def build(drawn):
        n, share = len(drawn.matrix), (bounds["condition"] - 1) / (bounds["condition"] + 1)
        matrix = torch.eye(n, dtype=drawn.matrix.dtype) - share * drawn.matrix
        return draws.DrawnOperator(matrix, (), (1 + share) / (1 - share))

    return draws.well_conditioned(**bounds).map(build)


LINEAR = [
    LinearCase("LU", ims.LU(), draws.well_conditioned),
    LinearCase("LU-nonsymmetric", ims.LU(), draws.nonsymmetric),
    LinearCase("LU-indefinite", ims.LU(), draws.symmetric_indefinite),
    LinearCase("Cholesky", ims.Cholesky(), draws.positive_definite),
    LinearCase("Cholesky-banded", ims.Cholesky(), draws.banded),
    LinearCase("CG", ims.CG(), draws.positive_definite),
    LinearCase("CG-indefinite", ims.CG(), draws.symmetric_indefinite, reach=0.0),
    LinearCase("GMRES", ims.GMRES(), draws.well_conditioned),
    LinearCase("GMRES-nonsymmetric", ims.GMRES(), draws.nonsymmetric),
    LinearCase("Neumann", ims.Neumann(), near_identity, reach=10.0),
    LinearCase("default", None, draws.nonsymmetric),
]


# each case gets its share of the profile's examples: 3 draws of up to 6 lanes in CI, 20 of up to 24
# at night; every lane is a problem with an operator of its own
SHARE = max(3, settings.default.max_examples // 100)
LANES = 6 if settings.default.max_examples < 100 else 24


def several(lane, least=1, most=LANES):
    """Draw a list of lanes, long ones as often as short ones."""
    return st.integers(least, most).flatmap(lambda k: st.lists(lane, min_size=k, max_size=k))


def each(cases):
    """Parametrize by a table; each case gets its share of the profile's examples."""

    def decorate(test):
        return pytest.mark.parametrize("case", cases, ids=str)(settings(max_examples=SHARE)(test))

    return decorate


TALLY = Counter()


@pytest.fixture(scope="module", autouse=True)
def _tally():
    TALLY.clear()
    yield
    print(f"\ndrawn problems: {TALLY['right']} right, {TALLY['flagged']} flagged")


# -- the oracle: optimality conditions in NumPy, batched in front and analytic --------------------


def mv(matrix, vector):
    return (matrix @ vector[..., None])[..., 0]


def root_condition(z, A, b, t):
    return mv(A, z + t[..., None] * np.sin(z)) - b


def fixed_point_condition(z, W, V, b):
    return z - mv(W, np.tanh(mv(V, z))) - b


def minimum_condition(z, H, b, t):
    half = (H + H.swapaxes(-1, -2)) / 2
    return mv(half, z) - b + t[..., None] * z / np.sqrt(1 + z**2)


def fit_condition(z, A, E, b, t):
    bend = t[..., None] * mv(E, np.sin(z))
    r = mv(A, z) + bend - b
    J = A + t[..., None, None] * E * np.cos(z)[..., None, :]
    return mv(J.swapaxes(-1, -2), r)


# where the arguments of each kind have b
SHIFT = {"root": 1, "fixed_point": 2, "minimize": 1, "least_squares": 2}
CONDITIONS = {
    "root": root_condition,
    "fixed_point": fixed_point_condition,
    "minimize": minimum_condition,
    "least_squares": fit_condition,
}


def slopes(fn, arrays):
    """Return the Jacobian of ``fn(*arrays)`` by complex steps, a block for each array."""
    total, places, moved = sum(a.size for a in arrays), [], []
    for a in arrays:
        first = sum(p.stop - p.start for p in places)
        places.append(slice(first, first + a.size))
        batch = np.repeat(a.astype(complex)[None], total, 0)
        batch.reshape(total, -1)[places[-1]] += 1j * STEP * np.eye(a.size)
        moved.append(batch)
    columns = (fn(*moved).imag / STEP).T
    return [columns[:, place] for place in places]


def derivative(case, z, args, start, iterations):
    """Return ``dz/dargs`` in blocks, the norm of the Jacobian's inverse, and its condition."""
    condition = CONDITIONS[case.kind]
    J, *P = slopes(condition, [z, *args])
    D = [-case.inverse(J) @ block for block in P]
    if case.steps is not None:

        def unrolled(*args):
            z = start
            for _ in range(iterations):
                z = z - case.steps * condition(z, *args)
            return z + 0j * args[0].sum((-1, -2))[..., None]

        D = slopes(unrolled, args)
    inverse = 1 / np.linalg.svd(J, compute_uv=False)[-1]
    size = sum(np.linalg.norm(block) ** 2 for block in P) ** 0.5
    return D, inverse, np.linalg.cond(J), size


# -- drawing and solving ----------------------------------------------------------------------


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=F64, generator=generator)


@st.composite
def batches(draw, case, equations=draws.rooted_equations, **bounds):
    """Draw equations of one kind, size and dtype: as many lanes, and how they are batched."""
    dtype = draw(draws.dtypes())
    size = draw(st.integers(1, 6))
    unrolled = isinstance(case.adjoint, ims.UnrolledAdjoint)
    way = "loop" if unrolled else draw(st.sampled_from(("vmap", "batch_dims", "loop")))
    lane = equations(case.kind, min_size=size, max_size=size, dtype=dtype, **bounds)
    return draw(several(lane, most=2 if way == "loop" else LANES)), way, dtype


@st.composite
def rooted(draw, case):
    condition = draw(st.sampled_from((10.0, 1.0, 3.0, 100.0, 1e4)))
    magnitude = draw(st.sampled_from((1.0, 1e-2, 1e2)))
    bounds = {"condition": condition, "magnitude": magnitude}
    promised = condition <= case.reach and magnitude == 1
    return *draw(batches(case, **bounds)), promised, draw(st.integers(0, 99))


def stacked(lanes):
    args = tuple(torch.stack(parts) for parts in zip(*(lane.args for lane in lanes), strict=True))
    return torch.stack([lane.start for lane in lanes]), args


def pattern(case, n):
    """Return the pattern that a sparse solver needs, a full one."""
    sparse = getattr(case.solver, "linear_solver", None) is SPARSE
    return {"jac_sparsity": torch.ones(n, n)} if sparse else {}


def solve(case, fn, way, start, args, on_failure="mask", sides=0):
    """Solve all lanes, batched in one of three ways; return the `Solution` of the batch.

    The first ``sides`` arguments, two if any, are bounds.
    """
    options = {"solver": case.solver, "adjoint": case.adjoint, "on_failure": on_failure}
    options.update(case.options)
    options |= pattern(case, sum(math.prod(leaf.shape[1:]) for leaf in tree_leaves(start)))
    entry = getattr(ims, case.kind)

    def one(start, *args, **more):
        if sides:
            more["bounds"] = args[:sides]
        return entry(fn, start, args[sides:], **options, **more)

    if way == "batch_dims":
        return one(start, *args, batch_dims=1, in_dims=0)
    if way == "vmap":
        return vmap(one)(start, *args)
    lanes = [one(*lane) for lane in zip(start, *args, strict=True)]
    return tree_map(lambda *parts: torch.stack(parts), *lanes)


def differentiate(run, args, weights, tangents):
    """Return the solution, its derivatives in both modes, and whether an adjoint says it failed."""
    leaves = [a.clone().requires_grad_() for a in args]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = run(*leaves)
        # no step, nothing unrolled: such a value has no graph
        loss = (weights * solution.value).sum() + 0 * leaves[0].sum()
        backward = torch.autograd.grad(loss, leaves, materialize_grads=True)
        forward = jvp(lambda *args: run(*args).value, args, tangents)[1]
    flagged = any(issubclass(w.category, ims.ConvergenceWarning) for w in caught)
    return solution, backward, forward, flagged


def numpy(tensor):
    return tensor.detach().double().numpy()


def flat(arrays):
    return np.concatenate([np.ravel(a) for a in arrays])


def right_or_flagged(pairs, adjoint_failed, promised):
    """Judge ``(derivative, expected, bound)``: a wrong one must be a zero that was warned of."""
    right = True
    for ours, expected, bound in pairs:
        error = np.linalg.norm(ours - expected)
        if not error <= bound:
            right = False
            assert adjoint_failed and not ours.any(), (error, bound)
    assert right or not promised
    TALLY["right" if right else "flagged"] += 1


def flagged(solution, i, derivatives):
    """A lane that did not converge says why, and contributes nothing."""
    assert Status(int(solution.status[i])) > Status.BUDGET
    assert not any(bool(g[i].any()) for g in derivatives)
    TALLY["flagged"] += 1


def has_inverse(case):
    """Tell whether the adjoint is to solve with the Jacobian."""
    return case.steps is None and case.inverse is np.linalg.inv


# -- equations --------------------------------------------------------------------------------


@each(CASES)
@given(data=st.data())
def test_equations_are_solved_and_differentiated_or_flagged(case, data):
    lanes, way, dtype, promised, seed = data.draw(rooted(case))
    start, args = stacked(lanes)
    weights = normal(seed, *start.shape).to(dtype)
    tangents = tuple(normal(seed + 1 + k, *a.shape).to(dtype) for k, a in enumerate(args))

    def run(*args):
        return solve(case, lanes[0].fn, way, start, args)

    solution, backward, forward, adjoint_failed = differentiate(run, args, weights, tangents)
    if not bool(solution.converged.all()):
        with pytest.raises(ims.ConvergenceError):
            solve(case, lanes[0].fn, way, start, args, on_failure="raise")
    eps = torch.finfo(dtype).eps
    for i, lane in enumerate(lanes):
        if not bool(solution.converged[i]):
            assert not promised, Status(int(solution.status[i]))
            # unrolled steps are differentiated wherever they led
            flagged(solution, i, () if case.steps else (*backward, forward))
            continue
        z, known, n = numpy(solution.value[i]), numpy(lane.root), len(lane.root)
        # the tolerance, and what rounding the data and evaluating the residual does
        size = 1 + sum(np.linalg.norm(v) for v in (z, known, numpy(lane.args[SHIFT[case.kind]])))
        off = n**0.5 * eps**0.75 * (1 + np.sqrt(np.mean(z**2))) + 20 * n * eps * size
        assert np.linalg.norm(z - known) <= lane.stability * off

        own, steps = [numpy(a[i]) for a in args], int(solution.iterations[i])
        D, inverse, condition, size = derivative(case, z, own, numpy(lane.start), steps)
        spread = inverse * size * (2 * eps ** (2 / 3) + 20 * n * eps * (1 + condition))
        w, v = numpy(weights[i]), flat(numpy(t[i]) for t in tangents)
        reverse = flat(numpy(g[i]) for g in backward)
        pairs = [
            (reverse, np.concatenate([w @ block for block in D]), spread * np.linalg.norm(w)),
            (numpy(forward[i]), np.concatenate(D, 1) @ v, spread * np.linalg.norm(v)),
        ]
        right_or_flagged(pairs, adjoint_failed, promised)


@each([case for case in CASES if case.kind != "least_squares"])
@given(data=st.data())
def test_equations_without_a_root_are_flagged(case, data):
    lanes, way, _ = data.draw(batches(case, draws.rootless_equations))
    start, args = stacked(lanes)
    leaves = tuple(a.clone().requires_grad_() for a in args)
    few = replace(case, solver=replace(case.solver, max_steps=30))
    solution = solve(few, lanes[0].fn, way, start, leaves)
    assert not bool(solution.converged.any())
    # unrolled steps are differentiated wherever they led
    grads = () if case.steps else torch.autograd.grad(solution.value.sum(), leaves)
    for i in range(len(lanes)):
        flagged(solution, i, grads)


def affine(kind):
    """Return the function of ``kind`` whose condition has the Jacobian ``A``, or ``A A^T``."""
    return {
        "root": lambda z, A, b: A @ z - b,
        "fixed_point": lambda z, A, b: z - (A @ z - b),
        "minimize": lambda z, A, b: z @ (A @ z) / 2 - b @ z,
        "least_squares": lambda z, A, b: A.mT @ z - b,
    }[kind]


@each([case for case in CASES if has_inverse(case)])
@given(data=st.data(), seed=st.integers(0, 99), at_solution=st.booleans())
def test_singular_jacobians_are_flagged(case, data, seed, at_solution):
    symmetric, dtype = case.kind == "minimize", data.draw(draws.dtypes())
    A = data.draw(draws.singular(symmetric=symmetric, condition=10.0, dtype=dtype)).matrix
    # few digits, so that I - (I - A) is A
    A = torch.round(A * 2**10) / 2**10
    z, w, off = normal(seed, 3, len(A)).to(dtype)
    b = (A.mT if case.kind == "least_squares" else A) @ z
    if not at_solution and case.kind != "least_squares":
        kernel = torch.from_numpy(scipy.linalg.null_space(A.double().numpy().T))
        b = b + kernel[:, 0].to(dtype)  # so that there is no solution
        z = z + off
    A.requires_grad_()
    options = {"solver": replace(case.solver, max_steps=30), "adjoint": case.adjoint}
    options.update(case.options)
    options |= pattern(case, len(A))
    with pytest.raises(ims.ConvergenceError) as raised:
        value = getattr(ims, case.kind)(affine(case.kind), z, (A, b), **options).value
        # a value there may be, no derivative
        assert at_solution or case.kind == "least_squares"
        (w @ value).backward()
    assert any(status.name in str(raised.value) for status in Status if status > Status.BUDGET)
    TALLY["flagged"] += 1


def spoil(parts, bad, kind, how):
    """Make a lane of the start and the arguments one that cannot be solved."""
    place = 1 + SHIFT[kind]
    if how == "start":
        parts[0][bad] = torch.nan
    elif how == "singular":
        parts[1][bad], parts[place][bad] = 0.0, 1.0
    else:
        parts[place][bad] = float(how)


@each([case for case in CASES if case.steps is None])
@given(data=st.data())
def test_a_bad_lane_leaves_the_others_alone(case, data):
    size, condition = data.draw(st.integers(1, 4)), min(case.reach, 10.0)
    way = data.draw(st.sampled_from(("vmap", "batch_dims")))
    bounds = {"min_size": size, "max_size": size, "condition": condition}
    lanes = data.draw(several(draws.rooted_equations(case.kind, **bounds), least=2))
    bad = data.draw(st.integers(0, len(lanes) - 1))
    ways_to_fail = ("nan", "inf", "start", *(("singular",) if case.kind == "root" else ()))
    start, args = stacked(lanes)
    spoil((start, *args), bad, case.kind, data.draw(st.sampled_from(ways_to_fail)))
    place, keep = SHIFT[case.kind], torch.arange(len(lanes)) != bad

    def run(start, args):
        shared = torch.zeros((), dtype=F64, requires_grad=True)  # all lanes depend on it
        leaves = [a.clone().requires_grad_() for a in args]

        def fn(z, *own):
            moved = own[place] + shared
            return lanes[0].fn(z, *own[:place], moved, *own[place + 1 :])

        solution = solve(case, fn, way, start, tuple(leaves))
        return solution, torch.autograd.grad(solution.value.sum(), [*leaves, shared])

    solution, grads = run(start, args)
    alone, expected = run(start[keep], [a[keep] for a in args])
    assert torch.equal(solution.converged, keep)
    assert torch.equal(solution.status[keep], alone.status)
    assert int((solution.iterations[keep] - alone.iterations).abs().max()) <= 1
    torch.testing.assert_close(solution.value[keep], alone.value, rtol=1e-9, atol=1e-9)
    for g, g_alone in zip(grads, expected, strict=True):
        ours = g[keep] if g.dim() else g  # what all lanes share has no dimension of them
        torch.testing.assert_close(ours, g_alone, rtol=1e-7, atol=1e-7)
        assert not g.dim() or not bool(g[bad].any())
    TALLY["right"] += len(lanes) - 1
    TALLY["flagged"] += 1


# -- between bounds ---------------------------------------------------------------------------


def between(case, z, lo, hi, args):
    """Return what vanishes at a minimum between bounds, and its slopes in all that is given."""
    slope = CONDITIONS[case.kind](z, *args)
    low, high = (z <= lo) & (slope > 0), (z >= hi) & (slope < 0)
    held = low | high
    J, *P = slopes(CONDITIONS[case.kind], [z, *args])
    J[held] = np.eye(len(z))[held]
    for block in P:
        block[held] = 0.0
    return np.where(held, 0.0, slope), J, [-np.diag(1.0 * low), -np.diag(1.0 * high), *P]


def by_scipy(lane, lo, hi):
    """Return SciPy's minimum of a convex objective."""
    args = [a.double() for a in lane.args]
    value = lambda z: lane.fn(torch.tensor(z), *args)
    slope = lambda z: CONDITIONS["minimize"](z, *map(numpy, args))
    sides = list(zip(lo, hi, strict=True))
    options = {"ftol": 0.0, "gtol": 1e-12, "maxiter": 10_000}
    return scipy.optimize.minimize(
        lambda z: float(value(z)), numpy(lane.start), jac=slope, bounds=sides,
        method="L-BFGS-B", options=options,
    ).x  # fmt: skip


@each(BOUNDED)
@given(data=st.data())
def test_minima_between_bounds_are_found_and_differentiated_or_flagged(case, data):
    lanes, way, dtype, promised, seed = data.draw(rooted(case))
    start, args = stacked(lanes)
    # some bounds cut the root without them off, and some are idle
    known = torch.stack([lane.root for lane in lanes]).to(dtype)
    size = known.abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    first, second = normal(seed + 50, 2, *known.shape).to(dtype)
    lo = known + size * (first - 1)
    sides = lo, lo + size * (0.1 + second.abs())
    args = (*sides, *args)
    weights = normal(seed, *start.shape).to(dtype)
    tangents = tuple(normal(seed + 1 + k, *a.shape).to(dtype) for k, a in enumerate(args))

    def run(*args):
        return solve(case, lanes[0].fn, way, start, args, sides=2)

    solution, backward, forward, adjoint_failed = differentiate(run, args, weights, tangents)
    eps = torch.finfo(dtype).eps
    for i, lane in enumerate(lanes):
        if not bool(solution.converged[i]):
            assert not promised, Status(int(solution.status[i]))
            flagged(solution, i, (*backward, forward))
            continue
        z, (lo, hi, *own) = numpy(solution.value[i]), [numpy(a[i]) for a in args]
        assert bool(((lo <= z) & (z <= hi)).all())
        left, J, P = between(case, z, lo, hi, own)
        inverse = 1 / np.linalg.svd(J, compute_uv=False)[-1]
        # the tolerance, and what rounding the data and evaluating the slope does
        n, shift = len(z), np.linalg.norm(own[SHIFT[case.kind]])
        size = 1 + 2 * np.linalg.norm(z) + shift
        off = n**0.5 * eps**0.75 * (1 + np.sqrt(np.mean(z**2))) + 20 * n * eps * size
        assert np.linalg.norm(np.linalg.solve(J, left)) <= lane.stability * off
        if case.kind == "minimize" and promised:
            # (SciPy stops where differences of its objective drown: half of the digits)
            apart = np.linalg.norm(z - by_scipy(lane, lo, hi))
            assert apart <= 1e-6 * size * max(1, inverse) + lane.stability * off
        if bool(solution.degenerate[i]):
            continue
        D = [-np.linalg.solve(J, block) for block in P]
        size = sum(np.linalg.norm(block) ** 2 for block in P) ** 0.5
        spread = inverse * size * (2 * eps ** (2 / 3) + 20 * n * eps * (1 + np.linalg.cond(J)))
        w, v = numpy(weights[i]), flat(numpy(t[i]) for t in tangents)
        reverse = flat(numpy(g[i]) for g in backward)
        pairs = [
            (reverse, np.concatenate([w @ block for block in D]), spread * np.linalg.norm(w)),
            (numpy(forward[i]), np.concatenate(D, 1) @ v, spread * np.linalg.norm(v)),
        ]
        right_or_flagged(pairs, adjoint_failed, promised)


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@given(data=st.data())
@settings(max_examples=5 * SHARE)
def test_weak_bounds_are_flagged_and_strict_ones_are_not(dtype, data):
    """In any unit: the multiplier of a weak one is zero, or a rounding of the terms of the slope.

    The minimum of ``c (y.H.y / 2 - b.y)`` with ``y = z / s`` is known: each unknown is free, held,
    or on its bound without being held to it.
    """
    n, seed = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 2**20))
    c, s = (2.0 ** data.draw(st.integers(-30, 30)) for _ in range(2))
    most = data.draw(st.sampled_from((2, 3)))  # without weak ones, or with some
    way = torch.from_numpy(np.random.default_rng(seed).integers(0, most, n))
    draw, noise, y = normal(seed, 3, n, n)[:, :, 0], normal(seed + 1, n, n), normal(seed + 2, n)
    H = (noise @ noise.mT + n * torch.eye(n, dtype=F64)).to(dtype)
    y, held, weak = y.to(dtype), way == 1, way == 2
    # of what is held the slope points out of the bounds, by at least a tenth
    pull = torch.where(held, 0.1 + draw[0].abs(), 0.0).to(dtype)
    rounding = torch.finfo(dtype).eps * data.draw(st.sampled_from((0.0, 1.0, -1.0)))
    pull = pull + rounding * weak * (H.abs() @ y.abs())
    upper = draw[1] > 0
    b = H @ y + torch.where(upper, pull, -pull)
    room = (0.1 + draw[2].abs()).to(dtype)
    on = held | weak
    lo = torch.where(on & ~upper, y, y - room)
    hi = torch.where(on & upper, y, y + room)

    def fn(z):
        u = z / s
        return c * (u @ (H @ u) / 2 - b @ u)

    sol = ims.minimize(fn, torch.zeros(n, dtype=dtype), bounds=(s * lo, s * hi), on_failure="mask")
    assert bool(sol.converged) and bool(sol.degenerate) == bool(weak.any())
    # the condition is below 10, and rounding is that of H y
    bound = 100 * n * torch.finfo(dtype).eps * float(1 + y.abs().max())
    assert float((sol.value / s - y).abs().max()) <= bound + torch.finfo(dtype).eps ** 0.75


# -- linear systems ---------------------------------------------------------------------------


@each(LINEAR)
@given(data=st.data())
def test_linear_systems_are_solved_and_differentiated_or_flagged(case, data):
    dtype, size = data.draw(draws.dtypes()), data.draw(st.integers(2, 6))
    condition = data.draw(st.sampled_from((10.0, 1.0, 100.0, 1e4, 1e8)))
    bounds = {"condition": condition, "dtype": dtype, "min_size": size, "max_size": size}
    if case.operators is not near_identity:
        bounds["scale"] = data.draw(st.sampled_from((1.0, 1e-6, 1e6)))
    lanes = data.draw(several(case.operators(**bounds)))
    first, seed = lanes[0], data.draw(st.integers(0, 99))
    matrices = torch.stack([lane.matrix for lane in lanes])
    b, weights, db, noise = (
        normal(seed + k, len(lanes), size, *more).to(dtype)
        for k, more in enumerate([(), (), (), (size,)])
    )
    flags = {"symmetric": first.symmetric, "positive_definite": first.positive_definite}
    dA = noise * matrices.abs().amax((-1, -2), keepdim=True)

    def run(A, b):
        def one(A, b):
            operator = ims.MatrixOperator(A, **flags)
            return ims.linear_solve(operator, b, solver=case.solver, on_failure="mask")

        return vmap(one)(A, b)

    solution, backward, forward, adjoint_failed = differentiate(
        run, (matrices, b), weights, (dA, db)
    )
    eps = torch.finfo(dtype).eps
    for i, lane in enumerate(lanes):
        promised = lane.condition <= case.reach
        if not bool(solution.converged[i]):
            assert not promised, Status(int(solution.status[i]))
            flagged(solution, i, (*backward, forward))
            continue
        A, rhs, x = numpy(lane.matrix), numpy(b[i]), numpy(solution.value[i])
        sizes = np.linalg.svd(A, compute_uv=False)

        def bound(x, rhs, sizes=sizes):
            residual = 1.2 * eps ** (2 / 3) * np.linalg.norm(rhs)
            return (residual + 20 * size * eps * sizes[0] * np.linalg.norm(x)) / sizes[-1]

        assert np.linalg.norm(x - np.linalg.solve(A, rhs)) <= bound(x, rhs)
        w, slope = numpy(weights[i]), numpy(db[i]) - numpy(dA[i]) @ x
        u, dx = np.linalg.solve(A.T, w), np.linalg.solve(A, slope)
        # A x is rounded where it is differentiated
        rounding = 20 * size * eps * np.linalg.norm(numpy(dA[i])) * np.linalg.norm(x) / sizes[-1]
        pairs = [
            (numpy(backward[1][i]), u, bound(u, w)),
            (numpy(backward[0][i]), -np.outer(u, x), 1.1 * bound(u, w) * np.linalg.norm(x)),
            (numpy(forward[i]), dx, bound(dx, slope) + rounding),
        ]
        right_or_flagged(pairs, adjoint_failed, promised)


@each(LINEAR)
@given(data=st.data(), seed=st.integers(0, 99))
def test_singular_linear_systems_are_flagged(case, data, seed):
    dtype, symmetric = data.draw(draws.dtypes()), case.name.startswith(("C", "LU-ind"))
    scale = data.draw(st.sampled_from((1.0, 1e-6, 1e6)))
    drawn = data.draw(draws.singular(symmetric=symmetric, dtype=dtype, scale=scale))
    b = normal(seed, len(drawn.matrix)).to(dtype)
    kernel = torch.from_numpy(scipy.linalg.null_space(numpy(drawn.matrix).T))[:, 0].to(dtype)
    b = b + torch.copysign(torch.ones(()), b @ kernel) * kernel  # so that there is no solution
    definite = isinstance(case.solver, ims.Cholesky)
    operator = ims.MatrixOperator(drawn.matrix, symmetric=symmetric, positive_definite=definite)
    solution = ims.linear_solve(operator, b, solver=case.solver, on_failure="mask")
    assert Status(int(solution.status)) > Status.BUDGET
    TALLY["flagged"] += 1


# -- silent errors of the past: minimal cases of what the properties found ----------------------


@pytest.mark.parametrize("solver", [ims.NewtonCG(), ims.Newton()], ids=["NewtonCG", "Newton"])
def test_an_objective_without_a_minimum_is_flagged_wherever_steps_lead(solver):
    def fn(z):  # its slope lies between 0.005 and 0.015
        return 0.01 * z + 0.005 * torch.sqrt(1 + z**2)

    solution = ims.minimize(fn, torch.tensor(0.0), solver=solver, on_failure="mask")
    assert not bool(solution.converged)


NEARLY_SINGULAR = {
    "Cholesky": (torch.full((2, 2), 0.1) * 0.1, torch.tensor([1.0, -1.0])),
    # of rank 2, but for roundings
    "LU": (
        torch.tensor([[-0.6, 0.4], [0.7, -0.3], [0.7, -0.6]], dtype=F64)
        @ torch.tensor([[-0.3, -0.9, 0.8], [-0.2, -0.7, -0.6]], dtype=F64),
        torch.ones(3, dtype=F64),
    ),
}


@pytest.mark.parametrize("name", NEARLY_SINGULAR)
def test_a_direct_solve_with_a_large_residual_is_flagged(name):
    (A, b), solver = NEARLY_SINGULAR[name], getattr(ims, name)()
    operator = ims.MatrixOperator(A, positive_definite=name == "Cholesky")
    solution = ims.linear_solve(operator, b, solver=solver, on_failure="mask")
    left = torch.linalg.vector_norm(b - A @ solution.value) / torch.linalg.vector_norm(b)
    assert float(left) <= 1e-3 or not bool(solution.converged)
