"""Solutions and derivatives of the test problems, with 100 digits: references.json.

    python tests/testing/make_references.py [NAME ...]

Every equation but CUTEst's is written here a second time, for mpmath. A root is found by chord
steps from SciPy's, its derivative by the implicit function theorem; central differences of
solutions must agree with the first column of it. Minima with constraints are SciPy's, polished by
Newton's steps on their conditions, in float64, and their derivatives are differences of such
minima; the implicit function theorem and SciPy's own differences must agree with them.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from mpmath import mp, mpf

from implicit_solvers.testing import problems
from implicit_solvers.testing.problems import regression

mp.dps = 100
STEP = mpf(10) ** -30
FILE = Path(problems.__file__).with_name("references.json")


# -- the equations, as lists of numbers -----------------------------------------------------------


def circle(x, theta):
    return [x[0] * x[0] + theta[0] ** 2 - theta[1] ** 2]


def affine(z, theta):
    a, b, c = theta
    return [z[0] - (b - a * z[1]), z[1] - (c + a * z[0])]


def cosine(z, theta):
    return [z[0] - theta[0] * mp.cos(z[0])]


def kepler(E, theta):
    return [E[0] - theta[1] * mp.sin(E[0]) - theta[0]]


def quantile(z, theta):
    p, w, mean, scale = theta
    return [(1 - w) * mp.ncdf(z[0]) + w * mp.ncdf(z[0], mean, scale) - p]


def colebrook(f, theta):
    s = f[0] ** mpf("-0.5")
    argument = theta[1] / mpf("3.7") + mpf("2.51") * s / theta[0]
    return [s + 2 * mp.log(argument) / mp.log(10)]


def implied_volatility(sigma, theta):
    price, spot, strike, rate, years = theta
    deviation = sigma[0] * mp.sqrt(years)
    forward = spot * mp.exp(rate * years)
    d1 = mp.log(forward / strike) / deviation + deviation / 2
    d2 = d1 - deviation
    return [mp.exp(-rate * years) * (forward * mp.ncdf(d1) - strike * mp.ncdf(d2)) - price]


def rosenbrock(x, theta):
    return [theta[0] * x[1] - theta[0] * x[0] * x[0], theta[1] - x[0]]


def freudenstein_roth(x, theta):
    u, v = x
    return [u - v**3 + 5 * v**2 - 2 * v - theta[0], u + v**3 + v**2 - 14 * v - theta[1]]


def powell_badly_scaled(x, theta):
    return [theta[0] * x[0] * x[1] - 1, mp.exp(-x[0]) + mp.exp(-x[1]) - theta[1]]


def helical_valley(x, theta):
    # the root is in the half plane x1 > 0
    turn = mp.atan(x[1] / x[0]) / (2 * mp.pi)
    return [10 * x[2] - 100 * turn, 10 * (mp.hypot(x[0], x[1]) - theta[0]), x[2] - theta[1]]


def wood(x, theta):
    p, q, r, s = x
    a, b = theta
    return [
        200 * p**3 - 200 * p * q + p - a,
        200 * q - 200 * p**2 + mpf("20.2") * (q - 1) + mpf("19.8") * (s - 1),
        180 * r**3 - 180 * r * s + r - b,
        180 * s - 180 * r**2 + mpf("20.2") * (s - 1) + mpf("19.8") * (q - 1),
    ]


def watson(x, theta):
    def residuals(x, theta):
        out = []
        for i in range(1, 30):
            t = mpf(i) / 29
            value = mp.polyval(x[::-1], t)
            slope = mp.polyval([j * x[j] for j in range(len(x) - 1, 0, -1)], t)
            out.append(slope - value**2 - theta[0])
        return [*out, x[0], x[1] - x[0] ** 2 - theta[1]]

    return normal_equations(residuals)(x, theta)


def chebyquad(x, theta):
    out = []
    for i in range(1, len(x) + 1):
        mean = mp.fsum(mp.chebyt(i, 2 * v - 1) for v in x) / len(x)
        integral = theta[i - 1] if i < 3 else (mpf(-1) / (i * i - 1) if i % 2 == 0 else 0)
        out.append(mean - integral)
    return out


def brown_almost_linear(x, theta):
    total = mp.fsum(x)
    return [*(v + total - theta[0] for v in x[:-1]), mp.fprod(x) - theta[1]]


def discrete_boundary_value(x, theta):
    n, out = len(x), []
    for i in range(n):
        left = x[i - 1] if i > 0 else theta[0]
        right = x[i + 1] if i < n - 1 else theta[1]
        t = mpf(i + 1) / (n + 1)
        out.append(2 * x[i] - left - right + (x[i] + t + 1) ** 3 / (2 * mpf(n + 1) ** 2))
    return out


def discrete_integral_equation(x, theta):
    n, out = len(x), []
    t = [mpf(i + 1) / (n + 1) for i in range(n)]
    for i in range(n):
        # Green's function of the second derivative
        green = [min(t[i], t[j]) * (1 - max(t[i], t[j])) for j in range(n)]
        total = mp.fsum(green[j] * (x[j] + t[j] + theta[1]) ** 3 for j in range(n))
        out.append(x[i] + theta[0] * total / (n + 1))
    return out


def trigonometric(x, theta):
    total = mp.fsum(mp.cos(v) for v in x)
    return [theta[0] - total + i * (1 - mp.cos(v)) - mp.sin(v) for i, v in enumerate(x, start=1)]


def variably_dimensioned(x, theta):
    s = mp.fsum(i * (v - theta[1]) for i, v in enumerate(x, start=1))
    return [v - theta[0] + i * (s + 2 * s**3) for i, v in enumerate(x, start=1)]


def broyden_tridiagonal(x, theta):
    padded = [0, *x, 0]
    return [
        (theta[0] - theta[1] * padded[i]) * padded[i] - padded[i - 1] - 2 * padded[i + 1] + 1
        for i in range(1, len(x) + 1)
    ]


def broyden_banded(x, theta):
    out = []
    for i, v in enumerate(x):
        near = [j for j in range(max(0, i - 5), min(len(x), i + 2)) if j != i]
        coupling = mp.fsum(x[j] * (1 + x[j]) for j in near)
        out.append(v * (theta[0] + theta[1] * v * v) + 1 - coupling)
    return out


def chandrasekhar(H, theta):
    n, out = len(H), []
    for i in range(1, n + 1):
        # mu_i / (mu_i + mu_j) with mu_i = (i - 1/2) / n
        total = mp.fsum(mpf(2 * i - 1) / (2 * (i + j - 1)) * H[j - 1] for j in range(1, n + 1))
        out.append(H[i - 1] - 1 / (1 - theta[0] * total / (2 * n)))
    return out


def bratu(u, theta):
    n = len(u)
    padded = [0, *u, 0]
    return [
        (2 * padded[i] - padded[i - 1] - padded[i + 1]) * mpf(n + 1) ** 2
        - theta[0] * mp.exp(padded[i])
        for i in range(1, n + 1)
    ]


def robertson(y, theta):
    a, b, c = y
    slow, fast, middle = theta[0] * a, theta[1] * b * b, theta[2] * b * c
    h = mpf("0.1")
    return [a - 1 - h * (middle - slow), b - h * (slow - middle - fast), c - h * fast]


def heat(u, theta):
    n = len(u)
    h = mpf(1) / (n + 1)
    old = [mp.sin(mp.pi * i * h) for i in range(1, n + 1)]

    def change(u):
        padded = [0, *u, 0]
        flux = []
        for left, right in pairwise(padded):
            conductivity = theta[0] + theta[1] * ((left + right) / 2) ** 2
            flux.append(conductivity * (right - left) / h)
        return [(right - left) / h for left, right in pairwise(flux)]

    return [
        v - w - h / 2 * (p + q) for v, w, p, q in zip(u, old, change(u), change(old), strict=True)
    ]


def rosenbrock_valley(z, theta):
    return (theta[0] - z[0]) ** 2 + theta[1] * (z[1] - z[0] ** 2) ** 2


def himmelblau(z, theta):
    return (z[0] ** 2 + z[1] - theta[0]) ** 2 + (z[0] + z[1] ** 2 - theta[1]) ** 2


def beale(z, theta):
    return mp.fsum((theta[i] - z[0] * (1 - z[1] ** (i + 1))) ** 2 for i in range(3))


def linear_predictors(w):
    rows = range(1, len(regression.LABELS) + 1)
    # the design of float64, as the problems have it
    design = regression.DESIGN.tolist()
    for i in rows:
        assert abs(design[i - 1][1] - float(mp.sin(i))) < 1e-15
        assert abs(design[i - 1][2] - float(mp.cos(3 * i))) < 1e-15
    return [mp.fsum(mpf(x) * v for x, v in zip(row, w, strict=True)) for row in design]


def penalty(w, theta):
    return theta[0] / 2 * mp.fsum(v * v for v in w)


def ridge(w, theta):
    return mp.fsum(r * r for r in ridge_residuals(w, theta)) / 2


def ridge_residuals(w, theta):
    y = map(mpf, regression.HEIGHTS.tolist())
    misfit = [a - b for a, b in zip(linear_predictors(w), y, strict=True)]
    return [*misfit, *(mp.sqrt(theta[0]) * v for v in w)]


def logistic(w, theta):
    y = regression.LABELS.tolist()
    loss = [mp.log1p(mp.exp(-b * a)) for a, b in zip(linear_predictors(w), y, strict=True)]
    return mp.fsum(loss) + penalty(w, theta)


def poisson(w, theta):
    y = regression.COUNTS.tolist()
    loss = [mp.exp(a) - b * a for a, b in zip(linear_predictors(w), y, strict=True)]
    return mp.fsum(loss) + penalty(w, theta)


def meyer(z, theta):
    times = range(50, 130, 5)
    return [z[0] * mp.exp(z[1] / (t + z[2])) - y for t, y in zip(times, theta, strict=True)]


def michaelis_menten(z, theta):
    concentrations = [x for c in ("0.02", "0.06", "0.11", "0.22", "0.56", "1.10") for x in (c, c)]
    return [z[0] * mpf(c) / (z[1] + mpf(c)) - y for c, y in zip(concentrations, theta, strict=True)]


def osborne_1(z, theta):
    return [
        z[0] + z[1] * mp.exp(-z[3] * 10 * i) + z[2] * mp.exp(-z[4] * 10 * i) - y
        for i, y in enumerate(theta)
    ]


def osborne_2(z, theta):
    out = []
    for i, y in enumerate(theta):
        t = mpf(i) / 10
        value = z[0] * mp.exp(-t * z[4])
        for k in (1, 2, 3):
            value += z[k] * mp.exp(-((t - z[k + 7]) ** 2) * z[k + 4])
        out.append(value - y)
    return out


# -- optimality conditions ------------------------------------------------------------------------


def partial(fn, at, i):
    """Return the derivative of a list-valued function in its i-th variable."""
    up, down = list(at), list(at)
    up[i] += STEP
    down[i] -= STEP
    return [(a - b) / (2 * STEP) for a, b in zip(fn(up), fn(down), strict=True)]


def jacobian(fn, at):
    return mp.matrix([partial(fn, at, i) for i in range(len(at))]).T


def gradient(objective):
    def condition(z, theta):
        return [partial(lambda u: [objective(u, theta)], z, i)[0] for i in range(len(z))]

    return condition


def normal_equations(residuals):
    def condition(z, theta):
        r = residuals(z, theta)
        columns = [partial(lambda u: residuals(u, theta), z, i) for i in range(len(z))]
        return [mp.fdot(column, r) for column in columns]

    return condition


CONDITIONS = {
    "root": lambda fn: fn,
    "fixed_point": lambda fn: fn,
    "minimize": gradient,
    "least_squares": normal_equations,
}


def equation_of(problem):
    """Return the function of the problem's name, or of its name without the last word."""
    name = problem.name.replace("-", "_")
    return globals().get(name) or globals()[name.rpartition("_")[0]]


