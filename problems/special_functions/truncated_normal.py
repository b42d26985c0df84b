r"""The normal distribution on an interval: tails, density, motion and quantiles.

With ``x = (z - m) / s`` and ``a``, ``b`` the standardized ends, everything is made of

.. math:: J_k(c, w) = \int_0^w t^k e^{-c t - t^2 / 2} \, dt, \quad c \ge 0,

integrals outwards from where the density is largest: of the arguments only differences occur, as
``w = (z - low) / s``, and no exponential is larger than one. A sample at ``F(z) = u`` moves by

.. math:: dz = A \, dl + B \, dh + (1 - A - B) \, dm + (x - a A - b B) \, ds, \quad
          A = (1 - u) \frac{\varphi(a)}{\varphi(x)}, \ B = u \frac{\varphi(b)}{\varphi(x)} .

The last two are differences between the truncated distributions below and above ``x``,

.. math:: 1 - A - B = W (E[t | t > x] - E[t | t < x]), \quad
          x - a A - b B = W (E[t^2 | t > x] - E[t^2 | t < x])

with ``W = P(t < x) P(t > x) / (P \varphi(x))``: of terms of one sign, unless the mode is inside.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.special_functions.derivatives import in_double, piecewise
from implicit_solvers.problems.special_functions.normal import LOG_ROOT, legendre_nodes

__all__ = ["truncated_normal_quantile", "truncated_normal_slopes", "truncated_normal_tails"]

Tensors = tuple[Tensor, ...]
FRACTION_ABOVE, LEVELS = 4.5, 20
NARROW, NODES = 1.0, 9
LARGE, TINY = 1e300, 1e-305
MIRRORED_BELOW, ROUNDED = -30.0, 1e-5
ROOT_HALF_PI = math.sqrt(0.5 * math.pi)


def _half_line(c: Tensor) -> Tensors:
    """Return ``J_k(c, inf)`` for ``k = 0, 1, 2``, of which the first is the Mills ratio.

    For large ``c`` by Laplace's continued fraction, ``J_k / J_(k-1) = k / (c + J_(k+1) / J_k)``.
    """
    return piecewise(3, [c], (c > FRACTION_ABOVE, _fraction), (c <= FRACTION_ABOVE, _differences))


def _differences(c: Tensor) -> Tensors:
    first = ROOT_HALF_PI * (0.5 * c * c).exp_() * torch.special.erfc(c / 2**0.5)
    second = 1 - c * first
    return first, second, first - c * second


def _fraction(c: Tensor) -> Tensors:
    ratio = 0.5 * ((c * c + 4 * (LEVELS + 1)).sqrt() - c)
    for k in range(LEVELS, 1, -1):
        ratio = ratio.add_(c).reciprocal_().mul_(k)
    second = (c + ratio).reciprocal_()
    first = (c + second).reciprocal_()
    second *= first
    return first, second, ratio * second


def _fall(c: Tensor, w: Tensor) -> Tensor:
    return w * (c + 0.5 * w)


def _quadrature(c: Tensor, w: Tensor, nodes: int) -> Tensors:
    """Return ``J_k(c, w)`` of a narrow interval."""
    linear, square = -w * c, -0.5 * w * w
    sums = [torch.zeros_like(c) for _ in range(3)]
    for node, weight in legendre_nodes(nodes):
        mass = (node * linear).add_(square, alpha=node**2).exp_()
        for k, total in enumerate(sums):
            total.add_(mass, alpha=weight * node**k)
    return sums[0] * w, sums[1] * w * w, sums[2] * w * w * w


def _integrals(c: Tensor, w: Tensor, whole: Tensors) -> Tensors:
    """Return ``J_k(c, w)`` and ``exp(-c w - w^2 / 2)``; ``whole`` is ``J_k(c, inf)``."""
    fall = _fall(c, w)
    end = (-fall).exp()
    w = torch.where(end > 0, w, 0.0)
    first, second, third = whole
    if bool((w > 0).any()):
        one, two, three = _half_line(c + w)
        first = first - end * one
        second = second - end * (two + w * one)
        third = third - end * (three + w * (2 * two + w * one))
    narrow = (fall < NARROW).nonzero().squeeze(-1)
    if len(narrow):
        first, second, third = (t.clone() for t in (first, second, third))
        parts = _quadrature(c[narrow], w[narrow], NODES)
        for all_of_them, part in zip((first, second, third), parts, strict=True):
            all_of_them[narrow] = part
    return first, second, third, end


def _central(w: Tensor) -> Tensors:
    """Return ``J_k(0, w)`` and ``exp(-w^2 / 2)``."""
    w = w.clamp(max=40.0)
    square = w * w
    end, first = (-0.5 * square).exp(), ROOT_HALF_PI * torch.special.erf(w / 2**0.5)
    # sum_k w^(2 k + 3) / (3 5 ... (2 k + 3))
    near = square.clamp(max=1.0)
    series = torch.ones_like(w)
    for k in range(23, 3, -2):
        series = series.mul_(near).div_(k).add_(1)
    third = torch.where(square < 1, end * w * square * series / 3, first - w * end)
    return first, -(-0.5 * square).expm1(), third, end


def _swapped(where: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(where, other, one), torch.where(where, one, other)


@dataclass(frozen=True)
class _Parts:
    """The integrals on both sides of a point, on the right of the mode or mirrored.

    Above it in units of the density there; below it in those of the largest density on that side,
    larger by ``exp(fall)``.
    """

    mirrored: Tensor
    x: Tensor
    a: Tensor
    b: Tensor
    above: Tensor
    above_1: Tensor  # of t - x
    excess: Tensor  # of t^2 - x^2
    below: Tensor
    short: Tensor  # of x - t
    lack: Tensor  # of x^2 - t^2
    lack_terms: Tensor
    fall: Tensor
    density: Tensor
    at_a: Tensor
    at_b: Tensor
    total: Tensor


def _parts(z: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> _Parts:
    z = z.clamp(low, high)
    x, a, b = ((t - loc) / scale for t in (z, low, high))
    mirrored, x = x < 0, x.abs()
    a, b = torch.where(mirrored, -b, a), torch.where(mirrored, -a, b)
    down, up = _swapped(mirrored, (z - low) / scale, (high - z) / scale)
    at_x = _half_line(x)
    above, above_1, above_2, end = _integrals(x, up, at_x)
    left, left_1, left_2, start = _central((-a).clamp(min=0))
    inside = a > 0
    if bool(inside.any()):
        c, p = a.clamp(min=0), torch.where(inside, down, x)
        right, right_1, right_2, density = _integrals(c, p, _half_line(c))
        fall = _fall(c, p)
    else:
        c, p = torch.zeros_like(x), x
        right, right_1, right_2, density = _central(x)
        fall = 0.5 * x * x
    below = right + left
    short = p * below - right_1 + left_1
    gain, loss = 2 * c * short + p * p * below, right_2 + left_2
    return _Parts(
        mirrored,
        x,
        a,
        b,
        above,
        above_1,
        2 * x * above_1 + above_2,
        below,
        short,
        gain - loss,
        gain + loss,
        fall,
        density,
        start,
        end,
        below + density * above,
    )


@in_double(0)
def _tail_values(*args: Tensor, nodes: int) -> Tensors:
    q = _parts(*args)
    odds = q.above.log() - q.fall - q.below.log()
    log_cdf, log_survival = (torch.nn.functional.logsigmoid(o) for o in (-odds, odds))
    log_density = -q.fall - q.total.log() - args[2].log()
    return *_swapped(q.mirrored, log_cdf, log_survival), log_density


@in_double(0)
def _slope_values(*args: Tensor, nodes: int) -> Tensors:
    """Return ``A``, ``B``, ``1 - A - B`` and ``x - a A - b B``."""
    q = _parts(*args)
    below, above = q.below / q.total, q.above / q.total
    by_a, by_b = above * q.at_a, below * q.at_b
    by_loc = below * q.above_1 + above * q.short
    of_a, of_b = q.a.clamp(min=-LARGE) * by_a, q.b.clamp(max=LARGE) * by_b
    by_scale = torch.where(
        q.x + of_a.abs() + of_b < below * q.excess + above * q.lack_terms,
        q.x - of_a - of_b,
        below * q.excess + above * q.lack,
    )
    return *_swapped(q.mirrored, by_a, by_b), by_loc, torch.where(q.mirrored, -by_scale, by_scale)


@in_double(0)
def _score_values(*args: Tensor, nodes: int) -> Tensors:
    """Return ``phi(a) / P``, ``phi(b) / P``, ``x - E[t]`` and ``x^2 - E[t^2]``."""
    q = _parts(*args)
    at_a, at_b = q.at_a / q.total, q.density * q.at_b / q.total
    short, far = q.short / q.total, q.density * q.above_1 / q.total
    off = torch.where(q.x + at_a + at_b < short + far, q.x - at_a + at_b, short - far)
    square_off = (q.lack - q.density * q.excess) / q.total
    return *_swapped(q.mirrored, at_a, at_b), torch.where(q.mirrored, -off, off), square_off


def _moves(loc: Tensor, scale: Tensor, *ends: Tensor) -> tuple[Tensors, list[Any]]:
    """Return the standardized arguments, and how each argument moves them, times ``scale``."""
    x, a, b = ((t - loc) / scale for t in ends)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    by_argument = [
        (one, zero, zero),
        (-one, -one, -one),
        (-x, -a, -b),
        (zero, one, zero),
        (zero, zero, one),
    ]
    return (x, a, b), by_argument


def _finite(z: Tensor, low: Tensor, high: Tensor) -> Tensors:
    """Return ends that may be multiplied with their densities."""
    return z, torch.where(low.isfinite(), low, z), torch.where(high.isfinite(), high, z)


def _score_partials(
    score: Tensors, z: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> list[Any]:
    at_low, at_high, off, _ = score
    z, low, high = _finite(z, low, high)
    (x, a, b), moves = _moves(loc, scale, z, low, high)
    # of the mean at_low - at_high
    over_low, under_high = (z - low) / scale - off, (high - z) / scale + off

    def along(x_1: Tensor, a_1: Tensor, b_1: Tensor) -> Tensors:
        low_1 = at_low * (a_1 * (over_low + at_high) - b_1 * at_high) / scale
        high_1 = at_high * (a_1 * at_low - b_1 * (under_high + at_low)) / scale
        square = 2 * x * x_1 - a_1 * at_low + b_1 * at_high
        return low_1, high_1, x_1 / scale - low_1 + high_1, square / scale - a * low_1 + b * high_1

    return [functools.partial(along, *move) for move in moves]


def _slope_partials(
    slopes: Tensors, z: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> list[Any]:
    by_low, by_high, by_loc, by_scale = slopes
    scores = functools.cache(lambda low, high: _scores(z, loc, scale, low, high))
    args = low, high
    z, low, high = _finite(z, low, high)
    (x, a, b), moves = _moves(loc, scale, z, low, high)
    down, up = (z - low) / scale, (high - z) / scale
    # dz - D dphi, and the derivatives of (x^2 - a^2) / 2 and (x^2 - b^2) / 2
    flows = [torch.ones_like(x), -by_loc, -by_scale, -by_low, -by_high]
    falls = [x, -down, -down * (x + a), -a, torch.zeros_like(x)]
    rises = [x, up, up * (x + b), torch.zeros_like(x), -b]

    def along(move: Tensors, flow: Tensor, fall: Tensor, rise: Tensor) -> Tensors:
        at_low, at_high, *_ = scores(*args)
        x_1, a_1, b_1 = move
        low_1 = by_low * fall - at_low * flow
        high_1 = by_high * rise + at_high * flow
        scale_1 = x_1 - a * low_1 - a_1 * by_low - b * high_1 - b_1 * by_high
        return tuple(t / scale for t in (low_1, high_1, -low_1 - high_1, scale_1))

    columns = zip(moves, flows, falls, rises, strict=True)
    return [functools.partial(along, *column) for column in columns]


def _tail_partials(law: Tensors, z: Tensor, *parameters: Tensor) -> list[Any]:
    loc, scale, *_ = parameters
    log_cdf, log_survival, log_density = law
    below, above = (log_density - log_cdf).exp(), (log_density - log_survival).exp()
    slopes = functools.cache(lambda: _slopes(z, *parameters))
    scores = functools.cache(lambda: _scores(z, *parameters))

    def along(slope: int, score: int, sign: float) -> Tensors:
        moved = slopes()[slope]
        return -below * moved, above * moved, sign * scores()[score] / scale

    columns = [(2, 2, 1.0), (3, 3, 1.0), (0, 0, 1.0), (1, 1, -1.0)]
    return [
        lambda: (below, -above, (loc - z) / scale.square()),
        *(functools.partial(along, *column) for column in columns),
    ]


_scores = ims.elementwise_function(
    _score_values, _score_partials, name="scores of a truncated normal variable"
)
_slopes = ims.elementwise_function(
    _slope_values, _slope_partials, name="slopes of a truncated normal variable"
)
_tails = ims.elementwise_function(
    _tail_values, _tail_partials, name="tails of a truncated normal variable"
)


def _upper(x: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(x / 2**0.5)


def _mirrored(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return whether a solution is looked for from the upper end."""
    return high - loc < torch.where(low.isinf(), 0.0, MIRRORED_BELOW * scale)


