"""What trust-region solvers share: the scaled linear model, and the search for a step that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.problem import EquationProblem, ResidualMap
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import Auto, Norm
from implicit_solvers.traced_loop import alias, inside, repeat

__all__ = [
    "LinearModel",
    "TrustRegionState",
    "decomposed",
    "length",
    "linearized",
    "modeled",
    "search",
    "start",
    "where_lanes",
]


class TrustRegionState(NamedTuple):
    """The state of a trust-region solver.

    A step ``p`` is looked for in ``|scale p| <= radius``; an infinite radius is still to be
    chosen. ``factors`` are those of the last Jacobian, if it was factored; where they are
    ``stale``, the next step linearizes.
    """

    z: Tensor
    residuals: Tensor
    error: Tensor
    flag: Tensor
    scale: Tensor
    radius: Tensor
    stale: Tensor
    factors: tuple[Tensor, ...] = ()

    def take(self, index: Tensor) -> TrustRegionState:
        """Return the state of some of the lanes."""
        *lanes, factors = self
        return TrustRegionState(
            *(t[index] for t in lanes),  # type: ignore[arg-type]
            factors=tuple(t[index] for t in factors),  # type: ignore[misc]
        )

    def put(self, index: Tensor, part: TrustRegionState) -> TrustRegionState:
        """Return the state with other lanes at ``index``; without factors, these stay."""

        def merged(whole: Sequence[Tensor], part: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(t.index_copy(0, index, a) for t, a in zip(whole, part, strict=True))

        factors = merged(self.factors, part.factors) if part.factors else self.factors
        lanes = merged(self[:-1], part[:-1])
        return TrustRegionState(*lanes, factors=factors)  # type: ignore[misc, arg-type]

    def where(self, lanes: Tensor, other: TrustRegionState) -> TrustRegionState:
        """Return this state in some of the lanes ``(N,)``, and the other elsewhere."""
        parts = where_lanes(lanes, self[:-1], other[:-1])
        factors = where_lanes(lanes, self.factors, other.factors)
        return TrustRegionState(*parts, factors=factors)  # type: ignore[misc, arg-type]


def where_lanes(
    lanes: Tensor, these: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return tensors ``(N, ...)``: these in some of the lanes ``(N,)``, the others elsewhere."""
    return tuple(
        torch.where(lanes.reshape(-1, *(1,) * (a.dim() - 1)), a, b)
        for a, b in zip(these, others, strict=True)
    )


class TrustRegionSolver(Protocol):
    """The hyperparameters that `search` reads."""

    @property
    def rtol(self) -> float | Auto | None:
        """None for a budget."""

    @property
    def first_radius(self) -> float:
        """The first radius, over the larger of the scaled start and its residuals."""

    @property
    def shrinks(self) -> int:
        """How often the region may shrink in a step."""

    @property
    def norm(self) -> Norm:
        """The norm that judges."""


@dataclass(frozen=True)
class LinearModel:
    """``r + J p`` in every lane; ``matrix`` is ``J`` if it was formed, ``gradient`` is ``J^T r``.

    ``scale (N, n)`` measures steps in units of the residuals.
    """

    residuals: Tensor
    jacobian: ResidualMap | None
    matrix: Tensor | None
    scale: Tensor
    gradient: Tensor

    def mv(self, p: Tensor) -> Tensor:
        """Return ``J p``."""
        if self.matrix is None:
            assert self.jacobian is not None
            return self.jacobian.mv(p)
        return (self.matrix @ p.unsqueeze(-1)).squeeze(-1)

    def take(self, index: Tensor) -> LinearModel:
        """Return the model of some of the lanes, of a Jacobian that was formed."""
        assert self.matrix is not None
        parts = (t[index] for t in (self.matrix, self.scale, self.gradient))
        return LinearModel(self.residuals[index], None, *parts)

    def fall(self, p: Tensor) -> Tensor:
        """Return by which part of itself ``|r + J p|^2`` is less than ``|r|^2``."""
        # not as a difference of the two, which drowns in rounding near a minimum
        change = 2 * (self.gradient * p).sum(-1) + (self.mv(p) ** 2).sum(-1)
        return -change / length(self.residuals) ** 2


