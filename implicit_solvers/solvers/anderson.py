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
    """The state of `Anderson`: the last differences of iterates and residuals, newest first.

    ``depth`` counts the differences that a lane remembers; with none, its step is a plain one.
    """

    z: Tensor
    residual: Tensor
    steps: Tensor
    changes: Tensor
    depth: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration of ``z = g(z)``, type II.

    With ``f = z - g(z)`` and the last ``window`` differences ``dz``, ``df``: the weights ``c``
    minimize ``|f - df c|^2 + regularization sum_i |df_i|^2 c_i^2``, and
    ``z <- z - damping f - (dz - damping df) c``. They come from a QR factorization, newest
    differences first, in which those that nearly depend on newer ones get no weight.

    Without a history a step is plain, ``z <- z - damping f``, and goes where it goes. Each lane is
    safeguarded for itself: an accelerated step that raises the residual's norm to more than
    ``growth`` times what it was, leads to NaN, or is ``eps**-0.5`` times as long as a plain one, is
    taken back, the history is forgotten, and the next step is a plain one. (A step taken back
    counts.)

    Source: Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal.
    49 (2011); regularized weights: Scieur, d'Aspremont and Bach, "Regularized nonlinear
    acceleration" (2016).

    Parameters
    ----------
    rtol, atol
        A lane has converged when ``norm(g(z) - z) <= atol + rtol norm(z)``; both default to
        ``eps**0.75``. ``rtol=None`` makes exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of steps allowed.
    window
        How many differences are remembered, at most ``n``.
    damping
        The weight of the residual in the step; 1 is undamped.
    norm
        Maps residuals ``(N, n)`` to ``(N,)``.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.
    regularization
        The weight of Tikhonov's term, relative to the differences' own size: for maps with noise
        (float32, dropout), 1e-8 to 1e-2.
    growth
        By how much an accelerated step may raise the residual's norm; ``inf`` by anything finite.

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
    regularization: float = 0.0
    growth: float = 2.0
    monotone: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("fixed_point",)

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        if not self.regularization >= 0:
            raise ValueError(
                f"Anderson has regularization={self.regularization!r}: pass a number >= 0"
            )

    def init(self, problem: EquationProblem, z: Tensor) -> AndersonState:
        """Evaluate the residual at the start; remember nothing."""
        residual = problem.residual(z)
        memory = z.new_zeros(len(z), min(self.window, z.shape[-1]), z.shape[-1])
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return AndersonState(z, residual, memory, memory, flag, self.norm(residual), flag)

    def step(self, problem: EquationProblem, state: AndersonState) -> AndersonState:
        """Mix the last steps so that their residuals cancel best."""
        weights = _least_squares(state.changes, state.residual, self.regularization)
        mixed = state.steps - self.damping * state.changes
        step = -self.damping * state.residual - (weights.unsqueeze(-2) @ mixed).squeeze(-2)
        z = state.z + step
        residual = problem.residual(z)
        error = self.norm(residual)
        change = residual - state.residual
        window = state.steps.shape[1]
        steps = torch.cat([step.unsqueeze(1), state.steps], 1)[:, :window]
        changes = torch.cat([change.unsqueeze(1), state.changes], 1)[:, :window]

        farthest = self.norm(self.damping * state.residual) / torch.finfo(z.dtype).eps ** 0.5
        better = (error <= self.growth * state.error) & (self.norm(step) <= farthest)
        accepted = (state.depth == 0) | better
        keep = accepted.reshape(-1, 1, 1)
        return AndersonState(
            torch.where(keep[:, 0], z, state.z),
            torch.where(keep[:, 0], residual, state.residual),
            torch.where(keep, steps, 0.0),
            torch.where(keep, changes, 0.0),
            torch.where(accepted, state.depth + 1, 0),
            torch.where(accepted, error, state.error),
            state.flag,
        )


def _least_squares(rows: Tensor, target: Tensor, regularization: float) -> Tensor:
    """Return the ``c (N, m)`` that minimize ``|target - c rows|``; rows that add nothing get 0.

    QR of the scaled rows; a diagonal entry below ``sqrt(eps)`` marks a row that nearly depends on
    newer ones.
    """
    size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    matrix = torch.where(size > 0, rows / size, 0.0).mT
    if regularization > 0:
        m = rows.shape[1]
        eye = torch.eye(m, dtype=rows.dtype, device=rows.device)
        below = regularization**0.5 * eye.expand(len(rows), m, m)
        matrix = torch.cat([matrix, below], -2)
        target = torch.cat([target, torch.zeros_like(rows[:, :, 0])], -1)
    q, r = torch.linalg.qr(matrix)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    usable = diagonal.abs() > torch.finfo(rows.dtype).eps ** 0.5
    # an unusable row leaves the system: its equation becomes c = 0
    r = torch.where(usable.unsqueeze(-2), r, 0.0) + torch.diag_embed((~usable).to(r.dtype))
    rhs = torch.where(usable, (q.mT @ target.unsqueeze(-1)).squeeze(-1), 0.0)
    c = torch.linalg.solve_triangular(r, rhs.unsqueeze(-1), upper=True).squeeze(-1)
    size = size.squeeze(-1)
    return torch.where(size > 0, c / size, 0.0)
