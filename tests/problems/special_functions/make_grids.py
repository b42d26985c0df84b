"""Write the grids of reference values for the special functions.

Usage: ``python make_grids.py [name ...]``; each takes some minutes. Every value is computed by
mpmath with at least 50 correct digits at the exact float inputs, and rounded once. Derivatives by
parameters are central differences with a step of 1e-30 (for von Mises, moments), and 60 digits more
than are needed. Same output on every run.

Gamma and beta: named columns, see ``columns``. Von Mises and Student's t: rows for ``x >= 0``

    x, p, 1 - F, ln(1 - F), f, ln f, G = dx/dp = -F_p / f, G_p, G_x, F_pp, F_px, F_xx,
    and the sums of the absolute terms of G_p, of G_x and of F_px

The scores ``d ln f/dp`` and ``d ln f/dx`` are closed forms. ``log_t`` holds rows

    ln t, n, ln(1 - F), d ln t/dn, its derivatives by n and by ln t, and their sums of terms

Truncated normal: named columns, see ``truncated_row``.
"""

import functools
import itertools
import math
import sys
from pathlib import Path

import mpmath as mp
import numpy as np
import scipy.special
from scipy.special import expit

GRIDS = Path(__file__).parent / "grids"
HALF = mp.mpf(1) / 2
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
            if 1 - row["value"] > mp.mpf(10) ** (130 - digits):
                return row
        digits = 2 * digits


def moving(F, log_density, scores, by_place, params):
    """Return by name what is stored of a variable with the CDF F at one place.

    ``scores`` are the derivatives of the log-density by the parameters, ``by_place`` that by the
    variable. Derivatives of G = dz/dphi = -F_phi / f come with the sum of their absolute terms.
    """
    value, first, second = differences(F, list(params.values()))
    f = mp.exp(log_density)
    slopes = [-d / f for d in first]
    names = list(enumerate(params))
    out = {"value": value}
    out |= {f"value_{p}": first[i] for i, p in names} | {f"slope_{p}": slopes[i] for i, p in names}
    by = [
        (p, q, second[i, j] / f, slopes[i] * scores[j])
        for (i, p), (j, q) in itertools.product(names, repeat=2)
    ]
    by += [(p, "place", scores[i], slopes[i] * by_place) for i, p in names]
    for p, q, *terms in by:
        out[f"slope_{p}_{q}"], out[f"terms_{p}_{q}"] = -sum(terms), sum(abs(t) for t in terms)
    for (i, p), (j, q) in itertools.combinations_with_replacement(names, 2):
        curvature = -second[i, j] / f - slopes[i] * scores[j]
        out[f"value_{p}{q}"] = second[i, j]
        out[f"value_terms_{p}{q}"] = f * (abs(curvature) + abs(slopes[i] * scores[j]))
    return out


def table(inputs, points, row):
    """Return named columns: the smaller tail, which side it is, and the rest."""
    points = sorted(set(points))
    rows = [row(*point) for point in points]
    out = dict(zip(inputs, zip(*points, strict=True), strict=True))
    with mp.workdps(700):
        values = [row.pop("value") for row in rows]
        out |= {"upper": [2 * v > 1 for v in values], "tail": [min(v, 1 - v) for v in values]}
        out["log_tail"] = [mp.log(v) for v in out["tail"]]
    return out | {key: [row[key] for row in rows] for key in rows[0]}


def around(value):
    """Return a float with its neighbours."""
    return [float(np.nextafter(value, 0)), float(value), float(np.nextafter(value, np.inf))]


# ------------------------------------------------------------------------------------ gamma


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
        return moving(cdf, log_density, [u - mp.psi(0, shape)], by_place, {"a": shape})

    return with_digits(compute)


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