SINGULAR = {problems.DOUBLE_ROOT: 1.0, problems.POWELL_SINGULAR: [0.0, 0.0, 0.0, 0.0]}
WITHOUT_SOLUTION = (problems.NO_ROOT, problems.CHEBYQUAD_8)

# Where SciPy fails from the standard start, or finds another solution.
NEAR = {
    problems.FREUDENSTEIN_ROTH: (5, 4),
    problems.FREUDENSTEIN_ROTH_FAR: (5, 4),
    problems.HELICAL_VALLEY: (1, 0, 0),
    problems.TRIGONOMETRIC: (
        *(0.047912, 0.049185, 0.050609, 0.052223, 0.054083),
        *(0.056273, 0.058932, 0.186397, 0.154342, 0.124625),
    ),
    problems.ROBERTSON: (0.996, 4e-5, 0.004),
}

# CUTEst's roots: those that are singular, and where to start for what SciPy fails on otherwise.
CUTEST_SINGULAR = {
    "denschndne": [0.0, 0.0, 0.0],
    "powellsq": [0.0, 0.0],
    "powersumne": [1.0, 2.0, 3.0, 2.0],
    "recipe": [5.0, 0.0, 0.0],
}
CUTEST_NEAR = {
    "hatfldf": (0.002, 0.02, 0.6),
    "hatfldflne": (0.002, 0.02, 1.8),
    "oscipane": 10 * (1.0,),
}


