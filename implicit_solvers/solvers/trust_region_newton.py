"""Newton's method for minima, within a region that follows the merit of the quadratic model.

It knows one quadratic model, and no line search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import (
    Mask,
    both,
    divide,
    either,
    larger,
    no,
    nowhere,
    pick,
    spread,
)
from implicit_solvers.curvature import WithinCG, eigenvalues
from implicit_solvers.hyperparameters import check_count, check_number
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from implicit_solvers.outcome import contracted
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import DENSE_LIMIT
from implicit_solvers.solvers.damped import Aim, DampedState
from implicit_solvers.solvers.descent import FARTHEST, Minimizer, dot, first_length, times
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.solvers.trust_region import length

__all__ = ["TrustRegion"]

_LOOSEST, _ORDER = 0.5, 1.5
_CORRECTIONS = 4


class Region(NamedTuple):
    """Where steps are looked for: within the ``radius``, infinite if it is still to be chosen.

    ``within`` is the radius of the last trial, ``reach`` its length and ``promised`` what it
    promised; ``whole`` tells where it was Newton's step. ``rejected`` counts trials in a row.
    """

    radius: Any
    rejected: Any
    within: Any
    reach: Any
    promised: Any
    whole: Mask


class Quadratic(NamedTuple):
    """The model ``g p + p H p / 2`` for the scaled step ``y = D p``: ``matrix = D^-1 H D^-1``.

    Both are in the ``unit`` of the first Hessian. ``whole`` is the step to the minimum where the
    model is ``convex``.
    """

    scale: Tensor
    unit: Tensor
    matrix: Tensor
    gradient: Tensor
    whole: Tensor
    convex: Mask
    forcing: float = 0.0

    def renewed(self, problem: EquationProblem, state: DampedState) -> Quadratic:
        """Return the model at the iterate, scaled by its largest curvatures so far."""
        problem.identity(state.z)
        H = problem.linearize(state.z).dense()
        unit = torch.where(self.unit > 0, self.unit, H.abs().amax((-2, -1)))
        unit = torch.where(unit > 0, unit, 1.0)
        H = H / unit.reshape(-1, 1, 1)
        scale = torch.maximum(self.scale, _scales(H))
        matrix = H / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
        gradient = state.residual / (unit.unsqueeze(-1) * scale)
        triangle, info = torch.linalg.cholesky_ex(matrix)
        whole = -torch.cholesky_solve(gradient.unsqueeze(-1), triangle).squeeze(-1)
        return Quadratic(scale, unit, matrix, gradient, whole, problem.number(info == 0))

    def propose(
        self, problem: EquationProblem, solver: TrustRegion, state: DampedState
    ) -> tuple[Tensor, Region]:
        """Return Newton's step, or one to the edge of the region."""
        region, radius, y = state.search, state.search.radius, self.whole
        unset = radius == torch.inf
        if not nowhere(unset):
            newton = pick(self.convex, y, self.gradient)
            radius = pick(unset, _first(problem, solver, self.scale * state.z, newton), radius)
        reach = problem.size(length, y)
        whole = both(self.convex, reach <= radius)
        needed = both(no(whole), state.flag == 0)
        if not nowhere(needed):
            limit = spread(radius, y)
            (y,) = renew(None, needed, (y,), _at_the_edge, self.matrix, self.gradient, limit)
            reach = problem.size(length, y)
        image = torch.bmm(self.matrix, y.unsqueeze(-1)).squeeze(-1)
        fall = -problem.number(self.unit * ((self.gradient + 0.5 * image) * y).sum(-1))
        region = region._replace(within=radius, reach=reach, promised=fall, whole=whole)
        return y / self.scale, region


class Products(NamedTuple):
    """How far the model by products is solved for; the first radius."""

    forcing: Any
    first: Any

    def renewed(self, problem: EquationProblem, state: DampedState) -> Products:
        """Ask for as much as the last step gained."""
        rate = divide(state.error, state.kept.error)
        return self._replace(forcing=pick(rate < _LOOSEST, rate, _LOOSEST) ** _ORDER)

    def propose(
        self, problem: EquationProblem, solver: TrustRegion, state: DampedState
    ) -> tuple[Tensor, Region]:
        """Return the step that conjugate gradients find in the region."""
        region, gradient = state.search, state.residual
        radius = pick(region.radius == torch.inf, self.first, region.radius)
        b = pick(state.flag == 0, times(divide(-1.0, radius), gradient), 0 * gradient)
        A = problem.linearize(state.z)
        forced = ForcedProblem(LinearProblem(A, b), spread(self.forcing, state.z))
        inner = WithinCG(max_steps=solver.max_products, compact=solver.compact)
        p = times(radius, iterate(inner, forced, 0 * gradient).z)
        fall = -problem.number((gradient * p).sum(-1) + 0.5 * (p * A.mv(p)).sum(-1))
        return p, region._replace(within=radius, reach=problem.size(length, p), promised=fall)


