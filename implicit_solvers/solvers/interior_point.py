"""An interior-point method with a filter, for minima under constraints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

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
    Slopes,
    Step,
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
from implicit_solvers.solvers.renewal import renew

__all__ = ["FilterInteriorPoint"]

INSIDE, RESTORING, ACTIVE = 0, 1, 2
"""Where a lane is: between the bounds, on its way back to what is feasible, on the active set."""

_MU, _SHRINK, _POWER, _ENOUGH = 0.1, 0.2, 1.5, 10.0
_FAR, _KEPT = 1e8, 10
_FALL, _MARGIN, _HALVINGS, _FEWER, _BENT = 1e-6, 1e-5, 25, 4, 0.1


class Search(NamedTuple):
    """How steps are tried: the barrier's ``mu``, and pairs of violation and objective to beat.

    ``tries`` is how often a step was shortened, ``second`` where its second-order correction is
    next, by the violation ``left``; ``damping`` is added to the Hessian; ``stuck`` counts searches
    in vain. Restoration began at the violation ``entry``. The active set is tried when the error
    is ``ready``.
    """

    mu: Tensor
    filter: Tensor
    tries: Tensor
    second: Tensor
    left: Tensor
    damping: Tensor
    stuck: Tensor
    entry: Tensor
    ready: Tensor


class Active(NamedTuple):
    """An iterate of Newton's method on a guess of the active set: ``side`` is -1, 0, 1, or 2.

    That is for a lower, no, or an upper bound, or a fixed value. The last step had a ``size``.
    """

    z: Tensor
    y: Tensor
    c: Tensor
    side: Tensor
    size: Tensor
    rounds: Tensor


class InteriorPointState(NamedTuple):
    """The state of `FilterInteriorPoint`."""

    z: Tensor
    error: Tensor
    estimate: Tensor
    flag: Tensor
    accepted: Any
    phase: Tensor
    units: Units
    inside: Inside
    search: Search
    active: Active

    def settled(self, accepted: Any) -> InteriorPointState:
        """Return the state; lanes whose trial was rejected have stayed."""
        return self._replace(accepted=accepted)


@dataclass(frozen=True)
class FilterInteriorPoint(EquationMethod):
    """A primal-dual interior-point method, with a filter line search and a finish by Newton.

    Inequalities get slacks; slacks and bounds a logarithmic barrier, whose weight falls as the
    barrier problem is solved. Each step solves the linearized conditions, with a Hessian whose
    curvature is made positive along the constraints; a trial is accepted if it reduces the
    violation or the barrier function and no pair that was met before beats it, after a
    second-order correction or by half of its length. Where steps become tiny, the violation alone
    is reduced. When the error has fallen to ``1e-4``, the constraints whose multiplier is larger
    than their slack are taken to be active, and Newton's method goes on with these; if it does not
    contract, the lane goes back inside.

    Objective and constraints are scaled by their gradients at the start.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm, compact, check_every, compile
        As in `EquationMethod`; errors are those of the unknown, not of its multipliers.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Notes
    -----
    A lane ends as INFEASIBLE at a point where the violation is least and not zero (a local proof,
    where constraints are not convex), and as UNBOUNDED where feasible iterates run away while the
    objective falls.

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

    def init(self, problem: EquationProblem, z: Tensor) -> InteriorPointState:
        """Start a little inside of the bounds, with multipliers by least squares.

        One step on the active set that ``z`` suggests is tried first, from ``z`` itself.
        """
        units = units_of(problem, z)
        n = z.shape[-1] - units.c.shape[-1]
        x, y = z[:, :n] / units.z, z[:, n:] * units.c / units.f
        x = torch.clamp(x, units.lo[:, :n], units.hi[:, :n])
        _, rows = evaluate(problem, units, x)
        slope = slopes_of(problem, units, x, y)
        side = _sides(units, torch.cat([x, rows], -1), lagrangian(slope, y), y)
        zero = torch.zeros_like(x[:, 0])
        none = torch.zeros_like(zero, dtype=torch.int64)
        active = Active(x, y, rows, side, zero + torch.inf, none)
        lo, hi = units.lo.split((n, y.shape[-1]), -1), units.hi.split((n, y.shape[-1]), -1)
        x = moved_inside(x, lo[0], hi[0])
        f, rows = evaluate(problem, units, x)
        w = torch.cat([x, moved_inside(rows, lo[1], hi[1])], -1)
        low, high = units.low.to(z.dtype), units.high.to(z.dtype)
        y = least_squares_multipliers(slopes_of(problem, units, x, 0 * y), units, high - low)
        y = torch.where(y.abs().amax(-1, keepdim=True) < 1e3, y, 0.0)
        inside = Inside(w, y, low, high, f, rows)
        violation = (rows - w[:, n:]).abs().sum(-1)
        units = units._replace(most=1e4 * violation.clamp(min=1.0))
        pairs = torch.full((len(z), _KEPT, 2), torch.inf, dtype=z.dtype, device=z.device)
        ready = zero + max(1e-4, rounding(z) ** 0.5)
        no = zero > 1
        left = torch.zeros_like(rows)
        search = Search(zero + _MU, pairs, none, no, left, zero, none, zero + torch.inf, ready)
        flag = torch.as_tensor(problem.flags(), device=z.device).expand(len(z))
        unknown = ~(f.abs() + violation < torch.inf)
        flag = torch.where(unknown & (flag == 0), int(Status.NONFINITE), flag)
        error = torch.where(unknown, torch.nan, zero + 1)
        far, phase = zero + torch.inf, none + ACTIVE
        return InteriorPointState(z, error, far, flag, ~no, phase, units, inside, search, active)

    def step(self, problem: EquationProblem, state: InteriorPointState) -> InteriorPointState:
        """Make a trial in every lane: a step of the barrier, of restoration, or of Newton."""
        units, inside, search, eps = state.units, state.inside, state.search, rounding(state.z)
        n = inside.w.shape[-1] - units.c.shape[-1]
        on_set, restoring = state.phase == ACTIVE, state.phase == RESTORING
        x = pick(on_set, state.active.z, inside.w[:, :n])
        y = pick(on_set, state.active.y, inside.y)
        slopes = slopes_of(problem, units, x, y)
        gradient = lagrangian(slopes, y)
        # restoration has no objective, and the violation in the place of multipliers
        violation = inside.c - inside.w[:, n:]
        y = pick(restoring, violation, inside.y)
        slopes = slopes._replace(g=pick(restoring, torch.zeros_like(slopes.g), slopes.g))
        dual = torch.where(units.fixed, 0.0, torch.cat([lagrangian(slopes, y), -y], -1))
        gaps = gaps_of(units, inside)
        least, fresh = violation.abs().amax(-1), search.tries == 0
        error = error_of(inside, gaps, units, dual, y, 0.0)
        error = torch.where(restoring, error, torch.maximum(error, least))
        mu, pairs = search.mu, search.filter
        for _ in range(2):
            gap = error_of(inside, gaps, units, dual, y, mu.unsqueeze(-1))
            gap = torch.where(restoring, gap, torch.maximum(gap, least))
            done = fresh & ~on_set & (gap <= _ENOUGH * mu)
            lower = torch.minimum(_SHRINK * mu, mu**_POWER).clamp(min=1e-3 * eps**0.5)
            mu = torch.where(done, lower, mu)
            pairs = pick(done, torch.full_like(pairs, torch.inf), pairs)
        search = search._replace(mu=mu, filter=pairs)
        stationary = restoring & fresh & (error <= 1e-4 * least) & (least > eps**0.4)
        flag = torch.where(stationary & (state.flag == 0), int(Status.INFEASIBLE), state.flag)
        # onto the active set
        enters = (state.phase == INSIDE) & fresh & (error <= search.ready)
        phase = torch.where(enters, ACTIVE, state.phase)
        on_set = phase == ACTIVE
        side = _strong(units, inside, gaps)
        far = torch.full_like(mu, torch.inf)
        rounds = torch.zeros_like(state.active.rounds)
        start = Active(inside.w[:, :n], inside.y, inside.c, side, far, rounds)
        active = pick(enters, start, state.active)
        side = _sides(units, torch.cat([active.z, active.c], -1), gradient, active.y)
        side = pick(enters, start.side, side)
        same = (side == active.side).all(-1) & ~enters
        # one factorization for all: of the barrier's system, or of that on the active set
        damping = torch.where(on_set, 0.0, search.damping)
        fixed = pick(on_set, side != 0, units.fixed)
        sigma = pick(on_set, torch.zeros_like(gaps.sigma), gaps.sigma)
        W = pick(restoring, torch.zeros_like(slopes.H), slopes.H)
        W = W + torch.diag_embed(sigma[:, :n] + torch.where(restoring, damping, 0.0).unsqueeze(-1))
        soft = torch.where(units.fixed, 0.0, 1 / gaps.sigma.clamp(min=1e-20))[:, n:]
        hard = torch.zeros_like(soft).masked_fill(side[:, n:] == 0, torch.inf)
        give = pick(on_set, hard, soft)
        give = give + restoring.unsqueeze(-1)
        damping = torch.where(restoring, 0.0, damping)
        W, t, bent = _convex(W, slopes.J, give, ~fixed[:, :n], damping, ~on_set)
        push = push_of(gaps, units, mu)
        off = torch.where(units.fixed, 0.0, dual + push)
        tried = pick(search.second, search.left, violation)
        tried = torch.where(restoring.unsqueeze(-1), tried - y, tried)
        keep = (~fixed[:, :n]).to(t.dtype)
        rhs = torch.cat([-off[:, :n] * t * keep, -tried - soft * off[:, n:]], -1)
        K = _system(W, slopes.J * (t * keep).unsqueeze(-2), give)
        bound = torch.where(side == 1, units.hi, torch.where(side == 0, 0.0, units.lo))
        newton = _newton(slopes, active, side, bound, gradient, t)
        K, rhs = pick(on_set, newton, (K, rhs))
        sound = torch.isfinite(K).flatten(1).all(-1)
        K = pick(sound, K, torch.diag_embed(torch.ones_like(rhs)))
        factors, pivots, _ = torch.linalg.lu_factor_ex(K)
        solution = torch.linalg.lu_solve(factors, pivots, rhs.unsqueeze(-1)).squeeze(-1)
        solution = pick(sound, solution, torch.full_like(solution, torch.nan))
        dx, dy = solution[:, :n] * t, solution[:, n:]
        step = step_inside(units, inside, gaps, mu, dx, dy, soft * (dy - off[:, n:]))
        reach = 10 * inside.w[:, :n].abs().amax(-1).clamp(min=1.0)
        cap = reach / step.w[:, :n].abs().amax(-1)
        length = torch.where(bent & (cap < step.length), cap, step.length)
        halves = torch.where(search.second | restoring, 0, search.tries).to(length.dtype)
        length = length * torch.pow(torch.full_like(length, 0.5), halves)
        # the trial
        ahead = inside.w + length.unsqueeze(-1) * step.w
        x = torch.where(side[:, :n] != 0, bound[:, :n], active.z + dx)
        f, rows = evaluate(problem, units, pick(on_set, x, ahead[:, :n]))
        trial = inside._replace(w=ahead, f=f, c=rows)
        good, f_type, pair = _pays(units, inside, trial, gaps, step, slopes, search, length)
        restored = _restores(units, inside, trial, step, slopes, push, mu, length)
        sound = (f.abs() + rows.sum(-1).abs() + step.y.sum(-1).abs()) < torch.inf
        good = torch.where(restoring, restored, good) & sound & ~on_set
        # where it is accepted
        most = 3 * (
            1 + least_squares_multipliers(slopes, units, inside.high - inside.low).abs().amax(-1)
        )
        y = inside.y + length.unsqueeze(-1) * step.y
        y = y * (most / y.abs().amax(-1)).clamp(max=1.0).unsqueeze(-1)
        y = pick(restoring, violation, y)
        trial = with_bounds(trial._replace(y=y), units, step, mu)
        moved = pick(good, trial, inside)
        search, phase, moved, stuck = _onward(
            units, inside, moved, trial, search, phase, good, sound, f_type, pair, step, length
        )
        flag = torch.where(stuck & (flag == 0), int(Status.STALLED), flag)
        size = moved.w[:, :n].abs().amax(-1)
        violation = (moved.c - moved.w[:, n:]).abs().amax(-1)
        runs = good & (phase == INSIDE) & (size > _FAR) & (violation <= 1e-6 * size)
        runs = runs & (moved.f < inside.f)
        flag = torch.where(runs & (flag == 0), int(Status.UNBOUNDED), flag)
        # Newton's step on the active set
        y = torch.where(side[:, n:] != 0, active.y + dy, 0.0)
        size = dy.abs().amax(-1) / active.y.abs().amax(-1).clamp(min=1.0)
        size = torch.maximum(dx.abs().amax(-1), size)
        rate, tiny = size / active.size, size <= eps**0.75
        first = active.rounds == 0
        holds = first | tiny | (rate <= 0.8) | (~same & (active.rounds < 6))
        holds = holds & (active.rounds < 60) & (f.abs() + rows.sum(-1).abs() + size < torch.inf)
        holds = holds & on_set & ~(first & ~enters & ((size > 1e-2) | bent))
        gone = torch.where(rate < 1, rate / (1 - rate), torch.inf)
        part = torch.where(tiny, 0.0, size * gone)
        # (rounding keeps a step from contracting: what it is then is for the verdict to say)
        ends = on_set & same & ~holds & (size < 1e-4) & (active.rounds > 1)
        estimate = torch.where(holds & same & ~first, part, far.masked_fill(ends, 0.0))
        fell = on_set & ~holds & ~ends
        late = fell & (state.active.rounds + enters > 0)
        search = search._replace(ready=torch.where(late, 0.03 * search.ready, search.ready))
        # (the barrier's problems are solved, and the active set has no regular system)
        hopeless = late & (search.ready < 0.01 * eps**0.5)
        flag = torch.where(hopeless & (flag == 0), int(Status.STALLED), flag)
        newer = Active(x, y, rows, side, size, active.rounds + 1)
        active = pick(holds, newer, active)
        phase = torch.where(fell, INSIDE, phase)
        on_set = phase == ACTIVE
        error = torch.where(on_set, torch.where(size < torch.inf, size, 1.0), error)
        z = torch.cat([moved.w[:, :n] * units.z, moved.y * units.f / units.c], -1)
        active = pick(hopeless, start._replace(side=_strong(units, inside, gaps)), active)
        on_set = on_set | hopeless
        exact = _exact(problem, units, active)
        new = InteriorPointState(
            pick(on_set, exact, z),
            error,
            estimate * units.z.amax(-1),
            flag,
            good | on_set,
            phase,
            units,
            moved,
            search,
            active,
        )
        running = state.flag == 0
        return pick(running, new, state._replace(accepted=good))


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


