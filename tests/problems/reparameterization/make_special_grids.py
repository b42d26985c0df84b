"""Write the grids of reference values for the incomplete gamma and beta functions.

Usage: ``python make_special_grids.py gamma|gamma_log|beta|beta_logit``. Every value is computed by
mpmath with at least 50 correct digits at the exact float inputs, and rounded once. Derivatives by
parameters are central differences with a step of 1e-30 and 60 digits more than are needed. Same
output on every run.
"""

import itertools
import sys
from pathlib import Path

import mpmath as mp
import numpy as np
import scipy.special
from scipy.special import expit

GRIDS = Path(__file__).parent / "grids"
STEP = mp.mpf(10) ** -30
TAILS = [10.0**-e for e in (12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1)] + [0.25, 0.45]


def differences(F, params):
    """Return F, its gradient and its Hessian (a dict) by the parameters."""
    h = [p * STEP for p in params]

    def at(*steps):
        return F(*(p + s * d for p, s, d in zip(params, steps, h, strict=True)))

    n = len(params)
    unit = [[int(i == j) for j in range(n)] for i in range(n)]
    center = at(*[0] * n)
    up = [at(*e) for e in unit]
    down = [at(*(-i for i in e)) for e in unit]
    first = [(u - d) / (2 * s) for u, d, s in zip(up, down, h, strict=True)]
    second = {}
    for i in range(n):
        second[i, i] = (up[i] - 2 * center + down[i]) / h[i] ** 2
    for i, j in itertools.combinations(range(n), 2):
        both = at(*(p + q for p, q in zip(unit[i], unit[j], strict=True)))
        back = at(*(-p - q for p, q in zip(unit[i], unit[j], strict=True)))
        # a central difference of the mixed derivative, from points already there
        mixed = both + back - up[i] - down[i] - up[j] - down[j] + 2 * center
        second[i, j] = second[j, i] = mixed / (2 * h[i] * h[j])
    return center, first, second


def with_digits(compute):
    """Call ``compute()``, whose first result is F, with digits enough for 1 - F."""
    digits = 160
    while True:
        with mp.workdps(digits):
            row = compute()
            if 1 - row[0] > mp.mpf(10) ** (130 - digits):
                return row
        digits = 2 * digits


def moving(F, log_density, scores, by_place, params):
    """Return what is stored of a variable with the CDF F at one place.

    ``scores`` are the derivatives of the log-density by the parameters, ``by_place`` that by the
    variable. Derivatives of G = dz/dphi = -F_phi / f come with the sum of their absolute terms.
    """
    value, first, second = differences(F, params)
    f = mp.exp(log_density)
    slopes = [-d / f for d in first]
    row = [value, *first, *slopes]
    n = len(params)
    for i, j in itertools.product(range(n), range(n)):
        terms = second[i, j] / f, slopes[i] * scores[j]
        row += [-sum(terms), sum(abs(t) for t in terms)]
    for i in range(n):
        terms = scores[i], slopes[i] * by_place
        row += [-sum(terms), sum(abs(t) for t in terms)]
    for i in range(n):
        for j in range(i, n):
            curvature = -second[i, j] / f - slopes[i] * scores[j]
            row += [second[i, j], f * (abs(curvature) + abs(slopes[i] * scores[j]))]
    return row


def columns(names):
    """Return the names of what ``moving`` returns for parameters with these names."""
    out = ["value", *(f"value_{p}" for p in names), *(f"slope_{p}" for p in names)]
    for p, q in itertools.product(names, names):
        out += [f"slope_{p}_{q}", f"terms_{p}_{q}"]
    for p in names:
        out += [f"slope_{p}_place", f"terms_{p}_place"]
    for i, p in enumerate(names):
        for q in names[i:]:
            out += [f"value_{p}{q}", f"value_terms_{p}{q}"]
    return out


def gamma_row(a, z, log_z=None):
    """Return one row at (a, z), or at (a, log z)."""

    def compute():
        shape = mp.mpf(a)
        u = mp.log(mp.mpf(z)) if log_z is None else mp.mpf(log_z)
        x = mp.mpf(z) if log_z is None else mp.exp(u)

        def cdf(a):
            return mp.exp(a * u - x - mp.loggamma(a + 1)) * mp.hyp1f1(1, a + 1, x)

        log_density = shape * u - x - mp.loggamma(shape)
        by_place = shape - x
        if log_z is None:
            log_density, by_place = log_density - u, (shape - 1) / x - 1
        return moving(cdf, log_density, [u - mp.psi(0, shape)], by_place, [shape])

    return with_digits(compute)


def beta_row(a, b, x=None, logit_x=None):
    """Return one row at (a, b, x), or at (a, b, logit x)."""

    def compute():
        p, q = mp.mpf(a), mp.mpf(b)
        if x is None:
            u, v = 1 / (1 + mp.exp(-mp.mpf(logit_x))), 1 / (1 + mp.exp(mp.mpf(logit_x)))
        else:
            u, v = mp.mpf(x), 1 - mp.mpf(x)
        log_u, log_v, lower = mp.log(u), mp.log(v), u * (p + q) < p

        def log_beta(a, b):
            return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)

        def cdf(a, b):
            density = mp.exp(a * log_u + b * log_v - log_beta(a, b))
            if lower:
                return density / a * mp.hyp2f1(a + b, 1, a + 1, u)
            return 1 - density / b * mp.hyp2f1(a + b, 1, b + 1, v)

        scores = [
            log_u - mp.psi(0, p) + mp.psi(0, p + q),
            log_v - mp.psi(0, q) + mp.psi(0, p + q),
        ]
        log_density = p * log_u + q * log_v - log_beta(p, q)
        by_place = p * v - q * u
        if x is not None:
            log_density, by_place = log_density - log_u - log_v, (p - 1) / u - (q - 1) / v
        return moving(cdf, log_density, scores, by_place, [p, q])

    return with_digits(compute)