# ------------------------------------------------------------------------------------- beta


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

        scores = [log_u - mp.psi(0, p) + mp.psi(0, p + q), log_v - mp.psi(0, q) + mp.psi(0, p + q)]
        log_density = p * log_u + q * log_v - log_beta(p, q)
        by_place = p * v - q * u
        if x is not None:
            log_density, by_place = log_density - log_u - log_v, (p - 1) / u - (q - 1) / v
        return moving(cdf, log_density, scores, by_place, {"a": p, "b": q})

    return with_digits(compute)


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


# -------------------------------------------------------------------------------- von Mises


def row(x, p, survival, log_f, by_p, by_pp, by_pp_terms, score, slope, parts):
    """Return a row of a grid; ``by_p`` and ``by_pp`` are F_p and F_pp divided by f."""
    f, g = mp.exp(log_f), -by_p
    g_p, g_x = -by_pp - g * score, -score - g * slope
    return [
        x, p, survival, mp.log(survival), f, log_f, g, g_p, g_x,
        f * by_pp, f * score, f * slope,
        by_pp_terms + abs(g * score), abs(score) + abs(g * slope), f * parts,
    ]  # fmt: skip


def von_mises_row(x, k):
    """Integrals outwards where the score is negative, inwards else."""
    with mp.workdps(60 + int(2 * math.log10(k + 1))):
        x, k = mp.mpf(x), mp.mpf(k)
        i0 = mp.besseli(0, k)
        mean = mp.besseli(1, k) / i0
        ratio = mean / k if k > 1e-30 else HALF
        variance = 1 - mean**2 - ratio
        cosine = mp.cos(x)
        tail = cosine < mean
        cuts = von_mises_cuts(x, k, cosine) if tail else [mp.mpf(0), x]
        pairs = list(itertools.pairwise(cuts))

        @functools.cache
        def point(t):
            value = mp.cos(t)
            return mp.exp(k * (value - cosine)), value - mean

        def moment(j):
            return mp.fsum(mp.quadgl(lambda t: point(t)[0] * point(t)[1] ** j, p) for p in pairs)

        moments = [moment(j) for j in range(3)]
        log_f = k * cosine - mp.log(2 * mp.pi * i0)
        f = mp.exp(log_f)
        survival = f * moments[0] if tail else HALF - f * moments[0]
        sign = -1 if tail else 1
        by_p, by_pp = sign * moments[1], sign * (moments[2] - variance * moments[0])
        parts = (1 - mean) + (1 - cosine)
        terms = moments[2] + variance * moments[0]
        slope = -k * mp.sin(x)
        return row(x, k, survival, log_f, by_p, by_pp, terms, cosine - mean, slope, parts)


def von_mises_cuts(x, k, cosine):
    """Panels between falls of the density by exp(-4), exp(-15), ..., exp(-150)."""
    cuts = [x]
    for fall in (4, 15, 35, 70, 150):
        if k * (cosine + 1) <= fall:
            return [*cuts, mp.pi]
        cuts.append(mp.acos(cosine - fall / k))
    return cuts


def von_mises_points():
    concentrations = [*np.geomspace(1e-3, 1e5, 55), 0.0, 1e-300, 1e-10, 1e-4, 1e6, 1e8]
    concentrations += [50.0, np.nextafter(50.0, 99), np.nextafter(1e-4, 1)]
    falls = [*np.geomspace(1e-6, 0.3, 5), *np.linspace(0.4, 27, 20), 35, 100, 600]
    for k in map(float, concentrations):
        angles = [1e-300, 1e-8, 0.5, math.pi / 2, 2.0, 3.0, math.pi]
        angles += [math.pi - 1e-13, math.pi - 1e-6, math.pi - 0.01]
        angles += [math.acos(1 - e / k) for e in falls if k > 0 and e / k <= 2]
        with mp.workdps(40):
            mean = mp.besseli(1, k) / mp.besseli(0, k)
            seam = float(mp.acos(mean))
            end = mp.mpf(36) / k - 1 if k > 18 else None  # the tail is cut from here on
        angles += [seam, np.nextafter(seam, 0), np.nextafter(seam, 4), seam * 0.999, seam * 1.001]
        if end is not None:
            cut = float(mp.acos(end))
            angles += [cut, cut * (1 - 1e-9), cut * (1 + 1e-9)]
        yield from ((float(x), k) for x in sorted(set(map(float, angles))) if x <= math.pi)


