"""``vmap`` against a loop; lanes that change, or fail, against the others. It knows no rule."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_solvers.solution import ConvergenceWarning
from implicit_solvers.testing.causes import AVERAGED, MIXED, Cause
from implicit_solvers.testing.first_order import explain_exception
from implicit_solvers.testing.point import Point
from implicit_solvers.testing.report import Entry
from implicit_solvers.testing.statement import slopes
from implicit_solvers.testing.subject import Subject

__all__ = ["check_failed_lane", "check_native_lanes", "check_vmap"]

_BATCH = 3
_LEAK = Cause(
    "lanes leak: changing one lane changes the value or gradient of another",
    "keep lanes apart: no sum, mean or norm over the lane dimension in the equation, the solver, "
    "or the adjoint",
)


@dataclass(frozen=True)
class _Batch:
    """Values and gradients of a batch: those of arguments for each lane, of captured ones once.

    ``inner`` are the arguments' gradients by ``vmap`` of reverse mode, ``gradients`` those by
    reverse mode through ``vmap``; a loop makes no difference.
    """

    values: Tensor
    inner: list[Tensor]
    gradients: list[Tensor]
    shared: list[Tensor]


def check_vmap(point: Point, *, forward: bool) -> list[Entry]:
    """Compare values, gradients and tangents under ``torch.func.vmap`` with a loop's."""
    subject = point.subject
    if not subject.in_args:
        return [Entry("vmap", "args", "skipped", cause="there is no tensor in args to batch over")]
    stacked, W = _stack(point), _cotangents(point)
    try:
        looped = _looped(subject, stacked, W)
    except Exception as error:
        entry = explain_exception("loop over lanes", "args", error)
        return [Entry("vmap", "args", "skipped", cause=f"nearby arguments: {entry.cause}")]
    try:
        batched = _batched(subject, stacked, W)
    except Exception as error:
        return [explain_exception("vmap", "args", error, point)]
    scale = 1 + float(looped.values.abs().max())
    rough = 8 * point.accuracy * scale
    entries = [_compare("vmap", "values", batched.values, looped.values, rough, Cause("", ""))]
    for check, gradients in (
        ("vmap of reverse", batched.inner),
        ("reverse of vmap", batched.gradients),
    ):
        for k, (found, expected) in enumerate(zip(gradients, looped.gradients, strict=True)):
            cause, found, expected = Cause("", ""), found.detach(), expected.detach()
            tolerance = _slope_tolerance(point, expected)
            if not float((found - expected).abs().max()) <= tolerance:
                cause = _mixed(subject, stacked, W, k, found, expected)
            name = subject.in_args[k].name
            entries.append(_compare(check, name, found, expected, tolerance, cause))
    for given, found, expected in zip(subject.captured, batched.shared, looped.shared, strict=True):
        cause = _of_shared(given.name, found, expected)
        tolerance = _slope_tolerance(point, expected)
        entries.append(_compare("reverse of vmap", given.name, found, expected, tolerance, cause))
    if forward:
        entries.append(_vmap_forward(point, stacked))
    return entries


def _slope_tolerance(point: Point, expected: Tensor) -> float:
    size = float(expected.abs().max()) if expected.numel() else 0.0
    solve = 8 * point.eps ** (2 / 3) * min(max(point.condition, 1.0), 1e3) * size
    return solve + 8 * point.accuracy * (1 + size)


def _stack(point: Point) -> list[Tensor]:
    """Return the arguments in three lanes: as they are, and moved by one and two per cent."""
    lanes = []
    for given in point.subject.in_args:
        noise = torch.randn(
            (_BATCH, *given.tensor.shape), generator=point.generator, dtype=torch.float64
        ).to(given.tensor)
        step = torch.arange(_BATCH).to(noise).reshape(-1, *(1,) * given.tensor.dim())
        lanes.append(given.tensor.detach() + 0.01 * given.scale * step * noise.clamp(-2, 2))
    return lanes


def _cotangents(point: Point) -> Tensor:
    drawn = torch.randn(_BATCH, point.z.numel(), generator=point.generator, dtype=torch.float64)
    return drawn.to(point.z)


def _looped(subject: Subject, stacked: Sequence[Tensor], W: Tensor) -> _Batch:
    values, gradients = [], []
    captured = [i.tensor for i in subject.captured]
    shared = [torch.zeros_like(t) for t in captured]
    for lane in range(len(W)):
        with torch.enable_grad():
            free = [t[lane].clone().requires_grad_() for t in stacked]
            y = subject.value(free)
            found = slopes((W[lane] * y).sum(), [*free, *captured])
        values.append(y.detach())
        gradients.append(found[: len(free)])
        shared = [s + g for s, g in zip(shared, found[len(free) :], strict=True)]
    columns = [torch.stack(column) for column in zip(*gradients, strict=True)]
    return _Batch(torch.stack(values), columns, columns, shared)


