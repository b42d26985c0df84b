"""Minima: ``argmin_z f(z, theta)``. It states the task, and knows no step of the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from implicit_solvers.adjoint import Adjoint, ImplicitAdjoint
from implicit_solvers.autodiff import vjp
from implicit_solvers.bounded_equation import Bounded
from implicit_solvers.bounds import read_bounds
from implicit_solvers.closures import bound
from implicit_solvers.constrained_equation import ConstrainedEquation
from implicit_solvers.constraints import Constraints
from implicit_solvers.curvature import by_cholesky, by_conjugate_gradients
from implicit_solvers.driver import Task, solve_equation
from implicit_solvers.examination import Examination
from implicit_solvers.foreign_names import explains_names
from implicit_solvers.linear.adjoint_start import AdjointStart
from implicit_solvers.linear.sparsity import SparsityPattern
from implicit_solvers.many_starts import one_start
from implicit_solvers.precision import in_full_precision
from implicit_solvers.problem import Equation
from implicit_solvers.proximal_equation import ProximalEquation, ProximalTask
from implicit_solvers.sharding import telling
from implicit_solvers.solution import OnFailure, Solution
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.interior_point import FilterInteriorPoint
from implicit_solvers.solvers.newton import Newton
from implicit_solvers.solvers.newton_cg import ProjectedNewton
from implicit_solvers.solvers.proximal_gradient import FISTA
from implicit_solvers.solvers.trust_region_newton import TrustRegion
from implicit_solvers.structure import Structure

__all__ = ["MinimumEquation", "minimize", "read_objective"]

T = TypeVar("T")


class MinimumEquation(Equation):
    """The condition ``grad_z f(z, theta) = 0``; its Jacobian is the Hessian."""

    kind: ClassVar[str] = "minimize"
    symmetric: ClassVar[bool] = True
    by_products: ClassVar[bool] = True

    @staticmethod
    def pattern_from(given: SparsityPattern) -> SparsityPattern:
        """Return the pattern of the Hessian, of which one half is enough."""
        return given.symmetrized()

    def examine(self, problem: Any, z: Tensor, direct: Any) -> Examination:
        """Return Newton's step, and where the curvature is negative a step down along it."""
        if direct is None:
            return by_conjugate_gradients(problem, z)
        return by_cholesky(problem, z, direct)

    def condition(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return the gradient of ``f`` with respect to ``z``."""
        value, pull = vjp(lambda u: self.fn(u, *operands), z)
        return pull(torch.ones_like(value))[0]


class BoundedMinimumEquation(Bounded, MinimumEquation):
    """The condition of a minimum between bounds."""

    kind: ClassVar[str] = "minimize with bounds"


def read_objective(out: Any, structure: Structure, lanes: Sequence[int]) -> Tensor:
    """Check what an objective returned."""
    if not isinstance(out, Tensor) or out.shape != tuple(lanes):
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"fn returned {shape}: an objective is one number for each problem, a tensor of shape "
            f"{tuple(lanes)}"
        )
    if out.dtype != structure.flat_dtype:
        raise TypeError(
            f"fn returned {out.dtype} where z0 has {structure.dtype}: convert z0 or the tensors "
            "that the function uses, so that all have one dtype (an objective is real)"
        )
    return out


@explains_names("LBFGS")
@in_full_precision("z0", body=False)
def minimize(
    fn: Callable[..., Any],
    z0: T,
    args: tuple[Any, ...] = (),
    *,
    bounds: Any = None,
    equalities: Callable[..., Any] | None = None,
    inequalities: Callable[..., Any] | None = None,
    prox: Callable[..., Any] | None = None,
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
    """Find a local minimum ``z`` of ``fn(z, *args)``, differentiable in everything ``fn`` uses.

    The derivative is ``dz = -H^-1 (d grad f/dtheta) dtheta`` with the Hessian ``H`` at the point
    returned. After a budget of steps it is an estimate.

    What has converged is a minimum: at the end of a solve, the Hessian gives the error, and shows
    that there is no negative curvature (`Status.SADDLE`). The solver leaves saddles, unless it
    starts at one. Beyond 512 unknowns, a few products with the Hessian are used instead, and the
    error is not known.

    Parameters
    ----------
    fn
        ``fn(z, *args)`` returns the objective, real and of the dtype of ``z0``: a 0-d tensor, or
        one number for each problem, ``(*batch,)``.
    z0
        The start: a tensor (0-d too) or a pytree of tensors, of any shapes and of one floating
        dtype and device. It gets no gradient: where the start is a parameter that the solution
        depends on (as in iMAML), pass it in ``args`` too.
    args
        Further arguments, pytrees; other leaves than tensors are passed on as they are.
    bounds
        A pair ``(lo, hi)`` with ``lo <= z <= hi``: each a number, None, or a pytree like ``z0`` of
        tensors, numbers and None; infinite where there is none. They are differentiable. A start
        outside of them is moved to the nearest point between them. If one is active with a
        multiplier of zero, there are two derivatives: `Solution.degenerate`.
    equalities, inequalities
        ``equalities(z, *args)`` returns what has to be zero, ``inequalities(z, *args)`` what has to
        be at most zero: tensors or pytrees of any shapes, of the dtype of ``z0`` (with the batch in
        front).
    prox
        ``prox(v, step, *args)``, the proximal operator of ``step * h``, for a minimum of ``f + h``:
        ``argmin_x h(x) + |x - v|^2 / (2 step)``, a pytree like ``v``, which is one like ``z``. The
        step is a 0-d tensor, or one of the batch's shape. The condition is then ``z = prox(z - step
        grad f(z), step)``; ``degenerate`` says where ``prox`` has a kink there.
    solver
        `TrustRegion`, by default; `NewtonCG`, `Newton`, `BFGS`, `LBFGS`, `NonlinearCG`,
        `GradientDescent`, `TorchOptimizer`. With bounds `ProjectedNewton`, by default; `LBFGSB`,
        `GradientDescent`. With ``prox`` `FISTA`, by default, or `ProximalGradient`. With equalities
        or inequalities `FilterInteriorPoint`.
    jac_sparsity
        As in `root`, of the Hessian; `Newton` is the default then.
    adjoint, batch_dims, in_dims, has_aux, on_failure, adjoint_start, check, sync_failures
        As in `root`.

    Returns
    -------
    Solution
        The minimum; ``residual`` is the norm of the gradient over the unknowns that are not at an
        active bound; with constraints, of the gradient of the Lagrangian, whose `Multipliers` are
        in ``multipliers``.

    Raises
    ------
    ConvergenceError
        If a problem fails and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Source: Gould et al., "On Differentiating Parameterized Argmin and Argmax Problems" (2016).

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(2.0, requires_grad=True)
    >>> sol = ims.minimize(lambda z, a: (z - a) ** 2 + z**2, torch.tensor(0.0), (a,))
    >>> sol.value
    tensor(1., grad_fn=<...>)
    >>> torch.autograd.grad(sol.value, a)[0]
    tensor(0.5000)

    Between bounds:

    >>> hi = torch.tensor(0.8, requires_grad=True)
    >>> sol = ims.minimize(lambda z, a: (z - a) ** 2, torch.tensor(0.0), (a,), bounds=(0.0, hi))
    >>> sol.value, torch.autograd.grad(sol.value, hi)[0]
    (tensor(0.8000, grad_fn=<...>), tensor(1.))
    """
    adjoint = ImplicitAdjoint() if adjoint is None else adjoint
    ranks = telling(sync_failures)
    if equalities is not None or inequalities is not None:
        if prox is not None or jac_sparsity is not None:
            name = "jac_sparsity" if prox is None else "prox"
            raise ValueError(f"{name} is given with constraints: leave one of them out")
        solver = FilterInteriorPoint() if solver is None else solver
        how = adjoint, batch_dims, in_dims, has_aux, on_failure, adjoint_start, check, ranks
        given = under_constraints(fn, z0, args, bounds, equalities, inequalities, solver, how)
        return with_multipliers(given.constraints, solve_equation(*given[1:4], own=given.own))
    if solver is None:
        solver = TrustRegion() if jac_sparsity is None else Newton()
        solver = solver if bounds is None else ProjectedNewton()
        solver = solver if prox is None else FISTA()
    how = adjoint, batch_dims, in_dims, has_aux, on_failure, adjoint_start, check, ranks
    if jac_sparsity is not None and (bounds is not None or prox is not None):
        raise ValueError(
            f"jac_sparsity is given with {'prox' if bounds is None else 'bounds'}, whose solvers "
            "factor no sparse Jacobian: leave one of them out"
        )
    if prox is not None:
        if bounds is not None:
            raise ValueError(
                "prox is given with bounds: leave bounds out, and let prox project to them too"
            )
        nearest = ProximalTask(ProximalEquation, fn, read_objective, solver, *how, prox=prox)
        return solve_equation(nearest, z0, args, own=nearest.own(z0, args))
    if bounds is None:
        task = Task(MinimumEquation, fn, read_objective, solver, *how, sparsity=jac_sparsity)
        return solve_equation(task, z0, args)
    task = Task(BoundedMinimumEquation, fn, read_objective, solver, *how)
    return solve_equation(task, z0, args, own=read_bounds(bounds, one_start(z0), batch_dims))


class Constrained(NamedTuple):
    """A minimum under constraints as a task with its start, arguments, and bounds."""

    constraints: Constraints
    task: Task
    start: Any
    args: tuple[Any, ...]
    own: tuple[Tensor, Tensor]


def under_constraints(
    fn: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...],
    bounds: Any,
    equalities: Any,
    inequalities: Any,
    solver: EquationMethod | None,
    how: tuple[Any, ...],
) -> Constrained:
    """State the minimum of ``fn`` under constraints; ``how`` are further fields of its `Task`."""
    _, batch_dims, _, has_aux, *_ = how
    one = one_start(z0)
    structure = Structure.of(one, "z0", batch_dims)
    functions = bound(fn), bound(equalities), bound(inequalities)
    given = Constraints.of(*functions, structure, one, args, has_aux)
    lo, hi = read_bounds((None, None) if bounds is None else bounds, one, batch_dims)
    read, count = given.read(read_objective), sum(given.sizes)
    task = Task(ConstrainedEquation, given.function(), read, solver, *how)
    task = replace(task, multipliers=count)
    return Constrained(given, task, given.start(z0, structure), args, given.bounds(lo, hi))


def with_multipliers(constraints: Constraints, solution: Solution) -> Solution[Any]:
    """Return the solution of the unknown alone, with its multipliers beside it."""
    z, y = solution.value
    return replace(solution, value=z, multipliers=constraints.multipliers(y))
