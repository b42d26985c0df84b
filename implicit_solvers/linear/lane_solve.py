"""A linear solve carried out: the lanes laid out for a solver, and what it left judged."""

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
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.preconditioners import Jacobi
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.linear.specification import LinearSolveSpec
from implicit_solvers.linear.template import Template
from implicit_solvers.monitoring import observe
from implicit_solvers.solution import Status, enforce, failed
from implicit_solvers.solver import DirectSolver
from implicit_solvers.tolerance import largest, rms
from implicit_solvers.traced_loop import inside, repeat

__all__ = ["solve_in_lanes"]

_CORRECTIONS = 5


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

    Parameters
    ----------
    spec
        The solve.
    b
        ``(*lanes, m)``.
    start
        ``(*lanes, n)``, for an iterative solver; zero if left out.
    skip
        ``(*lanes,)``: lanes that have failed already, whose solution is zero.
    operands
        As in `LinearSolveSpec`.

    Returns
    -------
    tuple
        ``x (*lanes, n)``; status, iterations, residual and error ``(*lanes,)``; the factors made.
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
    given: tuple[Tensor, ...] = ()
    if flat.numel():
        given = tuple(
            _spread(t, kept.carried[i], grid.grid, kept) for i, t in enumerate(operands[:first])
        )
    if given and not spec.exact:
        idle = None if skip is None else grid.flat(skip)
        corrected = _correct(spec.solver, A, flat, given, idle)
        if corrected is not None:
            x, steps = corrected
            status = torch.zeros(b.shape[:-1], dtype=torch.int64, device=b.device)
            iterations = torch.full_like(status, steps)
            if watch.active:
                left, size = rms(flat - A.mv(x)), rms(flat)
                relative = grid.back(torch.where(size > 0, left / size, left))
                watch.done(iterations, relative, math.inf * relative.isfinite(), status)
            # what is left was not measured
            unknown = b.new_full(b.shape[:-1], math.inf, dtype=b.dtype.to_real())
            return grid.back(x), status, iterations, math.nan * unknown, unknown
    made: tuple[Tensor, ...] = ()
    residual: Tensor | None = None
    first_x = None if start is None else grid.flat(start)
    if memory is not None and first_x is not None:
        first_x = _no_worse_than_zero(A, flat, first_x)
    unit = _unit(flat, first_x) if flat.numel() else None
    if unit is not None:
        flat = flat / unit.unsqueeze(-1)
        first_x = None if first_x is None else first_x / unit.unsqueeze(-1)
    if flat.numel() == 0 or n == 0:
        x = flat.new_zeros(flat.shape[0], n)
        status = torch.zeros(flat.shape[0], dtype=torch.int64, device=b.device)
        iterations = torch.zeros_like(status)
    elif isinstance(spec.solver, DirectSolver):
        A.form()
        factors = given if given and spec.exact else spec.solver.factor(A)
        x = spec.solver.solve_lanes(A, factors, flat)
        status = spec.solver.status(factors).repeat(A.columns)
        iterations = torch.ones(len(flat), dtype=torch.int64, device=b.device)
        if not spec.hints:
            made = tuple(t.reshape((*grid.grid, *t.shape[1:])) for t in factors)
    else:
        M: Any = None
        if isinstance(spec.preconditioner, Jacobi):
            M = spec.preconditioner.of(A)
        elif spec.preconditioner is not None:
            M = lane_map(spec.preconditioner, first, second)
        begin = flat.new_zeros(flat.shape[0], n) if first_x is None else first_x
        problem = LinearProblem(A, flat, M, unit)
        x, status, iterations, residual = _solve_iteratively(spec.solver, problem, begin)

    if residual is None:
        residual = rms(flat - A.mv(x)) if flat.numel() else rms(flat)
    idle = largest(flat) == 0
    finite = largest(x if unit is None else x * unit.unsqueeze(-1)) < torch.inf
    status = torch.where(finite | failed(status), status, int(Status.NONFINITE))
    if isinstance(spec.solver, DirectSolver) and not spec.nullspaces[0]:
        # pivots may look regular where nothing of the solution is right
        wrong = _far(residual, flat)
        status = torch.where(wrong & ~failed(status), int(Status.SINGULAR), status)
    # the best iterate of a lane that came to nothing is where it began
    x = torch.where(finite.unsqueeze(-1), x, 0.0 if first_x is None else first_x)
    if spec.adjoint:
        # whatever the operator, a lane that nothing depends on has the adjoint zero
        x = torch.where(idle.unsqueeze(-1), 0.0, x)
        status = torch.where(idle, 0, status)
        residual = torch.where(idle, 0.0, residual)
    if unit is not None:
        x, residual = x * unit.unsqueeze(-1), residual * unit
    status, iterations, residual = grid.back(status), grid.back(iterations), grid.back(residual)
    if watch.active:
        size = rms(b)
        relative = torch.where(size > 0, residual / size, residual)
        watch.done(iterations, relative, torch.full_like(relative, math.inf), status)
    if not compiling():
        enforce(spec.on_failure, spec.label, status, iterations, residual, warn_masked=spec.adjoint)
    x = grid.back(x)
    if spec.adjoint and spec.masked:
        x = torch.where(failed(status).unsqueeze(-1), 0.0, x)
    if memory is not None:
        memory.write(x)
    error = torch.full_like(residual, math.inf)
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
    size = b.abs().amax(-1)
    if start is not None:
        size = torch.maximum(size, start.abs().amax(-1))
    far = (size < info.tiny**0.5 / info.eps) | (size > info.max**0.5 * info.eps)
    far = far & (size > 0) & (size < torch.inf)
    if not compiling() and not bool(far.any()):
        return None
    exponent = size.log2().round().clamp(math.log2(info.tiny), math.log2(info.max) - 1)
    return torch.where(far, exponent.exp2(), 1.0)


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


