"""The Neumann series. It knows ``A`` by its products alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.solver import LinearMethod

__all__ = ["Neumann"]


class NeumannState(NamedTuple):
    """The state of `Neumann`."""

    z: Tensor
    residual: Tensor
    error: Any


@dataclass(frozen=True)
class Neumann(LinearMethod):
    """The Neumann series ``x = sum_k (I - A)^k b``, for operators near the identity.

    ``max_steps=k, rtol=None`` gives the sum of its first ``k`` terms. It converges if the spectral
    radius of ``I - A`` (of ``I - A M`` with a preconditioner) is below one. Source: Lorraine, Vicol
    and Duvenaud, "Optimizing Millions of Hyperparameters by Implicit Differentiation" (2020), its
    use as an adjoint.

    For square operators ``(*batch, n, n)`` of every floating and complex dtype, known by their
    products.

    Parameters
    ----------
    rtol, atol, max_steps, compact, chunk_size, check_every, compile
        As in `LinearMethod`.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    >>> ims.linear_solve(A, torch.tensor([2.0, 2.0]), solver=Neumann()).value
    tensor([1., 2.])
    """

    @property
    def biased(self) -> bool:
        """Whether the series ends before its tolerance says so."""
        return self.rtol is None

    def init(self, problem: LinearProblem, x: Tensor) -> NeumannState:
        """Start at ``x``."""
        r = problem.residual(x)
        return NeumannState(x, r, problem.size(r))

    def step(self, problem: LinearProblem, state: NeumannState) -> NeumannState:
        """Add the next term."""
        return self.steps(problem, state, 1)

    def steps(self, problem: LinearProblem, state: NeumannState, count: int) -> NeumannState:
        """Add ``count`` terms, and measure what is left after the last."""
        x, r = state.z, state.residual
        for _ in range(count):
            x, r = x + problem.precondition(r), problem.next_term(r)
        return NeumannState(x, r, problem.size(r))
