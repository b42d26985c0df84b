"""Limited-memory BFGS: a quasi-Newton method that remembers a few steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_count
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.line_search import Point, StrongWolfe, objective, search

__all__ = ["LBFGS"]


class LBFGSState(NamedTuple):
    """The state of `LBFGS`: the last steps and changes of the gradient, newest first.

    ``weights (N, memory)`` are ``1 / s.y``; zero marks a place without a pair.
    """

    z: Tensor
    value: Tensor
    gradient: Tensor
    steps: Tensor
    changes: Tensor
    weights: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class LBFGS(EquationMethod):
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
    line_search: StrongWolfe = field(default_factory=lambda: StrongWolfe())
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

    def init(self, problem: EquationProblem, z: Tensor) -> LBFGSState:
        """Evaluate objective and gradient at the start; remember nothing."""
        start = objective(problem, z)
        pairs = z.new_zeros(len(z), self.memory, z.shape[-1])
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return LBFGSState(*start, pairs, pairs, pairs[..., 0], start.error(self.norm), flag)

    def step(self, problem: EquationProblem, state: LBFGSState) -> LBFGSState:
        """Search along the quasi-Newton direction, and remember the step."""
        start = Point(state.z, state.value, state.gradient)
        direction = -_times_inverse_hessian(state)
        remembers = state.weights[:, 0] > 0
        # nothing is known of the scale before the first pair: move by 1 at most
        size = torch.linalg.vector_norm(state.gradient, dim=-1)
        length = torch.where(remembers, 1.0, 1 / size.clamp(min=1))
        found = search(self.line_search, problem, start, direction, length, compact=self.compact)
        point, ok = found
        s, y = point.z - start.z, point.gradient - start.gradient
        sy = (s * y).sum(-1)
        sizes = torch.linalg.vector_norm(s, dim=-1) * torch.linalg.vector_norm(y, dim=-1)
        keep = ok & (sy > torch.finfo(s.dtype).eps * sizes)
        weight = torch.where(keep, 1 / sy, 0.0)
        weights = torch.where(ok.unsqueeze(-1), _push(keep, weight, state.weights), 0.0)
        return LBFGSState(
            *point,
            _push(keep, s, state.steps),
            _push(keep, y, state.changes),
            weights,
            point.error(self.norm),
            torch.where(remembers, 0, found.flag(self.rtol)),
        )


def _push(keep: Tensor, newest: Tensor, memory: Tensor) -> Tensor:
    moved = torch.cat([newest.unsqueeze(1), memory[:, :-1]], 1)
    return torch.where(keep.reshape(-1, *(1,) * (memory.dim() - 1)), moved, memory)


def _times_inverse_hessian(state: LBFGSState) -> Tensor:
    """Return ``B grad`` by the two-loop recursion; a weight of zero leaves a pair out."""
    pairs = list(zip(state.steps.unbind(1), state.changes.unbind(1), strict=True))
    weights = state.weights.unsqueeze(-1).unbind(1)
    q, shares = state.gradient, []
    for (s, y), weight in zip(pairs, weights, strict=True):
        share = weight * (s * q).sum(-1, keepdim=True)
        q = q - share * y
        shares.append(share)
    curvature = weights[0] * (pairs[0][1] ** 2).sum(-1, keepdim=True)
    q = torch.where(curvature > 0, q / curvature, q)
    for (s, y), weight, share in reversed(list(zip(pairs, weights, shares, strict=True))):
        q = q + (share - weight * (y * q).sum(-1, keepdim=True)) * s
    return q
