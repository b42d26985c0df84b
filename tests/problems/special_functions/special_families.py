"""The special functions, with reference values and where they are hard: a new one is a row.

All functions are called with the parameters first and the place last.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from implicit_solvers.problems import special_functions as sp
from implicit_solvers.problems.special_functions import beta, gamma, student_t, von_mises
from implicit_solvers.problems.special_functions.derivatives import differentiable_sample

GRIDS = Path(__file__).parent / "grids"
INF, NAN = math.inf, math.nan
F64 = torch.float64
CDFS = ("cdf", "sf", "logcdf", "logsf")
TINY, PI = 5e-324, math.pi


@dataclass(frozen=True)
class Family:
    """The functions of one distribution; bounds are relative errors."""

    parameters: str  # their names in the grid
    functions: dict  # some of CDFS
    slopes: Callable  # returns dplace/dparameter, a tuple
    random: Callable  # (count, generator), the arguments
    module: Any  # where the quadrature is
    third: str  # of the message that a third derivative has
    points: tuple  # arguments for every composition of modes
    extreme: tuple  # parameters and places
    signs: tuple  # of the slopes, at positive places
    finite: float = INF  # places up to this size have finite slopes, in float64
    bad_places: tuple = (NAN,)
    bad_parameters: tuple = (0.0, -1.0, NAN, INF)
    symmetric: bool = False
    pair: Callable | None = None  # both tails in logarithms
    # the bounds that the docstrings state
    small: float = 1e-12  # of the smaller tail, above 1e-13, and of its logarithm
    far: float = 1e-11  # of the smaller tail everywhere: its exponent is rounded
    large: float = 1e-12
    slope: float = 1e-9  # of slopes and second derivatives
    single: float = 1e-6  # of float32

    def sample(self, place, *parameters):
        """Return the place with the derivatives of a sample."""
        slopes = lambda z, *p: [lambda i=i: self.slopes(*p, z)[i] for i in range(len(p))]
        return differentiable_sample(slopes)(place, *parameters)


def uniform(generator, *count, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(*count, generator=generator, dtype=F64)


def random_gamma(count, generator):
    """Return places up to 7.5 deviations off, in the scale of the cube root."""
    a = 10 ** uniform(generator, count, low=-3, high=5)
    k = uniform(generator, count, low=-7.5, high=7.5)
    z = a * (1 + k / (3 * a.sqrt()) - 1 / (9 * a)).clamp(min=0.02) ** 3
    return a, torch.where(a > 1, z, 10 ** uniform(generator, count, low=-2.5, high=1.5))


def random_logit(count, generator):
    """Return logits up to 8 deviations off."""
    a, b = 10 ** uniform(generator, 2, count, low=-3, high=5)
    k = uniform(generator, count, low=-8, high=8)
    # twice the asymptotic deviation of the logit covers the tails of 1e-12 on the short side
    return a, b, (a / b).log() + k * (1 / a + 1 / b).sqrt().clamp(max=4.0)


def random_beta(count, generator):
    a, b, t = random_logit(count, generator)
    keep = (t > -660) & (t < 27)  # where neither x nor 1 - x is lost
    return a[keep], b[keep], t[keep].sigmoid()


def random_log_t(count, generator):
    """Return levels down to 1e-12 and further."""
    df = 10 ** uniform(generator, count, low=-3, high=5)
    y = 2 * 10 ** uniform(generator, count, low=-7, high=1.5) / df
    return df, 0.5 * (df.log() + y + (-torch.expm1(-y)).log())


def random_t(count, generator):
    df, log_t = random_log_t(count, generator)
    keep = log_t < 300
    t = log_t[keep].exp()
    return df[keep], torch.where(torch.arange(len(t)) % 2 == 0, -t, t)


def random_angle(count, generator):
    k = 10 ** uniform(generator, count, low=-3, high=5)
    fall = 10 ** uniform(generator, count, low=-7, high=1.5)
    z = (1 - fall / k).clamp(min=-1).acos()
    z = torch.where((fall > 2 * k) | (z == 0), uniform(generator, count, high=PI), z)
    return k, torch.where(torch.arange(count) % 2 == 0, -z, z)


def by(key, functions):
    """Return functions that take the place by keyword."""
    call = lambda f: lambda *args: f(*args[:-1], **{key: args[-1]})
    return dict(zip(CDFS, map(call, functions), strict=True))


def swapped(*functions):
    """Return functions of (place, parameter) with these swapped."""
    return dict(zip(CDFS, ((lambda p, x, f=f: f(x, p)) for f in functions), strict=False))


def single_slope(function):
    return lambda *args: (function(*args),)


GAMMA = (gamma.gammainc, gamma.gammaincc, gamma.log_gammainc, gamma.log_gammaincc)
BETA = (beta.betainc, beta.betaincc, beta.log_betainc, beta.log_betaincc)
T = (student_t.student_t_cdf, student_t.student_t_sf)
T += (student_t.student_t_logcdf, student_t.student_t_logsf)
ANGLE = (von_mises.von_mises_cdf, von_mises.von_mises_sf)
ANGLE += (von_mises.von_mises_logcdf, von_mises.von_mises_logsf)

SHAPES = [1e-6, 1e-3, 0.1, 0.5, 1.0, 1.5, 2.0, 2.4, 9.9, 10.0, 1e2, 1e3, 1e5, 1e8]
FEW_SHAPES = [1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 4.0, 9.9, 10.0, 1e2, 1e5, 1e8]
ZS = [0.0, TINY, 2.2e-308, 1e-100, 1e-10, 0.5, 2.0, 5.0, 1e2, 1e5, 1e8, 1e300, INF]
LOGITS = [-INF, -1e300, -1e6, -800.0, -10.0, 0.0, 0.1, 40.0, 800.0, 1e6, INF]
EDGES = [0.0, TINY, 1e-300, 1e-38, 1e-10, 1e-3, 0.3, 0.5, 0.9, 1 - 1e-7, 1 - 1e-16, 1.0]
FREEDOMS = [1e-3, 0.5, 1.0, 1.0001, 2.0, 16.0, 1e3, 1e5, 1e8, 1e30]
LARGEST = torch.finfo(torch.float32).max
TS = [0.0, 2.9e-39, 1.2e-38, TINY, 2.3e-308, 1e-20, 1e-8, 1.0, 2.13, 1e10, LARGEST, 1.7e308, INF]
KAPPAS = [0.0, TINY, 1e-300, 1e-30, 1e-3, 1.0, 49.9, 50.1, 1e5, 1e8, 1e30]
ANGLES = [0.0, TINY, 1e-300, 1e-8, 1.0, PI / 2, 3.0, math.nextafter(PI, 0), PI, 4.0]
ANGLES.append(float(torch.tensor(PI, dtype=torch.float32)))

_gamma = functools.partial(
    Family, "a", module=sp.gamma_evaluation, third="second derivative of a gamma variable"
)
_beta = functools.partial(
    Family, "ab", module=sp.beta_evaluation, third="derivatives? of a beta variable", signs=(1, -1)
)
_exact = functools.partial(Family, signs=(-1,), small=3e-14, far=3e-13, large=1e-15, slope=1e-11)
_t = functools.partial(
    _exact, ("df",), module=sp.student_t_evaluation, third="student_t.* has no derivative"
)
FAMILIES = {
    "gamma": _gamma(
        by("z", GAMMA),
        single_slope(gamma.gamma_sample_derivative),
        random_gamma,
        finite=1e300,
        points=([0.67, 2.0, 20.0, 54.6], [0.55, 4.95, 18.2, 57.4]),
        extreme=(SHAPES, ZS),
        signs=(1,),
        pair=sp.log_tails.log_gamma_tails,
        bad_places=(-1.0, -INF, NAN),
    ),
    "gamma_log": _gamma(
        by("log_z", GAMMA),
        single_slope(gamma.gamma_log_sample_derivative),
        lambda *args: (lambda a, z: (a, z.log()))(*random_gamma(*args)),
        finite=1e6,
        points=([0.67, 2.0, 20.0, 54.6], [-0.6, 1.6, 2.9, 4.05]),
        extreme=(SHAPES, [-INF, -1e300, -1e6, -800.0, 0.0, 5.0, 800.0, INF]),
        signs=(1,),
    ),
    "beta": _beta(
        by("x", BETA),
        beta.beta_sample_derivatives,
        random_beta,
        finite=1.0,
        points=([0.67, 5.5, 7.4], [0.82, 7.4, 20.0], [0.43, 0.6, 0.12]),
        extreme=(FEW_SHAPES, FEW_SHAPES, EDGES),
        pair=sp.log_tails.log_beta_tails,
        bad_places=(-0.1, 1.1, NAN, INF),
    ),
    "beta_logit": _beta(
        by("logit_x", BETA),
        beta.beta_logit_sample_derivatives,
        random_logit,
        finite=1e6,
        points=([0.67, 5.5, 7.4], [0.82, 7.4, 20.0], [-0.3, 0.4, -2.0]),
        extreme=(FEW_SHAPES, FEW_SHAPES, LOGITS),
    ),
    "student_t": _t(
        swapped(*T),
        single_slope(student_t.student_t_sample_derivative),
        random_t,
        finite=1e10,
        points=([0.4, 0.4, 3.0, 3.0, 30.0, 12.0, 5.0], [0.1, 3.0, 0.7, -2.5, 1.2, -4.0, 0.0]),
        extreme=(FREEDOMS, [*TS, *(-t for t in TS)]),
        symmetric=True,
        pair=lambda df, t: sp.log_tails.student_t_log_tails(t, df),
    ),
    "student_t_log": _t(
        {"logsf": lambda df, u: student_t.student_t_log_tail(u, df)},
        single_slope(student_t.student_t_log_sample_derivative),
        random_log_t,
        points=([0.4, 0.4, 3.0, 3.0, 30.0, 12.0], [0.1, 3.0, 0.7, -2.5, 1.2, -4.0]),
        extreme=(FREEDOMS, [-INF, -1e30, -100.0, 0.0, 0.3, 1.0, 100.0, 1e6, 1e30]),
    ),
    "von_mises": _exact(
        ("k",),
        swapped(*ANGLE),
        single_slope(von_mises.von_mises_sample_derivative),
        random_angle,
        module=von_mises,
        third="von_mises.* has no derivative",
        # central differences need room below: no k = 0 here
        finite=4.0,
        points=([0.3, 0.4, 4.0, 4.0, 60.0, 1.5, 0.1], [0.05, 1.2, 0.3, 1.0, -0.7, -2.5, 3.1]),
        extreme=(KAPPAS, [*ANGLES, *(-z for z in ANGLES)]),
        bad_parameters=(-1.0, NAN, INF),
        symmetric=True,
        pair=lambda k, z: sp.log_tails.von_mises_log_tails(z, k),
        single=1e-5,
    ),
}


@functools.cache
def table(name):
    """Return a grid: arguments, tails, which side they are, and derivatives by name.

    "slope a b" is the derivative of da/dplace by b, "cdf a b" that of the CDF, and "... terms"
    the sum of absolute terms that bounds its rounding.
    """
    if name.startswith(("student_t", "von_mises")):
        return _table_of_one_side(name)
    with np.load(GRIDS / f"{name}.npz") as arrays:
        columns = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    place = {"gamma": "z", "gamma_log": "log_z", "beta": "x", "beta_logit": "logit_x"}[name]
    names = FAMILIES[name].parameters
    t = {key: columns[key] for key in ("upper", "tail", "log_tail")}
    t["args"] = tuple(columns[key] for key in (*names, place))
    for p in names:
        t[f"slope {p}"], t[f"cdf {p}"] = columns[f"slope_{p}"], columns[f"value_{p}"]
        for q in (*names, "place"):
            t[f"slope {p} {q}"] = columns[f"slope_{p}_{q}"]
            t[f"slope {p} {q} terms"] = columns[f"terms_{p}_{q}"]
        for q in names:
            pq = "".join(sorted(p + q))
            t[f"cdf {p} {q}"] = columns[f"value_{pq}"]
            t[f"cdf {p} {q} terms"] = columns[f"value_terms_{pq}"]
    return t


def _table_of_one_side(name):
    """Join the places x > 0 of the grid with their mirror images."""
    key = "log_t" if name == "student_t_log" else "grid"
    with np.load(GRIDS / f"{name.removesuffix('_log')}.npz") as arrays:
        x, p, *rest = torch.from_numpy(arrays[key]).T.contiguous()
    (param,) = FAMILIES[name].parameters
    if key == "log_t":
        log_tail, d, d_p, d_x, d_p_terms, d_x_terms = rest
        t = {"args": (p, x), "tail": log_tail.exp(), "log_tail": log_tail}
        t["upper"] = torch.ones_like(x, dtype=torch.bool)
        values = {"": d, f" {param}": d_p, f" {param} terms": d_p_terms}
        values |= {" place": d_x, " place terms": d_x_terms}
        return t | {f"slope {param}{k}": v for k, v in values.items()}
    tail, log_tail, f, log_f, g, g_p, g_x, f_pp, f_px, f_xx, g_p_terms, g_x_terms, f_px_terms = rest
    f_p, slope = -f * g, f_xx / f.clamp(min=1e-300)
    # the density by the parameter is that of -(dp/dx) f
    mixed = f_px_terms + (f_p * slope).abs() + ((f_p / x).abs() if name == "student_t" else 0)
    odd = {
        "x": x,
        f"slope {param}": g,
        f"slope {param} {param}": g_p,
        f"cdf {param}": f_p,
        f"cdf {param} {param}": f_pp,
        "cdf place place": f_xx,
    }
    even = {
        "p": p,
        "tail": tail,
        "log_tail": log_tail,
        "log_density": log_f,
        f"slope {param} place": g_x,
        f"slope {param} {param} terms": g_p_terms,
        f"slope {param} place terms": g_x_terms,
        "cdf place": f,
        f"cdf place {param}": f_px,
        f"cdf {param} place": f_px,
        f"cdf place {param} terms": f_px_terms,
        f"cdf {param} place terms": mixed,
        f"cdf {param} {param} terms": f * g_p_terms + (g * f_px).abs(),
        "cdf place place terms": f_xx.abs(),
    }
    t = {k: torch.cat([v, -v]) for k, v in odd.items()}
    t |= {k: torch.cat([v, v]) for k, v in even.items()}
    t["upper"] = torch.arange(2 * len(x)) < len(x)
    return t | {"args": (t.pop("p"), t.pop("x"))}
