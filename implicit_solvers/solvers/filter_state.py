"""What an interior-point method knows of each lane, and of a step on its way.

It knows no rule by which a step is judged.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from implicit_solvers.solvers.barrier import Gaps, Inside, Slopes, Step, Units

__all__ = [
    "ACTIVE",
    "INSIDE",
    "RESTORING",
    "Active",
    "Direction",
    "FilterState",
    "Guess",
    "Here",
    "Search",
    "Trial",
    "Verdict",
]

INSIDE, RESTORING, ACTIVE = 0, 1, 2
"""Where a lane is: between the bounds, on its way back to what is feasible, on the active set."""


class Search(NamedTuple):
    """How steps are tried: the barrier's ``mu``, and pairs of violation and objective to beat.

    ``tries`` is how often a step was shortened, ``second`` where its second-order correction is
    next, by the violation ``left``; ``damping`` is added to the Hessian; ``stuck`` counts searches
    in vain. Restoration began at the violation ``entry``. The active set is tried when the error
    is ``ready``.
    """

    mu: Tensor
    filter: Tensor
    tries: Tensor
    second: Tensor
    left: Tensor
    damping: Tensor
    stuck: Tensor
    entry: Tensor
    ready: Tensor


class Active(NamedTuple):
    """An iterate of Newton's method on a guess of the active set: ``side`` is -1, 0, 1, or 2.

    That is for a lower, no, or an upper bound, or a fixed value. The last step had a ``size``.
    """

    z: Tensor
    y: Tensor
    c: Tensor
    side: Tensor
    size: Tensor
    rounds: Tensor


class FilterState(NamedTuple):
    """The state of `FilterInteriorPoint`."""

    z: Tensor
    error: Tensor
    estimate: Tensor
    flag: Tensor
    accepted: Any
    phase: Tensor
    units: Units
    inside: Inside
    search: Search
    active: Active

    def settled(self, accepted: Any) -> FilterState:
        """Return the state; lanes whose trial was rejected have stayed."""
        return self._replace(accepted=accepted)

    @property
    def n(self) -> int:
        """The number of unknowns."""
        return self.active.z.shape[-1]

    @property
    def walking(self) -> Tensor:
        """Which lanes are between the bounds."""
        return self.phase == INSIDE

    @property
    def restoring(self) -> Tensor:
        """Which lanes are on their way back to what is feasible."""
        return self.phase == RESTORING

    @property
    def on_set(self) -> Tensor:
        """Which lanes are on the active set."""
        return self.phase == ACTIVE


class Here(NamedTuple):
    """The conditions where a step begins, and their slopes.

    ``gradient`` is that of the Lagrangian. Restoration has no objective, and the ``violation`` in
    the place of multipliers ``y``: with these ``dual`` is the gradient, in unknowns and slacks.
    ``worst`` is the largest violation, ``soft`` how far constraints give way to multipliers.
    """

    slopes: Slopes
    gaps: Gaps
    gradient: Tensor
    violation: Tensor
    worst: Tensor
    y: Tensor
    dual: Tensor
    soft: Tensor


class Guess(NamedTuple):
    """A guess of the active set, by ``side``, the ``bound`` of what is in it, and who ``enters``.

    ``same`` tells where it is that of the last step, and ``start`` is an iterate for who enters.
    """

    start: Active
    side: Tensor
    bound: Tensor
    same: Tensor
    enters: Tensor


class Direction(NamedTuple):
    """A step from ``inside``, the barrier's slope ``push``, and the next iterate of ``newton``.

    The curvature was not positive where it is ``bent``.
    """

    inside: Step
    push: Tensor
    newton: Active
    bent: Tensor


class Trial(NamedTuple):
    """A trial of some ``length``, and the sums of violations ``before`` and ``after``."""

    to: Inside
    length: Tensor
    before: Tensor
    after: Tensor


class Verdict(NamedTuple):
    """Whether a trial is ``good``, and its numbers ``sound``.

    It is of ``f_type`` where the objective has to fall; elsewhere the filter keeps the ``pair``.
    """

    good: Tensor
    sound: Tensor
    f_type: Tensor
    pair: Tensor
