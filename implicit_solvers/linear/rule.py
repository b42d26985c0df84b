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
Nothing here knows a concrete solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.autodiff import asked, legacy_batch, nested_jvp, recorded_if_asked
from implicit_solvers.graph_height import above
from implicit_solvers.lanes import lifted
from implicit_solvers.linear.adjoint_start import AdjointMemory
from implicit_solvers.linear.lane_solve import solve_in_lanes
from implicit_solvers.linear.specification import LinearSolveSpec
from implicit_solvers.masking import pull_back, push_forward
from implicit_solvers.ranks import over
from implicit_solvers.solution import failed
from implicit_solvers.structure import replaced
from implicit_solvers.torch_internals import Function

__all__ = ["solve_linear", "with_factors"]


class LinearSolve(Function):
    """Solve, and differentiate by the rule above.

    Outputs: ``x``; the status, iterations, residual and error of each lane; the factors, if a
    direct solver made them here.
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
        out = legacy_batch(LinearSolve.vmap, spec, b, start, skip, *operands)
        if out is not None:
            return out
        with over(spec.lanes.ranks), above(operands):
            return solve_in_lanes(spec, b, start, skip, operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the factors, whether given or made."""
        spec, b, _, skip, *operands = inputs
        x, status, _, _, _, *made = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        if made:
            spec = with_factors(spec, len(made))
        ctx.spec = spec
        bad = failed(status) if skip is None else failed(status) | skip
        like_b = b if any(spec.nullspaces) else x
        ctx.save_for_backward(x, like_b, bad, *made, *operands)
        ctx.save_for_forward(x, like_b, bad, *made, *operands)

    @recorded_if_asked
    def backward(
        ctx: Any, saved: tuple[Tensor, ...], gx: Tensor | None, *_: Any
    ) -> tuple[Any, ...]:
        """Solve with the transpose."""
        spec, inputs = ctx.spec, len(ctx.needs_input_grad)
        x, b, bad, *operands = saved
        if gx is None:
            return (None,) * inputs
        memory = None if spec.adjoint else spec.adjoint_start
        gb, also_bad = _again(spec, True, gx, bad, operands, memory)
        phi = spec.operator_tensors(operands)
        places = asked(phi, ctx.needs_input_grad[inputs - len(phi) :])
        result: list[Any] = [None] * len(phi)
        if places:
            bad = bad | also_bad
            pairs = [(x, -gb)]
            if any(spec.nullspaces):
                more, bad = _turning_pairs(spec, gx, x, b, gb, bad, operands)
                pairs += more
            lanes, keep = spec.operator_lanes, spec.kept(bad)
            slopes = pull_back(spec.one_lane, lanes, keep, pairs, phi, places)
            result = replaced(result, places, slopes)
        return (None, gb, *(None,) * (inputs - 2 - len(phi)), *result)

    @nested_jvp
    def jvp(spec: LinearSolveSpec, saved: tuple[Tensor, ...], tangents: tuple[Any, ...]) -> Any:
        """Solve for the tangent."""
        x, b, bad, *operands = saved
        phi = spec.operator_tensors(operands)
        db, dphi = tangents[1], tangents[len(tangents) - len(phi) :]
        # torch has tangents in float64 of float32, of python numbers times 0-d tensors
        rhs = torch.zeros_like(b) if db is None else db.to(b.dtype)
        places = asked(phi, [t is not None for t in dphi])
        outside: Tensor | None = None

        def moved(adjoint: bool, v: Tensor, out: Tensor) -> Tensor:
            """Return ``dA v``, or that of the transpose."""
            one_lane = replace(spec, transposed=spec.transposed != adjoint).one_lane
            return push_forward(one_lane, spec.operator_lanes, keep, v, out, phi, dphi, places)

        if places:
            keep = spec.kept(bad)
            rhs = rhs - moved(False, x, b)
            left, right = spec.nullspaces
            if left:
                r = b - spec.times(x, b, phi, keep)
                rhs = rhs + _again(spec, True, moved(True, r, x), bad, operands)[0]
            if right:
                y = _again(spec, True, x, bad, operands)[0]
                outside = moved(True, y, x)
                rhs = rhs - spec.times(outside, b, phi, keep)
        dx = _again(spec, False, rhs, bad, operands)[0]
        if outside is not None:
            dx = dx + outside
        made = len(operands) - (len(tangents) - 4)
        return dx, *(None,) * (4 + made)

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
        size = info.batch_size
        lanes, rest = spec.lanes.lift(size, dims, operands)
        start = None if start is None else lifted(size, start_dim, start)
        skip = None if skip is None else lifted(size, skip_dim, skip)
        b = lifted(size, dim, b)
        out = LinearSolve.apply(replace(spec, lanes=lanes), b, start, skip, *rest)
        factor_dim = 0 if any(levels[0] for levels in lanes.carried) else None
        return out, (0, 0, 0, 0, 0, *(factor_dim,) * (len(out) - 5))


def solve_linear(
    spec: LinearSolveSpec,
    b: Tensor,
    start: Tensor | None,
    skip: Tensor | None,
    operands: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ``x`` and the status, iterations, residual and error of each lane.

    Lanes to ``skip`` get the solution zero, and have no part in any derivative.
    """
    x, status, iterations, residual, error, *_ = LinearSolve.apply(spec, b, start, skip, *operands)
    return x, status, iterations, residual, error


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
        pairs.append((h, b - spec.times(x, b, phi, spec.kept(bad))))
        bad = bad | also_bad
    if right:
        y, also_bad = _again(spec, True, x, bad, operands)
        pairs.append((gx - spec.flipped().times(gb, x, phi, spec.kept(bad)), y))
        bad = bad | also_bad
    if spec.masked:
        # what is not finite in a lane that failed would be so times zero
        zero = bad.unsqueeze(-1)
        pairs = [(torch.where(zero, 0.0, v), torch.where(zero, 0.0, w)) for v, w in pairs]
    return pairs, bad


def with_factors(spec: LinearSolveSpec, count: int) -> LinearSolveSpec:
    """Return the spec of a solve that is given ``count`` factors of its operator."""
    lanes = spec.lanes
    levels = [any(c[i] for c in lanes.carried) for i in range(len(lanes.sizes))]
    lanes = lanes.insert(0, count, levels, lanes.native > 0)
    return replace(spec, lanes=lanes, hints=count)
