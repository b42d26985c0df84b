"""Systems for tests of solvers, with SciPy's solutions, and what every solver must do on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.optimize
import torch
from torch.func import jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status

F32, F64 = torch.float32, torch.float64


def tensor(values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def error(ours, exact):
    assert ours.shape == exact.shape
    return float((ours - exact).detach().abs().max() / exact.detach().abs().max().clamp(min=1))


@dataclass(frozen=True)
class System:
    """``fn(z, theta) = 0``, or ``z = fn(z, theta)``, from a start."""

    name: str
    kind: str
    fn: Callable
    start: list
    theta: list

    def __str__(self):
        return self.name

    def condition(self, z, theta):
        out = self.fn(z, theta)
        return out if self.kind == "root" else z - out

    def solve(self, solver, dtype=F64, z0=None, theta=None, **options):
        z0 = tensor(self.start, dtype) if z0 is None else z0
        theta = tensor(self.theta, dtype) if theta is None else theta
        return getattr(ims, self.kind)(self.fn, z0, (theta,), solver=solver, **options)

    def reference(self, method="hybr"):
        """Return SciPy's solution."""
        start, theta = np.array(self.start), tensor(self.theta)

        def residual(x):
            z = torch.from_numpy(np.asarray(x)).reshape(start.shape)
            return self.condition(z, theta).reshape(-1).numpy()

        options = {} if method == "hybr" else {"fatol": 1e-12}
        tol = 1e-14 if method == "hybr" else None
        out = scipy.optimize.root(
            residual, start.reshape(-1), method=method, tol=tol, options=options
        )
        return torch.from_numpy(out.x).reshape(start.shape)

    def jacobian(self, z):
        """Return the implicit function's derivative in theta by a dense inverse, ``(n, p)``."""
        theta, n = tensor(self.theta), z.numel()
        A = jacfwd(self.condition)(z, theta).reshape(n, n)
        return -torch.linalg.inv(A) @ jacfwd(self.condition, 1)(z, theta).reshape(n, -1)


def tridiagonal(z, t):
    """Broyden's tridiagonal function."""
    left = torch.cat([z[:1] * 0, z[:-1]])
    right = torch.cat([z[1:], z[:1] * 0])
    return (3 - t[0] * z) * z - left - 2 * right + t[1]


def h_equation(z, t):
    """Chandrasekhar's equation of radiative transfer."""
    mu = (torch.arange(len(z)).to(z) + 0.5) / len(z)
    kernel = mu.unsqueeze(1) / (mu.unsqueeze(1) + mu) / (2 * len(z))
    return z - 1 / (1 - t[0] * kernel @ z) + t[1] * mu


def bratu(z, t):
    left = torch.cat([z[:1] * 0, z[:-1]])
    right = torch.cat([z[1:], z[:1] * 0])
    return 2 * z - left - right - t[0] * torch.exp(z) + t[1]


def coupled(z, t):
    return z + t[0] * torch.sin(torch.roll(z, 1)) + 0.1 * z**3 - t[1:]


def contraction(z, t):
    return torch.tanh(t[0] * torch.roll(z, 1) + 0.3 * z) + t[1:]


def kepler(z, t):
    return t[0] * torch.sin(z) + t[1:]


def cubic(z, t):
    return z**3 + t[0] * z - t[1]


TRIDIAGONAL = System("tridiagonal", "root", tridiagonal, [-1.0] * 10, [2.0, 1.0])
H_EQUATION = System("h-equation", "root", h_equation, [1.0] * 20, [0.9, 0.1])
BRATU = System("bratu", "root", bratu, [0.0] * 6, [0.06, 0.01])
COUPLED = System("coupled", "root", coupled, [0.0] * 4, [0.4, 0.3, -0.8, 1.2, 0.5])
CUBIC = System("cubic", "root", cubic, 1.5, [2.0, 5.0])
KEPLER = System("kepler", "fixed_point", kepler, [0.5, 2.0], [0.6, 0.8, 2.0])
CONTRACTION = System(
    "contraction", "fixed_point", contraction, [0.0] * 4, [0.5, 0.3, -0.8, 1.2, 0.5]
)
COSINE = System("cosine", "fixed_point", lambda z, t: t[0] * torch.cos(z), 0.3, [0.9])

ROOTS = [TRIDIAGONAL, H_EQUATION, BRATU, COUPLED, CUBIC]
FIXED_POINTS = [KEPLER, CONTRACTION, COSINE]


def check_value(system, solver, method="hybr"):
    sol = system.solve(solver)
    assert bool(sol.converged) and int(sol.status) == Status.CONVERGED
    assert error(sol.value, system.reference(method)) < 1e-9


