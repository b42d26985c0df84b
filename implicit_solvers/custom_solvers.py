"""Solutions and solvers of your own, with the derivatives of the equation.

Nothing here knows how your solver works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from implicit_solvers.adjoint import Adjoint, ImplicitAdjoint
from implicit_solvers.bounds import read_bounds
from implicit_solvers.constraints import Multipliers
from implicit_solvers.driver import Task, name_of, solve_equation
from implicit_solvers.fixed_points import FixedPointEquation, fixed_point
from implicit_solvers.guarded_call import called
from implicit_solvers.linear.lu import LU
from implicit_solvers.minimization import (
    BoundedMinimumEquation,
    MinimumEquation,
    minimize,
    read_objective,
    under_constraints,
)
from implicit_solvers.nonlinear_least_squares import (
    BoundedLeastSquaresEquation,
    LeastSquaresEquation,
    least_squares,
    read_residuals,
)
from implicit_solvers.outcome import RUNNING, Outcome
from implicit_solvers.precision import in_full_precision
from implicit_solvers.problem import EquationProblem
from implicit_solvers.root_finding import RootEquation, like_unknown, root
from implicit_solvers.solution import OnFailure, Solution, Status
from implicit_solvers.solver import DENSE_LIMIT, EquationMethod
from implicit_solvers.structure import Structure, split_tensors
from implicit_solvers.tolerance import largest, rms
from implicit_solvers.torch_internals import tree_map
from implicit_solvers.verdict import judged

__all__ = ["attach", "attach_kkt", "custom_fixed_point", "custom_root", "stated"]

VmapMethod = Literal["loop", "batched"]
T = TypeVar("T")

_GIVEN = "it is called as solver(z0, *args), with all that fn takes after the unknown"
_STATEMENTS: dict[Any, Any] = {
    root: (RootEquation, like_unknown),
    fixed_point: (FixedPointEquation, like_unknown),
    minimize: (MinimumEquation, read_objective),
    least_squares: (LeastSquaresEquation, read_residuals),
}
_BOUNDED: dict[Any, Any] = {
    minimize: BoundedMinimumEquation,
    least_squares: BoundedLeastSquaresEquation,
}


@dataclass(frozen=True)
class _Judge:
    """Tell of points that something else found whether they solve the equation."""

    rtol: float | None
    atol: float | None
    traceable: ClassVar[bool] = True

    def __call__(self, problem: EquationProblem, z: Tensor) -> Outcome:
        rtol = torch.finfo(z.dtype).eps ** 0.5 if self.rtol is None else self.rtol
        atol = 0.0 if self.atol is None else self.atol
        found = _outcome(z, rms(problem.residual(z)), torch.zeros_like(z[:, 0], dtype=torch.int64))
        if z.shape[-1] <= DENSE_LIMIT or problem.equation.multipliers:
            solver = EquationMethod(rtol=rtol, atol=atol)
            found = judged(solver, problem, found, LU())[0].spread()
            status = found.status
        else:
            # no Jacobian is factored: is F small beside the terms that cancel in it?
            status = (found.residual > rtol * rms(problem.linearize(z).sizes(z))) * RUNNING
        return found._replace(status=torch.where(status == RUNNING, int(Status.REJECTED), status))


class _JudgeOnActiveSet(_Judge):
    """Tell it of points with multipliers, moved to the bounds that they are next to."""

    def __call__(self, problem: EquationProblem, z: Tensor) -> Outcome:
        rtol = torch.finfo(z.dtype).eps ** 0.5 if self.rtol is None else self.rtol
        equation: Any = problem.equation
        return super().__call__(problem, equation.snapped(problem, z, rtol))


class _AsFound:
    """Take points for what a solver said that they are: each has its status beside it."""

    traceable: ClassVar[bool] = True

    def __call__(self, problem: EquationProblem, pairs: Tensor) -> Outcome:
        z, codes = pairs.chunk(2, dim=-1)
        return _outcome(z, rms(problem.residual(z)), codes[:, 0].long())


def _outcome(z: Tensor, error: Tensor, status: Tensor) -> Outcome:
    finite = (error < torch.inf) & (largest(z) < torch.inf)
    status = torch.where(finite, status, int(Status.NONFINITE))
    return Outcome(z, status, torch.zeros_like(status), error, torch.full_like(error, torch.inf))


@in_full_precision("z", body=False)
def attach(
    fn: Callable[..., Any],
    z: T,
    args: tuple[Any, ...] = (),
    *,
    equation: Callable[..., Solution] = root,
    bounds: Any = None,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    batch_dims: int = 0,
    in_dims: Any = None,
    on_failure: OnFailure = "raise",
) -> T:
    """Return a solution that you already have, with the derivatives of its equation.

    For a root of ``F(z, theta) = 0``, with the gradient of an objective in place of ``F`` for a
    minimum, they are ``dz = -(dF/dz)^-1 (dF/dtheta) dtheta``. Source: Blondel et al., "Efficient
    and Modular Implicit Differentiation" (2022), section 2.

    Parameters
    ----------
    fn
        ``fn(z, *args)`` as ``equation`` takes it: the residual of a root, an objective, ...
    z
        The solution, found by any means: a tensor or pytree of tensors, of any shapes and one
        floating dtype. Its own gradient, if it has one, is dropped. Or a `Solution`, which keeps
        its statuses and failures.
    args
        Further arguments of ``fn``, pytrees.
    equation
        What ``z`` solves, by the function that solves it: `root` (default), `fixed_point`,
        `minimize`, `least_squares`.
    bounds
        The bounds of a minimum or fit, as in `minimize`; an unknown at an active bound equals it
        exactly.
    adjoint
        How to differentiate: `ImplicitAdjoint`, by default.
    rtol, atol
        ``z`` is accepted as a solution if its estimated error, by a Newton step, is at most ``atol
        + rtol rms(z)``, or what rounding allows; in units of ``z``. ``rtol`` defaults to
        ``sqrt(eps)``, 1.5e-8 in float64, 3.5e-4 in float32, 0.031 in float16 and 0.088 in bfloat16,
        ``atol`` to zero. Beyond 512 unknowns no Jacobian is formed, and the residual is compared
        with the terms that cancel in it, ``rms(F(z)) <= rtol rms(|F'(z)| |z|)``, estimated by two
        products with signs.
    batch_dims, in_dims, on_failure
        As in `root`; a problem whose ``z`` is not a solution fails as REJECTED.

    Returns
    -------
    pytree or Solution
        Like ``z``, differentiable in ``args`` and in the tensors that ``fn`` captures.

    Raises
    ------
    ConvergenceError
        If ``z`` is not a solution, or is a `Solution` that failed, and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(9.0, requires_grad=True)
    >>> z = ims.attach(lambda z, a: z**2 - a, torch.tensor(3.0), (a,))
    >>> torch.autograd.grad(z, a)[0]
    tensor(0.1667)

    A minimum:

    >>> parabola = lambda z, a: (z - a) ** 2 + z**2
    >>> z = ims.attach(parabola, torch.tensor(4.5), (a,), equation=ims.minimize)
    >>> torch.autograd.grad(z, a)[0]
    tensor(0.5000)
    """
    task = stated(equation, fn, adjoint, batch_dims, in_dims, on_failure, bounds is not None)
    value = z.value if isinstance(z, Solution) else z
    own = () if bounds is None else read_bounds(bounds, value, batch_dims)
    if not isinstance(z, Solution):
        found: Any = solve_equation(task, z, args, _Judge(rtol, atol), own=own).value
        return found
    if rtol is not None or atol is not None:
        raise ValueError("rtol or atol is given with a Solution, which was judged: pass its value")
    if bounds is None and z.degenerate is not None:
        raise ValueError(
            "the Solution has bounds, constraints or a prox, and bounds is None: pass bounds, use "
            "attach_kkt() for constraints, or differentiate the Solution itself"
        )
    pairs = (z.value, tree_map(functools.partial(_spread, z.status), z.value))
    found = solve_equation(task, z.value, args, _AsFound(), pairs, own)
    return replace(found, iterations=z.iterations, aux=z.aux)


@in_full_precision("z", body=False)
def attach_kkt(
    fn: Callable[..., Any],
    z: T,
    multipliers: Any,
    args: tuple[Any, ...] = (),
    *,
    bounds: Any = None,
    equalities: Callable[..., Any] | None = None,
    inequalities: Callable[..., Any] | None = None,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    batch_dims: int = 0,
    in_dims: Any = None,
    on_failure: OnFailure = "raise",
) -> tuple[T, Multipliers]:
    """Return a minimum under constraints that you already have, with its derivatives.

    They follow from the conditions of Karush, Kuhn and Tucker on the set of constraints that are
    active there, as those of `minimize` do.

    Parameters
    ----------
    fn, args, bounds, equalities, inequalities
        The problem, as `minimize` takes it.
    z
        The minimum, found by any means: a tensor or pytree of tensors, of any shapes and one
        floating dtype. Its own gradient, if it has one, is dropped.
    multipliers
        A pair, of the equalities and of the inequalities, each like what the function returns, or
        ``()`` without one: those with which the gradient of ``fn + sum(y h) + sum(u g)`` vanishes
        where no bound is active, so ``u >= 0``. ``trust-constr`` of SciPy has them in ``v``, where
        the inequalities are ``NonlinearConstraint(g, -inf, 0)``; for the form ``0 <= -g``, ``-v``.
        Multipliers of bounds are not needed.
    adjoint, batch_dims, in_dims, on_failure
        As in `attach`.
    rtol, atol
        ``z`` counts as a minimum as in `attach`, with an error of ``rtol``, by default
        ``sqrt(eps)``. Unknowns that are as near to an active bound are moved onto it, and
        multipliers of inequalities that are farther from zero are set to zero.

    Returns
    -------
    tuple
        Like ``z``, and its `Multipliers`, differentiable in ``args``, in ``bounds`` and in captured
        tensors.

    Raises
    ------
    ConvergenceError
        If ``z`` is not such a minimum (REJECTED), and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Source: Fiacco, "Introduction to Sensitivity and Stability Analysis in Nonlinear Programming"
    (1983), section 3.2.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(4.0, requires_grad=True)
    >>> z, y = ims.attach_kkt(
    ...     lambda z, a: z,
    ...     torch.tensor(-2.0),
    ...     ((), torch.tensor(0.25)),
    ...     (a,),
    ...     inequalities=lambda z, a: z**2 - a,
    ... )
    >>> torch.autograd.grad(z, a)[0]
    tensor(-0.2500)
    """
    chosen = ImplicitAdjoint() if adjoint is None else adjoint
    how = chosen, batch_dims, in_dims, False, on_failure, None, False
    if equalities is None and inequalities is None:
        raise ValueError(
            "neither equalities nor inequalities are given: use attach(..., equation=minimize)"
        )
    given = under_constraints(fn, z, args, bounds, equalities, inequalities, None, how)
    structure = Structure.of(z, "z", batch_dims)
    start = z, given.constraints.flat(multipliers, structure)
    judge = _JudgeOnActiveSet(rtol, atol)
    found, y = solve_equation(given.task, start, args, judge, own=given.own).value
    return found, given.constraints.multipliers(y)


def _spread(status: Tensor, like: Tensor) -> Tensor:
    """Return the status of each lane at all places of what a lane has."""
    ones = (1,) * (like.dim() - status.dim())
    return status.reshape((*status.shape, *ones)).expand_as(like).to(like.dtype)


def custom_root(
    fn: Callable[..., Any],
    *,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    vmap_method: VmapMethod = "loop",
    on_failure: OnFailure = "raise",
) -> Callable[[Callable[..., Any]], Callable[..., Solution[Any]]]:
    """Decorate your own solver for ``fn(z, *args) = 0``: SciPy, C++, a sampler.

    The solver is called as ``solver(z0, *args)`` and returns the root, as tensors or NumPy arrays
    of the structure of ``z0``. It runs without gradients, on plain tensors, and need not be
    differentiable. The decorated solver takes the same arguments and returns a `Solution`, whose
    convergence the library judges. Source: Blondel et al., "Efficient and Modular
    Implicit Differentiation" (2022), section 2.

    Parameters
    ----------
    fn
        ``fn(z, *args)`` returns the residual, with the structure, shapes and dtype of ``z``.
    adjoint
        How to differentiate: `ImplicitAdjoint`, by default.
    rtol, atol
        As in `attach`.
    vmap_method
        Under ``torch.func.vmap``: ``"loop"`` calls the solver once for each problem; ``"batched"``
        calls it once, with the batch as a first dimension of ``z0`` and of every argument that has
        it (shared ones are passed as they are).
    on_failure
        As in `root`.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    ConvergenceError
        By the decorated solver, if its result is not a root and ``on_failure="raise"``.
    TypeError, ValueError
        By the decorated solver, if an argument or its result is invalid; a ValueError at once, if
        ``vmap_method`` is neither of the two.

    Examples
    --------
    >>> import scipy.optimize, torch, implicit_solvers as ims
    >>> @ims.custom_root(lambda z, a: z**3 - a)
    ... def cube_root(z0, a):
    ...     return scipy.optimize.brentq(lambda z: z**3 - a.item(), 0, 10, xtol=1e-14)
    >>> a = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    >>> z = cube_root(torch.tensor(1.0, dtype=torch.float64), a).value
    >>> round(torch.autograd.grad(z, a)[0].item(), 6)
    0.083333
    """
    return _decorator(root, fn, adjoint, rtol, atol, vmap_method, on_failure)


def custom_fixed_point(
    fn: Callable[..., Any],
    *,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    vmap_method: VmapMethod = "loop",
    on_failure: OnFailure = "raise",
) -> Callable[[Callable[..., Any]], Callable[..., Solution[Any]]]:
    """Decorate your own solver for ``z = fn(z, *args)``.

    The derivative is that of `fixed_point`, ``dz = (I - dg/dz)^-1 (dg/dtheta) dtheta`` for ``fn``
    called ``g``; what the solver does is not differentiated. Source: Blondel et al., "Efficient and
    Modular Implicit Differentiation" (2022), section 2.

    Parameters
    ----------
    fn
        ``fn(z, *args)`` returns the next iterate, with the structure, shapes and dtype of ``z``.
    adjoint, rtol, atol, vmap_method, on_failure
        As in `custom_root`.

    Returns
    -------
    callable
        The decorator, as `custom_root` returns it.

    Raises
    ------
    ConvergenceError
        By the decorated solver, if its result is not a fixed point and ``on_failure="raise"``.
    TypeError, ValueError
        By the decorated solver, if an argument or its result is invalid; a ValueError at once, if
        ``vmap_method`` is neither of the two.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> @ims.custom_fixed_point(lambda z, a: (z + a / z) / 2)
    ... def heron(z0, a):
    ...     return torch.sqrt(a)
    >>> a = torch.tensor(4.0, requires_grad=True)
    >>> torch.autograd.grad(heron(torch.tensor(1.0), a).value, a)[0]
    tensor(0.2500)
    """
    return _decorator(fixed_point, fn, adjoint, rtol, atol, vmap_method, on_failure)


def stated(
    equation: Callable[..., Solution],
    fn: Callable[..., Any],
    adjoint: Adjoint | None,
    batch_dims: int = 0,
    in_dims: Any = None,
    on_failure: OnFailure = "raise",
    bounded: bool = False,
) -> Task:
    """Return what a function for equations is asked for, without a solver."""
    if equation not in _STATEMENTS:
        raise ValueError(
            f"equation is {name_of(equation)}: pass root, fixed_point, minimize or least_squares"
        )
    kind, read = _STATEMENTS[equation]
    if bounded:
        if equation not in _BOUNDED:
            raise ValueError(f"bounds is given with equation={name_of(equation)}: leave it out")
        kind = _BOUNDED[equation]
    chosen = ImplicitAdjoint() if adjoint is None else adjoint
    return Task(kind, fn, read, None, chosen, batch_dims, in_dims, False, on_failure)


def _decorator(
    equation: Callable[..., Solution],
    fn: Callable[..., Any],
    adjoint: Adjoint | None,
    rtol: float | None,
    atol: float | None,
    vmap_method: VmapMethod,
    on_failure: OnFailure,
) -> Callable[[Callable[..., Any]], Callable[..., Solution[Any]]]:
    if vmap_method not in ("loop", "batched"):
        raise ValueError(f'vmap_method is {vmap_method!r}: use "loop" or "batched"')
    task = stated(equation, fn, adjoint, on_failure=on_failure)
    judge = _Judge(rtol, atol)

    def decorate(solver: Callable[..., Any], *more: Any) -> Callable[..., Solution]:
        if more or not callable(solver):
            name = name_of(equation)
            raise TypeError(
                f"custom_{name}(fn) was given what a solver is given: it decorates your solver, as "
                f"in solve = custom_{name}(fn)(solver), and solve(z0, *args) solves"
            )

        @in_full_precision("z0", body=False)
        def found(fn: Callable[..., Any], z0: Any, args: tuple[Any, ...]) -> Solution:
            structure = Structure.of(z0, "z0").as_real()
            tensors, join = split_tensors(args)

            def call(z: Tensor, lane_tensors: list[Tensor]) -> Tensor:
                # copies: NumPy shares memory, and a solver may write into what it is given
                copies = [t.clone() for t in lane_tensors]
                given = structure.unravel(z.clone()), *join(copies)
                out = called(solver, given, f"your solver {name_of(solver)}", _GIVEN)
                if out is None:
                    raise TypeError(
                        f"your solver {name_of(solver)} returned None: end it with return z, the "
                        "solution, like z0"
                    )
                out = tree_map(
                    functools.partial(_as_tensor, dtype=structure.dtype, device=z.device), out
                )
                # a copy: a solver may write the next result into the same memory
                return structure.check_like(out, z.shape[:-1], "your solver", "z0").clone()

            def run(problem: EquationProblem, z: Tensor) -> Outcome:
                count = len(tensors)
                if vmap_method == "batched" and problem.shape:
                    every = torch.arange(problem.count, device=z.device)
                    value = call(z, list(problem.take(every).operands[:count]))
                else:
                    value = torch.stack(
                        [call(z[i], _lane(problem, i, count)) for i in range(len(z))]
                    )
                return judge(problem, value)

            return solve_equation(replace(task, fn=fn), z0, args, run)

        @functools.wraps(solver)
        def solve(z0: Any, *args: Any) -> Solution:
            return found(fn, z0, args)

        return solve

    return decorate


def _lane(problem: EquationProblem, i: int, count: int) -> list[Tensor]:
    """Return the first ``count`` operands of one lane."""
    if not problem.shape:
        return list(problem.operands[:count])
    one = problem.take(torch.tensor([i], device=problem.operands[0].device))
    return [
        t[0] if carries[0] else t
        for t, carries in zip(one.operands[:count], one.lanes.carried[:count], strict=True)
    ]


def _as_tensor(leaf: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.detach()
    try:
        return torch.as_tensor(leaf, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"your solver returned a {type(leaf).__name__}: return tensors or NumPy arrays, like z0"
        ) from error
