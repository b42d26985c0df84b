"""The linear-solve rule: ``x = A(phi)^-1 b``, differentiable as often as one likes.

Backward: ``b' = A^-T x'`` and ``phi' = -vjp of (phi -> A(phi) x) at b'``; forward:
``dx = A^-1 (db - dA x)``. Each is a linear solve again, by the same rule and the same factors.

A least-squares solver returns ``x = A^+ b``, and the pseudo-inverse turns with the range of ``A``
and with that of ``A^T``. With ``r = b - A x``, ``y = A^+T x``, and while the rank stays,
``dx = A^+ (db - dA x + A^+T dA^T r - A u) + u`` where ``u = dA^T y``; backward
``b' = A^+T x'`` and ``phi'`` is the gradient of
``-<b', A x> + <r, A A^+ b'> + <y, A (x' - A^T b')>`` in the ``A``s written out. Source: Golub and
Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems whose
variables separate", SIAM J. Numer. Anal. 10 (1973). For complex operators read ``^H`` for ``^T``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from implicit_solvers.autodiff import (
    LegacyBatch,
    differentiable,
    live,
    nested_jvp,
    pushforward,
    vjp,
)
from implicit_solvers.iterate import IterativeSolver, iterate
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.adjoint_start import AdjointMemory
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
    adjoint_start: AdjointMemory | None = None

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

    @property
    def nullspaces(self) -> tuple[bool, bool]:
        """Whether ``A^T`` and ``A`` may map something to zero: then ``x = A^+ b``."""
        shape = self.template.shape
        find = getattr(self.solver, "nullspaces", None)
        if find is None:
            return False, False
        left, right = find(*shape) if shape is not None else find(1, 1)
        return (right, left) if self.transposed else (left, right)

    def size(self, b: Tensor) -> int:
        """Return the number of unknowns of a lane."""
        shape = self.template.shape
        return b.shape[-1] if shape is None else shape[0 if self.transposed else 1]

    def one_lane(self, x: Tensor, *phi: Tensor) -> Tensor:
        """Return ``A(phi) x`` (or ``A(phi)^T x``) of one lane."""
        product = self.template.rmv if self.transposed else self.template.mv
        return product(x, *phi)

    def paired(self, x: Tensor, w: Tensor, *phi: Tensor) -> Tensor:
        """Return the real part of ``<w, A(phi) x>`` of one lane."""
        return (w.conj() * self.one_lane(x, *phi)).real.sum(-1)

    def times(self, x: Tensor, w: Tensor, phi: Sequence[Tensor], keep: Tensor) -> Tensor:
        """Return ``A(phi) x``, like ``w``, and zero in lanes not to keep if lanes are left out."""
        if self.masked:
            lanes = self.operator_lanes.prepend()
            return lane_gradient(self.paired, lanes, keep, (x, torch.zeros_like(w), *phi), [1])[0]
        return self.operator_lanes.over(self.one_lane)(x, *phi)

    def flipped(self) -> LinearSolveSpec:
        """Return the spec of the transpose."""
        return replace(self, transposed=not self.transposed and not self.template.symmetric)

    def derived(self, transposed: bool) -> LinearSolveSpec:
        """Return the spec of a solve that a derivative asks for."""
        return replace(
            self,
            transposed=transposed and not self.template.symmetric,
            adjoint=True,
            adjoint_start=None,
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
        spec, b, _, skip, *operands = inputs
        x, status, _, _, *made = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        if made:
            spec = _with_factors(spec, len(made))
        ctx.spec = spec
        bad = failed(status) if skip is None else failed(status) | skip
        like_b = b if any(spec.nullspaces) else x
        ctx.save_for_backward(x, like_b, bad, *made, *operands)
        ctx.save_for_forward(x, like_b, bad, *made, *operands)

    @staticmethod
    def backward(ctx: Any, gx: Tensor | None, *_: Any) -> tuple[Any, ...]:
        """Solve with the transpose."""
        spec, inputs = ctx.spec, len(ctx.needs_input_grad)
        gx, x, b, bad, *operands = live(gx, *ctx.saved_tensors)
        if gx is None:
            return (None,) * inputs
        memory = None if spec.adjoint else spec.adjoint_start
        gb, also_bad = _again(spec, True, gx, bad, operands, memory)
        phi = spec.operator_tensors(operands)
        places = _places(phi, ctx.needs_input_grad[inputs - len(phi) :])
        result: list[Any] = [None] * len(phi)
        if places:
            bad = bad | also_bad
            pairs = [(x, -gb)]
            if any(spec.nullspaces):
                more, bad = _turning_pairs(spec, gx, x, b, gb, bad, operands)
                pairs += more
            for place, g in zip(places, _slopes(spec, pairs, phi, places, bad), strict=True):
                result[place] = g
        return (None, gb, *(None,) * (inputs - 2 - len(phi)), *result)

    @nested_jvp
    def jvp(spec: LinearSolveSpec, saved: tuple[Tensor, ...], tangents: tuple[Any, ...]) -> Any:
        """Solve for the tangent."""
        x, b, bad, *operands = saved
        phi = spec.operator_tensors(operands)
        db, dphi = tangents[1], tangents[len(tangents) - len(phi) :]
        rhs = torch.zeros_like(b) if db is None else db
        places = _places(phi, [t is not None for t in dphi])
        outside: Tensor | None = None
        if places:
            keep = ~bad
            rhs = rhs - _moved(spec, spec.transposed, x, b, phi, dphi, places, keep)
            left, right = spec.nullspaces
            if left:
                r = b - spec.times(x, b, phi, keep)
                moved = _moved(spec, not spec.transposed, r, x, phi, dphi, places, keep)
                rhs = rhs + _again(spec, True, moved, bad, operands)[0]
            if right:
                y = _again(spec, True, x, bad, operands)[0]
                outside = _moved(spec, not spec.transposed, y, x, phi, dphi, places, keep)
                rhs = rhs - spec.times(outside, b, phi, keep)
        dx = _again(spec, False, rhs, bad, operands)[0]
        if outside is not None:
            dx = dx + outside
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


def _again(
    spec: LinearSolveSpec,
    adjoint: bool,
    b: Tensor,
    bad: Tensor,
    operands: Sequence[Tensor],
    memory: AdjointMemory | None = None,
) -> tuple[Tensor, Tensor]:
    """Solve with the same operator or its transpose; return also which lanes failed."""
    skip = bad if spec.masked else None
    derived = replace(spec.derived(spec.transposed != adjoint), adjoint_start=memory)
    x, status, *_ = LinearSolve.apply(derived, b, None, skip, *operands)
    return x, failed(status)


def _turning_pairs(
    spec: LinearSolveSpec,
    gx: Tensor,
    x: Tensor,
    b: Tensor,
    gb: Tensor,
    bad: Tensor,
    operands: Sequence[Tensor],
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return the ``(v, w)`` of the terms ``<w, A v>`` that a pseudo-inverse adds; and bad lanes."""
    left, right = spec.nullspaces
    phi, pairs = spec.operator_tensors(operands), []
    if left:
        h, also_bad = _again(spec, False, gb, bad, operands)
        pairs.append((h, b - spec.times(x, b, phi, ~bad)))
        bad = bad | also_bad
    if right:
        y, also_bad = _again(spec, True, x, bad, operands)
        pairs.append((gx - spec.flipped().times(gb, x, phi, ~bad), y))
        bad = bad | also_bad
    return pairs, bad