@in_double(0)
def _reach(
    loc: Tensor, scale: Tensor, low: Tensor, high: Tensor, mass: Tensor, *, nodes: int
) -> Tensors:
    """Return what is known of the solution from an end of the interval.

    ``c``, which is ``a``, or ``-b`` for an interval far on the left, ``ln J_0(c, w)``, the
    half-line's ``J_0`` and ``J_1``, and what of the former is beyond the interval.
    """
    a, b, w = (low - loc) / scale, (high - loc) / scale, (high - low) / scale
    c = torch.where(_mirrored(loc, scale, low, high), -b, a)
    narrow, right = w * (c.abs() + 0.5 * w) < NARROW, c.clamp(min=0)
    inner = _quadrature(c, torch.where(narrow, w, 0.0), NODES)[0].log()
    inner = torch.where(narrow, inner, mass.log() + 0.5 * c * c + LOG_ROOT)  # phi(c) J_0 = mass
    whole = _half_line(right)
    reach = torch.where(c < 0, inner, _integrals(right, w, whole)[0].log())
    end = (-_fall(right, w)).exp()
    rest = end * _half_line(torch.where(end > 0, right + w, right))[0]
    return c, reach, *whole[:2], rest


def _narrow_distance(c: Tensor, wanted: Tensor) -> Tensors:
    """Solve ``J_0(c, d) = wanted``, of which ``c`` times is at most 0.05, by Halley's method."""
    d = 2 * wanted / (1 + (1 - 2 * c * wanted).sqrt())
    for _ in range(2):
        step = (_quadrature(c, d, 6)[0] - wanted) * _fall(c, d).exp()
        d = d - step / (1 + 0.5 * step * (c + d))
    return (d,)


