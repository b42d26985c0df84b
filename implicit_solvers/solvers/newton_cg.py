"""Newton's method for minima, with conjugate gradients for the step.

It knows the Hessian of one step, and none of before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, divide, either, larger, no, nowhere, pick
from implicit_solvers.curvature import AmongFree, Convex, CurvedCG, among
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import DENSE_LIMIT
from implicit_solvers.solvers.damped import Aim, DampedState
from implicit_solvers.solvers.descent import FARTHEST, Descent, dot, first_length, times
from implicit_solvers.solvers.line_search import Backtracking, LineSearch, StrongWolfe

__all__ = ["NewtonCG", "ProjectedNewton"]

_LOOSEST, _ORDER = 0.5, 1.5


class NewtonCGMemory(NamedTuple):
    """Where the curvature along the direction is not positive, and how far it was solved for."""

    bent: Mask
    forcing: Any


@dataclass(frozen=True)
class NewtonSteps(Descent):
    """Newton's steps by products with the Hessian; between bounds, that of the free unknowns."""

    max_steps: int = field(default=200, kw_only=True)
    max_products: int = 200

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "max_products", least=1)

    def objective(self, problem: EquationProblem, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return objective and gradient; the same evaluation serves products with the Hessian."""
        return problem.value_and_gradient_to_linearize(z)

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> NewtonCGMemory:
        """Remember nothing yet."""
        if problem.branches:
            return NewtonCGMemory(False, _LOOSEST)
        loosest = torch.full_like(z[:, 0], _LOOSEST)
        return NewtonCGMemory(loosest < 0, loosest)

    def lenient(self, state: DampedState, length: Any) -> Mask:
        """Tell where the curvature is negative and does not tell how far to go.

        Down from a hill the slope grows; where it grows too little, the search must end.
        """
        return both(state.memory.bent, length == 1)

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Let the search judge; the step and what it left, or was to leave, estimate the error."""
        state = super().pays(problem, state)
        if self.rtol is None:
            return state
        if problem.bounds is None:
            step = state.length * problem.size(self.norm, state.direction)
        else:
            step = problem.size(self.norm, state.z - state.kept.z)
        rate = larger(divide(state.error, state.kept.error), state.memory.forcing)
        estimate = pick(rate < 1, divide(step * rate, 1 - rate), math.inf)
        if problem.bounds is not None:
            # what so short a whole step leaves is rounding, which may grow
            least = torch.finfo(state.z.dtype).eps ** 0.5 * problem.scale(self, state.z)
            little = both(step <= least, both(state.length == 1, state.accepted))
            estimate = pick(both(little, no(rate < 1)), 0.0, estimate)
        return state._replace(estimate=pick(state.error == 0, 0.0, estimate))

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Find a direction of descent, the length to try first, and where curvature is negative."""
        flag, gradient = self.stopped(state, tired), state.residual
        goes = both(either(state.accepted, tired), flag == 0)
        b = pick(goes, gradient, 0 * gradient)
        rate = divide(state.error, state.kept.error)
        forcing = pick(rate < _LOOSEST, rate, _LOOSEST) ** _ORDER
        direction, bent, forcing = self.newton(problem, state, b, forcing)
        length: Any = 1.0
        if not nowhere(bent):
            # next to no curvature says little about the length
            scale = problem.scale(self, state.z)
            most = pick(scale > 0, FARTHEST * scale, 1.0)
            shorter = divide(most, problem.size(self.norm, problem.step(state.z, direction)))
            length = pick(both(bent, shorter < 1), shorter, 1.0)
        return Aim(direction, NewtonCGMemory(bent, forcing), flag, length)

    def newton(
        self, problem: EquationProblem, state: DampedState, gradient: Tensor, forcing: Any
    ) -> tuple[Tensor, Mask, Any]:
        """Return Newton's step, where the curvature along it is not positive, and what it leaves.

        That is a part of the ``gradient``, which is zero in lanes that make no step.
        """
        A: Any = problem.linearize_slope(state.z)
        plain, b = gradient, gradient
        if problem.bounds is not None:
            down = problem.projected(state.z, gradient)
            plain = times(first_length(problem, self, state.z, down, A), gradient)
            free = problem.apart(state.z, plain, 1.0)
            A, b = AmongFree(A, free), torch.where(free, gradient, 0.0)
        forced = ForcedProblem(LinearProblem(A, b), forcing)
        inner = CurvedCG(max_steps=self.max_products, compact=self.compact)
        out = iterate(inner, forced, 0 * b)
        slope = dot(problem, out.z, b)
        descent = both(slope > 0, slope < math.inf)
        bent = either(problem.number(out.status == int(Status.INDEFINITE)), no(descent))
        step = pick(descent, out.z, plain)
        return step if plain is gradient else torch.where(free, step, plain), bent, forcing


@dataclass(frozen=True)
class NewtonCG(NewtonSteps):
    """Hessian-free Newton: ``H p = -grad`` by conjugate gradients, then a line search.

    The inner solve stops at a relative residual of ``min(0.5, |grad_k| / |grad_k-1|)^1.5``, or at a
    direction ``d`` of nonpositive curvature: that is followed from the last iterate, by the length
    that the absolute value of its curvature gives, so that a saddle point is left at least twice as
    far behind with each step. The length of the step is 1 where that meets the strong Wolfe
    conditions; if no length does, because the objective is unbounded below along the line, the
    problem ends as STALLED. The step, times what it left of the gradient or was to leave, estimates
    the error and proposes the end, where the Hessian decides. Source: Nocedal and Wright,
    "Numerical Optimization", algorithm 7.1; the residual: Eisenstat and Walker, "Choosing the
    forcing terms in an inexact Newton method", SIAM J. Sci. Comput. 17 (1996), choice 2; the
    absolute curvature: Nash, "Newton-type minimization via the Lanczos method", SIAM J. Numer.
    Anal. 21 (1984).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    max_products
        The number of products with the Hessian allowed in a step.
    line_search
        How the length of a step is found; ``StrongWolfe()`` by default.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> sol = ims.minimize(lambda z: (z - 3) ** 4 + z**2, torch.tensor(0.0), solver=NewtonCG())
    >>> sol.value
    tensor(2.)
    """

    # (Dynamo cannot make an instance whose default is an object)
    line_search: LineSearch = field(default_factory=lambda: StrongWolfe())
    solves: ClassVar[tuple[str, ...]] = ("minimize",)


@dataclass(frozen=True)
class ProjectedNewton(NewtonSteps):
    """Newton's method between bounds: ``z <- P(z - t p)``, with the projection ``P``.

    An unknown whose bound is no farther than its own Newton step, down its slope by its own
    curvature, makes that step; ``p`` solves Newton's equation for the others. Up to 512 unknowns
    the Hessian is formed and factored, made positive definite by the absolute values of its
    eigenvalues where it is not; beyond, conjugate gradients solve as in `NewtonCG`. The length
    ``t`` is halved until the objective falls by ``1e-4`` of what the slope promises along the chord
    to the trial; a problem in which no length does so ends as STALLED. The step, times what it left
    of the slope, estimates the error and proposes the end, where the Hessian decides. Source:
    Bertsekas, "Projected Newton Methods for Optimization Problems with Simple Constraints", SIAM J.
    Control Optim. 20 (1982).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    max_products
        The number of products with the Hessian allowed in a step of conjugate gradients.
    line_search
        How steps are shortened; ``Backtracking()`` by default.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> solver = ProjectedNewton()
    >>> fn = lambda z: (z - 3) ** 4 + z**2
    >>> ims.minimize(fn, torch.tensor(0.0), bounds=(None, 1.5), solver=solver).value
    tensor(1.5000)
    """

    line_search: Backtracking = field(default_factory=lambda: Backtracking())
    solves: ClassVar[tuple[str, ...]] = ("minimize with bounds",)

    def newton(
        self, problem: EquationProblem, state: DampedState, gradient: Tensor, forcing: Any
    ) -> tuple[Tensor, Mask, Any]:
        """Return Newton's step among the unknowns that are apart from bounds."""
        z = state.z
        if z.shape[-1] > DENSE_LIMIT:
            return super().newton(problem, state, gradient, forcing)
        H = problem.linearize_slope(z).dense()
        scale = torch.as_tensor(problem.scale(self, z), dtype=z.dtype, device=z.device)
        most = torch.where(scale > 0, FARTHEST * scale, 1.0).unsqueeze(-1)
        # no curvature says nothing about the length
        plain = (gradient / H.diagonal(dim1=-2, dim2=-1).abs()).nan_to_num(0.0).clamp(-most, most)
        free = problem.apart(z, plain, 1.0)
        H, direct = among(free, H), Convex()
        b = torch.where(free, gradient, 0.0)
        step = direct.solve(direct.factor_dense(H), b.unsqueeze(-1), False).squeeze(-1)
        bend = dot(problem, step, torch.bmm(H, step.unsqueeze(-1)).squeeze(-1))
        bent = no(bend > 0.5 * dot(problem, step, b))
        step = torch.where(free & (H != 0).flatten(1).any(-1, keepdim=True), step, plain)
        return step, bent, 0.0 * forcing
