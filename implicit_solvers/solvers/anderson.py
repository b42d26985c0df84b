"""Anderson acceleration of a fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.problem import EquationProblem
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["Anderson"]


class AndersonState(NamedTuple):
    """The state of `Anderson`: the last differences of iterates and residuals, newest first."""

    z: Tensor
    residual: Tensor
    steps: Tensor
    changes: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration of ``z = g(z)``, type II.

    With ``f = z - g(z)`` and the last ``window`` differences ``dz``, ``df``: the weights ``c``
    minimize ``|f - df c|``, and ``z <- z - damping f - (dz - damping df) c``. A lane whose
    residual more than doubles forgets its history. Source: Walker and Ni, "Anderson acceleration
    for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011).

    Parameters
    ----------
    rtol, atol
        A lane has converged when ``norm(g(z) - z) <= atol + rtol norm(z)``; both default to
        ``eps**0.75``. ``rtol=None`` makes exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of steps allowed.
    window
        How many differences are remembered.
    damping
        The weight of the residual in the step; 1 is undamped.
    norm
        Maps residuals ``(N, n)`` to ``(N,)``.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> sol = ims.fixed_point(torch.cos, torch.tensor(1.0), solver=Anderson())
    >>> sol.value
    tensor(0.7391)
    """

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 500
    window: int = 5
    damping: float = 1.0
    norm: Norm = rms
    compact: bool = True
    monotone: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("fixed_point",)

    def init(self, problem: EquationProblem, z: Tensor) -> AndersonState:
        """Evaluate the residual at the start; remember nothing."""
        residual = problem.residual(z)
        memory = z.new_zeros(len(z), min(self.window, z.shape[-1]), z.shape[-1])
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return AndersonState(z, residual, memory, memory, self.norm(residual), flag)

    def step(self, problem: EquationProblem, state: AndersonState) -> AndersonState:
        """Mix the last steps so that their residuals cancel best."""
        weights = _least_squares(state.changes, state.residual)
        mixed = state.steps - self.damping * state.changes
        step = -self.damping * state.residual - (weights.unsqueeze(-2) @ mixed).squeeze(-2)
        z = state.z + step
        residual = problem.residual(z)
        error = self.norm(residual)
        change = residual - state.residual
        steps = torch.cat([step.unsqueeze(1), state.steps], 1)[:, : state.steps.shape[1]]
        changes = torch.cat([change.unsqueeze(1), state.changes], 1)[:, : steps.shape[1]]
        keep = (error <= 2 * state.error).reshape(-1, 1, 1)
        steps, changes = torch.where(keep, steps, 0.0), torch.where(keep, changes, 0.0)
        return AndersonState(z, residual, steps, changes, error, state.flag)


def _least_squares(rows: Tensor, target: Tensor) -> Tensor:
    """Return the ``c (N, m)`` that minimize ``|target - c rows|``; rows that add nothing get 0.

    QR of the scaled rows; a diagonal entry below ``sqrt(eps)`` marks a row that nearly depends on
    newer ones.
    """
    size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    unit = torch.where(size > 0, rows / size, 0.0)
    q, r = torch.linalg.qr(unit.mT)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    usable = diagonal.abs() > torch.finfo(rows.dtype).eps ** 0.5
    # an unusable row leaves the system: its equation becomes c = 0
    r = torch.where(usable.unsqueeze(-2), r, 0.0) + torch.diag_embed((~usable).to(r.dtype))
    rhs = torch.where(usable, (q.mT @ target.unsqueeze(-1)).squeeze(-1), 0.0)
    c = torch.linalg.solve_triangular(r, rhs.unsqueeze(-1), upper=True).squeeze(-1)
    size = size.squeeze(-1)
    return torch.where(size > 0, c / size, 0.0)