def _distance(c: Tensor, wanted: Tensor, fall: Tensor, mills: Tensor, second: Tensor) -> Tensors:
    """Solve ``P(t > c + d) = exp(-fall) P(t > c)``: the derivative of ``fall`` is the hazard."""
    hazard = 1 / mills
    d = 2 * fall / (hazard + (hazard * hazard * (1 + 2 * fall * second)).sqrt())
    for _ in range(2):
        one, two, _ = _half_line(c + d)
        step = (_fall(c, d) + (mills / one).log() - fall) * one
        d = d - step / (1 - 0.5 * step * two / one)
    return (d,)


def _from_an_end(u: Tensor, parameters: Tensors, reach: Tensors) -> Tensor:
    _, scale, low, high = parameters
    c, log_reach, mills, second, beyond = reach
    mirrored = _mirrored(*parameters)
    v = u.clamp(TINY, 1.0)
    v, rest = _swapped(mirrored, v, 1 - v)
    wanted = (v.log() + log_reach).exp()
    near = (c < 0) | (wanted < 0.05 * mills)
    share = (beyond + rest * log_reach.exp()) / mills
    fall = -torch.where(share < 0.5, share.log(), (-(wanted / mills).clamp(max=0.75)).log1p())
    args = [c, wanted, fall, mills, second]
    (d,) = piecewise(1, args, (near, lambda *t: _narrow_distance(*t[:2])), (~near, _distance))
    z = torch.where(mirrored, high - scale * d, low + scale * d)
    ends = torch.where(u == 0, low, torch.where(u == 1, high, torch.nan))
    return torch.where((u > 0) & (u < 1), z, ends).clamp(low, high)


