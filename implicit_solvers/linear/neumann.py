"""The Neumann series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.tolerance import AUTO, Auto, rms

__all__ = ["Neumann"]


class NeumannState(NamedTuple):
    """The state of `Neumann`."""

    z: Tensor
    residual: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class Neumann:
    """The Neumann series ``x = sum_k (I - A)^k b``, for operators near the identity.

    ``max_steps=k, rtol=None`` gives the sum of its first ``k`` terms. It converges if the spectral
    radius of ``I - A`` (of ``I - A M`` with a preconditioner) is below one.

    Parameters
    ----------
    rtol, atol
        A lane has converged when ``rms(b - A x) <= atol + rtol rms(b)``. ``rtol=None`` makes
        exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of products allowed.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    >>> ims.linear_solve(A, torch.tensor([2.0, 2.0]), solver=Neumann()).value
    tensor([1., 2.])
    """

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 1000
    compact: bool = True
    monotone: ClassVar[bool] = False
    symmetric_only: ClassVar[bool] = False

    def init(self, problem: LinearProblem, x: Tensor) -> NeumannState:
        """Start at ``x``."""
        r = problem.residual(x)
        flag = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return NeumannState(x, r, rms(r), flag)

    def step(self, problem: LinearProblem, state: NeumannState) -> NeumannState:
        """Add the next term."""
        x = state.z + problem.precondition(state.residual)
        r = problem.residual(x)
        return NeumannState(x, r, rms(r), state.flag)
