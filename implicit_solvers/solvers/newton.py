"""Newton's method with a backtracking line search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, either, no, nowhere, pick, spread
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.choice import default_linear_solver
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors, LinearSolver, check_linear_solver
from implicit_solvers.solvers.damped import Aim, DampedState, Halving
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.tolerance import Auto

__all__ = ["Factored", "Newton", "factor_jacobian"]

_FIRST_FORCING = 0.5
_LARGEST_FORCING = 0.9


class NewtonMemory(NamedTuple):
    """What `Newton` remembers.

    ``inverse`` are the factors of the last Jacobian factored; ``fresh`` tells where they are of
    the iterate that the direction is from. ``forcing`` is the relative residual to which an
    iterative solver solved for the last step, and ``before`` the error there.
    """

    inverse: Factors
    fresh: Mask
    forcing: Any
    before: Any

    @property
    def factors(self) -> Factors:
        """What the backward pass may use."""
        return self.inverse


class Factored(Halving):
    """Damped steps by the factors of a Jacobian, which are ``inverse`` in the solver's memory."""

    def factorization(self, n: int) -> DirectSolver | None:
        """Return what the factors in the state are of, if the backward pass may use them."""
        direct = self.direct_solver(n)
        return direct if direct is not None and direct.keepable else None

    def direct_solver(self, n: int) -> DirectSolver | None:
        """Return what factors Jacobians for ``n`` unknowns; None where products are used."""
        raise NotImplementedError

    def hopeless(self, state: DampedState) -> Mask:
        """Tell where the Jacobian has a pivot that is zero."""
        factors, direct = state.memory.inverse, self.direct_solver(state.z.shape[-1])
        if not factors or direct is None:
            return False
        unfit = direct.unfit(factors)
        return bool(unfit) if isinstance(state.error, float) else unfit

    def doubt(self, problem: EquationProblem, state: DampedState) -> Any:
        """Return the status of lanes that seem solved: a pivot of the last step may be zero."""
        factors, direct = state.memory.inverse, self.direct_solver(state.z.shape[-1])
        if not factors or direct is None or not problem.branches:
            return 0
        regular = direct.regular(factors)
        if isinstance(state.error, float):
            return 0 if regular else int(Status.SINGULAR)
        return ~regular * int(Status.SINGULAR)

    def stopped(self, problem: EquationProblem, state: DampedState, stuck: Mask) -> Any:
        """Return the flags where lanes are stuck: STALLED, unless the factors are to blame."""
        if self.rtol is None or nowhere(stuck):
            return state.flag
        factors, direct = state.memory.inverse, self.direct_solver(state.z.shape[-1])
        why: Any = int(Status.STALLED)
        if factors and direct is not None and problem.branches:
            status = direct.status(factors)
            why = torch.where(status != 0, status, why)
        return pick(stuck, why, state.flag)

    def step_by(
        self, problem: EquationProblem, state: DampedState, factors: Factors, flag: Any
    ) -> tuple[Tensor, Any]:
        """Return the direction, and the flags: looked at where nothing asks for them later."""
        direct: Any = self.direct_solver(state.z.shape[-1])
        direction = direct.solve(factors, state.residual.unsqueeze(-1), False).squeeze(-1)
        if problem.branches and self.halvings > 0:
            return direction, flag
        status = direct.status(factors)
        return pick(status == 0, direction, 0.0), pick(flag == 0, status, flag)


