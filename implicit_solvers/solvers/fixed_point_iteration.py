"""Fixed-point (Picard) iteration. It knows no Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import divide
from implicit_solvers.hyperparameters import check_number
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.contraction import Rates, after_step

__all__ = ["FixedPointIteration"]


class FixedPointState(NamedTuple):
    """The state of `FixedPointIteration`."""

    z: Tensor
    residual: Tensor
    error: Any
    rates: Rates
    estimate: Any
    rounding: Any
    error_bound: Any


@dataclass(frozen=True)
class FixedPointIteration(EquationMethod):
    """Picard iteration: ``z <- z + damping (g(z) - z)``.

    It converges if ``(1 - damping) I + damping g'`` is a contraction near the fixed point. Source:
    Ortega and Rheinboldt, "Iterative Solution of Nonlinear Equations in Several Variables" (1970),
    chapter 12.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    damping
        The share of the way to ``g(z)``; 1 is the plain iteration.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> ims.fixed_point(torch.cos, torch.tensor(1.0), solver=FixedPointIteration()).value
    tensor(0.7391)
    """

    damping: float = 1.0
    unrollable: ClassVar[bool] = True
    light: ClassVar[bool] = True
    solves: ClassVar[tuple[str, ...]] = ("fixed_point",)
    exportable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_number(self, "damping", above=0, most=1)

    def examined(self, n: int) -> bool:
        """Tell that no Jacobian is formed: the contraction says how far the solution is."""
        return False

    def init(self, problem: EquationProblem, z: Tensor) -> FixedPointState:
        """Evaluate the residual at the start."""
        residual = problem.residual(z)
        error = problem.size(self.norm, residual)
        known = after_step(problem, self, z, error, 0.5, Rates.unknown(error))
        return FixedPointState(z, residual, error, *known)

    def step(self, problem: EquationProblem, state: FixedPointState) -> FixedPointState:
        """Move towards ``g(z)``."""
        return self.steps(problem, state, 1)

    def steps(
        self, problem: EquationProblem, state: FixedPointState, count: int
    ) -> FixedPointState:
        """Make ``count`` steps, of which the last is measured."""
        z = torch.sub(state.z, state.residual, alpha=self.damping)
        for _ in range(count - 1):
            z = torch.lerp(z, problem.evaluate(z), self.damping)
        residual = problem.residual(z)
        error = problem.size(self.norm, residual)
        step = error if self.damping == 1 else self.damping * error
        known = after_step(problem, self, z, step, divide(error, state.error), state.rates, count)
        return FixedPointState(z, residual, error, *known)