# -- solutions ------------------------------------------------------------------------------------


def approximate(problem, equation):
    """Return a solution of float64 by SciPy."""
    theta = [mpf(p) for p in problem.parameters]

    def numeric(x):
        out = equation([mpf(float(v)) for v in x], theta)
        return np.array([float(v) for v in out]) if isinstance(out, list) else float(out)

    start = np.atleast_1d(NEAR.get(problem, problem.z0)).astype(float)
    if problem.kind == "minimize":
        return scipy.optimize.minimize(numeric, start, tol=1e-12).x
    if problem.kind == "least_squares":
        return scipy.optimize.least_squares(numeric, start, method="lm", xtol=1e-15, ftol=1e-15).x
    return scipy.optimize.root(numeric, start, tol=1e-14).x


def settle(condition, z, theta, inverse):
    """Take chord steps until they vanish."""
    for _ in range(60):
        step = inverse * mp.matrix(condition(z, theta))
        z = [a - b for a, b in zip(z, step, strict=True)]
        if mp.norm(step) < mpf(10) ** -45 * mp.norm(mp.matrix(z)):
            return z
    raise RuntimeError(f"the chord steps did not settle: {z}")


def reference(problem, equation):
    """Return the solution and its derivative, as numbers of float64."""
    condition = CONDITIONS[problem.kind](equation)
    theta = [mpf(p) for p in problem.parameters]
    z = [mpf(float(v)) for v in approximate(problem, equation)]
    inverse = jacobian(lambda u: condition(u, theta), z) ** -1
    z = settle(condition, z, theta, inverse)
    inverse = jacobian(lambda u: condition(u, theta), z) ** -1
    derivative = -inverse * jacobian(lambda p: condition(z, p), theta)

    h = mpf(10) ** -18 * max(abs(theta[0]), 1)
    up = settle(condition, z, [theta[0] + h, *theta[1:]], inverse)
    down = settle(condition, z, [theta[0] - h, *theta[1:]], inverse)
    slope = mp.matrix([(a - b) / (2 * h) for a, b in zip(up, down, strict=True)])
    assert mp.norm(slope - derivative[:, 0]) <= mpf(10) ** -20 * mp.norm(slope), problem.name

    solution = [rounded(v) for v in z]
    rows = [[rounded(v) for v in derivative[i, :]] for i in range(len(z))]
    if problem.start().dim() == 0:
        return solution[0], rows[0]
    return solution, rows


