"""What a solve returns, and what happens when it fails."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils._pytree import register_pytree_node

__all__ = [
    "ConvergenceError",
    "ConvergenceWarning",
    "OnFailure",
    "Solution",
    "Status",
    "enforce",
    "failed",
]

OnFailure = Literal["raise", "warn", "mask"]


class Status(enum.IntEnum):
    """How the solve of a lane ended; `help` says what to change.

    Examples
    --------
    >>> Status(0)
    <Status.CONVERGED: 0>
    >>> print(Status.SINGULAR.help)
    the Jacobian (or matrix) is singular to working precision: ...
    """

    CONVERGED = 0
    BUDGET = 1
    MAX_STEPS = 2
    NONFINITE = 3
    STALLED = 4
    SINGULAR = 5
    INDEFINITE = 6
    BREAKDOWN = 7
    REJECTED = 8
    BRACKET = 9
    INFEASIBLE = 10
    UNBOUNDED = 11

    @property
    def help(self) -> str:
        """What the status means and what to try."""
        return _HELP[self]


_HELP = {
    Status.CONVERGED: "the residual met the tolerance",
    Status.BUDGET: "ran the number of steps asked for with rtol=None; convergence was not judged",
    Status.MAX_STEPS: (
        "the residual was above the tolerance after max_steps: raise max_steps, start nearer to "
        "the solution, try another solver, or loosen rtol and atol"
    ),
    Status.NONFINITE: (
        "NaN or inf in the start, in the function's value there, or in every step tried: check "
        "the inputs of these lanes, or start where the function is defined"
    ),
    Status.STALLED: (
        "no step reduces the residual any more: it may be at the rounding level of the function "
        "(loosen atol to about the residual shown, scale the function, or use float64), or at a "
        "point that is no solution (start elsewhere)"
    ),
    Status.SINGULAR: (
        "the Jacobian (or matrix) is singular to working precision: the solution is not isolated "
        "there and has no derivative; start elsewhere, or regularize the problem"
    ),
    Status.INDEFINITE: (
        "the operator (of a quadratic program, Q) is not positive definite (semidefinite), which "
        "this solver needs: use LU() or GMRES(), or add damping"
    ),
    Status.BREAKDOWN: (
        "the Krylov space stopped growing before the residual met the tolerance: the operator is "
        "singular or nearly so; use a direct solver or a preconditioner"
    ),
    Status.REJECTED: (
        "the point given, or returned by your solver, does not solve the equation: its residual "
        "is above the tolerance; solve more accurately, or loosen rtol and atol"
    ),
    Status.BRACKET: (
        "the function has the same sign at both ends of the bracket, or wherever one was searched "
        "for: pass bracket=(lo, hi) with values of different sign, or use Newton()"
    ),
    Status.INFEASIBLE: (
        "the constraints contradict each other, as multipliers found on the way prove: no point "
        "meets them all; relax a constraint"
    ),
    Status.UNBOUNDED: (
        "the objective falls without end along a direction that the constraints allow: add the "
        "constraints that are missing, or a quadratic term"
    ),
}


class ConvergenceError(RuntimeError):
    """A solve failed in at least one lane, and ``on_failure="raise"``."""


class ConvergenceWarning(UserWarning):
    """A solve failed in at least one lane, and ``on_failure`` is ``"warn"`` or ``"mask"``."""


@dataclass(frozen=True)
class Solution:
    """The result of a solve, a pytree; the statistics have one entry for each lane.

    Attributes
    ----------
    value
        The solution, with the structure, shapes and dtype of the start.
    converged
        Whether the residual met the tolerance; bool, ``(*lanes,)``, like all statistics: 0-d where
        there is one problem.
    iterations
        The number of steps taken; int64.
    residual
        The norm (root mean square unless the solver says otherwise) of the optimality condition,
        or of ``b - A x``, at ``value``; in the dtype of the unknown, real where that is complex.
    status
        `Status` codes; int64.
    aux
        What the function returned beside its value (``has_aux=True``), at ``value``; else None.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> sol = ims.root(lambda z: z**2 - 2, torch.tensor(1.0))
    >>> sol.value, Status(int(sol.status))
    (tensor(1.4142), <Status.CONVERGED: 0>)
    """

    value: Any
    converged: Tensor
    iterations: Tensor
    residual: Tensor
    status: Tensor
    aux: Any = None


def _flatten(solution: Solution) -> tuple[list[Any], bool]:
    fields = [
        solution.value,
        solution.converged,
        solution.iterations,
        solution.residual,
        solution.status,
    ]
    has_aux = solution.aux is not None
    return [*fields, solution.aux] if has_aux else fields, has_aux


def _unflatten(fields: Sequence[Any], has_aux: bool) -> Solution:
    return Solution(*fields)


register_pytree_node(Solution, _flatten, _unflatten, serialized_type_name="ims.Solution")  # type: ignore[arg-type]


def failed(status: Tensor) -> Tensor:
    """Tell for each lane whether its status is a failure; a budget is none."""
    return status > int(Status.BUDGET)


def enforce(
    policy: OnFailure,
    what: str,
    status: Tensor,
    iterations: Tensor,
    residual: Tensor,
    *,
    warn_masked: bool = False,
) -> None:
    """Raise or warn if a lane failed, as ``policy`` says; all tensors have the lanes' shape."""
    bad = failed(status)
    if not bool(bad.any()):
        return
    if policy == "raise":
        raise ConvergenceError(_describe(what, bad, status, iterations, residual))
    if policy == "warn" or warn_masked:
        text = _describe(what, bad, status, iterations, residual)
        warnings.warn(text, ConvergenceWarning, stacklevel=2)


def _describe(
    what: str, bad: Tensor, status: Tensor, iterations: Tensor, residual: Tensor, most: int = 5
) -> str:
    index = bad.nonzero()
    lines = []
    for row in index[:most]:
        key = tuple(row.tolist())
        code = Status(int(status[key]))
        lane = f"lane {key[0] if len(key) == 1 else key}: " if key else ""
        lines.append(
            f"{lane}{code.name} after {int(iterations[key])} steps, "
            f"residual {float(residual[key]):.3g}"
        )
    if len(index) > most:
        lines.append(f"and {len(index) - most} lanes more")
    codes = sorted({int(code) for code in status[bad]})
    advice = [f"{Status(code).name}: {Status(code).help}." for code in codes]
    if bad.dim():
        head = f"{what} failed in {len(index)} of {bad.numel()} lanes ({'; '.join(lines)})."
    else:
        head = f"{what} failed ({'; '.join(lines)})."
    return " ".join([head, *advice])
