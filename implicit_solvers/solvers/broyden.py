"""Broyden's quasi-Newton methods, with limited memory.

It knows the Jacobian only where it is made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, either, pick
from implicit_solvers.hyperparameters import check_count, check_number
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors, check_linear_solver
from implicit_solvers.solvers.damped import Aim, DampedState, Halving
from implicit_solvers.solvers.newton import factor_jacobian
from implicit_solvers.solvers.renewal import renew

__all__ = ["Broyden"]


class BroydenMemory(NamedTuple):
    """What `Broyden` remembers: the inverse Jacobian is ``base^-1 + sum_i left_i right_i^T``.

    ``base`` is the factor of the identity ``(N,)``, or the factors of the Jacobian; ``pairs`` is
    how many pairs a lane remembers, newest first, and ``best`` the least error so far.
    """

    base: Factors
    left: Tensor
    right: Tensor
    pairs: Tensor
    best: Any


@dataclass(frozen=True)
class Broyden(Halving):
    """Broyden's method: ``z <- z - t H F(z)``, where ``H`` learns the Jacobian's inverse.

    After a step ``s`` that changed ``F`` by ``y``, the rank-one update ``H <- H + u v^T`` makes
    ``H y = s``: the good one with ``v = H^T s``, the bad one with ``v = y``. Its steps are often
    uphill while it learns: ``t`` is halved only until the residual's norm is at most ``growth``
    times the least that the problem has seen. ``H`` starts as a multiple of the identity that a
    single product with the Jacobian chooses, or as the Jacobian's inverse. A problem starts again
    when its memory is full, no ``t`` is accepted, or ``H`` has come to step ``eps**-0.5`` times as
    far as it did at first, and ends as STALLED if no ``t`` is accepted right after a start.

    Source: Broyden, "A class of methods for solving nonlinear simultaneous equations" (1965);
    limited memory: Kelley, "Iterative Methods for Linear and Nonlinear Equations" (1995),
    chapter 7; a bounded denominator: Griewank, "The 'global' convergence of Broyden-like methods
    with a suitable line search" (1986).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    memory
        How many updates are kept; they take ``2 memory n`` numbers for each problem.
    good
        Whether the update changes the Jacobian least (Broyden's first, the "good" one), or its
        inverse (his second, the "bad" one).
    linear_solver
        A direct solver, ``LU()``, factors the Jacobian at each start. Left out, the Jacobian is
        formed for the verdict only, once, and never beyond 512 unknowns.
    halvings
        How many times the step length may be halved; 0 always takes full steps.
    growth
        By how much a step may raise the residual's norm above its least; at least 1.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> a = torch.tensor([1.0, 2.0, 3.0])
    >>> sol = ims.root(lambda z: z + 0.1 * z.sum() * z - a, torch.zeros(3), solver=Broyden())
    >>> sol.value
    tensor([0.7033, 1.4065, 2.1098])
    """

    max_steps: int = field(default=500, kw_only=True)
    memory: int = 20
    good: bool = True
    linear_solver: DirectSolver | None = None
    halvings: int = field(default=20, kw_only=True)
    growth: float = 5.0
    monotone: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point")

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "memory", least=1)
        check_number(self, "growth", least=1)
        check_linear_solver(self, kind=DirectSolver)
        if self.linear_solver is not None and not self.linear_solver.keepable:
            raise ValueError(
                f"Broyden has linear_solver={self.linear_solver!r}, whose factors have a form of "
                "their own at each step: pass LU(), or leave it out"
            )

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> BroydenMemory:
        """Choose the first approximation."""
        base = self._base(problem, z, residual)
        none = torch.full((len(z),), -1, dtype=torch.int64, device=z.device)
        memory = z.new_zeros(len(z), min(self.memory, self.max_steps), z.shape[-1])
        best = problem.size(self.norm, residual)
        return BroydenMemory(base, memory, memory, none, best)

    def factorization(self, n: int) -> DirectSolver | None:
        """Return what factors the Jacobian."""
        return self.linear_solver

    def limit(self, state: DampedState) -> Any:
        """Return ``growth`` times the least error so far."""
        return self.growth * state.memory.best

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Update, and start again where that is due."""
        residual, memory, flag = state.residual, state.memory, state.flag
        turns = either(state.accepted, tired)
        base, pairs = memory.base, memory.pairs + 1
        plain = self._divide(base, residual)
        solved = plain + _low_rank(memory.left, memory.right, residual)  # H F
        u, v = self._update(state, solved)
        direction = solved + u * _dot(v, residual)
        left = torch.cat([u.unsqueeze(1), memory.left], 1)[:, : memory.left.shape[1]]
        right = torch.cat([v.unsqueeze(1), memory.right], 1)[:, : memory.right.shape[1]]

        farthest = self.norm(plain) / torch.finfo(plain.dtype).eps ** 0.5
        worn = (pairs > self.memory) | ~(self.norm(direction) <= farthest)
        # what has ended need not start again
        again = both(both(either(worn, tired), turns), flag == 0)
        if not problem.branches or bool(torch.as_tensor(again).any()):
            old = (*base, direction)
            new = renew(problem, again, old, self._start, state.z, residual)
            base, direction = new[:-1], new[-1]
            left, right = pick(again, 0 * left, left), pick(again, 0 * right, right)
            if self.rtol is not None:
                flag = pick(both(tired, memory.pairs == 0), int(Status.STALLED), flag)
            pairs = pick(again, 0 * pairs, pairs)
        if self.linear_solver is not None and (not problem.branches or memory.base is not base):
            flag = pick(flag == 0, self.linear_solver.status(base), flag)
        smaller = state.error < memory.best
        best = pick(smaller, state.error, memory.best)
        learned = BroydenMemory(base, left, right, pairs, best)
        return Aim(direction, pick(turns, learned, memory), flag)

    def _start(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> Factors:
        """Return the factors of the first approximation, and the direction that it gives."""
        base = self._base(problem, z, residual)
        return (*base, self._divide(base, residual))

    def _base(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> Factors:
        """Return the factors of the Jacobian, or the multiple of the identity in its place.

        The multiple ``c`` minimizes ``|F - F'(z) F / c|``, so that ``-F / c`` is downhill, and is
        bounded where ``F'(z) F`` is nearly orthogonal to ``F``.
        """
        if self.linear_solver is not None:
            return factor_jacobian(self.linear_solver, problem, z)
        # of a unit vector, whose image and squares of it do not underflow
        unit = residual / torch.linalg.vector_norm(residual, dim=-1, keepdim=True)
        image = problem.linearize(z).mv(unit)
        growth = torch.linalg.vector_norm(image, dim=-1)
        cosine = (unit * image).sum(-1) / growth
        cosine = torch.where(cosine < 0, cosine.clamp(max=-0.1), cosine.clamp(min=0.1))
        scale = growth / cosine
        usable = torch.isfinite(scale) & (scale != 0)
        return (torch.where(usable, scale, 1.0),)

    def _divide(self, base: Factors, b: Tensor, transposed: bool = False) -> Tensor:
        if self.linear_solver is None:
            return b / base[0].unsqueeze(-1)
        return self.linear_solver.solve(base, b.unsqueeze(-1), transposed).squeeze(-1)

    def _update(self, state: DampedState, solved: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``u`` and ``v``; ``solved`` is ``H F`` at the new point."""
        if state.direction is None:
            return torch.zeros_like(solved), torch.zeros_like(solved)
        memory, before = state.memory, state.kept
        step, change = state.z - before[0], state.residual - before[1]
        image = solved - state.direction  # H y
        if self.good:
            # a denominator near zero would make the Jacobian singular: a part of the update then
            size = _dot(step, step)
            ratio = _dot(step, image) / size
            bounded = torch.where(ratio < 0, ratio.clamp(max=-0.1), ratio.clamp(min=0.1))
            part = torch.where(bounded == ratio, 1.0, (1 - bounded) / (1 - ratio))
            u = part * (step - image) / (size * bounded)
            v = self._divide(memory.base, step, True) + _low_rank(memory.right, memory.left, step)
        else:
            u, v = step - image, change / _dot(change, change)
        finite = torch.isfinite(u).all(-1) & torch.isfinite(v).all(-1)
        usable = both(state.accepted, finite)
        return pick(usable, u, 0 * step), pick(usable, v, 0 * step)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _low_rank(left: Tensor, right: Tensor, b: Tensor) -> Tensor:
    """Return ``sum_i left_i <right_i, b>``."""
    return (left.mT @ (right @ b.unsqueeze(-1))).squeeze(-1)
