"""Proximal gradient steps, plain and accelerated, with a step that follows the curvature.

It knows no Jacobian.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import (
    Mask,
    along,
    both,
    divide,
    either,
    larger,
    no,
    pick,
    spread,
)
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.contraction import Rates, after_step
from implicit_solvers.solvers.descent import dot, times

__all__ = ["FISTA", "ProximalGradient"]

_GROWTH, _RETREAT, _NOISE, _FLATTEST, _SLOW = 1.1, 0.25, 1e3, 0.05, 0.99
_STABLE, _STEADY = 1.5, 1.0


class ProximalState(NamedTuple):
    """The state of `ProximalGradient`: an iterate, and where its next step leads.

    ``ahead`` is ``p(y - length grad f(y), length)`` at the ``point`` ``y``, where the gradient is
    ``slope``; it becomes the iterate ``z``, unless it is made ``again`` with a shorter step.
    ``count`` says how much momentum there is.
    """

    z: Tensor
    error: Any
    point: Tensor
    slope: Tensor
    ahead: Tensor
    length: Any
    count: Any
    again: Mask
    rates: Rates
    estimate: Any
    rounding: Any
    error_bound: Any


@dataclass(frozen=True)
class ProximalGradient(EquationMethod):
    """The proximal gradient method: ``z <- p(z - t grad f(z), t)``.

    The step ``t`` follows the curvature that successive gradients show, without a line search: it
    grows by a tenth at most, and where ``t`` times the curvature ``|dg|^2 / (dz . dg)`` is more
    than 1.5, or nothing is finite, the step is made again with a shorter one. (It counts.) A step
    over one minus its contraction estimates the error. Up to 512 unknowns the end is proposed where
    Newton's step, on what is held by then, will leave no more than the tolerance. Source: Beck and
    Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems", SIAM
    J. Imaging Sci. 2 (2009), section 3; steps: Malitsky and Mishchenko, "Adaptive Proximal Gradient
    Method for Convex Optimization" (2024).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def soft(v, step):
    ...     return v - v.clamp(-step, step)
    >>> b = torch.tensor([3.0, -0.5])
    >>> solver = ProximalGradient()
    >>> ims.minimize(lambda z: ((z - b) ** 2).sum() / 2, b, prox=soft, solver=solver).value
    tensor([2., 0.])
    """

    max_steps: int = field(default=10_000, kw_only=True)
    solves: ClassVar[tuple[str, ...]] = ("minimize with prox",)
    light: ClassVar[bool] = True

    def init(self, problem: EquationProblem, z: Tensor) -> ProximalState:
        """Evaluate at the start, with the step of the equation."""
        length = problem.number(problem.own[0].squeeze(-1))
        value, slope, ahead = self._evaluate(problem, z, length)
        error = problem.size(self.norm, ahead - z)
        error = pick(abs(value) < torch.inf, error, torch.nan)
        slow = 0 * error + _SLOW
        known = after_step(problem, self, z, error, slow, Rates(slow, slow))
        one: Any = 1.0
        again: Mask = False
        if not problem.branches:
            one, again = torch.ones_like(error), torch.zeros_like(error, dtype=torch.bool)
        return ProximalState(z, error, z, slope, ahead, length, one, again, *known)

    def onward(self, problem: EquationProblem, state: ProximalState) -> tuple[Tensor, Any]:
        """Return where the gradient is asked for next, and the count of steps with momentum."""
        return state.ahead, state.count

    def too_long(self, bend: Any) -> Mask:
        """Tell where a step, times the curvature that it met, is too long."""
        return bend > _STABLE

    def step(self, problem: EquationProblem, state: ProximalState) -> ProximalState:
        """Go ahead, or make a step again."""
        again, length = state.again, state.length
        y, count = self.onward(problem, state)
        y, z, count = pick(again, (state.point, state.z, state.count), (y, state.ahead, count))
        value, slope, ahead = self._evaluate(problem, y, length)
        move, turn = y - state.point, slope - state.slope
        sizes = problem.sizes(self.norm, y - ahead, move, turn, ahead - state.ahead, ahead - z)
        error, moved, turned, left, onward = sizes
        fine = both(both(abs(value) < torch.inf, error < torch.inf), turned < torch.inf)
        new = fine, no(again)
        z, point, slope, ahead, error, count = pick(
            fine,
            (z, y, slope, ahead, error, count),
            (state.z, state.point, state.slope, state.ahead, state.error, 1.0),
        )
        seen = both(both(*new), moved > _NOISE * torch.finfo(z.dtype).eps * problem.scale(self, z))
        bend = pick(seen, length * _curvature(problem, move, turn, moved, turned), 1.0)
        long = self.too_long(bend)
        grown = pick(bend > 1 / _GROWTH, larger(divide(1.0, bend), 1.0), _GROWTH)
        length = length * pick(fine, pick(long, divide(1.0, bend), grown), _RETREAT)
        again = either(long, no(fine))
        ratio = pick(both(*new), divide(left, moved), state.rates.mean)
        known = after_step(problem, self, z, larger(error, onward), ratio, state.rates)
        rates, estimate, rounding, bound = known
        if self.examined(z.shape[-1]):
            scale = problem.scale(self, z)
            estimate = pick(scale > 0, bound * divide(bound, scale), estimate)
        estimate = pick(again, torch.inf, estimate)
        return ProximalState(
            z, error, point, slope, ahead, length, count, again, rates, estimate, rounding, bound
        )

    def _evaluate(
        self, problem: EquationProblem, y: Tensor, length: Any
    ) -> tuple[Any, Tensor, Tensor]:
        """Return the objective, its gradient, and where the step leads."""
        step, (_, none), n = spread(length, y).unsqueeze(-1), problem.own, y.shape[-1]
        ahead, slope, value = problem.evaluate(y, step, none).split((n, n, 1), -1)
        return problem.number(value.squeeze(-1)), slope, ahead


class FISTA(ProximalGradient):
    """FISTA: the proximal gradient method with Nesterov's momentum, which begins anew in time.

    The gradient is asked for at ``y = z + b (z - z_before)``, with ``b`` as in the source; where
    the last step leads against the gradient step, ``b`` is zero, and the sequence begins anew. So
    convergence is linear, without knowledge of the curvature, once it is known what is held at the
    solution. The step is that of `ProximalGradient`, and made again where it is longer than one
    over the curvature. Source: Beck and Teboulle, "A Fast Iterative Shrinkage-Thresholding
    Algorithm for Linear Inverse Problems", SIAM J. Imaging Sci. 2 (2009), section 4; restart:
    O'Donoghue and Candes, "Adaptive Restart for Accelerated Gradient Schemes", Found. Comput. Math.
    15 (2015), section 3.2.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def soft(v, step):
    ...     return v - v.clamp(-step, step)
    >>> A, b = torch.tensor([[2.0, 1.0], [1.0, 1.0]]), torch.tensor([3.0, -0.5])
    >>> z0 = torch.zeros(2)
    >>> ims.minimize(lambda z: ((A @ z - b) ** 2).sum() / 2, z0, prox=soft, solver=FISTA()).value
    tensor([0.9000, 0.0000])
    """

    def onward(self, problem: EquationProblem, state: ProximalState) -> tuple[Tensor, Any]:
        """Go on beyond the iterate, by momentum that begins anew where it leads astray."""
        gone = state.ahead - state.z
        astray = dot(problem, state.point - state.ahead, gone) > 0
        count = pick(astray, 1.0, 0.5 + (0.25 + state.count**2) ** 0.5)
        share = pick(astray, 0.0, divide(state.count - 1, count))
        return along(state.ahead, share, gone), count

    def too_long(self, bend: Any) -> Mask:
        """Tell where a step, times the curvature that it met, is too long for momentum."""
        return bend > _STEADY


def _curvature(
    problem: EquationProblem, move: Tensor, turn: Tensor, moved: Any, turned: Any
) -> Any:
    """Return ``|dg|^2 / (dz . dg)``, and ``|dg| / |dz|`` where these are nearly orthogonal."""
    u = times(1.0 / pick(moved > 0, moved, 1.0), move)
    w = times(1.0 / pick(turned > 0, turned, 1.0), turn)
    uu, uw, ww = (dot(problem, a, b) for a, b in ((u, u), (u, w), (w, w)))
    plain = divide(ww, uu) ** 0.5
    steep = pick(uw > _FLATTEST * (uu * ww) ** 0.5, divide(ww, uw), plain)
    return divide(turned, moved) * steep
