"""Broyden's quasi-Newton methods, with limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.hyperparameters import check_count, check_number, check_stopping
from implicit_solvers.linear.direct import DirectSolver, Factors
from implicit_solvers.linear.lu import LU
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solvers.backtracking import Found, backtrack
from implicit_solvers.solvers.newton import factor_jacobian
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["Broyden"]


class BroydenState(NamedTuple):
    """The state of `Broyden`: the inverse Jacobian is ``base^-1 + sum_i left_i right_i^T``.

    ``base`` is the factor of the identity ``(N,)``, or the factors of the Jacobian; ``pairs`` is
    how many pairs a lane remembers, newest first, and ``best`` the least error before this one.
    """

    z: Tensor
    residual: Tensor
    direction: Tensor
    base: Factors
    left: Tensor
    right: Tensor
    pairs: Tensor
    best: Tensor
    error: Tensor
    flag: Tensor
    is_lu: bool

    @property
    def factors(self) -> Factors:
        """What the backward pass may use."""
        return self.base if self.is_lu else ()


@dataclass(frozen=True)
class Broyden:
    """Broyden's method: ``z <- z - t H F(z)``, where ``H`` learns the Jacobian's inverse.

    After a step ``s`` that changed ``F`` by ``y``, the rank-one update ``H <- H + u v^T`` makes
    ``H y = s``: the good one with ``v = H^T s``, the bad one with ``v = y``. Its steps are often
    uphill while it learns: ``t`` is halved only until the residual's norm is at most ``growth``
    times the least that the lane has seen. ``H`` starts as a multiple of the identity that a
    single product with the Jacobian chooses, or as the Jacobian's inverse. A lane starts again
    when its memory is full, no ``t`` is accepted, or ``H`` has come to step ``eps**-0.5`` times as
    far as it did at first, and ends as STALLED if no ``t`` is accepted right after a start.

    Source: Broyden, "A class of methods for solving nonlinear simultaneous equations" (1965);
    limited memory: Kelley, "Iterative Methods for Linear and Nonlinear Equations" (1995),
    chapter 7; a bounded denominator: Griewank, "The 'global' convergence of Broyden-like methods
    with a suitable line search" (1986).

    Parameters
    ----------
    rtol, atol
        A lane has converged when ``norm(F(z)) <= atol + rtol norm(z)``; both default to
        ``eps**0.75``. ``rtol=None`` makes exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of steps allowed.
    memory
        How many updates are remembered; they take ``2 memory n`` numbers a lane.
    good
        Whether the update changes the Jacobian least (Broyden's first, the "good" one), or its
        inverse (his second, the "bad" one).
    linear_solver
        A direct solver, ``LU()``, factors the Jacobian at each start. Left out, the Jacobian is
        never formed.
    halvings
        How many times the step length may be halved; 0 takes full steps always.
    growth
        By how much a step may raise the residual's norm above its least; at least 1.
    norm
        Maps residuals ``(N, n)``, of a real floating dtype, to ``(N,)``.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.
    check_every
        Every how many steps it is asked whether all lanes have ended. A GPU waits for the answer;
        lanes that ended keep what they have.
    compile
        Whether the loop is compiled to one graph, once for each function, dtype and shape.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> a = torch.tensor([1.0, 2.0, 3.0])
    >>> sol = ims.root(lambda z: z + 0.1 * z.sum() * z - a, torch.zeros(3), solver=Broyden())
    >>> sol.value
    tensor([0.7033, 1.4065, 2.1098])
    """

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 500
    memory: int = 20
    good: bool = True
    linear_solver: DirectSolver | None = None
    halvings: int = 20
    growth: float = 5.0
    norm: Norm = rms
    compact: bool = True
    check_every: int = 1
    compile: bool = False
    monotone: ClassVar[bool] = False
    traceable: ClassVar[bool] = True
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point")

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_stopping(self)
        check_count(self, "check_every", least=1)
        check_count(self, "memory", least=1)
        check_count(self, "halvings")
        check_number(self, "growth", least=1)
        if not isinstance(self.linear_solver, DirectSolver | None):
            raise TypeError(
                f"Broyden has linear_solver={self.linear_solver!r}, which is not direct: pass "
                "LU(), or leave it out"
            )
        if self.linear_solver is not None and not self.linear_solver.keepable:
            raise ValueError(
                f"Broyden has linear_solver={self.linear_solver!r}, whose factors have a form of "
                "their own at each step: pass LU(), or leave it out"
            )

    def init(self, problem: EquationProblem, z: Tensor) -> BroydenState:
        """Evaluate the residual and choose the first approximation."""
        residual = problem.residual(z)
        error = self.norm(residual)
        first = self._start(problem, z, residual)
        base, direction = first[:-1], first[-1]
        count = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        flag = count if self.linear_solver is None else self.linear_solver.status(base)
        memory = z.new_zeros(len(z), min(self.memory, self.max_steps), z.shape[-1])
        return BroydenState(
            z,
            residual,
            direction,
            base,
            memory,
            memory,
            count,
            error,
            error,
            flag,
            isinstance(self.linear_solver, LU),
        )

    def step(self, problem: EquationProblem, state: BroydenState) -> BroydenState:
        """Search along the direction, update, and start again where that is due."""
        best = torch.minimum(state.best, state.error)
        found = backtrack(
            problem,
            self,
            (state.z, state.residual, state.error),
            state.direction,
            state.flag == 0,
            limit=self.growth * best,
        )
        plain = self._divide(state.base, found.residual)
        solved = plain + _low_rank(state.left, state.right, found.residual)  # H F
        u, v = self._update(state, found, solved)
        direction = -solved - u * _dot(v, found.residual)
        left = torch.cat([u.unsqueeze(1), state.left], 1)[:, : state.left.shape[1]]
        right = torch.cat([v.unsqueeze(1), state.right], 1)[:, : state.right.shape[1]]
        base, pairs, flag = state.base, state.pairs + 1, state.flag

        farthest = self.norm(plain) / torch.finfo(plain.dtype).eps ** 0.5
        sane = self.norm(direction) <= farthest
        # what has ended need not start again
        again = (~found.accepted | (pairs > self.memory) | ~sane) & (state.flag == 0)
        if compiling() or bool(again.any()):
            old = (*base, direction)
            new = renew(problem, again, old, self._start, found.z, found.residual)
            base, direction = new[:-1], new[-1]
            fresh = again.reshape(-1, 1, 1)
            left, right = torch.where(fresh, 0.0, left), torch.where(fresh, 0.0, right)
            stuck = ~found.accepted & (state.pairs == 0)
            if self.rtol is not None:
                flag = torch.where(stuck, int(Status.STALLED), flag)
            if self.linear_solver is not None:
                flag = torch.where(flag == 0, self.linear_solver.status(base), flag)
            pairs = torch.where(again, 0, pairs)
        return BroydenState(
            found.z,
            found.residual,
            direction,
            base,
            left,
            right,
            pairs,
            best,
            found.error,
            flag,
            state.is_lu,
        )

    def _start(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> Factors:
        """Return the factors of the first approximation, and the direction that it gives."""
        base = self._base(problem, z, residual)
        return (*base, -self._divide(base, residual))

    def _base(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> Factors:
        """Return the factors of the Jacobian, or the multiple of the identity in its place.

        The multiple ``c`` minimizes ``|F - F'(z) F / c|``, so that ``-F / c`` is downhill, and is
        bounded where ``F'(z) F`` is nearly orthogonal to ``F``.
        """
        if self.linear_solver is not None:
            return factor_jacobian(self.linear_solver, problem, z)
        image = problem.linearize(z).mv(residual)
        size = torch.linalg.vector_norm(residual, dim=-1)
        growth = torch.linalg.vector_norm(image, dim=-1) / size
        cosine = (residual * image).sum(-1) / (size**2 * growth)
        cosine = torch.where(cosine < 0, cosine.clamp(max=-0.1), cosine.clamp(min=0.1))
        scale = growth / cosine
        usable = torch.isfinite(scale) & (scale != 0)
        return (torch.where(usable, scale, 1.0),)

    def _divide(self, base: Factors, b: Tensor, transposed: bool = False) -> Tensor:
        if self.linear_solver is None:
            return b / base[0].unsqueeze(-1)
        return self.linear_solver.solve(base, b.unsqueeze(-1), transposed).squeeze(-1)

    def _update(self, state: BroydenState, found: Found, solved: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``u`` and ``v``; ``solved`` is ``H F`` at the new point."""
        step, change = found.z - state.z, found.residual - state.residual
        image = solved + state.direction  # H y
        if self.good:
            # a denominator near zero would make the Jacobian singular: a part of the update then
            size = _dot(step, step)
            ratio = _dot(step, image) / size
            bounded = torch.where(ratio < 0, ratio.clamp(max=-0.1), ratio.clamp(min=0.1))
            part = torch.where(bounded == ratio, 1.0, (1 - bounded) / (1 - ratio))
            u = part * (step - image) / (size * bounded)
            v = self._divide(state.base, step, True) + _low_rank(state.right, state.left, step)
        else:
            u, v = step - image, change / _dot(change, change)
        usable = found.accepted & torch.isfinite(u).all(-1) & torch.isfinite(v).all(-1)
        return torch.where(usable.unsqueeze(-1), u, 0.0), torch.where(usable.unsqueeze(-1), v, 0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _low_rank(left: Tensor, right: Tensor, b: Tensor) -> Tensor:
    """Return ``sum_i left_i <right_i, b>``."""
    return (left.mT @ (right @ b.unsqueeze(-1))).squeeze(-1)
