"""A linear solve carried out: the lanes laid out for a solver, and what it left judged.

It knows no concrete solver, and nothing of derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.agreement import pick
from implicit_solvers.compiling import compiling
from implicit_solvers.iterate import iterate
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.direct_solve import solve_directly
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.preconditioners import Preconditioner
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.linear.specification import LinearSolveSpec
from implicit_solvers.linear.template import Template
from implicit_solvers.monitoring import observe
from implicit_solvers.ranks import alone
from implicit_solvers.solution import Status, enforce, failed
from implicit_solvers.solver import DirectSolver
from implicit_solvers.tolerance import largest, power_of_two, rms, safe_rms
from implicit_solvers.traced_loop import inside, repeat

__all__ = ["solve_in_lanes"]


class _Grid:
    """The lanes of a solve as columns times a grid of operators."""

    def __init__(self, lanes: Lanes, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.shared = lanes.shared_levels()
        rest = [i for i in range(len(self.shape)) if i not in self.shared]
        self.order = (*self.shared, *rest)
        self.plain = self.order == tuple(range(len(self.shape)))
        self.grid = tuple(self.shape[i] for i in rest)
        self.columns = math.prod([self.shape[i] for i in self.shared])

    def flat(self, t: Tensor) -> Tensor:
        """Return ``(*shape, ...)`` as ``(columns * grid, ...)``."""
        k = len(self.shape)
        if not self.plain:
            t = t.permute((*self.order, *range(k, t.dim())))
        return t if k == 1 else t.reshape((math.prod(self.shape), *t.shape[k:]))

    def back(self, t: Tensor) -> Tensor:
        """Undo `flat`."""
        k = len(self.shape)
        if self.plain:
            t = t.contiguous()  # a tangent must be laid out as its primal
            return t if k == 1 else t.reshape((*self.shape, *t.shape[1:]))
        t = t.reshape((*(self.shape[i] for i in self.order), *t.shape[1:]))
        inverse = sorted(range(k), key=lambda i: self.order[i])
        return t.permute((*inverse, *range(k, t.dim()))).contiguous()


def solve_in_lanes(
    spec: LinearSolveSpec,
    b: Tensor,
    start: Tensor | None,
    skip: Tensor | None,
    operands: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Solve ``A x = b`` in every lane, without derivatives, and apply the failure policy.

    ``b`` is ``(*lanes, m)``; the lanes in ``skip`` have failed already, and their solution is zero.
    Returned are ``x (*lanes, n)``, the status, iterations, residual and error of each lane, and the
    factors made.
    """
    if skip is not None:
        b = torch.where(skip.unsqueeze(-1), 0.0, b)
    watch = observe(spec.label, spec.solver, spec.monitors)
    n = spec.size(b)
    grid = _Grid(spec.lanes, b.shape[:-1])
    first = spec.hints
    second = first + spec.preconditioner_tensors
    kept = spec.lanes.without(grid.shared)
    flat = grid.flat(b)
    if compiling():
        flat = flat.clone()

    def lane_map(template: Template, lo: int, hi: int) -> LaneMap:
        return LaneMap(
            template,
            kept.keep(range(lo, hi)),
            grid.grid,
            operands[lo:hi],
            like=b,
            columns=grid.columns,
            transposed=spec.transposed,
            memory=spec.memory,
        )

    memory = spec.adjoint_start if spec.adjoint else None
    if memory is not None:
        start = memory.read(b)
        if start is not None:
            # a lane that nothing depends on has no way to go
            start = torch.where((largest(b) == 0).unsqueeze(-1), 0.0, start)
    A = lane_map(spec.template, second, len(operands))
    A.graph = spec.graph
    made: tuple[Tensor, ...] = ()
    residual: Tensor | None = None
    error: Tensor | None = None
    solved, solver = False, spec.solver
    direct = isinstance(solver, DirectSolver)
    first_x = None if start is None else grid.flat(start)
    if memory is not None and first_x is not None:
        first_x = _no_worse_than_zero(A, flat, first_x)
    empty = len(flat) == 0 or (alone() and (flat.numel() == 0 or n == 0))
    unit = None if empty or direct else _unit(flat, first_x)
    if unit is not None:
        flat = flat / unit.unsqueeze(-1)
        first_x = None if first_x is None else first_x / unit.unsqueeze(-1)
    if empty:
        x = flat.new_zeros(flat.shape[0], n)
        status = torch.zeros(flat.shape[0], dtype=torch.int64, device=b.device)
        iterations = torch.zeros_like(status)
    elif isinstance(solver, DirectSolver):
        if spec.hints:
            *factors, matrix = [
                _spread(t, kept.carried[i], grid.grid, kept) for i, t in enumerate(operands[:first])
            ]
            A.formed = A.matrices = matrix if matrix.numel() else None
        else:
            if solver.forms:
                A.form()
            factors = [*solver.factor(A)]
        # what an adjoint came to is asked for by monitors, and where it failed
        say = bool(watch.active) or not spec.adjoint or compiling()
        found, ends = solve_directly(solver, A, flat, tuple(factors), spec.nullspaces, say)
        x, error, solved = found.x, found.error, ends is None
        residual = safe_rms(found.rest) if say or not solved else error
        status = flat.new_zeros(len(flat), dtype=torch.int64) if ends is None else ends
        iterations = torch.ones_like(status)
        if not spec.hints:
            matrix = flat.new_empty(A.grid, 0) if A.formed is None else A.formed
            made = tuple(t.reshape((*grid.grid, *t.shape[1:])) for t in (*factors, matrix))
    else:
        M: Any = None
        if isinstance(spec.preconditioner, Preconditioner):
            M = spec.preconditioner.of(A)
        elif spec.preconditioner is not None:
            M = lane_map(spec.preconditioner, first, second)
        begin = flat.new_zeros(flat.shape[0], n) if first_x is None else first_x
        problem = LinearProblem(A, flat, M, unit)
        if watch.active:
            order = grid.back(torch.arange(len(flat), device=flat.device)).flatten()
            problem.history = watch.history(len(flat), rms(flat), order)
        x, status, iterations, residual = _solve_iteratively(spec.solver, problem, begin)

    if residual is None:
        residual = rms(flat) if empty else rms(flat - A.mv(x))
    if error is None:
        error = torch.full_like(residual, math.inf)
    if not solved:
        idle = largest(flat) == 0
        finite = largest(x if unit is None else x * unit.unsqueeze(-1)) < torch.inf
        status = torch.where(finite | failed(status), status, int(Status.NONFINITE))
        # the best iterate of a lane that came to nothing is where it began
        x = torch.where(finite.unsqueeze(-1), x, 0.0 if first_x is None else first_x)
        error = torch.where(error < torch.inf, error, torch.inf)
        if spec.adjoint:
            # whatever the operator, a lane that nothing depends on has the adjoint zero
            x = torch.where(idle.unsqueeze(-1), 0.0, x)
            status = torch.where(idle, 0, status)
            residual, error = (torch.where(idle, 0.0, t) for t in (residual, error))
    if unit is not None:
        x, residual = x * unit.unsqueeze(-1), residual * unit
    status, iterations, residual, error = map(grid.back, (status, iterations, residual, error))
    if watch.active:
        size = rms(b)
        relative = torch.where(size > 0, residual / size, residual)
        off = grid.back(rms(x))
        off = torch.where(off > 0, error / off, error)
        watch.done(iterations, relative, off, status)
    if not compiling() and not (solved and spec.lanes.ranks is None):
        how: Any = {"warn_masked": spec.adjoint, "ranks": spec.lanes.ranks}
        enforce(spec.on_failure, spec.label, status, iterations, residual, **how)
    x = grid.back(x)
    if spec.adjoint and spec.masked and not solved:
        x = torch.where(failed(status).unsqueeze(-1), 0.0, x)
    if memory is not None:
        memory.write(x)
    return x, status, iterations, residual, error, *made


