"""The rows: every solver that can be compiled, and a system of which some lanes are hard."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

import implicit_solvers as ims
from tests.solvers.table import HeavyBall

from .comparison import drawn

LANES = {"batch_dims": 1, "in_dims": (0, None), "on_failure": "mask"}
ROOTLESS, SINGULAR = -50.0, -60.0
TIMES = torch.linspace(0, 2, 6, dtype=torch.float64)


def steep(z, x, W):
    """Roots; two kinds of lanes have none, and one of them starts at a singular Jacobian."""
    kind = x[..., :1]
    hard = torch.where(kind == ROOTLESS, (z + 1) ** 2 + 1, z**2 + 1)
    inside = (kind != ROOTLESS) & (kind != SINGULAR)
    return torch.where(inside, torch.tanh(z @ W.mT) + z - x, hard)


def path(z, t, x, W):
    """A path to the roots of ``steep``, where there are any."""
    t = t.unsqueeze(-1)
    return t * steep(z, x, W) + (1 - t) * (z - torch.tanh(x))


def contraction(z, x, W):
    """Fixed points; two kinds of lanes have none, and grow slowly or fast."""
    kind = x[..., :1]
    growing = torch.where(kind == ROOTLESS, z + 1, z**2 + 1)
    inside = (kind != ROOTLESS) & (kind != SINGULAR)
    return torch.where(inside, torch.tanh(z @ W.mT) + x, growing)


def with_hard_lanes(inside):
    """Return an objective that is ``inside`` in most lanes; a line downhill and a cliff in two."""

    def objective(z, x, w):
        kind = x[..., 0]
        cliff = torch.log((0.1 - z.abs()).clamp(min=0)).sum(-1) + w * z.sum(-1)
        hard = torch.where(kind == ROOTLESS, -4 * w * z.sum(-1), cliff)
        easy = (kind != ROOTLESS) & (kind != SINGULAR)
        return torch.where(easy, inside(z, x, w).sum(-1), hard)

    return objective


def valley(z, x, w):
    """Rosenbrock's, as steep as ``w``."""
    return (x[..., :-1] - z[..., :-1]) ** 2 + w * (z[..., 1:] - z[..., :-1] ** 2) ** 2


def bowl(z, x, w):
    return (z - x) ** 2 * (1 + torch.arange(3)) + w * z**4


def shrunk(v, step, x, w):
    return v.sign() * (v.abs() - 0.3 * step.unsqueeze(-1)).clamp(min=0)


def decay(z, y, w):
    return z[..., :1] * torch.exp(-z[..., 1:] * TIMES.to(z)) + w * z[..., :1] - y


def hill(z, x, w):
    """One unknown: ``z = sqrt(x)``, nearly; no root where ``x`` is negative."""
    return z**2 + w * z.abs() - x


def spread(x):
    """Put the lanes that fail among others."""
    x[1], x[2], x[3] = ROOTLESS, torch.nan, SINGULAR
    return x


def sizes(lanes, low, high):
    return torch.logspace(low, high, lanes, dtype=torch.float64).unsqueeze(-1)


class System(NamedTuple):
    """An equation and its data; ``bad`` are the lanes that fail."""

    equation: Callable
    fn: Callable
    start: Callable
    data: Callable
    bad: tuple[int, ...] = (1, 2, 3)

    def run(self, solver, **options):
        options = {**LANES, **options}

        def run(x, w):
            return self.equation(self.fn, self.start(x), (x, w), solver=solver, **options)

        return run


def near(lanes):
    return spread(sizes(lanes, -3, 0.5) * drawn(lanes, 4)), 0.3 * drawn(4, 4, seed=1)


def far(lanes):
    return spread(sizes(lanes, -1, 1) * drawn(lanes, 4)), 1.5 * drawn(4, 4, seed=1)


def curves(lanes):
    y = 2 * torch.exp(-sizes(lanes, -0.5, 0.5) * TIMES) + 0.05 * drawn(lanes, 6)
    y[2, 3] = torch.nan
    return y, torch.tensor(0.05, dtype=torch.float64)


def points(lanes):
    w = torch.tensor(0.5, dtype=torch.float64)
    return spread(1 + 0.2 * drawn(lanes, 3)), w


def levels(lanes):
    return spread(sizes(lanes, 0.5, 2)), torch.tensor(0.5, dtype=torch.float64)


def ones(y):
    return torch.ones_like(y[..., :2])


SPARSE = functools.partial(ims.minimize, prox=shrunk)
BY_PRODUCTS = functools.partial(ims.least_squares, gauss_newton=True)
ROBUST = functools.partial(ims.least_squares, loss="cauchy", f_scale=0.5)
SYSTEMS = {
    "root": System(ims.root, steep, torch.zeros_like, near),
    "path": System(ims.continuation, path, torch.zeros_like, near),
    "far root": System(ims.root, steep, torch.zeros_like, far),
    "fixed point": System(ims.fixed_point, contraction, torch.zeros_like, near),
    "valley": System(ims.minimize, with_hard_lanes(valley), torch.zeros_like, points),
    "bowl": System(ims.minimize, with_hard_lanes(bowl), torch.zeros_like, points),
    "sparse": System(SPARSE, with_hard_lanes(bowl), torch.zeros_like, points),
    "fit": System(ims.least_squares, decay, ones, curves, bad=(2,)),
    "fit, Gauss-Newton": System(BY_PRODUCTS, decay, ones, curves, bad=(2,)),
    "robust fit": System(ROBUST, decay, ones, curves, bad=(2,)),
    "one unknown": System(ims.root, hill, torch.ones_like, levels),
}


