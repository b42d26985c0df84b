"""From a user's function to a `Solution`: the path that every equation takes.

It knows no concrete solver of equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from implicit_solvers.adjoint import UnrolledAdjoint, as_accurate
from implicit_solvers.adjoint_preconditioner import adjoint_preconditioner
from implicit_solvers.affine_norms import weights_apart
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
from implicit_solvers.closures import bound, graphs_held
from implicit_solvers.compiling import compiling, outside_of_graphs
from implicit_solvers.differentiate import (
    AttachSpec,
    SolveSpec,
    attach_derivatives,
    solve_lanes,
    solve_plainly,
)
from implicit_solvers.evaluations import Counter, Evaluations, counted
from implicit_solvers.explicit_function import ExplicitFunction
from implicit_solvers.graph_height import above
from implicit_solvers.graph_height import point as graph_point
from implicit_solvers.iterate import Outcome, iterate
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.adjoint_start import AdjointMemory
from implicit_solvers.linear.lu import LU
from implicit_solvers.linear.solve import check_adjoint_start
from implicit_solvers.linear.solve_memory import SolveMemory
from implicit_solvers.linear.specification import LinearSolveSpec
from implicit_solvers.many_starts import NO_USE, FromStarts, Starts
from implicit_solvers.monitoring import monitors
from implicit_solvers.problem import Equation, EquationProblem
from implicit_solvers.sharded_modules import gathering
from implicit_solvers.sharding import added_up, check_spread, over_ranks, sharded
from implicit_solvers.solution import Solution, Status, failed, warn_degenerate
from implicit_solvers.solver import LinearSolver
from implicit_solvers.sparse_jacobians import with_sparsity
from implicit_solvers.structure import Structure
from implicit_solvers.task import Task, arguments, check_size, check_task, name_of
from implicit_solvers.torch_internals import (
    forward_level,
    frames_compiled,
    is_batched,
    transforms_active,
    tree_map,
)
from implicit_solvers.traced_equation import obstacle, solve_in_graph
from implicit_solvers.unrolling import unroll
from implicit_solvers.verdict import made_by

__all__ = ["Task", "name_of", "solve_equation"]


def solve_equation(
    task: Task,
    z0: Any,
    args: tuple[Any, ...],
    run: Callable[[EquationProblem, Tensor], Outcome] | None = None,
    ends: tuple[Any, ...] | None = None,
    own: tuple[Tensor, ...] = (),
) -> Solution:
    """Solve from ``z0`` and attach the derivatives of the equation to the solution.

    ``run`` finds the solutions; left out, the task's solver iterates. It begins at ``z0``, or at
    the two ``ends`` of a bracket, or at many starts, side by side. The equation's ``own`` tensors
    have an entry for each lane.
    """
    if isinstance(z0, Starts):
        if ends is not None or run is not None or isinstance(task.adjoint, UnrolledAdjoint):
            raise ValueError(NO_USE)
        z0, ends, run = z0.each[0], z0.each, FromStarts(task.solver, len(z0.each))
    given = task, z0, args, run, ends, own
    if not compiling() and sharded((z0, args)):
        return cast(Solution, over_ranks(solve_equation, *given))
    if compiling():
        why = obstacle(task, z0, args, run)
        if why is None:
            return solve_in_graph(*given)
        return outside_of_graphs(why, solve_equation, *given)
    if frames_compiled():
        solution: Solution = torch.compiler.disable(solve_equation)(*given)
        return solution
    statement = _read(task, z0, args, own)
    task = statement.task
    made_of = (*statement.tensors, *graphs_held(task.fn))
    with gathering(isolated) as gathered, above(made_of):
        found = _solve(statement, z0, run or partial(iterate, task.solver), ends)
        z = _attach(statement, found, z0)
        value = gathered.returned(statement.structure.unravel(z))
    solved = found.status == Status.CONVERGED
    how = found.iterations, found.residual, found.error, found.status, found.degenerate
    solution = Solution(value, solved, *how, found.evaluations)
    note(solution)
    if task.on_failure == "warn" and found.degenerate is not None:
        warn_degenerate(task.label, found.degenerate & solved)
    if task.has_aux:
        solution = replace(solution, aux=task.fn(value, *args)[1])
    return solution


@dataclass(frozen=True)
class _Statement:
    """An equation as it was read: its raveled function, and the tensors among its arguments."""

    task: Task
    structure: Structure
    tensors: list[Tensor]
    join: Callable[..., Any]
    native_carried: tuple[bool, ...] | None
    adjoint_solver: LinearSolver | None
    fn: Callable[..., Tensor]
    counter: Counter

    @property
    def name(self) -> str:
        """What messages call the function."""
        return f"the function of {self.task.label}"

    def ravel(self, value: Any) -> Tensor:
        """Return a value of the unknown, raveled."""
        return self.structure.ravel(tree_map(resolve, value))

    def explicit(
        self, captured: Captured, expected: Sequence[Tensor] = ()
    ) -> Callable[..., Tensor]:
        """Return the function as one of what it captured, too."""
        evaluate = weights_apart(self.fn) if captured.normalizes else self.fn
        if not captured:
            return evaluate
        return ExplicitFunction(evaluate, len(self.tensors), captured, expected)

    def lanes(self, captured: Captured) -> Lanes:
        """Return the lanes that the operands carry; what is captured carries none."""
        count = len(self.tensors)
        own = Lanes.of(count, self.task.batch_dims, self.native_carried, self.task.ranks)
        return own.insert(count, len(captured.tensors), (), False)

    def operands(self, captured: Captured) -> list[Tensor]:
        """Return the function's tensors: its arguments', and those that it captured."""
        return added_up([resolve(t) for t in (*self.tensors, *captured.tensors)])


class _Found(NamedTuple):
    """What a solve came to: tensors of the lanes' shape; and what the function captured so far.

    Where ``lifted``, captured tensors were given to the function while it was solved for.
    """

    z: Tensor
    status: Tensor
    iterations: Tensor
    residual: Tensor
    error: Tensor
    degenerate: Tensor | None
    evaluations: Evaluations | None
    factors: list[Tensor]
    captured: Captured
    lifted: bool
    memory: SolveMemory | None


def _read(task: Task, z0: Any, args: tuple[Any, ...], own: tuple[Tensor, ...]) -> _Statement:
    """Check a task, and take its unknown and its arguments apart."""
    check_task(task, args)
    task = replace(task, fn=bound(task.fn))
    structure = Structure.of(z0, "z0", task.batch_dims).as_real()
    task = with_sparsity(task, structure)
    tensors, join, native_carried = arguments(task, args, own, structure)
    check_size(task, structure)
    size = structure.size if getattr(task.ranks, "rows", None) is None else math.inf
    adjoint_solver: LinearSolver | None = None
    if isinstance(task.adjoint, UnrolledAdjoint):
        task.adjoint.check(task.solver)
    else:
        adjoint_solver = task.adjoint.solver_for(task.equation, size, task.sparsity)
        adjoint_solver = as_accurate(adjoint_solver, task.solver)
        check_spread(task.ranks, adjoint_solver, "linear_solver of adjoint")
    check_adjoint_start(task.adjoint_start, adjoint_solver)
    counter = Counter()
    fn = task.raveled(structure, join, counter)
    known = tensors, join, native_carried
    return _Statement(task, structure, *known, adjoint_solver, fn, counter)


def _solve(
    statement: _Statement,
    z0: Any,
    run: Callable[[EquationProblem, Tensor], Outcome],
    ends: tuple[Any, ...] | None,
) -> _Found:
    """Find the solution, without derivatives."""
    task, fn = statement.task, statement.fn
    origin = start = statement.ravel(z0).detach()
    if ends is not None:
        origin = torch.cat([statement.ravel(end).detach() for end in ends], dim=-1)
    captured, solve = Captured(), solve_plainly
    lift = transforms_active() or torch.is_inference_mode_enabled() or nested()
    if lift:
        captured = capture(fn, (start, *statement.tensors), statement.name, task.fn)
        fn, solve = statement.explicit(captured), solve_lanes
    keeps = task.sparsity is not None or getattr(task.solver, "keeps", False)
    memory = SolveMemory() if keeps else None
    how = run, task.solver, statement.lanes(captured), task.label, task.on_failure
    spec = SolveSpec(task.stated(fn), *how, statement.counter, memory)
    operands = statement.operands(captured)
    with isolated():
        z, status, iterations, residual, error, counts, *rest = solve(spec, origin, operands)
    z = z[..., : statement.structure.size]  # an empty batch comes back as it was given
    degenerate = rest.pop(0) if task.equation.own else None
    how_far = status, iterations, residual, error, degenerate, counted(counts)
    return _Found(z, *how_far, rest, captured, lift, memory)


def _attach(statement: _Statement, found: _Found, z0: Any) -> Tensor:
    """Return the solution with the derivatives of the equation."""
    task, fn, tensors = statement.task, statement.fn, statement.tensors
    unrolled = isinstance(task.adjoint, UnrolledAdjoint)
    # Branches that were not taken at the start may read more tensors at the solution.
    condition: Tensor | None = None
    point = z = found.z
    operand = found.lifted or unrolled or getattr(task.ranks, "rows", None) is not None
    if operand or forward_level() or not torch.is_grad_enabled():
        at_solution = capture(fn, (z, *tensors), statement.name, task.fn)
    else:
        point = graph_point(z)
        condition, at_solution = evaluate_connected(
            task.attached(fn).condition, (point, *tensors), statement.name, task.fn
        )
    captured = found.captured | at_solution
    check_reads(captured, task.label, task.check)
    if task.check and task.batch_dims and not found.lifted:
        check_lanes_apart(
            task.attached(fn).condition, z, tensors, ~failed(found.status), task.label
        )
    operands = statement.operands(captured)
    if isinstance(task.adjoint, UnrolledAdjoint) and z.numel():
        return _unrolled(statement, task.adjoint, captured, operands, found, z0)
    reaches = condition is not None and captured.reach(condition, point)
    if not (_differentiable(operands) or reaches) or unrolled:
        return z
    attached = task.attached(statement.explicit(captured, at_solution.tensors))
    spec, lead = _attach_spec(statement, attached, captured, found)
    with isolated():
        return attach_derivatives(spec, point, found.status, condition, (*lead, *operands))


def _attach_spec(
    statement: _Statement, equation: Equation, captured: Captured, found: _Found
) -> tuple[AttachSpec, list[Tensor]]:
    """Return how to differentiate, and the tensors that come before the equation's own."""
    task, structure, own = statement.task, statement.structure, statement.lanes(captured)
    M, M_tensors = adjoint_preconditioner(
        task, structure, found.z, statement.join(statement.tensors)
    )
    made = LU() if task.solver is None else made_by(task.solver, structure.size)
    factors = found.factors if type(made) is type(statement.adjoint_solver) else []
    lanes = own.shared(len(M_tensors)).insert(0, len(factors), (), task.batch_dims > 0)
    start, solve, lead = task.adjoint_start, None, [*factors, *M_tensors]
    if statement.adjoint_solver is not None:
        solve = LinearSolveSpec(
            equation.jacobian(),
            statement.adjoint_solver,
            lanes,
            f"adjoint of {task.label}",
            task.on_failure,
            adjoint=True,
            hints=len(factors),
            preconditioner=M,
            preconditioner_tensors=len(M_tensors),
            adjoint_start=None if start is None else AdjointMemory(start, structure),
            memory=found.memory if factors else None,
            monitors=monitors(),
        )
    biased = repr(task.adjoint) if task.adjoint.biased else equation.biased
    label, on_failure = task.label, task.on_failure
    spec = AttachSpec(equation, solve, len(lead), lanes, label, on_failure, biased, captured)
    return spec, lead


