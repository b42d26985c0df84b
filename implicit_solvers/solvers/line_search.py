"""Line searches: how far to go along a direction of descent, in each lane, one trial a step.

It knows values and slopes on the line, and no function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from implicit_solvers.agreement import Mask, both, divide, either, no, pick
from implicit_solvers.hyperparameters import check_count, check_number

__all__ = ["Backtracking", "Line", "LineSearch", "StrongWolfe"]


class End(NamedTuple):
    """A length with the objective and the slope there."""

    length: Any
    value: Any
    slope: Any


class Line(NamedTuple):
    """What a search knows of the objective on a half line.

    ``start`` and ``trial`` are its start, without a value where the line does not lead down, and
    the last length tried; ``low`` tells whether the objective has fallen there, and ``best`` is the
    lowest of these, if that is below the start by more than rounding. A minimum is between
    ``lower`` and ``upper``, and ``width`` was their distance a trial before. ``tried`` counts
    lengths; what is ``last`` is accepted. Where it is ``lenient`` a fall will do, whatever the
    slope. ``noise`` is the level at which differences of objectives drown in their rounding,
    ``eps`` that of their dtype.
    """

    start: End
    trial: End
    low: Mask
    best: End
    lower: End
    upper: End
    width: Any
    tried: Any
    last: Mask
    lenient: Mask
    noise: Any
    eps: float

    def fallen(self, share: float) -> tuple[Mask, Mask, Mask]:
        """Tell where the trial has fallen by a ``share`` of what the slope promises.

        Then where that is less than the rounding of the objective, and where the trial rises by no
        more than this.
        """
        promised, (_, before, _) = share * self.trial.length * self.start.slope, self.start
        value, noise = self.trial.value, self.noise
        return value <= before + promised, promised >= -noise, value <= before + noise

    def leads_down(self) -> Mask:
        """Tell where the direction leads down."""
        return self.start.value == self.start.value


@dataclass(frozen=True)
class LineSearch:
    """What line searches have in common: `begin`, then `judge` and `again` until a trial pays.

    One that ``bends`` judges trials on an arc too.
    """

    bends: ClassVar[bool] = False

    def begin(self, value: Any, slope: Any, eps: float, lenient: Mask = False) -> Line:
        """Return what is known of a line from its start."""
        zero, noise = 0 * slope, eps ** (2 / 3) * abs(value)
        down = both(slope < 0, slope > -math.inf)
        start, infinite = End(zero, pick(down, value, math.nan), slope), zero + math.inf
        upper, never = End(infinite, infinite, infinite), zero > 0
        best = End(zero, value - noise, slope)
        return Line(
            start, start, never, best, start, upper, infinite, zero, never, lenient, noise, eps
        )

    def judge(self, line: Line, finite: Mask) -> tuple[Mask, Mask]:
        """Tell where the trial is accepted, and where the objective has fallen; if ``finite``."""
        raise NotImplementedError

    def again(self, line: Line) -> tuple[Any, Line, Mask]:
        """Return the next length, what is known with the trial, and where the search has failed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Backtracking(LineSearch):
    """Shorten the step until the objective falls enough: the rule of Armijo.

    For objectives ``f`` ``(N,)`` and directions ``p`` ``(N, n)`` of a real floating dtype; each
    problem has its own length.

    The length ``t`` is multiplied by ``shrink`` until ``f(z + t p) <= f(z) + decrease t f'``, with
    the slope ``f'`` along ``p`` at ``z``. Where that fall is less than the rounding of the
    objective (``eps**(2/3) |f|``), a slope that has not turned against ``p`` by more than
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

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> solver = ims.GradientDescent(1.0, line_search=Backtracking())
    >>> ims.minimize(lambda z: (z - 3) ** 2, torch.tensor(0.0), solver=solver).value
    tensor(3.)
    """

    decrease: float = 1e-4
    shrink: float = 0.5
    max_steps: int = 30
    bends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_number(self, "decrease", above=0, below=0.5)
        check_number(self, "shrink", above=0, below=1)
        check_count(self, "max_steps", least=1)

    def judge(self, line: Line, finite: Mask) -> tuple[Mask, Mask]:
        """Accept a fall that is large enough."""
        # no further beyond the minimum than it was before it
        short = line.trial.slope <= -0.8 * line.start.slope
        falls, drowns, rests = line.fallen(self.decrease)
        low = both(pick(drowns, both(rests, short), falls), finite)
        return low, low

    def again(self, line: Line) -> tuple[Any, Line, Mask]:
        """Shorten the length."""
        failed = either(line.tried >= self.max_steps, no(line.leads_down()))
        return self.shrink * line.trial.length, line, failed


