"""Conjugate gradients. It knows ``A`` by its products alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, along, both, divide, pick
from implicit_solvers.linear.inner_products import real_inner
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.ranks import norm, summed
from implicit_solvers.solution import Status
from implicit_solvers.solver import LinearMethod

__all__ = ["CG", "CGState", "inner"]


class CGState(NamedTuple):
    """The state of `CG`."""

    z: Tensor
    residual: Tensor
    direction: Tensor
    rho: Any
    error: Any
    flag: Any


@dataclass(frozen=True)
class CG(LinearMethod):
    """Conjugate gradients, for symmetric positive definite operators.

    For vectors of every floating and complex dtype. A direction of nonpositive curvature ends the
    problem with status INDEFINITE. Source: Hestenes and Stiefel (1952); preconditioned as
    in Golub and Van Loan, "Matrix Computations", section 11.5.

    Parameters
    ----------
    rtol, atol, max_steps, compact, chunk_size, check_every, compile
        As in `LinearMethod`.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), positive_definite=True)
    >>> sol = ims.linear_solve(A, torch.tensor([3.0, 0.0]), solver=CG())
    >>> sol.value, int(sol.iterations)
    (tensor([ 2., -1.]), 2)
    """

    spreads: ClassVar[bool] = True
    symmetric_only: ClassVar[bool] = True

    def init(self, problem: LinearProblem, x: Tensor) -> CGState:
        """Start at ``x``."""
        if not problem.A.symmetric:
            raise ValueError(
                "solver=CG() needs a symmetric positive definite operator, and this one is not "
                "known to be symmetric: pass symmetric=True or positive_definite=True to the "
                "operator if it is, or use GMRES() or LU()"
            )
        r = problem.first_residual(x)
        y = problem.precondition(r)
        rho = inner(problem, r, y)
        flag = 0 if problem.on_host else torch.zeros_like(r[:, 0], dtype=torch.int64)
        return CGState(x, r, y, rho, _size(problem, r, rho), flag)

    def reach(self, alpha: Any, bad: Mask, rho: Any, curvature: Any) -> Any:
        """Return how far to go; where it is ``bad``, the curvature is not positive."""
        return alpha

    def step(self, problem: LinearProblem, state: CGState) -> CGState:
        """Make a step along the current direction and choose the next."""
        Ap = problem.A.mv(state.direction)
        curvature = inner(problem, state.direction, Ap)
        bad = both(curvature <= 0, state.rho != 0)
        alpha = pick(curvature > 0, divide(state.rho, curvature), 0.0)
        x = along(state.z, self.reach(alpha, bad, state.rho, curvature), state.direction)
        r = along(state.residual, -alpha, Ap)
        y = problem.precondition(r)
        rho = inner(problem, r, y)
        beta = pick(state.rho != 0, divide(rho, state.rho), 0.0)
        flag = pick(bad, int(Status.INDEFINITE), 0)
        # NaN where the curvature is not finite
        error = _size(problem, r, rho) + 0 * curvature
        return CGState(x, r, along(y, beta, state.direction), rho, error, flag)


def inner(problem: LinearProblem, a: Tensor, b: Tensor) -> Any:
    """Return the real part of ``a^H b`` of each lane ``(N,)``."""
    if problem.on_host and a is b:
        size = norm(a).item()
        return size * size
    if problem.on_host:
        return summed(torch.mm(a, b.mT)).item()
    return real_inner(a, b).squeeze(-1)


def _size(problem: LinearProblem, r: Tensor, rho: Any) -> Any:
    """Return the root mean square of a residual with the square ``rho`` in the norm of M."""
    if problem.on_host and problem.M is None:
        return math.sqrt(rho / problem.entries(r)) if rho >= 0 else math.nan
    return problem.size(r)
