"""What the direct solvers have in common: one factorization, many right-hand sides."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from implicit_solvers.linear.lane_map import LaneMap

__all__ = ["DirectSolver", "Factors"]

Factors = tuple[Tensor, ...]


class DirectSolver:
    """A solver that factors the operators once and then solves any number of systems.

    ``factor`` takes the operators of a grid of lanes, or ``factor_dense`` their matrices; ``solve``
    takes the factors and right-hand sides ``(grid, n, columns)``, and ``status`` tells which
    operators it could not factor. Factors that are ``keepable`` may be of an earlier step in some
    lanes and of a later one in others. What it returns need not solve the system if it is not
    ``exact``, as a pseudo-inverse. A subclass says how to factor, to solve, and to judge.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> class Inverse(DirectSolver):
    ...     def factor_dense(self, matrix):
    ...         inverse, info = torch.linalg.inv_ex(matrix)
    ...         return inverse, info
    ...
    ...     def solve(self, factors, b, transposed):
    ...         return (factors[0].mH if transposed else factors[0]) @ b
    ...
    ...     def status(self, factors):
    ...         return torch.where(factors[1] == 0, 0, int(ims.Status.SINGULAR))
    >>> ims.root(
    ...     lambda z: z**2 - 4, torch.tensor(1.0), solver=ims.Newton(linear_solver=Inverse())
    ... ).value
    tensor(2.)
    """

    symmetric_only: ClassVar[bool] = False
    keepable: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def session(self) -> DirectSolver:
        """Return the solver for one solve and its derivatives; itself, if it keeps nothing."""
        return self

    def factor(self, A: LaneMap) -> Factors:
        """Return the factors of each operator, tensors ``(grid, ...)``."""
        return self.factor_dense(A.dense())

    def factor_for_a_step(self, A: LaneMap) -> Factors:
        """Return factors for a step of Newton's method, which the next step corrects."""
        return self.factor(A)

    def factor_dense(self, matrix: Tensor) -> Factors:
        """Return the factors of matrices ``(grid, m, n)``."""
        raise NotImplementedError

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b`` or ``A^-T b``."""
        raise NotImplementedError

    def unfit(self, factors: Factors) -> Tensor:
        """Tell which factors are of no use, for little; `status` looks harder, and says why."""
        return self.status(factors) != 0

    def regular(self, factors: Factors) -> Tensor:
        """Tell which operators can be solved with, where all are known to be finite."""
        return self.status(factors) == 0

    def status(self, factors: Factors) -> Tensor:
        """Return a `Status` for each operator."""
        raise NotImplementedError
