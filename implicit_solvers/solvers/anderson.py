"""Anderson acceleration of a fixed-point iteration. It knows no Jacobian."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.hyperparameters import check_count, check_number
from implicit_solvers.problem import EquationProblem
from implicit_solvers.ranks import entries, norm, summed
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.contraction import Rates, after_step

__all__ = ["Anderson"]


class AndersonState(NamedTuple):
    """The state of `Anderson`: the last differences, of the plain steps' ends and of residuals.

    Both are divided by the norm of the difference of the residuals.

    Their places are filled in turn, by the ``turn``-th step the place ``turn`` modulo the window.
    ``depth`` counts the differences that a lane remembers; with none, its step is a plain one.
    """

    z: Tensor
    residual: Tensor
    ends: Tensor
    changes: Tensor
    depth: Tensor
    turn: Any
    error: Tensor
    rates: Rates
    estimate: Tensor
    rounding: Tensor
    error_bound: Tensor


@dataclass(frozen=True)
class Anderson(EquationMethod):
    """Anderson acceleration of ``z = g(z)``, type II.

    With ``f = z - g(z)`` and the last ``window`` differences ``dz``, ``df``: the weights ``c``
    minimize ``|f - df c|^2 + regularization sum_i |df_i|^2 c_i^2``, and ``z <- z - damping f - (dz
    - damping df) c``. They come from the normal equations of the differences, scaled to ``|df_i| =
    1``, with a ridge of a few rounding errors that grows with their age: of differences that depend
    on each other, the newest has most of the weight.

    Without a history a step is plain, ``z <- z - damping f``, and always accepted. Each problem is
    safeguarded on its own: an accelerated step is rejected if it raises the norm of the residual to
    more than ``growth`` times what it was, leads to NaN, or is ``eps**-0.5`` times as long as a
    plain one. Then the history is dropped, and the next step is plain. (A rejected step counts.)

    Source: Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal.
    49 (2011); regularized weights: Scieur, d'Aspremont and Bach, "Regularized nonlinear
    acceleration" (2016).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    window
        How many differences are remembered, at most ``n``.
    damping
        The weight of the residual in the step; 1 is undamped.
    regularization
        The weight of Tikhonov's term, relative to the differences' own size: for maps with noise
        (float32, dropout), 1e-8 to 1e-2.
    growth
        By how much an accelerated step may raise the residual's norm; ``inf`` by anything finite.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> sol = ims.fixed_point(torch.cos, torch.tensor(1.0), solver=Anderson())
    >>> sol.value
    tensor(0.7391)
    """

    max_steps: int = field(default=500, kw_only=True)
    window: int = 5
    damping: float = 1.0
    regularization: float = 0.0
    growth: float = 2.0
    solves: ClassVar[tuple[str, ...]] = ("fixed_point",)
    exportable: ClassVar[bool] = True
    spreads: ClassVar[bool] = True
    light: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "window", least=1)
        check_number(self, "damping", above=0, most=1)
        check_number(self, "regularization", least=0)
        check_number(self, "growth", above=0)

    def examined(self, n: int) -> bool:
        """Tell that no Jacobian is formed: the contraction says how far the solution is."""
        return False

    def init(self, problem: EquationProblem, z: Tensor) -> AndersonState:
        """Evaluate the residual at the start; remember nothing."""
        residual = problem.residual(z)
        memory = z.new_zeros(2, len(z), min(self.window, entries(z)), z.shape[-1])
        depth = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        turn = 0 if problem.branches else depth
        error = problem.norms(self.norm, residual)
        known = after_step(problem, self, z, error, 0.5, Rates.unknown(error))
        return AndersonState(z, residual, memory[0], memory[1], depth, turn, error, *known)

    def step(self, problem: EquationProblem, state: AndersonState) -> AndersonState:
        """Mix the last steps so that their residuals cancel best."""
        mixed = torch.bmm(self._weights(state).unsqueeze(1), state.ends).squeeze(1)
        step = torch.add(mixed, state.residual, alpha=self.damping)
        z = state.z - step
        residual = problem.residual(z)
        error = problem.norms(self.norm, residual)

        length = problem.norms(self.norm, step)
        farthest = self.damping * state.error / torch.finfo(z.dtype).eps ** 0.5
        better = (error <= self.growth * state.error) & (length <= farthest)
        accepted = (state.depth == 0) | better
        keep = accepted.unsqueeze(-1)
        error = torch.where(accepted, error, state.error)
        z = torch.where(keep, z, state.z)
        residual = torch.where(keep, residual, state.residual)
        change = residual - state.residual
        end = torch.sub(z - state.z, change, alpha=self.damping)
        ratio = torch.where(accepted, problem.norms(self.norm, end) / length, state.rates.mean)
        longest = torch.maximum(self.damping * error, length)
        known = after_step(problem, self, z, longest, ratio, state.rates)
        size = problem.norms(norm, change).unsqueeze(-1)
        scale = torch.where(size > torch.finfo(z.dtype).tiny, 1 / size, 0.0)
        ends, changes = _remember(state, end * scale, change * scale)
        return AndersonState(
            z,
            residual,
            ends,
            changes,
            torch.where(accepted, state.depth + 1, 0),
            state.turn + 1,
            error,
            *known,
        )

    def _weights(self, state: AndersonState) -> Tensor:
        """Return the ``c (N, m)`` that minimize ``|f - df c|``, of the differences as stored."""
        changes, f = state.changes, state.residual
        m = changes.shape[1]
        age = (_latest(state) - 1 - torch.arange(m, device=f.device)) % m
        remembered = age < state.depth.unsqueeze(-1)
        both = remembered.unsqueeze(-1) & remembered.unsqueeze(-2)
        eps = torch.finfo(f.dtype).eps
        ridge = (4 * m * eps * 10.0 ** age.to(f.dtype)).clamp(max=eps ** (2 / 3))
        diagonal = torch.where(remembered, self.regularization + ridge, 1.0).to(f.dtype)
        gram = torch.where(both, summed(torch.bmm(changes, changes.mT)), 0.0) + torch.diag_embed(
            diagonal
        )
        rhs = torch.where(remembered, summed(torch.bmm(changes, f.unsqueeze(-1))).squeeze(-1), 0.0)
        factor, info = torch.linalg.cholesky_ex(gram)
        c = torch.cholesky_solve(rhs.unsqueeze(-1), factor).squeeze(-1)
        return torch.where((info == 0).unsqueeze(-1), c, 0.0)


def _latest(state: AndersonState) -> Any:
    """Return the turn, which all lanes share."""
    return state.turn.amax() if isinstance(state.turn, Tensor) else state.turn


def _remember(state: AndersonState, end: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Put the differences in the place of the oldest ones."""
    ends, changes = state.ends, state.changes
    place = _latest(state) % ends.shape[1]
    if compiling():
        place = place.reshape(1)
        return (
            ends.index_copy(1, place, end.unsqueeze(1)),
            changes.index_copy(1, place, change.unsqueeze(1)),
        )
    # the state before is not looked at again, but for its iterate
    ends.select(1, place).copy_(end)
    changes.select(1, place).copy_(change)
    return ends, changes
