"""Line searches: how far to go along a direction of descent, in each lane."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.autodiff import vjp
from implicit_solvers.compiling import compiling
from implicit_solvers.hyperparameters import check_count, check_number
from implicit_solvers.iterate import iterate
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import Auto, Norm

__all__ = [
    "Backtracking",
    "Found",
    "Line",
    "LineSearch",
    "Point",
    "StrongWolfe",
    "objective",
    "search",
]


class Point(NamedTuple):
    """An iterate ``(N, n)`` with the objective ``(N,)`` and its gradient ``(N, n)`` there."""

    z: Tensor
    value: Tensor
    gradient: Tensor

    def error(self, norm: Norm) -> Tensor:
        """Return the norm of the gradient; NaN where the objective is not finite."""
        return torch.where(torch.isfinite(self.value), norm(self.gradient), torch.nan)


class Found(NamedTuple):
    """The points to go to; a lane that is not ``ok`` found none and has its old point."""

    point: Point
    ok: Tensor

    def flag(self, rtol: float | Auto | None) -> Tensor:
        """Return STALLED for lanes that found no point, else 0; a budget judges nothing."""
        return torch.where(self.ok | (rtol is None), 0, int(Status.STALLED))


def objective(problem: EquationProblem, z: Tensor) -> Point:
    """Evaluate what is minimized, ``f`` or ``|r|^2 / 2``, and its gradient, in one pass."""
    if problem.kind == "minimize":
        return Point(z, *problem.value_and_gradient(z))
    residuals, pull = vjp(problem.evaluate, z)
    return Point(z, 0.5 * (residuals**2).sum(-1), pull(residuals)[0])


class Line:
    """The objective on the half line ``z + t direction``, ``t > 0``: a search is a solve for t.

    ``noise`` is the level at which differences of objectives drown in their rounding. In lanes
    that are ``lenient (N,)`` a fall will do, whatever the slope.
    """

    def __init__(
        self, problem: EquationProblem, start: Point, direction: Tensor, lenient: Tensor
    ) -> None:
        self.problem, self.start, self.direction = problem, start, direction
        self.lenient = lenient
        self.slope = _dot(direction, start.gradient)
        eps = torch.finfo(direction.dtype).eps
        self.noise = eps ** (2 / 3) * start.value.abs().clamp(min=1)

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.problem.separable

    def take(self, index: Tensor) -> Line:
        """Return the lines of some of the lanes."""
        start = Point(*(t[index] for t in self.start))
        direction, lenient = self.direction[index], self.lenient[index]
        return Line(self.problem.take(index), start, direction, lenient)

    def aliased(self) -> Line:
        """Return the lines as the body of a loop in a graph has to see them."""
        return Line(self.problem.aliased(), self.start, self.direction, self.lenient)

    def tolerance(self, solver: object, z: Tensor) -> Tensor:
        """Return zero: a length is accepted or it is not."""
        return torch.zeros_like(z[:, 0])

    def at(self, length: Tensor) -> tuple[Point, Tensor]:
        """Return the point at ``length (N,)`` and the slope there."""
        point = objective(self.problem, self.start.z + length.unsqueeze(-1) * self.direction)
        return point, _dot(self.direction, point.gradient)

    def falls(self, length: Tensor, value: Tensor, share: float) -> Tensor:
        """Tell where the objective falls by a ``share`` of what the slope promises."""
        return value <= self.start.value + share * length * self.slope

    def drowns(self, length: Tensor, share: float) -> Tensor:
        """Tell where that fall is less than the rounding of the objective."""
        return -share * length * self.slope <= self.noise

    def rests(self, value: Tensor) -> Tensor:
        """Tell where the objective rises by no more than its rounding."""
        return value <= self.start.value + self.noise

    def impassable(self) -> Tensor:
        """Return STALLED for lanes in which the direction does not lead down, else 0."""
        down = (self.slope < 0) & torch.isfinite(self.slope) & torch.isfinite(self.start.value)
        return torch.where(down, 0, int(Status.STALLED))


class BacktrackingState(NamedTuple):
    """The state of `Backtracking`: the length accepted, or 0, and the next to try."""

    z: Tensor
    point: Point
    trial: Tensor
    error: Tensor
    flag: Tensor

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """What the search returns beside the length."""
        return (*self.point, self.error == 0)


@dataclass(frozen=True)
class Backtracking:
    """Shorten the step until the objective falls enough: the rule of Armijo.

    For objectives ``f`` ``(N,)`` and directions ``p`` ``(N, n)`` of a real floating dtype; each
    lane has its own length.

    The length ``t`` is multiplied by ``shrink`` until ``f(z + t p) <= f(z) + decrease t f'``, with
    the slope ``f'`` along ``p`` at ``z``. Where that fall is less than the rounding of the
    objective (``eps**(2/3) max(|f|, 1)``), a slope that has not turned against ``p`` by more than
    0.8 of what it was will do, as in the approximate conditions of Hager and Zhang (2005). Source:
    Nocedal and Wright, "Numerical Optimization", algorithm 3.1.

    Parameters
    ----------
    decrease
        The share of the fall promised by the slope that is asked for, in (0, 1/2).
    shrink
        The factor between lengths, in (0, 1).
    max_steps
        How many lengths are tried.
    compact
        Whether lanes that have found their length leave the computation.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> solver = ims.GradientDescent(1.0, line_search=Backtracking())
    >>> ims.minimize(lambda z: (z - 3) ** 2, torch.tensor(0.0), solver=solver).value
    tensor(3.)
    """

    decrease: float = 1e-4
    shrink: float = 0.5
    max_steps: int = 30
    compact: bool = True
    rtol: ClassVar[float] = 0.0
    atol: ClassVar[float] = 0.0
    monotone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_number(self, "decrease", above=0, below=0.5)
        check_number(self, "shrink", above=0, below=1)
        check_count(self, "max_steps", least=1)

    def init(self, line: Line, z: Tensor) -> BacktrackingState:
        """Take the first length to try from ``z (N, 1)``; nothing is accepted yet."""
        trial = z[:, 0]
        error = torch.ones_like(trial)
        return BacktrackingState(0 * z, line.start, trial, error, line.impassable())

    def step(self, line: Line, state: BacktrackingState) -> BacktrackingState:
        """Try a length."""
        trial = state.trial
        point, slope = line.at(trial)
        short = slope <= -0.8 * line.slope  # no further beyond the minimum than it was before it
        good = torch.where(
            line.drowns(trial, self.decrease),
            line.rests(point.value) & short,
            line.falls(trial, point.value, self.decrease),
        )
        good = good & torch.isfinite(point.value) & torch.isfinite(slope)
        return BacktrackingState(
            torch.where(good, trial, state.z[:, 0]).unsqueeze(-1),
            _choose(good, point, state.point),
            self.shrink * trial,
            (~good).to(trial.dtype),
            state.flag,
        )


class StrongWolfeState(NamedTuple):
    """The state of `StrongWolfe`: the best length, the next to try, and the ends of a bracket.

    An end is a length with the objective and the slope there, ``(N, 3)``. ``width`` is that of
    the bracket before the last step.
    """

    z: Tensor
    point: Point
    trial: Tensor
    lower: Tensor
    upper: Tensor
    width: Tensor
    error: Tensor
    flag: Tensor

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """What the search returns beside the length."""
        bracketed = torch.isfinite(self.upper[:, 0])
        progress = (self.z[:, 0] > 0) & bracketed
        return (*self.point, (self.error == 0) | progress)


@dataclass(frozen=True)
class StrongWolfe:
    """Find a length at which the objective has fallen and the slope is nearly gone.

    For objectives ``f`` ``(N,)`` and directions ``p`` ``(N, n)`` of a real floating dtype; each
    lane has its own length.

    With ``phi(t) = f(z + t p)``: ``phi(t) <= phi(0) + decrease t phi'(0)`` and
    ``|phi'(t)| <= curvature |phi'(0)|``. The length grows until a bracket is found, whose lower
    end has the first property and a negative slope; cubic interpolation, kept away from the ends,
    and bisection close it. Such a bracket always holds a length that will do. Where the fall asked
    for is less than the rounding of the objective (``eps**(2/3) max(|f|, 1)``), the slopes alone
    judge. If the evaluations run out, the lowest point with the first property is taken, unless
    the slope was negative at every length: then the objective has no minimum on the line, and the
    search fails. Source: Nocedal and Wright, "Numerical Optimization", algorithms 3.5 and 3.6;
    the update of the bracket and the approximate conditions: Hager and Zhang, "A new conjugate
    gradient method with guaranteed descent and an efficient line search", SIAM J. Optim. 16
    (2005).

    Parameters
    ----------
    decrease
        The share of the fall promised by the slope that is asked for, in (0, curvature).
    curvature
        The share of the slope that may be left, below ``1 - 2 decrease``; 0.9 for Newton-like
        directions, 0.1 for a nearly exact search.
    max_steps
        How many lengths are tried.
    compact
        Whether lanes that have found their length leave the computation.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> solver = ims.GradientDescent(1e-3, line_search=StrongWolfe(curvature=0.1))
    >>> ims.minimize(lambda z: (z - 3) ** 2, torch.tensor(0.0), solver=solver).value
    tensor(3.0000)
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    max_steps: int = 30
    compact: bool = True
    rtol: ClassVar[float] = 0.0
    atol: ClassVar[float] = 0.0
    monotone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_number(self, "decrease", above=0, below=0.5)
        check_number(self, "curvature", above=self.decrease, below=1 - 2 * self.decrease)
        check_count(self, "max_steps", least=1)

    def init(self, line: Line, z: Tensor) -> StrongWolfeState:
        """Take the first length to try from ``z (N, 1)``; the bracket is the half line."""
        trial = z[:, 0]
        lower = torch.stack([0 * trial, line.start.value, line.slope], -1)
        infinite = torch.full_like(trial, torch.inf)
        upper = infinite.unsqueeze(-1).expand(-1, 3)
        error = torch.ones_like(trial)
        return StrongWolfeState(
            0 * z, line.start, trial, lower, upper, infinite, error, line.impassable()
        )

    def step(self, line: Line, state: StrongWolfeState) -> StrongWolfeState:
        """Try a length, and choose the next."""
        trial = state.trial
        point, slope = line.at(trial)
        finite = torch.isfinite(point.value) & torch.isfinite(slope)
        falls = line.falls(trial, point.value, self.decrease)
        low = finite & (falls | (line.drowns(trial, self.decrease) & line.rests(point.value)))
        flat = slope.abs() <= -self.curvature * line.slope
        met = (low & flat) | (finite & falls & line.lenient)
        best = low & (met | (point.value < state.point.value))

        new = torch.stack([trial, point.value, slope], -1)
        inside = (low & (slope < 0)).unsqueeze(-1)
        lower = torch.where(inside, new, state.lower)
        upper = torch.where(inside, state.upper, new)
        width = upper[:, 0] - lower[:, 0]
        between = _between(lower, upper, line.noise, halve=width > 2 / 3 * state.width)
        beyond = _beyond(state.lower, lower)

        # an objective of minus infinity has no minimum; a bracket without numbers in it is no use
        flag = torch.where(point.value == -torch.inf, int(Status.NONFINITE), state.flag)
        upper = torch.where((flag == int(Status.NONFINITE)).unsqueeze(-1), torch.inf, upper)
        narrow = width <= 2 * torch.finfo(trial.dtype).eps * upper[:, 0]
        flag = torch.where(narrow & torch.isfinite(width), int(Status.STALLED), flag)
        return StrongWolfeState(
            torch.where(best, trial, state.z[:, 0]).unsqueeze(-1),
            _choose(best, point, state.point),
            torch.where(torch.isfinite(upper[:, 0]), between, beyond),
            lower,
            upper,
            width,
            (~met).to(trial.dtype),
            flag,
        )