@dataclass(frozen=True)
class Newton(Factored):
    """Newton's method: ``z <- z + t p`` with ``F'(z) p = -F(z)``.

    The step length ``t`` is halved until the residual's norm falls by ``1e-4 t`` of itself. A
    lane in which no ``t`` does so ends as STALLED, one with a singular Jacobian as SINGULAR. The
    last factorization is kept for the backward pass. Source: Dennis and Schnabel, "Numerical
    Methods for Unconstrained Optimization and Nonlinear Equations", chapter 6.

    With an iterative linear solver it is Newton-Krylov. Unless that solver has an ``rtol`` of its
    own, a step is solved for to the relative residual ``0.9 (|F_k| / |F_k-1|)^2``, loosely far
    from the solution, and near it as tightly as quadratic convergence needs and the tolerance
    asks. Source: Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method",
    SIAM J. Sci. Comput. 17 (1996), choice 2 with its safeguard; the last step: Kelley, "Solving
    Nonlinear Equations with Newton's Method" (2003), section 3.2.

    Parameters
    ----------
    rtol, atol, max_steps, max_trials, norm, compact, check_every, compile
        As in `EquationMethod`.
    linear_solver
        How to solve for the step. A direct solver forms the Jacobian; an iterative one
        (``GMRES()``) needs its products only. Left out, ``LU()`` up to 512 unknowns, ``GMRES()``
        beyond.
    halvings
        How many times the step length may be halved; 0 takes full steps always.
    reuse
        A factorization serves again while each step reduces the residual's norm to at most
        ``reuse`` times what it was, in [0, 1); 0 never, so that every step factors. Each lane
        decides for itself. A step by old factors that reduces nothing is taken back, and counts.
        Only direct solvers can. See `Chord` for factors that serve always.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> sol = ims.root(lambda z: z**3 - 8, torch.tensor(1.0), solver=Newton())
    >>> sol.value
    tensor(2.)
    """

    max_steps: int = field(default=100, kw_only=True)
    linear_solver: LinearSolver | None = None
    reuse: float = 0.0
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "minimize", "least_squares")

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_linear_solver(self)
        if not 0 <= self.reuse < 1:
            raise ValueError(
                f"Newton has reuse={self.reuse!r}: pass a number in [0, 1), or use Chord()"
            )

    def _linear_solver(self, n: int) -> LinearSolver:
        return self.linear_solver or default_linear_solver(n)

    def direct_solver(self, n: int) -> DirectSolver | None:
        """Return what factors Jacobians for ``n`` unknowns; None where products are used."""
        solver = self._linear_solver(n)
        return solver if isinstance(solver, DirectSolver) else None

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> NewtonMemory:
        """Factor, in a graph, if the factors may serve again."""
        n = z.shape[-1]
        direct = self.direct_solver(n)
        if self.reuse > 0 and not (direct is not None and direct.keepable):
            raise ValueError(
                f"Newton(reuse={self.reuse}) needs a direct linear solver with factors to keep, "
                f"and {type(self._linear_solver(n)).__name__}() solves for {n} unknowns: pass "
                "linear_solver=LU(), or leave reuse out"
            )
        inverse: Factors = ()
        if problem.branches:
            return NewtonMemory(inverse, True, _FIRST_FORCING, None)
        if self.reuse > 0 and direct is not None:
            inverse = factor_jacobian(direct, problem, z)
        error = torch.full_like(residual[..., 0], torch.inf)
        fresh = torch.ones_like(error, dtype=torch.bool)
        return NewtonMemory(inverse, fresh, torch.full_like(error, _FIRST_FORCING), error)

    def residual(self, problem: EquationProblem, z: Tensor) -> Tensor:
        """Return the residual; where a Jacobian is to be formed, the same evaluation serves."""
        if self.direct_solver(z.shape[-1]) is None:
            return problem.residual(z)
        return problem.residual_to_factor(z)

    def tries(self, state: DampedState) -> Any:
        """Return how often a step is halved: by old factors never."""
        return pick(state.memory.fresh, self.halvings, 0)

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Solve for a direction."""
        memory, direct = state.memory, self.direct_solver(state.z.shape[-1])
        flag = self.stopped(problem, state, both(tired, memory.fresh))
        if direct is None:
            return self._inexact(problem, state, flag)

        def factor(problem: EquationProblem, z: Tensor) -> Factors:
            return factor_jacobian(direct, problem, z)

        if self.reuse == 0 or not memory.inverse:
            factors, fresh = factor(problem, state.z), memory.fresh
        else:
            # old factors are tried no further: fresh ones decide whether a lane is stuck
            pays = both(state.accepted, state.error <= self.reuse * memory.before)
            needed = both(no(pays), either(state.accepted, tired))
            turns = either(state.accepted, tired)
            first = memory.before == torch.inf
            fresh = pick(turns, either(no(pays), first), memory.fresh)
            # what has ended needs no factors
            factors = renew(problem, both(needed, flag == 0), memory.inverse, factor, state.z)
        direction, flag = self.step_by(problem, state, factors, flag)
        kept = factors if problem.branches or self.reuse > 0 else ()
        return Aim(direction, memory._replace(inverse=kept, fresh=fresh, before=state.error), flag)

    def _inexact(self, problem: EquationProblem, state: DampedState, flag: Any) -> Aim:
        solver: Any = self._linear_solver(state.z.shape[-1])
        linear: Any = LinearProblem(problem.linearize(state.z), state.residual)
        forcing = self._forcing(problem, state)
        if isinstance(solver.rtol, Auto):
            linear = ForcedProblem(linear, spread(forcing, state.z))
        out = iterate(solver, linear, 0 * state.residual)
        # an inexact direction is a direction: the search along it judges
        memory = state.memory._replace(forcing=forcing, before=state.error)
        return Aim(out.z, memory, flag)

    def _forcing(self, problem: EquationProblem, state: DampedState) -> Tensor:
        memory, error = state.memory, spread(state.error, state.z)
        if memory.before is None:
            return torch.full_like(error, _FIRST_FORCING)
        forcing = 0.9 * (error / memory.before).nan_to_num(0.0) ** 2
        before = 0.9 * memory.forcing**2
        forcing = torch.where(before > 0.1, torch.maximum(forcing, before), forcing)
        if self.rtol is not None:
            # no more than ends the solve, with two digits to spare
            goal = problem.tolerance(self, state.z)
            forcing = torch.maximum(forcing, 0.01 * goal / error)
        forcing = pick(memory.before == torch.inf, torch.full_like(error, _FIRST_FORCING), forcing)
        tightest = torch.finfo(error.dtype).eps ** (2 / 3)
        return forcing.nan_to_num(_LARGEST_FORCING).clamp(tightest, _LARGEST_FORCING)


def factor_jacobian(solver: DirectSolver, problem: EquationProblem, z: Tensor) -> Factors:
    """Return the factors of the Jacobian of the condition at ``z (N, n)``."""
    problem.identity(z)
    return solver.factor_for_a_step(problem.linearize(z))
