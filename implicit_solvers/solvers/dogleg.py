"""Powell's dogleg method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.hyperparameters import check_count, check_number
from implicit_solvers.iterate import IterativeSolver, iterate
from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.gmres import GMRES
from implicit_solvers.linear.lu import LU
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solver import (
    EquationMethod,
    Factors,
    LinearMethod,
    LinearSolver,
    check_linear_solver,
)
from implicit_solvers.solvers.gauss_newton import full_step, iterative_solver, normal_step
from implicit_solvers.solvers.newton import solve_factored
from implicit_solvers.solvers.trust_region import (
    LinearModel,
    TrustRegionState,
    decomposed,
    length,
    linearized,
    modeled,
    search,
    start,
    where_lanes,
)
from implicit_solvers.traced_loop import alias, inside, repeat

__all__ = ["Dogleg"]

_PAYS_WELL = 0.5


@dataclass(frozen=True)
class Dogleg(EquationMethod):
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
        How many times the region may shrink in a step.
    reuse
        The factors of a root's Jacobian serve for further steps ``z <- z + p``, ``J p = -F(z)``,
        where these would end the solve within so many, at the rate at which the last step
        reduced the residual; 0: every step linearizes. Each lane decides for itself. Such a step
        costs one evaluation; one that does not halve the residual is taken back, and counts.

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

    max_steps: int = field(default=200, kw_only=True)
    linear_solver: LinearSolver | None = None
    first_radius: float = 1.0
    shrinks: int = 30
    reuse: int = 2
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "least_squares")

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_linear_solver(self, kind=LinearMethod)
        check_number(self, "first_radius", above=0)
        check_count(self, "shrinks")
        check_count(self, "reuse")

    def _linear_solver(self, problem: EquationProblem, z: Tensor) -> IterativeSolver | None:
        return iterative_solver(self, z, CG(rtol=1e-3) if problem.fits else GMRES(rtol=1e-3))

    @property
    def _reuses(self) -> bool:
        return self.rtol is not None and self.reuse > 0

    def init(self, problem: EquationProblem, z: Tensor) -> TrustRegionState:
        """Evaluate the residuals at the start."""
        factors: tuple[Tensor, ...] = ()
        # a graph leaves none to the backward pass, and need not have them if they serve once only
        needed = self._reuses or not compiling()
        if needed and self._linear_solver(problem, z) is None and not problem.fits:
            # before the first step: the factors of the identity
            eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
            one = LU().factor_dense(eye.unsqueeze(0))
            factors = tuple(t.expand(len(z), *t.shape[1:]) for t in one)
        return start(problem, self.norm, z, factors)

    def step(self, problem: EquationProblem, state: TrustRegionState) -> TrustRegionState:
        """Step with the factors at hand where they serve, and with a new Jacobian elsewhere."""
        running = state.flag == 0
        fresh, stale = running & ~state.stale, running & state.stale
        if compiling() or not state.factors or not bool(fresh.any()):
            return self._linearize(problem, state)
        if 2 * int(stale.sum()) > len(stale):
            return _merged(problem, state, fresh, self._linearize(problem, state), self._chord)
        return _merged(problem, state, stale, self._chord(problem, state), self._linearize)

    def _chord(self, problem: EquationProblem, state: TrustRegionState) -> TrustRegionState:
        return self._newton(problem, state, ~state.stale, 0.5)

    def _linearize(self, problem: EquationProblem, state: TrustRegionState) -> TrustRegionState:
        """Take Newton's whole step where that pays well, and follow the dogleg elsewhere."""
        solver = self._linear_solver(problem, state.z)
        if solver is not None or problem.fits:
            model = linearized(problem, state, dense=solver is None)
            newton = (
                _fitted(model, state.flag) if solver is None else _iterated(problem, model, solver)
            )
            return search(problem, self, state, model, _Way(model, newton, state.flag))
        if compiling():
            return self._linearize_in_graph(problem, state)
        matrix, factors = _factored(problem, state.z)
        state = state._replace(factors=factors)
        whole = self._newton(problem, state, torch.ones_like(state.stale), _PAYS_WELL)
        slow = (state.flag == 0) & ~(whole.error <= _PAYS_WELL * state.error)
        return _merged(problem, state, slow, whole, self._follow, matrix)

    def _linearize_in_graph(
        self, problem: EquationProblem, state: TrustRegionState
    ) -> TrustRegionState:
        """Linearize all lanes if one is stale; Newton's step is by whatever factors a lane has."""
        kept, stale = state.factors, (state.flag == 0) & state.stale
        if kept and self._reuses:

            def renewed(carry: tuple[Tensor, Factors]) -> tuple[Tensor, Factors]:
                matrix, factors = _factored(inside(problem), alias(state.z))
                return matrix, where_lanes(stale, factors, carry[1])

            z = state.z
            none = z.new_zeros(*z.shape, z.shape[-1])
            matrix, factors = repeat(lambda _: stale.any(), renewed, (none, kept), 1)
        else:
            matrix, factors = _factored(problem, state.z)
        state = state._replace(factors=factors)
        whole = self._newton(problem, state, torch.ones_like(stale), _PAYS_WELL)
        slow = stale & ~(whole.error <= _PAYS_WELL * state.error)

        def follow(carry: TrustRegionState) -> TrustRegionState:
            factors = tuple(alias(t) for t in state.factors)
            alone = state._replace(flag=(~slow).to(state.flag.dtype), factors=factors)
            new = self._follow(inside(problem), alone, matrix)
            return new._replace(factors=()).where(slow, carry)

        new = repeat(lambda _: slow.any(), follow, whole._replace(factors=()), 1)
        return new._replace(factors=factors if kept else ())

    def _follow(
        self, problem: EquationProblem, state: TrustRegionState, matrix: Tensor
    ) -> TrustRegionState:
        """Go along the dogleg to the edge of the region, and shrink it until the step pays."""
        model = modeled(matrix, state)
        newton, flag = solve_factored(LU(), state.factors, -state.residuals)
        regular = (flag == 0) & torch.isfinite(newton).all(-1)
        newton = _with_shortest(model, newton, regular, state.flag)
        found = search(problem, self, state, model, _Way(model, newton, state.flag))
        return found._replace(stale=~(regular & self._soon(problem, found, state.error)))

    def _newton(
        self, problem: EquationProblem, state: TrustRegionState, allowed: Tensor, goal: float
    ) -> TrustRegionState:
        """Make Newton's step by the factors, where allowed and if ``|F|`` falls by the ``goal``."""
        p = LU().solve(state.factors, -state.residuals.unsqueeze(-1), False).squeeze(-1)
        trial = state.z + p
        residuals = problem.residuals(trial)
        error = self.norm(residuals)
        pays = allowed & (error <= goal * state.error)
        take = pays.unsqueeze(-1)
        new = state._replace(
            z=torch.where(take, trial, state.z),
            residuals=torch.where(take, residuals, state.residuals),
            error=torch.where(pays, error, state.error),
        )
        return new._replace(stale=~(pays & self._soon(problem, new, state.error)))

    def _soon(self, problem: EquationProblem, state: TrustRegionState, before: Tensor) -> Tensor:
        """Tell where the rate of the last step, from then on, leads to the end soon enough."""
        if not self._reuses:
            return torch.zeros_like(state.stale)
        left = (state.error / problem.tolerance(self, state.z)).log().clamp(min=0)
        return (state.error < before) & (left <= self.reuse * (before / state.error).log())