def cutest_root(problem):
    """Return a root by SciPy, in float64; the formulas of sif2jax take the place of mpmath's."""
    if problem.name in CUTEST_SINGULAR:
        return CUTEST_SINGULAR[problem.name]
    of = lambda fn: lambda x: fn(torch.from_numpy(x.copy()), problem.theta()).numpy()
    start = CUTEST_NEAR.get(problem.name, problem.z0)
    jac = of(torch.func.jacfwd(problem.fn))
    out = scipy.optimize.root(of(problem.fn), start, jac=jac, method="lm", tol=1e-15)
    return [float(v) if abs(v) > 1e-14 else 0.0 for v in out.x]


def rounded(v):
    """Return a number of float64; what 100 digits cannot tell from zero is zero."""
    return float(v) if abs(v) > mpf(10) ** -25 else 0.0


# -- minima with constraints, in float64 ----------------------------------------------------------

# 13 and 30 have no multipliers, or too many.
CONSTRAINED_SINGULAR = {
    "hs13": {"solution": [1.0, 0.0], "derivative": None},
    "hs17": {"solution": [0.0, 0.0], "derivative": None, "multipliers": [2.0, 0.0]},
    "hs26": {"solution": [1.0, 1.0, 1.0], "derivative": None, "multipliers": [0.0]},
    "hs30": {"solution": [1.0, 0.0, 0.0], "derivative": None},
}
# where SciPy finds another minimum, or none, from the standard start
CONSTRAINED_NEAR = {"hs2": (1.2, 1.5), "hs61": (5, -2, 3), "hs72": (190, 180, 185, 170)}


