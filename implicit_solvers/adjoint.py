"""How a solution is differentiated: an argument of every equation.

It knows no rule: `driver` hands it to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from implicit_solvers.hyperparameters import check_count
from implicit_solvers.linear.choice import (
    DENSE_LIMIT,
    default_linear_solver,
    sparse_linear_solver,
)
from implicit_solvers.linear.linear_operator import LinearOperator
from implicit_solvers.linear.preconditioners import Preconditioner
from implicit_solvers.linear.sparsity import SparsityPattern
from implicit_solvers.problem import Equation
from implicit_solvers.solver import LinearMethod, LinearSolver, check_linear_solver
from implicit_solvers.tolerance import AUTO

__all__ = ["Adjoint", "as_accurate", "ImplicitAdjoint", "OneStepAdjoint", "UnrolledAdjoint"]


@dataclass(frozen=True)
class ImplicitAdjoint:
    """Differentiate by the implicit function theorem, with one linear solve.

    For the condition ``F(z, theta) = 0``: ``dz = -A^-1 B dtheta``, where ``A = dF/dz`` and
    ``B = dF/dtheta``, and in reverse ``theta' = -B^T w`` with ``A^T w = z'``. Source: Griewank and
    Walther, "Evaluating Derivatives" (2008), chapter 15.

    Parameters
    ----------
    linear_solver
        How to solve with the Jacobian (or its transpose) of the optimality condition at the
        solution. Left out, ``LU()`` up to 512 unknowns; beyond, ``CG()`` for ``minimize`` and
        ``GMRES()`` for the others; with a ``jac_sparsity``, ``SuperLU()``. ``CG(max_steps=5,
        rtol=None)`` spends a budget; ``Neumann(max_steps=k, rtol=None)`` sums the first ``k`` terms
        of the Neumann series, which is biased: of first order only, an error when its derivative
        is differentiated again.
    preconditioner
        ``Jacobi()``, with a ``jac_sparsity`` ``ILU()``, or a function of ``(z, *args)`` that
        returns an operator near the inverse of the Jacobian, on vectors like ``z``; iterative
        solvers only.

    Raises
    ------
    TypeError, ValueError
        When a solve begins and ``linear_solver`` is none, or not made for its Jacobian.
    RuntimeError
        When the derivative of a truncated Neumann series is differentiated again.

    Notes
    -----
    ``z`` is ``(*batch, n)`` for the solve, whatever its structure, and ``A`` is ``(*batch, n, n)``,
    of the unknown's dtype.

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
    preconditioner: Preconditioner | Callable[..., LinearOperator] | None = None

    @property
    def biased(self) -> bool:
        """Whether the derivative is an estimate by design: a truncated Neumann series."""
        return self.linear_solver is not None and self.linear_solver.biased

    def solver_for(
        self, equation: type[Equation], n: float, sparsity: SparsityPattern | None = None
    ) -> LinearSolver:
        """Return the linear solver for an equation of ``n`` unknowns, or refuse the one given."""
        solver: Any = self.linear_solver
        if solver is None and sparsity is not None:
            return sparse_linear_solver(sparsity)
        if solver is None:
            # a Hessian that is indefinite after all is reported by CG, and solved by LU
            large = equation.kind == "minimize" and n > DENSE_LIMIT
            return default_linear_solver(n, positive_definite=large)
        check_linear_solver(self)
        if solver.diagonal_only:
            raise ValueError(
                f"adjoint has linear_solver={solver!r}, and the Jacobian of an equation is not "
                "known to be diagonal: use LU() or GMRES()"
            )
        if solver.symmetric_only and not equation.symmetric:
            raise ValueError(
                f"adjoint has linear_solver={type(solver).__name__}(...), which needs a symmetric "
                f"operator, and the Jacobian of a {equation.kind} equation is not known to be "
                "symmetric: use LU() or GMRES(), or state the problem as minimize"
            )
        return solver


