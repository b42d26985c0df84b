"""SYSTEMS: equations, objectives and fits with starts, and their solutions without the library."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd
from torch.utils._python_dispatch import TorchDispatchMode

import implicit_solvers as ims
from implicit_solvers.problems.projections import project_simplex, soft_threshold
from implicit_solvers.testing import problems

F32, F64 = torch.float32, torch.float64
PROX, CONSTRAINED, LENGTH = "minimize with prox", "minimize with constraints", 0.1


def tensor(values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def error(ours, exact):
    assert ours.shape == exact.shape
    size = exact.detach().abs().max().clamp(min=1)
    return float((ours.double() - exact).detach().abs().max() / size)


def numpy_function(fn, shape=None):
    """Return a function of tensors as one of flat arrays."""
    return lambda x: fn(
        torch.from_numpy(np.array(x, dtype=float)).reshape(shape or x.shape)
    ).numpy()


def by_scipy(fn, start, method, **options):
    """Minimize a function of a tensor with SciPy, from exact derivatives."""
    hess = numpy_function(hessian(fn)) if method == "trust-exact" else None
    return scipy.optimize.minimize(
        numpy_function(fn), start, jac=numpy_function(grad(fn)), hess=hess, method=method,
        options=options,
    )  # fmt: skip


def widened(t, like):
    return t.reshape(*t.shape, *(1,) * (like.dim() - t.dim()))


def near_one(v, step, *_):
    """The proximal operator of ``sum_i |v_i - 1| / 20``."""
    return 1 + soft_threshold(v - 1, 0.05 * widened(step, v))


def entry(kind):
    """Return the public function that solves equations of a kind, with a bound if it says so.

    Its constraint is idle.
    """
    name, bounded, _ = kind.partition(" with bounds")
    if kind == PROX:
        return partial(ims.minimize, prox=near_one)
    if kind == CONSTRAINED:
        return partial(ims.minimize, inequalities=lambda z, *_: -5 - z)
    return partial(getattr(ims, name), bounds=(-5.0, None)) if bounded else getattr(ims, name)


@dataclass(frozen=True, eq=False)
class System:
    """``fn(z, theta)`` is zero, or ``z``, or least, or has the least squares, from a start.

    ``loose`` is the tolerance in float32 where the residual rounds at more than the default one.
    Of one between bounds the ``kind`` says so too. Of one under constraints, functions by keyword,
    ``active`` returns the rows that hold at the solution.
    """

    name: str
    stated: str
    fn: Callable
    start: Any
    theta: Any
    loose: float | None = None
    known: torch.Tensor | None = None
    prox: Callable | None = None
    bounds: tuple | None = None
    constraints: dict | None = None
    active: Callable | None = None

    def __str__(self):
        return self.name

    @property
    def kind(self):
        if self.constraints is not None:
            return CONSTRAINED
        return self.stated if self.bounds is None else f"{self.stated} with bounds"

    def tight(self, dtype=F64):
        """Return the bounds as tensors like the start."""
        return tuple(tensor(side, dtype) for side in self.bounds)

    def condition(self, z, theta):
        """Return what vanishes at the solution; of an unknown that a bound holds, the distance."""
        if self.prox is not None:
            ahead = z - LENGTH * grad(self.fn)(z, theta)
            return z - self.prox(ahead, torch.tensor(LENGTH, dtype=z.dtype), theta)
        if self.stated == "continuation":
            return self.fn(z, torch.ones_like(theta[0]), theta)
        if self.stated == "minimize":
            slope = grad(self.fn)(z, theta)
        elif self.stated == "least_squares":
            slope = grad(lambda z: 0.5 * (self.fn(z, theta) ** 2).sum())(z)
        else:
            return self.fn(z, theta) if self.stated == "root" else z - self.fn(z, theta)
        if self.active is not None:
            J = jacfwd(self.active)(z, theta)
            pull = J.T @ torch.linalg.inv(J @ J.T)  # multipliers by least squares
            return slope - pull @ (J @ slope) + J.T @ self.active(z, theta)
        if self.bounds is None:
            return slope
        lo, hi = self.tight()
        low, high = (z <= lo) & (slope > 0), (z >= hi) & (slope < 0)
        return torch.where(low, z - lo, torch.where(high, z - hi, slope))

    def solve(self, solver, dtype=F64, z0=None, theta=None, **options):
        z0 = tensor(self.start, dtype) if z0 is None else z0
        theta = tensor(self.theta, dtype) if theta is None else theta
        if self.bounds is not None:
            options["bounds"] = self.tight(dtype)
        return self.entry(self.fn, z0, (theta,), solver=solver, **options)

    @property
    def entry(self):
        """The public function that solves it."""
        if self.prox is not None:
            return partial(ims.minimize, prox=self.prox)
        if self.constraints is not None:
            return partial(ims.minimize, **self.constraints)
        solve = getattr(ims, self.stated)
        return solve if self.bounds is None else partial(solve, bounds=self.tight())

    def by_scipy(self, theta=None, method="lm"):
        """Return SciPy's solution; minima and fits get their last digits from their gradients."""
        theta = tensor(self.theta) if theta is None else theta
        x, shape = tensor(self.start).numpy(), tensor(self.start).shape
        fn = lambda z: self.fn(z.reshape(shape), theta)
        if self.bounds is not None:
            sides = zip(*(side.reshape(-1).tolist() for side in self.tight()), strict=True)
            return self.in_a_set(fn, x, method="L-BFGS-B", bounds=list(sides))
        if self.constraints is not None:
            held = {"type": "eq", "fun": numpy_function(lambda z: self.active(z, theta))}
            return self.in_a_set(fn, x, method="SLSQP", constraints=held)
        if self.kind == "minimize":
            x = by_scipy(fn, x, "trust-exact", gtol=1e-9).x
        elif self.kind == "least_squares":
            x = scipy.optimize.least_squares(
                numpy_function(fn), x, jac=numpy_function(jacfwd(fn)), method=method,
                xtol=1e-15, ftol=1e-15, gtol=1e-15,
            ).x  # fmt: skip
        elif self.kind == PROX:
            for _ in range(3000):
                x = x - self.condition(torch.from_numpy(x), theta).numpy()
        zero = lambda z: self.condition(z.reshape(shape), theta).reshape(-1)
        x = scipy.optimize.root(
            numpy_function(zero), x.reshape(-1), jac=numpy_function(jacfwd(zero)), tol=1e-15
        ).x
        return torch.from_numpy(x).reshape(shape)

    def in_a_set(self, fn, x, **how):
        """Return SciPy's solution; of what is free in it, Newton's method from there."""
        value = fn if self.stated == "minimize" else lambda z: 0.5 * (fn(z) ** 2).sum()
        slope = numpy_function(grad(value))
        found = scipy.optimize.minimize(
            numpy_function(value), x.reshape(-1), jac=slope, tol=1e-15, **how
        )
        z, theta, n = torch.from_numpy(found.x).reshape(x.shape), tensor(self.theta), x.size
        for _ in range(5):
            slope = jacfwd(self.condition)(z, theta).reshape(n, n)
            step = torch.linalg.solve(slope, self.condition(z, theta).reshape(n))
            z = z - step.reshape(z.shape)
        return z

    @cached_property
    def solution(self):
        return self.by_scipy() if self.known is None else self.known

    @cached_property
    def inverse(self):
        """Return the inverse of the condition's Jacobian at the solution."""
        z, n = self.solution, self.solution.numel()
        return torch.linalg.inv(jacfwd(self.condition)(z, tensor(self.theta)).reshape(n, n))

    @cached_property
    def derivative(self):
        """Return the implicit function's derivative in theta, ``(n, p)``."""
        slopes = jacfwd(self.condition, 1)(self.solution, tensor(self.theta))
        return -self.inverse @ slopes.reshape(len(self.inverse), -1)

    def accuracy(self, dtype):
        """Return how far from the solution a converged value may be.

        The default tolerance is ``eps**0.75 (1 + rms(z))``; rounding of the data, in float32, and
        of the residual are a few eps. Both are multiplied by the inverse Jacobian; and by 2, since
        that is taken at the solution.
        """
        asked = torch.finfo(dtype).eps ** 0.75 * 2
        asked = max(asked, self.loose or 0) if dtype == F32 else asked
        size = max(1, float(torch.linalg.matrix_norm(self.inverse, 2))) * len(self.inverse) ** 0.5
        return 2 * asked * size