def _batched(subject: Subject, stacked: Sequence[Tensor], W: Tensor) -> _Batch:
    captured = [i.tensor for i in subject.captured]
    places = tuple(range(1, 1 + len(stacked)))

    def weighed(w: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        y = subject.value(tensors)
        return (w * y).sum(), y

    pulled = torch.func.vmap(torch.func.grad(weighed, argnums=places, has_aux=True))
    inner, values = pulled(W, *(t.clone() for t in stacked))
    with torch.enable_grad():
        free = [t.clone().requires_grad_() for t in stacked]
        y = torch.func.vmap(lambda *t: subject.value(t))(*free)
        found = slopes((W * y).sum(), [*free, *captured])
    return _Batch(
        values.detach(), [g.detach() for g in inner], found[: len(free)], found[len(free) :]
    )


def _vmap_forward(point: Point, stacked: Sequence[Tensor]) -> Entry:
    subject = point.subject
    moved = [
        torch.randn(t.shape, generator=point.generator, dtype=torch.float64).to(t) * i.scale
        for t, i in zip(stacked, subject.in_args, strict=True)
    ]

    def push(tensors: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
        return torch.func.jvp(lambda *t: subject.value(t), tuple(tensors), tuple(tangents))[1]

    try:
        expected = torch.stack(
            [push([t[k] for t in stacked], [u[k] for u in moved]) for k in range(_BATCH)]
        ).detach()
        found = torch.func.vmap(push)(list(stacked), moved).detach()
    except Exception as error:
        return explain_exception("vmap of forward", "args", error, point)
    tolerance = _slope_tolerance(point, expected)
    return _compare("vmap of forward", "args", found, expected, tolerance, Cause("", ""))


def _compare(
    check: str, of: str, found: Tensor, expected: Tensor, tolerance: float, cause: Cause
) -> Entry:
    error = float((found - expected).abs().max()) if expected.numel() else 0.0
    if error <= tolerance:
        return Entry(check, of, "ok", error, tolerance)
    if not cause.cause:
        cause = Cause(
            "a lane under vmap differs from the same problem alone",
            "look for an operation that treats the batch as one problem: a norm, a stopping "
            "criterion, or a linear solve over all lanes",
        )
    return Entry(check, of, "failed", error, tolerance, cause.cause, cause.change)


def _agree(a: Tensor, b: Tensor, expected: Tensor) -> bool:
    return float((a - b).abs().max()) <= 0.05 * float((a - expected).abs().max())


def _mixed(
    subject: Subject,
    stacked: Sequence[Tensor],
    W: Tensor,
    place: int,
    found: Tensor,
    expected: Tensor,
) -> Cause:
    """Tell whether the gradients are those of cotangents that went to other lanes too."""
    for other in (W + W.roll(1, 0), W + W.roll(-1, 0), W.sum(0).expand_as(W)):
        if _agree(found, _looped(subject, stacked, other).gradients[place], expected):
            return MIXED
    if _agree(found, expected / len(W), expected):
        return AVERAGED
    return Cause("", "")


def _of_shared(name: str, found: Tensor, expected: Tensor) -> Cause:
    if not bool((found != 0).any()):
        return Cause(
            f"captured tensor: {name} gets no gradient under vmap",
            "pass the tensor in args, or let the layer's rule take it as an input",
        )
    return AVERAGED if _agree(found, expected / _BATCH, expected) else Cause("", "")


def check_native_lanes(point: Point) -> list[Entry]:
    """Change one lane of ``batch_dims``, and see the others' values and gradients unchanged."""
    subject = point.subject
    if subject.batch_dims == 0 or subject.start is None:
        return []
    index = subject.lane_index
    entries = _apart(point, index)
    if entries and entries[0].result == "failed":
        return entries
    carrying = [k for k, given in enumerate(subject.in_args) if given.lanes]
    if len(index) < 2 or not carrying:
        why = "one lane alone" if len(index) < 2 else "in_dims names no args that carry lanes"
        return [*entries, Entry("lanes", "batch_dims", "skipped", cause=why)]
    changed = subject.arguments()
    first = (0,) * subject.batch_dims
    for k in carrying:
        changed[k][first] += 0.02 * subject.in_args[k].scale[first]
    w = torch.randn(point.z.numel(), generator=point.generator, dtype=torch.float64).to(point.z)
    w[index[0]] = 0.0
    try:
        before = _values_and_slopes(subject, subject.arguments(), w)
        after = _values_and_slopes(subject, changed, w)
    except Exception as error:
        return [explain_exception("lanes", "batch_dims", error, point)]
    others = index[1:].reshape(-1)
    rough = 8 * point.accuracy
    entries.append(
        _leak("lane 0 changed", "others' values", before[0][others], after[0][others], rough)
    )
    for k in carrying:
        name = subject.in_args[k].name
        a, b = before[1][k], after[1][k]
        tolerance = _slope_tolerance(point, a)
        entries.append(
            _leak("lane 0 changed", name, _others(a, first), _others(b, first), tolerance)
        )
        own = a[first]
        entries.append(
            _leak(
                "lane 0 unused", name, torch.zeros_like(own), own, point.eps * float(a.abs().max())
            )
        )
    return entries


def _apart(point: Point, index: Tensor) -> list[Entry]:
    """Look whether the Jacobian has entries between lanes, where it was formed."""
    if point.exact is None:
        return []
    between = point.exact.A.clone()
    for lane in index:
        between[lane.unsqueeze(-1), lane] = 0.0
    zero = torch.zeros_like(between)
    return [_leak("lanes apart", "the Jacobian's blocks", zero, between, 0.0)]


def _others(tensor: Tensor, first: tuple[int, ...]) -> Tensor:
    rest = tensor.clone()
    rest[first] = 0.0
    return rest


def _values_and_slopes(
    subject: Subject, tensors: Sequence[Tensor], w: Tensor
) -> tuple[Tensor, list[Tensor]]:
    with torch.enable_grad():
        free = [t.clone().requires_grad_() for t in tensors]
        y = subject.value(free)
        wrt = [*free, *(i.tensor for i in subject.captured)]
        # zero cotangents keep their places: where selects, a product would spread NaN
        found = slopes(torch.where(w != 0, w * y, 0.0).sum(), wrt)
    return y.detach(), found


def _leak(check: str, of: str, a: Tensor, b: Tensor, tolerance: float) -> Entry:
    return _compare(check, of, b, a, tolerance, _LEAK)


def check_failed_lane(point: Point) -> list[Entry]:
    """Fill one lane with NaN under ``on_failure="mask"``; the others must not notice."""
    subject = point.subject.masked()
    if subject is None:
        why = "the layer chooses its own on_failure"
        return [Entry("NaN lane", "args", "skipped", cause=why)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if subject.batch_dims == 0:
            return _failed_vmap_lane(point, subject)
        return _failed_native_lane(point, subject)


def _failed_vmap_lane(point: Point, subject: Subject) -> list[Entry]:
    if not subject.in_args:
        return []
    stacked, W = _stack(point), _cotangents(point)
    poisoned = [t.clone() for t in stacked]
    for t in poisoned:
        t[-1] = float("nan")
    try:
        expected = _batched(subject, [t[:-1] for t in stacked], W[:-1])
        found = _batched(subject, poisoned, W)
    except Exception as error:
        return [explain_exception("NaN lane", "vmap", error, point)]
    rough = 8 * point.accuracy
    entries = [_leak("NaN lane", "others' values", expected.values, found.values[:-1], rough)]
    for given, a, b in zip(subject.in_args, expected.gradients, found.gradients, strict=True):
        entries.append(_leak("NaN lane", given.name, a, b[:-1], _slope_tolerance(point, a)))
    for given, a, b in zip(subject.captured, expected.shared, found.shared, strict=True):
        entries.append(_leak("NaN lane", given.name, a, b, _slope_tolerance(point, a)))
    return entries


def _failed_native_lane(point: Point, subject: Subject) -> list[Entry]:
    index = subject.lane_index
    entries = _apart(point, index)
    if entries and entries[0].result == "failed":
        return entries
    carrying = [k for k, given in enumerate(subject.in_args) if given.lanes]
    if len(index) < 2 or not carrying or not subject.separable:
        why = "needs in_dims, two lanes, and an argument that carries them"
        return [Entry("NaN lane", "batch_dims", "skipped", cause=why)]
    first = (0,) * subject.batch_dims
    poisoned = subject.arguments()
    for k in carrying:
        poisoned[k][first] = float("nan")
    w = torch.randn(point.z.numel(), generator=point.generator, dtype=torch.float64).to(point.z)
    unused = w.clone()
    unused[index[0]] = 0.0
    try:
        expected = _values_and_slopes(subject, subject.arguments(), unused)
        found = _values_and_slopes(subject, poisoned, w)
    except Exception as error:
        return [explain_exception("NaN lane", "batch_dims", error, point)]
    others = index[1:].reshape(-1)
    rough = 8 * point.accuracy
    entries = [_leak("NaN lane", "others' values", expected[0][others], found[0][others], rough)]
    for k, given in enumerate(subject.inputs):
        a, b = expected[1][k], found[1][k]
        if given.lanes:
            a, b = _others(a, first), _others(b, first)
        entries.append(_leak("NaN lane", given.name, a, b, _slope_tolerance(point, a)))
    return entries
