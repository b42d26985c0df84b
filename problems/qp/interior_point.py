"""A primal-dual interior-point method with an active-set polish, for many programs at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.qp.active_set import (
    choose,
    depends,
    nothing,
    solve_on_active_set,
)
from implicit_solvers.problems.qp.certificates import (
    least_violation,
    proves_infeasible,
    proves_unbounded,
)
from implicit_solvers.problems.qp.condensed import (
    CondensedKKT,
    condense,
    leaves_free,
    solve_condensed,
)
from implicit_solvers.problems.qp.interior_point_state import InteriorPointState
from implicit_solvers.problems.qp.kkt import times
from implicit_solvers.problems.qp.standard_form import (
    Program,
    largest,
    read_program,
    semidefinite,
)

__all__ = ["InteriorPoint"]

_TO_THE_BOUNDARY = 0.995
_POLISH_BELOW = 1e-3
_POLISH_ROUNDS = 10
_CHOICES = 3
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
    (semismooth Newton on the natural residual). If that does not end in a solution, or a step of it
    does not halve the error, the problem goes on from where it was before. A problem ends only with
    an active set that its own solution confirms, of linearly independent rows.

    Rows, right-hand sides and costs are scaled to about one, by powers of two, in each problem. The
    error is the `kkt_residual` of the program so scaled, its parts divided by one plus the sizes of
    the terms that they are differences of.

    With ``start`` of `quadratic_program`, a problem begins with the active set of the start.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`; ``max_steps`` counts factorizations. Steps cannot be compiled.

    Raises
    ------
    TypeError, ValueError
        If a tolerance or the number of steps is invalid; a TypeError also when a solve begins
        of another equation than that of `quadratic_program`.

    Notes
    -----
    A problem ends as INDEFINITE if ``Q`` is not positive semidefinite, as INFEASIBLE or UNBOUNDED
    if its iterates prove that, and as STALLED if no step makes progress.

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
    >>> solver = InteriorPoint(max_steps=20)
    >>> solution = quadratic_program(Q, p, G=-torch.eye(2), h=torch.zeros(2), solver=solver)
    >>> solution.value.inequality_duals
    tensor([0., 1.])
    """

    max_steps: int = field(default=60, kw_only=True)
    solves: ClassVar[tuple[str, ...]] = ("root",)
    traceable: ClassVar[bool] = False

    def examined(self, n: int) -> bool:
        """Tell that the solver judges for itself."""
        return False

    def factorization(self, n: int) -> CondensedKKT:
        """Return what solves with the factors of the last step."""
        return CondensedKKT()

    def init(self, problem: ims.EquationProblem, z: Tensor) -> InteriorPointState:
        """Start from the regularized least-squares point, moved inside, or on an active set."""
        program, m = read_program(problem, z)
        w = z * program.scale
        warm = (w != 0).any(-1) if m else torch.ones_like(z[:, 0], dtype=torch.bool)
        convex = semidefinite(program.Q)
        inner = torch.cat([w, program.c[:, :m]], -1) * 0
        if not bool(warm.all()):
            inner = _interior_start(program, m)
            w = _pick(warm, w, inner[:, : w.shape[-1]])
        slope, excess, active, error = self._evaluate(program, w, m)
        flag, mu = (
            torch.where(convex, 0, int(ims.Status.INDEFINITE)),
            _complementarity(program, inner),
        )
        never = ((program.c < 0) & (program.R == 0).all(-1))[:, :m].any(-1)
        return InteriorPointState(
            z=w / program.scale,
            error=error,
            estimate=torch.full_like(error, torch.inf),
            unit=1.0,
            flag=torch.where(never, int(ims.Status.INFEASIBLE), flag),
            program=program,
            w=w,
            slope=slope,
            excess=excess,
            active=active,
            inner=inner,
            mu=mu,
            factors=(program.Q, program.weights, *program.factors),
            polished=warm,
            decided=torch.zeros_like(warm),
            rounds=torch.zeros_like(flag),
            threshold=_POLISH_BELOW * mu,
            stuck=torch.zeros_like(flag),
            steps=0,
        )

    def step(self, problem: ims.EquationProblem, state: InteriorPointState) -> InteriorPointState:
        """Factor once; polish the lanes that are, and move the others in the interior."""
        program, polished, old = state.program, state.polished, state.w
        Q, R, size, m = program.Q, program.R, old.shape[-1], state.active.shape[-1]
        n = program.p.shape[-1]
        some, every, eps = bool(polished.any()), bool(polished.all()), torch.finfo(old.dtype).eps
        weights, inner, length = self._weights(state, some, every), state.inner, None
        L, fit = condense(Q, R, weights)
        if not every:
            inner, length = self._move(state, L, weights)
            inner = _pick(polished, state.inner, inner) if some else inner
        w, move, none = inner[:, :size], None, torch.zeros_like(polished)
        if some:
            # a set of rows that depend on one another is a choice to make, and nothing to solve on
            odd = polished & (state.rounds < _CHOICES) & depends(L, R, weights, m)
            idle = torch.zeros_like(state.active)
            other, rows = choose(program, old, state.active, idle, idle, odd)
            chosen, thin = (rows != state.active).any(-1), leaves_free(L, Q)
            given = old, state.slope, state.excess
            start, move = solve_on_active_set(program, *given, L, weights, thin)
            w = _pick(polished, _pick(chosen, other, start + move), w)
        good = fit & torch.isfinite(w.sum(-1))
        moves = good if length is None else good & (length > 1e-6)
        stuck = torch.where(moves, 0, state.stuck + 1)
        if not bool(moves.all()):
            w, inner = _pick(good, w, old), _pick(good, inner, state.inner)
            again = (stuck > 0) & (stuck % 2 == 0) & ~polished
            # multipliers are raised until no product is below the mean
            duals, s = _pairs(program, inner)
            raised = duals.maximum(_complementarity(program, inner).unsqueeze(-1) / s)
            centered = torch.cat([inner[:, :n], raised, inner[:, n + m :]], -1)
            inner = _pick(again, centered, inner)
            w = _pick(again, inner[:, :size], w)
        mu = state.mu if every else _complementarity(program, inner)
        flag, decided, rounds, threshold = state.flag, state.decided, state.rounds, state.threshold
        held = state.active & polished.unsqueeze(-1) if some and m else None
        slope, excess, active, error = self._evaluate(program, w, m, held)
        settled = back = none
        if some:
            settled = polished & (active == state.active).all(-1) & ~chosen & (error <= eps**0.5)
            active = _pick(chosen, rows, active)
            if m and bool((new := settled & ~decided).any()):
                w, slope, active = self._confirm(program, w, slope, excess, active, new, thin)
                decided = decided | (active != state.active).any(-1) & new
            active = _pick(flag < 0, state.active, active)  # of lanes that have ended
            settled = settled & (active == state.active).all(-1)
            # what is active says so
            held = w[:, n : n + m]
            held = torch.where(active & settled.unsqueeze(-1), held.clamp(min=eps**2), held)
            w = torch.cat([w[:, :n], held, w[:, n + m :]], -1)
            # (a choice of rows before the first round is none)
            rounds = torch.where(polished, rounds + ~(chosen & (rounds == 0)), 0)
            slow = (rounds > 1) & (error > 0.5 * state.error) & (error > eps**0.75)
            back = polished & (slow | ~good | (~settled & (rounds >= _POLISH_ROUNDS)))
        estimate = torch.where(settled, error, torch.inf)
        late = state.steps + 1 == self.max_steps
        if late or (state.steps >= 4 and bool(_fails(error, state.error, stuck).any())):
            flag = self._verdict(state, inner[:, :size], move, stuck)
        if some and m and bool(back.any()):
            cold = back & (inner == 0).all(-1)
            if bool(cold.any()):
                inner = _pick(cold, _interior_start(program, m), inner)
                mu = _complementarity(program, inner)
            w = _pick(back, inner[:, :size], w)
            less = torch.where(cold, _POLISH_BELOW * mu, 1e-2 * mu)
            threshold, stuck = torch.where(back, less, threshold), torch.where(back, 0, stuck)
            polished = polished & ~back
            slope, excess, active, error = self._evaluate(program, w, m)
        if m and not (every and polished is state.polished):
            polished = polished | ((mu <= threshold) & ~back)
        return state._replace(
            z=w / program.scale,
            error=error,
            estimate=estimate,
            flag=flag,
            w=w,
            slope=slope,
            excess=excess,
            active=active,
            inner=inner,
            mu=mu,
            factors=(L, weights, *program.factors),
            polished=polished,
            decided=decided,
            rounds=rounds,
            threshold=threshold,
            stuck=stuck,
            steps=state.steps + 1,
        )

    def _weights(self, state: InteriorPointState, some: bool, every: bool) -> Tensor:
        """Return the rows' weights: those of the active set, or of the interior."""
        program, m = state.program, state.active.shape[-1]
        weights, penalty = program.weights, program.penalty
        if some:
            on_set = torch.where(state.active, weights[:, :m], 0.0)
            weights = torch.cat([on_set, weights[:, m:]], -1)
        if not every:
            # never above the penalties: where a row is all but an equality it is treated as one
            duals, s = _pairs(program, state.inner)
            moving = 1 / (s / duals + 1 / penalty[:, :m])
            moving = torch.cat([moving, penalty[:, m:]], -1)
            weights = _pick(state.polished, weights, moving) if some else moving
        return weights

    def _evaluate(
        self, program: Program, w: Tensor, m: int, held: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``Q x + p + R^T y``, ``R x - c``, the active rows, and the error that is judged.

        Multipliers of rows that are ``held`` may be nothing, and slack of others.
        """
        _, p, R, c, *_ = program
        x, y = w.split([p.shape[-1], c.shape[-1]], -1)
        Qx, Rx = times(program.both, x).split([x.shape[-1], y.shape[-1]], -1)
        Ry = times(R.mT, y)
        slope, excess = Qx + p + Ry, Rx - c
        dual = 1 + largest(Qx) + largest(Ry)
        primal = program.reach_at(x)
        duals, over = y[:, :m], excess[:, :m]
        eps = torch.finfo(w.dtype).eps ** 0.75
        active = duals > -torch.where(over.abs() <= eps * primal[:, :m], 0.0, over)
        if held is not None:
            active = active | (held & (duals.abs() <= nothing(y)))
        rows = torch.cat([torch.where(active, over, duals), excess[:, m:]], -1) / primal
        return slope, excess, active, self.norm(torch.cat([slope / dual, rows], -1))

    def _move(self, state: InteriorPointState, L: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Make a predictor-corrector step; return also the longest that stays inside."""
        program, R, m = state.program, state.program.R, state.active.shape[-1]
        duals, s = _pairs(program, state.inner)
        excess = torch.cat([state.excess[:, :m] + s, state.excess[:, m:]], -1)
        restoring, by_duals = weights * excess, weights[:, :m] / duals

        def direction(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Solve the conditions, linearized, for ``s dlambda + lambda ds = -products``.

            The third is the step that keeps ``s`` and the duals nonnegative, up to one.
            """
            lead = torch.cat([restoring[:, :m] - by_duals * products, restoring[:, m:]], -1)
            dx = -solve_condensed(L, times(R.mT, lead) + state.slope)
            dy = weights * times(R, dx) + lead
            ds = -(products + s * dy[:, :m]) / duals
            most = torch.cat([dy[:, :m] / duals, ds / s], -1).amin(-1, keepdim=True)
            return torch.cat([dx, dy, ds], -1), ds * dy[:, :m], 1 / (-most).clamp(min=1)

        d, second, a = direction(s * duals)
        mu = state.mu.unsqueeze(-1)
        target = (_complementarity(program, state.inner + a * d).unsqueeze(-1) / mu).pow(3) * mu
        # after a short predictor step the whole correction can make the iteration cycle
        d, _, length = direction(s * duals + a * second - target)
        return state.inner + _TO_THE_BOUNDARY * length * d, length.squeeze(-1)

    def _confirm(
        self,
        program: Program,
        w: Tensor,
        slope: Tensor,
        excess: Tensor,
        active: Tensor,
        settled: Tensor,
        thin: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decide about rows without slack whose multiplier is nothing, where lanes have settled.

        They are active only where the minimizer would not be the only one without them.
        """
        n, m, eps = program.p.shape[-1], active.shape[-1], torch.finfo(w.dtype).eps
        x, y = w[:, :n], w[:, n:]
        near = excess[:, :m].abs() <= eps**0.75 * program.reach_at(x)[:, :m]
        weak = near & (y[:, :m] <= nothing(y))
        odd = settled & (weak & (active | thin.unsqueeze(-1))).any(-1)
        w, active = choose(program, w, active, weak, near, odd)
        return w, slope + times(program.R.mT, w[:, n:] - y), active

    def _verdict(
        self, state: InteriorPointState, iterate: Tensor, move: Tensor | None, stuck: Tensor
    ) -> Tensor:
        """Return the flags of lanes that have no solution or make no progress."""
        Q, p, R, c, *_ = state.program
        n, m, eps = p.shape[-1], state.active.shape[-1], torch.finfo(p.dtype).eps
        # an iterate that runs off does so along a proof, which its last move shows more clearly
        d = iterate - state.inner[:, : iterate.shape[-1]]
        if move is not None:
            # so does that of the regularized system where the system itself has no solution
            d = _pick(state.polished, move, d)
        x, y, dx, dy = iterate[:, :n], iterate[:, n:], d[:, :n], d[:, n:]

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


def _interior_start(program: Program, m: int) -> Tensor:
    """Return the least-squares point whose constraints hold by penalties, moved inside.

    Right-hand sides larger than one are left aside as if they were one.
    """
    Q, p, R, c, penalty, *_ = program
    near = torch.cat([c[:, :m].clamp(max=1), c[:, m:]], -1)
    weights = penalty.clone()
    weights[:, :m] *= torch.finfo(c.dtype).eps ** 0.5
    L, _ = condense(Q, R, weights)
    x = solve_condensed(L, times(R.mT, weights * near) - p)
    excess = times(R, x) - near
    y, close = weights * excess, _inside(-excess[:, :m])
    s = close + (c - near)[:, :m]
    return torch.cat([x, _inside(y[:, :m]) * (close / s), y[:, m:], s], -1)


def _inside(v: Tensor) -> Tensor:
    """Move ``v (N, m)`` until it is well positive."""
    low = -v.amin(-1, keepdim=True)
    size = ims.rms(v).unsqueeze(-1)
    size = torch.where(size > 0, size, 1.0)
    return torch.where(low < -0.01 * size, v, v + low + size)


def _fails(error: Tensor, before: Tensor, stuck: Tensor) -> Tensor:
    """Tell which lanes make so little progress that there may be no solution."""
    return ((error > _FAR) & (error > 0.5 * before)) | (stuck >= _STUCK)


def _pairs(program: Program, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Return the multipliers of inequalities and their slack."""
    n, rows = program.p.shape[-1], program.c.shape[-1]
    m = inner.shape[-1] - n - rows
    return inner[:, n : n + m], inner[:, n + rows :]


def _complementarity(program: Program, inner: Tensor) -> Tensor:
    """Return ``mu = s^T lambda / m``."""
    duals, s = _pairs(program, inner)
    return (s * duals).sum(-1) / max(s.shape[-1], 1)


def _pick(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Choose lanes."""
    return torch.where(condition.unsqueeze(-1), a, b)