def neighbours(z):
    return torch.cat([z[:1] * 0, z[:-1]]), torch.cat([z[1:], z[:1] * 0])


def tridiagonal(z, t):
    """Broyden's tridiagonal function."""
    left, right = neighbours(z)
    return (3 - t[0] * z) * z - left - 2 * right + t[1]


def h_equation(z, t):
    """Chandrasekhar's equation of radiative transfer."""
    mu = (torch.arange(len(z)).to(z) + 0.5) / len(z)
    kernel = mu.unsqueeze(1) / (mu.unsqueeze(1) + mu) / (2 * len(z))
    return z - 1 / (1 - t[0] * kernel @ z) + t[1] * mu


def bratu(z, t):
    left, right = neighbours(z)
    return 2 * z - left - right - t[0] * torch.exp(z) + t[1]


def coupled(z, t):
    return z + t[0] * torch.sin(torch.roll(z, 1)) + 0.1 * z**3 - t[1:]


def powell(z, t):
    return torch.stack([t[0] * z[0] * z[1] - 1, torch.exp(-z[0]) + torch.exp(-z[1]) - t[1]])


def trigonometric(z, t):
    return torch.cos(z) + t[0] * z.sum() * z - t[1]


def logarithm(z, t):
    return torch.log(z) + t[0] * z - t[1]


