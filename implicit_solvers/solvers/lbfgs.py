"""Limited-memory BFGS: a quasi-Newton method that remembers a few steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from implicit_solvers.agreement import Mask, both, divide, everywhere, nowhere, pick
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solvers.damped import Aim, DampedState
from implicit_solvers.solvers.descent import Descent, dot
from implicit_solvers.solvers.line_search import LineSearch, StrongWolfe

__all__ = ["LBFGS"]


class LBFGSMemory(NamedTuple):
    """What `LBFGS` remembers: the last steps and changes of the gradient, newest first.

    Each pair ``(N, memory, n)`` is divided by the root of its product ``s.y``; a place without one
    is zero. ``scale`` is ``s.y / y.y`` of the newest, and 0 where there is none.
    """

    steps: Tensor
    changes: Tensor
    scale: Any


@dataclass(frozen=True)
class LBFGS(Descent):
    """Limited-memory BFGS: ``z <- z + t p`` with ``p = -B grad``.

    ``B`` approximates the inverse of the Hessian by the last ``memory`` pairs of a step ``s`` and
    the change ``y`` of the gradient over it, from ``s.y / y.y`` times the identity. A pair is kept
    where ``s.y`` is positive beyond rounding. The length ``t`` meets the strong Wolfe conditions.
    A lane whose search fails forgets its pairs and goes down the gradient; if that fails too (at
    the rounding of the function, or where the function is unbounded below along a line) it ends
    as STALLED. A start at which the gradient vanishes counts as solved, a maximum too. For least
    squares the objective is ``|r|^2 / 2``. Source: Nocedal and Wright, "Numerical Optimization",
    algorithms 7.4 and 7.5.

    Parameters
    ----------
    rtol, atol, max_steps, max_trials, norm, compact, check_every, compile
        As in `EquationMethod`.
    memory
        How many pairs are remembered, of ``2 n`` numbers each.
    line_search
        How the length of a step is found; ``StrongWolfe()`` by default.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> def rosenbrock(z):
    ...     return ((1 - z[:-1]) ** 2 + 100 * (z[1:] - z[:-1] ** 2) ** 2).sum()
    >>> start = torch.zeros(10, dtype=torch.float64)
    >>> ims.minimize(rosenbrock, start, solver=LBFGS()).value[:3]
    tensor([1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """

    max_steps: int = field(default=2000, kw_only=True)
    memory: int = 10
    # (Dynamo cannot make an instance whose default is an object)
    line_search: LineSearch = field(default_factory=lambda: StrongWolfe())
    solves: ClassVar[tuple[str, ...]] = ("minimize", "least_squares")

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "memory")
        if self.memory == 0:
            raise ValueError(
                "LBFGS has memory=0: pass at least 1, or use "
                "GradientDescent(line_search=StrongWolfe()), which remembers nothing"
            )

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> LBFGSMemory:
        """Remember nothing."""
        pairs = z.new_zeros(len(z), self.memory, z.shape[-1])
        return LBFGSMemory(pairs, pairs, 0.0 if problem.branches else pairs[:, 0, 0])

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Remember the step, and go along the quasi-Newton direction."""
        memory = self._learned(problem, state)
        flag = self.stopped(state, both(tired, memory.scale == 0))
        if not nowhere(tired):
            memory = pick(tired, self.begin(problem, state.z, state.residual), memory)
        remembers = memory.scale > 0
        length: Any = 1.0
        if not everywhere(remembers):
            # nothing is known of the scale before the first pair: move by 1 at most
            size = problem.size(partial(torch.linalg.vector_norm, dim=-1), state.residual)
            length = pick(remembers, 1.0, 1 / pick(size > 1, size, 1.0))
        return Aim(_times_inverse_hessian(memory, state.residual), memory, flag, length)

    def _learned(self, problem: EquationProblem, state: DampedState) -> LBFGSMemory:
        """Return the memory with the last step; a pair that is not kept leaves its place empty."""
        memory = state.memory
        s, y = state.z - state.kept.z, state.residual - state.kept.residual
        sy, ss, yy = dot(problem, s, y), dot(problem, s, s), dot(problem, y, y)
        keep = sy > torch.finfo(s.dtype).eps * ss**0.5 * yy**0.5
        root = pick(keep, pick(keep, sy, 1.0) ** -0.5, 0.0)
        steps, changes = _push(s, root, memory.steps), _push(y, root, memory.changes)
        scale = pick(keep, divide(sy, yy), memory.scale)
        return pick(state.accepted, LBFGSMemory(steps, changes, scale), memory)


def _push(newest: Tensor, factor: Any, pairs: Tensor) -> Tensor:
    newest = newest.unsqueeze(1) * _column(factor)
    return torch.cat([newest, pairs[:, :-1]], 1)


def _column(factor: Any) -> Any:
    return factor.reshape(-1, 1, 1) if isinstance(factor, Tensor) else factor


def _times_inverse_hessian(memory: LBFGSMemory, gradient: Tensor) -> Tensor:
    """Return ``B grad`` by the two-loop recursion: each loop is a triangular system."""
    steps, changes, scale = memory
    q = gradient.unsqueeze(-1)
    products = torch.bmm(steps, changes.mT)
    share = solve_triangular(products, torch.bmm(steps, q), upper=False, unitriangular=True)
    q = torch.baddbmm(q, changes.mT, share, alpha=-1) * _column(pick(scale > 0, scale, 1.0))
    rest = torch.baddbmm(share, changes, q, alpha=-1)
    rest = solve_triangular(products.mT, rest, upper=True, unitriangular=True)
    return torch.baddbmm(q, steps.mT, rest).squeeze(-1)