def _compact(t: Tensor) -> Tensor:
    """Return a tensor as it was before it was expanded."""
    for dim, stride in enumerate(t.stride()):
        t = t.narrow(dim, 0, 1) if stride == 0 and t.shape[dim] > 1 else t
    return t


def _quantile_value(u: Tensor, *parameters: Tensor) -> Tensor:
    loc, scale, low, high = compact = torch.broadcast_tensors(*map(_compact, parameters))
    a, b = (low - loc) / scale, (high - loc) / scale
    below, above, beyond = _upper(-a), _upper(a), _upper(b)
    mass = torch.where(a > 0, above, torch.where(b < 0, _upper(-b), 1 - beyond))
    mass = mass - torch.where(a > 0, beyond, below)
    part = u * mass
    p, q = below + part, (1 - u).mul_(mass).add_(beyond)
    smaller = torch.minimum(p, q)
    x = torch.special.ndtri(smaller).copysign_(p.sub_(q))
    z = x.mul_(scale).add_(loc).clamp_(low, high)
    # where a difference of the tails would be rounded, and at the ends
    least = torch.where(mass < 1e-3, torch.full_like(mass, TINY), 0.0)
    rest = (part <= ROUNDED * torch.minimum(below, above)) | (smaller <= least) | (u >= 1)
    if bool(rest.any()):
        few = u[rest]

        def some(t: Tensor) -> Tensor:
            return t.expand_as(few) if t.numel() == 1 else t.expand_as(u)[rest]

        reach = map(some, _reach(*compact, mass))
        z[rest] = _from_an_end(few, tuple(map(some, compact)), tuple(reach))
    return z