def _no_worse_than_zero(A: LaneMap, b: Tensor, x: Tensor) -> Tensor:
    """Return ``x``, or zero in lanes where zero has a smaller residual."""
    better = rms(b - A.mv(x)) <= rms(b)
    return torch.where(better.unsqueeze(-1), x, 0.0)


def _unit(b: Tensor, start: Tensor | None) -> Tensor | None:
    """Return units ``(N,)`` in which no square of ``b`` or the start under- or overflows.

    They are powers of two, 1 where sizes are moderate; None if all are.
    """
    info = torch.finfo(b.dtype)
    size = largest(b)
    if start is not None:
        size = torch.maximum(size, largest(start))
    far = (size < info.tiny**0.5 / info.eps) | (size > info.max**0.5 * info.eps)
    far = far & (size > 0) & (size < torch.inf)
    if not compiling() and not bool(far.any()):
        return None
    return torch.where(far, power_of_two(size), 1.0)


def _spread(
    factor: Tensor, carries: tuple[bool, ...], grid: tuple[int, ...], lanes: Lanes
) -> Tensor:
    """Return a factor with one entry for each place of the grid, ``(prod(grid), ...)``."""
    rest = factor.shape[sum(carries) + lanes.native :]
    if factor.shape[: factor.dim() - len(rest)] == grid:
        return factor if len(grid) == 1 else factor.reshape((math.prod(grid), *rest))
    position = iter(factor.shape)
    lead = [next(position) if c else 1 for c in carries]
    native = [next(position) for _ in range(lanes.native)]
    whole = factor.reshape((*lead, *native, *rest)).expand((*grid, *rest))
    return whole.reshape((math.prod(grid), *rest))


def _solve_iteratively(
    solver: Any, problem: LinearProblem, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Iterate, and go on from there where the recursive residual promised more than is true.

    Returns the solution, the status, the iterations, and the residual where it is known.
    """
    if solver.rtol is None:
        out = iterate(solver, problem, x)
        residual = rms(problem.residual(out.z))
        # of a budget one thing is asked: that zero would not have been better
        diverged = ~failed(out.status) & (residual > rms(problem.b))
        status = torch.where(diverged, int(Status.MAX_STEPS), out.status)
        return out.z, status, out.iterations, residual
    goal = problem.tolerance(solver, None)

    def go_on(carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        here, (x, _, iterations, short, _) = inside(problem), carry
        out = iterate(solver, here, x)
        error = solver.error_at(here, out.z, out.residual)
        made = (out.z, out.status, iterations + out.iterations, error)
        x, status, iterations, error = pick(short, made, (x, carry[1], iterations, carry[4]))
        short = (status == int(Status.CONVERGED)) & (error > 1.1 * goal)
        return x, status, iterations, short, error

    none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    carry = (x, none, none, torch.ones_like(none, dtype=torch.bool), rms(problem.b))
    x, status, iterations, short, error = repeat(lambda c: c[3].any(), go_on, carry, 4)
    status = torch.where(short, int(Status.STALLED), status)
    # where ``A`` has null spaces, another error was judged
    return x, status, iterations, None if any(solver.nullspaces(1, 1)) else error
