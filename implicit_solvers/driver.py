"""From a user's function to a `Solution`: the path that every equation takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from implicit_solvers.adjoint import UnrolledAdjoint
from implicit_solvers.adjoint_preconditioner import adjoint_preconditioner
from implicit_solvers.affine_norms import weights_apart
from implicit_solvers.autodiff import forward_level, is_batched, transforms_active
from implicit_solvers.capture import (
    Captured,
    capture,
    evaluate_connected,
    isolated,
    nested,
    note,
    resolve,
)
from implicit_solvers.checks import check_lanes_apart, check_reads
from implicit_solvers.compiling import compiling
from implicit_solvers.differentiate import (
    AttachSpec,
    SolveSpec,
    attach_derivatives,
    solve_lanes,
    solve_plainly,
)
from implicit_solvers.explicit_function import ExplicitFunction
from implicit_solvers.graph_break import frames_compiled, outside_of_graphs
from implicit_solvers.iterate import Outcome, iterate
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.adjoint_start import AdjointMemory
from implicit_solvers.linear.solve import check_adjoint_start
from implicit_solvers.linear.specification import LinearSolver
from implicit_solvers.monitoring import monitors
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Solution, Status, failed
from implicit_solvers.structure import Structure, split_tensors
from implicit_solvers.task import Task, check_size, check_task, name_of, read_in_dims
from implicit_solvers.traced_equation import obstacle, solve_in_graph
from implicit_solvers.unrolling import unroll

__all__ = ["Task", "name_of", "solve_equation"]


def solve_equation(
    task: Task,
    z0: Any,
    args: tuple[Any, ...],
    run: Callable[[EquationProblem, Tensor], Outcome] | None = None,
    ends: tuple[Any, Any] | None = None,
) -> Solution:
    """Solve from ``z0`` and attach the derivatives of the equation to the solution.

    ``run`` finds the solutions; left out, the task's solver iterates. It begins at ``z0``, or at
    the two ``ends`` of a bracket, side by side.
    """
    if compiling():
        traced = task if task.in_graph is None else replace(task, solver=task.in_graph)
        why = obstacle(traced, z0, args, run)
        if why is None:
            return solve_in_graph(traced, z0, args, ends)
        return outside_of_graphs(why, solve_equation, task, z0, args, run, ends)
    if frames_compiled():
        solution: Solution = torch.compiler.disable(solve_equation)(task, z0, args, run, ends)
        return solution
    check_task(task, args)
    structure = Structure.of(z0, "z0", task.batch_dims).as_real()
    tensors, join = split_tensors(args)
    native_carried = read_in_dims(task, args, structure)
    check_size(task, structure)
    start = structure.ravel(tree_map(resolve, z0)).detach()
    origin = start
    if ends is not None:
        sides = [structure.ravel(tree_map(resolve, end)).detach() for end in ends]
        origin = torch.cat(sides, dim=-1)
    adjoint_solver: LinearSolver | None = None
    if isinstance(task.adjoint, UnrolledAdjoint):
        task.adjoint.check(task.solver)
    else:
        adjoint_solver = task.adjoint.solver_for(task.equation, structure.size)
    check_adjoint_start(task.adjoint_start, adjoint_solver)
    if run is None:
        run = partial(iterate, task.solver)

    raw = task.raveled(structure, join)

    def explicit(captured: Captured, expected: Sequence[Tensor] = ()) -> Callable[..., Tensor]:
        evaluate = weights_apart(raw) if captured.normalizes else raw
        if not captured:
            return evaluate
        return ExplicitFunction(evaluate, len(tensors), captured, expected)

    def lanes(extra: int) -> Lanes:
        known = None if native_carried is None else (*native_carried, *(False,) * extra)
        return Lanes.of(len(tensors) + extra, task.batch_dims, known)

    spec = SolveSpec(task.equation(raw), run, task.solver, lanes(0), task.label, task.on_failure)
    name = f"the function of {task.label}"
    captured = Captured()
    lift = transforms_active() or torch.is_inference_mode_enabled() or nested()
    if lift:
        captured = capture(raw, (start, *tensors), name, task.fn)
    operands = [resolve(t) for t in (*tensors, *captured.tensors)]
    with isolated():
        if lift:
            spec = replace(
                spec, equation=task.equation(explicit(captured)), lanes=lanes(len(captured.tensors))
            )
            z, status, iterations, residual, *factors = solve_lanes(spec, origin, operands)
        else:
            z, status, iterations, residual, *factors = solve_plainly(spec, origin, operands)

    z = z[..., : structure.size]  # an empty batch comes back as it was given
    # Branches that were not taken at the start may read more tensors at the solution.
    equation = task.differentiated or task.equation
    condition: Tensor | None = None
    point = z
    unrolled = isinstance(task.adjoint, UnrolledAdjoint)
    if lift or forward_level() or unrolled or not torch.is_grad_enabled():
        at_solution = capture(raw, (z, *tensors), name, task.fn)
    else:
        point = z.detach().requires_grad_()
        condition, at_solution = evaluate_connected(
            equation(raw).condition, (point, *tensors), name, task.fn
        )
    captured = captured | at_solution
    check_reads(captured, task.label, task.check)
    if task.check and task.batch_dims and not lift:
        check_lanes_apart(equation(raw).condition, z, tensors, ~failed(status), task.label)
    operands = [resolve(t) for t in (*tensors, *captured.tensors)]
    if isinstance(task.adjoint, UnrolledAdjoint) and start.numel():
        z = _unrolled(
            task,
            task.adjoint,
            explicit(captured),
            lanes(len(captured.tensors)),
            structure.ravel(tree_map(resolve, z0)),
            operands,
            iterations,
            z if task.on_failure == "mask" else None,
            failed(status),
        )
    elif _differentiable(operands) or (condition is not None and captured.reach(condition, point)):
        M, M_tensors = adjoint_preconditioner(task, structure, z, join(tensors))
        hints = len(factors)
        own = lanes(len(captured.tensors))
        levels = ((),) * (hints + len(M_tensors))
        known = own.native_carried
        lead_known = (task.batch_dims > 0,) * hints + (False,) * len(M_tensors)
        attach = AttachSpec(
            equation(explicit(captured, at_solution.tensors)),
            adjoint_solver,
            replace(
                own,
                carried=(*levels, *own.carried),
                native_carried=None if known is None else (*lead_known, *known),
            ),
            task.label,
            task.on_failure,
            biased=repr(task.adjoint) if task.adjoint.biased else equation.biased,
            hints=hints,
            preconditioner=M,
            preconditioner_tensors=len(M_tensors),
            adjoint_start=(
                None if task.adjoint_start is None else AdjointMemory(task.adjoint_start, structure)
            ),
            captured=captured,
            monitors=monitors(),
        )
        with isolated():
            z = attach_derivatives(
                attach, point, status, condition, (*factors, *M_tensors, *operands)
            )
    value = structure.unravel(z)
    solution = Solution(value, status == Status.CONVERGED, iterations, residual, status)
    note(solution)
    if task.has_aux:
        solution = replace(solution, aux=task.fn(value, *args)[1])
    return solution


def _unrolled(
    task: Task,
    adjoint: UnrolledAdjoint,
    fn: Callable[..., Tensor],
    lanes: Lanes,
    z: Tensor,
    operands: list[Tensor],
    iterations: Tensor,
    found: Tensor | None,
    bad: Tensor,
) -> Tensor:
    """Make the solver's steps again, with a graph.

    Where ``found`` is given, the lanes that failed, ``bad``, keep what it says, without one.
    """
    shape, equation = z.shape[:-1], task.equation(fn)
    if found is not None and is_batched(bad):
        raise ValueError(
            'adjoint=UnrolledAdjoint() with on_failure="mask" under vmap cannot leave failed lanes '
            "out of gradients: use batch_dims and in_dims, or ImplicitAdjoint()"
        )
    if task.solver.rtol is None:
        steps, counts = task.solver.max_steps, None
    elif is_batched(iterations):
        raise ValueError(
            "adjoint=UnrolledAdjoint() under vmap needs a number of steps that does not depend on "
            "the lane: pass rtol=None to the solver, or use batch_dims"
        )
    else:
        steps, counts = int(iterations.max()), iterations.reshape(-1)
    keep = None
    if found is not None and lanes.separable and bool(bad.any()):
        keep = (~bad).reshape(-1).nonzero().squeeze(-1)
        counts = counts if counts is None else counts[keep]

    def problem(*operands: Tensor) -> EquationProblem:
        every = EquationProblem(equation, lanes, shape, operands)
        return every if keep is None else every.take(keep)

    flat = z.reshape(-1, z.shape[-1])
    with isolated():
        start = flat if keep is None else flat[keep]
        if len(start):
            start = unroll(task.solver, problem, start, operands, steps, counts, adjoint.checkpoint)
        if keep is not None and found is not None:
            start = found.detach().reshape(flat.shape).index_copy(0, keep, start)
    return start.reshape(z.shape)


def _differentiable(operands: Sequence[Tensor]) -> bool:
    if transforms_active() or forward_level():
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in operands)
