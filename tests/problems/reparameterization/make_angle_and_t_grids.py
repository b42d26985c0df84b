"""Reference values of the von Mises and Student's t functions, by mpmath.

50 digits and more, at the exact values of the float arguments; deterministic. Run
``python make_angle_and_t_grids.py [von_mises] [student_t]``; each takes some minutes. Every row
of a grid holds, for an argument ``x >= 0``, a parameter ``p``, the CDF ``F`` and the density ``f``:

    x, p, 1 - F, ln(1 - F), f, ln f, G = dx/dp = -F_p / f, G_p, G_x, F_pp, F_px, F_xx,
    and the sums of the absolute terms of G_p, of G_x and of F_px

The scores ``d ln f/dp`` and ``d ln f/dx`` are closed forms. ``log_t`` holds rows

    ln t, n, ln(1 - F), d ln t/dn, its derivatives by n and by ln t, and their sums of terms
"""

import functools
import itertools
import math
import sys
from pathlib import Path

import mpmath as mp
import numpy as np

GRIDS = Path(__file__).parent / "grids"
HALF = mp.mpf(1) / 2


# -------------------------------------------------------------------------------- von Mises


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


def von_mises_by_bessel(x, k):
    """The survival function by its Fourier series: an independent check."""
    with mp.workdps(120):
        x, k = mp.mpf(x), mp.mpf(k)
        i0 = mp.besseli(0, k)
        terms = int(40 + 25 * mp.sqrt(k))
        series = mp.fsum(mp.besseli(j, k) / i0 * mp.sin(j * x) / j for j in range(1, terms))
        return HALF - x / (2 * mp.pi) - series / mp.pi


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


# -------------------------------------------------------------------------------- Student's t


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
    step = n * mp.mpf(10) ** -27
    centre, above, below = (t_survival(t * t / m, m) for m in (n, n + step, n - step))
    log_f = -log_beta(n / 2) - mp.log(n) / 2 - (n + 1) / 2 * mp.log1p(t * t / n)
    f = mp.exp(log_f)
    r = t * t / (n + t * t)
    log_growth = mp.log1p(t * t / n)
    at_zero = HALF * (mp.digamma((n + 1) / 2) - mp.digamma(n / 2)) - 1 / (2 * n)
    score = at_zero - HALF * (log_growth - r) + r / (2 * n)
    parts = at_zero + HALF * (log_growth - r) + r / (2 * n)
    by_p, by_pp = (below - above) / (2 * step), (2 * centre - above - below) / step**2
    return (
        centre,
        log_f,
        by_p / f,
        by_pp / f,
        abs(by_pp / f),
        score,
        -(n + 1) * t / (n + t * t),
        parts,
    )


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


# -------------------------------------------------------------------------------- both


def row(x, p, survival, log_f, by_p, by_pp, by_pp_terms, score, slope, parts):
    """Return a row of a grid; ``by_p`` and ``by_pp`` are F_p and F_pp divided by f."""
    f, g = mp.exp(log_f), -by_p
    g_p, g_x = -by_pp - g * score, -score - g * slope
    return [
        x, p, survival, mp.log(survival), f, log_f, g, g_p, g_x,
        f * by_pp, f * score, f * slope,
        by_pp_terms + abs(g * score), abs(score) + abs(g * slope), f * parts,
    ]  # fmt: skip


def close(a, b, digits):
    return abs(a - b) <= mp.mpf(10) ** -digits * abs(b)


def make_von_mises():
    rows = [von_mises_row(*point) for point in von_mises_points()]
    for x, k, survival, *_ in rows[:: len(rows) // 40]:
        if k < 1e3 and survival > 1e-60:
            assert close(survival, von_mises_by_bessel(x, k), 40), (x, k)
    save("von_mises", grid=rows)


def make_student_t():
    rows, logs = [], []
    for n, places, log_places in t_points():
        rows += [t_row(t, n) for t in places]
        logs += [log_t_row(u, n) for u in log_places]
    with mp.workdps(60):
        for t, n, survival, *_ in rows[:: len(rows) // 40]:
            if n < 1e3 and survival > 1e-20:
                x = 1 / (1 + mp.mpf(t) ** 2 / n)
                beta = mp.betainc(mp.mpf(n) / 2, HALF, 0, x, regularized=True)
                assert close(survival, beta / 2, 30), (t, n)
    save("student_t", grid=rows, log_t=logs)


def save(name, **grids):
    arrays = {key: np.array([[float(v) for v in r] for r in rows]) for key, rows in grids.items()}
    GRIDS.mkdir(exist_ok=True)
    np.savez_compressed(GRIDS / f"{name}.npz", **arrays)
    print(name, {key: array.shape for key, array in arrays.items()})


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["von_mises", "student_t"]:
        {"von_mises": make_von_mises, "student_t": make_student_t}[wanted]()
