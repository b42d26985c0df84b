"""Fixed points: ``z = g(z, theta)``. It states the task, and knows no step of the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from implicit_solvers.adjoint import Adjoint, ImplicitAdjoint
from implicit_solvers.driver import Task, solve_equation
from implicit_solvers.examination import Examination
from implicit_solvers.foreign_names import explains_names
from implicit_solvers.linear.adjoint_start import AdjointStart
from implicit_solvers.linear.sparsity import SparsityPattern
from implicit_solvers.precision import in_full_precision
from implicit_solvers.problem import Equation
from implicit_solvers.root_finding import like_unknown
from implicit_solvers.rounding_floor import at_the_floor
from implicit_solvers.sharding import telling
from implicit_solvers.solution import OnFailure, Solution
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.anderson import Anderson
from implicit_solvers.solvers.newton import Newton

__all__ = ["FixedPointEquation", "fixed_point"]

T = TypeVar("T")


class FixedPointEquation(Equation):
    """The condition ``z - g(z, theta) = 0``; its Jacobian is ``I - dg/dz``."""

    kind: ClassVar[str] = "fixed_point"
    symmetric: ClassVar[bool] = False
    looked_at_last: ClassVar[bool] = True
    subtracts: ClassVar[bool] = True

    @staticmethod
    def pattern_from(given: SparsityPattern) -> SparsityPattern:
        """Return the pattern of ``I - dg/dz`` from that of ``dg/dz``."""
        return given.with_diagonal()

    def condition(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return ``z - g(z, theta)``."""
        return z - self.fn(z, *operands)

    def examine(self, problem: Any, z: Tensor, direct: Any) -> Examination:
        """Return Newton's step; by products where nothing factors the Jacobian."""
        if direct is None:
            return at_the_floor(problem, z)
        return super().examine(problem, z, direct)


@explains_names("Anderson")
@in_full_precision("z0", body=False)
def fixed_point(
    fn: Callable[..., Any],
    z0: T,
    args: tuple[Any, ...] = (),
    *,
    solver: EquationMethod | None = None,
    adjoint: Adjoint | None = None,
    jac_sparsity: Any = None,
    batch_dims: int = 0,
    in_dims: Any = None,
    has_aux: bool = False,
    on_failure: OnFailure = "raise",
    adjoint_start: AdjointStart | None = None,
    check: bool = False,
    sync_failures: Any = False,
) -> Solution[T]:
    """Find a fixed point ``z = fn(z, *args)``, differentiable in everything that ``fn`` uses.

    The derivative is ``dz = (I - dg/dz)^-1 (dg/dtheta) dtheta`` at the point returned. Memory
    does not grow with the number of iterations.

    Parameters
    ----------
    fn
        ``fn(z, *args)`` returns the next iterate, with the structure, shapes and dtype of ``z``.
    z0
        The start: a tensor (0-d too) or a pytree of tensors of one floating dtype and
        device. It gets no gradient.
    args
        Further arguments, pytrees; other leaves than tensors are passed on as they are.
    solver
        `Anderson`, by default; `FixedPointIteration`, `Aitken`, or any solver for roots.
    jac_sparsity
        As in `root`, of ``fn``; `Newton` is the default then.
    adjoint, batch_dims, in_dims, has_aux, on_failure, adjoint_start, check, sync_failures
        As in `root`.

    Returns
    -------
    Solution
        The fixed point; ``residual`` is the norm of ``z - fn(z)``.

    Raises
    ------
    ConvergenceError
        If a problem fails and ``on_failure="raise"``: a map that is not a contraction near its
        fixed point needs `Newton` or damping.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Source: Bai, Kolter and Koltun, "Deep Equilibrium Models" (2019), section 3.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> sol = ims.fixed_point(lambda z, a: a * torch.cos(z), torch.tensor(0.0), (a,))
    >>> sol.value
    tensor(0.4502, grad_fn=<...>)
    >>> torch.autograd.grad(sol.value, a)[0]  # cos z / (1 + a sin z)
    tensor(0.7395)
    """
    adjoint = ImplicitAdjoint() if adjoint is None else adjoint
    if solver is None:
        solver = Anderson() if jac_sparsity is None else Newton()
    ranks = telling(sync_failures)
    how = adjoint, batch_dims, in_dims, has_aux, on_failure, adjoint_start, check, ranks
    task = Task(FixedPointEquation, fn, like_unknown, solver, *how, sparsity=jac_sparsity)
    return solve_equation(task, z0, args)
