"""The Gauss-Newton method for nonlinear least squares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_count
from implicit_solvers.iterate import IterativeSolver, iterate
from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.choice import DENSE_LIMIT
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.problem import EquationProblem, ResidualMap
from implicit_solvers.solution import Status
from implicit_solvers.solver import EquationMethod, LinearMethod, LinearSolver, check_linear_solver
from implicit_solvers.traced_loop import alias, inside, repeat

__all__ = ["GaussNewton", "full_step", "iterative_solver", "normal_step"]


class GaussNewtonState(NamedTuple):
    """The state of `GaussNewton`."""

    z: Tensor
    residuals: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class GaussNewton(EquationMethod):
    """Gauss-Newton: ``z <- z + t p``, where ``p`` minimizes ``|r(z) + J p|``.

    The step length ``t`` is halved until ``|r|^2`` falls by ``1e-4`` of what its slope promises,
    or, near the minimum, where both falls drown in rounding, until the norm of ``J^T r`` falls; if
    no ``t`` does so, the lane is STALLED. The step comes from a QR factorization of ``J``; a ``J``
    without full column rank ends the lane as SINGULAR. Source: Nocedal and Wright, "Numerical
    Optimization", section 10.3.

    Parameters
    ----------
    rtol, atol, max_steps, max_trials, norm, compact, check_every, compile
        As in `EquationMethod`.
    linear_solver
        An iterative solver (``CG()``) that solves ``J^T J p = -J^T r`` with products; it does not
        notice a ``J`` without full rank. Left out, ``J`` is formed up to 512 unknowns; beyond,
        ``CG(rtol=1e-3)``.
    halvings
        How many times the step length may be halved.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it. A ValueError also when a solve
        begins with fewer residuals than unknowns; use `LevenbergMarquardt` then.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> t, y = torch.arange(3.0), torch.tensor([1.0, 2.0, 4.0])
    >>> ims.least_squares(lambda z: torch.exp(z * t) - y, torch.tensor(0.0)).value
    tensor(0.6931)
    """

    max_steps: int = field(default=200, kw_only=True)
    linear_solver: LinearSolver | None = None
    halvings: int = 30
    solves: ClassVar[tuple[str, ...]] = ("least_squares",)

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_linear_solver(self, kind=LinearMethod)
        check_count(self, "halvings")

    def init(self, problem: EquationProblem, z: Tensor) -> GaussNewtonState:
        """Evaluate residuals and gradient at the start."""
        residuals = problem.residuals(z)
        if residuals.shape[-1] < z.shape[-1]:
            raise ValueError(
                f"fn returned {residuals.shape[-1]} residuals for {z.shape[-1]} unknowns: "
                "GaussNewton() needs at least as many residuals as unknowns; use "
                "LevenbergMarquardt()"
            )
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return GaussNewtonState(z, residuals, self.norm(problem.residual(z)), flag)

    def step(self, problem: EquationProblem, state: GaussNewtonState) -> GaussNewtonState:
        """Solve the linear least-squares problem and search along its solution."""
        direction, gradient, regular = self._direction(problem, state)
        slope = (direction * gradient).sum(-1)
        half = 0.5 * (state.residuals**2).sum(-1)
        eps = torch.finfo(half.dtype).eps

        def attempt(carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z, residuals, searching, length = carry
            here = inside(problem)
            trial = state.z + length.unsqueeze(-1) * direction
            new = here.residuals(trial)
            value = 0.5 * (new**2).sum(-1)
            drowned = (-length * slope <= eps**0.5 * half) & (value <= (1 + eps**0.5) * half)

            def judge(good: Tensor) -> Tensor:
                settles = self.norm(inside(here).residual(alias(trial))) < state.error
                return torch.where(drowned & (value >= (1 - 100 * eps) * half), settles, good)

            good = value <= half + 1e-4 * length * slope
            good = repeat(lambda _: (drowned & searching).any(), judge, good, 1) & searching
            take = good.unsqueeze(-1)
            z, residuals = torch.where(take, trial, z), torch.where(take, new, residuals)
            return z, residuals, searching & ~good, 0.5 * length

        # ended lanes, and those without a direction, look for nothing
        searching = regular & (state.flag == 0)
        carry = (state.z, state.residuals, searching, torch.ones_like(half))
        z, residuals, searching, _ = repeat(
            lambda carry: carry[2].any(), attempt, carry, self.halvings + 1
        )
        # a budget's lane stays where no step pays
        stalled = 0 if self.rtol is None else int(Status.STALLED)
        flag = torch.where(searching, stalled, 0)
        flag = torch.where(regular, flag, int(Status.SINGULAR))
        return GaussNewtonState(z, residuals, self.norm(problem.residual(z)), flag)

    def _direction(
        self, problem: EquationProblem, state: GaussNewtonState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the step, the gradient, and whether the Jacobian has full column rank."""
        jacobian, r = problem.linearize_residuals(state.z), state.residuals
        solver = iterative_solver(self, state.z, CG(rtol=1e-3))
        if solver is None:
            matrix = jacobian.dense()
            direction, regular = full_step(matrix, r)
            return direction, (r.unsqueeze(-2) @ matrix).squeeze(-2), regular
        gradient = jacobian.rmv(r)
        direction = normal_step(jacobian, gradient, torch.zeros_like(gradient[:, :1]), solver)
        return direction, gradient, torch.ones_like(state.flag, dtype=torch.bool)


