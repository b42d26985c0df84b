"""The user's function on its own: what it writes, and whether autograd sees what it computes.

It knows no solution's derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from implicit_solvers.capture import evaluate_connected
from implicit_solvers.testing.captured import placed
from implicit_solvers.testing.differences import central_difference, is_kinked
from implicit_solvers.testing.report import Entry
from implicit_solvers.testing.statement import Statement, slopes
from implicit_solvers.testing.subject import Input, Subject

__all__ = ["check_partials", "check_purity", "random_directions"]

_CUTS = "a detach() or .item() (or float(), .data, .numpy(), torch.tensor(), no_grad)"
_NOUNS = {
    "root": "the residual",
    "fixed_point": "the map",
    "minimize": "the objective",
    "least_squares": "the vector of residuals",
}


def random_directions(size: int, count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``(size, count)`` directions: the unit vectors if few, else random numbers.

    They are normal, and at most 1.5, so that a step of a tenth does not change a sign.
    """
    if size <= count:
        return torch.eye(size, dtype=like.dtype, device=like.device)
    drawn = torch.randn(size, count, generator=generator, dtype=torch.float64)
    return drawn.clamp(-1.5, 1.5).to(like)


def check_purity(subject: Subject, z: Tensor) -> list[Entry]:
    """Tell whether the function writes into what it is given, or into what it captures."""
    statement = subject.statement
    assert statement is not None
    given = [z.detach().clone(), *subject.arguments()]
    held = [t.data for t in subject.known]
    names = ["z", *(i.name for i in subject.in_args)]
    names += [f"captured tensor {k}" for k in range(len(held))]
    known = {id(i.tensor): i.name for i in subject.captured}
    for k, tensor in enumerate(subject.known):
        names[len(given) + k] = known.get(id(tensor), names[len(given) + k])
    before = [t.clone() for t in (*given, *held)]
    with torch.no_grad():
        statement.evaluate(given[0], given[1:])
    entries = []
    for name, old, new in zip(names, before, (*given, *held), strict=True):
        if not torch.equal(old.nan_to_num(), new.nan_to_num()):
            entries.append(
                Entry(
                    "in-place writes",
                    name,
                    "failed",
                    cause=f"the function writes into {name} in place: every evaluation changes "
                    "the tensor that it was given, for the solver and for autograd",
                    change="compute a new tensor (z = z + 1 instead of z += 1; torch.where, "
                    "torch.stack or torch.cat instead of z[i] = ...)",
                )
            )
            new.copy_(old)
    return entries or [Entry("in-place writes", "all tensors", "ok")]


def check_partials(subject: Subject, z: Tensor, generator: torch.Generator) -> list[Entry]:
    """Compare the function's own derivatives with its differences, at ``z``, without a solve."""
    statement = subject.statement
    assert statement is not None
    unknown = Input("z", z.detach())
    return [
        _partial(subject, statement, unknown, position, given, generator)
        for position, given in enumerate((unknown, *subject.inputs))
        if given.tensor.numel()
    ]


def _partial(
    subject: Subject,
    statement: Statement,
    unknown: Input,
    position: int,
    given: Input,
    generator: torch.Generator,
) -> Entry:
    tensors: list[Tensor] = [unknown.tensor, *subject.arguments()]
    captured = [i.tensor for i in subject.captured]

    def evaluate(values: Sequence[Tensor]) -> Tensor:
        return statement.evaluate(values[0], values[1:])

    with torch.enable_grad():
        free = [t.clone().requires_grad_() for t in tensors]
        out, read = evaluate_connected(lambda *v: evaluate(v), free, "the function", None)
        wrt = [*free, *captured][position]
        cotangents = random_directions(out.numel(), 3, out, generator)
        rows = [slopes((w * out).sum(), [wrt], retain=True)[0].reshape(-1) for w in cotangents.mT]
    gradient = torch.stack(rows)
    direction = random_directions(wrt.numel(), 1, wrt, generator).reshape(wrt.shape)
    base = wrt.detach().clone()

    def along(t: float) -> Tensor:
        moved = base + t * given.scale * direction
        with torch.no_grad():
            if given.captured:
                with placed([given.tensor], [moved]):
                    return evaluate(tensors).clone()
            return evaluate([*tensors[:position], moved, *tensors[position + 1 :]]).clone()

    eps = torch.finfo(out.dtype).eps
    difference = central_difference(along, dtype=out.dtype)
    expected = cotangents.mT @ difference.value
    found = gradient @ (given.scale * direction).reshape(-1)
    error = float((found - expected).abs().max())
    size = float(difference.value.abs().max())
    weight = float(cotangents.abs().sum(0).max())
    tolerance = 4 * weight * difference.uncertainty + 1e3 * eps * float(expected.abs().max())
    what = f"d{'f' if statement.kind != 'fixed_point' else 'g'}/d {given.name}"
    if error <= tolerance < float("inf"):
        return Entry("equation alone", what, "ok", error, tolerance)
    if not difference.uncertainty < float("inf") and bool(torch.isfinite(gradient).all()):
        cause = "the function could not be differenced: it has no finite value nearby"
        return Entry("equation alone", what, "warning", cause=cause, change="check elsewhere")
    cuts = " and ".join(read.read_out) or _CUTS
    cause, change = _cause(statement, given.name, gradient, along, size, out.dtype, cuts)
    return Entry("equation alone", what, "failed", error, tolerance, cause, change)


def _cause(
    statement: Statement,
    name: str,
    gradient: Tensor,
    along: object,
    size: float,
    dtype: torch.dtype,
    cuts: str,
) -> tuple[str, str]:
    noun = _NOUNS[statement.kind]
    if not bool((gradient != 0).any()):
        return (
            f"{noun} depends on {name} but the derivative with respect to it is zero: {cuts} "
            "cuts it",
            "compute with the tensor itself, in torch operations",
        )
    if not bool(torch.isfinite(gradient).all()):
        return (
            f"non-differentiable point: the derivative of {noun} with respect to {name} is not "
            "finite (the square root or norm of zero, log of zero, a division by zero, or a "
            "torch.where whose other branch is not finite)",
            "give torch.where a harmless argument in the branch not taken, or keep away from the "
            "point",
        )
    if not callable(along) or is_kinked(along, dtype=dtype):
        return (
            f"non-differentiable point: the one-sided derivatives of {noun} with respect to "
            f"{name} differ here (abs, relu, max, clamp, a branch)",
            "use a smooth function, or check at another point",
        )
    return (
        f"the derivative of {noun} with respect to {name} is not that of its values (size "
        f"{size:.1e}): {cuts} cuts a part of it, or the function is not the same in every "
        "evaluation (dropout, batch normalization, random numbers)",
        "compute with the tensors themselves, in torch operations; switch modules to eval()",
    )