LineSearch = Backtracking | StrongWolfe


def search(
    method: LineSearch,
    problem: EquationProblem,
    start: Point,
    direction: Tensor,
    length: Tensor,
    *,
    compact: bool,
    lenient: Tensor | None = None,
) -> Found:
    """Search along ``direction (N, n)``, from the length ``(N,)`` on.

    In lanes that are ``lenient (N,)``, `StrongWolfe` does not ask for a smaller slope.
    """
    if lenient is None:
        lenient = torch.zeros_like(length, dtype=torch.bool)
    if not compact and not compiling():
        method = replace(method, compact=False)
    line = Line(problem, start, direction, lenient)
    out = iterate(method, line, length.unsqueeze(-1))
    z, value, gradient, ok = out.factors
    return Found(_choose(ok, Point(z, value, gradient), start), ok)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _choose(which: Tensor, new: Point, old: Point) -> Point:
    lanes = which.unsqueeze(-1)
    return Point(
        torch.where(lanes, new.z, old.z),
        torch.where(which, new.value, old.value),
        torch.where(lanes, new.gradient, old.gradient),
    )


def _between(lower: Tensor, upper: Tensor, noise: Tensor, halve: Tensor) -> Tensor:
    """Return the minimum of the cubic through both ends, a tenth of the bracket off them."""
    (a, fa, ga), (b, fb, gb) = lower.unbind(-1), upper.unbind(-1)
    width = b - a
    bend = ga + gb - 3 * (fb - fa) / width
    root = (bend**2 - ga * gb).clamp(min=0).sqrt()
    cubic = b - width * (gb + root - bend) / (gb - ga + 2 * root)
    secant = a - ga * width / (gb - ga)
    inner = torch.where(((fb - fa).abs() <= noise) & (gb > 0), secant, cubic)
    inner = torch.where(torch.isfinite(inner) & ~halve, inner, a + 0.5 * width)
    return torch.minimum(torch.maximum(inner, a + 0.1 * width), b - 0.1 * width)


def _beyond(before: Tensor, last: Tensor) -> Tensor:
    """Return where the slope would vanish if it went on to change: twice to ten times as far."""
    (a, _, ga), (b, _, gb) = before.unbind(-1), last.unbind(-1)
    secant = b - gb * (b - a) / (gb - ga)
    ahead = torch.where(gb > ga, secant, torch.inf)
    return torch.minimum(torch.maximum(ahead, 2 * b), 10 * b)