def slsqp(problem, start, theta):
    """Return SciPy's minimum, with tight tolerances."""

    def of(fn, sign=1):
        value = lambda x: sign * fn(torch.from_numpy(x.copy()), theta).numpy()
        slope = torch.func.jacrev(fn)
        return value, lambda x: sign * slope(torch.from_numpy(x.copy()), theta).numpy()

    limits = (("eq", 1, problem.equalities), ("ineq", -1, problem.inequalities))
    rows = [(kind, *of(fn, sign)) for kind, sign, fn in limits if fn is not None]
    value, slope = of(problem.fn)
    return scipy.optimize.minimize(
        value,
        np.asarray(start, dtype=float),
        jac=slope,
        bounds=scipy.optimize.Bounds(*(b.numpy() for b in problem.box(theta))),
        constraints=[{"type": kind, "fun": fun, "jac": jac} for kind, fun, jac in rows],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    ).x


def active_set(problem, z, theta):
    """Return which constraints are active, and which lower and upper bounds."""
    c, size = problem.constraints(z, theta), z.abs() + 1
    terms = torch.func.jacrev(problem.constraints)(z, theta).abs() @ size
    lower, upper = problem.box(theta)
    return c >= -1e-6 * (1 + terms), z - lower <= 1e-6 * size, upper - z <= 1e-6 * size


def kkt(problem, active):
    """Return the conditions on the minimum and the multipliers of all that is active."""
    rows, low, high = active

    def limits(z, theta):
        lower, upper = problem.box(theta)
        return torch.cat([problem.constraints(z, theta)[rows], (lower - z)[low], (z - upper)[high]])

    def condition(u, theta):
        z, y = u[: len(low)], u[len(low) :]
        slope = torch.func.grad(lambda z: problem.fn(z, theta) + y @ limits(z, theta))(z)
        return torch.cat([slope, limits(z, theta)])

    return condition


def newton(condition, u, theta):
    """Return the root that Newton's steps lead to, until they are rounding."""
    least = torch.inf
    for _ in range(50):
        jacobian = torch.func.jacfwd(condition)(u, theta)
        units = jacobian.abs().amax(0)
        step = torch.linalg.solve(jacobian / units, condition(u, theta))
        u, size = u - step / units, float(step.norm())
        if size == 0 or (size >= least / 2 and least <= 1e-9 * float((u * units).norm())):
            return u
        least = size
    raise RuntimeError(f"Newton's steps did not settle: {u}")


def is_strict(problem, active, u, theta):
    """Tell whether the minimum is a regular one.

    The gradients of all that is active are independent, the multipliers of what is active but no
    equality are positive, and so is the curvature where all that is active stays so.
    """
    n = len(active[1])
    equalities = 0 if problem.equalities is None else len(problem.equalities(u[:n], theta))
    jacobian = torch.func.jacfwd(kkt(problem, active))(u, theta)
    units = 1 / jacobian[:, :n].abs().amax(0)
    gradients = jacobian[n:, :n] * units
    scale = gradients.abs().amax(1)
    tangent = scipy.linalg.null_space((gradients / scale.unsqueeze(1)).numpy())
    curvature = np.linalg.eigvalsh(
        tangent.T @ (units.unsqueeze(1) * jacobian[:n, :n] * units).numpy() @ tangent
    )
    slope = torch.func.grad(problem.fn)(u[:n], theta) * units
    positive = (u[n:] * scale)[equalities:] > 1e-6 * slope.abs().max()
    independent = tangent.shape[1] == n - len(gradients)
    return independent and bool(positive.all()) and bool((curvature > 1e-9).all())


