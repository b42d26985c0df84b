"""Bisection for equations of one unknown. It knows signs, no slope."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_count
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.bracket import (
    Bracket,
    End,
    choose,
    find_bracket,
    midpoint,
    opposite,
    value_at,
)

__all__ = ["Bisection"]


class BisectionState(NamedTuple):
    """The state of `Bisection`."""

    z: Tensor
    error: Tensor
    estimate: Tensor
    error_bound: Tensor
    flag: Tensor
    bracket: Bracket


@dataclass(frozen=True)
class Bisection(EquationMethod):
    """Bisection: keep the half of the bracket in which the function changes its sign.

    For one unknown in each problem (``vmap`` or ``batch_dims`` solve many). The bracket is given,
    ``root(..., bracket=(lo, hi))``, or searched outwards from ``z0``; a problem without one ends as
    BRACKET. Each step gains one bit, for every function. If nothing is left between its ends, the
    problem is STALLED, at a jump, or BRACKET, at a pole. Source: Burden and Faires, "Numerical
    Analysis", section 2.1.

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
    >>> lo, hi = torch.tensor(0.0), torch.tensor(2.0)
    >>> ims.root(lambda z: z**2 - 2, None, bracket=(lo, hi), solver=Bisection()).value
    tensor(1.4142)
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

    def init(self, problem: EquationProblem, z: Tensor) -> BisectionState:
        """Find the bracket."""
        return self._state(find_bracket(problem, z, self.expansions))

    def step(self, problem: EquationProblem, state: BisectionState) -> BisectionState:
        """Halve the bracket."""
        a, b, *_ = state.bracket
        z = midpoint(a.z, b.z)
        middle = End(z, value_at(problem, z))
        left = opposite(a.value, middle.value)
        bracket = state.bracket.between(choose(left, a, middle), choose(left, middle, b))
        flag = torch.where(middle.value.isnan(), int(Status.NONFINITE), bracket.ended)
        return self._state(bracket._replace(flag=flag))

    def _state(self, bracket: Bracket) -> BisectionState:
        z, value = bracket.nearest
        error = self.norm(value.unsqueeze(-1))
        judged = bracket.estimate, bracket.error_bound, bracket.flag
        return BisectionState(z, error, *judged, bracket)
