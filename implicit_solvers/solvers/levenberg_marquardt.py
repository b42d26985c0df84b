"""The Levenberg-Marquardt method. It knows no curvature of residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, divide, no, nowhere, pick
from implicit_solvers.linear.cg import CG
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solvers.damped import DampedState
from implicit_solvers.solvers.gauss_newton import full_step, normal_step
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.solvers.trust_region import (
    Proposal,
    ScaledRegion,
    decomposed,
    length,
    promised,
    scales,
)

__all__ = ["LevenbergMarquardt"]

_CORRECTIONS = 4


class Damping(NamedTuple):
    """The model: ``J / scale``, the step without damping, as scaled, and where that is regular."""

    scale: Tensor
    matrix: Tensor
    full: Tensor
    regular: Mask


class Unscaled(NamedTuple):
    """What is left of a model by products."""

    scale: float = 1.0


@dataclass(frozen=True)
class LevenbergMarquardt(ScaledRegion):
    """Levenberg-Marquardt: ``z <- z + p``, ``p`` minimizes ``|r + J p|^2 + damping |D p|^2``.

    For least squares and, with ``r = F``, for roots and fixed points. The damping is such that ``|D
    p|`` is at most the radius of a region that grows and shrinks with the model's merit; ``D``
    holds the largest norms that the columns of ``J`` have had, so that the units of the unknowns do
    not matter. ``J`` may be singular, and have fewer rows than columns; then the solution is one of
    many, near the start, and SINGULAR. A root that ends in a minimum of ``|F|`` is STALLED. Source:
    Moré, "The Levenberg-Marquardt algorithm: implementation and theory" (1978).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    linear_solver
        An iterative solver (``CG()``) that solves ``(J^T J + damping) p = -J^T r`` with products;
        ``D`` is one then, and the damping ``|J^T r|`` over the radius. Left out, ``J`` is formed
        and factored (QR, and SVD where damping is needed) up to 512 unknowns; beyond,
        ``CG(rtol=1e-3)``.
    first_radius
        The first radius, over the larger of ``|D z|`` and ``|r|``; of a fit, over ``|D z|``, if
        the start is not about zero.
    shrinks
        How many times the region may shrink in a step.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> t, y = torch.arange(3.0), torch.tensor([1.0, 2.0, 4.0])
    >>> solver = LevenbergMarquardt()
    >>> fit = lambda z: z[0] * torch.exp(z[1] * t) - y
    >>> ims.least_squares(fit, torch.tensor([3.0, 0.0]), solver=solver).value
    tensor([1.0000, 0.6931])
    """

    solves: ClassVar[tuple[str, ...]] = (
        "root",
        "fixed_point",
        "least_squares",
        "least_squares with bounds",
    )

    def blank(self, problem: EquationProblem, z: Tensor, residuals: Tensor) -> Any:
        """Return a model of zeros."""
        if self.by_products(z, _PRODUCTS) is not None:
            return Unscaled()
        matrix = z.new_zeros(len(z), residuals.shape[-1], z.shape[-1])
        return Damping(torch.zeros_like(z), matrix, torch.zeros_like(z), z[:, 0] == torch.inf)

    def modeled(self, problem: EquationProblem, state: DampedState) -> tuple[Any, Any]:
        """Form the Jacobian, if it is to be, and find the step without damping."""
        if self.by_products(state.z, _PRODUCTS) is not None:
            return Unscaled(), 0
        matrix = problem.linearize_residuals(state.z).dense()
        scale = scales(matrix, None if state.memory is None else state.memory.scale)
        matrix = matrix / scale.unsqueeze(-2)
        return Damping(scale, matrix, *full_step(problem, matrix, state.residual)), 0

    def propose(self, problem: EquationProblem, state: DampedState) -> Proposal:
        """Damp the step to the radius, of which up to 1.1 will do."""
        r, radius, model = state.residual, state.search.within, state.memory
        solver = self.by_products(state.z, _PRODUCTS)
        if solver is not None:
            jacobian = problem.linearize_residuals(state.z)
            gradient = jacobian.rmv(r)
            damping = torch.as_tensor(divide(problem.size(length, gradient), radius), dtype=r.dtype)
            p = normal_step(jacobian, gradient, damping.reshape(-1, 1), solver)
            p, reach, cut = _between(problem, state, p, None)
            image = jacobian.mv(p)
        else:
            p, reach, cut = _between(problem, state, *_damped(problem, state))
            image = torch.bmm(model.matrix, p.unsqueeze(-1)).squeeze(-1)
        fall = promised(problem, state.search.size, r, image, image)
        # what bounds have bent need not lead down, as a shorter step does
        fall = pick(both(cut, no(fall > 0)), torch.inf, fall)
        return Proposal(p / model.scale, reach, fall)

    def grown(self, state: DampedState, ratio: Any) -> Any:
        """Return the radius after a step that kept more than half of its promise."""
        # steps by products never reach the edge
        by_products = self.by_products(state.z, _PRODUCTS) is not None
        return 2 * state.search.within if by_products else super().grown(state, ratio)


_PRODUCTS = CG(rtol=1e-3)


def _between(
    problem: EquationProblem, state: DampedState, p: Tensor, reach: Any
) -> tuple[Tensor, Any, Mask]:
    """Return a scaled step as far as bounds allow, its length, and where they cut it."""
    if problem.bounds is None:
        return p, problem.size(length, p) if reach is None else reach, False
    z, scale = state.z, state.memory.scale
    there = z + p / scale
    inside = problem.within(there)
    cut = inside != there
    p = torch.where(cut, (inside - z) * scale, p)
    return p, problem.size(length, p), problem.number(cut.any(-1))


def _damped(problem: EquationProblem, state: DampedState) -> tuple[Tensor, Any]:
    """Return the scaled ``p`` that minimizes ``|r + J p|`` about within the radius, and ``|p|``."""
    model, r, radius = state.memory, state.residual, state.search.within
    reach = problem.size(length, model.full)
    needed = both(no(both(model.regular, reach <= radius)), state.flag == 0)
    if nowhere(needed):
        return model.full, reach
    limit = torch.as_tensor(radius, dtype=r.dtype, device=r.device).expand(len(r)).contiguous()
    (p,) = renew(None, needed, (model.full,), _at_the_edge, model.matrix, r, limit)
    return p, problem.size(length, p)


def _at_the_edge(matrix: Tensor, r: Tensor, limit: Tensor) -> tuple[Tensor]:
    """Return the steps with a damping that makes each about as long as the limit."""
    s, weighted, vh = decomposed(matrix, r)
    limit = limit.unsqueeze(-1)
    # none of the components may be longer than the limit
    damping = (weighted.abs() / limit - s**2).amax(-1, keepdim=True).clamp(min=0)
    for _ in range(_CORRECTIONS):
        # Newton's method for 1 / |q(damping)| = 1 / limit, which it approaches from below
        divisor = s**2 + damping
        q = torch.where(divisor > 0, weighted / divisor, 0.0)
        reach = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
        slope = torch.where(divisor > 0, q**2 / divisor, 0.0).sum(-1, keepdim=True)
        closer = damping + (reach / limit - 1) * reach**2 / slope
        damping = torch.where(reach > 1.1 * limit, closer, damping)
    divisor = s**2 + damping
    q = torch.where(divisor > 0, weighted / divisor, 0.0)
    return (-(q.unsqueeze(-2) @ vh).squeeze(-2),)
