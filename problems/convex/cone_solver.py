"""A cone solver for all lanes: solved in threads, then refined together."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.convex.affine_map import SparsityPattern
from implicit_solvers.problems.convex.clarabel import ConeSolution
from implicit_solvers.problems.convex.cones import (
    Cones,
    linearize_dual_projection,
    project_dual_cone,
)
from implicit_solvers.problems.convex.normal_map_lu import NormalMapLU
from implicit_solvers.problems.convex.refinement import Programs, Refined, refine

__all__ = ["ConeMethod", "ConeSolver", "ConeSolverState"]

_RANKS = (2, 1, 2, 1)
_SMALL_OBJECTIVE = 2.0**-10
_LARGEST_FACTOR = 40.0
_UNSOLVABLE = (ims.Status.INFEASIBLE, ims.Status.UNBOUNDED)


class ConeMethod(Protocol):
    """What solves one cone program: `Clarabel`, `SCS`, or a solver of your own."""

    @property
    def polish(self) -> int:
        """How many Newton steps may follow."""

    @property
    def workers(self) -> int | None:
        """How many threads solve lanes."""

    def solve(
        self, P: Any, c: np.ndarray, A: Any, b: np.ndarray, cones: Cones, start: Any
    ) -> ConeSolution:
        """Solve one program."""


class ConeSolverState(NamedTuple):
    """The state of `ConeSolver`; `factors` serve the backward pass."""

    z: Tensor
    error: Tensor
    estimate: Tensor
    unit: float
    flag: Tensor
    factors: tuple[Tensor, ...]
    steps_before: Tensor


@dataclass(frozen=True)
class ConeSolver(ims.EquationMethod):
    """Solve the `normal_map` of every lane by a cone solver, at the start, for good.

    Parameters
    ----------
    method
        The cone solver.
    linear_solver
        Solves with the Jacobian.
    upper, rows
        Where ``P``, its upper triangle, and ``A`` may have entries.
    warm
        Whether Newton's method is tried from the start first; lanes where it arrives are not
        given to the cone solver.
    rtol, atol
        A lane has converged when its relative error is at most ``atol``.
    max_steps, max_trials, norm, compact, check_every, compile
        As in `EquationMethod`; no step is made.
    """

    method: ConeMethod
    linear_solver: NormalMapLU
    upper: SparsityPattern
    rows: SparsityPattern
    warm: bool = False
    rtol: float = field(default=0.0, kw_only=True)
    atol: float = field(default=1e-6, kw_only=True)
    max_steps: int = field(default=1, kw_only=True)
    monotone: ClassVar[bool] = True
    traceable: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("root",)

    def examined(self, n: int) -> bool:
        """Tell that the solver judges for itself."""
        return False

    def factorization(self, n: int) -> NormalMapLU:
        """Return what made the factors of the last refinement."""
        return self.linear_solver

    def init(self, problem: ims.EquationProblem, z: Tensor) -> ConeSolverState:
        """Solve; a lane that is not finite, or has no solution, fails."""
        lanes = len(z)
        if len(problem.shape) > 1:
            problem = problem.take(torch.arange(lanes, device=z.device))
        data = Programs(*(_ranked(t, k) for t, k in zip(problem.operands, _RANKS, strict=True)))
        finite = _finite(data, lanes)
        flag = torch.where(finite, 0, int(ims.Status.NONFINITE))
        points, todo, steps = torch.zeros_like(z), finite, torch.zeros_like(flag)
        if self.warm:
            points, todo, steps = self._continue(data, z, finite)
        for lane, found in self._solve(data, todo.nonzero().squeeze(-1).tolist(), z):
            flag[lane] = int(found.status)
            steps[lane] += found.steps
            if found.status not in _UNSOLVABLE:
                points[lane] = torch.from_numpy(np.concatenate([found.x, found.y - found.s]))
        solvable = finite & torch.isfinite(points).all(-1)
        for status in _UNSOLVABLE:
            solvable = solvable & (flag != int(status))
        points = self._solve_small(data, points, solvable & todo, steps)
        index = solvable.nonzero().squeeze(-1)
        refined = self._refine(data, points, index)
        points[index] = refined.z
        steps[index] += refined.steps
        error = torch.where(finite, torch.ones_like(points[:, 0]), torch.nan)
        error[index] = refined.error
        factors = refined.factors
        if len(index) < lanes:
            eye = torch.eye(z.shape[-1], dtype=z.dtype).unsqueeze(0)
            idle = self.linear_solver.factor_dense(eye)
            factors = tuple(
                t.repeat(lanes, *(1,) * (t.dim() - 1)).index_copy(0, index, own)
                for t, own in zip(idle, factors, strict=False)
            )
        flag = torch.where(flag == 0, int(ims.Status.STALLED), flag)
        return ConeSolverState(points, error, error, 1.0, flag, factors, steps)

    def step(self, problem: ims.EquationProblem, state: ConeSolverState) -> ConeSolverState:
        """Stay."""
        return state

    def _refine(self, data: Programs, z: Tensor, index: Tensor, least: int = 0) -> Refined:
        some = data if len(index) == len(z) else data.take(index)
        steps = max(self.method.polish, least)
        return refine(some, z[index], self.linear_solver, steps, _goal(z))

    def _continue(
        self, data: Programs, start: Tensor, finite: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return where Newton's method arrived, the lanes where it did not, and its steps."""
        index = finite.nonzero().squeeze(-1)
        tried = self._refine(data, start, index, least=1)
        some = data if len(index) == len(start) else data.take(index)
        arrived = (tried.error <= _goal(start)) & ~_tiny_objective(some, tried.z)
        points = torch.zeros_like(start)
        points[index] = torch.where(arrived.unsqueeze(-1), tried.z, 0.0)
        steps = torch.zeros_like(finite, dtype=torch.int64).index_copy(0, index, tried.steps)
        return points, finite.index_copy(0, index, ~arrived), steps

    def _solve_small(
        self, data: Programs, points: Tensor, candidates: Tensor, steps: Tensor
    ) -> Tensor:
        """Solve lanes again, in other units, whose objective is tiny beside the tolerances.

        What that takes is added to their ``steps``.
        """
        n = data.c.shape[-1]
        index = (candidates & _tiny_objective(data, points)).nonzero().squeeze(-1)
        if len(index) == 0:
            return points
        size = _objective_size(data, points)[index]
        factor = torch.exp2((-torch.log2(size)).round().clamp(max=_LARGEST_FACTOR))
        P, c, A, b = data.take(index)
        scaled = Programs(factor[:, None, None] * P, factor[:, None] * c, A, b)
        again = torch.zeros_like(points[index])
        for lane, found in self._solve(scaled, list(range(len(index))), again):
            steps[index[lane]] += found.steps
            if found.status not in _UNSOLVABLE:
                again[lane] = torch.from_numpy(np.concatenate([found.x, found.y - found.s]))
        refined = self._refine(scaled, again, torch.arange(len(index)))
        steps[index] += refined.steps
        u = refined.z[:, n:]
        y, _ = linearize_dual_projection(u, self.linear_solver.cones)
        better = torch.cat([refined.z[:, :n], y / factor[:, None] - (y - u)], -1)
        arrived = (refined.error <= self.atol).unsqueeze(-1)
        return points.index_copy(0, index, torch.where(arrived, better, points[index]))

    def _solve(
        self, data: Programs, lanes: list[int], start: Tensor
    ) -> list[tuple[int, ConeSolution]]:
        if not lanes:
            return []
        P, c, A, b = (t.numpy() for t in data)
        P, A = P.reshape(*P.shape[:-2], -1), A.reshape(*A.shape[:-2], -1)
        P, A = P[..., self.upper.flat], A[..., self.rows.flat]
        cones, n = self.linear_solver.cones, c.shape[-1]
        starts = None
        if self.warm:
            y = project_dual_cone(start[:, n:], cones)
            starts = [t.numpy() for t in (start[:, :n], y, y - start[:, n:])]

        def one(lane: int) -> ConeSolution:
            own = [t if t.ndim == 1 else t[lane] for t in (P, c, A, b)]
            near = None if starts is None else tuple(t[lane] for t in starts)
            return self.method.solve(
                self.upper.matrix(own[0]), own[1], self.rows.matrix(own[2]), own[3], cones, near
            )

        workers = min(len(lanes), self.method.workers or os.cpu_count() or 1)
        if workers == 1:
            return [(lane, one(lane)) for lane in lanes]
        with ThreadPoolExecutor(workers) as pool:
            return list(zip(lanes, pool.map(one, lanes), strict=True))


