"""Why a first derivative is wrong: each class of error predicts what would be seen.

At a solution ``dz = -A^-1 B v``. A wrong rule leaves a signature: without the transpose, reverse
mode gives ``-A^-T B v``; with the sign dropped, ``A^-1 B v``; and so on. The class whose prediction
agrees with what was observed is the likely cause. It knows no code, only numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from implicit_solvers.testing.point import Point

__all__ = ["NONFINITE", "Cause", "Suspect", "most_likely", "suspects"]


class Cause(NamedTuple):
    """What went wrong, in words, and what to change."""

    cause: str
    change: str


class Suspect(NamedTuple):
    """A class of errors, and the derivative ``(m, l)`` that it would give along ``l`` directions.

    ``mixing (m, m)``, if any, acts on the cotangents in reverse mode.
    """

    cause: Cause
    derivative: Tensor


NONFINITE = Cause(
    "the derivative is not finite (the square root or norm of zero, a division by zero, zero times "
    "infinity, an overflow)",
    "see where the rule makes NaN or inf, or check at another point",
)
SIGN = Cause(
    "the sign is dropped: the derivative is the negative of what it should be",
    "dz = -A^-1 B dtheta: the minus belongs to the right-hand side of the linear solve",
)
TRANSPOSED = Cause(
    "reverse and forward mode disagree by a transpose: a linear solve uses the Jacobian where it "
    "needs its transpose, or an adjoint solver made for symmetric operators is unfit for this "
    "nonsymmetric one",
    "reverse mode solves with A^T, forward mode with A; use LU() or GMRES() for nonsymmetric A",
)
SYMMETRIZED = Cause(
    "adjoint solver unfit for a nonsymmetric operator: one triangle of the Jacobian, or its "
    "symmetric part, is taken for the whole",
    "use LU() or GMRES(); Cholesky() and CG() need symmetric operators",
)
STALE = Cause(
    "stale factorization: the derivative uses the Jacobian of an earlier iterate instead of that "
    "at the solution",
    "factor anew at the solution, or refine with the old factors until the residual of the "
    "linear solve is small",
)
IDENTITY = Cause(
    "the inverse of the Jacobian is left out: the derivative is that of one step (Jacobian-free "
    "backpropagation), biased",
    "use ImplicitAdjoint(), or accept the bias knowingly",
)
GAUSS_NEWTON = Cause(
    "Gauss-Newton instead of the full Hessian: J^T J leaves out sum_i r_i Hess(r_i), which "
    "matters where residuals are not zero",
    "differentiate J^T r = 0 with its whole Jacobian",
)
ELSEWHERE = Cause(
    "not converged: the derivative is right for the point returned, and that is no solution",
    "tighten the solver's tolerances, or allow more steps",
)
AVERAGED = Cause(
    "averaged over the lanes: the gradients of shared tensors are means, and should be sums",
    "sum the lanes' contributions; a mean belongs to the loss",
)
MIXED = Cause(
    "lanes leak: one lane's cotangent (or tangent) is added to another's",
    "keep the lane dimension apart in the linear solve: index it, do not sum or roll over it",
)


def zero(name: str, captured: bool, mode: str) -> Cause:
    """Return the cause of a derivative that vanishes."""
    if captured:
        return Cause(
            f"captured tensor: {name} gets no gradient, and the solution depends on it",
            "pass the tensor in args, or let the layer's rule take it as an input",
        )
    if mode == "forward":
        return Cause(
            f"forward mode returns zero for {name}: the layer drops tangents",
            "write the rule's jvp: solve A dz = -B dtheta",
        )
    return Cause(
        f"reverse mode returns zero for {name}, and the solution depends on it: the graph is cut "
        "(a detach(), .item(), no_grad or numpy between the tensor and what is returned)",
        "return the solution through attach(), root(), or a rule of your own",
    )


def suspects(point: Point, position: int, V: Tensor, truth: Tensor, mode: str) -> Iterator[Suspect]:
    """Yield what each class of errors would give along the directions ``V (p, l)``."""
    given = point.subject.inputs[position]
    yield Suspect(zero(given.name, given.captured, mode), torch.zeros_like(truth))
    yield Suspect(SIGN, -truth)
    yield from _of_lanes(point, position, truth)
    at, statement = point.exact, point.subject.statement
    if at is None or point.given is None or statement is None:
        yield from _square_transpose(truth, V)
        return
    BV = at.B[position] @ V
    yield Suspect(ELSEWHERE, -_solve(point.given.A, point.given.B[position] @ V))
    if statement.kind == "least_squares":
        J2 = statement.gauss_newton(point.z, point.subject.arguments())
        yield Suspect(GAUSS_NEWTON, -_solve(J2, BV))
    if not torch.equal(at.A, at.A.mT):
        yield Suspect(TRANSPOSED, -_solve(at.A.mT, BV))
        lower, upper = at.A.tril(), at.A.triu()
        for S in (
            lower + lower.tril(-1).mT,
            upper + upper.triu(1).mT,
            0.5 * (at.A + at.A.mT),
        ):
            yield Suspect(SYMMETRIZED, -_solve(S, BV))
    for A in _earlier_jacobians(point):
        yield Suspect(STALE, -_solve(A, BV))
    yield Suspect(IDENTITY, -BV)
    term = total = -BV
    for k in range(2, 33):
        term = term - at.A @ term
        total = total + term
        cause = Cause(
            f"a truncated Neumann series of {k} terms instead of the inverse Jacobian: biased",
            "use ImplicitAdjoint(), or more terms",
        )
        yield Suspect(cause, total)


def _solve(A: Tensor, b: Tensor) -> Tensor:
    lu, pivots, _ = torch.linalg.lu_factor_ex(A)
    return torch.linalg.lu_solve(lu, pivots, b)


def _of_lanes(point: Point, position: int, truth: Tensor) -> Iterator[Suspect]:
    subject = point.subject
    if subject.batch_dims == 0 or subject.start is None:
        return
    index = subject.lane_index
    lanes = len(index)
    if lanes < 2:
        return
    if not subject.inputs[position].lanes:
        yield Suspect(AVERAGED, truth / lanes)
    for shift in (1, -1):
        mixed = truth.clone()
        mixed[index] = truth[index] + truth[index.roll(shift, 0)]
        yield Suspect(MIXED, mixed)
    summed = truth.clone()
    summed[index] = truth[index].sum(0, keepdim=True).expand(lanes, -1, -1).contiguous()
    yield Suspect(MIXED, summed)


def _square_transpose(truth: Tensor, V: Tensor) -> Iterator[Suspect]:
    """Yield the transpose of a square Jacobian, where all of it is known."""
    m, p = truth.shape[0], V.shape[0]
    if m == p == V.shape[1] and not torch.equal(truth, truth.mT):
        yield Suspect(TRANSPOSED, _solve(V.mT, truth.mT) @ V)


def _earlier_jacobians(point: Point) -> Iterator[Tensor]:
    """Yield the Jacobians at the start and at Newton's iterates."""
    subject, statement = point.subject, point.subject.statement
    if subject.start is None or subject.resolve is None:
        return
    assert statement is not None and point.exact is not None
    tensors = subject.arguments()
    z = statement.structure.ravel(subject.start).detach()
    for _ in range(12):
        at = statement.linearize(z, tensors)
        if not bool(torch.isfinite(at.A).all()) or torch.equal(at.A, point.exact.A):
            return
        yield at.A
        step = _solve(at.A, at.F.unsqueeze(-1)).squeeze(-1)
        if not bool(torch.isfinite(step).all()):
            return
        z = z - step


def most_likely(
    observed: Tensor,
    expected: Tensor,
    tolerance: float,
    found: Iterator[Suspect],
    weights: Tensor | None,
) -> Cause | None:
    """Return the class of errors whose prediction agrees with what was observed, if one does.

    ``weights (k, m)`` are the cotangents; None in forward mode.
    """
    distance = float((observed - expected).abs().max())
    best: tuple[float, Cause] | None = None
    for cause, derivative in found:
        predicted = derivative if weights is None else weights @ derivative
        off = float((observed - predicted).abs().max())
        if off <= max(tolerance, 0.05 * distance) and (best is None or off < 0.2 * best[0]):
            best = (off, cause)
    if best is not None:
        return best[1]
    factor = float((observed * expected).sum() / (expected**2).sum().clamp_min(1e-300))
    if float((observed - factor * expected).abs().max()) <= max(tolerance, 0.01 * distance):
        return Cause(
            f"the derivative is {factor:.4g} times what it should be",
            "look for a factor that was left out, or a mean that should be a sum",
        )
    return None