@dataclass(frozen=True)
class TrustRegion(Minimizer):
    """Newton's method in a trust region: ``p`` minimizes ``g p + p H p / 2`` in ``|D p| <= r``.

    The radius ``r`` grows and shrinks with the model's merit. Up to 512 unknowns the Hessian ``H``
    is formed and factored (Cholesky; its eigenvalues, where it is not positive definite or its step
    leaves the region), and negative curvature is followed to the edge, in the hard case too. ``D``
    holds the largest ``sqrt(|H_ii|)`` so far, so that the units of the unknowns do not matter.
    Beyond, ``p`` is found by conjugate gradients, which end at the edge of the region, where they
    go along nonpositive curvature too, or at the relative residual of `NewtonCG`; ``D`` is one. A
    trial is accepted if the objective falls by ``1e-4`` of what the model promised; where that is
    lost in rounding, the slopes at both ends are used instead. A problem whose region has shrunk
    too often ends as STALLED. Source: Moré and Sorensen, "Computing a trust region step", SIAM J.
    Sci. Stat. Comput. 4 (1983); Steihaug, "The conjugate gradient method and trust regions in large
    scale optimization", SIAM J. Numer. Anal. 20 (1983); ``D``: Moré, "The Levenberg-Marquardt
    algorithm: implementation and theory" (1978).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    first_radius
        The first radius, over ``|D z|``; if the start is about zero, over the length of Newton's
        step, or beyond 512 unknowns, of ten steps to the minimum along the gradient.
    shrinks
        How many times in a row the region may shrink.
    max_products
        The number of products with the Hessian allowed in a step, beyond 512 unknowns.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def rosenbrock(z):
    ...     return ((1 - z[:-1]) ** 2 + 100 * (z[1:] - z[:-1] ** 2) ** 2).sum()
    >>> start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    >>> ims.minimize(rosenbrock, start, solver=TrustRegion()).value
    tensor([1., 1.], dtype=torch.float64)
    """

    max_steps: int = field(default=500, kw_only=True)
    first_radius: float = 1.0
    shrinks: int = 30
    max_products: int = 200
    solves: ClassVar[tuple[str, ...]] = ("minimize",)

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_number(self, "first_radius", above=0)
        check_count(self, "shrinks")
        check_count(self, "max_products", least=1)

    def objective(self, problem: EquationProblem, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return objective and gradient; the same evaluation serves the Hessian."""
        return problem.value_and_gradient_to_linearize(z)

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> Any:
        """Return a model of zeros, or how far that by products is solved for."""
        if z.shape[-1] > DENSE_LIMIT:
            down = first_length(problem, self, z, residual)
            first = _first(problem, self, z, times(FARTHEST * down, residual))
            loosest = _LOOSEST if problem.branches else torch.full_like(first, _LOOSEST)
            return Products(loosest, first)
        none, matrix = torch.zeros_like(z), z.new_zeros(*z.shape, z.shape[-1])
        return Quadratic(none, none[:, 0], matrix, none, none, none[:, 0] > 0)

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Model the objective where a trial was accepted."""
        model = pick(state.accepted, state.memory.renewed(problem, state), state.memory)
        return Aim(state.direction, model, state.flag)

    def start(self, problem: EquationProblem, state: DampedState, length: Any) -> tuple[Any, Any]:
        """Look within the region that has proved itself."""
        region = state.search
        if region is None:
            none = 0 * state.error
            never = 0 if problem.branches else torch.zeros_like(none, dtype=torch.int64)
            region = Region(none + torch.inf, never, none, none, none, none > 0)
        return length, region._replace(rejected=0 * region.rejected)

    def again(self, state: DampedState) -> tuple[Any, Any, Mask]:
        """Look within a smaller region."""
        region = state.search
        return state.length, region._replace(rejected=region.rejected + 1), False

    def ahead(self, problem: EquationProblem, state: DampedState) -> tuple[Tensor, DampedState]:
        """Make the best step within the radius."""
        step, region = state.memory.propose(problem, self, state)
        return state.z + step, state._replace(search=region)

    def pays(self, problem: EquationProblem, state: DampedState) -> DampedState:
        """Tell where the step kept enough of its promise, and where none will."""
        region, kept, eps = state.search, state.kept, torch.finfo(state.z.dtype).eps
        p = state.z - kept.z
        slope, fall = dot(problem, p, kept.residual), kept.value - state.value
        noise = eps ** (2 / 3) * abs(kept.value)
        drowned = both(region.promised <= noise, abs(fall) <= noise)
        fall = pick(drowned, -0.5 * (slope + dot(problem, p, state.residual)), fall)
        ratio, finite = divide(fall, region.promised), state.error < torch.inf
        pays, step = both(ratio >= 1e-4, finite), problem.size(self.norm, p)
        if self.rtol is not None:
            scale, before = problem.scale(self, state.z), kept.error
            left = larger(state.error, state.memory.forcing * before)
            # what Newton's last steps gain drowns in rounding: they are made, and examined
            small = both(both(region.whole, step <= eps**0.5 * scale), finite)
            pays = either(pays, small)
            estimate = contracted(step, left, before)
            estimate = pick(both(small, estimate == math.inf), 0.0, estimate)
            state = state._replace(estimate=estimate)
        known, stalled = region.promised == region.promised, int(Status.STALLED)
        stuck = either(either(region.rejected >= self.shrinks, step == 0), no(region.promised > 0))
        why = pick(known, 0 if self.rtol is None else stalled, int(Status.NONFINITE))
        flag = pick(both(both(stuck, no(pays)), state.flag == 0), why, state.flag)
        region = region._replace(radius=_resized(region, ratio, slope, fall))
        return state._replace(accepted=pays, search=region, flag=flag)


def _first(problem: EquationProblem, solver: TrustRegion, z: Tensor, down: Tensor) -> Any:
    """Return the first radius, by the length of ``z``, or if that is nothing, of a step."""
    size, step = problem.size(length, z), problem.size(length, down)
    radius = pick(size > torch.finfo(z.dtype).eps ** 0.5 * step, size, step)
    return solver.first_radius * pick(radius > 0, radius, 1.0)


def _resized(region: Region, ratio: Any, slope: Any, fall: Any) -> Any:
    """Return the radius after a step that kept ``ratio`` of its promise.

    Less than a quarter: where a parabola has its minimum, between a tenth and a half of the step.
    More than three quarters: twice the step, and no less than before. Source: Moré, as above.
    """
    radius, reach = region.within, region.reach
    part = divide(0.5 * slope, slope + fall)
    part = pick(part > 0.1, pick(part < 0.5, part, 0.5), 0.1)
    grown = pick(ratio >= 0.75, larger(radius, 2 * reach), radius)
    return pick(ratio >= 0.25, grown, part * pick(reach < radius, reach, radius))


def _scales(H: Tensor) -> Tensor:
    """Return ``sqrt(|H_ii|)``; where that is zero, what others ask of it, or that of the largest.

    A minimum has ``H_ij^2 <= H_ii H_jj``: ``H_ij^2 / |H_jj|`` has the unit of ``H_ii``.
    """
    bends = H.diagonal(dim1=-2, dim2=-1).abs()
    known = bends > torch.finfo(H.dtype).eps
    asked = torch.where(known, 1 / bends, 0.0).unsqueeze(-2) * H**2
    squares = torch.where(bends > 0, bends, asked.amax(-1))
    squares = torch.where(squares > 0, squares, H.abs().amax((-2, -1)).unsqueeze(-1))
    return torch.where(squares > 0, squares, 1.0).sqrt()


def _at_the_edge(matrix: Tensor, gradient: Tensor, radius: Tensor) -> tuple[Tensor]:
    """Return the least of the models within the radius, of which up to 1.1 will do."""
    values, vectors, _ = eigenvalues(matrix)
    c, radius = (gradient.unsqueeze(-2) @ vectors).squeeze(-2), radius.unsqueeze(-1)
    # the multiplier counts from where the matrix becomes singular, so that no digit is lost there
    lowest, above = values[:, :1], values - values[:, :1]
    # none of the components may be longer than the radius
    shift = torch.maximum((c.abs() / radius - above).amax(-1, keepdim=True), lowest.clamp(min=0))
    for _ in range(_CORRECTIONS):
        # Newton's method for 1 / |q(shift)| = 1 / radius, which it approaches from below
        q = _part(c, above + shift)
        reach = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
        slope = _part(q**2, above + shift).sum(-1, keepdim=True)
        closer = shift + (reach / radius - 1) * reach**2 / slope
        shift = torch.where(reach > 1.1 * radius, closer, shift)
    q = -_part(c, above + shift)
    # the hard case: along the lowest curvature nothing but the edge ends the step
    left = (radius**2 - (q**2).sum(-1, keepdim=True)).clamp(min=0).sqrt()
    more = torch.where((lowest < 0) & (shift == 0), left, 0.0)
    q = torch.cat([q[:, :1] + more, q[:, 1:]], -1)
    return ((q.unsqueeze(-2) @ vectors.mT).squeeze(-2),)


def _part(a: Tensor, divisor: Tensor) -> Tensor:
    """Return ``a / divisor``, zero where that is zero."""
    return torch.where(divisor > 0, a / divisor, 0.0)