def constrained_reference(problem):
    """Return the entries of a minimum: SciPy's, polished, and differences of such minima."""
    if problem.name in CONSTRAINED_SINGULAR:
        return CONSTRAINED_SINGULAR[problem.name]
    theta = problem.theta()
    start = torch.from_numpy(slsqp(problem, CONSTRAINED_NEAR.get(problem.name, problem.z0), theta))
    active = active_set(problem, start, theta)
    condition, n = kkt(problem, active), len(start)
    u = torch.cat([start, start.new_zeros(sum(int(a.sum()) for a in active))])
    gradients = torch.func.jacfwd(condition)(u, theta)[n:, :n]
    u[n:] = torch.linalg.lstsq(gradients.T, -condition(u, theta)[:n], driver="gelsd").solution
    u = newton(condition, u, theta)
    assert (u[:n] - start).abs().max() <= 1e-4 * (1 + start.abs().max()), problem.name
    assert is_strict(problem, active, u, theta), problem.name

    def difference(i, h):
        move = h * torch.eye(len(theta), dtype=torch.float64)[i]
        return (newton(condition, u, theta + move) - newton(condition, u, theta - move)) / (2 * h)

    def column(i):
        """Richardson's extrapolation: the errors of second and fourth order cancel."""
        h = 1e-3 * (abs(float(theta[i])) or 1)
        wide, middle, near = (difference(i, h / 2**k) for k in range(3))
        noise = 1e-11 * (near[:n].abs().max() + 1e-3 * u[:n].abs().max() / h)
        found = (64 * near - 20 * middle + wide) / 45
        return torch.where(found.abs() <= noise, 0.0, found)

    derivative = torch.stack([column(i) for i in range(len(theta))], 1)
    implicit = -torch.linalg.solve(*(torch.func.jacfwd(condition, i)(u, theta) for i in (0, 1)))
    off = (derivative - implicit).abs() / implicit.abs().amax(0).clamp(min=1e-9)
    assert float(off.max()) <= 1e-8, (problem.name, off)

    # SLSQP ends where its numbers are noise: so far that it tells two digits
    move = 1e-2 * (abs(float(theta[0])) or 1) * torch.eye(len(theta), dtype=torch.float64)[0]
    up, down = (torch.from_numpy(slsqp(problem, u[:n], theta + sign * move)) for sign in (1, -1))
    found = derivative[:n, 0]
    off = ((up - down) / (2 * move[0]) - found).abs().max()
    assert off <= 1e-2 * found.abs().max() + 1e-9, (problem.name, off)

    rows, count = active[0], int(active[0].sum())
    y, dy = u.new_zeros(len(rows)), u.new_zeros(len(rows), len(theta))
    y[rows], dy[rows] = u[n : n + count], derivative[n : n + count]
    lower, upper = problem.box(theta)
    z = torch.where(active[1], lower, torch.where(active[2], upper, u[:n]))
    z = torch.where(z.abs() <= 1e-14 * z.abs().max(), 0.0, z)
    return {
        "solution": z.tolist(),
        "derivative": digits(derivative[:n]),
        "multipliers": y.tolist(),
        "multipliers_derivative": digits(dy),
    }


def digits(derivative):
    """Return the digits that differences have."""
    return [[float(f"{v:.11g}") for v in row] for row in derivative.tolist()]


def entry(problem):
    """Return what is stored of a problem."""
    if problem in problems.HOCK_SCHITTKOWSKI:
        return constrained_reference(problem)
    if problem in problems.CUTEST:
        solution, derivative = cutest_root(problem), None
    elif problem in WITHOUT_SOLUTION:
        solution, derivative = None, None
    elif problem in SINGULAR:
        solution, derivative = SINGULAR[problem], None
    else:
        solution, derivative = reference(problem, equation_of(problem))
    return {"solution": solution, "derivative": derivative}


def main():
    names, references = sys.argv[1:], json.loads(FILE.read_text(encoding="utf-8"))
    for problem in (*problems.ALL, *problems.CUTEST, *problems.HOCK_SCHITTKOWSKI):
        if not names or problem.name in names:
            references[problem.name] = entry(problem)
            print(problem.name, str(references[problem.name]["solution"])[:100], flush=True)
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in references.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
