"""The Gauss-Newton method for nonlinear least squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["GaussNewton"]


class GaussNewtonState(NamedTuple):
    """The state of `GaussNewton`."""

    z: Tensor
    residuals: Tensor
    jacobian: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class GaussNewton:
    """Gauss-Newton: ``z <- z + t p``, where ``p`` minimizes ``|r(z) + J p|``.

    The step length ``t`` is halved until ``|r|^2`` falls by ``1e-4`` of what its slope promises.
    The step comes from a QR factorization of ``J``; a ``J`` without full column rank ends the
    lane as SINGULAR. Source: Nocedal and Wright, "Numerical Optimization", section 10.3.

    Parameters
    ----------
    rtol, atol
        A lane has converged when ``norm(J^T r) <= atol + rtol norm(z)``; both default to
        ``eps**0.75``. ``rtol=None`` makes exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of steps allowed.
    halvings
        How many times the step length may be halved.
    norm
        Maps gradients ``(N, n)`` to ``(N,)``.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> t, y = torch.arange(3.0), torch.tensor([1.0, 2.0, 4.0])
    >>> ims.least_squares(lambda z: torch.exp(z * t) - y, torch.tensor(0.0)).value
    tensor(0.6931)
    """

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 200
    halvings: int = 30
    norm: Norm = rms
    compact: bool = True
    monotone: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("least_squares",)

    def init(self, problem: EquationProblem, z: Tensor) -> GaussNewtonState:
        """Evaluate residuals and Jacobian at the start."""
        residuals = problem.evaluate(z)
        if residuals.shape[-1] < z.shape[-1]:
            raise ValueError(
                f"fn returned {residuals.shape[-1]} residuals for {z.shape[-1]} unknowns: "
                "GaussNewton() needs at least as many residuals as unknowns"
            )
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        jacobian = problem.linearize_function(z).dense()
        return GaussNewtonState(z, residuals, jacobian, self._error(residuals, jacobian), flag)

    def _error(self, residuals: Tensor, jacobian: Tensor) -> Tensor:
        return self.norm((residuals.unsqueeze(-2) @ jacobian).squeeze(-2))

    def step(self, problem: EquationProblem, state: GaussNewtonState) -> GaussNewtonState:
        """Solve the linear least-squares problem and search along its solution."""
        q, r = torch.linalg.qr(state.jacobian)
        diagonal = r.diagonal(dim1=-2, dim2=-1).abs()
        eps, rows = torch.finfo(r.dtype).eps, state.jacobian.shape[-2]
        columns = torch.linalg.vector_norm(state.jacobian, dim=-2)
        regular = (diagonal > rows * eps * columns).all(-1)
        safe = torch.where(regular.reshape(-1, 1, 1), r, torch.eye(r.shape[-1]).to(r))
        rhs = -(q.mT @ state.residuals.unsqueeze(-1))
        direction = torch.linalg.solve_triangular(safe, rhs, upper=True).squeeze(-1)
        direction = torch.where(regular.unsqueeze(-1), direction, 0.0)

        gradient = (state.residuals.unsqueeze(-2) @ state.jacobian).squeeze(-2)
        slope = (direction * gradient).sum(-1)
        half = 0.5 * (state.residuals**2).sum(-1)
        length = torch.ones_like(half)
        z, residuals = state.z, state.residuals
        accepted = ~regular
        for _ in range(self.halvings + 1):
            trial = state.z + length.unsqueeze(-1) * direction
            new = problem.evaluate(trial)
            value = 0.5 * (new**2).sum(-1)
            # near the minimum the fall is below rounding: a step that keeps the value will do
            good = ~accepted & (value <= half * (1 + 10 * eps) + 1e-4 * length * slope)
            take = good.unsqueeze(-1)
            z, residuals = torch.where(take, trial, z), torch.where(take, new, residuals)
            accepted = accepted | good
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, 0.5 * length)
        flag = torch.where(accepted, 0, int(Status.STALLED))
        flag = torch.where(regular, flag, int(Status.SINGULAR))
        jacobian = problem.linearize_function(z).dense()
        return GaussNewtonState(z, residuals, jacobian, self._error(residuals, jacobian), flag)
