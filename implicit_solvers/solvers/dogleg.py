"""Powell's dogleg method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import (
    Mask,
    along,
    both,
    either,
    everywhere,
    no,
    nowhere,
    pick,
    settle,
)
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.choice import DENSE_LIMIT
from implicit_solvers.linear.gmres import GMRES
from implicit_solvers.linear.lu import LU
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.problem import EquationProblem, ResidualMap
from implicit_solvers.outcome import DIGIT, ROUNDINGS
from implicit_solvers.rounding import patterns
from implicit_solvers.solution import Status
from implicit_solvers.solver import Factors
from implicit_solvers.solvers.damped import Aim, DampedState, Point
from implicit_solvers.solvers.gauss_newton import full_step, normal_step
from implicit_solvers.solvers.newton import Trial, begun, first_length, measured, shortened
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.solvers.trust_region import (
    Proposal,
    ScaledRegion,
    decomposed,
    length,
    promised,
    scales,
)

__all__ = ["Dogleg"]

_SHORTEST = 1e-3


class Way(NamedTuple):
    """From zero by the corner to the end, as scaled, with the images by ``J``, and ``J^T r``."""

    scale: Tensor
    gradient: Tensor
    corner: Tensor
    corner_image: Tensor
    end: Tensor
    end_image: Tensor


class Linear(NamedTuple):
    """A Jacobian and its factors; the way is laid where Newton's steps do not pay."""

    scale: Tensor
    matrix: Tensor
    factors: Factors


class Along(NamedTuple):
    """Where a lane goes ``along`` Newton's step, and whether it ``damps`` that; its last trial.

    Lanes that do so no more are taken ``back`` to the ``first`` iterate.
    """

    along: Mask
    damps: Mask
    back: Mask
    first: Tensor
    trial: Trial | None