# ------------------------------------------------------------------------------ Student's t


def t_survival(q, n):
    """P(T > t) for ``q = t^2 / n``, by the incomplete beta function's series of positive terms."""
    a, x, r = n / 2, 1 / (1 + q), q / (1 + q)
    epsilon = mp.mpf(10) ** (-mp.mp.dps - 3)
    log_front = a * mp.log(x) + mp.log(r) / 2 - log_beta(a)
    outer = r > HALF
    ratio, bound = (x, a + 1) if outer else (r, mp.mpf(3) / 2)
    total = term = mp.mpf(1)
    step = mp.mpf(0)
    while term > epsilon * total * (1 - ratio) / 10 or ratio * (a + HALF + step) > bound + step:
        term *= ratio * (a + HALF + step) / (bound + step)
        total += term
        step += 1
    if outer:
        return mp.exp(log_front) * total / (2 * a)
    return HALF - mp.exp(log_front) * total


def log_beta(a):
    return mp.loggamma(a) + mp.loggamma(HALF) - mp.loggamma(a + HALF)


def t_terms(t, n):
    """Differences of the survival function by ``n``, and the scores."""
    centre, (first,), second = differences(lambda m: t_survival(t * t / m, m), [n])
    r, log_growth = t * t / (n + t * t), mp.log1p(t * t / n)
    log_f = -log_beta(n / 2) - mp.log(n) / 2 - (n + 1) / 2 * log_growth
    by_p, by_pp = -first / mp.exp(log_f), -second[0, 0] / mp.exp(log_f)
    at_zero = HALF * (mp.digamma((n + 1) / 2) - mp.digamma(n / 2)) - 1 / (2 * n)
    score, parts = (at_zero + s * HALF * (log_growth - r) + r / (2 * n) for s in (-1, 1))
    return centre, log_f, by_p, by_pp, abs(by_pp), score, -(n + 1) * t / (n + t * t), parts


def t_digits(t, n):
    """Working digits: 120, and those that a small survival function cancels."""
    with mp.workdps(30):
        t, n = mp.mpf(t), mp.mpf(n)
        fall = (n + 1) / 2 * mp.log1p(t * t / n) / mp.log(10)
        return 120 + (int(fall) if t * t < n else 0)


def t_row(t, n):
    with mp.workdps(t_digits(t, n)):
        t, n = mp.mpf(t), mp.mpf(n)
        return row(t, n, *t_terms(t, n))


def log_t_row(log_t, n):
    with mp.workdps(30):
        t = mp.exp(mp.mpf(log_t))
    with mp.workdps(t_digits(t, n)):
        log_t, n = mp.mpf(log_t), mp.mpf(n)
        t = mp.exp(log_t)
        survival, _, by_p, by_pp, _, score, slope, _ = t_terms(t, n)
        d = -by_p / t
        by_n, by_log = -by_pp / t - d * score, -score - d * t * slope - d
        terms = abs(by_pp / t) + abs(d * score), abs(score) + abs(d * t * slope) + abs(d)
        return [log_t, n, mp.log(survival), d, by_n, by_log, *terms]