def write(name, inputs, points, row, parameters):
    """Compute all rows and write them: the smaller tail, which side it is, and the rest."""
    points = sorted(set(points))
    rows = [row(*point) for point in points]
    table = {key: np.array([p[i] for p in points]) for i, key in enumerate(inputs)}
    for i, key in enumerate(columns(parameters)):
        column = [r[i] for r in rows]
        if key == "value":
            table["upper"] = np.array([2 * v > 1 for v in column])
            with mp.workdps(700):
                small = [1 - v if 2 * v > 1 else v for v in column]
            table["tail"] = np.array([float(v) for v in small])
            table["log_tail"] = np.array([float(mp.log(v)) for v in small])
        else:
            table[key] = np.array([float(v) for v in column])
    GRIDS.mkdir(exist_ok=True)
    np.savez_compressed(GRIDS / f"{name}.npz", **table)
    print(f"{name}: {len(points)} points, {(GRIDS / f'{name}.npz').stat().st_size} bytes")


def around(value):
    """Return a float with its neighbours."""
    return [float(np.nextafter(value, 0)), float(value), float(np.nextafter(value, np.inf))]


def gamma_points():
    """Return (a, z) over shapes and tails, far tails, and the seams of the regions."""
    shapes = [float(a) for a in np.logspace(-3, 5, 81)]
    points = []
    for a in shapes:
        for tail in TAILS:
            points.append((a, float(scipy.special.gammaincinv(a, tail))))
            points.append((a, float(scipy.special.gammainccinv(a, tail))))
    for a in shapes[::4]:
        seams = [2.0, float(np.exp(scipy.special.digamma(a))), a / 2, a]
        points += [(a, z) for s in seams for z in around(s)]
        points += [(a, a + 30 * a**0.5 + 60.0), (a, a / (1 + 30 * a**-0.5)), (a, 1e-3 * a)]
    for a in (*around(10.0), *around(1.0), *around(2.0)):
        points += [(a, z) for z in (0.3, 1.9, 2.1, a, 9.0, 30.0)]
    return [(a, z) for a, z in points if z > 1e-290]


def gamma_log_points():
    """Return (a, log z), most of them where z is not representable."""
    points = [
        (float(a), -float(u)) for a in np.logspace(-3, 0, 25) for u in np.logspace(0, 4.7, 24)
    ]
    return [(a, u) for a, u in points if a * u > -300]


def beta_logits(a, b):
    """Return the logits of the quantiles at all tails."""
    for tail in TAILS:
        for p, q, sign in ((a, b, 1.0), (b, a, -1.0)):
            x = float(scipy.special.betaincinv(p, q, tail))
            if 1e-300 < x < 0.999:
                yield sign * (np.log(x) - np.log1p(-x))
            elif x <= 1e-300:  # I = x^p / (p B(p, q))
                constant = np.log(p) + scipy.special.betaln(p, q)
                yield sign * (np.log(tail) + constant) / p


def beta_logit_points():
    """Return (a, b, logit x) over parameters, tails and the seams of the regions."""
    shapes = [float(a) for a in np.logspace(-3, 5, 11)]
    points = []
    for i, (a, b) in enumerate(itertools.product(shapes, shapes)):
        logits = [float(t) for t in beta_logits(a, b)]
        points += [(a, b, t) for t in logits[i % 2 :: 2]]
        for x in (0.5, 2 / b, a / (a + b), a / (2 * (a + b)), 1 - 2 / a, 1 - b / (2 * (a + b))):
            if 0 < x < 1:
                t = float(np.log(x) - np.log1p(-x))
                points += [(a, b, s) for s in (t * (1 - 1e-15), t * (1 + 1e-15))]
    shapes = [*around(10.0), *around(1.0), 3.0]
    points += [(a, b, t) for a in shapes for b in shapes for t in (-3.0, -0.1, 1.0)]
    return [(a, b, t) for a, b, t in points if scipy.special.betainc(b, a, expit(-t)) > 1e-200]


def beta_points():
    """Return (a, b, x) at the places of the other grid where x and 1 - x are representable."""
    points = []
    for a, b, t in beta_logit_points():
        x = float(expit(t))
        if 1e-290 < x < 1 - 1e-12:
            points.append((a * 1.03, b * 0.98, x))
            if a > 10 and b > 10:
                points.append((a * 0.99, b * 1.01, x))
    return points


FAMILIES = {
    "gamma": lambda: write("gamma", ["a", "z"], gamma_points(), gamma_row, ["a"]),
    "gamma_log": lambda: write(
        "gamma_log",
        ["a", "log_z"],
        gamma_log_points(),
        lambda a, u: gamma_row(a, None, log_z=u),
        ["a"],
    ),
    "beta": lambda: write("beta", ["a", "b", "x"], beta_points(), beta_row, ["a", "b"]),
    "beta_logit": lambda: write(
        "beta_logit",
        ["a", "b", "logit_x"],
        beta_logit_points(),
        lambda a, b, t: beta_row(a, b, logit_x=t),
        ["a", "b"],
    ),
}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in FAMILIES:
        sys.exit(f"usage: make_special_grids.py {'|'.join(FAMILIES)}")
    FAMILIES[sys.argv[1]]()