COUPLED = System("coupled", "root", coupled, [0.0] * 4, [0.4, 0.3, -0.8, 1.2, 0.5])
CUBIC = System("cubic", "root", lambda z, t: z**3 + t[0] * z - t[1], 1.5, [2.0, 5.0])
TRIDIAGONAL = System("tridiagonal", "root", tridiagonal, [-1.0] * 10, [2.0, 1.0])
H_EQUATION = System("h-equation", "root", h_equation, [1.0] * 20, [0.9, 0.1])
BRATU = System("bratu", "root", bratu, [0.0] * 6, [0.06, 0.01])
POWELL = System("powell", "root", powell, [0.05, 3.0], [10.0, 1.001], loose=1e-4)
TRIGONOMETRIC = System("trigonometric", "root", trigonometric, [0.9, 0.8, 1.0], [-0.3, 0.4])
LOGARITHMS = System("logarithms", "root", logarithm, [0.5, 3.0], [0.2, 0.9])
LOGARITHM = System("logarithm", "root", logarithm, 3.0, [0.2, 0.9])
EXPONENTIAL = System("exponential", "root", lambda z, t: t[0] - torch.exp(z), 2.0, [3.0])
ARCTANGENT = System("arctangent", "root", lambda z, t: torch.atan(z - t[0]), 4.0, [0.5])
# paths: one that turns back twice, and one that is steep where it begins
FOLD = System(
    "fold",
    "continuation",
    lambda z, t, a: z**3 - 3 * a[0] * z + 6 * t - a[1],
    2.1,
    [1.0, 3.0],
    known=tensor(-2 * np.cosh(np.arccosh(1.5) / 3)),
)
STEEP = System(
    "steep",
    "continuation",
    lambda z, t, a: z + t * (a[0] * torch.expm1(3 * z) + 0.3 * torch.roll(z, 1)) - a[1:],
    [0.0] * 3,
    [0.5, 1.5, 1.0, -1.0],
)
ROOTS = [COUPLED, CUBIC, TRIDIAGONAL, H_EQUATION, BRATU]
MORE_ROOTS = [POWELL, TRIGONOMETRIC, LOGARITHMS]
SCALARS = [CUBIC, LOGARITHM, EXPONENTIAL, ARCTANGENT]


def kepler(z, t):
    return t[0] * torch.sin(z) + t[1:]


def contraction(z, t):
    return torch.tanh(t[0] * torch.roll(z, 1) + 0.3 * z) + t[1:]


def network(z, t):
    """A layer at equilibrium, of spectral radius below one."""
    n = len(z)
    i = torch.arange(n).to(z)
    W = torch.cos(3 * i.unsqueeze(1) + i**2 / 2) / n**0.5
    return torch.tanh(t[0] * W @ z + t[1] * torch.sin(i))


def affine(z, t):
    d = torch.linspace(0.1, 0.97, len(z)).to(z)
    return d * z + t[0] * torch.roll(z, 1) * 0.01 + t[1]