def _correct(
    solver: Any, A: LaneMap, b: Tensor, factors: tuple[Tensor, ...], idle: Tensor | None
) -> tuple[Tensor, int] | None:
    """Solve by the factors of nearby operators, and corrections; None where these are too many.

    A correction leaves of the error the part that it had of the solution. Lanes that are ``idle``
    have no say. Returns the solution and the number of solves.
    """
    x = solver.solve_lanes(A, factors, b)
    correction = solver.solve_lanes(A, factors, b - A.mv(x))
    rate, size = (v.abs().amax(-1) for v in (correction, x))
    rate = rate / size.clamp(min=torch.finfo(b.dtype).tiny)
    # nobody has looked at these pivots since the last steps of their lanes
    unfit = ~solver.regular(factors)
    rate = rate.masked_fill(unfit if A.columns == 1 else unfit.repeat(A.columns), torch.inf)
    if idle is not None:
        rate = torch.where(idle, 0.0, rate)
    slowest, goal, steps = float(rate.amax()), torch.finfo(b.dtype).eps, 2
    x, left = x + correction, slowest**2
    # (NaN too) few corrections cost less than fresh factors
    if not slowest**_CORRECTIONS * slowest <= goal:
        return None
    while left > goal:
        x = x + solver.solve_lanes(A, factors, b - A.mv(x))
        left, steps = left * slowest, steps + 1
    if not solver.exact and bool(_far(rms(b - A.mv(x)), b).any()):
        return None
    if idle is not None:
        x = torch.where(idle.unsqueeze(-1), 0.0, x)
    return x, steps


def _far(residual: Tensor, b: Tensor) -> Tensor:
    """Tell where what is left of ``b`` is so much that nothing of the solution is right."""
    return residual > torch.finfo(b.dtype).eps ** 0.25 * rms(b)


def _solve_iteratively(
    solver: Any, problem: LinearProblem, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Iterate, and go on from there where the recursive residual promised more than is true.

    Returns the solution, the status, the iterations, and the residual where it is known.
    """
    # where ``A`` has null spaces, another error is judged
    measured = not any(solver.nullspaces(1, 1))
    if solver.rtol is None:
        out = iterate(solver, problem, x)
        error = solver.error_at(problem, out.z, out.residual) if measured else None
        return out.z, out.status, out.iterations, error
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
    return x, status, iterations, error if measured else None
