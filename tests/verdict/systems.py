"""Problems of every condition whose solutions are known, and the solvers that are tried on them.

The solutions are those of the data as stored: refined with residuals in 40 digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor
from torch.func import jacfwd, vmap

import implicit_solvers as ims
from implicit_solvers import Status

F32, F64 = torch.float32, torch.float64
CONVERGED, SINGULAR, SADDLE = (int(s) for s in (Status.CONVERGED, Status.SINGULAR, Status.SADDLE))
_exact, _sin, _cos = (np.frompyfunc(f, 1, 1) for f in (mpmath.mpf, mpmath.sin, mpmath.cos))


def sin(x):
    return torch.sin(x) if isinstance(x, Tensor) else _sin(x)


def cos(x):
    return torch.cos(x) if isinstance(x, Tensor) else _cos(x)


def times(matrix, v):
    return (matrix @ v[..., None])[..., 0]


def rms(v):
    return v.double().square().mean(-1).sqrt()


@dataclass(frozen=True, eq=False)
class Problems:
    """One problem a lane: an entry point, what it is given, and what it should return."""

    entry: str
    fn: Callable
    z0: Tensor
    data: tuple
    condition: Tensor
    truth: Tensor

    def solve(self, solver):
        return solve(self.entry, self.fn, self.z0, self.data, solver)


def solve(entry, fn, z0, data, solver):
    in_dims = (0,) * len(data)
    how = {"solver": solver, "batch_dims": 1, "in_dims": in_dims, "on_failure": "mask"}
    if isinstance(getattr(solver, "linear_solver", None), ims.SuperLU):
        how["jac_sparsity"] = torch.ones(z0.shape[-1], z0.shape[-1])
    solve = getattr(ims, entry) if isinstance(entry, str) else entry
    return solve(fn, z0, tuple(data), **how)


def solution(F, z, data):
    """Return the root of ``F`` near ``z``: Newton's method, then refinement in 40 digits."""
    data, slope = [t.double() for t in data], vmap(jacfwd(F))
    for _ in range(30):
        z = z - torch.linalg.solve(slope(z, *data), F(z, *data))
    J, x, exact = slope(z, *data).numpy(), _exact(z.numpy()), [_exact(t.numpy()) for t in data]
    left = np.arange(len(x))
    with mpmath.workdps(40):
        for _ in range(200):
            r = F(x[left], *(t[left] for t in exact)).astype(float)
            step = np.linalg.solve(J[left], r[..., None])[..., 0]
            x[left] -= _exact(step)
            size = np.abs(x[left]).max(-1).astype(float)
            left = left[np.abs(step).max(-1) > 1e-20 * size]
            if not len(left):
                return torch.from_numpy(x.astype(float))
    raise AssertionError(f"{len(left)} solutions are not known")


# -------------------------------------------------------------------------------- the families


def warped(z, Q, c):
    # (its Jacobian is within a quarter of I: there is one root, of the condition of A)
    return z + 0.25 * sin(times(Q, z) + c)


def residual(z, A, b, Q, c):
    return times(A, warped(z, Q, c)) - b


def iteration(z, A, b, Q, c):
    return z - residual(z, A, b, Q, c)


def objective(z, size, R, b):
    y = times(R, z)
    return size * ((y**2 / 2 + y**4 / 4).sum(-1) - (b * z).sum(-1))


def slope(z, size, R, b):
    y = times(R, z)
    return times(R.mT if isinstance(R, Tensor) else R.swapaxes(-1, -2), y + y**3) - b


def misfit(z, X, y, bend):
    u = times(X, z)
    return u + bend * sin(u) - y


def normal_equations(z, X, y, bend):
    weight = 1 + bend * cos(times(X, z))
    return times(
        X.mT if isinstance(X, Tensor) else X.swapaxes(-1, -2), weight * misfit(z, X, y, bend)
    )


class Draw:
    """Random matrices of the conditions 1 to ``largest``, one a lane."""

    def __init__(self, lanes, largest, seed):
        self.lanes, self.rng = lanes, np.random.default_rng(seed)
        self.condition = torch.logspace(0, np.log10(largest), lanes, dtype=F64)

    def normal(self, *shape):
        return torch.from_numpy(self.rng.standard_normal((self.lanes, *shape)))

    def size(self, power):
        return 10 ** torch.from_numpy(self.rng.uniform(-power, power, (self.lanes, 1)))

    def columns(self, m, n):
        return torch.linalg.qr(self.normal(m, n))[0]

    def stretch(self, n):
        return self.condition[:, None] ** -torch.linspace(0, 1, n, dtype=F64)


@cache
def roots(lanes, dtype, seed=0, n=6):
    d = Draw(lanes, 1e14, seed)
    A = d.columns(n, n) * d.stretch(n)[:, None] @ d.columns(n, n) * d.size(3)[..., None]
    return _systems("root", residual, A, d, dtype)


@cache
def fixed_points(lanes, dtype, seed=0, n=6):
    # one minus the contraction is about one over the condition
    d = Draw(lanes, 1e5, seed)
    V = d.columns(n, n)
    return _systems("fixed_point", iteration, 0.75 * V * d.stretch(n)[:, None] @ V.mT, d, dtype)


def _systems(entry, fn, A, d, dtype):
    z, n = d.normal(A.shape[-1]), A.shape[-1]
    A, Q, c = (t.to(dtype) for t in (A, d.columns(n, n), d.normal(n)))
    b = times(A.double(), warped(z, Q.double(), c.double())).to(dtype)
    data = A, b, Q, c
    return Problems(entry, fn, 0 * b, data, d.condition, solution(residual, z, data))


