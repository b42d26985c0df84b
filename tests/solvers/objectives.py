"""Objectives of (z, theta) with starts, and SciPy's minima of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd, vmap

import implicit_solvers as ims
from implicit_solvers.solvers.line_search import Point, search

F32, F64 = torch.float32, torch.float64


def tensor(values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def error(ours, reference):
    assert ours.shape == reference.shape
    size = reference.detach().abs().max().clamp(min=1)
    return float((ours.double() - reference).detach().abs().max() / size)


def by_scipy(fn, start, method, **options):
    """Minimize a function of a tensor with SciPy, from exact derivatives."""
    start = np.atleast_1d(np.asarray(start, dtype=float))

    def call(fn):
        return lambda x: fn(torch.from_numpy(np.array(x, dtype=float))).numpy()

    hess = call(hessian(fn)) if method in ("Newton-CG", "trust-exact") else None
    return scipy.optimize.minimize(
        call(fn), start, jac=call(grad(fn)), hess=hess, method=method, options=options
    )


@dataclass(frozen=True)
class Objective:
    name: str
    fn: Callable
    start: list
    theta: list
    float32_atol: float | None = None
    scipy_start: list | None = None

    def __str__(self):
        return self.name

    def solve(self, solver, dtype=F64, start=None, theta=None, **options):
        start = tensor(self.start, dtype) if start is None else start
        theta = tensor(self.theta, dtype) if theta is None else theta
        return ims.minimize(self.fn, start, (theta,), solver=solver, **options)

    @cached_property
    def minimum(self):
        """Return SciPy's minimum: BFGS's, with the last digits from a root of the gradient."""
        theta = tensor(self.theta)
        shape = tensor(self.start).shape
        fn = lambda z: self.fn(z.reshape(shape), theta)
        start = self.start if self.scipy_start is None else self.scipy_start
        x = by_scipy(fn, start, "BFGS", gtol=1e-9).x
        slope = lambda x: grad(fn)(torch.from_numpy(x)).numpy()
        bend = lambda x: hessian(fn)(torch.from_numpy(x)).numpy()
        x = scipy.optimize.root(slope, x, jac=bend, tol=1e-15).x
        return torch.from_numpy(x).reshape(shape)

    def derivative(self, z, theta):
        """Return ``-H^-1 (d grad / dtheta)``."""
        n = z.numel()
        slope = grad(self.fn)
        H = jacfwd(slope)(z, theta).reshape(n, n)
        return -torch.linalg.inv(H) @ jacfwd(slope, argnums=1)(z, theta).reshape(n, -1)


def rosenbrock(z, t):
    return ((t[0] - z[:-1]) ** 2 + t[1] * (z[1:] - z[:-1] ** 2) ** 2).sum()


def beale(z, t):
    terms = [(c - z[0] + z[0] * z[1] ** k) ** 2 for k, c in enumerate(t.unbind(), 1)]
    return torch.stack(terms).sum()


def himmelblau(z, t):
    return (z[0] ** 2 + z[1] - t[0]) ** 2 + (z[0] + z[1] ** 2 - t[1]) ** 2


POINTS = torch.randn(60, 4, generator=torch.Generator().manual_seed(3), dtype=F64)
CLASSES = (POINTS @ tensor([1.0, -2.0, 0.5, 0.0]) + 0.7 * torch.sin(7 * POINTS[:, 0]) > 0).double()


def logistic(z, t):
    """The mean loss of a logistic regression with a penalty ``t[1]`` and offset ``t[0]``."""
    scores = POINTS.to(z) @ z + t[0]
    loss = torch.nn.functional.softplus(scores) - CLASSES.to(z) * scores
    return loss.mean() + 0.5 * t[1] * (z**2).sum()


SPECTRUM = torch.logspace(0, 4, 12, dtype=F64)


def ill_conditioned(z, t):
    return 0.5 * (SPECTRUM.to(z) * z**2).sum() - t[0] * z.sum()


def barrier(z, t):
    return t[0] * z - torch.log(z) + t[1] * z**2


ROSENBROCK = Objective("rosenbrock", rosenbrock, [-1.2, 1.0], [1.0, 100.0], 2e-5)
ROSENBROCK_10 = Objective("rosenbrock-10", rosenbrock, [-0.5, 0.5] * 5, [1.0, 100.0], 1e-4)
BEALE = Objective("beale", beale, [1.0, 1.0], [1.5, 2.25, 2.625], 1e-4)
HIMMELBLAU = Objective("himmelblau", himmelblau, [3.5, 1.5], [11.0, 7.0], 1e-4)
LOGISTIC = Objective("logistic", logistic, [0.0] * 4, [0.3, 0.1])
ILL_CONDITIONED = Objective("ill-conditioned", ill_conditioned, [1.0] * 12, [3.0], 1e-3)
BARRIER = Objective("barrier", barrier, 5.0, [1.0, 0.1], scipy_start=0.8)  # a 0-d unknown
OBJECTIVES = [ROSENBROCK, ROSENBROCK_10, BEALE, HIMMELBLAU, LOGISTIC, ILL_CONDITIONED, BARRIER]

# -- objectives without a minimum ---------------------------------------------------------------

UNBOUNDED = {
    "linear": lambda z, t: -(t[0] * z).sum(),
    "parabola": lambda z, t: -(t[0] * z**2).sum(),
    "cone": lambda z, t: -torch.sqrt(1 + t[0] * z**2).sum(),
    "exponential": lambda z, t: -torch.exp(t[0] * z).sum(),
    "pole": lambda z, t: torch.log(t[0] * z.abs()).sum(),
}


def lanes_are_alone(objective, solver, count=6, nan=2):
    """Check a batch, one of whose lanes is NaN, against its lanes alone; return the batch."""
    generator = torch.Generator().manual_seed(1)
    theta, start = tensor(objective.theta), tensor(objective.start)
    thetas = theta * (1 + 0.05 * torch.rand(count, *theta.shape, generator=generator, dtype=F64))
    thetas[nan] *= math.nan
    scale = torch.linspace(0.95, 1.1, count, dtype=F64).reshape(count, *(1,) * start.dim())

    def solve(start, theta):
        return objective.solve(solver, start=start, theta=theta, on_failure="mask")

    batch = vmap(solve)(start * scale, thetas)
    for i in range(count):
        single = solve(start * scale[i], thetas[i])
        assert int(batch.status[i]) == int(single.status), i
        assert abs(int(batch.iterations[i]) - int(single.iterations)) <= 1, i
        if i != nan:
            same = int(batch.iterations[i]) == int(single.iterations)
            assert error(batch.value[i], single.value) < (1e-10 if same else 1e-8), i
    assert batch.status.tolist() == [3 if i == nan else 0 for i in range(count)]
    return batch


class Functions:
    """Functions of one variable, one in each lane: ``fn(z (N,), *parameters (N,))``.

    ``z (N, 1)``; evaluations of lanes are counted.
    """

    kind, separable = "minimize", True

    def __init__(self, fn, *parameters, count=None):
        self.fn, self.parameters = fn, parameters
        self.count = {"lanes": 0, "most": 0} if count is None else count

    def value_and_gradient(self, z):
        self.count["lanes"] += len(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.fn(z.squeeze(-1), *self.parameters)
            return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    def take(self, index):
        return Functions(self.fn, *(p[index] for p in self.parameters), count=self.count)

    def search(self, method, start, direction=None, length=None, compact=True):
        """Search from ``start (N,)`` down the gradient, or along ``direction (N,)``."""
        z = start.unsqueeze(-1)
        point = Point(z, *self.value_and_gradient(z))
        self.count["lanes"] = 0
        direction = -point.gradient if direction is None else direction.unsqueeze(-1)
        length = torch.ones_like(start) if length is None else length
        found = search(method, self, point, direction, length, compact=compact)
        return point, direction, found
