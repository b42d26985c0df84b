"""Newton's method with a backtracking line search.

It knows no loop of its own: a step is one trial.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import (
    Mask,
    along,
    both,
    divide,
    either,
    everywhere,
    larger,
    no,
    nowhere,
    pick,
    spread,
)
from implicit_solvers.curvature import Convex, SparseConvex
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.choice import default_linear_solver
from implicit_solvers.linear.preconditioners import Preconditioner
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import (
    DENSE_LIMIT,
    DirectSolver,
    Factors,
    LinearSolver,
    check_linear_solver,
)
from implicit_solvers.solvers.damped import Aim, DampedState, Halving, Point, always
from implicit_solvers.solvers.descent import dot
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.tolerance import Auto

__all__ = [
    "Factored",
    "Newton",
    "Trial",
    "begun",
    "factor_jacobian",
    "first_length",
    "measured",
    "shortened",
    "solved",
]

_LINEAR = 0.32
_FIRST_FORCING = 0.5
_LARGEST_FORCING = 0.9
_FALL, _DROWNS = 1e-4, 1e3


class NewtonMemory(NamedTuple):
    """What `Newton` remembers.

    ``inverse`` are the factors of the last Jacobian factored; ``fresh`` tells where they are of
    the iterate that the direction is from. ``forcing`` is the relative residual to which an
    iterative solver solved for the last step, and ``before`` the error there.
    """

    inverse: Factors
    fresh: Mask = True
    forcing: Any = _FIRST_FORCING
    before: Any = None


class Trial(NamedTuple):
    """The ``size`` of a step ``p`` and of what a trial leaves, ``left = J^-1 F(z + t p)``."""

    size: Any
    left: Tensor
    rest: Any


class Factored(Halving):
    """Damped steps ``p = -J^-1 F`` by the factors of a Jacobian, ``inverse`` in the memory.

    A trial is measured by the step that the same factors would make from it, so that neither the
    units of ``F`` nor of its rows enter: it is accepted if ``|J^-1 F(z + t p)| <= (1 - t / 4)
    |p|``. Else ``t`` becomes ``t^2 |p| / 2 |J^-1 F(z + t p) + (1 - t) p|``, between a tenth and a
    half of what it was. After a whole step with ``q = |J^-1 F(z + p)| / |p|`` the error of ``z``
    is estimated by ``q |p| / (1 - 3 q)``, which is exact at a double root, and ``q`` counts up to
    0.32. Source: Deuflhard,
    "Newton Methods for Nonlinear Problems" (2004), section 3.3.

    An objective must fall, by ``1e-4 t`` of what its slope promises; where differences of its
    values drown in their rounding, the steps are measured. Its Hessian is made positive definite
    (`Convex`, `SparseConvex`), so that steps lead down, and away from saddles.
    """

    def factoring(self, problem: EquationProblem, n: int) -> Any:
        """Return what factors Jacobians for steps: `Convex` or `SparseConvex`, of an objective."""
        direct = self.direct_solver(n)
        if direct is None or problem.kind != "minimize":
            return direct
        if n <= DENSE_LIMIT:
            return Convex()
        return direct if problem.equation.sparsity is None else SparseConvex()

    def direct_solver(self, n: int) -> DirectSolver | None:
        """Return what factors Jacobians for ``n`` unknowns; None where products are used."""
        raise NotImplementedError

    def examined(self, n: int) -> bool:
        """Tell whether the Jacobian is factored where a solve ends: where it is for the steps."""
        return self.direct_solver(n) is not None

    def factorization(self, n: int) -> DirectSolver | None:
        """Return what factors the Jacobian where a solve ends."""
        return self.direct_solver(n)

    def evaluate(self, problem: EquationProblem, z: Tensor) -> Point:
        """Evaluate the residual; `pays` tells how large it is."""
        if self.direct_solver(z.shape[-1]) is None:
            return super().evaluate(problem, z)
        if problem.kind == "minimize":
            value, residual = problem.value_and_gradient_to_linearize(z)
            return Point(z, residual, None, problem.number(value))
        return Point(z, problem.residual_to_factor(z), None)

    def init(self, problem: EquationProblem, z: Tensor) -> DampedState:
        """Evaluate the residual at the start."""
        state = super().init(problem, z)
        return state if self.direct_solver(z.shape[-1]) is None else begun(self, problem, state)

    def start(self, problem: EquationProblem, state: DampedState, length: Any) -> tuple[Any, Any]:
        """Try the whole step, or what the last steps promise after one that was shortened."""
        before: Trial | None = state.search
        if self.direct_solver(state.z.shape[-1]) is None:
            return length, before
        return first_length(self, problem, state, before, length)

    def again(self, state: DampedState) -> tuple[Any, Any, Mask]:
        """Shorten the step."""
        search = state.search
        if search is None:
            return super().again(state)
        shorter = shortened(self, state, search)
        spent = either(shorter < 0.5 ** self.tries(state), no(search.size < torch.inf))
        return shorter, search, spent

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Tell where the step that would follow is short enough."""
        direct = self.factoring(problem, state.z.shape[-1])
        if direct is None:
            return super().pays(problem, state)
        state, trial = measured(self, problem, state, direct, state.memory.inverse)
        accepted = state.accepted
        if self.halvings == 0:
            accepted = always(problem, trial.rest)
        elif problem.kind == "minimize":
            accepted = _falls(problem, state, accepted)
        return state._replace(accepted=accepted, search=trial)

    def stopped(self, state: DampedState, stuck: Mask) -> Any:
        """Return the flags, with STALLED where lanes are stuck; a budget judges nothing."""
        if self.rtol is None or nowhere(stuck):
            return state.flag
        why: Any = int(Status.STALLED)
        if state.search is not None:
            why = pick(state.search.size < torch.inf, why, int(Status.SINGULAR))
        return pick(stuck, why, state.flag)