@cache
def minima(lanes, dtype, seed=0, n=6):
    d = Draw(lanes, 1e12, seed)
    R = (d.columns(n, n) * d.stretch(n)[:, None].sqrt() @ d.columns(n, n)).to(dtype)
    z, size = d.normal(n), d.size(3)[:, 0].to(dtype)
    data = size, R, slope(z, size, R.double(), 0).to(dtype)
    truth = solution(slope, z, data)
    return Problems(
        "minimize", objective, torch.zeros_like(z, dtype=dtype), data, d.condition, truth
    )


@cache
def fits(lanes, dtype, seed=0, n=3, m=9):
    # in turn without residuals, with small, with ordinary and with huge ones; with the largest
    # bend, the curvature is a third of the Gauss-Newton matrix; the rounding of J, times a huge
    # residual, counts as condition
    d = Draw(lanes, 1e12, seed)
    X = d.columns(m, n) * d.stretch(n)[:, None].sqrt() @ d.columns(n, n)
    left = torch.tensor([0, 1e-3, 1, 1e4], dtype=F64).repeat(lanes)[:lanes, None]
    z, bend = d.normal(n), 0.25 / left.clamp(min=1)
    columns = torch.linalg.qr(X * (1 + bend * cos(times(X, z)))[..., None])[0]
    r = d.normal(m)
    r = r - times(columns, times(columns.mT, r))
    X, bend = X.to(dtype), bend.to(dtype)
    r = left * r / r.abs().amax(-1, keepdim=True)
    y = (misfit(z, X.double(), 0, bend.double()) - r).to(dtype)
    data, start = (X, y, bend), (z + d.normal(n) / 8).to(dtype)
    truth, condition = solution(normal_equations, z, data), d.condition * left[:, 0].clamp(min=1)
    return Problems("least_squares", misfit, start, data, condition, truth)


@dataclass(frozen=True, repr=False)
class Measured:
    """What a solver made of problems: ``off`` is how far its value is from the solution.

    ``false`` are the lanes that are CONVERGED, and off by more than a hundred estimates and a
    thousand tolerances; a lane without an estimate has the tolerances alone.
    """

    status: Tensor
    iterations: Tensor
    error: Tensor
    off: Tensor
    size: Tensor
    false: Tensor

    @property
    def converged(self):
        return self.status == CONVERGED

    def __repr__(self):
        names = {Status(int(s)).name: int((self.status == s).sum()) for s in self.status.unique()}
        ratio = (self.off / self.error)[self.converged & (self.error > 0) & self.error.isfinite()]
        spread = f"{float(ratio.median()):.2g}/{float(ratio.max()):.2g}" if len(ratio) else "-"
        steps = float(self.iterations.double().mean())
        return f"{names}, false {int(self.false.sum())}, off/error {spread}, steps {steps:.1f}"


def measure(problems, solver):
    sol = problems.solve(solver)
    off, size, error = rms(sol.value - problems.truth), rms(sol.value), sol.error.double()
    tolerance = torch.finfo(sol.value.dtype).eps ** 0.75 * rms(problems.truth)
    said = torch.maximum(1e3 * tolerance, 100 * error.where(error.isfinite(), 0))
    false = (sol.status == CONVERGED) & ~(off <= said)
    return Measured(sol.status, sol.iterations, error, off, size, false)


@dataclass(frozen=True)
class Row:
    """A solver: up to the condition ``reach`` it has to converge (in float32, up to 1e4 of it).

    ``flags`` are the statuses that its failures have, where it has no others: in float32, a
    dogleg's step from zero may find nothing lower (STALLED), and noise take a minimum's trials.
    """

    problems: Callable
    name: str
    solver: Any
    reach: float
    flags: tuple = ()

    def __str__(self):
        return f"{self.problems.__name__}-{self.name}"


SOLVERS = [
    Row(roots, "Newton", ims.Newton(), 1e14, (SINGULAR,)),
    Row(roots, "default", None, 1e14),
    Row(roots, "Dogleg", ims.Dogleg(), 1e6),
    Row(roots, "LevenbergMarquardt", ims.LevenbergMarquardt(), 1e4),
    Row(roots, "Broyden", ims.Broyden(), 10),
    Row(roots, "Chord", ims.Chord(), 1e6),
    Row(minima, "Newton", ims.Newton(), 1e10),
    Row(minima, "NewtonCG", ims.NewtonCG(), 1e4),
    Row(minima, "TrustRegion", ims.TrustRegion(), 1e10),
    Row(minima, "LBFGS", ims.LBFGS(), 1e2),
    Row(minima, "BFGS", ims.BFGS(), 1e2),
    Row(minima, "NonlinearCG", ims.NonlinearCG(), 1e2),
    Row(fixed_points, "FixedPointIteration", ims.FixedPointIteration(), 10),
    Row(fixed_points, "Anderson", ims.Anderson(), 1e2),
    Row(fixed_points, "Aitken", ims.Aitken(), 10),
    Row(fits, "LevenbergMarquardt", ims.LevenbergMarquardt(), 1e6),
    Row(fits, "Dogleg", ims.Dogleg(), 1e6),
    Row(fits, "GaussNewton", ims.GaussNewton(), 1e6),
]
