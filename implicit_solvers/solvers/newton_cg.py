"""Newton's method for minima, with conjugate gradients for the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.iterate import iterate
from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["NewtonCG"]


class NewtonCGState(NamedTuple):
    """The state of `NewtonCG`."""

    z: Tensor
    value: Tensor
    gradient: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class NewtonCG:
    """Hessian-free Newton: ``H p = -grad`` by conjugate gradients, then a line search.

    The inner solve stops at a relative residual of ``min(0.5, sqrt(|grad|))``, or where the
    curvature is not positive: its last iterate, or the negative gradient, is a descent direction
    then. The step length is halved until the objective falls by ``1e-4`` of what the slope
    promises, or the gradient halves while the objective stays within ``sqrt(eps)``. Source:
    Nocedal and Wright, "Numerical Optimization", algorithm 7.1.

    Parameters
    ----------
    rtol, atol
        A lane has converged when ``norm(grad) <= atol + rtol norm(z)``; both default to
        ``eps**0.75``. ``rtol=None`` makes exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of outer steps allowed.
    max_products
        The number of products with the Hessian allowed in a step.
    halvings
        How many times the step length may be halved.
    norm
        Maps gradients ``(N, n)`` to ``(N,)``.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> sol = ims.minimize(lambda z: (z - 3) ** 4 + z**2, torch.tensor(0.0), solver=NewtonCG())
    >>> sol.value
    tensor(2.)
    """

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 200
    max_products: int = 200
    halvings: int = 30
    norm: Norm = rms
    compact: bool = True
    monotone: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("minimize",)

    def init(self, problem: EquationProblem, z: Tensor) -> NewtonCGState:
        """Evaluate objective and gradient at the start."""
        value, gradient = problem.value_and_gradient(z)
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return NewtonCGState(z, value, gradient, self.norm(gradient), flag)

    def step(self, problem: EquationProblem, state: NewtonCGState) -> NewtonCGState:
        """Find a descent direction and search along it."""
        direction = self._direction(problem, state)
        slope = (direction * state.gradient).sum(-1)
        length = torch.ones_like(state.value)
        z, value, gradient, error = state.z, state.value, state.gradient, state.error
        accepted = torch.zeros_like(state.flag, dtype=torch.bool)
        # near a minimum the fall drowns in the objective's rounding, and the gradient has to judge
        noise = torch.finfo(z.dtype).eps ** 0.5 * state.value.abs().clamp(min=1)
        for _ in range(self.halvings + 1):
            trial = state.z + length.unsqueeze(-1) * direction
            new_value, new_gradient = problem.value_and_gradient(trial)
            new_error = self.norm(new_gradient)
            falls = new_value <= state.value + 1e-4 * length * slope
            settles = (new_value <= state.value + noise) & (new_error <= 0.5 * state.error)
            good = ~accepted & (falls | settles) & torch.isfinite(new_error)
            take = good.unsqueeze(-1)
            z, gradient = torch.where(take, trial, z), torch.where(take, new_gradient, gradient)
            value = torch.where(good, new_value, value)
            error = torch.where(good, new_error, error)
            accepted = accepted | good
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, 0.5 * length)
        flag = torch.where(accepted, 0, int(Status.STALLED))
        return NewtonCGState(z, value, gradient, error, flag)

    def _direction(self, problem: EquationProblem, state: NewtonCGState) -> Tensor:
        hessian = problem.linearize(state.z)
        size = torch.linalg.vector_norm(state.gradient, dim=-1, keepdim=True)
        forcing = size.sqrt().clamp(max=0.5)
        inner = _Forced(max_steps=self.max_products)
        linear = LinearProblem(hessian, -state.gradient)
        out = iterate(inner, _ForcedProblem(linear, forcing.squeeze(-1)), 0 * state.gradient)
        descent = ((out.z * state.gradient).sum(-1) < 0) & torch.isfinite(out.z).all(-1)
        return torch.where(descent.unsqueeze(-1), out.z, -state.gradient)


@dataclass(frozen=True)
class _Forced(CG):
    """Conjugate gradients that keep the iterate before a direction of nonpositive curvature."""

    monotone: ClassVar[bool] = True


class _ForcedProblem(LinearProblem):
    """A linear problem with a tolerance of its own in each lane."""

    def __init__(self, linear: LinearProblem, forcing: Tensor) -> None:
        super().__init__(linear.A, linear.b, linear.M)
        self.forcing = forcing

    def tolerance(self, solver: object, z: Tensor) -> Tensor:
        return self.forcing * rms(self.b)

    def take(self, index: Tensor) -> _ForcedProblem:
        return _ForcedProblem(super().take(index), self.forcing[index])