@dataclass(frozen=True)
class OneStepAdjoint:
    """Differentiate one application of the map at the fixed point: Jacobian-free backpropagation.

    For ``z = g(z, theta)`` the derivative is taken to be ``(dg/dtheta) dtheta``, that is, the
    inverse of ``I - dg/dz`` is replaced by ``I``: no solve, and a bias of the order of the map's
    Lipschitz constant. For `fixed_point` and `custom_fixed_point` only; of first order only, an
    error when the derivative is differentiated again. Source: Fung et al., "JFB: Jacobian-Free
    Backpropagation for Implicit Networks" (2022).

    ``z`` may have any structure, shapes and floating dtype.

    Raises
    ------
    ValueError
        When another equation than a fixed point is solved.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(1.0, requires_grad=True)
    >>> cell = lambda z, a: 0.1 * z + a
    >>> sol = ims.fixed_point(cell, torch.tensor(0.0), (a,), adjoint=OneStepAdjoint())
    >>> torch.autograd.grad(sol.value, a)[0]  # the exact derivative is 1 / 0.9
    tensor(1.)
    """

    biased: ClassVar[bool] = True
    preconditioner: ClassVar[None] = None

    def solver_for(self, equation: type[Equation], n: float, sparsity: Any = None) -> None:
        """Refuse what is no fixed point; there is nothing to solve."""
        if equation.kind != "fixed_point":
            raise ValueError(
                f"adjoint=OneStepAdjoint() is for fixed points, and this is {equation.kind}: use "
                "ImplicitAdjoint()"
            )


@dataclass(frozen=True)
class UnrolledAdjoint:
    """Differentiate through the steps that the solver made, to compare with or to learn from.

    For steps ``z_(k+1) = s(z_k, theta)``: ``dz_(k+1) = (ds/dz) dz_k + (ds/dtheta) dtheta``, with
    ``z`` of any structure, shapes and floating dtype.

    Memory grows with the number of steps; the start gets a gradient. It works through
    `FixedPointIteration` and `GradientDescent`, in every mode and to any order; under
    ``torch.func.vmap`` only with ``rtol=None`` on the solver (use ``batch_dims`` otherwise, or let
    ``fn`` handle the batch). Source of checkpoints: Chen, Xu, Zhang and Guestrin, "Training Deep
    Nets with Sublinear Memory Cost" (2016).

    Parameters
    ----------
    checkpoint
        Keep the iterate of every so many steps only, and compute those between again in the
        backward pass; for solvers without memory (`FixedPointIteration`, and `GradientDescent`
        without momentum).

    Raises
    ------
    TypeError, ValueError
        If ``checkpoint`` is not a number of steps; when a solve begins that cannot be unrolled.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(1.0, requires_grad=True)
    >>> two = ims.FixedPointIteration(max_steps=2, rtol=None)
    >>> sol = ims.fixed_point(
    ...     lambda z, a: 0.5 * z + a, torch.tensor(0.0), (a,), solver=two, adjoint=UnrolledAdjoint()
    ... )
    >>> torch.autograd.grad(sol.value, a)[0]  # 1 + 0.5, on the way to 2
    tensor(1.5000)
    """

    checkpoint: int | None = None
    biased: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        if self.checkpoint is not None:
            check_count(self, "checkpoint", least=1)

    def check(self, solver: Any) -> None:
        """Refuse a solver that cannot be unrolled."""
        if not getattr(solver, "unrollable", False):
            raise ValueError(
                f"adjoint=UnrolledAdjoint() with solver={type(solver).__name__}: its steps cannot "
                "be differentiated through; use FixedPointIteration(), GradientDescent() without a "
                "line search, or ImplicitAdjoint()"
            )
        if self.checkpoint is not None and getattr(solver, "remembers", False):
            raise ValueError(
                f"UnrolledAdjoint(checkpoint={self.checkpoint}) with "
                f"solver={type(solver).__name__}, whose steps depend on earlier ones: leave "
                "checkpoint out, or use a solver without memory"
            )


Adjoint = ImplicitAdjoint | OneStepAdjoint | UnrolledAdjoint


def as_accurate(linear_solver: Any, solver: Any) -> Any:
    """Return an adjoint's solver with the ``rtol`` of one whose function sees autocast.

    Products with a Jacobian in half precision are no better. A tolerance that is given stays.
    """
    rough = getattr(solver, "autocast", False) and solver.rtol is not None
    if not (rough and isinstance(linear_solver, LinearMethod)) or linear_solver.rtol is not AUTO:
        return linear_solver
    return replace(linear_solver, rtol=solver.rtol)
