"""A primal-dual interior-point method with an active-set polish, for many programs at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.qp.active_set import solve_on_active_set
from implicit_solvers.problems.qp.certificates import (
    least_violation,
    proves_infeasible,
    proves_unbounded,
)
from implicit_solvers.problems.qp.condensed import CondensedKKT, condense, solve_condensed
from implicit_solvers.problems.qp.interior_point_state import InteriorPointState
from implicit_solvers.problems.qp.kkt import times
from implicit_solvers.problems.qp.standard_form import Program, read_program, semidefinite

__all__ = ["InteriorPoint"]

_TO_THE_BOUNDARY = 0.995
_POLISH_BELOW = 1e-3
_POLISH_ROUNDS = 6
_POLISH_ATTEMPTS = 3
_STUCK = 7
_FAR = 1e-3


@dataclass(frozen=True)
class InteriorPoint(ims.EquationMethod):
    r"""Mehrotra's predictor-corrector method for convex quadratic programs, with a polish.

    Each step solves the linearized conditions ``s_i lambda_i = sigma mu`` for a direction, after
    one Cholesky factorization of ``Q + G^T diag(w) G + ...`` of ``n`` unknowns, and goes 99.5% of
    the way to the boundary. ``w_i`` is ``lambda_i / s_i``, but at most ``eps**-0.5`` in units of
    ``Q``; the equalities have that weight. When the complementarity ``mu = s^T lambda / m`` has
    fallen to a thousandth, the constraints with ``lambda_i > s_i`` are taken to be active and the
    equality-constrained program is solved, up to rounding; the new signs give the next guess
    (semismooth Newton on the natural residual). If six such steps do not end in a solution, or one
    of them does not halve the error, the lane goes back to where it was and on from there.

    Rows of ``G`` and ``A`` are scaled to length one. The error is the `kkt_residual` of the program
    so scaled, its parts divided by one plus the sizes (``norm``) of the terms that they are
    differences of.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm, compact, check_every, compile, autocast
        As in `EquationMethod`; ``max_steps`` counts factorizations. Steps cannot be compiled.
    polish
        Whether to solve on the active set, for a solution up to rounding. Without it, products
        ``s_i lambda_i`` are judged in the place of ``min(lambda_i, s_i)``.
    keep_factors
        Whether the last factorization is handed to the backward pass, for `CondensedKKT`.

    Raises
    ------
    TypeError, ValueError
        If a tolerance or the number of steps makes no sense; a TypeError also when a solve begins
        of another equation than that of `quadratic_program`.

    Notes
    -----
    A lane ends as INDEFINITE if ``Q`` is not positive semidefinite, as INFEASIBLE or UNBOUNDED if
    its iterates prove that, and as STALLED if no step makes progress.

    Source: Mehrotra, "On the implementation of a primal-dual interior point method" (1992); Nocedal
    and Wright, "Numerical Optimization", section 16.6; the weight of the corrector: Colombo and
    Gondzio, "Further development of multiple centrality correctors for interior point methods"
    (2008); bounded weights: Friedlander and Orban, "A primal-dual regularized interior-point method
    for convex quadratic programs" (2012); the polish: Hintermueller, Ito and Kunisch,
    "The primal-dual active set strategy as a semismooth Newton method" (2002).

    Examples
    --------
    >>> from implicit_solvers.problems.qp import quadratic_program
    >>> Q, p = torch.eye(2), torch.tensor([-2.0, 1.0])
    >>> solver = InteriorPoint(polish=False)
    >>> quadratic_program(Q, p, G=-torch.eye(2), h=torch.zeros(2), solver=solver).value.x
    tensor([2.0000e+00, ...])
    """

    max_steps: int = field(default=60, kw_only=True)
    polish: bool = True
    keep_factors: bool = True
    solves: ClassVar[tuple[str, ...]] = ("root",)
    traceable: ClassVar[bool] = False

    def examined(self, n: int) -> bool:
        """Tell that the solver judges for itself."""
        return False

    def factorization(self, n: int) -> CondensedKKT:
        """Return what solves with the factors of the last step."""
        return CondensedKKT()

    def init(self, problem: ims.EquationProblem, z: Tensor) -> InteriorPointState:
        """Start from the regularized least-squares point, moved inside."""
        program, m = read_program(problem, z)
        Q, p, R, c, penalty, _ = program
        convex = semidefinite(Q)
        flag = torch.where(convex, 0, int(ims.Status.INDEFINITE))
        if m:
            weights = penalty.clone()
            weights[:, :m] *= torch.finfo(z.dtype).eps ** 0.5
            L, _ = condense(Q, R, weights)
            x = solve_condensed(L, times(R.mT, weights * c) - p)
            y = weights * (times(R, x) - c)
            s = _inside((c - times(R, x))[:, :m])
            y = torch.cat([_inside(y[:, :m]), y[:, m:]], -1)
        else:
            x, y, s = torch.zeros_like(p), torch.zeros_like(c), c[:, :0]
            L, weights = torch.zeros_like(Q), penalty
        z = torch.cat([x, y], -1)
        slope, excess, error = self._evaluate(program, z, s)
        zero = torch.zeros_like(flag)
        return InteriorPointState(
            z / program.scale,
            error,
            error,
            1.0,
            flag,
            program,
            slope,
            excess,
            x,
            y,
            s,
            L,
            weights,
            torch.full_like(convex, m == 0),
            zero,
            zero,
            _POLISH_BELOW * _complementarity(s, y),
            zero,
            0,
            self.keep_factors,
        )

    def step(self, problem: ims.EquationProblem, state: InteriorPointState) -> InteriorPointState:
        """Factor once; polish the lanes that are, and move the others in the interior."""
        program = state.program
        p, R, penalty = program.p, program.R, program.penalty
        n, m, polished = p.shape[-1], state.s.shape[-1], state.polished
        some, every = bool(polished.any()), bool(polished.all())
        old_z = state.z * program.scale
        weights = penalty
        if m:
            # never above the penalties: where a row is all but an equality it is treated as one
            inner = 1 / (state.s / state.y[:, :m] + 1 / penalty[:, :m])
            if some:
                active = old_z[:, n : n + m] > -state.excess[:, :m]
                on_set = torch.where(active, penalty[:, :m], 0.0)
                inner = torch.where(polished.unsqueeze(-1), on_set, inner)
            weights = torch.cat([inner, penalty[:, m:]], -1) if R.shape[-2] > m else inner
        L, fit = condense(program.Q, R, weights)
        x, y, s, length = state.x, state.y, state.s, torch.ones_like(state.error)
        if not every:
            x, y, s, length = self._move(state, L, weights)
        if some and not every:
            x, y = _pick(polished, state.x, x), _pick(polished, state.y, y)
            s = _pick(polished, state.s, s)
        z, move = torch.cat([x, y], -1), None
        if some:
            start, move = solve_on_active_set(program, old_z, state.slope, state.excess, L, weights)
            z = _pick(polished, start + move, z)
        good = fit & torch.isfinite(z.sum(-1))
        stuck = torch.where(good & (length > 1e-6), 0, state.stuck + 1)
        if not bool(good.all()):
            z, x, y, s = (
                _pick(good, a, b) for a, b in ((z, old_z), (x, state.x), (y, state.y), (s, state.s))
            )
        if m and bool((stuck > 0).any()):
            again = (stuck > 0) & (stuck % 2 == 0) & ~polished
            y = _pick(again, _centered(s, y), y)
            z = _pick(again, torch.cat([x, y], -1), z)
        slope, excess, error = self._evaluate(program, z, s, polished, state.attempts)
        rounds = torch.where(polished, state.rounds + 1, 0)
        flag, threshold, attempts = state.flag, state.threshold, state.attempts
        late = state.steps + 1 == self.max_steps
        far = ((error > _FAR) & (error > 0.5 * state.error)) | (stuck >= _STUCK)
        if late or (state.steps >= 4 and bool(far.any())):
            flag = self._verdict(state, (x, y), move, stuck)
        mu = _complementarity(s, y)
        eps = torch.finfo(p.dtype).eps
        slow = (rounds > 1) & (error > 0.5 * state.error) & (error > eps**0.5)
        slow = slow | ((rounds >= _POLISH_ROUNDS) & (error > eps**0.75))
        back = polished & (slow | ~good)
        if m and bool(back.any()):
            z = _pick(back, torch.cat([x, y], -1), z)
            attempts = attempts + back
            threshold = torch.where(back, 1e-2 * mu, threshold)
            stuck = torch.where(back, 0, stuck)
            polished = polished & ~back
            slope, excess, error = self._evaluate(program, z, s, polished, attempts)
        estimate = error
        if self.polish and m:
            # which constraints are active, and so the derivative, is known on the active set alone
            known = polished | (attempts >= _POLISH_ATTEMPTS)
            estimate = torch.where(known, error, torch.inf)
            polished = polished | ((mu <= threshold) & ~back)
        return InteriorPointState(
            z / program.scale,
            error,
            estimate,
            1.0,
            flag,
            program,
            slope,
            excess,
            x,
            y,
            s,
            L,
            weights,
            polished,
            rounds,
            attempts,
            threshold,
            stuck,
            state.steps + 1,
            self.keep_factors,
        )

    def _evaluate(
        self,
        program: Program,
        z: Tensor,
        s: Tensor,
        polished: Tensor | None = None,
        attempts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``Q x + p + R^T y``, ``R x - c``, and the error that is judged."""
        Q, p, R, c, *_ = program
        n, m = p.shape[-1], s.shape[-1]
        x, y = z[:, :n], z[:, n:]
        parts = times(Q, x), times(R.mT, y), times(R, x)
        slope, excess = parts[0] + p + parts[1], parts[2] - c
        dual = 1 + ims.rms(torch.stack([parts[0], p, parts[1]], 1)).sum(-1, keepdim=True)
        primal = 1 + ims.rms(torch.stack([parts[2], c], 1)).sum(-1, keepdim=True)
        duals, over = y[:, :m], excess[:, :m]
        natural = torch.where(duals > -over, over, duals)
        rows = torch.cat([natural, excess[:, m:]], -1) / primal
        error = self.norm(torch.cat([slope / dual, rows], -1))
        given_up = not self.polish
        by_products = None
        if attempts is not None and not given_up:
            by_products = attempts >= _POLISH_ATTEMPTS
            if polished is not None:
                by_products = by_products & ~polished
            given_up = bool(by_products.any())
        if m and given_up:
            rows = torch.cat([excess[:, :m] + s, excess[:, m:]], -1) / primal
            products = s * duals / (primal * dual)
            other = self.norm(torch.cat([slope / dual, rows, products], -1))
            error = other if by_products is None else torch.where(by_products, other, error)
        return slope, excess, error

    def _move(
        self, state: InteriorPointState, L: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make a predictor-corrector step."""
        R, m = state.program.R, state.s.shape[-1]
        s, duals = state.s, state.y[:, :m]
        excess = torch.cat([state.excess[:, :m] + s, state.excess[:, m:]], -1)
        restoring, by_duals = weights * excess, weights[:, :m] / duals

        def direction(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Solve the conditions, linearized, for ``s dlambda + lambda ds = -products``."""
            lead = torch.cat([restoring[:, :m] - by_duals * products, restoring[:, m:]], -1)
            dx = -solve_condensed(L, times(R.mT, lead) + state.slope)
            dy = weights * times(R, dx) + lead
            return dx, dy, -(products + s * dy[:, :m]) / duals

        def reach(dy: Tensor, ds: Tensor) -> Tensor:
            """Return the longest step, up to one, that keeps ``s`` and the duals nonnegative."""
            most = torch.cat([dy[:, :m] / duals, ds / s], -1).amin(-1, keepdim=True)
            return 1 / (-most).clamp(min=1)

        _, dy, ds = direction(s * duals)
        mu = _complementarity(s, state.y).unsqueeze(-1)
        a = reach(dy, ds)
        mu_predicted = _complementarity(s + a * ds, state.y + a * dy).unsqueeze(-1)
        target = (mu_predicted / mu).pow(3) * mu
        # after a short predictor step the whole correction can make the iteration cycle
        dx, dy, ds = direction(s * duals + a * ds * dy[:, :m] - target)
        length = reach(dy, ds)
        a = _TO_THE_BOUNDARY * length
        return state.x + a * dx, state.y + a * dy, s + a * ds, length.squeeze(-1)

    def _verdict(
        self,
        state: InteriorPointState,
        iterate: tuple[Tensor, Tensor],
        move: Tensor | None,
        stuck: Tensor,
    ) -> Tensor:
        """Return the flags of lanes that have no solution or make no progress."""
        Q, p, R, c, *_ = state.program
        n, m, eps = p.shape[-1], state.s.shape[-1], torch.finfo(p.dtype).eps
        x, y = iterate
        # an iterate that runs off does so along a proof, which its last move shows more clearly
        dx, dy = x - state.x, y - state.y
        if move is not None:
            # so does that of the regularized system where the system itself has no solution
            dx, dy = _pick(state.polished, move[:, :n], dx), _pick(state.polished, move[:, n:], dy)

        def verdict(tol: float) -> Tensor:
            none = proves_infeasible(R, c, y, m, x, tol) | proves_infeasible(R, c, dy, m, x, tol)
            flag = torch.where(none, int(ims.Status.INFEASIBLE), 0)
            free = proves_unbounded(Q, p, R, x, m, y, tol)
            free = free | proves_unbounded(Q, p, R, dx, m, y, tol)
            return torch.where(free & ~none, int(ims.Status.UNBOUNDED), flag)

        flag = verdict(eps**0.5)
        ended = stuck >= _STUCK
        if state.steps + 1 == self.max_steps:
            ended = torch.ones_like(ended)
        if bool(ended.any()):
            late = verdict(eps**0.25)
            if bool(((late == 0) & ended).any()):
                least, proof = least_violation(R, c, m, x)
                none = proves_infeasible(R, c, proof, m, least, eps**0.5)
                late = torch.where((late == 0) & none, int(ims.Status.INFEASIBLE), late)
            late = torch.where((late == 0) & (stuck >= _STUCK), int(ims.Status.STALLED), late)
            flag = torch.where((flag == 0) & ended, late, flag)
        return torch.where(state.flag == 0, flag, state.flag)


def _inside(v: Tensor) -> Tensor:
    """Move ``v (N, m)`` until it is well positive."""
    low = -v.amin(-1, keepdim=True)
    size = ims.rms(v).unsqueeze(-1)
    size = torch.where(size > 0, size, 1.0)
    return torch.where(low < -0.01 * size, v, v + low + size)


def _complementarity(s: Tensor, y: Tensor) -> Tensor:
    """Return ``mu = s^T lambda / m``."""
    m = s.shape[-1]
    return (s * y[:, :m]).sum(-1) / max(m, 1)


def _centered(s: Tensor, y: Tensor) -> Tensor:
    """Raise multipliers until no product ``s_i lambda_i`` is below their mean."""
    m = s.shape[-1]
    floor = _complementarity(s, y).unsqueeze(-1) / s
    return torch.cat([y[:, :m].maximum(floor), y[:, m:]], -1)


def _pick(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Choose lanes."""
    return torch.where(condition.unsqueeze(-1), a, b)
