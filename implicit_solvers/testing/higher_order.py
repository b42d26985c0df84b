"""Derivatives of order k against differences of those of order k - 1. It knows no rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from implicit_solvers.testing.captured import placed
from implicit_solvers.testing.causes import NONFINITE
from implicit_solvers.testing.differences import Difference, central_difference
from implicit_solvers.testing.first_order import explain_exception
from implicit_solvers.testing.point import Point
from implicit_solvers.testing.report import Entry
from implicit_solvers.testing.statement import slopes

__all__ = ["check_order"]

_NAMES = {2: "double backward", 3: "triple backward"}


def check_order(point: Point, order: int, *, forward: bool, sound: bool) -> list[Entry]:
    """Compare the derivative of order ``order``, reverse over reverse and forward over reverse.

    With a `_loss` of random weights ``w``, ``phi_1 = grad loss(z)`` and
    ``phi_k = grad <phi_(k-1), u_k>``; the differences of ``phi_(k-1)`` along ``u_k`` are ``phi_k``,
    since Hessians are symmetric.
    ``sound`` tells whether the orders below were found right.
    """
    subject, generator = point.subject, point.generator
    if not subject.inputs:
        return []
    w = torch.randn(point.z.numel(), generator=generator, dtype=torch.float64).to(point.z)
    w = w / max(point.z.numel(), 1) ** 0.5
    directions = [_direction(point) for _ in range(order - 1)]
    name = _NAMES[order]
    try:
        found = _nested(point, point.values(), w, directions)
        truth = _difference(point, w, directions, found)
    except Exception as error:
        return [explain_exception(name, "all inputs", error, point)]
    entries = [_judge(point, (name, "all inputs"), found, truth, order, sound)]
    if not forward or not subject.in_args:
        return entries
    name = f"fwd over {'reverse' if order == 2 else 'double back'}"
    try:
        if subject.captured:
            # a tangent cannot be put on a captured tensor: the arguments alone are moved
            count = len(subject.in_args)
            directions = [
                [*u[:count], *(torch.zeros_like(t) for t in u[count:])] for u in directions
            ]
            found = _nested(point, point.values(), w, directions)
            truth = _difference(point, w, directions, found)
        pushed = _pushed(point, w, directions)
    except Exception as error:
        return [*entries, explain_exception(name, "args", error, point)]
    return [*entries, _judge(point, (name, "args"), pushed, truth, order, sound)]


def _difference(
    point: Point, w: Tensor, directions: Sequence[Sequence[Tensor]], found: Sequence[Tensor]
) -> Difference:
    """Difference the derivative of one order less along the last direction."""

    def along(t: float) -> Tensor:
        values = [v + t * u for v, u in zip(point.values(), directions[-1], strict=True)]
        try:
            return _flat(_nested(point, values, w, directions[:-1]))
        except Exception:  # whatever the layer raises where it fails
            return torch.full_like(_flat(found), float("nan"))

    noise = point.accuracy * (1 + float(_flat(found).abs().max()))
    return central_difference(along, dtype=point.z.dtype, noise=noise)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def _direction(point: Point) -> list[Tensor]:
    drawn = []
    for given in point.subject.inputs:
        noise = torch.randn(given.tensor.shape, generator=point.generator, dtype=torch.float64)
        drawn.append(given.scale * noise.clamp(-1.5, 1.5).to(given.tensor))
    return drawn


def _loss(point: Point, w: Tensor, y: Tensor) -> Tensor:
    """Return a loss that is not linear, so that cotangents depend on the inputs, as a user's do."""
    size = 1 + float(point.z.abs().max())
    return (w * (y + y**2 / (2 * size))).sum()


def _nested(
    point: Point, values: Sequence[Tensor], w: Tensor, directions: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """Return ``phi_k`` for ``k - 1`` directions, by reverse mode, at values of the inputs."""
    subject, count = point.subject, len(point.subject.in_args)
    with (
        torch.enable_grad(),
        placed([i.tensor for i in subject.captured], values[count:]),
    ):
        free = [v.detach().clone().requires_grad_() for v in values[:count]]
        wrt = [*free, *(i.tensor for i in subject.captured)]
        total = _loss(point, w, subject.value(free))
        for direction in directions:
            phi = slopes(total, wrt, create_graph=True)
            total = torch.stack([(g * u).sum() for g, u in zip(phi, direction, strict=True)]).sum()
        return [g.detach() for g in slopes(total, wrt)]


def _pushed(point: Point, w: Tensor, directions: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return ``phi_k``, its last derivative by forward mode, in the arguments alone."""
    subject = point.subject
    places = tuple(range(len(subject.in_args)))

    def scalar(*tensors: Tensor) -> Tensor:
        return _loss(point, w, subject.value(tensors))

    nested: Callable[..., Tensor] = scalar
    for direction in directions[:-1]:
        nested = _derivative_along(nested, places, direction)
    tensors = tuple(subject.arguments())
    tangents = tuple(directions[-1][: len(tensors)])
    pushed = torch.func.jvp(torch.func.grad(nested, argnums=places), tensors, tangents)[1]
    return [g.detach() for g in pushed]


def _derivative_along(
    fn: Callable[..., Tensor], places: tuple[int, ...], direction: Sequence[Tensor]
) -> Callable[..., Tensor]:
    def derivative(*tensors: Tensor) -> Tensor:
        phi = torch.func.grad(fn, argnums=places)(*tensors)
        pairs = zip(phi, direction[: len(phi)], strict=True)
        return torch.stack([(g * u).sum() for g, u in pairs]).sum()

    return derivative


def _judge(
    point: Point,
    what: tuple[str, str],
    found: Sequence[Tensor],
    truth: Difference,
    order: int,
    sound: bool,
) -> Entry:
    flat = _flat(found)
    expected = truth.value[: len(flat)]
    size = float(flat.abs().max())
    error = float((flat - expected).abs().max())
    largest = max(size, float(expected.abs().max()))
    solve = 16 * point.eps ** (2 / 3) * min(max(point.condition, 1.0), 1e3) * largest
    tolerance = 4 * truth.uncertainty + solve
    if sound and not size < float("inf"):
        return Entry(*what, "failed", error, tolerance, NONFINITE.cause, NONFINITE.change)
    if not truth.uncertainty < float("inf"):
        cause = "the derivative could not be differenced: it was not found for nearby values"
        return Entry(*what, "warning", cause=cause, change="choose a more robust solver")
    if error <= tolerance:
        return Entry(*what, "ok", error, tolerance)
    below = {2: "first", 3: "second"}[order]
    if not sound:
        cause = f"the {below} derivative is wrong already: see there"
        return Entry(*what, "failed", error, tolerance, cause)
    if size == 0:
        cause = (
            f"the derivative of the {below} derivative is zero: the layer's backward is not "
            "differentiable itself (a detached solution, no_grad, once_differentiable)"
        )
    else:
        cause = (
            f"the {below} derivative is right and its own derivative is not: the layer's rule "
            "drops terms when it is differentiated (a solution or cotangent detached in backward, "
            "one Newton step attached at the solution, a linear solve without its matrix's part)"
        )
    change = "write the backward in differentiable operations of the returned solution"
    return Entry(*what, "failed", error, tolerance, cause, change)