def _unrolled(
    statement: _Statement,
    adjoint: UnrolledAdjoint,
    captured: Captured,
    operands: list[Tensor],
    found: _Found,
    z0: Any,
) -> Tensor:
    """Make the solver's steps again, with a graph.

    Under ``on_failure="mask"`` the lanes that failed keep what was found, without one.
    """
    task, z, bad = statement.task, statement.ravel(z0), failed(found.status)
    shape, equation = z.shape[:-1], task.stated(statement.explicit(captured))
    lanes, iterations = statement.lanes(captured), found.iterations
    masked = task.on_failure == "mask"
    if masked and is_batched(bad):
        raise ValueError(
            'adjoint=UnrolledAdjoint() with on_failure="mask" under vmap cannot leave failed '
            "problems out of gradients: use batch_dims and in_dims, or ImplicitAdjoint()"
        )
    if task.solver.rtol is None:
        steps, counts = task.solver.max_steps, None
    elif is_batched(iterations):
        raise ValueError(
            "adjoint=UnrolledAdjoint() under vmap needs a number of steps that does not depend on "
            "the problem: pass rtol=None to the solver, or use batch_dims"
        )
    else:
        steps, counts = int(iterations.max()), iterations.reshape(-1)
    keep = None
    if masked and lanes.separable and bool(bad.any()):
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
        if keep is not None:
            start = found.z.detach().reshape(flat.shape).index_copy(0, keep, start)
    return start.reshape(z.shape)


def _differentiable(operands: Sequence[Tensor]) -> bool:
    if transforms_active() or forward_level():
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in operands)
