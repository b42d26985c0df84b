"""Linear systems inside a compiled graph, with a derivative of first order.

Nothing here knows values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.compiling import common_obstacle, solver_obstacle
from implicit_solvers.linear.adjoint_start import AdjointStart
from implicit_solvers.linear.lane_solve import solve_in_lanes
from implicit_solvers.linear.linear_operator import LinearOperator
from implicit_solvers.linear.preconditioners import Preconditioner
from implicit_solvers.linear.rule import with_factors
from implicit_solvers.linear.specification import LinearSolveSpec
from implicit_solvers.solution import OnFailure, failed
from implicit_solvers.solver import DirectSolver, Factors, LinearSolver
from implicit_solvers.traced_derivative import unless, with_adjoint, with_inverse

__all__ = [
    "differentiated",
    "solve_linear_in_graph",
    "system_obstacle",
]


def system_obstacle(
    A: LinearOperator,
    b: Any,
    solver: LinearSolver,
    preconditioner: Any,
    columns: bool,
    check: bool,
    adjoint_start: AdjointStart | None,
    on_failure: OnFailure,
) -> str | None:
    """Say why a linear solve cannot be part of a graph, and what to do; None if it can."""
    if (why := common_obstacle("linear_solve", on_failure, (A, b))) is not None:
        return why
    parts = [solver, preconditioner] if isinstance(preconditioner, Preconditioner) else [solver]
    for part in parts:
        if (why := solver_obstacle("linear_solve", part)) is not None:
            return why
    what = "implicit_solvers: linear_solve"
    iterative = not isinstance(solver, DirectSolver)
    if torch.compiler.is_exporting() and iterative and not torch.compiler.is_dynamo_compiling():
        return f"{what} by {type(solver).__name__}() is exported with strict=True only"
    if columns:
        return (
            f"{what} cannot solve for several columns in a compiled graph: make a batch of them, "
            "with batch_dims"
        )
    if check:
        return f"{what} cannot check=True in a compiled graph: check outside of it"
    if adjoint_start is not None:
        return f"{what} cannot keep an adjoint_start in a compiled graph: leave it out"
    return None


def solve_linear_in_graph(
    spec: LinearSolveSpec, b: Tensor, start: Tensor | None, operands: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ``x`` and the status, iterations, residual and error of each lane."""
    with torch.no_grad():
        # copies: what a loop reads may share no memory
        constants = [t.detach().clone() for t in operands]
        x, status, iterations, residual, error, *made = solve_in_lanes(
            spec, b.detach().clone(), start, None, constants
        )
    if torch.is_grad_enabled():
        bad = failed(status)
        phi = [unless(bad.all(), t) for t in spec.operator_tensors(operands)]
        if any(spec.nullspaces):
            factored = with_factors(spec, len(made)) if made else spec
            x = _differentiated_pseudo_inverse(factored, x, b, bad, phi, (*made, *constants))
            return x, status, iterations, residual, error
        point = torch.where(bad.unsqueeze(-1), 0.0, x)
        r = spec.one_lane(point, *phi) - b
        flat = tuple(t.reshape(-1, *t.shape[bad.dim() :]) for t in made[:-1])
        x = differentiated(spec, x, r, bad, constants, lambda: (flat, bad))
    return x, status, iterations, residual, error


def differentiated(
    spec: LinearSolveSpec,
    z: Tensor,
    r: Tensor,
    bad: Tensor,
    constants: Sequence[Tensor],
    factor: Callable[[], tuple[Factors, Tensor]],
) -> Tensor:
    """Return ``z (*lanes, n)`` with the derivative of ``-A^-1 r``, ``A`` held constant.

    ``factor`` returns the factors of ``A`` for a direct solver, and the lanes in which they are of
    no use; without a solver ``A`` is one.
    """
    if not r.requires_grad:
        return z
    solver: LinearSolver | None = spec.solver
    if solver is None:
        return with_inverse(z, r, lambda r: r, bad)
    if isinstance(solver, DirectSolver):
        with torch.no_grad():
            factors, unfit = factor()

        def inverse(r: Tensor) -> Tensor:
            return solver.solve(factors, r.reshape(-1, r.shape[-1], 1), False).reshape(r.shape)

        return with_inverse(z, r, inverse, bad | unfit.reshape(bad.shape))
    _refuse_to_export(solver)
    transposed = spec.derived(True)

    def adjoint(g: Tensor) -> tuple[Tensor, ...]:
        return (-solve_in_lanes(transposed, g, None, bad, constants)[0],)

    return with_adjoint(z, (r,), adjoint, bad)


def _refuse_to_export(solver: LinearSolver) -> None:
    if torch.compiler.is_exporting():
        raise ValueError(
            f"implicit_solvers: torch.export cannot keep the adjoint by {type(solver).__name__}(): "
            "use LU() for it, or export under torch.no_grad()"
        )


def _differentiated_pseudo_inverse(
    spec: LinearSolveSpec,
    x: Tensor,
    b: Tensor,
    bad: Tensor,
    phi: Sequence[Tensor],
    operands: Sequence[Tensor],
) -> Tensor:
    """Return ``x = A^+ b (*lanes, n)`` with its derivative, for ``A(phi)`` of constant rank.

    The rule is that of `LinearSolve`. Its terms ``<r, A h>`` and ``<y, A v>`` are those of
    products ``A^T r`` and ``A^T y`` with gradients ``h`` and ``v``. ``operands`` are constants.
    """
    left, right = spec.nullspaces
    flipped, constants = spec.flipped(), spec.operator_tensors(operands)
    skip = bad.unsqueeze(-1)

    def solve(transposed: bool, b: Tensor) -> tuple[Tensor, Tensor]:
        solved = solve_in_lanes(spec.derived(transposed), b, None, bad, operands)
        return solved[0], failed(solved[1]).unsqueeze(-1)

    point = torch.where(skip, 0.0, x)
    products = [spec.one_lane(point, *phi) - b]
    if not products[0].requires_grad:
        return x
    _refuse_to_export(spec.solver)
    if left:
        r = -products[0].detach()
        products.append(flipped.one_lane(torch.where(skip, 0.0, r), *phi))
    if right:
        with torch.no_grad():
            y, unfit = solve(True, point)
        products.append(flipped.one_lane(y, *phi))

    def adjoint(g: Tensor) -> tuple[Tensor, ...]:
        w, lost = solve(True, g)
        gradients = [-w]
        if left:
            gradients.append(solve(False, w)[0])
        if right:
            v = g - flipped.one_lane(w, *constants)
            gradients.append(torch.where(skip | lost | unfit, 0.0, v))
        return tuple(gradients)

    return with_adjoint(x, products, adjoint, bad)
