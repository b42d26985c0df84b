"""A cone solver for all lanes, each of them solved, refined and verified on its own."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.convex.clarabel import ConeSolution
from implicit_solvers.problems.convex.cones import Cones
from implicit_solvers.problems.convex.normal_map_jacobian import NormalMapJacobian
from implicit_solvers.problems.convex.normal_map_lu import NormalMapLU
from implicit_solvers.problems.convex.one_program import ROUNDING, OneProgram, Point

__all__ = ["ConeMethod", "ConeSolver", "ConeSolverState"]

_ZOOMS = (1.0, 1e3, 1e6, 1e8, 1e10, 1e-6)
_LARGEST = 10.0  # no relative error is larger
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
    """The state of `ConeSolver`."""

    z: Tensor
    error: Tensor
    estimate: Tensor
    unit: float
    flag: Tensor
    steps_before: Tensor
    factors: tuple[Tensor, ...]


@dataclass(frozen=True)
class ConeSolver(ims.EquationMethod):
    """Solve the `normal_map` of every lane by a cone solver, at the start, for good.

    Newton's method follows. Where it does not come to an error of rounding, the choice of active
    constraints was wrong: the solver runs again on what is left, in units ten thousand times
    smaller, and so once more.

    If ``warm``, Newton's method is tried from the start first, and lanes where it arrives are not
    given to the cone solver. A lane has converged when its relative error is at most ``atol``.

    Source: Gleixner, Steffy and Wolter, "Iterative refinement for linear programming" (2016), for
    the units of what is left.
    """

    method: ConeMethod
    jacobian: NormalMapJacobian
    warm: bool = False
    rtol: float = field(default=0.0, kw_only=True)
    atol: float = field(default=ROUNDING, kw_only=True)
    max_steps: int = field(default=1, kw_only=True)
    monotone: ClassVar[bool] = True
    traceable: ClassVar[bool] = False
    keeps: ClassVar[bool] = True
    solves: ClassVar[tuple[str, ...]] = ("root",)

    def examined(self, n: int) -> bool:
        """Tell that the solver judges for itself."""
        return False

    def factorization(self, n: int) -> NormalMapLU:
        """Return what solves with the factors of the last step."""
        return NormalMapLU(self.jacobian)

    def init(self, problem: ims.EquationProblem, z: Tensor) -> ConeSolverState:
        """Solve; a lane that is not finite, or has no solution, fails."""
        lanes = len(z)
        if len(problem.shape) > 1:
            problem = problem.take(torch.arange(lanes, device=z.device))
        operands = (t.flatten(0, -2) if t.dim() > 1 else t for t in problem.operands)
        data = [t.expand(lanes, t.shape[-1]).numpy() for t in operands]
        starts = z.numpy()

        def one(lane: int) -> tuple[Point, int]:
            return self._solved([t[lane] for t in data], starts[lane])

        workers = min(lanes, self.method.workers or os.cpu_count() or 1)
        if workers <= 1:
            found = [one(lane) for lane in range(lanes)]
        else:
            with ThreadPoolExecutor(workers) as pool:
                found = list(pool.map(one, range(lanes)))
        points = torch.from_numpy(np.stack([p.z for p, _ in found])) if lanes else z
        error = torch.tensor([p.error for p, _ in found], dtype=z.dtype)
        steps = torch.tensor([p.steps for p, _ in found], dtype=torch.int64)
        flag = torch.tensor([status for _, status in found], dtype=torch.int64)
        places = torch.arange(lanes) if problem.places is None else problem.places
        known = [None if p.known is None else p.known[1] for p, _ in found]
        assert problem.memory is not None
        problem.memory.factorizations.update(zip(places.tolist(), known, strict=True))
        factors = places, torch.zeros_like(places)
        return ConeSolverState(points, error, error, 1.0, flag, steps, factors)

    def step(self, problem: ims.EquationProblem, state: ConeSolverState) -> ConeSolverState:
        """Stay."""
        return state

    def _solved(self, data: list[np.ndarray], start: np.ndarray) -> tuple[Point, int]:
        """Return the solution of one lane, and the status that it has if that is none."""
        stalled, method = int(ims.Status.STALLED), self.method
        if not all(np.isfinite(t).all() for t in data):
            return Point(start, np.nan, 0), int(ims.Status.NONFINITE)
        P, c, A, b = data
        program = OneProgram(P, c, A, b, self.jacobian)
        if self.warm:
            tried = program.refined(start, max(method.polish, 1))
            if tried.error <= self.atol:
                return program.chosen(tried), stalled
        best, steps, status = Point(0 * start, np.inf, 0), 0, stalled
        for zoom in _ZOOMS if method.polish else _ZOOMS[:1]:
            near = start if self.warm else None
            found = program.zoomed(best.z[: len(program.c)], zoom, method, near)
            steps += found.steps
            if found.status in _UNSOLVABLE:
                if program.proves(found):
                    return Point(0 * start, 1.0, steps), int(found.status)
                continue
            status = int(found.status) or stalled
            tried = program.refined(found.point, method.polish)
            steps += tried.steps
            if tried.error < best.error:
                best = tried
            if best.error <= self.atol:
                best = program.chosen(best)
                break
        return best._replace(steps=steps, error=min(best.error, _LARGEST)), status
