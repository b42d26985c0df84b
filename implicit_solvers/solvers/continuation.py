"""Continuation: predictor and corrector along a path, one step of Newton's method a step.

What the path leads from and to, it does not know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import pick
from implicit_solvers.hyperparameters import check_flag, check_number
from implicit_solvers.linear.lu import LU
from implicit_solvers.outcome import contracted
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import EquationMethod
from implicit_solvers.tolerance import Norm, largest, rms

__all__ = ["Continuation", "PathState", "rms_of_unknowns"]

_NEAR, _CONTRACTS, _DRIFT, _MOST, _MOST_FIRST, _USUAL = 1e-3, 0.5, 0.5, 8, 50, 4
_NEAR_FIRST, _MARGIN = 1e-6, 1.1


def rms_of_unknowns(lanes: Tensor) -> Tensor:
    """Return the root mean square of all entries but the last, which is the parameter."""
    return rms(lanes[..., :-1])


class PathState(NamedTuple):
    """Where lanes are on their paths; points are ``(z, t)``.

    ``z`` is the last point of the path, with ``t = 1``, at which it is judged. Newton's method is
    ``at`` a point with a ``residual``; it began at ``goal``, ahead of ``base`` along ``tangent`` by
    ``length``, and stays in the plane ``row . (at - goal) = 0``. It has made ``tries`` steps, the
    last of size ``last``. ``size`` is the unit of the unknowns on the path.
    """

    z: Tensor
    error: Tensor
    estimate: Tensor
    flag: Tensor
    at: Tensor
    residual: Tensor
    base: Tensor
    goal: Tensor
    tangent: Tensor
    row: Tensor
    length: Any = None
    size: Any = None
    tries: Any = None
    last: Any = None


@dataclass(frozen=True)
class Continuation(EquationMethod):
    """Continuation in a parameter: a tangent predicts, Newton's method corrects.

    For `continuation`. From a point of the path, the tangent leads ahead by a length; Newton's
    method comes back to the path in the plane across the tangent (pseudo-arclength), or at the same
    parameter. The next length is the larger the fewer steps that took. It is halved where Newton's
    steps do not halve each time, or lead away by more than half of the length, so that another
    branch is not taken for the path (one that comes near is told apart by steps of its distance
    only, see ``max_length``); a problem in which the length becomes less than ``sqrt(eps)`` is
    STALLED. Lengths measure unknowns in units of the largest root mean square that the path has had
    (of its slope, where it begins at zero). At ``t = 1`` Newton's method goes on alone. Source:
    Allgower and Georg, "Numerical Continuation Methods" (1990), chapters 2 and 6; Keller,
    "Numerical solution of bifurcation and nonlinear eigenvalue problems" (1977).

    The Jacobian is formed and factored in each step.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`; a step is one of Newton's method.
    norm
        As in `EquationMethod`, of ``(N, n + 1)`` with the parameter in the last place; left out, it
        does not count.
    arclength
        Whether the path is followed by its arclength, through folds; else the parameter only grows
        (natural continuation), which is a little cheaper where there are none.
    first_step
        The first length: of the parameter, or of arclength.
    max_length
        The largest. Where another branch comes as near as a hundredth of the unknown, 0.01.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    The path of a cubic turns back at a fold, and once more, before it comes to ``t = 1``:

    >>> import torch, implicit_solvers as ims
    >>> cubic, z0 = lambda z, t: z**3 - 3 * z + 6 * t - 3, torch.tensor(2.1)
    >>> ims.continuation(cubic, z0, solver=Continuation()).value
    tensor(-2.1038)
    >>> natural = Continuation(arclength=False)
    >>> ims.continuation(cubic, z0, solver=natural, on_failure="mask")
    Solution(STALLED after ... iterations; error ..., residual ...)
    """

    norm: Norm = rms_of_unknowns
    arclength: bool = True
    first_step: float = 0.1
    max_length: float = math.inf
    solves: ClassVar[tuple[str, ...]] = ("continuation",)

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        for length in ("first_step", "max_length"):
            check_number(self, length, above=0)
        check_flag(self, "arclength")

    def init(self, problem: EquationProblem, z: Tensor) -> PathState:
        """Begin at ``(z, t)``, which need be near the path only."""
        residual, none = problem.residual_to_factor(z), torch.zeros_like(z[:, 0])
        endless, row = none + torch.inf, _of_parameter(z)
        error = pick(largest(residual) < torch.inf, 1 - z[:, -1], endless)
        flag, tries = (torch.zeros_like(none, dtype=torch.int64) for _ in range(2))
        known = PathState(_judged(z), error, endless, flag, z, residual, z, z, row, row)
        return known._replace(length=endless, size=none, tries=tries, last=endless)

    def step(self, problem: EquationProblem, state: PathState) -> PathState:
        """Make a step of Newton's method; go on from a point of the path, or try nearer."""
        base, goal, length, size = state.base, state.goal, state.length, state.size
        first, arrived = length == torch.inf, base[:, -1] == 1
        p, tangent = _newton(problem, state)
        moved = state.at - p
        flat = largest(state.row[:, :-1]) == 0  # a plane that keeps the parameter
        moved = _with_parameter(moved, torch.where(flat, goal[:, -1], moved[:, -1]))
        step, reach = _size(p, size), _size(goal - base, size)
        here, tries, finite = rms(moved[:, :-1]), state.tries + 1, step < torch.inf
        near = pick(first, rms(p[:, :-1]) <= _NEAR_FIRST * here, step <= _NEAR * reach)
        astray = ~first & ((_size(moved - goal, size) > _DRIFT * reach) | (moved[:, -1] > 1))
        shrinks = step <= _CONTRACTS * state.last
        done = ~arrived & finite & near & ~astray
        slow = pick(first, tries >= _MOST_FIRST, (tries >= _MOST) | ~shrinks)
        lost = ~arrived & ~done & (~finite | astray | slow)
        ends = done & (goal[:, -1] == 1)

        grown = pick(largest(base[:, :-1]) > 0, torch.maximum(size, here), here)
        size = pick(done, pick(grown > 0, grown, rms(tangent[:, :-1])), size)
        base = pick(done, moved, base)
        unit = _size(tangent, size).unsqueeze(-1) if self.arclength else 1.0
        tangent = pick(done, tangent / unit, state.tangent)
        longer = length * 2.0 ** ((_USUAL - tries).to(length.dtype) / 2).clamp(-1, 1)
        turns, shorter = (done & ~ends) | lost, length / 2
        next_length = pick(done, pick(first, self.first_step, longer), shorter)
        next_length = next_length.clamp(max=self.max_length)
        ahead = self._ahead(base, tangent, next_length, size)
        goal, length, row = pick(turns, ahead, (goal, length, state.row))
        at = pick(turns, goal, pick(finite, moved, state.at))
        residual, here = problem.residual_to_factor(at), pick(arrived | ends, at, base)
        least = torch.finfo(at.dtype).eps ** 0.5
        stuck = (lost & (first | (length < least))) | (arrived & ~shrinks)
        why = pick(finite | ~(first | arrived), int(Status.STALLED), int(Status.SINGULAR))
        error = self.norm(residual)
        left = contracted(self.norm(p), error, self.norm(state.residual))
        return PathState(
            _judged(here),
            pick(arrived | ends, error, 1 - base[:, -1]),
            pick(arrived | ends, left, torch.inf),
            pick(stuck & (state.flag == 0), why, state.flag),
            *(at, residual, base, goal, tangent, row, length, size),
            pick(turns | ends, 0, tries),
            pick(turns, torch.inf, step),
        )

    def _ahead(
        self, base: Tensor, tangent: Tensor, length: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return where to try next, how far that is, and the plane to stay in."""
        t, slope = base[:, -1], tangent[:, -1]
        over = (slope > 0) & (t + _MARGIN * length * slope >= 1)
        length = pick(over, (1 - t) / pick(over, slope, 1.0), length)
        ahead = base + length.unsqueeze(-1) * tangent
        ahead = _with_parameter(ahead, torch.where(over, 1.0, ahead[:, -1]))
        flat = _of_parameter(base)
        if not self.arclength:
            return ahead, length, flat
        squares = (tangent.shape[-1] - 1) * _positive(size) ** 2
        across = torch.cat([tangent[:, :-1] / squares.unsqueeze(-1), tangent[:, -1:]], -1)
        return ahead, length, pick(over, flat, across)


def _newton(problem: EquationProblem, state: PathState) -> tuple[Tensor, Tensor]:
    """Return Newton's step from a point, within its plane, and the tangent there."""
    problem.identity(state.at)
    jacobian = problem.linearize(state.at).dense()
    jacobian = torch.cat([jacobian[:, :-1], state.row.unsqueeze(1)], 1)
    off = ((state.at - state.goal) * state.row).sum(-1)
    columns = _with_parameter(state.residual, off), _of_parameter(state.at)
    factors = LU().factor_dense(jacobian)
    p, tangent = LU().solve(factors, torch.stack(columns, -1), False).unbind(-1)
    return p, tangent


def _with_parameter(point: Tensor, t: Tensor) -> Tensor:
    """Return points with another parameter."""
    return torch.cat([point[:, :-1], t.unsqueeze(-1)], -1)


def _of_parameter(point: Tensor) -> Tensor:
    """Return the direction of the parameter."""
    return _with_parameter(torch.zeros_like(point), torch.ones_like(point[:, 0]))


def _judged(point: Tensor) -> Tensor:
    """Return points at the end of the path, where they are judged."""
    return _with_parameter(point, torch.ones_like(point[:, 0]))


def _positive(size: Tensor) -> Tensor:
    """Return a unit: one, where nothing has a size yet."""
    return torch.where(size > 0, size, 1.0)


def _size(v: Tensor, size: Tensor) -> Tensor:
    """Return lengths, with unknowns in units of ``size``."""
    return torch.hypot(rms(v[:, :-1]) / _positive(size), v[:, -1])
