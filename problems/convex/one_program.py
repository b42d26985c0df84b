"""One cone program: its optimality, Newton's method, and the choice of active constraints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import implicit_solvers as ims
from implicit_solvers.problems.convex.normal_map_jacobian import (
    FactoredJacobian,
    NormalMapJacobian,
    Slope,
    with_entries,
)

__all__ = ["ROUNDING", "OneProgram", "Point"]

ROUNDING = 1e-12
"""The relative error that a solution may have."""

_EPS = float(np.finfo(np.float64).eps)
_GOAL = 16 * _EPS  # what Newton's method strives for
_IDLE = 3
_NONE, _SINGULAR = 1e-14, 1e-11
_ALONG = 1e-6
_DOUBT = 32.0
_FAINT, _TURN = 1e-12, 1e-2
_FARTHEST = 1e6


class Point(NamedTuple):
    """A point of the `normal_map`, its relative error, and the Newton steps that led there.

    ``here`` are the conditions there; ``known`` is the last Jacobian that was factored, and the
    projection that it is for.
    """

    z: np.ndarray
    error: float
    steps: int
    here: Any = None
    known: tuple[Slope, FactoredJacobian] | None = None


class Found(NamedTuple):
    """What a cone solver found: a point of the `normal_map`, the steps made, the status.

    It solved for ``zoom`` times the distance from another point: ``c``, ``b``, ``x``, ``y``, ``s``
    are those of its program, of which they may prove that it has no solution.
    """

    point: np.ndarray
    steps: int
    status: ims.Status
    c: np.ndarray
    b: np.ndarray
    x: np.ndarray
    y: np.ndarray
    s: np.ndarray
    zoom: float


class _Conditions(NamedTuple):
    """The `normal_map` at a point: its value, the sizes of its terms, the projection."""

    F: np.ndarray
    sizes: np.ndarray
    error: float
    slope: Slope


@dataclass(frozen=True, eq=False)
class OneProgram:
    """``min x^T P x / 2 + c^T x`` such that ``A x + s = b``, ``s`` in ``K``, in NumPy.

    ``P`` and ``A`` are the entries in the order of the pattern that the ``jacobian`` was made for.
    """

    P: np.ndarray
    c: np.ndarray
    A: np.ndarray
    b: np.ndarray
    jacobian: NormalMapJacobian

    def bend(self, x: np.ndarray) -> np.ndarray:
        """Return ``P x``."""
        return _product(self.P, self.jacobian.pattern.P, x)

    def along(self, x: np.ndarray) -> np.ndarray:
        """Return ``A x``."""
        return _product(self.A, self.jacobian.pattern.A, x)

    def across(self, y: np.ndarray) -> np.ndarray:
        """Return ``A^T y``."""
        pattern = self.jacobian.pattern.A
        rows, columns = pattern.rows.numpy(), pattern.columns.numpy()
        return np.bincount(columns, self.A * y[rows], pattern.shape[1])

    def conditions(self, z: np.ndarray) -> _Conditions:
        """Evaluate the normal map; a part's error is relative to the largest of its terms."""
        n = len(self.c)
        x, u = z[:n], z[n:]
        slope = self.jacobian.slope(u)
        y = slope.y
        gap, long, dear = y - u, _largest(x), _largest(y)
        F = np.concatenate(
            [
                self.bend(x) + self.c + self.across(y),
                self.along(x) + gap - self.b,
            ]
        )
        slopes = _largest(self.A)
        costs = max(_largest(self.P) * long, _largest(self.c))
        dual = max(costs or 1.0, slopes * dear)  # (without an objective multipliers are zero)
        primal = max(slopes * long, _largest(gap), _largest(self.b))
        error = max(
            _largest(part) / size if size > 0 else 0.0
            for part, size in ((F[:n], dual), (F[n:], primal))
        )
        sizes = np.repeat([dual, primal], [n, len(u)])
        return _Conditions(F, sizes, error, slope)

    def zoomed(self, x: np.ndarray, zoom: float, method: Any, start: np.ndarray | None) -> Found:
        """Run the cone solver on what ``x`` leaves, in a unit that is ``zoom`` times smaller.

        For ``d = zoom (x' - x)`` the program has ``P / zoom``, ``P x + c`` and ``zoom (b - A x)``;
        multipliers stay what they are. Rows whose right-hand side is large then are divided by it.
        """
        n, jacobian = len(self.c), self.jacobian
        cones, rows = jacobian.pattern.cones, jacobian.pattern.A.rows.numpy()
        c, b = self.bend(x) + self.c, zoom * (self.b - self.along(x))
        scale = np.exp2(-np.round(np.log2(cones.shared(np.maximum(abs(b), 1.0)))))
        upper, lines = (
            with_entries(template, entries[order])
            for entries, (order, template) in (
                (self.P / zoom, jacobian.upper),
                (self.A * scale[rows], jacobian.columns),
            )
        )
        near = None
        if start is not None and zoom == 1:
            y = jacobian.slope(start[n:]).y
            near = start[:n], y / scale, (y - start[n:]) * scale
        found = method.solve(upper, c, lines, b * scale, cones, near)
        y, s = found.y * scale, found.s / scale
        point = np.concatenate([x + found.x / zoom, y - s / zoom])
        return Found(point, found.steps, found.status, c, b, found.x, y, s, zoom)

    def proves(self, found: Found) -> bool:
        """Tell whether what was found proves that there is no solution, to within rounding.

        With ``A^T y = 0``, up to little, and ``y`` in the dual cone, every feasible point is at
        least ``-b^T y / |A^T y|`` away; with ``P d = 0`` and ``-A d`` in the cone, multipliers are
        at least as large as the fall along ``d`` over what these miss. Beyond a million units
        there is none. Source: Todd, "Detecting infeasibility in infeasible-interior-point methods
        for optimization" (2003).
        """
        if found.status == ims.Status.INFEASIBLE:
            terms, off = found.b * found.y, _largest(self.across(found.y))
        else:
            terms, off = found.c * found.x, _largest(self.bend(found.x))
            off = max(off, _largest(self.along(found.x) + found.s))
        gap = -terms.sum()
        farthest = _FARTHEST * max(found.zoom, 1.0)
        return bool(gap > 100 * _EPS * abs(terms).sum() and off * farthest <= gap)

    def _factored(self, here: _Conditions, known: Any) -> tuple[Slope, FactoredJacobian]:
        """Factor the Jacobian, unless it is known."""
        return here.slope, self.jacobian.factor(self.P, self.A, here.slope, known)

    def refined(self, z: np.ndarray, steps: int) -> Point:
        """Make Newton steps until the error is that of rounding; the best point is returned.

        The projections are piecewise smooth, and a step uses the Jacobian of the piece that it
        starts on. Three steps without progress end it. Source: Qi and Sun, "A nonsmooth version of
        Newton's method" (1993).
        """
        best, made, idle, known = Point(z, np.inf, 0), 0, 0, None
        while np.isfinite(z).all():
            here = self.conditions(z)
            idle = 0 if here.error < 0.5 * best.error else idle + 1
            if here.error < best.error:
                best = Point(z, here.error, made, here)
            near = best.error <= (ROUNDING if idle else _GOAL)
            if near or idle == _IDLE or made == steps:
                break
            known = self._factored(here, known)
            z = z - known[1].solve(here.F)
            made += 1
        return best._replace(steps=made, known=known)

    def chosen(self, point: Point) -> Point:
        """Return the point with a linearly independent choice of active inequalities.

        An inequality whose multiplier and slack are both rounding gets ``u = 0``: it is not active.
        Where active inequalities depend on one another, multipliers are moved along the line that
        changes nothing else until one vanishes, again and again: those left are unique. Where ``x``
        is not, inequalities that were left out are active after all, with multipliers of a
        rounding.
        """
        cones, n, z = self.jacobian.pattern.cones, len(self.c), point.z.copy()
        own, u = slice(n + cones.zero, n + cones.linear), z[n + cones.zero : n + cones.linear]
        here, known, rng = point.here, point.known, np.random.default_rng(0)
        size = _largest(z[n:]) or 1.0
        kept, least_active = np.zeros(len(u), dtype=bool), 2 * _EPS * size
        for _ in range(2 * len(u) + 2):
            known = self._factored(here, known)
            off, line, least = self._tried(known[1], here, rng)
            if _NONE < least < _SINGULAR or self._turns(here, z[n:], off[n:]):
                # the digits are lost that say which constraints are active
                error = max(point.error, 2 * ROUNDING, _largest(off[n:]) / size)
                return point._replace(error=error, known=known)
            doubt = _DOUBT * np.maximum(off[own], _EPS * size)
            close = (abs(u) <= doubt) & ~kept
            held = close & (u > 0)
            u[close] = 0.0
            if not held.any() and not self._exchanged(z, line, here.slope, kept):
                break
            here = self.conditions(z)
        if np.array_equal(z, point.z):
            return point._replace(known=known)
        again, kinks = self.refined(z, _IDLE), (u == 0) | kept
        w = again.z[own]
        back = kinks & (abs(w) <= np.maximum(doubt, _ALONG * size))
        w[back] = np.where(kept, least_active, 0.0)[back]
        here = self.conditions(again.z)
        known = self._factored(here, again.known)
        if not here.error <= max(point.error, ROUNDING):  # a choice that is none
            return point._replace(error=max(point.error, 2 * ROUNDING), known=known)
        return Point(again.z, here.error, point.steps + again.steps, here, known)

    def _exchanged(self, z: np.ndarray, line: np.ndarray, slope: Slope, kept: np.ndarray) -> bool:
        """Let an inequality go along which multipliers may move, or one in that ``x`` may cross.

        Changes ``z``, and which inequalities are ``kept``; tells whether there was one.
        """
        cones, n = self.jacobian.pattern.cones, len(self.c)
        inequalities = slice(cones.zero, cones.linear)
        u, least = z[n:][inequalities], _ALONG * _largest(line)
        along = np.where(u > 0, line[n:][inequalities], 0.0)
        if _largest(along) > least:
            line, along = (-line, -along) if along.min() >= -along.max() else (line, along)
            falls = along < 0
            lengths = np.where(falls, u, np.inf) / np.where(falls, -along, 1.0)
            first = int(lengths.argmin())
            active = np.concatenate([slope.linear, np.zeros(cones.size - cones.linear)])
            z[n:] += lengths[first] * line[n:] * active
            u[first], kept[first] = 0.0, False
            return True
        crossing = np.where(u == 0, abs(self.along(line[:n])[inequalities]), 0.0)
        first = int(crossing.argmax()) if len(u) else 0
        if not _largest(crossing) > least:
            return False
        u[first], kept[first] = 2 * _EPS * (_largest(z[n:]) or 1.0), True
        return True

    def _turns(self, here: _Conditions, u: np.ndarray, off: np.ndarray) -> bool:
        """Tell whether ``u`` is off by more than rounding, and a curved projection turns there."""
        if not len(here.slope.curved) or _largest(off) <= _FAINT * _largest(u):
            return False
        near = (self.jacobian.slope(v).curved for v in (u + off, u - off))
        return max(_largest(D - here.slope.curved) for D in near) > _TURN

    def _tried(
        self, J: FactoredJacobian, here: _Conditions, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Return how far the point may be off, a line along which ``J`` is least, and how large.

        It is off by Newton's step, and by what rounding does. The line, by inverse iteration, is
        zero where ``J`` is not.
        """
        n, count = len(self.c), len(here.F)
        noise = _EPS * rng.choice([-1.0, 1.0], size=count) * here.sizes
        columns = np.stack([noise, here.F, rng.standard_normal(count)], -1)
        noise, step, v = J.nearly(np.concatenate([columns, np.zeros((J.behind, 3))])).T
        # (what the factored matrix has more than J, times v)
        x, flat, _, dy = np.split(v / abs(v).max(), [n, n + len(here.slope.linear), count])
        v = J.nearly(np.concatenate([x, -here.slope.linear * flat, -dy, 0 * dy]))
        v /= abs(v).max()
        least = float(abs(J.matrix @ v).max())
        off = np.maximum(abs(noise), abs(step))[:count]
        return off, (v if least <= _NONE else 0 * v)[:count], least


def _largest(v: np.ndarray) -> float:
    return float(abs(v).max(initial=0.0))


def _product(entries: np.ndarray, pattern: Any, v: np.ndarray) -> np.ndarray:
    return np.bincount(pattern.rows.numpy(), entries * v[pattern.columns.numpy()], pattern.shape[0])