def _merged(
    problem: EquationProblem,
    state: TrustRegionState,
    which: Tensor,
    other: TrustRegionState,
    compute: Callable[..., TrustRegionState],
    *lanes: Tensor,
) -> TrustRegionState:
    """Return ``compute(problem, state, *lanes)`` in some of the lanes, and the other elsewhere."""
    if not bool(which.any()):
        return other
    if bool(which.all()):
        return compute(problem, state, *lanes)
    index = which.nonzero().squeeze(-1)
    if not problem.separable:
        return other.put(index, compute(problem, state, *lanes).take(index))
    part = compute(problem.take(index), state.take(index), *(t[index] for t in lanes))
    return other.put(index, part)


def _factored(problem: EquationProblem, z: Tensor) -> tuple[Tensor, Factors]:
    """Return the Jacobian at ``z`` and its factors."""
    matrix = problem.linearize_residuals(z).dense()
    return matrix, LU().factor_dense(matrix)


class _Way:
    """The points ``p`` where the way from zero to Newton's step leaves ``|D p| <= radius``."""

    def __init__(self, model: LinearModel, newton: Tensor, flag: Tensor) -> None:
        self.model, self.newton = model, newton
        self.fall = model.fall(newton)
        # rounding or an iterative solver may have spoiled the step
        reach = torch.where(self.fall >= 0.99, length(newton * model.scale), torch.inf)
        self.reach = torch.where(flag != 0, 0.0, reach)

    def __call__(self, radius: Tensor, legs: Any) -> tuple[Tensor, Tensor, Any]:
        """Return the point for each radius ``(N,)``, what it promises, and the legs of the way."""
        if compiling():
            return *self._in_graph(radius), legs
        if bool((self.reach <= radius).all()):
            return self.newton, self.fall, legs
        legs = self._legs() if legs is None else legs
        return *self._bend(legs, radius), legs

    def _in_graph(self, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the legs anew for each radius, rather than carry them around."""

        def bend(_: Any) -> tuple[Tensor, Tensor]:
            return self._bend(self._legs(), radius)

        whole = self.newton, self.fall
        if self.model.matrix is not None:
            return bend(whole)
        # products are not as cheap as a matrix
        bent: tuple[Tensor, Tensor] = repeat(
            lambda _: ~(self.reach <= radius).all(), bend, whole, 1
        )
        return bent

    def _legs(self) -> tuple[Tensor, Tensor]:
        return _legs(self.model, self.newton, self.fall)

    def _bend(self, legs: tuple[Tensor, Tensor], radius: Tensor) -> tuple[Tensor, Tensor]:
        corner, end = legs
        p = _within(corner, end, radius.unsqueeze(-1)) / self.model.scale
        return p, self.model.fall(p)


def _fitted(model: LinearModel, flag: Tensor) -> Tensor:
    """Return the Gauss-Newton step."""
    assert model.matrix is not None
    return _with_shortest(model, *full_step(model.matrix, model.residuals), flag)


def _with_shortest(model: LinearModel, newton: Tensor, regular: Tensor, flag: Tensor) -> Tensor:
    """Put the shortest of the best steps where the Jacobian of a running lane is not regular."""
    needed = ~regular & (flag == 0)
    if compiling():

        def body(newton: Tensor) -> Tensor:
            return torch.where(needed.unsqueeze(-1), _shortest(model), newton)

        return repeat(lambda _: needed.any(), body, newton, 1)
    if not bool(needed.any()):
        return newton
    index = needed.nonzero().squeeze(-1)
    return newton.index_copy(0, index, _shortest(model.take(index)))


def _shortest(model: LinearModel) -> Tensor:
    """Return the shortest step, as scaled, of those that minimize ``|r + J p|``."""
    s, weighted, vh = decomposed(model)
    q = torch.where(s > 0, weighted / s**2, 0.0)
    return -(q.unsqueeze(-2) @ vh).squeeze(-2) / model.scale


def _iterated(problem: EquationProblem, model: LinearModel, solver: IterativeSolver) -> Tensor:
    """Return the Newton or Gauss-Newton step by products; an inexact one is a step too."""
    if problem.fits:
        assert model.jacobian is not None
        damping = torch.zeros_like(model.gradient[:, :1])
        return normal_step(model.jacobian, model.gradient, damping, solver)
    assert model.jacobian is not None
    linear = LinearProblem(model.jacobian.jacobian, -model.residuals)
    return iterate(solver, linear, torch.zeros_like(model.gradient)).z


def _legs(model: LinearModel, newton: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
    """Return, scaled, the best step along the gradient and the end of the way."""
    gradient = model.gradient / model.scale
    along = length(model.mv(gradient / model.scale)) ** 2
    corner = -gradient * (length(gradient) ** 2 / along).unsqueeze(-1)
    corner = torch.where((along > 0).unsqueeze(-1), corner, 0.0)
    # a step that rounding or an iterative solver spoiled ends the way at its corner
    helps = fall >= model.fall(corner / model.scale)
    return corner, torch.where(helps.unsqueeze(-1), newton * model.scale, corner)


def _within(corner: Tensor, end: Tensor, radius: Tensor) -> Tensor:
    """Return where the way from zero by ``corner`` to ``end`` leaves the ball of the radius."""
    leg, reach = end - corner, length(corner).unsqueeze(-1)
    a, b = (leg**2).sum(-1, keepdim=True), (leg * corner).sum(-1, keepdim=True)
    c = (radius**2 - reach**2).clamp(min=0)
    root = (b**2 + a * c).sqrt()
    part = torch.where(b > 0, c / (b + root), (root - b) / a).clamp(max=1)
    second = corner + torch.where(a > 0, part, 0.0) * leg
    p = torch.where(reach >= radius, corner * (radius / reach), second)
    return torch.where(length(end).unsqueeze(-1) <= radius, end, p)
