"""Gradient descent with a fixed step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.problem import EquationProblem
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["GradientDescent"]


class GradientDescentState(NamedTuple):
    """The state of `GradientDescent`."""

    z: Tensor
    gradient: Tensor
    velocity: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent: ``v <- momentum v - lr grad``, ``z <- z + v``.

    It converges for ``lr < 2 / L`` (without momentum), with ``L`` the largest curvature. With
    ``rtol=None`` it makes exactly ``max_steps`` steps, as the inner loop of meta-learning does;
    otherwise it works to a tolerance. Source: Nocedal and Wright, "Numerical Optimization",
    chapter 3; momentum: Polyak (1964).

    Parameters
    ----------
    lr
        The step length, in units of ``z`` over those of the gradient.
    rtol, atol
        A lane has converged when ``norm(grad) <= atol + rtol norm(z)``; both default to
        ``eps**0.75``. ``rtol=None`` makes exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of steps allowed.
    momentum
        The share of the last step that is kept, in [0, 1).
    norm
        Maps gradients ``(N, n)`` to ``(N,)``.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> sol = ims.minimize(lambda z: (z - 3) ** 2, torch.tensor(0.0), solver=GradientDescent(0.25))
    >>> sol.value
    tensor(3.0000)
    """

    lr: float = 0.1
    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 10_000
    momentum: float = 0.0
    norm: Norm = rms
    compact: bool = True
    monotone: ClassVar[bool] = False
    unrollable: ClassVar[bool] = True
    solves: ClassVar[tuple[str, ...]] = ("minimize", "least_squares")

    @property
    def remembers(self) -> bool:
        """Whether a step depends on those before it."""
        return self.momentum != 0

    def init(self, problem: EquationProblem, z: Tensor) -> GradientDescentState:
        """Evaluate the gradient at the start."""
        gradient = problem.residual(z)
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return GradientDescentState(z, gradient, torch.zeros_like(z), self.norm(gradient), flag)

    def step(self, problem: EquationProblem, state: GradientDescentState) -> GradientDescentState:
        """Move against the gradient."""
        velocity = self.momentum * state.velocity - self.lr * state.gradient
        z = state.z + velocity
        gradient = problem.residual(z)
        return GradientDescentState(z, gradient, velocity, self.norm(gradient), state.flag)
