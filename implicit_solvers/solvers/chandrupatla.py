"""Chandrupatla's method for equations of one unknown. It knows values, no slope."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_count
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.bracket import Bracket, End, choose, find_bracket, value_at

__all__ = ["Chandrupatla"]


class ChandrupatlaState(NamedTuple):
    """The state of `Chandrupatla`: the bracket, newest end first, and the end that left it."""

    z: Tensor
    error: Tensor
    estimate: Tensor
    error_bound: Tensor
    flag: Tensor
    bracket: Bracket
    old: End


@dataclass(frozen=True)
class Chandrupatla(EquationMethod):
    """Chandrupatla's method: inverse quadratic interpolation where it is safe, else bisection.

    For one unknown in each problem (``vmap`` or ``batch_dims`` solve many); as reliable as
    `Bisection`, with the speed of Brent's method. The bracket is given, ``root(..., bracket=(lo,
    hi))``, or searched outwards from ``z0``; a problem without one ends as BRACKET. If nothing is
    left between its ends, the problem is STALLED, at a jump, or BRACKET, at a pole. Source:
    Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear
    function without using derivatives", Adv. Eng. Software 28 (1997).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    expansions
        How often the search for a bracket may go twice as far; only if none is given.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it. A ValueError also when a solve begins
        with a problem of more than one unknown.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> lo, hi = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 9.0])
    >>> sol = ims.root(
    ...     lambda z, a: z**2 - a, None, (torch.tensor([2.0, 9.0]),), bracket=(lo, hi), batch_dims=1
    ... )
    >>> sol.value
    tensor([1.4142, 3.0000])
    """

    max_steps: int = field(default=200, kw_only=True)
    expansions: int = 100
    brackets: ClassVar[bool] = True
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point")
    exportable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "expansions")

    def examined(self, n: int) -> bool:
        """Tell that no slope is asked for: a root is between the ends of the bracket."""
        return False

    def init(self, problem: EquationProblem, z: Tensor) -> ChandrupatlaState:
        """Find the bracket; without a third point, the first step is a bisection."""
        bracket = find_bracket(problem, z, self.expansions)
        return self._state(bracket, bracket.b)

    def step(self, problem: EquationProblem, state: ChandrupatlaState) -> ChandrupatlaState:
        """Put a point where the interpolation says, or in the middle."""
        a, b, *_ = state.bracket
        least = 0.5 * problem.tolerance(self, state.z) if self.rtol is not None else 0.0
        t = _fraction(a, b, state.old, least).unsqueeze(-1)
        z = (1 - t) * a.z + t * b.z
        new = End(z, value_at(problem, z))
        same = new.value.sign() == a.value.sign()
        bracket = state.bracket.between(new, choose(same, b, a))
        old = choose(same, a, b)
        flag = torch.where(new.value.isnan(), int(Status.NONFINITE), bracket.ended)
        return self._state(bracket._replace(flag=flag), old)

    def _state(self, bracket: Bracket, old: End) -> ChandrupatlaState:
        z, value = bracket.nearest
        error = self.norm(value.unsqueeze(-1))
        judged = bracket.estimate, bracket.error_bound, bracket.flag
        return ChandrupatlaState(z, error, *judged, bracket, old)


def _fraction(a: End, b: End, c: End, least: Any) -> Tensor:
    """Return where to go from ``a`` to ``b``: 0.5, or by the inverse parabola through all."""
    (xa, fa), (xb, fb), (xc, fc) = ((end.z.squeeze(-1), end.value) for end in (a, b, c))
    xi, phi = (xa - xb) / (xc - xb), (fa - fb) / (fc - fb)
    safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    t = fa / (fb - fa) * fc / (fb - fc)
    t = t + (xc - xa) / (xb - xa) * fa / (fc - fa) * fb / (fc - fb)
    # at least half of the tolerance away from both ends, and one unit in the last place
    ulp = torch.finfo(xa.dtype).eps * torch.maximum(xa.abs(), xb.abs())
    least = (ulp + least) / (xb - xa).abs()
    t = torch.minimum(torch.maximum(t, least), 1 - least)
    return torch.where(safe & torch.isfinite(t) & (least < 0.5), t, 0.5)