MAP = "fixed_point"
KEPLER = System("kepler", MAP, kepler, [0.5, 2.0], [0.6, 0.8, 2.0])
CONTRACTION = System("contraction", MAP, contraction, [0.0] * 4, [0.5, 0.3, -0.8, 1.2, 0.5])
COSINE = System("cosine", MAP, lambda z, t: t[0] * torch.cos(z), 0.3, [0.9])
NETWORK = System("network", MAP, network, [0.0] * 12, [1.1, 0.8])
AFFINE = System("affine", MAP, affine, [0.0] * 8, [1.0, 1.0])
FALLING = System("falling", MAP, lambda z, t: t[0] * torch.exp(-z), 0.5, [2.0])
EXPANDING = System("expanding", MAP, lambda z, t: 2 * z + t[0], 0.0, [1.0])
FIXED_POINTS = [COSINE, CONTRACTION, KEPLER]


def rosenbrock(z, t):
    return ((t[0] - z[:-1]) ** 2 + t[1] * (z[1:] - z[:-1] ** 2) ** 2).sum()


def beale(z, t):
    terms = [(c - z[0] + z[0] * z[1] ** k) ** 2 for k, c in enumerate(t.unbind(), 1)]
    return torch.stack(terms).sum()


def himmelblau(z, t):
    return (z[0] ** 2 + z[1] - t[0]) ** 2 + (z[0] + z[1] ** 2 - t[1]) ** 2


def double_well(z, t):
    return (0.25 * z**4 - 0.5 * t[0] * z**2).sum() + 0.1 * t[1] * z.sum() + 0.05 * z[0] * z[1]


POINTS = torch.randn(60, 4, generator=torch.Generator().manual_seed(3), dtype=F64)
CLASSES = (POINTS @ tensor([1.0, -2.0, 0.5, 0.0]) + 0.7 * torch.sin(7 * POINTS[:, 0]) > 0).double()
SPECTRUM = torch.logspace(0, 4, 12, dtype=F64)


def logistic(z, t):
    """The mean loss of a logistic regression with a penalty ``t[1]`` and offset ``t[0]``."""
    scores = POINTS.to(z) @ z + t[0]
    loss = torch.nn.functional.softplus(scores) - CLASSES.to(z) * scores
    return loss.mean() + 0.5 * t[1] * (z**2).sum()


def ill_conditioned(z, t):
    return 0.5 * (SPECTRUM.to(z) * z**2).sum() - t[0] * z.sum()


def barrier(z, t):
    return t[0] * z - torch.log(z) + t[1] * z**2


def bowl(z, t):
    return 0.5 * (tensor([1.0, 3.0, 5.0]).to(z) * (z - t) ** 2).sum() + torch.cosh(z).sum()


CURVED = torch.tensor([[6.0, 2, 1, 0], [2, 3, 0, 1], [1, 0, 2, 0.5], [0, 1, 0.5, 1]], dtype=F64)


def curved(z, t):
    return 0.5 * (z @ CURVED.to(z) @ z) - (t[-4:] * z).sum()


def sparse(v, step, t):
    return soft_threshold(v, widened(step * t[..., 0], v))


def on_simplex(v, step, t):
    return project_simplex(v)


MIN = "minimize"
ROSENBROCK = System("rosenbrock", MIN, rosenbrock, [-1.2, 1.0], [1.0, 100.0], loose=2e-5)
ONES = {"known": torch.ones(10, dtype=F64)}
ROSENBROCK_10 = System(
    "rosenbrock-10", MIN, rosenbrock, [-0.5, 0.5] * 5, [1.0, 100.0], 1e-4, **ONES
)
BEALE = System("beale", MIN, beale, [1.0, 1.0], [1.5, 2.25, 2.625], loose=1e-4)
HIMMELBLAU = System("himmelblau", MIN, himmelblau, [3.5, 1.5], [11.0, 7.0], loose=1e-3)
LOGISTIC = System("logistic", MIN, logistic, [0.0] * 4, [0.3, 0.1])
ILL_CONDITIONED = System("ill-conditioned", MIN, ill_conditioned, [1.0] * 12, [3.0], loose=1e-3)
BARRIER = System("barrier", MIN, barrier, 5.0, [1.0, 0.1], known=tensor((1.8**0.5 - 1) / 0.4))
HILL = System("double-well-from-its-hill", MIN, double_well, [0.05, 0.1], [1.0, 1.0])
BOWL = System("bowl", MIN, bowl, [2.0, -1.0, 0.5], [0.3, -0.4, 1.0])
MINIMA = [ROSENBROCK, BARRIER, LOGISTIC, BEALE, HIMMELBLAU, ROSENBROCK_10, ILL_CONDITIONED]