class Trials(NamedTuple):
    """Where a search stands: what it found, and in which lanes it goes on."""

    z: Tensor
    residuals: Tensor
    radius: Tensor
    flag: Tensor
    accepted: Tensor
    going: Tensor
    memory: Any


def length(v: Tensor) -> Tensor:
    """Return the Euclidean norm of each lane of ``(N, n)``."""
    return torch.linalg.vector_norm(v, dim=-1)


def start(
    problem: EquationProblem, norm: Norm, z: Tensor, factors: tuple[Tensor, ...] = ()
) -> TrustRegionState:
    """Evaluate the residuals at the start."""
    residuals = problem.residuals(z)
    error = _error(problem, norm, z, residuals)
    flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    unset = torch.full_like(error, torch.inf)
    stale = torch.ones_like(flag, dtype=torch.bool)
    return TrustRegionState(z, residuals, error, flag, torch.zeros_like(z), unset, stale, factors)


def _error(problem: EquationProblem, norm: Norm, z: Tensor, residuals: Tensor) -> Tensor:
    return norm(problem.residual(z) if problem.fits else residuals)


def linearized(problem: EquationProblem, state: TrustRegionState, dense: bool) -> LinearModel:
    """Return the model at the iterate; ``dense`` says whether to form the Jacobian."""
    jacobian, r = problem.linearize_residuals(state.z), state.residuals
    if dense:
        return modeled(jacobian.dense(), state)
    return LinearModel(r, jacobian, None, torch.ones_like(state.z), jacobian.rmv(r))


def modeled(matrix: Tensor, state: TrustRegionState) -> LinearModel:
    """Return the model of a Jacobian ``(N, m, n)`` that was formed.

    Each unknown is scaled by the largest norm that its column has had; one for a column of zeros.
    """
    largest = torch.maximum(state.scale, torch.linalg.vector_norm(matrix, dim=-2))
    scale = torch.where(largest > 0, largest, 1.0)
    r = state.residuals
    return LinearModel(r, None, matrix, scale, (r.unsqueeze(-2) @ matrix).squeeze(-2))


