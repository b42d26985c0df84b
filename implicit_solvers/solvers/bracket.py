"""Two points between which a function of one variable changes its sign. It knows no slope."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.traced_loop import inside, repeat

__all__ = ["Bracket", "End", "choose", "find_bracket", "midpoint", "opposite", "value_at"]


_ORDER = 0.25


class End(NamedTuple):
    """A point ``z (N, 1)`` and the function's value there, ``(N,)``."""

    z: Tensor
    value: Tensor


class Bracket(NamedTuple):
    """Two ends with values of different sign; ``flag`` is a `Status` for lanes without them.

    ``width`` and ``height`` are the distance of the ends, and that of the values there, when the
    latter last fell by a quarter or more.
    """

    a: End
    b: End
    flag: Tensor
    width: Tensor
    height: Tensor

    @property
    def nearest(self) -> End:
        """The end where the function is nearer to zero."""
        return choose(self.b.value.abs() < self.a.value.abs(), self.b, self.a)

    @property
    def now(self) -> tuple[Tensor, Tensor]:
        """The distance of the ends, and that of the values there."""
        return (self.b.z - self.a.z).abs().squeeze(-1), self.a.value.abs() + self.b.value.abs()

    def between(self, a: End, b: End) -> Bracket:
        """Return the bracket with other ends."""
        new = self._replace(a=a, b=b)
        now = width, height = new.now
        fell = (height <= 0.75 * self.height) & self._continuous(width, height)
        kept = self.width, self.height
        width, height = (torch.where(fell, n, k) for n, k in zip(now, kept, strict=True))
        return new._replace(width=width, height=height)

    def _continuous(self, width: Tensor, height: Tensor) -> Tensor:
        """Tell whether values have come nearer to each other with the ends.

        They do at a root where the function is continuous (in the sense of Hölder, of the order
        1/4), and do not at a jump or a pole.
        """
        return height <= self.height * (width / self.width) ** _ORDER

    @property
    def estimate(self) -> Tensor:
        """The width; infinite where the values do not come nearer to each other with the ends.

        A jump that a slope makes up for within ``sqrt(eps)`` of the root is taken for rounding.
        """
        width, height = self.now
        size = torch.maximum(self.a.z.abs(), self.b.z.abs()).squeeze(-1)
        rounding = (self.width > 0) & (self.width <= torch.finfo(size.dtype).eps ** 0.5 * size)
        estimate = torch.where(rounding | self._continuous(width, height), width, torch.inf)
        return torch.where(self.nearest.value == 0, 0.0, estimate)

    @property
    def error_bound(self) -> Tensor:
        """The width at which the values last came nearer; since, rounding may have chosen ends."""
        width, height = self.now
        last = torch.where(self._continuous(width, height), width, self.width)
        estimate = self.estimate
        return torch.where((estimate > 0) & (estimate < torch.inf), last, estimate)

    @property
    def ended(self) -> Tensor:
        """The flags, with STALLED where nothing is left between the ends, and BRACKET at a pole."""
        pole = self.nearest.value.abs() > self.height
        why = torch.where(pole, int(Status.BRACKET), int(Status.STALLED))
        return torch.where(self.collapsed, why, self.flag)

    @property
    def collapsed(self) -> Tensor:
        """Whether no number is left between the ends."""
        middle = midpoint(self.a.z, self.b.z)
        return ((middle == self.a.z) | (middle == self.b.z)).squeeze(-1)


def value_at(problem: EquationProblem, z: Tensor) -> Tensor:
    """Return ``F(z)`` for ``z (N, 1)``, as ``(N,)``."""
    return problem.residual(z).squeeze(-1)


def midpoint(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean, which cannot overflow."""
    return 0.5 * a + 0.5 * b


def choose(which: Tensor, first: End, second: End) -> End:
    """Return ``first`` in the lanes where ``which (N,)`` is true, else ``second``."""
    z = torch.where(which.unsqueeze(-1), first.z, second.z)
    return End(z, torch.where(which, first.value, second.value))


def opposite(a: Tensor, b: Tensor) -> Tensor:
    """Tell where two values have different signs; zero has every sign, NaN none."""
    return (a.sign() * b.sign() <= 0) & ~(a.isnan() | b.isnan())


def find_bracket(problem: EquationProblem, start: Tensor, expansions: int) -> Bracket:
    """Return a bracket of each lane.

    ``start (N, 2)`` holds the two ends that the user gave, which are taken as they are. From
    ``start (N, 1)``, a bracket is searched outwards on both sides.
    """
    if start.shape[-1] == 2:
        a, b = (End(z, value_at(problem, z)) for z in (start[:, :1], start[:, 1:]))
    else:
        a, b = _expand(problem, start, expansions)
    flag = torch.where(opposite(a.value, b.value), 0, int(Status.BRACKET))
    undefined = a.value.isnan() | b.value.isnan() | ~torch.isfinite(a.z + b.z).squeeze(-1)
    height = a.value.abs() + b.value.abs()
    flag = torch.where(undefined, int(Status.NONFINITE), flag)
    return Bracket(a, b, flag, (b.z - a.z).abs().squeeze(-1), height)


class _Search(NamedTuple):
    """The ends found, in which lanes they are, and the point and the next step on each side."""

    a: End
    b: End
    found: Tensor
    below: tuple[End, Tensor]
    above: tuple[End, Tensor]


def _expand(problem: EquationProblem, z: Tensor, expansions: int) -> tuple[End, End]:
    start = End(z, value_at(problem, z))
    a, b = start, start
    found = (start.value == 0) | start.value.isnan()
    # where the start is zero, nothing tells how far to look at first
    reach = 0.1 * torch.where(z == 0, 1.0, z.abs())

    def going(carry: _Search) -> Tensor:
        return ~carry.found.all()

    def expand(carry: _Search) -> _Search:
        seen = inside(problem)
        (a, b, found), sides = carry[:3], []
        for inner, step in (carry.below, carry.above):
            outer = End(inner.z + step, value_at(seen, inner.z + step))
            here = ~found & opposite(inner.value, outer.value)
            a, b = choose(here, inner, a), choose(here, outer, b)
            found = found | here
            # a side that has left the domain comes back, and goes on in smaller steps
            defined = torch.isfinite(outer.z).squeeze(-1) & ~outer.value.isnan()
            step = torch.where(defined.unsqueeze(-1), 2 * step, 0.25 * step)
            sides.append((choose(defined, outer, inner), step))
        return _Search(a, b, found, *sides)

    ended = repeat(going, expand, _Search(a, b, found, (start, -reach), (start, reach)), expansions)
    return ended.a, ended.b