def _ranked(t: Tensor, rank: int) -> Tensor:
    """Return ``(N, ...)`` where there are lanes, without the grid's ones."""
    return t.reshape(-1, *t.shape[t.dim() - rank :]) if t.dim() > rank else t


def _goal(z: Tensor) -> float:
    """Return the relative error that refinement strives for."""
    return torch.finfo(z.dtype).eps ** 0.75


def _objective_size(data: Programs, z: Tensor) -> Tensor:
    """Return the larger of the two terms of the objective, ``(N,)``."""
    x = z[:, : data.c.shape[-1]]
    curved = (x.unsqueeze(-2) @ data.P @ x.unsqueeze(-1)).flatten(1).sum(-1)
    return curved.abs().maximum((data.c * x).sum(-1).abs())


def _tiny_objective(data: Programs, z: Tensor) -> Tensor:
    size = _objective_size(data, z)
    return (size > 0) & (size < _SMALL_OBJECTIVE)


def _finite(data: Programs, lanes: int) -> Tensor:
    """Tell in which lanes all data are finite."""
    finite = torch.ones(lanes, dtype=torch.bool)
    for t, rank in zip(data, _RANKS, strict=True):
        finite = finite & torch.isfinite(t).flatten(t.dim() - rank).all(-1)
    return finite