LASSO = System("lasso", PROX, curved, [0.5] * 4, [0.4, 2.0, 0.6, 0.2, -0.8], prox=sparse)
SPARSE_LOGISTIC = System(
    "sparse logistic", PROX, lambda z, t: logistic(z, t[1:]), [0.0] * 4, [0.1, 0.3, 0.1],
    prox=sparse,
)  # fmt: skip
PORTFOLIO = System("portfolio", PROX, curved, [0.25] * 4, [1.5, 1.0, 1.4, 0.2], prox=on_simplex)
SPARSE = [LASSO, SPARSE_LOGISTIC, PORTFOLIO]


def within(z, t):
    """The unit disk, if ``t`` ends with 1, and a half plane that is idle."""
    return torch.cat([(z**2).sum(-1, keepdim=True) - t[..., -1:], z[..., :1] - 5], -1)


def on_plane(z, t):
    return z.sum(-1, keepdim=True) - t[..., -1:]


def below(z, t):
    return torch.stack([z[..., 0] - 0.1 * t[..., 0], z[..., 1] - 5], -1)


DISK = System(
    "rosenbrock in a disk", MIN, rosenbrock, [0.2, 0.4], [1.0, 100.0, 1.5], loose=2e-5,
    constraints={"inequalities": within}, active=lambda z, t: within(z, t)[:1],
)  # fmt: skip
PLANE = System(
    "bowl on a plane", MIN, bowl, [2.0, -1.0, 0.5], [0.3, -0.4, 1.0],
    constraints={"equalities": on_plane}, active=on_plane,
)  # fmt: skip
CORNER = System(
    "logistic in a corner", MIN, logistic, [0.0] * 4, [0.3, 0.1],
    constraints={"equalities": on_plane, "inequalities": below},
    active=lambda z, t: torch.cat([on_plane(z, t), below(z, t)[:1]]),
)  # fmt: skip
HELD = [DISK, PLANE, CORNER]


def rosenbrock_residuals(z, t):
    return torch.stack([t[1] ** 0.5 * (z[1] - z[0] ** 2), t[0] - z[0]])


TIMES = torch.linspace(0, 2, 9)


def exponential_fit(z, t):
    return z[0] * torch.exp(-z[1] * TIMES.to(z)) - t


def circle_fit(z, t):
    """The distances of five points from a circle; they do not lie on one."""
    return torch.linalg.vector_norm(t.reshape(-1, 2) - z[:2], dim=-1) - z[2]


def large_residual(z, t):
    """A minimum at 0, where Gauss-Newton multiplies the error by ``t0 t1``."""
    return torch.cat([z + 0.5 * t[0] * z**2 - t[1], z - 0.5 * t[0] * z**2 + t[1]])


def growth_fit(z, t):
    return torch.exp(z * torch.linspace(0, 1, 6).to(z)) - t


DATA = [2.1, 1.5, 1.22, 0.84, 0.65, 0.55, 0.31, 0.3, 0.25]
CIRCLE = [1.0, 0.1, 0.1, 1.1, -0.9, 0.1, 0.05, -1.0, 0.7, 0.75]
FIT = "least_squares"
VALLEY_FIT = System(
    "rosenbrock-residuals", FIT, rosenbrock_residuals, [-1.2, 1.0], [1.0, 100.0], loose=1e-4
)
EXPONENTIAL_FIT = System("exponential-fit", FIT, exponential_fit, [1.0, 0.5], DATA, loose=1e-4)
CIRCLE_FIT = System("circle-fit", FIT, circle_fit, [0.1, 0.2, 0.8], CIRCLE, loose=1e-4)
GROWTH_FIT = System("growth-fit", FIT, growth_fit, 0.0, [1.0, 1.2, 1.5, 1.7, 2.2, 2.7])
SLOW = System("slow", FIT, large_residual, [0.5, -0.4], [0.7, 1.0])
OVERSHOOTING = System("overshooting", FIT, large_residual, [0.5, -0.4], [-2.0, 1.0])
FITS = [EXPONENTIAL_FIT, CIRCLE_FIT, VALLEY_FIT, SLOW, OVERSHOOTING, GROWTH_FIT]


def from_library(problem):
    """Return a problem of ``implicit_solvers.testing`` as a system: its solution has 50 digits."""
    z0, theta = problem.start().tolist(), problem.theta().tolist()
    return System(problem.name, problem.kind, problem.fn, z0, theta, known=problem.solution)


