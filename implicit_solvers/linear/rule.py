"""The linear-solve rule: ``x = A(phi)^-1 b``, differentiable as often as one likes.

Backward: ``b' = A^-T x'`` and ``phi' = -vjp of (phi -> A(phi) x) at b'``; forward:
``dx = A^-1 (db - dA x)``. Each is a linear solve again, by the same rule and the same factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from implicit_solvers.autodiff import LegacyBatch, live, nested_jvp, pushforward, vjp
from implicit_solvers.iterate import IterativeSolver, iterate
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.direct import DirectSolver
from implicit_solvers.linear.lane_map import LaneMap, Template
from implicit_solvers.linear.preconditioners import DiagonalMap, Jacobi
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.masking import lane_gradient, lane_pushforward
from implicit_solvers.monitoring import observe
from implicit_solvers.solution import OnFailure, Status, enforce, failed
from implicit_solvers.tolerance import AUTO, linear_tolerance, rms

__all__ = ["LinearSolveSpec", "LinearSolver", "solve_linear"]

LinearSolver = DirectSolver | IterativeSolver


@dataclass(frozen=True)
class LinearSolveSpec:
    """What a linear solve is, its tensors aside.

    Its operands are, in this order, ``hints`` factors of a direct solver (``exact`` if they are
    those of this very operator), the tensors of the preconditioner, and those of the operator.
    """

    template: Template
    solver: LinearSolver
    lanes: Lanes
    label: str
    on_failure: OnFailure
    adjoint: bool = False
    hints: int = 0
    exact: bool = True
    preconditioner: Template | Jacobi | None = None
    preconditioner_tensors: int = 0
    transposed: bool = False

    @property
    def operator_lanes(self) -> Lanes:
        """The lanes of the operator's tensors."""
        first = self.hints + self.preconditioner_tensors
        return self.lanes.keep(range(first, len(self.lanes.carried)))

    def operator_tensors(self, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the operands that the operator is made of."""
        return operands[self.hints + self.preconditioner_tensors :]

    @property
    def masked(self) -> bool:
        """Whether lanes that failed are left out of every derivative."""
        return self.on_failure == "mask"

    def one_lane(self, x: Tensor, *phi: Tensor) -> Tensor:
        """Return ``A(phi) x`` (or ``A(phi)^T x``) of one lane."""
        product = self.template.rmv if self.transposed else self.template.mv
        return product(x, *phi)

    def paired(self, x: Tensor, w: Tensor, *phi: Tensor) -> Tensor:
        """Return ``<w, A(phi) x>`` of one lane."""
        return (w * self.one_lane(x, *phi)).sum(-1)

    def derived(self, transposed: bool) -> LinearSolveSpec:
        """Return the spec of a solve that a derivative asks for."""
        return replace(
            self,
            transposed=transposed and not self.template.symmetric,
            adjoint=True,
            label=self.label if self.adjoint else f"adjoint of {self.label}",
        )


class LinearSolve(Function):
    """Solve, and differentiate by the rule above.

    Outputs: ``x``; the status, iterations and residual of each lane; the factors, if a direct
    solver made them here.
    """

    @staticmethod
    def forward(
        spec: LinearSolveSpec,
        b: Tensor,
        start: Tensor | None,
        skip: Tensor | None,
        *operands: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the solver on plain tensors."""
        batch = LegacyBatch((b, skip, *operands))
        if batch.active:
            return batch.apply(LinearSolve.vmap, spec, b, start, skip, *operands)
        return _run(spec, b, start, skip, operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the factors, whether given or made."""
        spec, _, _, skip, *operands = inputs
        x, status, _, _, *made = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        if made:
            spec = _with_factors(spec, len(made))
        ctx.spec = spec
        bad = failed(status) if skip is None else failed(status) | skip
        ctx.save_for_backward(x, bad, *made, *operands)
        ctx.save_for_forward(x, bad, *made, *operands)

    @staticmethod
    def backward(ctx: Any, gx: Tensor | None, *_: Any) -> tuple[Any, ...]:
        """Solve with the transpose."""
        spec, inputs = ctx.spec, len(ctx.needs_input_grad)
        gx, x, bad, *operands = live(gx, *ctx.saved_tensors)
        if gx is None:
            return (None,) * inputs
        skip = bad if spec.masked else None
        again = spec.derived(not spec.transposed)
        gb, status, *_ = LinearSolve.apply(again, gx, None, skip, *operands)
        phi = spec.operator_tensors(operands)
        needed = ctx.needs_input_grad[inputs - len(phi) :]
        product, places = _product(spec, x, phi, needed)
        result: list[Any] = [None] * len(phi)
        if places and spec.masked:
            keep = ~(bad | failed(status))
            slopes: Any = lane_gradient(
                spec.paired,
                spec.operator_lanes.prepend(),
                keep,
                (x, -gb, *phi),
                [i + 2 for i in places],
            )
        elif places:
            slopes = vjp(product, *(phi[i] for i in places))[1](-gb)
        if places:
            for place, g in zip(places, slopes, strict=True):
                result[place] = g
        return (None, gb, *(None,) * (inputs - 2 - len(phi)), *result)

    @nested_jvp
    def jvp(spec: LinearSolveSpec, saved: tuple[Tensor, ...], tangents: tuple[Any, ...]) -> Any:
        """Solve for the tangent."""
        x, bad, *operands = saved
        phi = spec.operator_tensors(operands)
        db, dphi = tangents[1], tangents[len(tangents) - len(phi) :]
        rhs = torch.zeros_like(x) if db is None else db
        product, places = _product(spec, x, phi, [t is not None for t in dphi])
        if places and spec.masked:
            moving = [t if i in places else None for i, t in enumerate(dphi)]
            lanes = spec.operator_lanes
            rhs = rhs - lane_pushforward(spec.one_lane, lanes, ~bad, (x, *phi), moving)
        elif places:
            primals, moved = [phi[i] for i in places], [dphi[i] for i in places]
            rhs = rhs - pushforward(product, primals, moved)
        skip = bad if spec.masked else None
        dx = LinearSolve.apply(spec.derived(spec.transposed), rhs, None, skip, *operands)[0]
        made = len(operands) - (len(tangents) - 4)
        return dx, *(None,) * (3 + made)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        spec: LinearSolveSpec,
        b: Tensor,
        start: Any,
        skip: Any,
        *operands: Tensor,
    ) -> Any:
        """Move the new lanes to the front and apply the rule again."""
        _, dim, start_dim, skip_dim, *dims = in_dims
        pairs = list(zip(operands, dims, strict=True))
        spec, b, rest = _lift(spec, info.batch_size, (b, dim), pairs)
        if start is not None:
            _, start, _ = Lanes().lift(info.batch_size, (start, start_dim), [])
        if skip is not None:
            _, skip, _ = Lanes().lift(info.batch_size, (skip, skip_dim), [])
        out = LinearSolve.apply(spec, b, start, skip, *rest)
        factor_dim = 0 if _any_operand_carries(spec) else None
        return out, (0, 0, 0, 0, *(factor_dim,) * (len(out) - 4))


def _lift(
    spec: LinearSolveSpec,
    size: int,
    b: tuple[Tensor, int | None],
    operands: Sequence[tuple[Tensor, int | None]],
) -> tuple[LinearSolveSpec, Tensor, list[Tensor]]:
    """Add an outermost level of lanes."""
    lanes, rhs, rest = spec.lanes.lift(size, b, operands)
    return replace(spec, lanes=lanes), rhs, rest


def _any_operand_carries(spec: LinearSolveSpec) -> bool:
    """Tell whether any operand has an entry for each lane of the outermost level."""
    return any(levels[0] for levels in spec.lanes.carried)


def solve_linear(
    spec: LinearSolveSpec,
    b: Tensor,
    start: Tensor | None,
    skip: Tensor | None,
    operands: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``x`` and the status, iterations and residual of each lane.

    Lanes to ``skip`` get the solution zero, and have no part in any derivative.
    """
    x, status, iterations, residual, *_ = LinearSolve.apply(spec, b, start, skip, *operands)
    return x, status, iterations, residual


def _product(
    spec: LinearSolveSpec, x: Tensor, phi: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Callable[..., Tensor], list[int]]:
    """Return ``A(phi) x`` as a function of the tensors needed of phi, and their places."""
    places = [i for i, t in enumerate(phi) if needed[i] and t.is_floating_point()]
    on_lanes = spec.operator_lanes.over(spec.one_lane)

    def product(*free: Tensor) -> Tensor:
        filled = list(phi)
        for place, tensor in zip(places, free, strict=True):
            filled[place] = tensor
        return on_lanes(x, *filled)

    return product, places


def _with_factors(spec: LinearSolveSpec, count: int) -> LinearSolveSpec:
    lanes = spec.lanes
    levels = tuple(any(c[i] for c in lanes.carried) for i in range(len(lanes.sizes)))
    known = lanes.native_carried
    lanes = replace(
        lanes,
        carried=(levels,) * count + lanes.carried,
        native_carried=None if known is None else (lanes.native > 0,) * count + known,
    )
    return replace(spec, lanes=lanes, hints=count, exact=True)


class _Grid:
    """The lanes of a solve as columns times a grid of operators."""

    def __init__(self, lanes: Lanes, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.shared = lanes.shared_levels()
        rest = [i for i in range(len(self.shape)) if i not in self.shared]
        self.order = (*self.shared, *rest)
        self.grid = tuple(self.shape[i] for i in rest)
        self.columns = math.prod(self.shape[i] for i in self.shared)

    def flat(self, t: Tensor) -> Tensor:
        """Return ``(*shape, ...)`` as ``(columns * grid, ...)``."""
        k = len(self.shape)
        lanes = math.prod(self.shape)
        return t.permute((*self.order, *range(k, t.dim()))).reshape((lanes, *t.shape[k:]))

    def back(self, t: Tensor) -> Tensor:
        """Undo `flat`."""
        k = len(self.shape)
        t = t.reshape((*(self.shape[i] for i in self.order), *t.shape[1:]))
        inverse = sorted(range(k), key=lambda i: self.order[i])
        return t.permute((*inverse, *range(k, t.dim()))).contiguous()


def _run(
    spec: LinearSolveSpec,
    b: Tensor,
    start: Tensor | None,
    skip: Tensor | None,
    operands: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    if skip is not None:
        b = torch.where(skip.unsqueeze(-1), 0.0, b)
    watch = observe(spec.label, spec.solver)
    n = b.shape[-1]
    grid = _Grid(spec.lanes, b.shape[:-1])
    first = spec.hints
    second = first + spec.preconditioner_tensors
    kept = spec.lanes.without(grid.shared)
    flat = grid.flat(b)

    def lane_map(template: Template, lo: int, hi: int) -> LaneMap:
        return LaneMap(
            template,
            kept.keep(range(lo, hi)),
            grid.grid,
            n,
            operands[lo:hi],
            like=b,
            columns=grid.columns,
            transposed=spec.transposed,
        )

    A = lane_map(spec.template, second, len(operands))
    made: tuple[Tensor, ...] = ()
    if flat.shape[0] == 0 or n == 0:
        x = torch.zeros_like(flat)
        status = torch.zeros(flat.shape[0], dtype=torch.int64, device=b.device)
        iterations = torch.zeros_like(status)
    elif isinstance(spec.solver, DirectSolver):
        hints = tuple(
            _spread(t, kept.carried[i], grid.grid, kept) for i, t in enumerate(operands[:first])
        )
        x, status, iterations, factors = _solve_directly(spec, A, flat, hints)
        if not hints:
            made = tuple(t.reshape((*grid.grid, *t.shape[1:])) for t in factors)
    else:
        M: Any = None
        if isinstance(spec.preconditioner, Jacobi):
            M = spec.preconditioner.of(A)
        elif spec.preconditioner is not None:
            M = lane_map(spec.preconditioner, first, second)
        zero = torch.zeros_like(flat) if start is None else grid.flat(start)
        x, status, iterations = _solve_iteratively(spec, A, M, flat, zero)

    residual = rms(flat - A.mv(x)) if flat.numel() else flat.new_zeros(flat.shape[0])
    idle = (flat == 0).all(-1)
    finite = torch.isfinite(x).all(-1)
    status = torch.where(finite | failed(status), status, int(Status.NONFINITE))
    if isinstance(spec.solver, DirectSolver):
        # pivots may look regular where nothing of the solution is right
        wrong = residual > torch.finfo(b.dtype).eps ** 0.25 * rms(flat)
        status = torch.where(wrong & ~failed(status), int(Status.SINGULAR), status)
    # the best iterate of a lane that came to nothing is where it began
    x = torch.where(finite.unsqueeze(-1), x, 0.0 if start is None else grid.flat(start))
    if spec.adjoint:
        # whatever the operator, a lane that nothing depends on has the adjoint zero
        x = torch.where(idle.unsqueeze(-1), 0.0, x)
        status = torch.where(idle, 0, status)
        residual = torch.where(idle, 0.0, residual)
    status, iterations, residual = grid.back(status), grid.back(iterations), grid.back(residual)
    if watch.active:
        size = rms(b)
        watch.done(iterations, torch.where(size > 0, residual / size, residual), status)
    enforce(spec.on_failure, spec.label, status, iterations, residual, warn_masked=spec.adjoint)
    x = grid.back(x)
    if spec.adjoint and spec.masked:
        x = torch.where(failed(status).unsqueeze(-1), 0.0, x)
    return x, status, iterations, residual, *made


def _spread(
    factor: Tensor, carries: tuple[bool, ...], grid: tuple[int, ...], lanes: Lanes
) -> Tensor:
    """Return a factor with one entry for each place of the grid, ``(prod(grid), ...)``."""
    rest = factor.shape[sum(carries) + lanes.native :]
    position = iter(factor.shape)
    lead = [next(position) if c else 1 for c in carries]
    native = [next(position) for _ in range(lanes.native)]
    return factor.reshape((*lead, *native, *rest)).expand((*grid, *rest)).reshape((-1, *rest))


def _solve_directly(
    spec: LinearSolveSpec, A: LaneMap, b: Tensor, hints: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    solver, n = spec.solver, b.shape[-1]
    assert isinstance(solver, DirectSolver)
    columns = b.reshape(A.columns, A.grid, n).permute(1, 2, 0)

    def solve(factors: tuple[Tensor, ...], rhs: Tensor) -> Tensor:
        x = solver.solve(factors, rhs.reshape(A.columns, A.grid, n).permute(1, 2, 0), A.transposed)
        return x.permute(2, 0, 1).reshape(-1, n)

    one = torch.ones(len(b), dtype=torch.int64, device=b.device)
    if hints and not spec.exact:
        x, good, steps = _refine(A, b, lambda rhs: solve(hints, rhs))
        if bool(good.all()):
            return x, torch.zeros_like(one), steps, hints
        hints = ()
    factors = hints or solver.factor(A)
    x = solver.solve(factors, columns, A.transposed).permute(2, 0, 1).reshape(-1, n)
    return x, solver.status(factors).repeat(A.columns), one, factors


def _refine(
    A: LaneMap, b: Tensor, solve: Callable[[Tensor], Tensor], most: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve with the factors of a nearby operator, by iterative refinement.

    Returns the solution, whether it is as good as a linear solve is asked to be, and the number
    of steps. Source: Golub and Van Loan, "Matrix Computations", section 3.5.
    """
    x = solve(b)
    r = b - A.mv(x)
    error, goal = rms(r), 4 * torch.finfo(b.dtype).eps * rms(b)
    steps = torch.ones(len(b), dtype=torch.int64, device=b.device)
    for _ in range(most):
        running = error > goal
        if not bool(running.any()):
            break
        better = x + solve(r)
        new_r = b - A.mv(better)
        new_error = rms(new_r)
        improved = running & (new_error < 0.5 * error)
        if not bool(improved.any()):
            break
        x = torch.where(improved.unsqueeze(-1), better, x)
        r = torch.where(improved.unsqueeze(-1), new_r, r)
        error = torch.where(improved, new_error, error)
        steps = steps + running
    return x, error <= linear_tolerance(AUTO, AUTO, b, rms), steps


def _solve_iteratively(
    spec: LinearSolveSpec, A: LaneMap, M: LaneMap | DiagonalMap | None, b: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Iterate, and go on from there where the recursive residual promised more than is true."""
    solver = spec.solver
    assert not isinstance(solver, DirectSolver)
    problem = LinearProblem(A, b, M)
    out = iterate(solver, problem, x)
    x, status, iterations = out.z, out.status, out.iterations
    if solver.rtol is None:
        return x, status, iterations
    goal = linear_tolerance(solver.rtol, solver.atol, b, rms)
    for _ in range(3):
        short = (status == Status.CONVERGED) & (rms(problem.residual(x)) > 1.1 * goal)
        if not bool(short.any()):
            return x, status, iterations
        out = iterate(solver, problem, x)
        x = torch.where(short.unsqueeze(-1), out.z, x)
        status = torch.where(short, out.status, status)
        iterations = torch.where(short, iterations + out.iterations, iterations)
    return x, torch.where(short, int(Status.STALLED), status), iterations
