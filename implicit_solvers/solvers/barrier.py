"""The barrier's problem: its units, an iterate between the bounds, and a step from there.

It knows no filter: `interior_point` judges steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.problem import EquationProblem

__all__ = [
    "Gaps",
    "Inside",
    "Slopes",
    "Step",
    "Units",
    "barrier",
    "error_of",
    "evaluate",
    "gaps_of",
    "lagrangian",
    "least_squares_multipliers",
    "moved_inside",
    "push_of",
    "rounding",
    "slopes_of",
    "step_inside",
    "units_of",
    "with_bounds",
]

_PUSH, _TO_THE_BOUNDARY = 1e-2, 0.99


class Units(NamedTuple):
    """The sizes of the unknown, the objective and the constraints; and the bounds in these.

    ``most`` is how large the violation may become.
    """

    z: Tensor
    f: Tensor
    c: Tensor
    lo: Tensor
    hi: Tensor
    most: Tensor

    @property
    def fixed(self) -> Tensor:
        """Which unknowns and rows have one value only."""
        return self.lo == self.hi

    @property
    def low(self) -> Tensor:
        """Which have a lower bound beside another, or none."""
        return (self.lo > -torch.inf) & ~self.fixed

    @property
    def high(self) -> Tensor:
        """Which have an upper bound beside another, or none."""
        return (self.hi < torch.inf) & ~self.fixed


class Inside(NamedTuple):
    """An iterate between the bounds: unknowns and slacks ``w``, and multipliers.

    ``y`` are those of the constraints, ``low`` and ``high`` those of bounds; ``f`` and ``c`` are
    the values of objective and constraints.
    """

    w: Tensor
    y: Tensor
    low: Tensor
    high: Tensor
    f: Tensor
    c: Tensor


class Slopes(NamedTuple):
    """The gradient of the objective, the Hessian of the Lagrangian, and the constraints' slopes."""

    g: Tensor
    H: Tensor
    J: Tensor


class Gaps(NamedTuple):
    """How far ``w`` is from its bounds, 1 where there is none, and the barrier's curvature."""

    low: Tensor
    high: Tensor
    sigma: Tensor


class Step(NamedTuple):
    """A step of unknowns and slacks, and of multipliers, and how far these may go."""

    w: Tensor
    y: Tensor
    low: Tensor
    high: Tensor
    length: Tensor
    dual_length: Tensor


def rounding(like: Tensor) -> float:
    """Return the rounding of a dtype."""
    return float(torch.finfo(like.dtype).eps)


def units_of(problem: EquationProblem, z: Tensor) -> Units:
    """Return the sizes of everything at the start."""
    bounds: Any = problem.bounds
    (lo, hi), m = bounds, problem.equation.multipliers
    n = z.shape[-1] - m
    x = torch.clamp(z[:, :n], lo[:, :n], hi[:, :n])
    point = torch.cat([x, torch.zeros_like(z[:, n:])], -1)
    slope, jacobian = problem.slope_and_jacobian(point)
    K = jacobian.dense()
    bounds = torch.stack([lo[:, :n], hi[:, :n], x]).abs().amax(0)
    # the sizes of a start of zeros: that of bounds, or of the way to where something is zero
    ways = slope.abs() / K[:, :, :n].abs().amax(-1)
    sizes = (t.masked_fill(~(t < torch.inf), 0.0).amax(-1, True) for t in (x.abs(), bounds, ways))
    size = torch.ones_like(x[:, :1])
    for known in reversed([*sizes]):
        size = torch.where(known > 0, known, size)
    size = torch.where(bounds > 0, torch.minimum(size, bounds), size)
    J, c = K[:, n:, :n] * size.unsqueeze(-2), slope[:, n:].abs()
    row = J.abs().amax(-1)
    row = torch.where(row > 0, row, torch.where(c > 0, c, 1.0))
    H = K[:, :n, :n] * size.unsqueeze(-1) * size.unsqueeze(-2)
    f = torch.maximum((size * slope[:, :n]).abs().amax(-1), 1e-2 * H.abs().amax((-2, -1)))
    f = torch.where((f > 0) & (f < torch.inf), f, 1.0).unsqueeze(-1)
    each = torch.cat([size, row], -1)
    return Units(size, f, row, lo / each, hi / each, f.squeeze(-1))