REGRESSIONS = [
    from_library(problem)
    for problem in (
        problems.RIDGE_RESIDUALS,
        problems.MICHAELIS_MENTEN,
        problems.OSBORNE_1,
        problems.OSBORNE_2,
    )
]

# -- between bounds: all of them idle, some active, both sides -----------------------------------

INF = float("inf")
BOX_VALLEY = System(
    "valley-in-a-box", MIN, rosenbrock, [-1.2, 1.0, 0.3], [1.0, 100.0], 1e-3,
    bounds=([-2.0, -2.0, 0.1], [0.8, INF, INF]),
)  # fmt: skip
BOX_BOWL = System(
    "bowl-in-a-box", MIN, bowl, [0.0, -0.1, 0.5], [0.3, -0.4, 1.0],
    bounds=([-INF, -0.2, -INF], [0.1, INF, 3.0]),
)  # fmt: skip
BOX_LOGISTIC = System(
    "signed-logistic", MIN, logistic, [0.0] * 4, [0.3, 0.1],
    bounds=([0.0, -INF, 0.0, -INF], [INF, INF, INF, 0.0]),
)  # fmt: skip
WIDE_HILL = System(
    "double-well-in-a-wide-box", MIN, double_well, [-0.6, -0.7], [1.0, 1.0],
    bounds=([-5.0, -5.0], [5.0, 5.0]),
)  # fmt: skip
BOX_DECAY = System(
    "exponential-fit-in-a-box", FIT, exponential_fit, [1.0, 0.5], DATA, loose=1e-4,
    bounds=([0.0, 0.0], [1.9, 5.0]),
)  # fmt: skip
BOX_CIRCLE = System(
    "circle-fit-in-a-box", FIT, circle_fit, [0.1, 0.2, 0.8], CIRCLE, loose=1e-4,
    bounds=([0.06, -1.0, 0.0], [1.0, INF, 0.98]),
)  # fmt: skip
WIDE_DECAY = System(
    "exponential-fit-in-a-wide-box", FIT, exponential_fit, [1.0, 0.5], DATA, loose=1e-4,
    bounds=([-INF, -9.0], [9.0, INF]),
)  # fmt: skip
BOX_GROWTH = System(
    "growth-fit-in-a-box", FIT, growth_fit, 0.0, [1.0, 1.2, 1.5, 1.7, 2.2, 2.7], bounds=(-1.0, 0.9)
)
BOXES = [BOX_BOWL, BOX_VALLEY, BOX_LOGISTIC, WIDE_HILL]
FITTED_BOXES = [BOX_DECAY, BOX_CIRCLE, WIDE_DECAY]

HELICAL_VALLEY = from_library(problems.HELICAL_VALLEY)

# -- objectives without a minimum ---------------------------------------------------------------

UNBOUNDED = {
    "linear": lambda z, t: -(t[0] * z).sum(),
    "parabola": lambda z, t: -(t[0] * z**2).sum(),
    "cone": lambda z, t: -torch.sqrt(1 + t[0] * z**2).sum(),
    "exponential": lambda z, t: -torch.exp(t[0] * z).sum(),
    "pole": lambda z, t: torch.log(t[0] * z.abs()).sum(),
}

# -- what a solve does, seen from outside ---------------------------------------------------------


class Watch(TorchDispatchMode):
    """Count operations and the numbers that they return, and note the largest tensor."""

    def __init__(self):
        super().__init__()
        self.calls, self.numbers, self.largest = Counter(), Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        name = func._schema.name.removeprefix("aten::").split("_ex")[0]
        self.calls[name] += 1
        if isinstance(first, torch.Tensor):
            self.numbers[name] += first.numel()
            self.largest = max(self.largest, first.numel())
        return out


def marked(fn):
    """Add an operation, ``erfc``, that a `Watch` counts once for each evaluation of a number."""

    def with_mark(z, *args):
        out, mark = fn(z, *args), 0 * torch.erfc(z.clamp(-9, 9))
        return out + (mark if out.dim() == z.dim() else mark.sum())

    return with_mark


def accepted(solve, count, most=60):
    """Return the start and the iterates that follow, from budgets; trials that fail are no steps.

    ``solve(max_steps)`` returns a solution.
    """
    values = [solve(0).value]
    for steps in range(1, most):
        value = solve(steps).value
        if not torch.equal(value, values[-1]):
            values.append(value)
        if len(values) > count:
            return values
    raise AssertionError(f"{len(values) - 1} of {count} steps in {most} iterations")