def _convex(
    W: Tensor, J: Tensor, give: Tensor, free: Tensor, damping: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Hessian, scaled, with positive curvature along the constraints; its scales.

    With it comes where the curvature was not positive. Constraints ``give`` way, some without end.
    """
    A, t, W = bordered(W, J, free, give, damping)
    bent = torch.linalg.cholesky_ex(A).info != 0
    (W,) = renew(None, bent & inside, (W,), _bent_up, W, A)
    return W, t, bent


def _bent_up(W: Tensor, A: Tensor) -> tuple[Tensor]:
    """Return ``W`` with negative curvature of ``A`` turned around, and no less than a tenth."""
    values, vectors = torch.linalg.eigh(A)
    little = 100 * rounding(A) ** 0.5
    turned = torch.where(values < -little, (-values).clamp(min=_BENT), little)
    more = torch.where(values < little, turned - values, 0.0)
    return (W + (vectors * more.unsqueeze(-2)) @ vectors.mT,)


def _system(W: Tensor, J: Tensor, give: Tensor) -> Tensor:
    """Return the matrix of the barrier's system."""
    squares = J.square().sum(-1)
    give = give + rounding(J) ** 0.5 * torch.where(squares > 0, squares, 1.0)
    give = torch.where(give < torch.inf, give, 1.0)
    return torch.cat([torch.cat([W, J.mT], -1), torch.cat([J, -torch.diag_embed(give)], -1)], -2)


def _newton(
    slopes: Slopes, active: Active, side: Tensor, bound: Tensor, gradient: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the system of Newton's step on the active set."""
    n = t.shape[-1]
    on, one = side != 0, torch.ones_like(bound).diag_embed()
    J = slopes.J * t.unsqueeze(-2)
    top = torch.cat([slopes.H * t.unsqueeze(-1) * t.unsqueeze(-2), J.mT], -1)
    bottom = torch.cat([J, torch.zeros_like(one[:, n:, n:])], -1)
    plain = torch.cat([on[:, :n], ~on[:, n:]], -1).unsqueeze(-1)
    K = torch.where(plain, one, torch.cat([top, bottom], -2))
    z = torch.where(on[:, :n], (bound[:, :n] - active.z) / t, -gradient * t)
    return K, torch.cat([z, torch.where(on[:, n:], bound[:, n:] - active.c, -active.y)], -1)


def _pays(
    units: Units,
    inside: Inside,
    trial: Inside,
    gaps: Gaps,
    step: Step,
    slopes: Slopes,
    search: Search,
    length: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tell where the filter accepts a trial, where for the objective's fall, and what to keep."""
    eps, n, mu = rounding(inside.w), slopes.g.shape[-1], search.mu
    before = (inside.c - inside.w[:, n:]).abs().sum(-1)
    after = (trial.c - trial.w[:, n:]).abs().sum(-1)
    phi = inside.f + mu * barrier(units, inside.w)
    new = trial.f + mu * barrier(units, trial.w)
    slope = torch.cat([slopes.g, torch.zeros_like(inside.c)], -1) + push_of(gaps, units, mu)
    slope = (torch.where(units.fixed, 0.0, slope) * step.w).sum(-1)
    noise = 10 * eps * (phi.abs() + inside.f.abs())
    little = 10 * eps * (inside.c.abs() + inside.w[:, n:].abs()).sum(-1)
    falls = length * (-slope).clamp(min=0.0) ** 2.3 > before**1.1
    f_type = (slope < 0) & falls & (before <= 1e-8 * units.most)
    armijo = new - phi - noise <= _FALL * length * slope
    either = (after <= (1 - _MARGIN) * before + little) | (new - phi - noise <= -_MARGIN * before)
    pairs = search.filter
    beaten = (after.unsqueeze(-1) >= pairs[..., 0]) & ((new - noise).unsqueeze(-1) >= pairs[..., 1])
    good = torch.where(f_type, armijo, either) & ~beaten.any(-1) & (after <= units.most)
    return good, f_type, torch.stack([(1 - _MARGIN) * before, phi - _MARGIN * before], -1)


def _restores(
    units: Units,
    inside: Inside,
    trial: Inside,
    step: Step,
    slopes: Slopes,
    push: Tensor,
    mu: Tensor,
    length: Tensor,
) -> Tensor:
    """Tell where a trial reduces the violation, with its barrier."""
    eps, n = rounding(inside.w), slopes.g.shape[-1]
    before, after = inside.c - inside.w[:, n:], trial.c - trial.w[:, n:]
    merit = 0.5 * before.square().sum(-1) + mu * barrier(units, inside.w)
    new = 0.5 * after.square().sum(-1) + mu * barrier(units, trial.w)
    slope = torch.cat([torch.bmm(slopes.J.mT, before.unsqueeze(-1)).squeeze(-1), -before], -1)
    slope = (torch.where(units.fixed, 0.0, slope + push) * step.w).sum(-1)
    return new - merit <= 1e-4 * length * slope + 10 * eps * merit.abs()


def _onward(
    units: Units,
    inside: Inside,
    moved: Inside,
    trial: Inside,
    search: Search,
    phase: Tensor,
    good: Tensor,
    sound: Tensor,
    f_type: Tensor,
    pair: Tensor,
    step: Step,
    length: Tensor,
) -> tuple[Search, Tensor, Inside, Tensor]:
    """Return how the search goes on after a trial, the phase, the iterate, and who is stuck."""
    eps, m = rounding(inside.w), inside.y.shape[-1]
    restoring, walking = phase == RESTORING, phase == INSIDE
    mu, pairs, tries, _, left, damping, stuck, entry, ready = search
    before = (inside.c - inside.w[:, -m:]).abs().sum(-1)
    after = (trial.c - trial.w[:, -m:]).abs().sum(-1)
    kept = torch.cat([pair.unsqueeze(1), pairs[:, :-1]], 1)
    pairs = pick(good & walking & ~f_type, kept, pairs)
    bad = ~good & (phase != ACTIVE)
    second = bad & walking & (tries == 0) & (after >= before) & sound
    ahead = (trial.c - trial.w[:, -m:]) + length.unsqueeze(-1) * (inside.c - inside.w[:, -m:])
    left = pick(second, ahead, left)
    tries = torch.where(bad, tries + 1, 0)
    # short steps make the next ones careful
    part = length / step.length
    careful = torch.where(part < 0.3, (4 * damping).clamp(min=1e-2), damping)
    easy = torch.where(damping > 1e-4, 0.25 * damping, 0.0)
    walked = torch.where(part > 0.9, easy, careful)
    damped = torch.where(good, (0.2 * damping).clamp(min=1e-10), 8 * damping)
    damping = torch.where(restoring, damped, torch.where(good & walking, walked, damping))
    tired = bad & walking & (tries > _HALVINGS)
    lost = tired & (before > eps**0.5)
    lost = lost | (good & walking & (length < 1e-4) & (before > 1e-4) & (after > 0.9 * before))
    idle = tired & ~lost
    stuck = torch.where(idle, stuck + 1, torch.where(good & (length > 1e-3), 0, stuck))
    pairs = pick(idle | lost, torch.full_like(pairs, torch.inf), pairs)
    mu = torch.where(idle, (0.1 * mu).clamp(min=1e-3 * eps**0.5), mu)
    tries = torch.where(tired, 0, tries)
    given_up = (stuck >= _FEWER) | (restoring & bad & (damping > 1e15))
    # into restoration, and out of it
    mu = torch.where(lost, torch.minimum(mu, 0.1 * before**2), mu)
    out = restoring & good & (after <= 0.1 * entry)
    mu = torch.where(out, mu.clamp(min=1e-4), mu)
    gaps = gaps_of(units, moved)
    most = torch.full_like(mu, torch.inf).masked_fill(out, 1e3).unsqueeze(-1)
    low = torch.where(units.low, torch.minimum(mu.unsqueeze(-1) / gaps.low, most), 0.0)
    high = torch.where(units.high, torch.minimum(mu.unsqueeze(-1) / gaps.high, most), 0.0)
    y = pick(out, torch.zeros_like(moved.y), moved.y)
    moved = pick(lost | out, moved._replace(y=y, low=low, high=high), moved)
    damping = torch.where(lost, 1e-4, torch.where(out, 0.0, damping))
    phase = torch.where(lost, RESTORING, torch.where(out, INSIDE, phase))
    entry = torch.where(lost, before, entry)
    search = Search(mu, pairs, tries, second, left, damping, stuck, entry, ready)
    return search, phase, moved, given_up


def _exact(problem: EquationProblem, units: Units, active: Active) -> Tensor:
    """Return the iterate on the active set, where unknowns are exactly at their bounds."""
    n = active.z.shape[-1]
    bounds: Any = problem.bounds
    (lo, hi), side = (b[:, :n] for b in bounds), active.side[:, :n]
    z = torch.where(side == 0, active.z * units.z, torch.where(side == 1, hi, lo))
    y = torch.where(active.side[:, n:] == 0, 0.0, active.y)
    return torch.cat([z, y * units.f / units.c], -1)
