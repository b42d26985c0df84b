"""The Levenberg-Marquardt method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.hyperparameters import check_count, check_number
from implicit_solvers.linear.cg import CG
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solver import EquationMethod, LinearMethod, LinearSolver, check_linear_solver
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
from implicit_solvers.traced_loop import repeat

__all__ = ["LevenbergMarquardt"]


@dataclass(frozen=True)
class LevenbergMarquardt(EquationMethod):
    """Levenberg-Marquardt: ``z <- z + p``, ``p`` minimizes ``|r + J p|^2 + damping |D p|^2``.

    For least squares and, with ``r = F``, for roots and fixed points. The damping is such that
    ``|D p|`` is at most the radius of a region that grows and shrinks with the model's merit; ``D``
    holds the largest norms that the columns of ``J`` have had, so that the units of the unknowns
    do not matter. ``J`` may be singular, and have fewer rows than columns; then the solution is
    one of many, and the adjoint says that it has no derivative. A root's lane that ends in a
    minimum of ``|F|`` is STALLED. Source: Moré, "The Levenberg-Marquardt algorithm: implementation
    and theory" (1978).

    Parameters
    ----------
    rtol, atol, max_steps, max_trials, norm, compact, check_every, compile
        As in `EquationMethod`.
    linear_solver
        An iterative solver (``CG()``) that solves ``(J^T J + damping) p = -J^T r`` with products;
        ``D`` is one then, and the damping ``|J^T r|`` over the radius. Left out, ``J`` is formed
        and factored (QR, and SVD where damping is needed) up to 512 unknowns; beyond,
        ``CG(rtol=1e-3)``.
    first_radius
        The first radius, over the larger of ``|D z|`` and ``|r|``.
    shrinks
        How many times the region may shrink in a step.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> t, y = torch.arange(3.0), torch.tensor([1.0, 2.0, 4.0])
    >>> solver = LevenbergMarquardt()
    >>> fit = lambda z: z[0] * torch.exp(z[1] * t) - y
    >>> ims.least_squares(fit, torch.tensor([3.0, 0.0]), solver=solver).value
    tensor([1.0000, 0.6931])
    """

    max_steps: int = field(default=200, kw_only=True)
    linear_solver: LinearSolver | None = None
    first_radius: float = 1.0
    shrinks: int = 30
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "least_squares")

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_linear_solver(self, kind=LinearMethod)
        check_number(self, "first_radius", above=0)
        check_count(self, "shrinks")

    def init(self, problem: EquationProblem, z: Tensor) -> TrustRegionState:
        """Evaluate the residuals at the start."""
        return start(problem, self.norm, z)

    def step(self, problem: EquationProblem, state: TrustRegionState) -> TrustRegionState:
        """Damp the step until it pays."""
        solver = iterative_solver(self, state.z, CG(rtol=1e-3))
        model = linearized(problem, state, dense=solver is None)
        if solver is None:
            steps = _DampedSteps(model, state.flag)
            return search(problem, self, state, model, steps, memory=steps.memory)

        def propose(radius: Tensor, memory: None) -> tuple[Tensor, Tensor, None]:
            damping = (length(model.gradient) / radius).unsqueeze(-1)
            assert model.jacobian is not None
            p = normal_step(model.jacobian, model.gradient, damping, solver)
            return p, model.fall(p), None

        return search(problem, self, state, model, propose, damped=True)


class _Decomposition(NamedTuple):
    """What `decomposed` returns; in a graph, zeros as long as it is not ``known``."""

    known: Tensor
    s: Tensor
    weighted: Tensor
    vh: Tensor


class _DampedSteps:
    """The steps ``p`` that minimize ``|r + J p|`` in ``|D p| <= radius``, as a function of it."""

    def __init__(self, model: LinearModel, flag: Tensor) -> None:
        assert model.matrix is not None
        self.model = model
        matrix = model.matrix / model.scale.unsqueeze(-2)
        self.full, self.regular = full_step(matrix, model.residuals)
        self.reach, self.ended = length(self.full), flag != 0

    @property
    def memory(self) -> _Decomposition | None:
        """What is known before the first step."""
        if not compiling():
            return None
        assert self.model.matrix is not None
        (m, n), r = self.model.matrix.shape[-2:], self.model.residuals
        s, vh = r.new_zeros(len(r), min(m, n)), r.new_zeros(len(r), min(m, n), n)
        return _Decomposition(self.ended.new_zeros(()), s, s, vh)

    def __call__(self, radius: Tensor, memory: Any) -> tuple[Tensor, Tensor, Any]:
        """Return the steps, what they promise, and the decomposition if it is known by now.

        A length of up to 1.1 times the radius will do.
        """
        within = self.ended | (self.regular & (self.reach <= radius))
        p = self.full
        if compiling() or not bool(within.all()):
            memory = self._known(memory, ~within)
            limit = torch.where(within, torch.inf, radius).unsqueeze(-1)
            p = torch.where(within.unsqueeze(-1), p, _damped(memory, limit))
        p = p / self.model.scale
        return p, self.model.fall(p), memory

    def _known(self, memory: Any, needed: Tensor) -> _Decomposition:
        def compute(_: Any) -> _Decomposition:
            return _Decomposition(self.ended.new_ones(()), *decomposed(self.model))

        if compiling():
            found: _Decomposition = repeat(
                lambda memory: needed.any() & ~memory.known, compute, memory, 1
            )
            return found
        return compute(None) if memory is None else memory


def _damped(decomposition: _Decomposition, limit: Tensor) -> Tensor:
    """Return the steps, as scaled, with a damping that makes each about as long as the limit."""
    _, s, weighted, vh = decomposition
    edge = 1.1 * limit

    def damped(damping: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        divisor = s**2 + damping
        q = torch.where(divisor > 0, weighted / divisor, 0.0)
        return damping, divisor, q, length(q).unsqueeze(-1)

    def closer(carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Newton's method for 1 / |q(damping)| = 1 / radius, which it approaches from below
        damping, divisor, q, reach = carry
        slope = torch.where(divisor > 0, q**2 / divisor, 0.0).sum(-1, keepdim=True)
        newton = damping + (reach / limit - 1) * reach**2 / slope
        return damped(torch.where(reach > edge, newton, damping))

    # none of the components may be longer than the radius
    first = damped((weighted.abs() / limit - s**2).amax(-1, keepdim=True).clamp(min=0))
    _, _, q, _ = repeat(lambda carry: (carry[-1] > edge).any(), closer, first, 49)
    return -(q.unsqueeze(-2) @ vh).squeeze(-2)