def _slopes(
    spec: LinearSolveSpec,
    pairs: Sequence[tuple[Tensor, Tensor]],
    phi: Sequence[Tensor],
    places: Sequence[int],
    bad: Tensor,
) -> Sequence[Tensor]:
    """Return the gradient of the sum of ``<w, A(phi) v>`` over the pairs ``(v, w)``."""
    if spec.masked:
        lanes, wrt = spec.operator_lanes.prepend(), [i + 2 for i in places]
        parts = [lane_gradient(spec.paired, lanes, ~bad, (v, w, *phi), wrt) for v, w in pairs]
        return [sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True)]
    on_lanes = spec.operator_lanes.over(spec.one_lane)

    def products(*free: Tensor) -> tuple[Tensor, ...]:
        filled = list(phi)
        for place, tensor in zip(places, free, strict=True):
            filled[place] = tensor
        return tuple(on_lanes(v, *filled) for v, _ in pairs)

    pull = vjp(products, *(phi[i] for i in places))[1]
    slopes: Sequence[Tensor] = pull(tuple(w for _, w in pairs))
    return slopes


def _moved(
    spec: LinearSolveSpec,
    transposed: bool,
    v: Tensor,
    out: Tensor,
    phi: Sequence[Tensor],
    dphi: Sequence[Tensor | None],
    places: Sequence[int],
    keep: Tensor,
) -> Tensor:
    """Return ``dA v``, or that of the transpose, shaped like ``out``."""
    one_lane = replace(spec, transposed=transposed).one_lane
    lanes = spec.operator_lanes
    if spec.masked:
        moving = [t if i in places else None for i, t in enumerate(dphi)]
        return lane_pushforward(one_lane, lanes, keep, (v, *phi), moving, out)

    def product(*free: Tensor) -> Tensor:
        filled = list(phi)
        for place, tensor in zip(places, free, strict=True):
            filled[place] = tensor
        return lanes.over(one_lane)(v, *filled)

    return pushforward(product, [phi[i] for i in places], [dphi[i] for i in places])


