"""Anderson acceleration of a fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_count, check_number, check_stopping
from implicit_solvers.problem import EquationProblem
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["Anderson"]


class AndersonState(NamedTuple):
    """The state of `Anderson`: the last differences of iterates and residuals.

    Their places are filled in turn, by the ``turn``-th step the place ``turn`` modulo the window.
    ``depth`` counts the differences that a lane remembers; with none, its step is a plain one.
    """

    z: Tensor
    residual: Tensor
    steps: Tensor
    changes: Tensor
    depth: Tensor
    turn: Tensor
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
    check_every
        Every how many steps it is asked whether all lanes have ended. A GPU waits for the answer;
        lanes that ended keep what they have.
    compile
        Whether a step is compiled to one graph, once for each function, dtype and shape.
    regularization
        The weight of Tikhonov's term, relative to the differences' own size: for maps with noise
        (float32, dropout), 1e-8 to 1e-2.
    growth
        By how much an accelerated step may raise the residual's norm; ``inf`` by anything finite.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

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
    check_every: int = 1
    compile: bool = False
    monotone: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("fixed_point",)

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_stopping(self)
        check_count(self, "check_every", least=1)
        check_count(self, "window", least=1)
        check_number(self, "damping", above=0, most=1)
        check_number(self, "regularization", least=0)
        check_number(self, "growth", above=0)

    def init(self, problem: EquationProblem, z: Tensor) -> AndersonState:
        """Evaluate the residual at the start; remember nothing."""
        residual = problem.residual(z)
        memory = z.new_zeros(len(z), min(self.window, z.shape[-1]), z.shape[-1])
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return AndersonState(z, residual, memory, memory, flag, flag, self.norm(residual), flag)

    def step(self, problem: EquationProblem, state: AndersonState) -> AndersonState:
        """Mix the last steps so that their residuals cancel best."""
        window = state.steps.shape[1]
        turn = state.turn.amax()
        age = torch.arange(window, device=turn.device)
        newest_first = (turn - 1 - age) % window
        remembered = age < state.depth.unsqueeze(-1)
        weights = _least_squares(
            state.changes[:, newest_first], remembered, state.residual, self.regularization
        )[:, newest_first.argsort()].unsqueeze(-2)
        mixed = (weights @ state.steps - self.damping * (weights @ state.changes)).squeeze(-2)
        step = -self.damping * state.residual - mixed
        z = state.z + step
        residual = problem.residual(z)
        error = self.norm(residual)

        farthest = self.norm(self.damping * state.residual) / torch.finfo(z.dtype).eps ** 0.5
        better = (error <= self.growth * state.error) & (self.norm(step) <= farthest)
        accepted = (state.depth == 0) | better
        keep, place = accepted.unsqueeze(-1), (turn % window).reshape(1)
        # a step taken back may hold NaN, which no weight of zero would silence
        change = torch.where(keep, residual - state.residual, 0.0)
        step = torch.where(keep, step, 0.0)
        return AndersonState(
            torch.where(keep, z, state.z),
            torch.where(keep, residual, state.residual),
            state.steps.index_copy(1, place, step.unsqueeze(1)),
            state.changes.index_copy(1, place, change.unsqueeze(1)),
            torch.where(accepted, state.depth + 1, 0),
            state.turn + 1,
            torch.where(accepted, error, state.error),
            state.flag,
        )


def _least_squares(
    rows: Tensor, remembered: Tensor, target: Tensor, regularization: float
) -> Tensor:
    """Return the ``c (N, m)`` that minimize ``|target - c rows|``; rows that add nothing get 0.

    So do rows that a lane does not remember ``(N, m)``, whatever they hold.

    QR of the scaled rows; a diagonal entry below ``sqrt(eps)`` marks a row that nearly depends on
    newer ones.
    """
    size = torch.linalg.vector_norm(rows, dim=-1)
    used = remembered & (size > 0)
    matrix = torch.where(used.unsqueeze(-1), rows / size.unsqueeze(-1), 0.0).mT
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
    return torch.where(used, c / size, 0.0)