def evaluate(problem: EquationProblem, units: Units, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the objective and the constraints."""
    out = problem.evaluate(torch.cat([x * units.z, torch.zeros_like(units.c)], -1))
    return out[:, 0] / units.f.squeeze(-1), out[:, 1:] / units.c


def slopes_of(problem: EquationProblem, units: Units, x: Tensor, y: Tensor) -> Slopes:
    """Return the derivatives of objective and constraints, and the Hessian of the Lagrangian."""
    n = x.shape[-1]
    u = torch.cat([x * units.z, y * units.f / units.c], -1)
    slope, jacobian = problem.slope_and_jacobian(u)
    slope, K = slope[:, :n], jacobian.dense()
    H = K[:, :n, :n] * (units.z / units.f).unsqueeze(-1) * units.z.unsqueeze(-2)
    J = K[:, n:, :n] * units.z.unsqueeze(-2) / units.c.unsqueeze(-1)
    g = slope * (units.z / units.f) - torch.bmm(J.mT, y.unsqueeze(-1)).squeeze(-1)
    return Slopes(g, H, J)


def lagrangian(slopes: Slopes, y: Tensor) -> Tensor:
    """Return the slope of the Lagrangian."""
    return slopes.g + torch.bmm(slopes.J.mT, y.unsqueeze(-1)).squeeze(-1)


def moved_inside(v: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """Move ``v`` a little inside of its bounds."""
    push = (_PUSH * (hi - lo)).clamp(max=_PUSH)
    v = torch.where(lo > -torch.inf, torch.maximum(v, lo + push), v)
    v = torch.where(hi < torch.inf, torch.minimum(v, hi - push), v)
    return torch.where(lo == hi, lo, v)


def least_squares_multipliers(slopes: Slopes, units: Units, bounds: Tensor) -> Tensor:
    """Return multipliers of the constraints by least squares; those of ``bounds`` are known."""
    n, J = slopes.g.shape[-1], slopes.J
    squares = J.square().sum(-1)
    squares = rounding(J) ** 0.5 * torch.where(squares > 0, squares, 1.0)
    A = torch.bmm(J, J.mT) + torch.diag_embed((~units.fixed[:, n:]).to(J.dtype) + squares)
    b = bounds[:, n:].unsqueeze(-1) - torch.bmm(J, (slopes.g + bounds[:, :n]).unsqueeze(-1))
    return torch.cholesky_solve(b, torch.linalg.cholesky_ex(A).L).squeeze(-1)


def gaps_of(units: Units, inside: Inside) -> Gaps:
    """Return how far an iterate is from its bounds."""
    low = torch.where(units.low, inside.w - units.lo, 1.0)
    high = torch.where(units.high, units.hi - inside.w, 1.0)
    return Gaps(low, high, inside.low / low + inside.high / high)


def push_of(gaps: Gaps, units: Units, mu: Tensor) -> Tensor:
    """Return the slope of the barrier, beside that of multipliers."""
    mu = mu.unsqueeze(-1)
    high = torch.where(units.high, mu / gaps.high, 0.0)
    return high - torch.where(units.low, mu / gaps.low, 0.0)


def error_of(
    inside: Inside, gaps: Gaps, units: Units, dual: Tensor, y: Tensor, mu: Tensor | float
) -> Tensor:
    """Return how far the conditions of the barrier are from being met, the violation aside."""
    slope = (dual - inside.low + inside.high).abs().amax(-1)
    low = torch.where(units.low, gaps.low * inside.low - mu, 0.0).abs()
    high = torch.where(units.high, gaps.high * inside.high - mu, 0.0).abs()
    size = torch.cat([y, inside.low, inside.high], -1).abs().mean(-1).clamp(min=1.0)
    return torch.maximum(slope, torch.maximum(low, high).amax(-1)) / size


def step_inside(
    units: Units, inside: Inside, gaps: Gaps, mu: Tensor, dx: Tensor, dy: Tensor, ds: Tensor
) -> Step:
    """Return the step of the barrier's iterate, and how far it may go to stay inside."""
    mu = mu.unsqueeze(-1)
    w = torch.where(units.fixed, 0.0, torch.cat([dx, ds], -1))
    low = mu / gaps.low - inside.low - inside.low / gaps.low * w
    high = mu / gaps.high - inside.high + inside.high / gaps.high * w
    low, high = torch.where(units.low, low, 0.0), torch.where(units.high, high, 0.0)
    near = torch.maximum(
        torch.where(units.low, -w / gaps.low, 0.0), torch.where(units.high, w / gaps.high, 0.0)
    )
    dual = torch.maximum(
        torch.where(units.low, -low / inside.low, 0.0),
        torch.where(units.high, -high / inside.high, 0.0),
    )
    most = (1 - mu).clamp(min=_TO_THE_BOUNDARY)
    length, dual_length = (1 / (v / most).amax(-1).clamp(min=1.0) for v in (near, dual))
    return Step(w, dy, low, high, length, dual_length)


def barrier(units: Units, w: Tensor) -> Tensor:
    """Return minus the logarithms of all gaps."""
    low = torch.where(units.low, torch.log(torch.where(units.low, w - units.lo, 1.0)), 0.0)
    high = torch.where(units.high, torch.log(torch.where(units.high, units.hi - w, 1.0)), 0.0)
    return -(low + high).sum(-1)


def with_bounds(trial: Inside, units: Units, step: Step, mu: Tensor) -> Inside:
    """Return a trial with its multipliers of bounds, kept near ``mu`` over the gap."""
    gaps = gaps_of(units, trial)
    length, mu = step.dual_length.unsqueeze(-1), mu.unsqueeze(-1)

    def moved(value: Tensor, change: Tensor, gap: Tensor, there: Tensor) -> Tensor:
        value = torch.clamp(value + length * change, 1e-10 * mu / gap, 1e10 * mu / gap)
        return torch.where(there, value, 0.0)

    low = moved(trial.low, step.low, gaps.low, units.low)
    return trial._replace(low=low, high=moved(trial.high, step.high, gaps.high, units.high))