def t_points():
    """Yield (t, n) and, where t overflows and now and then else, (ln t, n)."""
    freedoms = [*np.geomspace(1e-3, 1e5, 41), 0.5, np.nextafter(1.0, 2), 16.0, 15.9, 1e6, 1e8]
    falls = [1e-16, 1e-8, *np.geomspace(1e-5, 0.6, 10), *np.linspace(0.7, 27, 22), 34, 100, 600]
    for n in map(float, freedoms):
        growths = [2 * e / n for e in falls]
        growths += [y * s for y in (1.711, 0.06) for s in (1 - 1e-12, 1, 1 + 1e-12)]
        growths += [y for y in (0.06 - 72 / n,) if y > 0]
        seam, places, logs = t_seam(n), set(), set()
        growths += [seam * s for s in (0.999, 1 - 1e-14, 1, 1 + 1e-14, 1.001)]
        growths = [y for y in growths if n * y < 4000]
        for index, y in enumerate(growths):
            log_t = 0.5 * (math.log(n) + y + math.log(-math.expm1(-y)))
            if log_t < 650:
                places.add(math.exp(log_t))
            if log_t >= 650 or index % 6 == 0:
                logs.add(log_t)
        yield n, sorted(map(float, places)), sorted(logs)


def t_seam(n):
    """Return ``ln(1 + t^2 / n)`` where the score changes sign, to double precision."""
    with mp.workdps(30):
        at_zero = HALF * (mp.digamma(HALF * (n + 1)) - mp.digamma(HALF * n)) - 1 / (2 * mp.mpf(n))

        def score(log_y):
            y = mp.exp(log_y)
            return at_zero - HALF * (mp.exp(-y) - 1 + y) - mp.expm1(-y) / (2 * mp.mpf(n))

        low, high = mp.log(mp.mpf(1) / n), mp.log(mp.mpf(5) / n)
        return float(mp.exp(mp.findroot(score, (low, high), solver="anderson")))


# ------------------------------------------------------------------------- truncated normal

TRUNCATED = ("z", "loc", "scale", "low", "high")


def truncated_law(z, loc, scale, low, high):
    """Return tails, density and slopes by the definition; an end may be None."""
    x = (z - loc) / scale
    a, b = ((end - loc) / scale if end is not None else None for end in (low, high))

    def over(t):  # of the density at x
        return mp.exp((x - t) * (x + t) / 2) if t is not None else mp.mpf(0)

    def between(s, t):  # by the smaller tails
        s, t = (-mp.inf if s is None else s), (mp.inf if t is None else t)
        flip = s + t < 0 if mp.isfinite(s + t) else t < mp.inf
        s, t = (-t, -s) if flip else (s, t)
        mass = mp.erfc(s / mp.sqrt(2)) - (mp.erfc(t / mp.sqrt(2)) if t < mp.inf else 0)
        return mp.sqrt(mp.pi / 2) * mp.exp(x * x / 2) * mass

    below, above, total = between(a, x), between(x, b), between(a, b)
    by_low, by_high = above / total * over(a), below / total * over(b)
    at_a, at_b = (end * over(end) if end is not None else 0 for end in (a, b))
    of_a, of_b = above / total * at_a, below / total * at_b
    law = {"log_cdf": mp.log(below / total), "log_survival": mp.log(above / total)}
    law["log_density"] = -mp.log(total) - mp.log(scale)
    by_scale = x - of_a - of_b
    slopes = {"loc": 1 - by_low - by_high, "scale": by_scale, "low": by_low, "high": by_high}
    terms = abs(by_scale)
    if (a is None or a < 0) and (b is None or b > 0):
        squares = 2 + (x - at_b) / above + (at_a - x) / below  # E[t^2 | t > x] + E[t^2 | t < x]
        terms = max(terms, min(abs(x) + abs(of_a) + abs(of_b), above * below / total * squares))
    return law | {f"slope_{p}": v for p, v in slopes.items()}, terms


def truncated_row(*point):
    """Return a row: tails and density in logarithms, ``dz/dphi``, and derivatives by all.

    ``terms`` are those of ``dz/dscale``, which has a zero; ``slope_p_q`` are differences.
    """
    with mp.workdps(160):
        exact = [mp.mpf(t) if math.isfinite(t) else None for t in point]
        row, terms = truncated_law(*exact)
        row["terms"] = terms
        for i, q in enumerate(TRUNCATED):
            step = exact[2] * STEP
            sides = [
                truncated_law(*(t + s * step if j == i else t for j, t in enumerate(exact)))[0]
                for s in (1, -1)
                if exact[i] is not None
            ]
            for p in TRUNCATED[1:]:
                ends = [side[f"slope_{p}"] for side in sides] or [mp.mpf(0)] * 2
                row[f"slope_{p}_{q}"] = (ends[0] - ends[1]) / (2 * step)
        return row