def _falls(problem: EquationProblem, state: DampedState, nearer: Mask) -> Mask:
    """Tell where the objective falls, or is ``nearer`` to a minimum than rounding lets it show.

    A whole step that leaves half of the slope leads away from a saddle, and no nearer.
    """
    before, value, eps = state.kept.value, state.value, torch.finfo(state.z.dtype).eps
    promised = state.length * dot(problem, state.direction, state.kept.residual)
    noise = _DROWNS * eps * larger(abs(value), abs(before))
    drowns = both(promised <= noise, abs(value - before) <= noise)
    falls = both(value <= before - _FALL * promised, abs(value) < torch.inf)
    slope = dot(problem, state.direction, state.residual)
    leaves = both(state.length == 1, slope >= 0.5 * promised)
    return pick(drowns, either(nearer, leaves), falls)


@dataclass(frozen=True)
class Newton(Factored):
    """Newton's method: ``z <- z + t p`` with ``F'(z) p = -F(z)``.

    The step length ``t`` is shortened until the next step would be at most ``1 - t / 4`` times as
    long as this one (natural monotonicity), so the units of ``F`` and of its rows do not matter. If
    no ``t`` does so, the problem ends as STALLED; with a singular Jacobian, as SINGULAR. An
    objective is made to fall, by steps that lead away from saddles. Source: Deuflhard, "Newton
    Methods for Nonlinear Problems" (2004), section 3.3.

    With an iterative linear solver it is Newton-Krylov, and ``t`` is halved until the residual's
    norm falls by ``1e-4 t`` of itself. Unless that solver has an ``rtol`` of its
    own, a step is solved for to the relative residual ``0.9 (|F_k| / |F_k-1|)^2``, loosely far
    from the solution, and near it as tightly as quadratic convergence needs and the tolerance
    asks. Source: Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method",
    SIAM J. Sci. Comput. 17 (1996), choice 2 with its safeguard; the last step: Kelley, "Solving
    Nonlinear Equations with Newton's Method" (2003), section 3.2.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    linear_solver
        How to solve for the step. A direct solver forms the Jacobian; an iterative one
        (``GMRES()``) needs only products. By default, ``LU()`` up to 512 unknowns, ``GMRES()``
        beyond; with a ``jac_sparsity``, ``SuperLU()``.
    halvings
        How many times the step length may be halved; 0 always takes full steps.
    reuse
        A factorization is used again while each step leaves at most ``reuse`` times the norm of the
        residual, in [0, 1); 0 factors in every step. Each problem decides for itself. A step by
        old factors that reduces nothing is rejected, and counts. For direct solvers only. See
        `Chord` to use one factorization always.
    preconditioner
        For an iterative ``linear_solver``: ``Jacobi()``, or with a ``jac_sparsity`` ``ILU()`` or a
        `SparsePreconditioner` of your own, made at each step.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> sol = ims.root(lambda z: z**3 - 8, torch.tensor(1.0), solver=Newton())
    >>> sol.value
    tensor(2.0000)
    """

    max_steps: int = field(default=100, kw_only=True)
    linear_solver: LinearSolver | None = None
    reuse: float = 0.0
    preconditioner: Preconditioner | None = None
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "minimize", "least_squares")

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_linear_solver(self)
        if not 0 <= self.reuse < 1:
            raise ValueError(
                f"Newton has reuse={self.reuse!r}: pass a number in [0, 1), or use Chord()"
            )
        if self.preconditioner is None:
            return
        if not isinstance(self.preconditioner, Preconditioner):
            raise TypeError(
                f"Newton has preconditioner={self.preconditioner!r}: pass Jacobi(), ILU() or a "
                "SparsePreconditioner of your own"
            )
        if not getattr(self.linear_solver, "starts", False):
            raise ValueError(
                f"Newton has preconditioner={self.preconditioner!r} and linear_solver="
                f"{self.linear_solver!r}: name an iterative one, as GMRES(), or leave it out"
            )

    @property
    def spreads(self) -> bool:  # type: ignore[override]
        """Whether rows may be spread over ranks: where steps are solved for by products."""
        products = self.linear_solver is not None and self.linear_solver.spreads
        return products and self.preconditioner is None

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
        if problem.branches:
            return NewtonMemory(())
        stepping = self.factoring(problem, n)
        inverse = () if stepping is None else factor_jacobian(stepping, problem, z)
        error = torch.full_like(residual[..., 0], torch.inf)
        fresh = torch.ones_like(error, dtype=torch.bool)
        return NewtonMemory(inverse, fresh, torch.full_like(error, _FIRST_FORCING), error)

    def tries(self, state: DampedState) -> Any:
        """Return how often a step is halved: by old factors never."""
        return pick(state.memory.fresh, self.halvings, 0)

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Solve for a direction."""
        memory, direct = state.memory, self.factoring(problem, state.z.shape[-1])
        flag = self.stopped(state, both(tired, memory.fresh))
        if direct is None:
            return self._inexact(problem, state, flag)

        def factor(problem: EquationProblem, z: Tensor) -> Factors:
            return factor_jacobian(direct, problem, z)

        if self.reuse == 0 or not memory.inverse:
            factors, fresh = factor(problem, state.z), memory.fresh
        else:
            # old factors are tried no further: fresh ones decide whether a lane is stuck
            search = state.search
            pays = both(state.accepted, search.rest <= self.reuse * search.size)
            needed = both(no(pays), either(state.accepted, tired))
            turns = either(state.accepted, tired)
            fresh = pick(turns, no(pays), memory.fresh)
            # what has ended needs no factors
            factors = renew(problem, both(needed, flag == 0), memory.inverse, factor, state.z)
        direction = solved(direct, problem, factors, state.residual)
        return Aim(direction, memory._replace(inverse=factors, fresh=fresh), flag)

    def _inexact(self, problem: EquationProblem, state: DampedState, flag: Any) -> Aim:
        solver: Any = self._linear_solver(state.z.shape[-1])
        A = problem.linearize(state.z)
        M = None if self.preconditioner is None else self.preconditioner.of(A)
        linear: Any = LinearProblem(A, state.residual, M)
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
    if problem.equation.sparsity is None:
        problem.identity(z)
    return solver.factor(problem.linearize(z))


def solved(
    solver: DirectSolver, problem: EquationProblem, factors: Factors, residual: Tensor
) -> Tensor:
    """Return the step that factors make of a residual ``(N, n)``."""
    x = solver.solve_with(problem.memory, factors, residual.unsqueeze(-1), False)
    return x.squeeze(-1)


def first_length(
    solver: Any, problem: EquationProblem, state: DampedState, before: Trial | None, length: Any
) -> tuple[Any, Trial | None]:
    """Return the length to try first: the whole step, or what is promised after shorter ones."""
    if before is None:
        if problem.branches:
            return length, None
        return length, Trial(length, torch.zeros_like(state.z), length)
    if everywhere(state.length == 1):
        return length, before
    p = state.direction
    change = problem.size(solver.norm, before.left - p) * problem.size(solver.norm, p)
    promised = state.length * divide(before.size * before.rest, change)
    # no more than a digit shorter: what steps promise may be nothing
    promised = larger(promised, 0.1 * state.length)
    return pick(both(state.length < 1, promised < 1), promised, length), before


def shortened(solver: Any, state: DampedState, trial: Trial) -> Any:
    """Return the length to try after one that did not pay."""
    t = state.length
    bend: Any = solver.norm(along(trial.left, t - 1, state.direction))
    bend = bend if isinstance(trial.size, Tensor) else bend.item()
    shorter = 0.5 * t * t * divide(trial.size, bend)
    return pick(shorter < 0.5 * t, pick(shorter > 0.1 * t, shorter, 0.1 * t), 0.5 * t)


def begun(solver: Any, problem: EquationProblem, state: DampedState) -> DampedState:
    """Return the state at the start with its error and the estimate of that of ``z``."""
    error = problem.size(solver.norm, state.residual)
    estimate = pick(error == 0, 0.0, 0 * error + torch.inf)
    return state._replace(error=error, estimate=estimate, kept=state.kept._replace(error=error))


def measured(
    solver: Any,
    problem: EquationProblem,
    state: DampedState,
    direct: DirectSolver,
    factors: Factors,
) -> tuple[DampedState, Trial]:
    """Return where a trial pays, by the step that would follow it, and what that shows."""
    left = solved(direct, problem, factors, state.residual)
    vectors = state.direction, left, state.residual
    size, rest, error = problem.sizes_and_scale(solver, state.z, *vectors)
    t, rate = state.length, divide(rest, size)
    estimate = divide(rest, larger(1 - 3 * rate, 1 - 3 * _LINEAR))
    estimate = pick(t == 1, estimate, torch.inf)
    # (differences: what is infinite on both sides pays nothing)
    accepted: Mask = rest - (1 - 0.25 * t) * size <= 0
    if solver.rtol is not None:
        accepted = either(accepted, estimate - problem.tolerance(solver, state.z) <= 0)
    state = state._replace(error=error, estimate=estimate, accepted=accepted)
    return state, Trial(size, left, rest)