def _places(phi: Sequence[Tensor], needed: Sequence[bool]) -> list[int]:
    """Return which tensors of phi a derivative is asked for."""
    return [i for i, t in enumerate(phi) if needed[i] and differentiable(t)]


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
    n = spec.size(b)
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
            operands[lo:hi],
            like=b,
            columns=grid.columns,
            transposed=spec.transposed,
        )

    memory = spec.adjoint_start if spec.adjoint else None
    if memory is not None:
        start = memory.read(b)
        if start is not None:
            # a lane that nothing depends on has no way to go
            start = torch.where((b == 0).all(-1, keepdim=True), 0.0, start)
    A = lane_map(spec.template, second, len(operands))
    made: tuple[Tensor, ...] = ()
    if flat.numel() == 0 or n == 0:
        x = flat.new_zeros(flat.shape[0], n)
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
        zero = flat.new_zeros(flat.shape[0], n) if start is None else grid.flat(start)
        x, status, iterations = _solve_iteratively(spec, A, M, flat, zero)

    residual = rms(flat - A.mv(x)) if flat.numel() else rms(flat)
    idle = (flat == 0).all(-1)
    finite = torch.isfinite(x).all(-1)
    status = torch.where(finite | failed(status), status, int(Status.NONFINITE))
    if isinstance(spec.solver, DirectSolver) and not spec.nullspaces[0]:
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
    if memory is not None:
        memory.write(x)
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
    solver = spec.solver
    assert isinstance(solver, DirectSolver)

    def solve(factors: tuple[Tensor, ...], rhs: Tensor) -> Tensor:
        columns = rhs.reshape(A.columns, A.grid, rhs.shape[-1]).permute(1, 2, 0)
        x = solver.solve(factors, columns, A.transposed)
        return x.permute(2, 0, 1).reshape(len(rhs), -1)

    one = torch.ones(len(b), dtype=torch.int64, device=b.device)
    if hints and not spec.exact:
        x, good, steps = _refine(A, b, lambda rhs: solve(hints, rhs))
        if bool(good.all()):
            return x, torch.zeros_like(one), steps, hints
        hints = ()
    factors = hints or solver.factor(A)
    x = solve(factors, b)
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
    judge = getattr(solver, "error_at", lambda problem, x: rms(problem.residual(x)))
    for _ in range(3):
        short = (status == Status.CONVERGED) & (judge(problem, x) > 1.1 * goal)
        if not bool(short.any()):
            return x, status, iterations
        out = iterate(solver, problem, x)
        x = torch.where(short.unsqueeze(-1), out.z, x)
        status = torch.where(short, out.status, status)
        iterations = torch.where(short, iterations + out.iterations, iterations)
    return x, torch.where(short, int(Status.STALLED), status), iterations
