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

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from implicit_solvers.autodiff import (
    LegacyBatch,
    differentiable,
    nested_jvp,
    pushforward,
    recorded_if_asked,
    vjp,
)
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.adjoint_start import AdjointMemory
from implicit_solvers.linear.lane_solve import solve_in_lanes
from implicit_solvers.linear.specification import LinearSolveSpec
from implicit_solvers.masking import lane_gradient, lane_pushforward
from implicit_solvers.solution import failed

__all__ = ["solve_linear", "with_factors"]


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
        return solve_in_lanes(spec, b, start, skip, operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the factors, whether given or made."""
        spec, b, _, skip, *operands = inputs
        x, status, _, _, *made = output
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
    if spec.masked:
        # what is not finite in a lane that failed would be so times zero
        zero = bad.unsqueeze(-1)
        pairs = [(torch.where(zero, 0.0, v), torch.where(zero, 0.0, w)) for v, w in pairs]
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


def with_factors(spec: LinearSolveSpec, count: int) -> LinearSolveSpec:
    """Return the spec of a solve that is given ``count`` factors of its operator."""
    lanes = spec.lanes
    levels = tuple(any(c[i] for c in lanes.carried) for i in range(len(lanes.sizes)))
    known = lanes.native_carried
    lanes = replace(
        lanes,
        carried=(levels,) * count + lanes.carried,
        native_carried=None if known is None else (lanes.native > 0,) * count + known,
    )
    return replace(spec, lanes=lanes, hints=count, exact=True)
