"""How a solution is differentiated: an argument of every equation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.cholesky import Cholesky
from implicit_solvers.linear.diagonal import Diagonal
from implicit_solvers.linear.linear_operator import LinearOperator
from implicit_solvers.linear.preconditioners import Jacobi
from implicit_solvers.linear.rule import LinearSolver
from implicit_solvers.linear.solve import DENSE_LIMIT, default_linear_solver
from implicit_solvers.problem import Equation

__all__ = ["ImplicitAdjoint"]


@dataclass(frozen=True)
class ImplicitAdjoint:
    """Differentiate by the implicit function theorem, with one linear solve.

    Parameters
    ----------
    linear_solver
        How to solve with the Jacobian (or its transpose) of the optimality condition at the
        solution. Left out, ``LU()`` up to 512 unknowns; beyond, ``CG()`` for ``minimize`` and
        ``GMRES()`` for the others. ``CG(max_steps=5, rtol=None)`` spends a budget.
    preconditioner
        ``Jacobi()``, or a function of ``(z, *args)`` that returns an operator near the inverse of
        the Jacobian; iterative solvers only.

    Raises
    ------
    ValueError
        When a solve begins whose Jacobian ``linear_solver`` is not made for.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(4.0, requires_grad=True)
    >>> adjoint = ImplicitAdjoint(ims.GMRES())
    >>> ims.root(lambda z, a: z**2 - a, torch.tensor(1.0), (a,), adjoint=adjoint).value.backward()
    >>> a.grad
    tensor(0.2500)
    """

    linear_solver: LinearSolver | None = None
    preconditioner: Jacobi | Callable[..., LinearOperator] | None = None

    def solver_for(self, equation: type[Equation], n: int) -> LinearSolver:
        """Return the linear solver for an equation of ``n`` unknowns, or refuse the one given."""
        solver: Any = self.linear_solver
        if solver is None:
            # a Hessian that is indefinite after all is reported by CG, and solved by LU
            large = equation.kind == "minimize" and n > DENSE_LIMIT
            return default_linear_solver(n, positive_definite=large)
        if isinstance(solver, Diagonal):
            raise ValueError(
                "adjoint has linear_solver=Diagonal(), and the Jacobian of an equation is not "
                "known to be diagonal: use LU() or GMRES()"
            )
        if isinstance(solver, (CG, Cholesky)) and not equation.symmetric:
            raise ValueError(
                f"adjoint has linear_solver={type(solver).__name__}(...), which needs a symmetric "
                f"operator, and the Jacobian of a {equation.kind} equation is not known to be "
                "symmetric: use LU() or GMRES(), or state the problem as minimize"
            )
        return solver
