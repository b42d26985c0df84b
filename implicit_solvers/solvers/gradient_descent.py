"""Gradient descent, with a fixed step or a line search. It knows gradients, no curvature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask
from implicit_solvers.hyperparameters import check_number
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solvers.damped import Aim, DampedState
from implicit_solvers.solvers.descent import Descent
from implicit_solvers.solvers.line_search import LineSearch

__all__ = ["GradientDescent"]


class GradientDescentState(NamedTuple):
    """The state of `GradientDescent` with a fixed step."""

    z: Tensor
    gradient: Tensor
    velocity: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class GradientDescent(Descent):
    """Gradient descent: ``v <- momentum v - lr grad``, ``z <- z + v``.

    It converges for ``lr < 2 / L`` (without momentum), with ``L`` the largest curvature. With
    ``rtol=None`` it makes exactly ``max_steps`` steps, as the inner loop of meta-learning does;
    otherwise it works to a tolerance. A ``line_search`` finds the length of each step instead; if
    it fails (where `StrongWolfe` finds the function unbounded below along the line), the problem
    ends as STALLED. A step and the gradient after it estimate the error and propose the end, where
    the Hessian decides. For least squares the objective is ``|r|^2 / 2``. Between bounds each
    iterate is projected; a line search is `Backtracking` there. Source: Nocedal and Wright,
    "Numerical Optimization", chapter 3; momentum: Polyak (1964).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    lr
        The step length, in units of ``z`` over those of the gradient; with a line search, the
        first that each step tries (`Backtracking` tries no longer one).
    momentum
        The share of the last step that is kept, in [0, 1); zero with a line search.
    line_search
        ``Backtracking()`` or ``StrongWolfe()``; left out, steps have the length ``lr``, and can
        be unrolled (`UnrolledAdjoint`).

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> sol = ims.minimize(lambda z: (z - 3) ** 2, torch.tensor(0.0), solver=GradientDescent(0.25))
    >>> sol.value
    tensor(3.0000)
    """

    lr: float = 0.1
    max_steps: int = field(default=10_000, kw_only=True)
    momentum: float = 0.0
    line_search: LineSearch | None = None
    solves: ClassVar[tuple[str, ...]] = (
        "minimize",
        "least_squares",
        "minimize with bounds",
        "least_squares with bounds",
    )
    light: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_number(self, "lr", above=0)
        check_number(self, "momentum", least=0, below=1)
        if self.line_search is not None and self.momentum != 0:
            raise ValueError(
                f"GradientDescent has momentum={self.momentum!r} and a line_search: with momentum "
                "a step need not lead down, leave one of them out"
            )

    @property
    def unrollable(self) -> bool:  # type: ignore[override]
        """Whether its steps can be differentiated through: those of a fixed length."""
        return self.line_search is None

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether a step depends on those before it."""
        return self.momentum != 0

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> tuple[()]:
        """Remember nothing."""
        return ()

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Go against the gradient."""
        return Aim(state.residual, (), self.stopped(state, tired), self.lr)

    def init(self, problem: EquationProblem, z: Tensor) -> Any:
        """Evaluate the gradient at the start."""
        if self.line_search is not None:
            return super().init(problem, z)
        z = problem.within(z)
        gradient = problem.residual(z)
        flag = problem.flags() + torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return GradientDescentState(z, gradient, torch.zeros_like(z), self.norm(gradient), flag)

    def step(self, problem: EquationProblem, state: Any) -> Any:
        """Move against the gradient."""
        if self.line_search is not None:
            return super().step(problem, state)
        velocity = -self.lr * state.gradient
        if self.momentum:
            velocity = velocity + self.momentum * state.velocity
        z = problem.within(state.z + velocity)
        gradient = problem.residual(z)
        return GradientDescentState(z, gradient, velocity, self.norm(gradient), state.flag)
