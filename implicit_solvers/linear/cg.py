"""Conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.linear.cg_alone import cg_alone
from implicit_solvers.linear.inner_products import real_inner
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import LinearMethod
from implicit_solvers.tolerance import rms

__all__ = ["CG"]


class CGState(NamedTuple):
    """The state of `CG`."""

    z: Tensor
    residual: Tensor
    direction: Tensor
    rho: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class CG(LinearMethod):
    """Conjugate gradients, for symmetric positive definite operators.

    For vectors of every floating and complex dtype. A direction of nonpositive curvature ends the
    lane with status INDEFINITE. A single real system on the CPU takes less time a step than lanes
    do: its scalars are numbers of Python. Source: Hestenes and Stiefel (1952); preconditioned as
    in Golub and Van Loan, "Matrix Computations", section 11.5.

    Parameters
    ----------
    rtol, atol, max_steps, compact, check_every, compile
        As in `LinearMethod`.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), positive_definite=True)
    >>> sol = ims.linear_solve(A, torch.tensor([3.0, 0.0]), solver=CG())
    >>> sol.value, int(sol.iterations)
    (tensor([ 2., -1.]), 2)
    """

    max_steps: int = field(default=1000, kw_only=True)
    symmetric_only: ClassVar[bool] = True

    def whole(self, problem: Any, x: Tensor) -> Any:
        """Iterate a single real system on the CPU; others go step by step."""
        one = len(x) == 1 and not x.is_complex() and x.device.type == "cpu"
        if not one or self.compile or not problem.A.symmetric or type(self).step is not CG.step:
            return None
        return cg_alone(self, problem, x)

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
        return CGState(
            x, r, y, real_inner(r, y), rms(r), torch.zeros_like(r[:, 0], dtype=torch.int64)
        )

    def step(self, problem: LinearProblem, state: CGState) -> CGState:
        """Make a step along the current direction and choose the next."""
        Ap = problem.A.mv(state.direction)
        curvature = real_inner(state.direction, Ap)
        bad = (curvature <= 0) & (state.rho != 0)
        alpha = torch.where(curvature > 0, state.rho / curvature, 0.0)
        x = torch.addcmul(state.z, alpha, state.direction)
        r = torch.addcmul(state.residual, alpha, Ap, value=-1)
        y = problem.precondition(r)
        rho = real_inner(r, y)
        beta = torch.where(state.rho != 0, rho / state.rho, 0.0)
        flag = torch.where(bad.squeeze(-1), int(Status.INDEFINITE), 0)
        # NaN where the curvature is not finite
        error = rms(r) + 0 * curvature.squeeze(-1)
        return CGState(x, r, torch.addcmul(y, beta, state.direction), rho, error, flag)