def truncated_points():
    """Yield ends from -1e5 to 1e5 deviations, widths from 1e-8, the seams, and their mirror images.

    In units of the deviation; location and scale follow.
    """
    lows = [-1e5, -1e3, -40.0, -8.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 3.0, 8.0, 30.0, 38.0, 1e3]
    lows += [1e5, *around(4.5), *around(-30.0)]
    widths = [1e-8, 1e-5, 1e-3, 0.03, 0.3, 1.0, 3.0, 10.0, 1e3, 2e5, math.inf]
    rows = []
    for a, width in itertools.product(lows, widths):
        b = a + width
        mode = min(max(a, 0.0), b)
        reach = 1 / max(abs(mode), 1.0)
        places = [
            a + f * width for f in (1e-6, 0.01, 0.3, 0.5, 0.9, 1 - 1e-6) if width < 20 * reach
        ]
        places += [mode + s * f * reach for s in (-1, 1) for f in (1e-6, 1e-2, 0.3, 1.0, 5.0, 25.0)]
        # seams: a fall of 1, a square of 1, and x = 4.5
        places += [a + t for t in around(2 / (abs(a) + math.hypot(a, 2**0.5)))] + around(1.0)
        places += [*around(4.5), b - reach if b < math.inf else a + reach]
        rows += [(x, a, b) for x in places if a < x < b]
    for i, (x, a, b) in enumerate(sorted(set(rows))):
        loc, scale = ((0.0, 1.0), (0.3, 0.01), (-7.0, 20.0), (1e3, 1.5))[i % 4 if i % 8 else 0]
        x, a, b = (x, a, b) if i % 3 else (-x, -b, -a)
        z, low, high = (loc + scale * t for t in (x, a, b))
        if low < z < high:
            yield z, loc, scale, low, high


def make_truncated():
    rows = []
    for point in truncated_points():
        rows.append(dict(zip(TRUNCATED, point, strict=True)) | truncated_row(*point))
    return {key: [row[key] for row in rows] for key in rows[0]}


# ------------------------------------------------------------------------------------- all


def make_student_t():
    rows, logs = [], []
    for n, places, log_places in t_points():
        rows += [t_row(t, n) for t in places]
        logs += [log_t_row(u, n) for u in log_places]
    return {"grid": rows, "log_t": logs}


FAMILIES = {
    "gamma": lambda: table("az", gamma_points(), gamma_row),
    "gamma_log": lambda: table(
        ["a", "log_z"], gamma_log_points(), lambda a, u: gamma_row(a, None, u)
    ),
    "beta": lambda: table("abx", beta_points(), beta_row),
    "beta_logit": lambda: table(
        ["a", "b", "logit_x"], beta_logit_points(), lambda a, b, t: beta_row(a, b, None, t)
    ),
    "von_mises": lambda: {"grid": [von_mises_row(*point) for point in von_mises_points()]},
    "student_t": make_student_t,
    "truncated_normal": make_truncated,
}


def rounded(values):
    rows = [[float(v) for v in r] for r in values] if isinstance(values[0], list) else None
    return np.array(rows or [v if isinstance(v, bool) else float(v) for v in values])


if __name__ == "__main__":
    for name in sys.argv[1:] or FAMILIES:
        arrays = {key: rounded(values) for key, values in FAMILIES[name]().items()}
        np.savez_compressed(GRIDS / f"{name}.npz", **arrays)
        print(name, {key: a.shape for key, a in arrays.items()})
