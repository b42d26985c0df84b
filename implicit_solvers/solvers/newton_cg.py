"""Newton's method for minima, with conjugate gradients for the step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, divide, pick
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.line_search import Point, StrongWolfe, objective, search

__all__ = ["NewtonCG"]


class NewtonCGState(NamedTuple):
    """The state of `NewtonCG`."""

    z: Tensor
    value: Tensor
    gradient: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class NewtonCG(EquationMethod):
    """Hessian-free Newton: ``H p = -grad`` by conjugate gradients, then a line search.

    The inner solve stops at a relative residual of ``min(0.5, sqrt(|grad|))``, or at a direction
    ``d`` of nonpositive curvature: that is followed from the last iterate, by the length that the
    absolute value of its curvature gives, so that a saddle point is left at least twice as far
    behind with each step. (A start at which the gradient vanishes counts as solved, be it a saddle
    point or a maximum.) The length of the step is 1 where that meets the strong Wolfe conditions;
    a lane in which no length does, at the rounding of the objective or where it is unbounded
    below along the line, ends as STALLED. Source: Nocedal and Wright, "Numerical Optimization",
    algorithm 7.1; the absolute curvature: Nash, "Newton-type minimization via the Lanczos method",
    SIAM J. Numer. Anal. 21 (1984).

    Parameters
    ----------
    rtol, atol, max_steps, max_trials, norm, compact, check_every, compile
        As in `EquationMethod`.
    max_products
        The number of products with the Hessian allowed in a step.
    halvings
        How many times the length of a step may be changed.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> sol = ims.minimize(lambda z: (z - 3) ** 4 + z**2, torch.tensor(0.0), solver=NewtonCG())
    >>> sol.value
    tensor(2.)
    """

    max_steps: int = field(default=200, kw_only=True)
    max_products: int = 200
    halvings: int = 30
    solves: ClassVar[tuple[str, ...]] = ("minimize",)

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "max_products", least=1)
        check_count(self, "halvings")

    def init(self, problem: EquationProblem, z: Tensor) -> NewtonCGState:
        """Evaluate objective and gradient at the start."""
        start = objective(problem, z)
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return NewtonCGState(*start, start.error(self.norm), flag)

    def step(self, problem: EquationProblem, state: NewtonCGState) -> NewtonCGState:
        """Find a descent direction and search along it."""
        direction, length, bent = self._direction(problem, state)
        start, wolfe = Point(*state[:3]), StrongWolfe(max_steps=self.halvings + 1)
        # down from a hill the slope grows; where it grows too little to tell how far, it must end
        found = search(
            wolfe,
            problem,
            start,
            direction,
            length,
            compact=self.compact,
            lenient=bent & (length == 1),
        )
        return NewtonCGState(*found.point, found.point.error(self.norm), found.flag(self.rtol))

    def _direction(
        self, problem: EquationProblem, state: NewtonCGState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return a descent direction, the length to try first, and where curvature is negative."""
        hessian = problem.linearize(state.z)
        size = torch.linalg.vector_norm(state.gradient, dim=-1)
        forced = ForcedProblem(LinearProblem(hessian, -state.gradient), size.sqrt().clamp(max=0.5))
        inner = _CurvedCG(max_steps=self.max_products, compact=self.compact)
        out = iterate(inner, forced, 0 * state.gradient)
        descent = ((out.z * state.gradient).sum(-1) < 0) & torch.isfinite(out.z).all(-1)
        direction = torch.where(descent.unsqueeze(-1), out.z, -state.gradient)
        # next to no curvature says little about the length: not beyond the size of the iterate
        reach = torch.linalg.vector_norm(state.z, dim=-1).clamp(min=1)
        shorter = (reach / torch.linalg.vector_norm(direction, dim=-1)).clamp(max=1)
        bent = (out.status == int(Status.INDEFINITE)) | ~descent
        return direction, torch.where(bent, shorter, 1.0), bent


@dataclass(frozen=True)
class _CurvedCG(CG):
    """Conjugate gradients whose last step may be along a direction of nonpositive curvature."""

    monotone: ClassVar[bool] = True

    def reach(self, alpha: Any, bad: Mask, rho: Any, curvature: Any) -> Any:
        """Go by the absolute value of the curvature; the whole direction where that is zero."""
        return pick(bad, pick(curvature < 0, divide(rho, abs(curvature)), 1.0), alpha)