class Row(NamedTuple):
    system: str
    solver: Callable

    @property
    def problem(self):
        return SYSTEMS[self.system]


def row(system, solver, **options):
    return Row(system, functools.partial(solver, **options))


@dataclass(frozen=True)
class Own(HeavyBall):
    """The solver of the page on own solvers, which may be asked now and then."""

    check_every: int = 1


descent = functools.partial(ims.GradientDescent, 1.0, max_steps=100)
LOOSE = {"linear_solver": ims.CG(rtol=1e-4)}
ROWS = {
    "Newton": row("root", ims.Newton, max_steps=40),
    "Newton, full steps": row("root", ims.Newton, max_steps=40, halvings=0),
    "Newton, reuse": row("root", ims.Newton, max_steps=40, reuse=0.2),
    "Newton, GMRES": row("root", ims.Newton, max_steps=40, linear_solver=ims.GMRES()),
    "Newton, BiCGStab": row("root", ims.Newton, max_steps=40, linear_solver=ims.BiCGStab()),
    "Newton, LSMR": row("root", ims.Newton, max_steps=40, linear_solver=ims.LSMR()),
    "Chord": row("root", ims.Chord, max_steps=200),
    "Broyden": row("root", ims.Broyden, max_steps=60),
    "Broyden, bad": row("root", ims.Broyden, max_steps=60, good=False),
    "Broyden, LU": row("root", ims.Broyden, max_steps=60, linear_solver=ims.LU(), memory=3),
    "Continuation": row("path", ims.Continuation, max_steps=60),
    "NewtonDogleg": row("far root", ims.NewtonDogleg),
    "Dogleg": row("far root", ims.Dogleg),
    "Dogleg, GMRES": row("far root", ims.Dogleg, linear_solver=ims.GMRES(rtol=1e-4)),
    "LevenbergMarquardt": row("far root", ims.LevenbergMarquardt),
    "LevenbergMarquardt, small": row("far root", ims.LevenbergMarquardt, first_radius=1e-3),
    "LevenbergMarquardt, CG": row("far root", ims.LevenbergMarquardt, **LOOSE),
    "FixedPointIteration": row("fixed point", ims.FixedPointIteration, max_steps=200),
    "Anderson": row("fixed point", ims.Anderson, max_steps=100),
    "Aitken": row("fixed point", ims.Aitken, max_steps=100),
    "of one's own": row("fixed point", Own, max_steps=100),
    "fixed point, Dogleg": row("fixed point", ims.Dogleg),
    "fixed point, LevenbergMarquardt": row("fixed point", ims.LevenbergMarquardt),
    "GradientDescent": Row("bowl", functools.partial(ims.GradientDescent, 0.1, max_steps=100)),
    "Backtracking": row("bowl", descent, line_search=ims.Backtracking()),
    "StrongWolfe": row("bowl", descent, line_search=ims.StrongWolfe(curvature=0.1)),
    "LBFGS": row("valley", ims.LBFGS),
    "BFGS": row("valley", ims.BFGS),
    "NonlinearCG": row("valley", ims.NonlinearCG),
    "NewtonCG": row("valley", ims.NewtonCG),
    "FISTA": row("sparse", ims.FISTA, max_steps=100),
    "ProximalGradient": row("sparse", ims.ProximalGradient, max_steps=100),
    "TrustRegion": row("valley", ims.TrustRegion),
    "fit, GaussNewton": row("fit", ims.GaussNewton),
    "fit, GaussNewton, CG": row("fit", ims.GaussNewton, linear_solver=ims.CG(rtol=1e-6)),
    "fit, LevenbergMarquardt": row("fit", ims.LevenbergMarquardt),
    "fit, LevenbergMarquardt, CG": row("fit", ims.LevenbergMarquardt, **LOOSE),
    "fit, Dogleg": row("fit", ims.Dogleg),
    "fit, Dogleg, CG": row("fit", ims.Dogleg, **LOOSE),
    "fit, robust": row("robust fit", ims.LevenbergMarquardt),
    "fit, LBFGS": row("fit", ims.LBFGS),
    "fit, LBFGS, Gauss-Newton": row("fit, Gauss-Newton", ims.LBFGS),
    "fit, Backtracking": row("fit", descent, max_steps=700, line_search=ims.Backtracking()),
    "Steffensen": row("one unknown", ims.Steffensen, max_steps=60),
    "Bisection": row("one unknown", ims.Bisection),
    "Chandrupatla": row("one unknown", ims.Chandrupatla),
}