def check_derivative(system, solver):
    """In both modes it is the implicit function's."""
    exact = system.jacobian(system.solve(solver).value)
    for mode in (jacrev, jacfwd):
        ours = mode(lambda t: system.solve(solver, theta=t).value)(tensor(system.theta))
        assert error(ours.reshape(exact.shape), exact) < 1e-8


def check_float32(system, solver):
    sol = system.solve(solver, F32)
    assert sol.value.dtype == sol.residual.dtype == F32 and bool(sol.converged)
    assert error(sol.value.double(), system.reference()) < 1e-4


def check_lanes(system, solver, starts=(0.9, 1.1)):
    """A lane of a batch ends as it does alone, beside one with NaN, compacted or not."""
    generator = torch.Generator().manual_seed(0)
    theta = tensor(system.theta)
    thetas = theta * (1 + 0.1 * torch.rand(7, *theta.shape, generator=generator, dtype=F64))
    thetas[2] *= torch.nan
    start = tensor(system.start)
    z0 = start * torch.linspace(*starts, 7, dtype=F64).reshape(7, *(1,) * start.dim())

    def solve(z0, theta, compact=True):
        one = replace(solver, compact=compact)
        return system.solve(one, z0=z0, theta=theta, on_failure="mask")

    batches = [vmap(solve)(z0, thetas), vmap(lambda z, t: solve(z, t, False))(z0, thetas)]
    if start.dim() == 0:
        # elements as native lanes, which cannot be selected, and those that can
        for in_dims in (None, (0,)):
            columns = thetas.T if in_dims is None else thetas
            fn = system.fn if in_dims is None else lambda z, t: system.fn(z, t.T)
            batches.append(
                getattr(ims, system.kind)(
                    fn, z0, (columns,), solver=solver, batch_dims=1, in_dims=in_dims,
                    on_failure="mask",
                )
            )  # fmt: skip
    for i in range(7):
        alone = solve(z0[i], thetas[i])
        for batch in batches:
            expected = Status.NONFINITE if i == 2 else Status.CONVERGED
            assert int(batch.status[i]) == int(alone.status) == expected, i
            apart = abs(int(batch.iterations[i]) - int(alone.iterations))
            assert apart <= 1, (i, apart)
            assert error(batch.value[i], alone.value) < (1e-10 if apart == 0 else 1e-8), i


def growing(z, slope, w):
    """The map has no fixed point where ``slope`` is 1."""
    return slope * z + w * (1 + 0.1 * torch.sin(z) ** 2)


def check_bad_lanes(kind, solver, n=2):
    """Lanes with NaN, and without a solution, fail, and leave no trace in a shared gradient."""
    solver = replace(solver, max_steps=100)
    slopes = tensor([0.3, torch.nan, 1.0, 0.5])
    w = tensor(0.7).requires_grad_()

    def fn(z, slope, w):
        return growing(z, slope, w) if kind == "fixed_point" else z - growing(z, slope, w)

    def solve(slope, w, on_failure="raise"):
        z0 = torch.full((n,), 0.5, dtype=F64)
        return getattr(ims, kind)(fn, z0, (slope, w), solver=solver, on_failure=on_failure)

    batch = vmap(lambda s: solve(s, w, "mask"))(slopes)
    assert batch.converged.tolist() == [True, False, False, True]
    assert int(batch.status[1]) == Status.NONFINITE
    assert int(batch.status[2]) in (Status.MAX_STEPS, Status.STALLED, Status.SINGULAR)
    assert bool(torch.isfinite(batch.value[2]).all())
    (ours,) = torch.autograd.grad(batch.value.sum(), w)
    good = sum(solve(slopes[i], w).value.sum() for i in (0, 3))
    (exact,) = torch.autograd.grad(good, w)
    assert error(batch.value[[0, 3]].sum(), good) < 1e-9 and error(ours, exact) < 1e-9


def check_budget(system, make, steps):
    """As many steps as asked for, whatever comes of them; at the solution they stay there."""
    sol = system.solve(make(rtol=None, max_steps=steps))
    assert int(sol.iterations) == steps and int(sol.status) == Status.BUDGET
    none = system.solve(make(rtol=None, max_steps=0))
    assert int(none.iterations) == 0 and torch.equal(none.value, tensor(system.start))
    exact = system.reference()
    sol = system.solve(make(rtol=None, max_steps=12), z0=exact)
    assert int(sol.iterations) == 12 and int(sol.status) == Status.BUDGET
    assert error(sol.value, exact) < 1e-7
