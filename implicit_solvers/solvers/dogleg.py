"""Powell's dogleg method. It knows steps, not how they are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, no, pick
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.choice import DENSE_LIMIT
from implicit_solvers.linear.gmres import GMRES
from implicit_solvers.linear.lu import LU
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.problem import EquationProblem
from implicit_solvers.residual_map import ResidualMap
from implicit_solvers.solvers.damped import DampedState
from implicit_solvers.solvers.gauss_newton import full_step, normal_step
from implicit_solvers.solvers.newton_first import Linear, NewtonFirst
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.solvers.trust_region import (
    Proposal,
    decomposed,
    length,
    promised,
    scales,
)

__all__ = ["Dogleg"]


class Way(NamedTuple):
    """From zero by the corner to the end, as scaled, with the images by ``J``, and ``J^T r``."""

    scale: Tensor
    gradient: Tensor
    corner: Tensor
    corner_image: Tensor
    end: Tensor
    end_image: Tensor


@dataclass(frozen=True)
class Dogleg(NewtonFirst):
    """Powell's dogleg: ``z <- z + p``, ``p`` on the way from steepest descent to Newton's step.

    For roots and fixed points (``r = F``) and for least squares. The way leads from zero to the
    minimum of ``|r + J p|`` along the gradient and on to its minimum everywhere, the Newton or
    Gauss-Newton step; ``p`` is where it leaves the region ``|D p| <= radius``, or its end. ``D``
    holds the largest norms that the columns of ``J`` have had, so that the units of the unknowns
    do not matter. Where ``J`` is singular or has fewer rows than columns, the shortest of the best
    steps takes the place of Newton's. A root that ends in a minimum of ``|F|`` is STALLED.
    Source: Powell, "A hybrid method for nonlinear equations" (1970); MINPACK's HYBRJ, with the
    Jacobian of every step.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    linear_solver
        An iterative solver that finds Newton's step with products: ``GMRES()`` for ``J p = -F``,
        or ``CG()`` for ``J^T J p = -J^T r`` (least squares); ``D`` is one then. Left out, ``J`` is
        formed and factored up to 512 unknowns (LU or QR); beyond,
        ``GMRES(rtol=1e-3)`` or ``CG(rtol=1e-3)``.
    first_radius
        The first radius, over the larger of ``|D z|`` and ``|r|``.
    shrinks
        How many times in a row the region may shrink.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def powell(z):
    ...     return torch.stack([1e4 * z[0] * z[1] - 1, torch.exp(-z).sum() - 1.0001])
    >>> start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    >>> ims.root(powell, start, solver=Dogleg()).value
    tensor([1.0982e-05, 9.1061e+00], dtype=torch.float64)
    """

    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "least_squares")

    def factorization(self, n: int) -> LU | None:
        """Return what the factors in the state are of, which the backward pass may use."""
        return LU() if self.linear_solver is None and n <= DENSE_LIMIT else None

    def _products(self, problem: EquationProblem, z: Tensor) -> Any:
        return self.by_products(z, _GRADIENTS if problem.fits else _PRODUCTS)

    def bold(self, problem: EquationProblem, z: Tensor) -> bool:
        """Tell whether Newton's steps are tried first: where a root's Jacobian is factored."""
        return not problem.fits and self._products(problem, z) is None

    def blank(self, problem: EquationProblem, z: Tensor, residuals: Tensor) -> Way | Linear:
        """Return a model of zeros."""
        none, image = torch.zeros_like(z), torch.zeros_like(residuals)
        if self.bold(problem, z):
            matrix = z.new_zeros(*z.shape, z.shape[-1])
            return Linear(none, matrix, LU().factor_dense(matrix))
        return Way(none, none, none, image, none, image)

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
            step, regular = full_step(problem, matrix, r)
            return _dense_way(problem, matrix, state, scales(matrix, before), step, regular), 0
        problem.identity(z)
        slope = problem.linearize(z)
        slope.matrices = matrix = slope.dense()
        scale = torch.zeros_like(z) if before is None else before
        return Linear(scale, matrix, LU().factor(slope)), 0

    def propose(self, problem: EquationProblem, state: DampedState) -> Proposal:
        """Go along the way up to where it leaves the region."""
        way = state.memory
        if isinstance(way, Linear):
            direction = state.direction
            regular = torch.isfinite(direction).all(-1) & ~LU().unfit(way.factors)
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
    regular: Mask,
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


_GRADIENTS, _PRODUCTS = CG(rtol=1e-3), GMRES(rtol=1e-3)