class _NormalMap:
    """The map ``J^T J + damping`` of each lane; ``damping`` is ``(N, 1)``."""

    symmetric: ClassVar[bool] = True

    def __init__(self, jacobian: ResidualMap, damping: Tensor) -> None:
        self.jacobian, self.damping = jacobian, damping

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.jacobian.separable

    def mv(self, v: Tensor) -> Tensor:
        """Return the product."""
        return self.jacobian.rmv(self.jacobian.mv(v)) + self.damping * v

    def to_compile(self) -> None:
        """Return None: steps on it are compiled with those of the outer solver only."""

    def aliased(self) -> _NormalMap:
        """Return the map as the body of a loop in a graph has to see it."""
        return _NormalMap(self.jacobian.aliased(), self.damping)

    def take(self, index: Tensor) -> _NormalMap:
        """Return the map of some of the lanes."""
        return _NormalMap(self.jacobian.take(index), self.damping[index])


def normal_step(
    jacobian: ResidualMap, gradient: Tensor, damping: Tensor, solver: IterativeSolver
) -> Tensor:
    """Return the ``p`` of ``(J^T J + damping) p = -gradient``, as well as ``solver`` finds it."""
    normal: Any = _NormalMap(jacobian, damping)
    return iterate(solver, LinearProblem(normal, -gradient), torch.zeros_like(gradient)).z


def full_step(matrix: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ``p`` that minimizes ``|r + J p|``, and whether ``J`` has full column rank.

    Where it has not, ``p`` is zero.
    """
    m, n = matrix.shape[-2:]
    if m < n:
        zero = torch.zeros_like(matrix[:, 0])
        return zero, torch.zeros_like(zero[:, 0], dtype=torch.bool)
    q, r = torch.linalg.qr(matrix)
    diagonal = r.diagonal(dim1=-2, dim2=-1).abs()
    columns = torch.linalg.vector_norm(matrix, dim=-2)
    regular = (diagonal > m * torch.finfo(r.dtype).eps * columns).all(-1)
    safe = torch.where(regular.reshape(-1, 1, 1), r, torch.eye(n).to(r))
    rhs = -(q.mT @ residuals.unsqueeze(-1))
    p = torch.linalg.solve_triangular(safe, rhs, upper=True).squeeze(-1)
    return torch.where(regular.unsqueeze(-1), p, 0.0), regular


def iterative_solver(owner: Any, z: Tensor, default: IterativeSolver) -> IterativeSolver | None:
    """Return the linear solver of a method at ``z``, or None to form and factor the Jacobian."""
    solver = owner.linear_solver
    if solver is None:
        return default if z.shape[-1] > DENSE_LIMIT else None
    chosen: IterativeSolver = solver
    return chosen
