"""Newton's method with a backtracking line search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.hyperparameters import check_count, check_linear_solver, check_stopping
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.choice import default_linear_solver
from implicit_solvers.linear.direct import DirectSolver, Factors
from implicit_solvers.linear.lu import LU
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from implicit_solvers.linear.specification import LinearSolver
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solvers.backtracking import backtrack
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["Newton", "factor_jacobian", "solve_factored"]

_FIRST_FORCING = 0.5
_LARGEST_FORCING = 0.9


class NewtonState(NamedTuple):
    """The state of `Newton`.

    ``inverse`` are the factors of the last Jacobian factored, which the backward pass can use if
    they are ``LU``'s; where it is ``stale``, the next step factors, and where it is ``fresh``, the
    next step is by factors of its own iterate. ``forcing`` is the relative residual to which an
    iterative solver solves for the next step.
    """

    z: Tensor
    residual: Tensor
    error: Tensor
    flag: Tensor
    inverse: Factors
    stale: Tensor
    fresh: Tensor
    forcing: Tensor
    is_lu: bool

    @property
    def factors(self) -> Factors:
        """What the backward pass may use."""
        return self.inverse if self.is_lu else ()


@dataclass(frozen=True)
class Newton:
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
    rtol, atol
        A lane has converged when ``norm(F(z)) <= atol + rtol norm(z)``; both default to
        ``eps**0.75``. ``rtol=None`` makes exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of steps allowed.
    linear_solver
        How to solve for the step. A direct solver forms the Jacobian; an iterative one
        (``GMRES()``) needs its products only. Left out, ``LU()`` up to 512 unknowns, ``GMRES()``
        beyond.
    halvings
        How many times the step length may be halved; 0 takes full steps always.
    norm
        Maps residuals ``(N, n)``, of a real floating dtype, to ``(N,)``.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.
    check_every
        Every how many steps it is asked whether all lanes have ended. A GPU waits for the answer;
        lanes that ended keep what they have.
    compile
        Whether the loop is compiled to one graph, once for each function, dtype and shape.
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

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 100
    linear_solver: LinearSolver | None = None
    halvings: int = 30
    norm: Norm = rms
    compact: bool = True
    reuse: float = 0.0
    check_every: int = 1
    compile: bool = False
    monotone: ClassVar[bool] = False
    traceable: ClassVar[bool] = True
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "minimize", "least_squares")

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_stopping(self)
        check_count(self, "check_every", least=1)
        check_linear_solver(self)
        check_count(self, "halvings")
        if not 0 <= self.reuse < 1:
            raise ValueError(
                f"Newton has reuse={self.reuse!r}: pass a number in [0, 1), or use Chord()"
            )

    def _linear_solver(self, n: int) -> LinearSolver:
        return self.linear_solver or default_linear_solver(n)

    def init(self, problem: EquationProblem, z: Tensor) -> NewtonState:
        """Evaluate the residual at the start, and factor there if the factors may serve again."""
        residual = problem.residual(z)
        solver = self._linear_solver(z.shape[-1])
        inverse: Factors = ()
        if self.reuse > 0:
            if not isinstance(solver, DirectSolver) or not solver.keepable:
                raise ValueError(
                    f"Newton(reuse={self.reuse}) needs a direct linear solver with factors to "
                    f"keep, and {type(solver).__name__}() solves for {z.shape[-1]} unknowns: pass "
                    "linear_solver=LU(), or leave reuse out"
                )
            inverse = factor_jacobian(solver, problem, z)
        elif isinstance(solver, LU) and not (self.compile or compiling()):
            # before the first step: the factors of the identity
            eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
            one = LU().factor_dense(eye.unsqueeze(0))
            inverse = tuple(t.expand(len(z), *t.shape[1:]) for t in one)
        error = self.norm(residual)
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        stale = torch.full_like(flag, self.reuse == 0, dtype=torch.bool)
        forcing = torch.full_like(error, _FIRST_FORCING)
        return NewtonState(
            z,
            residual,
            error,
            flag,
            inverse,
            stale,
            torch.ones_like(stale),
            forcing,
            isinstance(solver, LU),
        )

    def step(self, problem: EquationProblem, state: NewtonState) -> NewtonState:
        """Solve for a direction and search along it."""
        direction, flag, inverse = self._direction(problem, state)
        found = backtrack(
            problem,
            self,
            (state.z, state.residual, state.error),
            direction,
            (flag == 0) & (state.flag == 0),
            once=~state.fresh if self.reuse > 0 else None,
        )
        stale, fresh = state.stale, state.fresh
        if self.reuse > 0:
            stale = ~(found.accepted & (found.error <= self.reuse * state.error))
            fresh = stale.clone()
        if self.rtol is not None:
            # old factors are tried no further: fresh ones decide whether a lane is stuck
            stuck = ~found.accepted & (flag == 0) & state.fresh
            flag = torch.where(stuck, int(Status.STALLED), flag)
        forcing = self._forcing(problem, state, found.z, found.error)
        z, residual, error, _ = found
        return NewtonState(z, residual, error, flag, inverse, stale, fresh, forcing, state.is_lu)

    def _direction(
        self, problem: EquationProblem, state: NewtonState
    ) -> tuple[Tensor, Tensor, Factors]:
        solver = self._linear_solver(state.z.shape[-1])
        if isinstance(solver, DirectSolver):

            def factor(problem: EquationProblem, z: Tensor) -> Factors:
                return factor_jacobian(solver, problem, z)

            if self.reuse > 0:
                # what has ended needs no factors
                needed = state.stale & (state.flag == 0)
                factors = renew(problem, needed, state.inverse, factor, state.z)
            else:
                factors = factor(problem, state.z)
            direction, flag = solve_factored(solver, factors, -state.residual)
            return direction, flag, factors if state.inverse else ()
        linear = LinearProblem(problem.linearize(state.z), -state.residual)
        if isinstance(solver.rtol, Auto):
            linear = ForcedProblem(linear, state.forcing)
        out = iterate(solver, linear, 0 * state.residual)
        # an inexact direction is a direction: the line search judges it
        return out.z, torch.zeros_like(state.flag), ()

    def _forcing(
        self, problem: EquationProblem, state: NewtonState, z: Tensor, error: Tensor
    ) -> Tensor:
        if isinstance(self._linear_solver(z.shape[-1]), DirectSolver):
            return state.forcing
        forcing = 0.9 * (error / state.error).nan_to_num(0.0) ** 2
        before = 0.9 * state.forcing**2
        forcing = torch.where(before > 0.1, torch.maximum(forcing, before), forcing)
        if self.rtol is not None:
            # no more than ends the solve, with two digits to spare
            forcing = torch.maximum(forcing, 0.01 * problem.tolerance(self, z) / error)
        tightest = torch.finfo(z.dtype).eps ** (2 / 3)
        return forcing.nan_to_num(_LARGEST_FORCING).clamp(tightest, _LARGEST_FORCING)


def factor_jacobian(solver: DirectSolver, problem: EquationProblem, z: Tensor) -> Factors:
    """Return the factors of the Jacobian of the condition at ``z (N, n)``."""
    return solver.factor(problem.linearize(z))


def solve_factored(solver: DirectSolver, factors: Factors, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``A^-1 b`` for ``b (N, n)`` and a status; the solution is 0 where ``A`` is unfit."""
    x = solver.solve(factors, b.unsqueeze(-1), False).squeeze(-1)
    flag = solver.status(factors)
    return torch.where((flag == 0).unsqueeze(-1), x, 0.0), flag
