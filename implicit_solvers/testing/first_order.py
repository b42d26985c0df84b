"""First derivatives, in both modes, against differences of the solution. It knows no rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from implicit_solvers.monitoring import Monitor, SolveRecord, monitor
from implicit_solvers.testing.causes import NONFINITE, Cause, most_likely, suspects
from implicit_solvers.testing.differences import (
    Difference,
    central_difference,
    is_kinked,
    noise_level,
)
from implicit_solvers.testing.partials import random_directions
from implicit_solvers.testing.point import Point
from implicit_solvers.testing.report import Entry
from implicit_solvers.testing.statement import slopes

__all__ = ["Truth", "check_forward", "check_reverse", "explain_exception", "measure"]

_DIRECTIONS, _COTANGENTS = 4, 4
_LOST = Cause(
    "the solution could not be differenced: it was not found for nearby values, or jumps",
    "start nearer to the solution, or choose a more robust solver",
)
_ALONE = Cause(
    "the equation's own derivative is wrong: see 'equation alone'", "mend the equation first"
)


@dataclass(frozen=True)
class Truth:
    """What the derivative with respect to one input is, along directions ``V (p, l)``.

    ``V`` has the size of the input; ``D (m, l)`` is known to ``uncertainty``; ``slack`` is what
    the residual at the point returned may change.
    """

    position: int
    V: Tensor
    D: Tensor
    uncertainty: float
    slack: float

    def tolerance(self, point: Point) -> float:
        """Return how far a derivative may be from ``D``, entry by entry."""
        size = float(self.D.abs().max()) if self.D.numel() else 0.0
        # an adjoint's linear solve is asked for a residual of eps**(2/3)
        solve = 4 * point.eps ** (2 / 3) * min(max(point.condition, 1.0), 1e3) * size
        return 4 * self.uncertainty + solve + 4 * self.slack + 16 * point.eps * _largest(point.z)


def measure(point: Point, converged: bool) -> list[Truth]:
    """Difference the solution with respect to each input."""
    return [
        _measure(point, position, converged)
        for position, given in enumerate(point.subject.inputs)
        if given.tensor.numel()
    ]


def _measure(point: Point, position: int, converged: bool) -> Truth:
    given = point.subject.inputs[position]
    like = given.tensor
    V = random_directions(like.numel(), _DIRECTIONS, like, point.generator)
    if V.shape[0] > _DIRECTIONS:
        V = V[:, :2]
    found: list[Difference] = []
    with monitor() as log:
        for column in V.mT:
            direction = column.reshape(like.shape)

            @cache
            def along(t: float, direction: Tensor = direction) -> Tensor:
                return point.along(position, direction, t)

            # where the equation is not known, the values are as accurate as the layer makes them
            settled = point.exact is not None
            noise = point.settled if settled else noise_level(along, dtype=point.z.dtype)
            found.append(central_difference(along, dtype=point.z.dtype, noise=noise))
    D = torch.stack([f.value for f in found], dim=-1)
    V = V * given.scale.reshape(-1, 1)
    slack = 0.0
    if converged and point.exact is not None and point.given is not None:
        slack = _largest(
            _formula(point.exact.A, point.exact.B[position] @ V)
            - _formula(point.given.A, point.given.B[position] @ V)
        )
        slack = slack if slack < float("inf") else 0.0
    elif point.exact is None:
        slack = max((_drift(record) for record in log.records), default=0.0)
    return Truth(position, V, D, max(f.uncertainty for f in found), slack)


def _drift(record: SolveRecord) -> float:
    """Return how far the derivative of an iterate may be from that of the solution.

    With ``k`` iterations at a rate ``c``, the iterate's error is ``c^k``, and its derivative
    ``k c^(k-1) dc``. Source: Gilbert, "Automatic differentiation and iterative processes" (1992).
    """
    error = torch.where(record.error < torch.inf, record.error, record.residual)
    drifts = (record.iterations * error).nan_to_num(0.0, 0.0, 0.0)
    return _largest(drifts)


def _formula(A: Tensor, BV: Tensor) -> Tensor:
    lu, pivots, _ = torch.linalg.lu_factor_ex(A)
    return torch.linalg.lu_solve(lu, pivots, BV)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def check_reverse(point: Point, truths: Sequence[Truth]) -> list[Entry]:
    """Compare gradients by ``torch.autograd.grad`` with differences, along random cotangents."""
    subject = point.subject
    m = point.z.numel()
    W = random_directions(m, _COTANGENTS, point.z, point.generator).mT
    if W.shape[1] > _COTANGENTS:
        W = W / m**0.5
    try:
        with monitor() as log, torch.enable_grad():
            free = [t.requires_grad_() for t in subject.arguments()]
            wrt = [*free, *(i.tensor for i in subject.captured)]
            y = subject.value(free)
            rows = [slopes((w * y).sum(), wrt, retain=True) for w in W]
    except Exception as error:
        return [explain_exception("reverse mode", "all inputs", error, point)]
    entries = []
    for truth in truths:
        G = torch.stack([row[truth.position].reshape(-1) for row in rows])
        entries.append(_judge(point, truth, "reverse mode", G @ truth.V, W @ truth.D, W, log))
    return entries


def check_forward(point: Point, truths: Sequence[Truth]) -> list[Entry]:
    """Compare ``torch.func.jvp`` with differences, one argument at a time."""
    entries = []
    for truth in truths:
        given = point.subject.inputs[truth.position]
        if given.captured:
            continue
        try:
            with monitor() as log:
                columns = [_push(point, truth.position, column) for column in truth.V.mT]
        except Exception as error:
            entries.append(explain_exception("forward mode", given.name, error, point))
            continue
        found = torch.stack(columns, dim=-1)
        entries.append(_judge(point, truth, "forward mode", found, truth.D, None, log))
    if point.subject.captured:
        why = "a tangent cannot be put on a captured tensor: pass it in args to have one"
        entries.append(Entry("forward mode", "captured tensors", "skipped", cause=why))
    return entries


def _push(point: Point, position: int, direction: Tensor) -> Tensor:
    tensors = point.subject.arguments()

    def value(moving: Tensor) -> Tensor:
        return point.subject.value([*tensors[:position], moving, *tensors[position + 1 :]])

    primal = tensors[position]
    return torch.func.jvp(value, (primal,), (direction.reshape(primal.shape),))[1].detach()


def _judge(
    point: Point,
    truth: Truth,
    check: str,
    observed: Tensor,
    expected: Tensor,
    W: Tensor | None,
    log: Monitor,
) -> Entry:
    given = point.subject.inputs[truth.position]
    weight = 1.0 if W is None else float(W.abs().sum(-1).max())
    tolerance = truth.tolerance(point) * weight
    error = _largest(observed - expected)
    entry = Entry(check, given.name, "ok", error, tolerance)
    wrong = [name for name in ("z", given.name) if name in point.broken]
    if not wrong and not bool(observed.isfinite().all()):
        return replace(entry, result="failed", cause=NONFINITE.cause, change=NONFINITE.change)
    if not truth.uncertainty < float("inf"):
        return Entry(check, given.name, "warning", cause=_LOST.cause, change=_LOST.change)
    if error <= tolerance:
        size = max(_largest(observed), _largest(expected))
        natural = weight * point.eps ** (1 / 3) * (1 + _largest(point.z))
        if tolerance > 0.1 * size and tolerance > natural:
            return replace(
                entry,
                result="warning",
                cause="the differences are too noisy to judge by: the solution is not smooth at "
                "the scale of the steps, or not accurate enough",
                change="tighten the solver's tolerances, use double=True, or check elsewhere",
            )
        return entry
    if wrong:
        return replace(entry, result="failed", cause=_ALONE.cause, change=_ALONE.change)
    mode = "forward" if W is None else "reverse"
    found = suspects(point, truth.position, truth.V, truth.D, mode)
    likely = most_likely(observed, expected, tolerance, found, W)
    cause = _remaining(point, truth, log) if likely is None else likely
    return replace(entry, result="failed", cause=cause.cause, change=cause.change)


def _remaining(point: Point, truth: Truth, log: Monitor) -> Cause:
    """Return the likely cause of a derivative that is like nothing known."""
    given = point.subject.inputs[truth.position]
    direction = truth.V[:, 0].reshape(given.tensor.shape) / given.scale
    if is_kinked(lambda t: point.along(truth.position, direction, t), dtype=point.z.dtype):
        return Cause(
            "non-differentiable point: the one-sided derivatives of the solution differ here",
            "use a smooth equation (softplus for relu, a smooth norm for abs), or check elsewhere",
        )
    rough = [r for r in log.adjoints() if float(r.residual.max()) > point.eps**0.5]
    at = point.exact
    skew = 0.0 if at is None else _largest(at.A - at.A.mT) / max(_largest(at.A), 1e-300)
    if rough:
        last = rough[-1]
        text = (
            f"the adjoint's linear solve ({last.solver}, {int(last.iterations.max())} steps) ended "
            f"with the relative residual {float(last.residual.max()):.1e}"
        )
        if last.solver == "CG" and skew > point.eps**0.5:
            text = f"adjoint solver unfit for a nonsymmetric operator: {text}"
        return Cause(text, "give it more steps, a tolerance, a preconditioner, or use LU()")
    if at is not None and point.condition > point.eps**-0.5:
        return Cause(
            "nearly singular Jacobian: the derivative is lost in rounding",
            "scale the problem, regularize it, or use float64",
        )
    if skew > point.eps**0.5:
        return Cause(
            "no known signature; the Jacobian is not symmetric: is the adjoint's linear solver fit "
            "for a nonsymmetric operator, and does it use the transpose?",
            "use LU() or GMRES()",
        )
    return Cause(
        "no known signature: the derivative is not that of the solution's values",
        "see whether the layer's rule and its forward pass state the same equation",
    )


def explain_exception(check: str, of: str, error: Exception, point: Point | None = None) -> Entry:
    """Return the entry of a comparison that could not be made because something raised."""
    text = " ".join(str(error).split())
    most = 130 if text.startswith("vmap: It looks like you're either") else 400
    text = text if len(text) <= most else f"{text[:most]}…"
    name = f"{type(error).__name__}: {text}"
    change = "see the message"
    if "symmetric operator" in text:
        cause = f"adjoint solver unfit for a nonsymmetric operator: {name}"
        change = "use LU() or GMRES()"
    elif "SINGULAR" in text or "singular" in text:
        cause = f"singular Jacobian: {name}"
        change = "regularize the equation, or move away from the singular point"
    elif "INDEFINITE" in text:
        cause = f"adjoint solver unfit for an indefinite or nonsymmetric operator: {name}"
        change = "use LU() or GMRES()"
    elif ".item()" in text or "data-dependent control flow" in text:
        cause = f"a tensor's value is read as a Python number (.item(), float(), if): {name}"
        change = "compute with the tensor itself; torch.where instead of if"
    elif "inplace" in text or "in-place" in text or "in_place" in text:
        cause = f"in-place write: {name}"
        change = "compute a new tensor (torch.where, torch.stack, torch.cat)"
    elif type(error).__name__ == "ConvergenceError":
        cause = f"not converged: {name}"
    else:
        cause = f"it raised {name}"
    return Entry(check, of, "failed", cause=cause, change=change)
