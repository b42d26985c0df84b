"""An interior-point method with a filter, for minima under constraints.

It knows constraints as `barrier` puts them, not as they are given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit_solvers.agreement import pick
from implicit_solvers.constrained_equation import bordered
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.barrier import (
    Gaps,
    Inside,
    Units,
    barrier,
    error_of,
    evaluate,
    gaps_of,
    lagrangian,
    least_squares_multipliers,
    moved_inside,
    push_of,
    rounding,
    slopes_of,
    step_inside,
    units_of,
    with_bounds,
)
from implicit_solvers.solvers.filter_state import (
    ACTIVE,
    INSIDE,
    RESTORING,
    Active,
    Direction,
    FilterState,
    Guess,
    Here,
    Search,
    Trial,
    Verdict,
)
from implicit_solvers.solvers.renewal import renew

__all__ = ["FilterInteriorPoint"]


# mu at the start; the error, in mu, at which its problem is solved; how it falls then, and the
# least that it falls to, in sqrt(eps)
_MU, _ENOUGH, _SHRINK, _POWER, _LEAST_MU = 0.1, 10.0, 0.2, 1.5, 1e-3
# the most violation, in units of the start's; of this, what is small enough for the objective to
# have to fall, if a power of its slope is larger than one of the violation; and the fall it needs
_MOST, _SMALL, _SLOPE_POWER, _VIOLATION_POWER, _FALL = 1e4, 1e-8, 2.3, 1.1, 1e-6
# a trial is better by this part of the violation; so many pairs are in the filter
_MARGIN, _KEPT = 1e-5, 10
# how often steps are halved, and how many searches may be in vain
_HALVINGS, _IN_VAIN = 25, 4
# restoration: the fall of its merit, the violation at its end, its first and its last damping
_MERIT_FALL, _RESTORED, _FIRST_DAMPING, _MOST_DAMPING = 1e-4, 0.1, 1e-4, 1e15
# the least curvature in the place of a negative one; how far a step goes there, in sizes
_BENT, _REACH = 0.1, 10
# multipliers: the largest at the start and after restoration, and beside those by least squares
_MOST_MULTIPLIER, _MOST_TIMES = 1e3, 3
# unknowns that have run away, and how much of them may be violation
_FAR, _FEASIBLE = 1e8, 1e-6
# the error that leads to the active set, its fall after failures, and rounds: all, and of changes
_READY, _LATER, _ROUNDS, _CHANGING = 1e-4, 0.03, 60, 6
# Newton's steps: their contraction, the size of the first, and that which rounding may explain
_CONTRACTS, _FIRST, _NEAR = 0.8, 1e-2, 1e-4


@dataclass(frozen=True)
class FilterInteriorPoint(EquationMethod):
    """A primal-dual interior-point method, with a filter line search and a finish by Newton.

    Inequalities get slacks; slacks and bounds a logarithmic barrier, whose weight falls as the
    barrier problem is solved. Each step solves the linearized conditions, with a Hessian whose
    curvature is made positive along the constraints; a trial is accepted if it reduces the
    violation or the barrier function and no pair that was met before beats it, after a second-order
    correction or by half of its length. Where steps become tiny, the violation alone is reduced.
    When the error has fallen to ``1e-4``, the constraints whose multiplier is larger than their
    slack are taken to be active, and Newton's method goes on with these; if it does not contract,
    the problem goes back inside.

    Objective and constraints are scaled by their gradients at the start.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`; errors are those of the unknown, not of its multipliers.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Notes
    -----
    A problem ends as INFEASIBLE at a point where the violation is least and not zero (a local
    proof, where constraints are not convex), and as UNBOUNDED where feasible iterates run away
    while the objective falls.

    Source: Wächter and Biegler, "On the implementation of an interior-point filter line-search
    algorithm for large-scale nonlinear programming", Math. Program. 106 (2006).

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> sol = ims.minimize(
    ...     lambda z: (z[0] - 2) ** 2 + z[1] ** 2,
    ...     torch.zeros(2),
    ...     inequalities=lambda z: z.square().sum() - 1,
    ...     solver=FilterInteriorPoint(max_steps=50),
    ... )
    >>> sol.value
    tensor([1., 0.])
    """

    max_steps: int = field(default=300, kw_only=True)
    solves: ClassVar[tuple[str, ...]] = ("minimize with constraints",)
    monotone: ClassVar[bool] = True

    def examined(self, n: int) -> bool:
        """Tell that the Jacobian is factored where a solve ends, as in the steps."""
        return True

    def init(self, problem: EquationProblem, z: Tensor) -> FilterState:
        """Start a little inside of the bounds, with multipliers by least squares.

        One step on the active set that ``z`` suggests is tried first, from ``z`` itself.
        """
        units = units_of(problem, z)
        n = z.shape[-1] - units.c.shape[-1]
        x, y = z[:, :n] / units.z, z[:, n:] * units.c / units.f
        x = torch.clamp(x, units.lo[:, :n], units.hi[:, :n])
        active = _suggested(problem, units, x, y)
        inside = _first_inside(problem, units, x)
        violation = (inside.c - inside.w[:, n:]).abs().sum(-1)
        units = units._replace(most=_MOST * violation.clamp(min=1.0))
        zero, none, far = torch.zeros_like(violation), active.rounds, active.size
        no = zero > 1
        pairs = torch.full((len(z), _KEPT, 2), torch.inf, dtype=z.dtype, device=z.device)
        ready, left = zero + max(_READY, rounding(z) ** 0.5), torch.zeros_like(inside.c)
        search = Search(zero + _MU, pairs, none, no, left, zero, none, far, ready)
        flag = torch.as_tensor(problem.flags(), device=z.device).expand(len(z))
        unknown = ~(inside.f.abs() + violation < torch.inf)
        flag = torch.where(unknown & (flag == 0), int(Status.NONFINITE), flag)
        error = torch.where(unknown, torch.nan, zero + 1)
        return FilterState(z, error, far, flag, ~no, none + ACTIVE, units, inside, search, active)

    def step(self, problem: EquationProblem, state: FilterState) -> FilterState:
        """Make a trial in every lane: a step of the barrier, of restoration, or of Newton.

        Marks are the steps of the source's algorithm A.
        """
        here = _linearized(problem, state)
        error = _error(state, here, 0.0)
        now = state._replace(search=_eased(state, here))
        guess = _guessed(now, here, error)
        now = now._replace(
            phase=torch.where(guess.enters, ACTIVE, now.phase),
            active=pick(guess.enters, guess.start, now.active),
        )
        step = _direction(now, here, guess)
        trial = _tried(problem, now, here, step)
        verdict = _judged(now, here, step, trial)
        moved = pick(verdict.good, _accepted(now, here, step, trial), now.inside)
        now = now._replace(search=_searched(now, here, step, trial, verdict))
        now, lost, given_up = _in_vain(now, trial, verdict.good)
        new = _restored(now, moved, trial, lost, verdict.good)
        runs = _runs_away(now, new, verdict.good)
        new, estimate, hopeless = _on_active_set(new, guess, step, trial)
        flag = state.flag
        for ends, status in (
            (_infeasible(state, here, error), Status.INFEASIBLE),
            (given_up | hopeless, Status.STALLED),
            (runs, Status.UNBOUNDED),
        ):
            flag = torch.where(ends & (flag == 0), int(status), flag)
        size, at = step.newton.size, new.on_set | hopeless
        new = new._replace(
            z=_unknowns(problem, new, at),
            error=torch.where(new.on_set, torch.where(size < torch.inf, size, 1.0), error),
            estimate=estimate * new.units.z.amax(-1),
            flag=flag,
            accepted=verdict.good | at,
        )
        return pick(state.flag == 0, new, state._replace(accepted=verdict.good))


def _suggested(problem: EquationProblem, units: Units, x: Tensor, y: Tensor) -> Active:
    """Return the start on the active set that a point and multipliers suggest."""
    _, rows = evaluate(problem, units, x)
    slope = slopes_of(problem, units, x, y)
    side = _sides(units, torch.cat([x, rows], -1), lagrangian(slope, y), y)
    zero = torch.zeros_like(x[:, 0])
    return Active(x, y, rows, side, zero + torch.inf, torch.zeros_like(zero, dtype=torch.int64))


def _first_inside(problem: EquationProblem, units: Units, x: Tensor) -> Inside:
    """Return the start between the bounds, with multipliers by least squares if they are small."""
    sizes = x.shape[-1], units.c.shape[-1]
    lo, hi = units.lo.split(sizes, -1), units.hi.split(sizes, -1)
    x = moved_inside(x, lo[0], hi[0])
    f, rows = evaluate(problem, units, x)
    w = torch.cat([x, moved_inside(rows, lo[1], hi[1])], -1)
    low, high = units.low.to(x.dtype), units.high.to(x.dtype)
    slopes = slopes_of(problem, units, x, torch.zeros_like(rows))
    y = least_squares_multipliers(slopes, units, high - low)
    y = torch.where(y.abs().amax(-1, keepdim=True) < _MOST_MULTIPLIER, y, 0.0)
    return Inside(w, y, low, high, f, rows)


def _linearized(problem: EquationProblem, state: FilterState) -> Here:
    """Return the conditions of each lane's phase, of one evaluation."""
    units, inside, active, restoring = state.units, state.inside, state.active, state.restoring
    x = pick(state.on_set, active.z, inside.w[:, : state.n])
    y = pick(state.on_set, active.y, inside.y)
    slopes, gaps = slopes_of(problem, units, x, y), gaps_of(units, inside)
    gradient = lagrangian(slopes, y)
    violation = inside.c - inside.w[:, state.n :]
    y = pick(restoring, violation, inside.y)
    slopes = slopes._replace(g=pick(restoring, torch.zeros_like(slopes.g), slopes.g))
    dual = torch.where(units.fixed, 0.0, torch.cat([lagrangian(slopes, y), -y], -1))
    worst = violation.abs().amax(-1)
    soft = torch.where(units.fixed, 0.0, 1 / gaps.sigma.clamp(min=1e-20))[:, state.n :]
    return Here(slopes, gaps, gradient, violation, worst, y, dual, soft)


def _error(state: FilterState, here: Here, mu: Tensor | float) -> Tensor:
    """Return how far the conditions of the barrier's problem are from being met."""
    error = error_of(state.inside, here.gaps, state.units, here.dual, here.y, mu)
    return torch.where(state.restoring, error, torch.maximum(error, here.worst))


def _eased(state: FilterState, here: Here) -> Search:
    """Return the search; where the barrier's problem is solved, with less ``mu`` and no filter."""
    search, eps = state.search, rounding(state.z)
    mu, pairs = search.mu, search.filter
    for _ in range(2):
        solved = _error(state, here, mu.unsqueeze(-1)) <= _ENOUGH * mu
        solved = solved & (search.tries == 0) & ~state.on_set
        lower = torch.minimum(_SHRINK * mu, mu**_POWER).clamp(min=_LEAST_MU * eps**0.5)
        mu = torch.where(solved, lower, mu)
        pairs = pick(solved, torch.full_like(pairs, torch.inf), pairs)
    return search._replace(mu=mu, filter=pairs)


def _infeasible(state: FilterState, here: Here, error: Tensor) -> Tensor:
    """Tell where the violation is stationary, and is not zero."""
    stationary = state.restoring & (state.search.tries == 0) & (error <= 1e-4 * here.worst)
    return stationary & (here.worst > rounding(error) ** 0.4)


def _guessed(state: FilterState, here: Here, error: Tensor) -> Guess:
    """Return the active set: the next one, or where the error is small enough, the first."""
    units, inside, active, search = state.units, state.inside, state.active, state.search
    enters = state.walking & (search.tries == 0) & (error <= search.ready)
    strong, far = _strong(units, inside, here.gaps), torch.full_like(error, torch.inf)
    none = torch.zeros_like(active.rounds)
    start = Active(inside.w[:, : state.n], inside.y, inside.c, strong, far, none)
    side = _sides(units, torch.cat([active.z, active.c], -1), here.gradient, active.y)
    side = pick(enters, strong, side)
    bound = torch.where(side == 1, units.hi, torch.where(side == 0, 0.0, units.lo))
    return Guess(start, side, bound, (side == active.side).all(-1) & ~enters, enters)


def _strong(units: Units, inside: Inside, gaps: Gaps) -> Tensor:
    """Return the active set of a point inside: where multipliers are larger than gaps."""
    high = units.high & (inside.high > gaps.high)
    return _set(units, units.low & (inside.low > gaps.low), high)


def _sides(units: Units, w: Tensor, slope: Tensor, y: Tensor) -> Tensor:
    """Return the active set by the signs of multipliers and gaps, the larger of them."""
    y = torch.cat([-slope, y], -1)
    high = units.high & (y + (w - units.hi) > 0)
    return _set(units, units.low & (y + (w - units.lo) < 0), high)


def _set(units: Units, low: Tensor, high: Tensor) -> Tensor:
    side = high.to(torch.int64) - (low & ~high).to(torch.int64)
    return torch.where(units.fixed, 2, side)


def _direction(state: FilterState, here: Here, guess: Guess) -> Direction:
    """Return the step of each lane's phase, by one factorization for all."""
    units, active, mu, n = state.units, state.active, state.search.mu, state.n
    push = push_of(here.gaps, units, mu)
    off = torch.where(units.fixed, 0.0, here.dual + push)
    W, t, give, free, bent = _convex(state, here, guess)
    system = _system(state, here, W, t * free.to(t.dtype), give, off)
    solution = _solved(*pick(state.on_set, _newton(here, active, guess, t), system))
    dx, dy = solution[:, :n] * t, solution[:, n:]
    ds = here.soft * (dy - off[:, n:])
    step = step_inside(units, state.inside, here.gaps, mu, dx, dy, ds)
    x = torch.where(guess.side[:, :n] != 0, guess.bound[:, :n], active.z + dx)
    y = torch.where(guess.side[:, n:] != 0, active.y + dy, 0.0)
    size = dy.abs().amax(-1) / active.y.abs().amax(-1).clamp(min=1.0)
    size = torch.maximum(dx.abs().amax(-1), size)
    newer = Active(x, y, active.c, guess.side, size, active.rounds + 1)
    return Direction(step, push, newer, bent)


def _convex(state: FilterState, here: Here, guess: Guess) -> tuple[Tensor, ...]:
    """Return the Hessian, scaled; the scales; how rows give way; who is free; and who was bent.

    But on the active set its curvature along the constraints is made positive.
    """
    on_set, restoring, n = state.on_set, state.restoring, state.n
    free = ~pick(on_set, guess.side != 0, state.units.fixed)[:, :n]
    sigma = pick(on_set, torch.zeros_like(here.gaps.sigma), here.gaps.sigma)
    damping = torch.where(on_set, 0.0, state.search.damping)
    W = pick(restoring, torch.zeros_like(here.slopes.H), here.slopes.H)
    W = W + torch.diag_embed(sigma[:, :n] + torch.where(restoring, damping, 0.0).unsqueeze(-1))
    hard = torch.zeros_like(here.soft).masked_fill(guess.side[:, n:] == 0, torch.inf)
    give = pick(on_set, hard, here.soft) + restoring.unsqueeze(-1)
    A, t, W = bordered(W, here.slopes.J, free, give, torch.where(restoring, 0.0, damping))
    bent = torch.linalg.cholesky_ex(A).info != 0
    (W,) = renew(None, bent & ~on_set, (W,), _bent_up, W, A)
    return W, t, give, free, bent


def _bent_up(W: Tensor, A: Tensor) -> tuple[Tensor]:
    """Return ``W`` with negative curvature of ``A`` turned around, and no less than a tenth."""
    values, vectors = torch.linalg.eigh(A)
    little = 100 * rounding(A) ** 0.5
    turned = torch.where(values < -little, (-values).clamp(min=_BENT), little)
    more = torch.where(values < little, turned - values, 0.0)
    return (W + (vectors * more.unsqueeze(-2)) @ vectors.mT,)


def _system(
    state: FilterState, here: Here, W: Tensor, t: Tensor, give: Tensor, off: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the system of a step of the barrier or of restoration."""
    n = state.n
    tried = pick(state.search.second, state.search.left, here.violation)
    tried = torch.where(state.restoring.unsqueeze(-1), tried - here.y, tried)
    rhs = torch.cat([-off[:, :n] * t, -tried - here.soft * off[:, n:]], -1)
    J = here.slopes.J * t.unsqueeze(-2)
    squares = J.square().sum(-1)
    give = give + rounding(J) ** 0.5 * torch.where(squares > 0, squares, 1.0)
    give = torch.where(give < torch.inf, give, 1.0)
    bottom = torch.cat([J, -torch.diag_embed(give)], -1)
    return torch.cat([torch.cat([W, J.mT], -1), bottom], -2), rhs


def _newton(here: Here, active: Active, guess: Guess, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the system of Newton's step on the active set."""
    n, slopes, bound = t.shape[-1], here.slopes, guess.bound
    on, one = guess.side != 0, torch.ones_like(bound).diag_embed()
    J = slopes.J * t.unsqueeze(-2)
    top = torch.cat([slopes.H * t.unsqueeze(-1) * t.unsqueeze(-2), J.mT], -1)
    bottom = torch.cat([J, torch.zeros_like(one[:, n:, n:])], -1)
    plain = torch.cat([on[:, :n], ~on[:, n:]], -1).unsqueeze(-1)
    K = torch.where(plain, one, torch.cat([top, bottom], -2))
    z = torch.where(on[:, :n], (bound[:, :n] - active.z) / t, -here.gradient * t)
    return K, torch.cat([z, torch.where(on[:, n:], bound[:, n:] - active.c, -active.y)], -1)


def _solved(K: Tensor, rhs: Tensor) -> Tensor:
    """Return the solution of a system, NaN where its numbers are not finite."""
    sound = torch.isfinite(K).flatten(1).all(-1)
    K = pick(sound, K, torch.diag_embed(torch.ones_like(rhs)))
    factors, pivots, _ = torch.linalg.lu_factor_ex(K)
    solution = torch.linalg.lu_solve(factors, pivots, rhs.unsqueeze(-1)).squeeze(-1)
    return pick(sound, solution, torch.full_like(solution, torch.nan))


def _tried(problem: EquationProblem, state: FilterState, here: Here, step: Direction) -> Trial:
    """Return the trial: as far as the bounds allow, and half of that for each that has failed."""
    inside, search, n = state.inside, state.search, state.n
    length = step.inside.length
    cap = _REACH * inside.w[:, :n].abs().amax(-1).clamp(min=1.0)
    cap = cap / step.inside.w[:, :n].abs().amax(-1)
    length = torch.where(step.bent & (cap < length), cap, length)
    halves = torch.where(search.second | state.restoring, 0, search.tries).to(length.dtype)
    length = length * torch.pow(torch.full_like(length, 0.5), halves)
    w = inside.w + length.unsqueeze(-1) * step.inside.w
    f, c = evaluate(problem, state.units, pick(state.on_set, step.newton.z, w[:, :n]))
    before, after = here.violation.abs().sum(-1), (c - w[:, n:]).abs().sum(-1)
    return Trial(inside._replace(w=w, f=f, c=c), length, before, after)


def _judged(state: FilterState, here: Here, step: Direction, trial: Trial) -> Verdict:
    """Return whether a trial is accepted: by the filter, or in restoration by its merit."""
    units, inside, mu, eps = state.units, state.inside, state.search.mu, rounding(state.z)
    to, length, before, after = trial
    phi = inside.f + mu * barrier(units, inside.w)
    new = to.f + mu * barrier(units, to.w)
    slope = torch.cat([here.slopes.g, torch.zeros_like(inside.c)], -1) + step.push
    slope = (torch.where(units.fixed, 0.0, slope) * step.inside.w).sum(-1)
    noise = 10 * eps * (phi.abs() + inside.f.abs())
    little = 10 * eps * (inside.c.abs() + inside.w[:, state.n :].abs()).sum(-1)
    falls = length * (-slope).clamp(min=0.0) ** _SLOPE_POWER > before**_VIOLATION_POWER
    f_type = (slope < 0) & falls & (before <= _SMALL * units.most)
    armijo = new - phi - noise <= _FALL * length * slope
    either = (after <= (1 - _MARGIN) * before + little) | (new - phi - noise <= -_MARGIN * before)
    pairs = state.search.filter
    beaten = (after.unsqueeze(-1) >= pairs[..., 0]) & ((new - noise).unsqueeze(-1) >= pairs[..., 1])
    good = torch.where(f_type, armijo, either) & ~beaten.any(-1) & (after <= units.most)
    good = torch.where(state.restoring, _restores(state, here, step, trial), good)
    sound = to.f.abs() + to.c.sum(-1).abs() + step.inside.y.sum(-1).abs() < torch.inf
    pair = torch.stack([(1 - _MARGIN) * before, phi - _MARGIN * before], -1)
    return Verdict(good & sound & ~state.on_set, sound, f_type, pair)


def _restores(state: FilterState, here: Here, step: Direction, trial: Trial) -> Tensor:
    """Tell where a trial reduces the violation, with its barrier."""
    units, inside, to, mu = state.units, state.inside, trial.to, state.search.mu
    before, after = here.violation, to.c - to.w[:, state.n :]
    merit = 0.5 * before.square().sum(-1) + mu * barrier(units, inside.w)
    new = 0.5 * after.square().sum(-1) + mu * barrier(units, to.w)
    slope = torch.bmm(here.slopes.J.mT, before.unsqueeze(-1)).squeeze(-1)
    slope = torch.where(units.fixed, 0.0, torch.cat([slope, -before], -1) + step.push)
    slope = (slope * step.inside.w).sum(-1)
    return new - merit <= _MERIT_FALL * trial.length * slope + 10 * rounding(merit) * merit.abs()


def _accepted(state: FilterState, here: Here, step: Direction, trial: Trial) -> Inside:
    """Return the trial with its multipliers, none much larger than those by least squares."""
    inside, units = state.inside, state.units
    fair = least_squares_multipliers(here.slopes, units, inside.high - inside.low)
    most = _MOST_TIMES * (1 + fair.abs().amax(-1))
    y = inside.y + trial.length.unsqueeze(-1) * step.inside.y
    y = y * (most / y.abs().amax(-1)).clamp(max=1.0).unsqueeze(-1)
    y = pick(state.restoring, here.violation, y)
    return with_bounds(trial.to._replace(y=y), units, step.inside, state.search.mu)


def _searched(
    state: FilterState, here: Here, step: Direction, trial: Trial, verdict: Verdict
) -> Search:
    """Return the search after a trial: its filter, how the next step is tried, and damped."""
    search, (good, sound, f_type, pair) = state.search, verdict
    walked, bad, damping = good & state.walking, ~good & ~state.on_set, search.damping
    kept = torch.cat([pair.unsqueeze(1), search.filter[:, :-1]], 1)
    second = bad & state.walking & (search.tries == 0) & (trial.after >= trial.before) & sound
    ahead = trial.to.c - trial.to.w[:, state.n :] + trial.length.unsqueeze(-1) * here.violation
    # short steps make the next ones careful
    part = trial.length / step.inside.length
    careful = torch.where(part < 0.3, (4 * damping).clamp(min=1e-2), damping)
    easy = torch.where(damping > 1e-4, 0.25 * damping, 0.0)
    freer = torch.where(part > 0.9, easy, careful)
    damped = torch.where(good, (0.2 * damping).clamp(min=1e-10), 8 * damping)
    return search._replace(
        filter=pick(walked & ~f_type, kept, search.filter),
        tries=torch.where(bad, search.tries + 1, 0),
        second=second,
        left=pick(second, ahead, search.left),
        damping=torch.where(state.restoring, damped, torch.where(walked, freer, damping)),
    )


def _in_vain(state: FilterState, trial: Trial, good: Tensor) -> tuple[FilterState, Tensor, Tensor]:
    """Return the state, searching anew where it was in vain; who is to restore; who gives up."""
    (_, length, before, after), search = trial, state.search
    eps, mu, walking = rounding(state.z), search.mu, state.walking
    tired = ~good & walking & (search.tries > _HALVINGS)
    slow = good & walking & (length < 1e-4) & (before > 1e-4) & (after > 0.9 * before)
    lost = (tired & (before > eps**0.5)) | slow
    idle = tired & ~lost
    stuck = torch.where(good & (length > 1e-3), 0, search.stuck)
    stuck = torch.where(idle, search.stuck + 1, stuck)
    given_up = state.restoring & ~good & (search.damping > _MOST_DAMPING)
    search = search._replace(
        mu=torch.where(idle, (0.1 * mu).clamp(min=_LEAST_MU * eps**0.5), mu),
        filter=pick(tired | lost, torch.full_like(search.filter, torch.inf), search.filter),
        tries=torch.where(tired, 0, search.tries),
        stuck=stuck,
    )
    return state._replace(search=search), lost, (stuck >= _IN_VAIN) | given_up


def _restored(
    state: FilterState, moved: Inside, trial: Trial, lost: Tensor, good: Tensor
) -> FilterState:
    """Return the state: in restoration where lanes are ``lost``, out of it where it has helped."""
    units, search, gaps = state.units, state.search, gaps_of(state.units, moved)
    out = state.restoring & good & (trial.after <= _RESTORED * search.entry)
    mu = torch.where(lost, torch.minimum(search.mu, 0.1 * trial.before**2), search.mu)
    mu = torch.where(out, mu.clamp(min=1e-4), mu)
    most = torch.full_like(mu, torch.inf).masked_fill(out, _MOST_MULTIPLIER).unsqueeze(-1)
    low = torch.where(units.low, torch.minimum(mu.unsqueeze(-1) / gaps.low, most), 0.0)
    high = torch.where(units.high, torch.minimum(mu.unsqueeze(-1) / gaps.high, most), 0.0)
    y = pick(out, torch.zeros_like(moved.y), moved.y)
    damping = torch.where(lost, _FIRST_DAMPING, torch.where(out, 0.0, search.damping))
    entry = torch.where(lost, trial.before, search.entry)
    return state._replace(
        phase=torch.where(lost, RESTORING, torch.where(out, INSIDE, state.phase)),
        inside=pick(lost | out, moved._replace(y=y, low=low, high=high), moved),
        search=search._replace(mu=mu, damping=damping, entry=entry),
    )


def _runs_away(state: FilterState, new: FilterState, good: Tensor) -> Tensor:
    """Tell where a feasible iterate is far away and the objective still falls."""
    inside, n = new.inside, new.n
    size = inside.w[:, :n].abs().amax(-1)
    violation = (inside.c - inside.w[:, n:]).abs().amax(-1)
    runs = good & new.walking & (size > _FAR) & (violation <= _FEASIBLE * size)
    return runs & (inside.f < state.inside.f)


def _on_active_set(
    state: FilterState, guess: Guess, step: Direction, trial: Trial
) -> tuple[FilterState, Tensor, Tensor]:
    """Return the state after Newton's step, its error's estimate, and where neither phase helps.

    A lane goes back inside if its steps do not contract.
    """
    active, on_set, search, eps = state.active, state.on_set, state.search, rounding(state.z)
    size, rounds, same = step.newton.size, active.rounds, guess.same
    rate, tiny, first = size / active.size, size <= eps**0.75, rounds == 0
    holds = first | tiny | (rate <= _CONTRACTS) | (~same & (rounds < _CHANGING))
    finite = trial.to.f.abs() + trial.to.c.sum(-1).abs() + size < torch.inf
    holds = on_set & holds & (rounds < _ROUNDS) & finite
    holds = holds & ~(first & ~guess.enters & ((size > _FIRST) | step.bent))
    gone = torch.where(rate < 1, rate / (1 - rate), torch.inf)
    part = torch.where(tiny, 0.0, size * gone)
    # (rounding keeps a step from contracting: what it is then is for the verdict to say)
    ends = on_set & same & ~holds & (size < _NEAR) & (rounds > 1)
    far = torch.full_like(part, torch.inf)
    estimate = torch.where(holds & same & ~first, part, far.masked_fill(ends, 0.0))
    fell = on_set & ~holds & ~ends
    late = fell & (~first | guess.enters)
    ready = torch.where(late, _LATER * search.ready, search.ready)
    # (the barrier's problems are solved, and the active set has no regular system)
    hopeless = late & (ready < 0.01 * eps**0.5)
    active = pick(holds, step.newton._replace(c=trial.to.c), active)
    new = state._replace(
        phase=torch.where(fell, INSIDE, state.phase),
        search=search._replace(ready=ready),
        active=pick(hopeless, guess.start, active),
    )
    return new, estimate, hopeless


def _unknowns(problem: EquationProblem, state: FilterState, at: Tensor) -> Tensor:
    """Return unknowns and multipliers, exactly on the active set where a lane is ``at`` it."""
    units, inside, active, n = state.units, state.inside, state.active, state.n
    bounds: Any = problem.bounds
    (lo, hi), (side, on) = (b[:, :n] for b in bounds), active.side.tensor_split((n,), -1)
    z = torch.where(side == 0, active.z * units.z, torch.where(side == 1, hi, lo))
    z = pick(at, z, inside.w[:, :n] * units.z)
    y = pick(at, torch.where(on == 0, 0.0, active.y), inside.y)
    return torch.cat([z, y * units.f / units.c], -1)
