"""Aitken's delta-squared process as a relaxation of the fixed-point iteration.

It knows no Jacobian.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_number
from implicit_solvers.problem import EquationProblem
from implicit_solvers.ranks import norm
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.contraction import Rates, after_step

__all__ = ["Aitken"]


class AitkenState(NamedTuple):
    """The state of `Aitken`; a lane whose step is ``plain`` has nothing to extrapolate from."""

    z: Tensor
    residual: Tensor
    relaxation: Tensor
    plain: Tensor
    error: Tensor
    rates: Rates
    estimate: Tensor
    rounding: Tensor
    error_bound: Tensor


@dataclass(frozen=True)
class Aitken(EquationMethod):
    """Aitken relaxation of ``z = g(z)``: ``z <- z + w (g(z) - z)``, ``w`` from the last step.

    With ``f = z - g(z)`` and the last step's changes ``s`` and ``y`` of ``z`` and ``f``:
    ``w = <s, y> / <y, y>``. One evaluation a step and no memory but the last step's. With one
    unknown this is the delta-squared process, ``z - (dz)^2 / d(dz)``, of two iterates and their
    images, and converges superlinearly; `Steffensen` does quadratically, at two evaluations.

    A relaxed step that raises the residual's norm to more than ``growth`` times what it was, or
    leads to NaN, is taken back, and the next one is the plain iteration's; so it is where ``w``
    would be above ``damping eps**-0.5``. Source: Aitken, "On Bernoulli's numerical solution of
    algebraic equations" (1926); for vectors: Irons and Tuck, "A version of the Aitken accelerator
    for computer iteration" (1969).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    damping
        The relaxation of plain steps: the share of the way to ``g(z)``.
    growth
        By how much a relaxed step may raise the residual's norm.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> ims.fixed_point(torch.cos, torch.tensor(1.0), solver=Aitken()).value
    tensor(0.7391)
    """

    max_steps: int = field(default=500, kw_only=True)
    damping: float = 1.0
    growth: float = 2.0
    solves: ClassVar[tuple[str, ...]] = ("fixed_point",)
    exportable: ClassVar[bool] = True
    light: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_number(self, "damping", above=0, most=1)
        check_number(self, "growth", above=0)

    def examined(self, n: int) -> bool:
        """Tell that no Jacobian is formed: the contraction says how far the solution is."""
        return False

    def init(self, problem: EquationProblem, z: Tensor) -> AitkenState:
        """Evaluate the residual at the start."""
        residual = problem.residual(z)
        error = problem.norms(self.norm, residual)
        relaxation = torch.full_like(residual[:, :1], self.damping)
        known = after_step(problem, self, z, error, 0.5, Rates.unknown(error))
        return AitkenState(z, residual, relaxation, error == error, error, *known)

    def step(self, problem: EquationProblem, state: AitkenState) -> AitkenState:
        """Move by the relaxation, and choose the next one."""
        step = -state.relaxation * state.residual
        z = state.z + step
        residual = problem.residual(z)
        error = problem.norms(self.norm, residual)
        change = residual - state.residual
        size = problem.norms(norm, change).unsqueeze(-1)
        relaxation = (step * (change / size)).sum(-1, keepdim=True) / size

        end = torch.sub(step, change, alpha=self.damping)
        length = problem.norms(self.norm, step)
        ratio = problem.norms(self.norm, end) / length
        accepted = state.plain | (error <= self.growth * state.error)
        usable = accepted & torch.isfinite(relaxation).squeeze(-1)
        farthest = abs(self.damping) / torch.finfo(z.dtype).eps ** 0.5
        usable = usable & (relaxation != 0).squeeze(-1) & (relaxation.abs() <= farthest).squeeze(-1)
        ratio = torch.where(accepted, ratio, state.rates.mean)
        error = torch.where(accepted, error, state.error)
        longest = torch.maximum(self.damping * error, length)
        take = accepted.unsqueeze(-1)
        return AitkenState(
            torch.where(take, z, state.z),
            torch.where(take, residual, state.residual),
            torch.where(usable.unsqueeze(-1), relaxation, self.damping),
            ~usable,
            error,
            *after_step(problem, self, z, longest, ratio, state.rates),
        )
