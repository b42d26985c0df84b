"""Equations inside a compiled graph: ``torch.compile(fullgraph=True)`` and ``torch.export``.

Everything here is traced: no branch depends on the value of a tensor. All lanes step until the
last is done, those that have ended keep their state, and the derivative is of first order. It knows
no concrete solver.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.adjoint import ImplicitAdjoint, OneStepAdjoint, as_accurate
from implicit_solvers.adjoint_preconditioner import adjoint_preconditioner
from implicit_solvers.compiling import common_obstacle, solver_obstacle
from implicit_solvers.iterate import iterate
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.direct_solve import judged
from implicit_solvers.linear.specification import LinearSolveSpec
from implicit_solvers.linear.traced_system import differentiated
from implicit_solvers.problem import EquationProblem
from implicit_solvers.rounding import patterns
from implicit_solvers.solution import Solution, Status, failed
from implicit_solvers.solver import Factors
from implicit_solvers.structure import Structure
from implicit_solvers.task import Task, arguments, check_size, check_task
from implicit_solvers.tolerance import largest
from implicit_solvers.traced_derivative import unless

__all__ = ["obstacle", "solve_in_graph"]


def obstacle(task: Task, z0: Any, args: Any, run: Any) -> str | None:
    """Say why a solve cannot be part of a graph, and what to do; None if it can."""
    kind = task.equation.kind
    if (why := common_obstacle(kind, task.on_failure, (z0, args))) is not None:
        return why
    what = f"implicit_solvers: {kind} in a compiled graph"
    solver = task.solver if run is None else run
    if (why := solver_obstacle(kind, solver)) is not None:
        return why
    if torch.compiler.is_exporting() and not getattr(solver, "exportable", False):
        return (
            f"implicit_solvers: torch.export cannot trace derivatives, which "
            f"{type(solver).__name__}() needs: use FixedPointIteration(), Anderson(), Aitken() or "
            "another solver with exportable=True, or torch.compile"
        )
    if not isinstance(task.adjoint, (ImplicitAdjoint, OneStepAdjoint)):
        return f"{what} cannot use {type(task.adjoint).__name__}: use ImplicitAdjoint()"
    if task.sparsity is not None:
        return f"{what} cannot use jac_sparsity, as SciPy factors sparse Jacobians: leave it out"
    backward = getattr(task.adjoint, "linear_solver", None)
    if backward is not None and (why := solver_obstacle("the adjoint", backward)) is not None:
        return why
    if task.adjoint_start is not None:
        return f"{what} cannot keep an adjoint_start: leave it out"
    return None


def solve_in_graph(
    task: Task,
    z0: Any,
    args: tuple[Any, ...],
    run: Any,
    ends: tuple[Any, ...] | None,
    own: tuple[Tensor, ...],
) -> Solution:
    """Solve from ``z0``, with ``on_failure="mask"``, and attach the first derivative.

    ``run``, the ``ends`` and ``own`` tensors are as in `solve_equation`.
    """
    check_task(task, args)
    structure = Structure.of(z0, "z0", task.batch_dims).as_real()
    tensors, join, carried = arguments(task, args, own, structure)
    check_size(task, structure)
    lanes = Lanes.of(len(tensors), task.batch_dims, carried)
    equation = task.stated(task.raveled(structure, join))
    shape, n = structure.native, structure.size
    with torch.no_grad():
        start = structure.ravel(z0).detach().reshape(-1, n)
        origin = start
        if ends is not None:
            origin = torch.cat([structure.ravel(end).detach().reshape(-1, n) for end in ends], -1)
        # copies: what a loop reads may share no memory
        constants = [t.detach().clone() for t in tensors]
        start = largest(equation.measured(origin))
        problem = EquationProblem(equation, lanes, shape, constants, start)
        out = (run or partial(iterate, task.solver))(problem, origin)
        bad = failed(out.status)
        degenerate = equation.degenerate(problem, out.z, out.error)
    z = out.z
    if torch.is_grad_enabled():
        M = adjoint_preconditioner(task, structure, z.reshape((*shape, n)), args)
        z = _attached(task, problem, out.z, bad, tensors, M)
    value = structure.unravel(z.reshape((*shape, n)))
    status, iterations = out.status.reshape(shape), out.iterations.reshape(shape)
    how = iterations, out.residual.reshape(shape), out.error.reshape(shape), status
    degenerate = None if degenerate is None else degenerate.reshape(shape)
    solution = Solution(value, status == int(Status.CONVERGED), *how, degenerate)
    if task.has_aux:
        solution = replace(solution, aux=task.fn(value, *args)[1])
    return solution


def _attached(
    task: Task,
    problem: EquationProblem,
    z: Tensor,
    bad: Tensor,
    tensors: list[Tensor],
    M: tuple[Any, list[Tensor]],
) -> Tensor:
    """Return ``z (N, n)`` with the derivative of the implicit function theorem.

    ``M`` is the preconditioner of the linear solve, and its tensors.
    """
    equation = task.attached(problem.equation.fn)
    lanes, shape = problem.lanes, problem.shape
    # zero times NaN is NaN: lanes that failed get what belongs to one that did not, if there is one
    good = (~bad).to(torch.int64).argmax().reshape(1)
    point = _harmless(z, bad, good)
    known = lanes.native_carried or (False,) * len(tensors)
    safe = [
        _harmless(t, bad, good) if carries else unless(bad.all(), t)
        for t, carries in zip(tensors, known, strict=True)
    ]
    constants = [t.detach().clone() for t in safe]
    grid = point.reshape((*shape, point.shape[-1]))

    def factor() -> tuple[Factors, Tensor]:
        A = EquationProblem(equation, lanes, shape, constants).linearize(point).flipped()
        factors = solver.factor(A)
        A.matrices = A.formed
        # no cotangent is known yet
        some = patterns(point)[0].expand_as(point)
        found = judged(solver, A, some, factors, solver.solve_lanes(A, factors, some))
        return factors, (solver.status(factors) != 0) | ~found.solid

    adjoint: Any = task.adjoint
    solver: Any = as_accurate(adjoint.solver_for(task.equation, z.shape[-1]), task.solver)
    M_tensors = [t.clone() for t in M[1]]
    spec = LinearSolveSpec(
        equation.jacobian(),
        solver,
        lanes.prepend().shared(len(M_tensors)),
        task.label,
        "mask",
        adjoint=True,
        preconditioner=M[0],
        preconditioner_tensors=len(M_tensors),
    )
    r = equation.condition(grid, *safe)
    if torch.compiler.is_exporting() and r.requires_grad and solver is not None:
        raise ValueError(
            "implicit_solvers: torch.export cannot trace the Jacobian of an adjoint: export under "
            "torch.no_grad(), or use OneStepAdjoint()"
        )
    z = z.reshape(grid.shape)
    return differentiated(spec, z, r, bad.reshape(shape), (*M_tensors, grid, *constants), factor)


def _harmless(tensor: Tensor, bad: Tensor, good: Tensor) -> Tensor:
    """Return a tensor that carries lanes, with what the ``good`` lane has in ``bad`` ones."""
    flat = tensor.detach().reshape(len(bad), -1)
    other = flat.index_select(0, good)
    if other.is_floating_point():
        other = torch.where(torch.isfinite(other), other, 1.0)
    return unless(bad.unsqueeze(-1), tensor.reshape(len(bad), -1), other).reshape(tensor.shape)
