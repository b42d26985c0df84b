"""Fixed-point (Picard) iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_count, check_number, check_stopping
from implicit_solvers.problem import EquationProblem
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["FixedPointIteration"]


class FixedPointState(NamedTuple):
    """The state of `FixedPointIteration`."""

    z: Tensor
    residual: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class FixedPointIteration:
    """Picard iteration: ``z <- z + damping (g(z) - z)``.

    It converges if ``(1 - damping) I + damping g'`` is a contraction near the fixed point. Source:
    Ortega and Rheinboldt, "Iterative Solution of Nonlinear Equations in Several Variables" (1970),
    chapter 12.

    Parameters
    ----------
    rtol, atol
        A lane has converged when ``norm(g(z) - z) <= atol + rtol norm(z)``; both default to
        ``eps**0.75``. ``rtol=None`` makes exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of steps allowed.
    damping
        The share of the way to ``g(z)``; 1 is the plain iteration.
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
    >>> ims.fixed_point(torch.cos, torch.tensor(1.0), solver=FixedPointIteration()).value
    tensor(0.7391)
    """

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 1000
    damping: float = 1.0
    norm: Norm = rms
    compact: bool = True
    check_every: int = 1
    compile: bool = False
    monotone: ClassVar[bool] = False
    unrollable: ClassVar[bool] = True
    traceable: ClassVar[bool] = True
    solves: ClassVar[tuple[str, ...]] = ("fixed_point",)

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_stopping(self)
        check_count(self, "check_every", least=1)
        check_number(self, "damping", above=0, most=1)

    def init(self, problem: EquationProblem, z: Tensor) -> FixedPointState:
        """Evaluate the residual at the start."""
        residual = problem.residual(z)
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return FixedPointState(z, residual, self.norm(residual), flag)

    def step(self, problem: EquationProblem, state: FixedPointState) -> FixedPointState:
        """Move towards ``g(z)``."""
        z = state.z - self.damping * state.residual
        residual = problem.residual(z)
        return FixedPointState(z, residual, self.norm(residual), state.flag)