_quantile = ims.elementwise_function(
    _quantile_value, None, name="quantile of a truncated normal variable"
)


def _quantile_partials(z: Tensor, _: Tensor, u: Tensor, *parameters: Tensor) -> list[Any]:
    finite = z.isfinite()
    point = torch.where(finite, z, parameters[0])
    by_u = lambda: (-_tails(point, *parameters)[2]).exp()  # noqa: E731
    slopes = [by_u, *truncated_normal_slopes(point, *parameters)]
    return [None, *((lambda s=s: torch.where(finite, s(), 0.0)) for s in slopes)]


_attached = ims.elementwise_function(
    lambda z, *_: z.clone(), _quantile_partials, name="truncated normal variable"
)


def truncated_normal_tails(
    z: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``ln F(z)``, ``ln(1 - F(z))`` and the logarithm of the density.

    Parameters
    ----------
    z : Tensor
        A point of the interval, finite.
    loc, scale : Tensor
        Of the normal distribution that is truncated.
    low, high : Tensor
        The ends, which may be infinite; all arguments are float64, and broadcast.

    Returns
    -------
    tuple of Tensor
        Differentiable to any order. Values and first derivatives have the relative error 1e-12,
        relative to their terms where these cancel.

    Examples
    --------
    >>> far = [torch.tensor(t, dtype=torch.float64) for t in (1001.0, 0.0, 1.0, 1000.0, torch.inf)]
    >>> truncated_normal_tails(*far)[1:]
    (tensor(-1000.5010, dtype=torch.float64), tensor(-993.5922, dtype=torch.float64))
    """
    below, above, log_density = _tails(z, loc, scale, low, high)
    return below, above, log_density


def truncated_normal_slopes(
    z: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> list[Any]:
    """Return functions for the derivatives of a sample by ``loc``, ``scale``, ``low`` and ``high``.

    Parameters
    ----------
    z, loc, scale, low, high : Tensor
        As in `truncated_normal_tails`.

    Returns
    -------
    list of callable
        They share one evaluation, of the same errors, and are differentiable to any order.

    Examples
    --------
    >>> point = [torch.tensor(t, dtype=torch.float64) for t in (1.0, 0.0, 1.0, 0.0, torch.inf)]
    >>> [round(slope().item(), 4) for slope in truncated_normal_slopes(*point)]
    [0.4768, 1.0, 0.5232, 0.0]
    """
    moved = functools.cache(lambda: _slopes(z, loc, scale, low, high))
    return [functools.partial(lambda i: moved()[i], i) for i in (2, 3, 0, 1)]


def truncated_normal_quantile(
    u: Tensor, *parameters: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return the quantile, with implicit derivatives in everything.

    By the normal quantile function or, where that would lose digits, by Halley's method from the
    end of the interval, whose distance keeps its relative precision.

    Parameters
    ----------
    u : Tensor
        Probabilities; NaN is returned outside of [0, 1].
    *parameters : Tensor
        ``loc``, ``scale``, ``low``, ``high`` as in `truncated_normal_tails`.
    dtype : torch.dtype, optional
        What the quantile is rounded to, before its derivatives are evaluated.

    Returns
    -------
    Tensor
        Of that dtype.

    Examples
    --------
    >>> ends = torch.tensor([1e5, torch.inf], dtype=torch.float64)
    >>> zero, one = torch.zeros_like(ends[0]), torch.ones_like(ends[0])
    >>> u = torch.tensor([0.0, 0.5], dtype=torch.float64)
    >>> truncated_normal_quantile(u, zero, one, *ends) - 1e5
    tensor([0.0000e+00, 6.9315e-06], dtype=torch.float64)
    """
    z = _quantile(*(t.detach() for t in (u, *parameters))).to(dtype).to(torch.float64)
    attached: Tensor = _attached(z, u, *parameters)
    return attached.to(dtype)
