"""The chord method: Newton's with one factorization.

It knows the Jacobian only where that is made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor

from implicit_solvers.agreement import Mask
from implicit_solvers.linear.lu import LU
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solver import DirectSolver, Factors, check_linear_solver
from implicit_solvers.solvers.damped import Aim, DampedState
from implicit_solvers.solvers.newton import Factored, factor_jacobian, solved

__all__ = ["Chord"]


class ChordMemory(NamedTuple):
    """The factors of the Jacobian at the start."""

    inverse: Factors


@dataclass(frozen=True)
class Chord(Factored):
    """The chord method: ``z <- z + t p`` with ``F'(z0) p = -F(z)``.

    The Jacobian is formed and factored once, at the start, so that a step costs an evaluation and
    two triangular solves. It converges linearly, the faster the nearer the start. The step length
    ``t`` is shortened as in `Newton`, until the next step is shorter. If no ``t`` does so, the
    problem ends as STALLED; with a singular Jacobian, as SINGULAR. ``Newton(reuse=0.5)`` would
    factor again. Source: Kelley, "Iterative Methods for Linear and Nonlinear Equations" (1995),
    section 5.4.1.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    linear_solver
        A direct solver.
    halvings
        How many times the step length may be halved; 0 always takes full steps.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> sol = ims.root(lambda z: z**3 - 8, torch.tensor(2.1), solver=Chord())
    >>> sol.value
    tensor(2.0000)
    """

    # Dynamo cannot make an object whose default is one
    linear_solver: DirectSolver = field(default_factory=lambda: LU())
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "minimize", "least_squares")

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_linear_solver(self, kind=DirectSolver)

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> ChordMemory:
        """Factor, in a graph; else when the first step asks for it."""
        inverse: Factors = ()
        if not problem.branches:
            inverse = factor_jacobian(self.factoring(problem, z.shape[-1]), problem, z)
        return ChordMemory(inverse)

    def direct_solver(self, n: int) -> DirectSolver:
        """Return the linear solver."""
        return self.linear_solver

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Solve with the factors."""
        memory, direct = state.memory, self.factoring(problem, state.z.shape[-1])
        if not memory.inverse:
            memory = memory._replace(inverse=factor_jacobian(direct, problem, state.z))
        flag = self.stopped(state, tired)
        return Aim(solved(direct, problem, memory.inverse, state.residual), memory, flag)