@dataclass(frozen=True)
class StrongWolfe(LineSearch):
    """Find a length at which the objective has fallen and the slope is nearly gone.

    For objectives ``f`` ``(N,)`` and directions ``p`` ``(N, n)`` of a real floating dtype; each
    problem has its own length.

    With ``phi(t) = f(z + t p)``: ``phi(t) <= phi(0) + decrease t phi'(0)`` and
    ``|phi'(t)| <= curvature |phi'(0)|``. The length grows until a bracket is found, whose lower
    end has the first property and a negative slope; cubic interpolation, kept away from the ends,
    and bisection close it. Such a bracket always holds a length that will do. Where the fall asked
    for is less than the rounding of the objective (``eps**(2/3) |f|``), the slopes alone
    judge. If the lengths run out, the lowest point with the first property is taken. If the fall to
    it drowns in rounding, or the slope was negative at every length, so that the objective has no
    minimum on the line, the search fails. Source: Nocedal and Wright, "Numerical Optimization",
    algorithms 3.5 and 3.6; the update of the bracket and the approximate conditions: Hager and
    Zhang, "A new conjugate gradient method with guaranteed descent and an efficient line search",
    SIAM J. Optim. 16 (2005).

    Parameters
    ----------
    decrease
        The share of the fall promised by the slope that is asked for, in (0, curvature).
    curvature
        The share of the slope that may be left, below ``1 - 2 decrease``; 0.9 for Newton-like
        directions, 0.1 for a nearly exact search.
    max_steps
        How many lengths are tried.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> solver = ims.GradientDescent(1e-3, line_search=StrongWolfe(curvature=0.1))
    >>> ims.minimize(lambda z: (z - 3) ** 2, torch.tensor(0.0), solver=solver).value
    tensor(3.0000)
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    max_steps: int = 30

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_number(self, "decrease", above=0, below=0.5)
        check_number(self, "curvature", above=self.decrease, below=1 - 2 * self.decrease)
        check_count(self, "max_steps", least=1)

    def judge(self, line: Line, finite: Mask) -> tuple[Mask, Mask]:
        """Accept a length that meets both conditions."""
        falls, drowns, rests = line.fallen(self.decrease)
        low = both(finite, either(falls, both(drowns, rests)))
        flat = abs(line.trial.slope) <= -self.curvature * line.start.slope
        will_do = either(either(flat, line.last), both(falls, line.lenient))
        return both(low, will_do), low

    def again(self, line: Line) -> tuple[Any, Line, Mask]:
        """Narrow the bracket, and choose a length in it, or look for one further out."""
        trial = line.trial
        inside = both(line.low, trial.slope < 0)
        best = pick(both(line.low, trial.value < line.best.value), trial, line.best)
        lower, upper = pick(inside, (trial, line.upper), (line.lower, trial))
        width = upper.length - lower.length
        bracketed = width < math.inf
        length = pick(
            bracketed,
            _between(lower, upper, line.noise, halve=width > 2 / 3 * line.width),
            _beyond(line.lower, lower),
        )
        narrow = both(bracketed, width <= 2 * line.eps * upper.length)
        # an objective of minus infinity has no minimum
        useless = either(no(line.leads_down()), trial.value == -math.inf)
        over = either(either(line.tried >= self.max_steps, narrow), useless)
        some = both(both(bracketed, best.length > 0), no(either(line.last, useless)))
        last = both(over, some)
        line = line._replace(best=best, lower=lower, upper=upper, width=width, last=last)
        return pick(last, best.length, length), line, both(over, no(some))


def _between(lower: End, upper: End, noise: Any, halve: Mask) -> Any:
    """Return the minimum of the cubic through both ends, a tenth of the bracket off them."""
    (a, fa, ga), (b, fb, gb) = lower, upper
    width = b - a
    bend = ga + gb - 3 * divide(fb - fa, width)
    square = bend * bend - ga * gb
    root = pick(square > 0, square, 0.0) ** 0.5
    cubic = b - width * divide(gb + root - bend, gb - ga + 2 * root)
    secant = a - ga * divide(width, gb - ga)
    inner = pick(both(abs(fb - fa) <= noise, gb > 0), secant, cubic)
    inner = pick(both(abs(inner) < math.inf, no(halve)), inner, a + 0.5 * width)
    return _clipped(inner, a + 0.1 * width, b - 0.1 * width)


def _beyond(before: End, last: End) -> Any:
    """Return where the slope would vanish if it went on to change: twice to ten times as far."""
    (a, _, ga), (b, _, gb) = before, last
    secant = b - gb * divide(b - a, gb - ga)
    ahead = pick(gb > ga, secant, math.inf)
    return _clipped(ahead, 2 * b, 10 * b)


def _clipped(length: Any, least: Any, most: Any) -> Any:
    length = pick(length > most, most, length)
    return pick(length < least, least, length)
