"""Newton's method with a backtracking line search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.iterate import iterate
from implicit_solvers.linear.direct import DirectSolver
from implicit_solvers.linear.lu import LU
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.linear.rule import LinearSolver
from implicit_solvers.linear.solve import default_linear_solver
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["Newton"]


class NewtonState(NamedTuple):
    """The state of `Newton`; ``factors`` are those of the last Jacobian, if it was factored."""

    z: Tensor
    residual: Tensor
    error: Tensor
    flag: Tensor
    factors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Newton:
    """Newton's method: ``z <- z + t p`` with ``F'(z) p = -F(z)``.

    The step length ``t`` is halved until the residual's norm falls by ``1e-4 t`` of itself. A
    lane in which no ``t`` does so ends as STALLED, one with a singular Jacobian as SINGULAR. The
    last factorization is kept for the backward pass. Source: Dennis and Schnabel, "Numerical
    Methods for Unconstrained Optimization and Nonlinear Equations", chapter 6.

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
        Maps residuals ``(N, n)`` to ``(N,)``.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.

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
    monotone: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "minimize", "least_squares")

    def _linear_solver(self, n: int) -> LinearSolver:
        return self.linear_solver or default_linear_solver(n)

    def init(self, problem: EquationProblem, z: Tensor) -> NewtonState:
        """Evaluate the residual at the start."""
        residual = problem.residual(z)
        factors: tuple[Tensor, ...] = ()
        if isinstance(self._linear_solver(z.shape[-1]), LU):
            # before the first step: the factors of the identity
            eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
            factors = LU().factor_dense(eye.expand(len(z), -1, -1))
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return NewtonState(z, residual, self.norm(residual), flag, factors)

    def step(self, problem: EquationProblem, state: NewtonState) -> NewtonState:
        """Solve for a direction and search along it."""
        direction, flag, factors = self._direction(problem, state)
        z, residual, error = state.z + direction, state.residual, state.error
        length = torch.ones_like(state.error)
        accepted = torch.zeros_like(flag, dtype=torch.bool)
        for _ in range(self.halvings + 1):
            trial = state.z + length.unsqueeze(-1) * direction
            new_residual = problem.residual(trial)
            new_error = self.norm(new_residual)
            good = ~accepted & (new_error <= (1 - 1e-4 * length) * state.error)
            if self.halvings == 0:
                good = torch.ones_like(good)
            if bool(good.all()):
                z, residual, error, accepted = trial, new_residual, new_error, good
                break
            take = good.unsqueeze(-1)
            z = torch.where(take, trial, z)
            residual = torch.where(take, new_residual, residual)
            error = torch.where(good, new_error, error)
            accepted = accepted | good
            if bool((accepted | (flag != 0)).all()):
                break
            length = torch.where(accepted, length, 0.5 * length)
        flag = torch.where(accepted | (flag != 0), flag, int(Status.STALLED))
        z = torch.where(accepted.unsqueeze(-1), z, state.z)
        return NewtonState(z, residual, error, flag, factors)

    def _direction(
        self, problem: EquationProblem, state: NewtonState
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        jacobian = problem.linearize(state.z)
        solver = self._linear_solver(state.z.shape[-1])
        if isinstance(solver, DirectSolver):
            factors = solver.factor(jacobian)
            rhs = -state.residual.unsqueeze(-1)
            direction = solver.solve(factors, rhs, False).squeeze(-1)
            flag = solver.status(factors)
            usable = (flag == 0).unsqueeze(-1)
            kept = factors if state.factors else ()
            return torch.where(usable, direction, 0.0), flag, kept
        out = iterate(solver, LinearProblem(jacobian, -state.residual), 0 * state.residual)
        # an inexact direction is a direction: the line search judges it
        return out.z, torch.zeros_like(state.flag), ()
