"""Powell's dogleg method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from implicit_solvers.iterate import IterativeSolver, iterate
from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.gmres import GMRES
from implicit_solvers.linear.lu import LU
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.linear.specification import LinearSolver
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solvers.gauss_newton import full_step, iterative_solver, normal_step
from implicit_solvers.solvers.trust_region import (
    LinearModel,
    TrustRegionState,
    decomposed,
    length,
    linearized,
    search,
    start,
)
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["Dogleg"]


@dataclass(frozen=True)
class Dogleg:
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
    rtol, atol
        A lane has converged when ``norm(F(z)) <= atol + rtol norm(z)`` or, for least squares,
        ``norm(J^T r) <= atol + rtol norm(z)``; both default to ``eps**0.75``. ``rtol=None`` makes
        exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of steps allowed.
    linear_solver
        An iterative solver that finds Newton's step with products: ``GMRES()`` for ``J p = -F``,
        or ``CG()`` for ``J^T J p = -J^T r`` (least squares); ``D`` is one then. Left out, ``J`` is
        formed and factored up to 512 unknowns (LU, kept for the backward pass, or QR); beyond,
        ``GMRES(rtol=1e-3)`` or ``CG(rtol=1e-3)``.
    first_radius
        The first radius, over the larger of ``|D z|`` and ``|r|``.
    shrinks
        How many times the region may shrink in a step.
    norm
        Maps residuals or gradients ``(N, n)`` to ``(N,)``.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.

    Raises
    ------
    TypeError
        If ``linear_solver`` is not an iterative solver.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def powell(z):
    ...     return torch.stack([1e4 * z[0] * z[1] - 1, torch.exp(-z).sum() - 1.0001])
    >>> start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    >>> ims.root(powell, start, solver=Dogleg()).value
    tensor([1.0982e-05, 9.1061e+00], dtype=torch.float64)
    """

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 200
    linear_solver: LinearSolver | None = None
    first_radius: float = 1.0
    shrinks: int = 30
    norm: Norm = rms
    compact: bool = True
    monotone: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "least_squares")

    def _linear_solver(self, problem: EquationProblem, z: Tensor) -> IterativeSolver | None:
        return iterative_solver(self, z, CG(rtol=1e-3) if problem.fits else GMRES(rtol=1e-3))

    def init(self, problem: EquationProblem, z: Tensor) -> TrustRegionState:
        """Evaluate the residuals at the start."""
        factors: tuple[Tensor, ...] = ()
        if self._linear_solver(problem, z) is None and not problem.fits:
            # before the first step: the factors of the identity
            eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
            factors = LU().factor_dense(eye.expand(len(z), -1, -1))
        return start(problem, self.norm, z, factors)

    def step(self, problem: EquationProblem, state: TrustRegionState) -> TrustRegionState:
        """Follow the dogleg to the edge of the region, and shrink it until the step pays."""
        solver = self._linear_solver(problem, state.z)
        model = linearized(problem, state, dense=solver is None)
        if solver is None:
            newton, factors = _factored(problem, model)
            state = state._replace(factors=factors)
        else:
            newton = _iterated(problem, model, solver)
        corner, end = _legs(model, newton)

        def propose(radius: Tensor) -> Tensor:
            return _within(corner, end, radius.unsqueeze(-1)) / model.scale

        return search(problem, self, state, model, propose)


def _factored(problem: EquationProblem, model: LinearModel) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the Newton or Gauss-Newton step by a factorization, and the factors of a root's."""
    assert model.matrix is not None
    factors: tuple[Tensor, ...] = ()
    if problem.fits:
        newton, regular = full_step(model.matrix, model.residuals)
    else:
        factors = LU().factor_dense(model.matrix)
        newton = LU().solve(factors, -model.residuals.unsqueeze(-1), False).squeeze(-1)
        regular = (LU().status(factors) == 0) & torch.isfinite(newton).all(-1)
    if not bool(regular.all()):
        newton = torch.where(regular.unsqueeze(-1), newton, _shortest(model))
    return newton, factors


def _shortest(model: LinearModel) -> Tensor:
    """Return the shortest step, as scaled, of those that minimize ``|r + J p|``."""
    s, weighted, vh = decomposed(model)
    q = torch.where(s > 0, weighted / s**2, 0.0)
    return -(q.unsqueeze(-2) @ vh).squeeze(-2) / model.scale


def _iterated(problem: EquationProblem, model: LinearModel, solver: IterativeSolver) -> Tensor:
    """Return the Newton or Gauss-Newton step by products; an inexact one is a step too."""
    if problem.fits:
        damping = torch.zeros_like(model.gradient[:, :1])
        return normal_step(model.jacobian, model.gradient, damping, solver)
    linear = LinearProblem(model.jacobian.jacobian, -model.residuals)
    return iterate(solver, linear, torch.zeros_like(model.gradient)).z


def _legs(model: LinearModel, newton: Tensor) -> tuple[Tensor, Tensor]:
    """Return, scaled, the best step along the gradient and the end of the way."""
    gradient = model.gradient / model.scale
    along = length(model.mv(gradient / model.scale)) ** 2
    corner = -gradient * (length(gradient) ** 2 / along).unsqueeze(-1)
    corner = torch.where((along > 0).unsqueeze(-1), corner, 0.0)
    # a step that rounding or an iterative solver spoiled ends the way at its corner
    helps = model.fall(newton) >= model.fall(corner / model.scale)
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
