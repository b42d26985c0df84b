"""Continuation: along a path of solutions from an easy equation to the one to be solved.

It states the task, and knows no step of the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from implicit_solvers.adjoint import Adjoint, ImplicitAdjoint
from implicit_solvers.driver import Task, name_of, solve_equation
from implicit_solvers.foreign_names import explains_names
from implicit_solvers.guarded_call import called
from implicit_solvers.linear.adjoint_start import AdjointStart
from implicit_solvers.precision import in_full_precision
from implicit_solvers.root_finding import RootEquation, like_unknown
from implicit_solvers.solution import OnFailure, Solution
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.continuation import Continuation
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import tree_leaves

__all__ = ["ContinuationEquation", "continuation"]

T = TypeVar("T")


@dataclass(frozen=True)
class ContinuationEquation(RootEquation):
    """The condition ``f(z, t, theta) = 0``, ``t = 1``, of the unknowns ``z`` and ``t``."""

    kind: ClassVar[str] = "continuation"


@explains_names("Continuation")
@in_full_precision("z0", body=False)
def continuation(
    fn: Callable[..., Any],
    z0: T,
    args: tuple[Any, ...] = (),
    *,
    solver: EquationMethod | None = None,
    adjoint: Adjoint | None = None,
    batch_dims: int = 0,
    in_dims: Any = None,
    has_aux: bool = False,
    on_failure: OnFailure = "raise",
    adjoint_start: AdjointStart | None = None,
    check: bool = False,
) -> Solution[T]:
    """Find a root of ``fn(z, 1, *args) = 0`` along the path of those of ``fn(z, t, *args)``.

    For equations without a good start: ``fn(z, 0, *args) = 0`` is easy, with ``z0`` at or near its
    solution, and ``t`` leads to the equation itself: a load, a Reynolds number, or ``t f(z) + (1 -
    t) (z - z0)``, or ``f(z) - (1 - t) f(z0)``. The derivative is that of the end, by the implicit
    function theorem at ``t = 1``, as in `root`: memory does not grow with the path.

    Parameters
    ----------
    fn
        ``fn(z, t, *args)`` returns the residual, with the structure, shapes and dtype of ``z``. The
        parameter ``t`` is a 0-d tensor; with ``batch_dims`` it has an entry for each problem, which
        goes at its own pace.
    z0
        The start: a tensor (0-d too) or a pytree of tensors of one real floating dtype and
        device. It gets no gradient.
    args
        Further arguments, pytrees; other leaves than tensors are passed on as they are.
    solver
        `Continuation`, by default along arclength, which passes folds.
    adjoint, batch_dims, in_dims, has_aux, on_failure, adjoint_start, check
        As in `root`.

    Returns
    -------
    Solution
        The root at ``t = 1``; ``residual`` is the norm of ``fn`` there, and ``iterations`` counts
        all steps of Newton's method. A problem that fails has the ``z`` of the largest ``t`` that
        it reached. One whose steps become too short is STALLED.

    Raises
    ------
    ConvergenceError
        If a problem fails and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    See Also
    --------
    root

    Notes
    -----
    Source: Allgower and Georg, "Numerical Continuation Methods" (1990), chapters 2 and 6;
    Deuflhard, "Newton Methods for Nonlinear Problems" (2004), chapter 5.

    Examples
    --------
    Newton's method from zero runs away, and along ``t`` it does not:

    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(3.0, requires_grad=True)
    >>> sol = ims.continuation(
    ...     lambda z, t, a: torch.atan(z - a) * t + (1 - t) * z, torch.tensor(0.0), (a,)
    ... )
    >>> sol.value
    tensor(3., grad_fn=<...>)
    >>> torch.autograd.grad(sol.value, a)[0]
    tensor(1.)
    """
    adjoint = ImplicitAdjoint() if adjoint is None else adjoint
    solver = Continuation() if solver is None else solver
    structure = Structure.of(z0, "z0", batch_dims)
    if structure.dtype.is_complex:
        raise TypeError(f"z0 is {structure.dtype}: pass its real and imaginary parts, as a pair")
    how = adjoint, batch_dims, in_dims, has_aux, on_failure, adjoint_start, check
    along = _along(fn, has_aux) if callable(fn) else fn
    task = Task(ContinuationEquation, along, like_unknown, solver, *how)
    t = tree_leaves(z0)[0].new_zeros(structure.native)
    found: Any = solve_equation(task, (z0, t), args)
    solution: Solution[T] = replace(found, value=found.value[0])
    return solution


_GIVEN = "it is called as fn(z, t, *args), with t from 0 to 1"


def _along(fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """Return the function of ``z`` and ``t`` that vanishes where ``t`` is one and ``z`` a root."""
    name = name_of(fn)

    def along(point: tuple[Any, Tensor], *args: Any) -> Any:
        z, t = point
        out = called(fn, (z, t, *args), f"the function of continuation of {name}", _GIVEN)
        if has_aux and isinstance(out, tuple) and len(out) == 2:
            return (out[0], t - 1), out[1]
        return out if has_aux else (out, t - 1)

    along.__name__ = name
    along.__wrapped__ = fn  # type: ignore[attr-defined]
    return along
