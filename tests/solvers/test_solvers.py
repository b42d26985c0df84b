"""Every solver on every kind of problem, against SciPy; how lanes end, and what a lane costs."""

import itertools
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.problem import EquationProblem

F32, F64 = torch.float32, torch.float64
# The solvers' default tolerance is eps**0.75, and the problems' condition is moderate; SciPy gets
# 1e-13 or so. In float32 the data themselves are rounded.
TOLERANCE = {F64: 1e-9, F32: 1e-4}


def error(ours, reference):
    assert ours.shape == reference.shape
    size = reference.detach().abs().max().clamp(min=1)
    return float((ours - reference).detach().abs().max() / size)


def tensor(values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


# -- problems: a function of (z, theta), a start, and what SciPy makes of it -------------------


@dataclass(frozen=True)
class Problem:
    name: str
    kind: str
    fn: Callable
    start: list
    theta: list

    def __str__(self):
        return self.name

    def solve(self, solver, dtype=F64, z0=None, theta=None, **options):
        z0 = tensor(self.start, dtype) if z0 is None else z0
        theta = tensor(self.theta, dtype) if theta is None else theta
        return getattr(ims, self.kind)(self.fn, z0, (theta,), solver=solver, **options)

    def reference(self):
        """Return SciPy's solution."""
        theta = tensor(self.theta)

        def call(fn):
            return lambda x: fn(torch.from_numpy(np.asarray(x, dtype=float)), theta).numpy()

        x0 = np.array(self.start, dtype=float)
        flat = call(lambda z, t: self.fn(z.reshape(x0.shape), t).reshape(-1))
        if self.kind == "root":
            out = scipy.optimize.root(flat, x0.reshape(-1), method="hybr", tol=1e-14)
        elif self.kind == "fixed_point":
            x = scipy.optimize.fixed_point(flat, x0.reshape(-1), xtol=1e-13, maxiter=5000)
            return torch.from_numpy(np.asarray(x)).reshape(x0.shape)
        elif self.kind == "least_squares":
            jac = call(lambda z, t: jacfwd(self.fn)(z, t).reshape(-1, z.numel()))
            out = scipy.optimize.least_squares(
                flat, x0, jac=jac, xtol=1e-15, ftol=1e-15, gtol=1e-14, method="lm"
            )
            # a fit's sum of squares is flat to sqrt(eps): the last digits come from its gradient
            gradient = call(grad(lambda z, t: 0.5 * (self.fn(z, t) ** 2).sum()))
            out = scipy.optimize.root(gradient, out.x, method="hybr", tol=1e-15)
        else:
            jac, hess = call(grad(self.fn)), call(hessian(self.fn))
            out = scipy.optimize.minimize(
                call(self.fn), x0, jac=jac, hess=hess, method="trust-exact", options={"gtol": 1e-12}
            )
        return torch.from_numpy(np.asarray(out.x)).reshape(x0.shape)


def powell(z, t):
    return torch.stack([t[0] * z[0] * z[1] - 1, torch.exp(-z[0]) + torch.exp(-z[1]) - t[1]])


def coupled(z, t):
    roll = torch.roll(z, 1)
    return z + t[0] * torch.sin(roll) + 0.1 * z**3 - t[1:]


def trigonometric(z, t):
    return torch.cos(z) + t[0] * z.sum() * z - t[1]


def logarithm(z, t):
    return torch.log(z) + t[0] * z - t[1]


def square_root(z, t):
    return torch.sqrt(z) - t[0] * torch.exp(-z) + torch.log(z)


def kepler(z, t):
    return t[0] * torch.sin(z) + t[1:]


def contraction(z, t):
    return torch.tanh(t[0] * torch.roll(z, 1) + 0.3 * z) + t[1:]


def rosenbrock(z, t):
    return (t[0] - z[0]) ** 2 + t[1] * (z[1] - z[0] ** 2) ** 2


def beale(z, t):
    terms = [(c - z[0] + z[0] * z[1] ** k) ** 2 for k, c in enumerate(t.unbind(), 1)]
    return torch.stack(terms).sum()


def himmelblau(z, t):
    return (z[0] ** 2 + z[1] - t[0]) ** 2 + (z[0] + z[1] ** 2 - t[1]) ** 2


def double_well(z, t):
    return (0.25 * z**4 - 0.5 * t[0] * z**2).sum() + 0.1 * t[1] * z.sum() + 0.05 * z[0] * z[1]


def bowl(z, t):
    return 0.5 * (torch.tensor([1.0, 3.0, 5.0]).to(z) * (z - t) ** 2).sum() + torch.cosh(z).sum()


def quadratic(z, t):
    return 0.5 * (torch.tensor([1.0, 4.0, 9.0]).to(z) * z**2).sum() - (t * z).sum()


def rosenbrock_residuals(z, t):
    return torch.stack([t[1] ** 0.5 * (z[1] - z[0] ** 2), t[0] - z[0]])


TIMES = torch.linspace(0, 2, 9)
DATA = [2.1, 1.5, 1.22, 0.84, 0.65, 0.55, 0.31, 0.3, 0.25]


def exponential_fit(z, t):
    return z[0] * torch.exp(-z[1] * TIMES.to(z)) - t


def circle_fit(z, t):
    """The distances of five points from a circle; they do not lie on one."""
    points = t.reshape(-1, 2)
    return torch.linalg.vector_norm(points - z[:2], dim=-1) - z[2]


CIRCLE = [1.0, 0.1, 0.1, 1.1, -0.9, 0.1, 0.05, -1.0, 0.7, 0.75]

ROOTS = [
    Problem("powell", "root", powell, [0.05, 3.0], [10.0, 1.001]),
    Problem("coupled", "root", coupled, [0.0] * 4, [0.4, 0.3, -0.8, 1.2, 0.5]),
    Problem("trigonometric", "root", trigonometric, [0.9, 0.8, 1.0], [-0.3, 0.4]),
    Problem("logarithm", "root", logarithm, [0.5, 3.0], [0.2, 0.9]),
    Problem("scalar", "root", lambda z, t: z**3 + t[0] * z - t[1], 1.0, [2.0, 5.0]),
]
FIXED_POINTS = [
    Problem("kepler", "fixed_point", kepler, [0.0, 0.0], [0.6, 0.8, 2.0]),
    Problem("contraction", "fixed_point", contraction, [0.0] * 4, [0.5, 0.3, -0.8, 1.2, 0.5]),
    Problem("cosine", "fixed_point", lambda z, t: t[0] * torch.cos(z), 0.0, [0.9]),
]
MINIMA = [
    Problem("rosenbrock", "minimize", rosenbrock, [-1.2, 1.0], [1.0, 100.0]),
    Problem("beale", "minimize", beale, [1.0, 1.0], [1.5, 2.25, 2.625]),
    Problem("himmelblau", "minimize", himmelblau, [3.5, 1.5], [11.0, 7.0]),
    Problem("double-well-from-its-hill", "minimize", double_well, [0.05, 0.1], [1.0, 1.0]),
    Problem("bowl", "minimize", bowl, [2.0, -1.0, 0.5], [0.3, -0.4, 1.0]),
]
FITS = [
    Problem(
        "rosenbrock-residuals", "least_squares", rosenbrock_residuals, [-1.2, 1.0], [1.0, 100.0]
    ),
    Problem("exponential-fit", "least_squares", exponential_fit, [1.0, 0.5], DATA),
    Problem("circle-fit", "least_squares", circle_fit, [0.1, 0.2, 0.8], CIRCLE),
]
BOWLS = [MINIMA[4], Problem("quadratic", "minimize", quadratic, [1.0, 1.0, 1.0], [0.5, -2.0, 3.0])]

TABLE = [
    ("Newton", ims.Newton(), [*ROOTS, *FIXED_POINTS, *BOWLS, MINIMA[2], FITS[2]]),
    ("Newton-GMRES", ims.Newton(linear_solver=ims.GMRES()), [*ROOTS, *FIXED_POINTS, *BOWLS]),
    (
        "Newton-GMRES-loose",
        ims.Newton(linear_solver=ims.GMRES(rtol=1e-2)),
        [ROOTS[1], *FIXED_POINTS],
    ),
    ("Newton-full-steps", ims.Newton(halvings=0), [ROOTS[1], ROOTS[2], ROOTS[4], *FIXED_POINTS]),
    ("Newton-LU", ims.Newton(linear_solver=ims.LU()), [ROOTS[1]]),
    ("FixedPointIteration", ims.FixedPointIteration(), FIXED_POINTS),
    ("FixedPointIteration-damped", ims.FixedPointIteration(damping=0.7), FIXED_POINTS),
    ("Anderson", ims.Anderson(), FIXED_POINTS),
    ("Anderson-1", ims.Anderson(window=1), FIXED_POINTS),
    ("Anderson-2", ims.Anderson(window=2), FIXED_POINTS),
    ("Anderson-20", ims.Anderson(window=20), FIXED_POINTS),
    ("Anderson-damped", ims.Anderson(damping=0.5), FIXED_POINTS),
    ("GradientDescent", ims.GradientDescent(lr=0.15), BOWLS),
    ("GradientDescent-momentum", ims.GradientDescent(lr=0.1, momentum=0.5), BOWLS),
    ("NewtonCG", ims.NewtonCG(), MINIMA),
    ("GaussNewton", ims.GaussNewton(), FITS),
]
RUNS = [(name, solver, problem) for name, solver, problems in TABLE for problem in problems]
runs = pytest.mark.parametrize(
    "solver, problem",
    [run[1:] for run in RUNS],
    ids=[f"{name}-{problem}" for name, _, problem in RUNS],
)
REFERENCES = {}


def reference(problem):
    if problem.name not in REFERENCES:
        REFERENCES[problem.name] = problem.reference()
    return REFERENCES[problem.name]


@runs
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_value(solver, problem, dtype):
    # the residuals of these functions round at several eps: the default for float32 is below it
    if dtype == F32 and problem in (*MINIMA[:3], *FITS, ROOTS[0]):
        solver = replace(solver, atol=2e-5 if problem is MINIMA[0] else 1e-4, rtol=0.0)
    sol = problem.solve(solver, dtype)
    assert sol.value.dtype == sol.residual.dtype == dtype
    assert bool(sol.converged) and int(sol.status) == Status.CONVERGED
    assert error(sol.value.double(), reference(problem)) < TOLERANCE[dtype]


@pytest.mark.parametrize("problem", [*ROOTS, *FIXED_POINTS, *MINIMA, *FITS], ids=str)
def test_start_that_is_the_solution(problem):
    """No step is made, and the start is returned as it is."""
    sol = problem.solve(None)
    again = problem.solve(None, z0=sol.value.detach())
    assert int(again.iterations) == 0 and bool(again.converged)
    assert torch.equal(again.value, sol.value)


@pytest.mark.parametrize("window", [1, 2, 5, 20])
def test_anderson_is_faster_than_picard(window):
    problem = FIXED_POINTS[1]
    picard = problem.solve(ims.FixedPointIteration())
    assert int(problem.solve(ims.Anderson(window=window)).iterations) < int(picard.iterations)


def test_anderson_solves_a_linear_equation_in_n_plus_two_steps():
    """With a full window and an expansion, not a contraction."""
    A = tensor([[0.5, 2.0, 0.0], [0.1, -1.5, 0.3], [0.0, 0.7, 0.2]])
    b = tensor([1.0, -2.0, 0.5])
    sol = ims.fixed_point(lambda z: A @ z + b, torch.zeros(3, dtype=F64), solver=ims.Anderson())
    assert error(sol.value, torch.linalg.inv(torch.eye(3, dtype=F64) - A) @ b) < 1e-9
    assert int(sol.iterations) <= 6


def test_damping_tames_a_map_that_oscillates():
    def g(z):
        return -1.5 * z + 5.0

    z0 = tensor([0.0])
    with pytest.raises(ims.ConvergenceError):
        ims.fixed_point(g, z0, solver=ims.FixedPointIteration())
    sol = ims.fixed_point(g, z0, solver=ims.FixedPointIteration(damping=0.5))
    assert error(sol.value, tensor([2.0])) < 1e-10


def test_newton_is_quadratic_and_exact_on_linear_equations():
    A, b = tensor([[2.0, 1.0], [-1.0, 3.0]]), tensor([1.0, 2.0])
    sol = ims.root(lambda z: A @ z - b, torch.zeros(2, dtype=F64), solver=ims.Newton())
    assert int(sol.iterations) == 1
    problem = ROOTS[4]
    z, errors = problem.solve(ims.Newton()).value, []
    for steps in range(1, 5):
        near = problem.solve(ims.Newton(rtol=None, max_steps=steps), z0=z + 0.1)
        errors.append(float((near.value - z).abs()))
    assert all(after <= 2 * before**2 + 1e-15 for before, after in itertools.pairwise(errors))


# -- how a lane ends ---------------------------------------------------------------------------

NAN = math.nan
ENDS = [
    # wrong answer 5 of the design: the fixed point -b exists, and the iteration runs away from it
    (
        "divergent-map-short",
        "fixed_point",
        lambda z: 2 * z + 1,
        0.0,
        ims.FixedPointIteration(max_steps=50),
        "MAX_STEPS",
    ),
    (
        "divergent-map",
        "fixed_point",
        lambda z: 2 * z + 1,
        0.0,
        ims.FixedPointIteration(max_steps=5000),
        "NONFINITE",
    ),
    (
        "no-fixed-point",
        "fixed_point",
        lambda z: z + 1,
        0.0,
        ims.FixedPointIteration(max_steps=50),
        "MAX_STEPS",
    ),
    (
        "no-fixed-point-anderson",
        "fixed_point",
        lambda z: z + 1,
        0.0,
        ims.Anderson(max_steps=50),
        "MAX_STEPS",
    ),
    (
        "no-root",
        "root",
        lambda z: z**2 + 1,
        1.3,
        ims.Newton(),
        ("STALLED", "MAX_STEPS", "SINGULAR"),
    ),
    ("no-root-full-steps", "root", lambda z: z**2 + 1, 1.3, ims.Newton(halvings=0), "MAX_STEPS"),
    (
        "no-root-gmres",
        "root",
        lambda z: z**2 + 1,
        1.3,
        ims.Newton(linear_solver=ims.GMRES()),
        ("STALLED", "MAX_STEPS"),
    ),
    ("singular-start", "root", lambda z: z**2 - 1, 0.0, ims.Newton(), "SINGULAR"),
    (
        "singular-start-2d",
        "root",
        lambda z: torch.stack([z[0] * z[1] - 1, z[0] ** 2 - z[1] ** 2]),
        [0.0, 0.0],
        ims.Newton(),
        "SINGULAR",
    ),
    (
        "singular-everywhere",
        "root",
        lambda z: torch.stack([z.sum() - 1, 2 * z.sum() - 3]),
        [0.0, 1.0],
        ims.Newton(),
        "SINGULAR",
    ),
    ("nan-in-start", "root", lambda z: z - 1, NAN, ims.Newton(), "NONFINITE"),
    ("nan-everywhere", "root", lambda z: z * NAN, 1.0, ims.Newton(), "NONFINITE"),
    ("outside-the-domain", "root", torch.log, -1.0, ims.Newton(), "NONFINITE"),
    ("nan-map", "fixed_point", lambda z: z * NAN, 1.0, ims.FixedPointIteration(), "NONFINITE"),
    ("nan-map-anderson", "fixed_point", lambda z: z * NAN, 1.0, ims.Anderson(), "NONFINITE"),
    ("nan-objective", "minimize", lambda z: z * NAN, 1.0, ims.NewtonCG(), "NONFINITE"),
    ("nan-descent", "minimize", lambda z: z * NAN, 1.0, ims.GradientDescent(), "NONFINITE"),
    (
        "nan-residuals",
        "least_squares",
        lambda z: z * NAN,
        [1.0, 2.0],
        ims.GaussNewton(),
        "NONFINITE",
    ),
    (
        "unbounded-below",
        "minimize",
        lambda z: -(z**2),
        1.0,
        ims.NewtonCG(max_steps=50),
        ("MAX_STEPS", "STALLED", "NONFINITE"),
    ),
    (
        "descent-diverges",
        "minimize",
        lambda z: z**2,
        1.0,
        ims.GradientDescent(lr=1.1, max_steps=100),
        "MAX_STEPS",
    ),
    (
        "descent-overflows",
        "minimize",
        lambda z: z**2,
        1.0,
        ims.GradientDescent(lr=2.0),
        "NONFINITE",
    ),
    (
        "descent-too-slow",
        "minimize",
        lambda z: z**2,
        1.0,
        ims.GradientDescent(1e-4, max_steps=50),
        "MAX_STEPS",
    ),
    (
        "rank-deficient",
        "least_squares",
        lambda z: torch.stack([z.sum() - 1, z.sum() + 1, z.sum()]),
        [1.0, 2.0],
        ims.GaussNewton(),
        "SINGULAR",
    ),
    (
        "rank-deficient-numerically",
        "least_squares",
        lambda z: tensor([[0.1, 0.3], [0.2, 0.6], [0.3, 0.9]]) @ z - 1,
        [1.0, 2.0],
        ims.GaussNewton(),
        "SINGULAR",
    ),
    ("max-steps", "root", lambda z: torch.exp(z) - 1, 5.0, ims.Newton(max_steps=2), "MAX_STEPS"),
    (
        "max-steps-cg",
        "minimize",
        lambda z: rosenbrock(z, tensor([1.0, 100.0])),
        [-1.2, 1.0],
        ims.NewtonCG(max_steps=3),
        "MAX_STEPS",
    ),
    (
        "max-steps-gauss",
        "least_squares",
        lambda z: exponential_fit(z, tensor(DATA)),
        [1.0, 0.5],
        ims.GaussNewton(max_steps=2),
        "MAX_STEPS",
    ),
    ("max-steps-anderson", "fixed_point", torch.cos, 0.0, ims.Anderson(max_steps=2), "MAX_STEPS"),
]


@pytest.mark.parametrize(
    "kind, fn, start, solver, names", [case[1:] for case in ENDS], ids=[case[0] for case in ENDS]
)
def test_failure(kind, fn, start, solver, names):
    names = (names,) if isinstance(names, str) else names
    solve = getattr(ims, kind)
    with pytest.raises(ims.ConvergenceError, match="|".join(names)):
        solve(fn, tensor(start), solver=solver)
    with pytest.warns(ims.ConvergenceWarning, match="|".join(names)):
        warned = solve(fn, tensor(start), solver=solver, on_failure="warn")
    masked = solve(fn, tensor(start), solver=solver, on_failure="mask")
    for sol in (warned, masked):
        assert Status(int(sol.status)).name in names and not bool(sol.converged)
        assert int(sol.iterations) <= solver.max_steps


def test_failed_lane_keeps_its_best_iterate():
    """A map that runs away has been nearest to its fixed point at the start."""
    sol = ims.fixed_point(
        lambda z: 2 * z + 1, tensor([0.0]), solver=ims.FixedPointIteration(max_steps=9),
        on_failure="mask",
    )  # fmt: skip
    assert torch.equal(sol.value, tensor([0.0])) and float(sol.residual) == 1


def test_divergent_map_has_no_gradient():
    """Wrong answer 5: under mask the lane gives exactly zero, under raise no gradient at all."""
    b = tensor(1.0).requires_grad_()
    options = {"solver": ims.FixedPointIteration(max_steps=60)}
    with pytest.raises(ims.ConvergenceError):
        ims.fixed_point(lambda z, b: 2 * z + b, tensor(0.0), (b,), **options)
    sol = ims.fixed_point(lambda z, b: 2 * z + b, tensor(0.0), (b,), on_failure="mask", **options)
    sol.value.backward()
    assert float(b.grad) == 0
    # Newton finds the fixed point -b, with the derivative -1
    b.grad = None
    sol = ims.fixed_point(lambda z, b: 2 * z + b, tensor(0.0), (b,), solver=ims.Newton())
    sol.value.backward()
    assert error(sol.value.detach(), tensor(-1.0)) < 1e-12 and error(b.grad, tensor(-1.0)) < 1e-12


def test_double_root():
    """It is found, half of the error a step; its Jacobian has no inverse, and backward says so."""
    c = tensor(0.0).requires_grad_()
    sol = ims.root(lambda z, c: (z - 1) ** 2 + c, tensor(3.0), (c,))
    assert bool(sol.converged) and error(sol.value, tensor(1.0)) < 1e-5
    exact = ims.root(lambda z, c: (z - 1) ** 2 + c, tensor(1.0), (c,))
    with pytest.raises(ims.ConvergenceError, match="adjoint of root.*SINGULAR"):
        exact.value.backward()


DOMAINS = [
    ("log-far-right", lambda z: torch.log(z), 20.0, 1.0),
    ("log-plus", lambda z: torch.log(z) + z - 1, 10.0, 1.0),
    ("sqrt", lambda z: torch.sqrt(z) - 0.1, 4.0, 0.01),
    ("log-sqrt", lambda z: square_root(z, tensor([0.0])) - 1, 30.0, 1.0),
    ("reciprocal", lambda z: 1 / z - 2, 1.5, 0.5),
]


@pytest.mark.parametrize(
    "fn, start, exact", [case[1:] for case in DOMAINS], ids=[case[0] for case in DOMAINS]
)
def test_line_search_stays_in_the_domain(fn, start, exact):
    """The full step leads to NaN (or away); the line search comes back."""
    z0 = tensor(start)
    full = z0 - fn(z0) / grad(fn)(z0)
    assert not bool(fn(full).abs() < fn(z0).abs())
    sol = ims.root(fn, z0, solver=ims.Newton())
    assert bool(sol.converged) and error(sol.value, tensor(exact)) < 1e-10
    stuck = ims.root(fn, z0, solver=ims.Newton(halvings=0), on_failure="mask")
    if not bool(torch.isfinite(fn(full))):
        assert int(stuck.status) == Status.NONFINITE
        assert bool(torch.isfinite(stuck.value))


def test_line_search_of_minimizers_stays_in_the_domain():
    sol = ims.minimize(lambda z: z - torch.log(z) + 0.1 * z**2, tensor(5.0))
    exact = (-1 + math.sqrt(1 + 0.8)) / 0.4
    assert error(sol.value, tensor(exact)) < 1e-10
    fit = ims.least_squares(lambda z: torch.stack([torch.log(z), torch.sqrt(z) - 1]), tensor(20.0))
    assert error(fit.value, tensor(1.0)) < 1e-10


@pytest.mark.parametrize(
    "solve",
    [
        lambda z0: ims.root(torch.atan, z0),
        lambda z0: ims.least_squares(torch.atan, z0),
        lambda z0: ims.minimize(lambda z: torch.sqrt(1 + z**2), z0),
    ],
    ids=["Newton", "GaussNewton", "NewtonCG"],
)
def test_line_search_shortens_steps_that_would_diverge(solve):
    """Full steps overshoot the minimum at 0 by more each time."""
    assert error(solve(tensor(3.0)).value, tensor(0.0)) < 1e-9


def test_newton_cg_leaves_negative_curvature():
    """At the start the Hessian is negative definite; a minimum is found, not the hill."""
    problem = MINIMA[3]
    H = hessian(problem.fn)(tensor(problem.start), tensor(problem.theta))
    assert torch.linalg.eigvalsh(H).max() < 0
    z = problem.solve(ims.NewtonCG()).value
    assert torch.linalg.eigvalsh(hessian(problem.fn)(z, tensor(problem.theta))).min() > 0


# -- budgets -----------------------------------------------------------------------------------

BUDGETS = [
    (ims.Newton, ROOTS[0], 3),
    (ims.Newton, ROOTS[4], 1),
    (ims.FixedPointIteration, FIXED_POINTS[1], 7),
    (ims.Anderson, FIXED_POINTS[1], 4),
    (ims.GradientDescent, BOWLS[0], 12),
    (ims.NewtonCG, MINIMA[0], 5),
    (ims.GaussNewton, FITS[1], 2),
]


@pytest.mark.parametrize(
    "kind, problem, steps", BUDGETS, ids=[f"{k.__name__}-{p}" for k, p, _ in BUDGETS]
)
def test_budget(kind, problem, steps):
    """Exactly the steps asked for; the iterate is the one a solve of that many steps has seen."""
    budget = problem.solve(kind(rtol=None, max_steps=steps))
    assert int(budget.iterations) == steps
    assert int(budget.status) == Status.BUDGET and not bool(budget.converged)
    nothing = problem.solve(kind(rtol=None, max_steps=0))
    assert int(nothing.iterations) == 0 and torch.equal(nothing.value, tensor(problem.start))
    if kind is ims.Anderson:  # whose steps depend on more than the last iterate
        return
    z = tensor(problem.start)
    for _ in range(steps):
        z = problem.solve(kind(rtol=None, max_steps=1), z0=z).value
    assert error(budget.value, z) < 1e-12


def test_budget_returns_the_last_iterate():
    """Not the best one."""
    budget = ims.FixedPointIteration(rtol=None, max_steps=3)
    sol = ims.fixed_point(lambda z: 2 * z + 1, tensor(0.0), solver=budget)
    assert float(sol.value) == 7 and float(sol.residual) == 8


def test_budget_of_gradient_descent_is_the_explicit_recursion():
    z, v, theta = tensor([1.0, 1.0, 1.0]), torch.zeros(3, dtype=F64), tensor([0.5, -2.0, 3.0])
    for _ in range(6):
        v = 0.5 * v - 0.1 * (tensor([1.0, 4.0, 9.0]) * z - theta)
        z = z + v
    solver = ims.GradientDescent(lr=0.1, momentum=0.5, rtol=None, max_steps=6)
    assert error(BOWLS[1].solve(solver).value, z) < 1e-14


def test_budget_goes_on_past_the_solution():
    """At a solution further steps stay there; none divides by zero."""
    for kind, problem in [(k, p) for k, p, _ in BUDGETS if p is not ROOTS[0]]:
        start = problem.solve(None).value
        sol = problem.solve(kind(rtol=None, max_steps=6), z0=start)
        assert error(sol.value, start) < 1e-7, (kind, problem)


# -- lanes -------------------------------------------------------------------------------------


def lanes_of(problem, count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = tensor(problem.theta)
    noise = 0.05 * torch.rand(count, *theta.shape, generator=generator, dtype=F64)
    return theta * (1 + noise)


LANES = [
    (ims.Newton(), ROOTS[1]),
    (ims.Newton(), ROOTS[3]),
    (ims.Newton(), ROOTS[4]),
    (ims.Newton(linear_solver=ims.GMRES()), ROOTS[1]),
    (ims.FixedPointIteration(), FIXED_POINTS[1]),
    (ims.FixedPointIteration(damping=0.8), FIXED_POINTS[2]),
    (ims.Anderson(), FIXED_POINTS[1]),
    (ims.Anderson(), FIXED_POINTS[0]),
    (ims.GradientDescent(lr=0.15), BOWLS[0]),
    (ims.GradientDescent(lr=0.1, momentum=0.5), BOWLS[1]),
    (ims.NewtonCG(), MINIMA[0]),
    (ims.NewtonCG(), MINIMA[2]),
    (ims.NewtonCG(), MINIMA[3]),
    (ims.GaussNewton(), FITS[0]),
    (ims.GaussNewton(), FITS[1]),
    (ims.GaussNewton(), FITS[2]),
]
lanes = pytest.mark.parametrize(
    "solver, problem", LANES, ids=[f"{i}-{type(s).__name__}-{p}" for i, (s, p) in enumerate(LANES)]
)


@lanes
def test_lanes_equal_the_loop_over_lanes(solver, problem):
    thetas = lanes_of(problem)
    thetas[2] *= NAN
    starts = tensor(problem.start) * torch.linspace(0.9, 1.1, 7).double().reshape(
        7, *(1,) * tensor(problem.start).dim()
    )

    def solve(z0, theta):
        return problem.solve(solver, z0=z0, theta=theta, on_failure="mask")

    batch = vmap(solve)(starts, thetas)
    for i in range(7):
        single = solve(starts[i], thetas[i])
        assert int(batch.status[i]) == int(single.status), i
        assert abs(int(batch.iterations[i]) - int(single.iterations)) <= 1, i
        same = int(batch.iterations[i]) == int(single.iterations)
        assert error(batch.value[i], single.value) < (1e-10 if same else 1e-8), i
    assert int(batch.status[2]) == Status.NONFINITE
    assert batch.status[[0, 1, 3, 4, 5, 6]].tolist() == [0] * 6


@lanes
def test_compact_or_not_is_the_same(solver, problem):
    thetas = lanes_of(problem)
    starts = tensor(problem.start) * torch.linspace(0.7, 1.3, 7).double().reshape(
        7, *(1,) * tensor(problem.start).dim()
    )

    def solve(compact):
        def one(z0, theta):
            chosen = replace(solver, compact=compact)
            return problem.solve(chosen, z0=z0, theta=theta, on_failure="mask")

        return vmap(one)(starts, thetas)

    whole, compacted = solve(False), solve(True)
    assert torch.equal(whole.status, compacted.status)
    assert int((whole.iterations - compacted.iterations).abs().max()) <= 1
    assert error(compacted.value, whole.value) < 1e-9


@pytest.fixture
def evaluated(monkeypatch):
    """Add up the lanes in which a problem's condition or function is evaluated."""
    count = {"lanes": 0}

    for name in ("residual", "evaluate", "value_and_gradient"):
        original = getattr(EquationProblem, name)

        def counting(self, z, original=original):
            count["lanes"] += len(z)
            return original(self, z)

        monkeypatch.setattr(EquationProblem, name, counting)
    return count


STRAGGLERS = [
    (
        "FixedPointIteration",
        ims.FixedPointIteration(),
        "fixed_point",
        lambda z, a: a * z + 1,
        0.3,
        0.91,
    ),
    (
        "GradientDescent",
        ims.GradientDescent(lr=1.0),
        "minimize",
        lambda z, a: 0.5 * (1 - a) * z**2 - z,
        0.3,
        0.91,
    ),
    (
        "Newton",
        ims.Newton(),
        "root",
        lambda z, a: torch.where(a > 0.5, (z - 1) ** 3, 2 * z - 2),
        0.3,
        0.9,
    ),
]


@pytest.mark.parametrize("way", ["vmap", "in_dims"])
@pytest.mark.parametrize(
    "solver, kind, fn, quick, slow", [c[1:] for c in STRAGGLERS], ids=[c[0] for c in STRAGGLERS]
)
def test_straggler_does_not_cost_full_batch_steps(evaluated, solver, kind, fn, quick, slow, way):
    """One lane of 2,048 takes many times the steps, and the others do not wait for it."""
    parameters = torch.full((2048,), quick, dtype=F64)
    parameters[777] = slow
    start = torch.full((2048,), 3.0, dtype=F64)
    equation = getattr(ims, kind)
    if way == "vmap":
        sol = vmap(lambda z, a: equation(fn, z, (a,), solver=solver))(start, parameters)
    else:
        sol = equation(fn, start, (parameters,), solver=solver, batch_dims=1, in_dims=(0,))
    batched = evaluated["lanes"]
    evaluated["lanes"] = 0
    singles = [equation(fn, start[i], (parameters[i],), solver=solver) for i in (0, 777)]
    alone = int(singles[1].iterations)
    assert alone >= 10 * int(singles[0].iterations)
    steps = 2047 * (int(singles[0].iterations) + 1) + alone + 1
    assert int(sol.iterations.sum()) <= 1.01 * steps
    assert batched <= 1.3 * steps
    assert bool(sol.converged.all())


# -- derivatives of fits -----------------------------------------------------------------------


@pytest.mark.parametrize("problem", FITS[1:], ids=str)
@pytest.mark.parametrize("solver", [ims.GaussNewton(), ims.Newton()], ids=["GaussNewton", "Newton"])
def test_fit_with_residuals_has_the_full_derivative(problem, solver):
    """Wrong answer 8 of the design: the Gauss-Newton formula, and that it is another one here."""
    theta = tensor(problem.theta)
    start = problem.solve(None).value
    z = problem.solve(solver, z0=start + 1e-3).value
    J = jacfwd(problem.fn)(z, theta)
    condition = grad(lambda z, t: 0.5 * (problem.fn(z, t) ** 2).sum())
    mixed = jacfwd(condition, argnums=1)(z, theta)
    full = -torch.linalg.inv(jacfwd(condition)(z, theta)) @ mixed
    gauss_newton = -torch.linalg.inv(J.T @ J) @ mixed
    assert error(gauss_newton, full) > 1e-3
    ours = torch.func.jacrev(lambda t: problem.solve(solver, z0=start + 1e-3, theta=t).value)(theta)
    assert error(ours, full) < 1e-8
    # and by differences of SciPy's fits
    step = torch.zeros_like(theta)
    step[0] = 1e-4
    ends = [replace(problem, theta=(theta + s * step).tolist()).reference() for s in (1, -1)]
    assert error(ours[:, 0], (ends[0] - ends[1]) / 2e-4) < 1e-6


@pytest.mark.parametrize("problem", [*ROOTS, *FIXED_POINTS, *MINIMA], ids=str)
def test_derivative(problem):
    theta = tensor(problem.theta)
    z = problem.solve(None).value

    def condition(z, t):
        if problem.kind == "minimize":
            return grad(problem.fn)(z, t)
        return problem.fn(z, t) - (z if problem.kind == "fixed_point" else 0)

    n = z.numel()
    A = jacfwd(condition)(z, theta).reshape(n, n)
    exact = -torch.linalg.inv(A) @ jacfwd(condition, argnums=1)(z, theta).reshape(n, -1)
    for mode in (torch.func.jacrev, jacfwd):
        ours = mode(lambda t: problem.solve(None, theta=t).value)(theta).reshape(n, -1)
        assert error(ours, exact) < 1e-8


# -- solvers as values -------------------------------------------------------------------------

SOLVERS = [
    ims.Newton(),
    ims.Newton(linear_solver=ims.GMRES(restart=7), halvings=0),
    ims.FixedPointIteration(),
    ims.FixedPointIteration(damping=0.3),
    ims.Anderson(),
    ims.Anderson(window=2),
    ims.GradientDescent(),
    ims.GradientDescent(0.3, rtol=None),
    ims.NewtonCG(),
    ims.NewtonCG(max_products=3),
    ims.GaussNewton(),
    ims.GaussNewton(halvings=1),
    ims.LU(),
    ims.Cholesky(),
    ims.Diagonal(),
    ims.CG(),
    ims.CG(rtol=None),
    ims.GMRES(),
    ims.Neumann(),
    ims.Jacobi(),
    ims.ImplicitAdjoint(),
    ims.ImplicitAdjoint(ims.CG(1e-3)),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_solver_is_a_value(solver):
    copy = pickle.loads(pickle.dumps(solver))
    assert copy == solver and hash(copy) == hash(solver)
    assert [other == solver for other in SOLVERS].count(True) == 1
    assert len({solver, copy, *SOLVERS}) == len(SOLVERS)
    with pytest.raises((AttributeError, TypeError)):
        solver.rtol = 1.0


def test_pickled_solver_solves():
    for name, solver, problems in TABLE:
        copy = pickle.loads(pickle.dumps(solver))
        assert torch.equal(problems[0].solve(copy).value, problems[0].solve(solver).value), name


KINDS = {
    "root": ROOTS[4],
    "fixed_point": FIXED_POINTS[2],
    "minimize": BOWLS[1],
    "least_squares": FITS[1],
}
SOLVES = {
    "root": (ims.Newton,),
    "fixed_point": (ims.Newton, ims.FixedPointIteration, ims.Anderson),
    "minimize": (ims.Newton, ims.GradientDescent, ims.NewtonCG),
    "least_squares": (ims.Newton, ims.GradientDescent, ims.GaussNewton),
}
ALL = (
    ims.Newton,
    ims.FixedPointIteration,
    ims.Anderson,
    ims.GradientDescent,
    ims.NewtonCG,
    ims.GaussNewton,
)
WRONG = [(kind, solver) for kind in KINDS for solver in ALL if solver not in SOLVES[kind]]


@pytest.mark.parametrize("kind, solver", WRONG, ids=[f"{k}-{s.__name__}" for k, s in WRONG])
def test_solver_of_another_kind_is_refused(kind, solver):
    with pytest.raises(ValueError, match=f"solver={solver.__name__}.*{kind}"):
        KINDS[kind].solve(solver())


NOT_SOLVERS: list[tuple[str, Any]] = [
    ("class", ims.Newton), ("name", "newton"), ("linear", ims.LU()), ("krylov", ims.CG()),
    ("torch", torch.optim.SGD),
]  # fmt: skip


@pytest.mark.parametrize("solver", [c[1] for c in NOT_SOLVERS], ids=[c[0] for c in NOT_SOLVERS])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_solver_is_refused(kind, solver):
    with pytest.raises((TypeError, ValueError), match="solver"):
        KINDS[kind].solve(solver)


def test_fewer_residuals_than_unknowns_are_refused():
    with pytest.raises(ValueError, match="1 residuals for 2 unknowns.*GaussNewton"):
        ims.least_squares(lambda z: z.sum(), tensor([1.0, 2.0]), solver=ims.GaussNewton())


def test_norm_is_the_one_that_judges():
    """The largest entry instead of the root mean square."""

    def largest(lanes):
        return lanes.abs().amax(-1)

    z0 = torch.full((100,), 0.5, dtype=F64)
    z0[0] = 10.0
    sol = ims.fixed_point(
        lambda z: 0.5 * z, z0, solver=ims.FixedPointIteration(norm=largest, atol=1e-3, rtol=0.0)
    )
    assert torch.allclose(sol.residual, 0.5 * sol.value.abs().max(), rtol=1e-12)
    assert int(sol.iterations) == math.ceil(math.log2(5 / 1e-3))


def test_no_warning_where_all_lanes_converge():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _, solver, problems in TABLE:
            problems[0].solve(solver, on_failure="warn")