@dataclass(frozen=True)
class Dogleg(ScaledRegion):
    """Powell's dogleg: ``z <- z + p``, ``p`` on the way from steepest descent to Newton's step.

    For roots and fixed points (``r = F``) and for least squares. The way leads from zero to the
    minimum of ``|r + J p|`` along the gradient and on to its minimum everywhere, the Newton or
    Gauss-Newton step; ``p`` is where it leaves the region ``|D p| <= radius``, or its end. ``D``
    holds the largest norms that the columns of ``J`` have had, so that the units of the unknowns
    do not matter. Where ``J`` is singular or has fewer rows than columns, the shortest of the best
    steps takes the place of Newton's. A root's lane that ends in a minimum of ``|F|`` is STALLED.
    Source: Powell, "A hybrid method for nonlinear equations" (1970); MINPACK's HYBRJ, with the
    Jacobian of every step.

    Parameters
    ----------
    rtol, atol, max_steps, max_trials, norm, compact, check_every, compile
        As in `EquationMethod`.
    linear_solver
        An iterative solver that finds Newton's step with products: ``GMRES()`` for ``J p = -F``,
        or ``CG()`` for ``J^T J p = -J^T r`` (least squares); ``D`` is one then. Left out, ``J`` is
        formed and factored up to 512 unknowns (LU, kept for the backward pass, or QR); beyond,
        ``GMRES(rtol=1e-3)`` or ``CG(rtol=1e-3)``.
    first_radius
        The first radius, over the larger of ``|D z|`` and ``|r|``.
    shrinks
        How many times in a row the region may shrink.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def powell(z):
    ...     return torch.stack([1e4 * z[0] * z[1] - 1, torch.exp(-z).sum() - 1.0001])
    >>> start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    >>> ims.root(powell, start, solver=Dogleg()).value
    tensor([1.0982e-05, 9.1061e+00], dtype=torch.float64)
    """

    damps: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "least_squares")

    def factorization(self, n: int) -> LU | None:
        """Return what the factors in the state are of, which the backward pass may use."""
        return LU() if self.linear_solver is None and n <= DENSE_LIMIT else None

    def _products(self, problem: EquationProblem, z: Tensor) -> Any:
        return self.by_products(z, CG(rtol=1e-3) if problem.fits else GMRES(rtol=1e-3))

    def _bold(self, problem: EquationProblem, z: Tensor) -> bool:
        """Tell whether Newton's steps are tried first: where a root's Jacobian is factored."""
        return not problem.fits and self._products(problem, z) is None

    def blank(self, problem: EquationProblem, z: Tensor, residuals: Tensor) -> Way | Linear:
        """Return a model of zeros."""
        none, image = torch.zeros_like(z), torch.zeros_like(residuals)
        if self._bold(problem, z):
            matrix = z.new_zeros(*z.shape, z.shape[-1])
            return Linear(none, matrix, LU().factor_dense(matrix))
        return Way(none, none, none, image, none, image)

    def init(self, problem: EquationProblem, z: Tensor) -> DampedState:
        """Evaluate at the start."""
        state = super().init(problem, z)
        return begun(self, problem, state) if self._bold(problem, z) else state

    def evaluate(self, problem: EquationProblem, z: Tensor) -> Point:
        """Evaluate the residuals; `pays` tells how large a root's are."""
        if not self._bold(problem, z):
            return super().evaluate(problem, z)
        return Point(z, problem.residual_to_factor(z), None)

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Linearize where a trial was accepted, and find Newton's step."""
        aim = super().aim(problem, state, tired)
        if not self._bold(problem, state.z):
            return aim
        r = state.residual.unsqueeze(-1)
        return aim._replace(direction=LU().solve(aim.memory.factors, r, False).squeeze(-1))

    def modeled(self, problem: EquationProblem, state: DampedState) -> tuple[Way | Linear, Any]:
        """Linearize, and find the Newton or Gauss-Newton step."""
        z, r, solver = state.z, state.residual, self._products(problem, state.z)
        before = None if state.memory is None else state.memory.scale
        if solver is not None:
            jacobian = problem.linearize_residuals(z)
            gradient, one = jacobian.rmv(r), torch.ones_like(z)
            newton = _iterated(problem, jacobian, r, gradient, solver)
            return _way(problem, jacobian.mv, problem.size(length, r), one, gradient, newton), 0
        if problem.fits:
            matrix = problem.linearize_residuals(z).dense()
            step, regular = full_step(matrix, r)
            return _dense_way(problem, matrix, state, scales(matrix, before), step, regular), 0
        problem.identity(z)
        slope = problem.linearize(z)
        slope.matrices = matrix = slope.dense()
        scale = torch.zeros_like(z) if before is None else before
        return Linear(scale, matrix, LU().factor(slope)), 0

    def start(self, problem: EquationProblem, state: DampedState, length: Any) -> tuple[Any, Any]:
        """Try Newton's step first."""
        length, region = super().start(problem, state, length)
        if not self._bold(problem, state.z):
            return length, region
        newton = region.newton
        if newton is None:
            always = True if problem.branches else region.kicks == 0
            damps = always if self.damps else no(always)
            newton = Along(always, damps, no(always), state.z, None)
        length, trial = first_length(self, problem, state, newton.trial, length)
        short = both(newton.damps, length < _SHORTEST)
        newton = newton._replace(
            along=both(no(newton.back), no(short)),
            damps=both(newton.damps, no(short)),
            back=short,
            trial=trial,
        )
        return pick(short, 1.0, length), region._replace(newton=newton)

    def again(self, state: DampedState) -> tuple[Any, Any, Mask]:
        """Shorten Newton's step, or go on within the region."""
        length, region, _ = super().again(state)
        newton = region.newton
        if newton is None:
            return length, region, False
        if nowhere(newton.along):
            return length, region._replace(newton=newton._replace(back=False)), False
        shorter = shortened(self, state, newton.trial)
        shortens = both(newton.damps, both(shorter >= _SHORTEST, newton.trial.size < torch.inf))
        shortens = both(newton.along, shortens)
        over = both(newton.along, no(shortens))
        rejected, damps = pick(newton.along, 0, region.rejected), newton.damps
        newton = newton._replace(along=shortens, damps=both(damps, no(over)), back=both(over, damps))
        length = pick(shortens, shorter, pick(over, 1.0, length))
        return length, region._replace(newton=newton, rejected=rejected), False

    def ahead(self, problem: EquationProblem, state: DampedState) -> tuple[Tensor, DampedState]:
        """Go along Newton's step, or along the way within the region."""
        region, memory = state.search, state.memory
        if region.newton is None:
            return super().ahead(problem, state)
        free, back = region.newton.along, region.newton.back
        if problem.branches and (isinstance(free, Tensor) or isinstance(back, Tensor)):
            _, (free, back) = settle(len(state.z), free, back)
            region = region._replace(newton=region.newton._replace(along=free, back=back))
            state = state._replace(search=region)
        z = along(state.z, -state.length, state.direction)
        if everywhere(free):
            return z, state
        drowned = both(both(no(free), state.flag == 0), self._drowned(problem, state))
        state = state._replace(flag=pick(drowned, int(Status.STALLED), state.flag))
        z = pick(back, region.newton.first, z)
        if everywhere(either(free, back)):
            return z, state
        memory = memory._replace(scale=scales(memory.matrix, memory.scale))
        within, new = super().ahead(problem, state._replace(memory=memory))
        return pick(either(free, back), (z, state), (within, new))

    def _drowned(self, problem: EquationProblem, state: DampedState) -> Mask:
        """Tell where Newton's step is what rounding makes of it."""
        z, r, (_, matrix, factors) = state.z, state.residual, state.memory
        terms = (matrix.abs() @ z.abs().unsqueeze(-1)).squeeze(-1) + r.abs()
        noise = (torch.finfo(z.dtype).eps * patterns(z)[0] * terms).unsqueeze(-1)
        noise = LU().solve(factors, noise, False).squeeze(-1)
        size, least = problem.sizes(self.norm, state.direction, noise)
        digit = DIGIT * problem.scale(self, z)
        ends = either(size + least <= digit, both(least > digit, least < torch.inf))
        return both(self.rtol is not None, both(size <= ROUNDINGS * least, ends))

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Tell where the step that would follow is short enough, or keeps its promise."""
        region, memory = state.search, state.memory
        newton = region.newton
        if newton is None:
            return super().pays(problem, state)
        free = newton.along
        if nowhere(free):
            state = state._replace(error=problem.size(self.norm, state.residual))
        else:
            tried, trial = measured(self, problem, state, LU(), memory.factors)
            falls = either(tried.error <= 0.5 * state.kept.error, tried.estimate == 0)
            tried = tried._replace(accepted=pick(newton.damps, tried.accepted, falls))
            search = region._replace(newton=newton._replace(trial=trial))
            tried = tried._replace(search=search)
            if everywhere(free):
                return tried
            state = state._replace(error=tried.error, search=search)
        # a lane that is taken back asks nothing
        estimate = pick(state.error == 0, 0.0, 0 * state.error + torch.inf)
        found = state._replace(accepted=state.flag == 0, estimate=estimate)
        if not everywhere(either(free, newton.back)):
            within = super().pays(problem, state)._replace(estimate=estimate)
            within = within._replace(accepted=both(within.accepted, within.flag == 0))
            found = pick(newton.back, found, within)
        return found if nowhere(free) else pick(free, tried, found)

    def propose(self, problem: EquationProblem, state: DampedState) -> Proposal:
        """Go along the way up to where it leaves the region."""
        way = state.memory
        if isinstance(way, Linear):
            direction = state.direction
            regular = torch.isfinite(direction).all(-1) & LU().regular(way.factors)
            way = _dense_way(problem, way.matrix, state, way.scale, -direction, regular)
        p, image = _within(problem, way, state.search.within)
        fall = promised(problem, state.search.size, way.gradient, p, image)
        return Proposal(p / way.scale, problem.size(length, p), fall)


def _iterated(
    problem: EquationProblem, jacobian: ResidualMap, r: Tensor, gradient: Tensor, solver: Any
) -> Tensor:
    """Return the Newton or Gauss-Newton step by products; an inexact one is a step too."""
    if problem.fits:
        return normal_step(jacobian, gradient, torch.zeros_like(gradient[:, :1]), solver)
    return iterate(solver, LinearProblem(jacobian.jacobian, -r), torch.zeros_like(gradient)).z


def _dense_way(
    problem: EquationProblem,
    matrix: Tensor,
    state: DampedState,
    scale: Tensor,
    newton: Tensor,
    regular: Tensor,
) -> Way:
    """Return the way of a Jacobian that was formed, to the shortest step if it is singular."""
    r = state.residual
    gradient = (r.unsqueeze(-2) @ matrix).squeeze(-2)
    needed = both(no(problem.number(regular)), state.flag == 0)
    (end,) = renew(None, needed, (newton * scale,), _shortest, matrix / scale.unsqueeze(-2), r)

    def mv(v: Tensor) -> Tensor:
        return (matrix @ v.unsqueeze(-1)).squeeze(-1)

    return _way(problem, mv, problem.size(length, r), scale, gradient, end)


def _shortest(matrix: Tensor, r: Tensor) -> tuple[Tensor]:
    """Return the shortest step of those that minimize ``|r + J p|``."""
    s, weighted, vh = decomposed(matrix, r)
    q = torch.where(s > 0, weighted / s**2, 0.0)
    return (-(q.unsqueeze(-2) @ vh).squeeze(-2),)


def _way(
    problem: EquationProblem, mv: Any, size: Any, scale: Tensor, gradient: Tensor, end: Tensor
) -> Way:
    """Return the way by the best step along the gradient."""
    gradient = gradient / scale
    image, end_image = mv(gradient / scale), mv(end / scale)
    along_it = (image**2).sum(-1, keepdim=True)
    part = torch.where(along_it > 0, (gradient**2).sum(-1, keepdim=True) / along_it, 0.0)
    corner, corner_image = -part * gradient, -part * image
    # a step that rounding or an iterative solver spoiled ends the way at its corner
    fall = promised(problem, size, gradient, end, end_image)
    helps = fall >= promised(problem, size, gradient, corner, corner_image)
    end, end_image = pick(helps, (end, end_image), (corner, corner_image))
    return Way(scale, gradient, corner, corner_image, end, end_image)


def _within(problem: EquationProblem, way: Way, radius: Any) -> tuple[Tensor, Tensor]:
    """Return where the way from zero by the corner to the end leaves the region, and its image."""
    _, _, corner, corner_image, end, end_image = way
    if problem.branches and not isinstance(radius, Tensor) and problem.size(length, end) <= radius:
        return end, end_image
    radius = torch.as_tensor(radius, dtype=end.dtype, device=end.device).reshape(-1, 1)
    leg, reach = end - corner, length(corner).unsqueeze(-1)
    a, b = (leg**2).sum(-1, keepdim=True), (leg * corner).sum(-1, keepdim=True)
    c = (radius**2 - reach**2).clamp(min=0)
    root = (b**2 + a * c).sqrt()
    part = torch.where(b > 0, c / (b + root), (root - b) / a).clamp(max=1)
    part = torch.where(a > 0, part, 0.0)
    first = torch.where(reach >= radius, radius / reach, 1.0)
    part = torch.where(reach >= radius, 0.0, part)
    part = torch.where(length(end).unsqueeze(-1) <= radius, 1.0, part)
    first = torch.where(part == 1.0, 1.0, first)
    return first * corner + part * leg, first * corner_image + part * (end_image - corner_image)