def decomposed(model: LinearModel) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``s``, ``s u^T r`` and ``v^T`` of ``J / scale = u s v^T``, cut to its rank."""
    assert model.matrix is not None
    matrix = model.matrix / model.scale.unsqueeze(-2)
    # one lane that is not finite would fail them all
    finite = torch.isfinite(matrix).flatten(1).all(-1)
    matrix = torch.where(finite.reshape(-1, 1, 1), matrix, 0.0)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    noise = max(matrix.shape[-2:]) * torch.finfo(s.dtype).eps * s[:, :1]
    s = torch.where(s > noise, s, 0.0)
    return s, s * (model.residuals.unsqueeze(-2) @ u).squeeze(-2), vh


def search(
    problem: EquationProblem,
    solver: TrustRegionSolver,
    state: TrustRegionState,
    model: LinearModel,
    propose: Callable[[Tensor, Any], tuple[Tensor, Tensor, Any]],
    *,
    memory: Any = None,
    damped: bool = False,
) -> TrustRegionState:
    """Shrink the region until the step that ``propose`` finds in it reduces ``|r|``.

    ``propose(radius, memory)`` returns the step, its `LinearModel.fall`, and what to remember for
    smaller radii. A step is taken if ``|r|^2`` falls by
    ``1e-4`` of what the model promised; near the minimum of a fit, where both falls drown in
    rounding, if the norm of the gradient falls. Where a root's model promises nothing any more,
    or no step pays, the lane is STALLED. Steps that are ``damped`` never reach the edge of the
    region.
    """
    size = length(state.residuals)
    radius = solver.first_radius * torch.maximum(length(model.scale * state.z), size)
    unset = torch.isinf(state.radius)
    radius = torch.where(unset, radius, state.radius)
    finite = torch.isfinite(model.gradient.sum(-1) + model.scale.sum(-1))
    flag = torch.where(finite, 0, int(Status.NONFINITE))

    def attempt(found: Trials) -> Trials:
        z, residuals, radius, flag, accepted, going, memory = found
        here = inside(problem)
        p, promised, memory = propose(radius, memory)
        trial = state.z + p
        new = here.residuals(trial)
        actual = 1 - (length(new) / size) ** 2
        ratio = actual / promised
        stuck = torch.zeros_like(going)
        well = ((ratio >= 0.9) & (promised > 0.5)) | ~going
        if not compiling() and bool(well.all()):
            pays = going
        else:
            ratio, pays, stuck = _weighed(here, solver, state, trial, promised, actual, going)
            flag = torch.where(stuck & going, int(Status.STALLED), flag)
        take = pays.unsqueeze(-1)
        reach = length(model.scale * p)
        return Trials(
            torch.where(take, trial, z),
            torch.where(take, new, residuals),
            torch.where(going, _changed(radius, unset, reach, ratio, damped), radius),
            flag,
            accepted | pays,
            going & ~(pays | stuck),
            memory,
        )

    accepted, going = torch.zeros_like(finite), finite & (state.flag == 0)
    found = Trials(state.z, state.residuals, radius, flag, accepted, going, memory)
    found = repeat(lambda found: found.going.any(), attempt, found, solver.shrinks + 1)
    flag = torch.where(found.going, int(Status.STALLED), found.flag)
    if solver.rtol is None:
        # a budget's lane stays where no step pays
        flag = torch.where(flag == int(Status.STALLED), 0, flag)
    error = state.error
    if compiling() or bool(found.accepted.any()):
        new = _error(problem, solver.norm, found.z, found.residuals)
        error = torch.where(found.accepted, new, error)
    return state._replace(
        z=found.z,
        residuals=found.residuals,
        error=error,
        flag=flag,
        scale=model.scale,
        radius=found.radius,
    )


def _weighed(
    problem: EquationProblem,
    solver: TrustRegionSolver,
    state: TrustRegionState,
    trial: Tensor,
    promised: Tensor,
    actual: Tensor,
    going: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the part of its promise that a step kept, whether it pays, and whether none will."""
    eps = torch.finfo(trial.dtype).eps
    ratio = torch.nan_to_num(actual / promised, nan=-1.0)
    pays = (ratio >= 1e-4) & torch.isfinite(actual)
    stuck = (trial == state.z).all(-1) | ~(promised > (0.0 if problem.fits else eps**0.5))
    if problem.fits:
        drowned = (promised <= eps**0.5) & (actual.abs() <= eps**0.5)

        def judge(carry: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            pays, ratio = carry
            settles = solver.norm(inside(problem).residual(alias(trial))) < state.error
            pays = torch.where(drowned & (actual <= 100 * eps), settles, pays)
            return pays, torch.where(drowned, ratio.clamp(0.1, 0.4), ratio)

        pays, ratio = repeat(lambda _: (drowned & going).any(), judge, (pays, ratio), 1)
    return torch.where(pays, ratio, 0.0), pays & going & ~stuck, stuck


def _changed(radius: Tensor, unset: Tensor, reach: Tensor, ratio: Tensor, damped: bool) -> Tensor:
    """Return the radius after a step of length ``reach`` whose fall was ``ratio`` of the promise.

    Less than a tenth: half of the step. More than half: twice the step, or ten times if it was
    nine tenths, and no less than before. Source: Powell, "A hybrid method for nonlinear
    equations" (1970), and MINPACK's HYBRJ; the factor of ten spares doublings of a first radius
    that was too small.
    """
    grown = torch.where(ratio >= 0.9, 10 * reach, 2 * reach)
    # the first radius was a guess: the first step says more
    grown = 2 * radius if damped else torch.where(unset, grown, torch.maximum(radius, grown))
    changed = torch.where(ratio >= 0.5, grown, radius)
    return torch.where(ratio < 0.1, 0.5 * torch.minimum(reach, radius), changed)
