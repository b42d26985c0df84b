"""The curvature of an objective where a solve ends: that of a minimum is negative nowhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, divide, pick
from implicit_solvers.examination import Examination, by_newton, roundings
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.cg import CG, CGState
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from implicit_solvers.rounding import patterns
from implicit_solvers.solution import Status
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.tolerance import rms

__all__ = ["CurvedCG", "by_cholesky", "by_conjugate_gradients", "eigenvalues", "unscaled"]

_KICK, _FORCING, _PRODUCTS = 0.1, 0.1, 60


def by_cholesky(problem: Any, z: Tensor, direct: Any) -> Examination:
    """Examine points by the factors of the Hessian, and its curvature by Cholesky's.

    Where that breaks down, an eigenvalue below ``-sqrt(eps)`` times the largest is negative.
    """
    seen = by_newton(problem, z, direct)
    if seen.jacobian.matrices is None:
        return seen._replace(kick=by_conjugate_gradients(problem, z).kick)
    H, _ = unscaled(seen.jacobian.matrices)
    bends = torch.linalg.cholesky_ex(H).info != 0
    (down,) = renew(None, bends, (torch.zeros_like(z),), _most_negative, H, seen.residual)
    return seen._replace(kick=_kick(problem, z, down))


def unscaled(H: Tensor) -> tuple[Tensor, Tensor]:
    """Return matrices over their largest entries, and these ``(N, 1, 1)``; 1 where all are zero."""
    size = H.abs().amax((-2, -1), keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    return H / size, size


def eigenvalues(H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return eigenvalues and vectors, and ``sqrt(eps)`` times the largest; of 0 if not finite."""
    finite = torch.isfinite(H).flatten(1).all(-1)
    values, vectors = torch.linalg.eigh(pick(finite, H, torch.zeros_like(H)))
    return values, vectors, torch.finfo(H.dtype).eps ** 0.5 * values.abs().amax(-1)


def _most_negative(H: Tensor, gradient: Tensor) -> tuple[Tensor]:
    """Return the eigenvectors of negative curvature that lead down, and zero where there is none."""
    values, vectors, little = eigenvalues(H)
    down = _downhill(vectors[..., 0], gradient)
    return (pick(values[:, 0] < -little, down, torch.zeros_like(down)),)


def _downhill(direction: Tensor, gradient: Tensor) -> Tensor:
    return pick((direction * gradient).sum(-1) > 0, -direction, direction)


def _kick(problem: Any, z: Tensor, down: Tensor) -> Tensor:
    """Return a tenth of the size of ``z`` along a direction, or zero."""
    size, full = rms(down), problem.largest(z)
    length = _KICK * torch.where(full > 0, full, 1.0) / torch.where(size > 0, size, 1.0)
    return length.unsqueeze(-1) * down


def by_conjugate_gradients(problem: Any, z: Tensor) -> Examination:
    """Examine points by a few products with the Hessian: from the gradient, and from rounding."""
    n, eps = z.shape[-1], torch.finfo(z.dtype).eps
    F, A = problem.residual(z), problem.linearize(z)
    noise, _, probe = roundings(problem, z, F, A)
    rough = rms(noise) > 0
    b = torch.cat([F, pick(rough, noise, patterns(z)[0].expand_as(z))])
    size = rms(b)
    b = b / torch.where(size > 0, size, 1.0).unsqueeze(-1)
    twice = replace(A, columns=2)
    forced = ForcedProblem(LinearProblem(twice, b), torch.full_like(size, _FORCING))
    out = iterate(_Bend(max_steps=min(_PRODUCTS, 2 * n)), forced, torch.zeros_like(b))
    image = twice.mv(out.z)
    bent = (out.z * image).sum(-1) < -(eps**0.5) * n * rms(out.z) * rms(image)
    bent = (out.status == int(Status.INDEFINITE)) & bent
    (step, other), (first, second) = out.z.chunk(2), bent.chunk(2)
    down = _downhill(pick(first, step, pick(second, other, torch.zeros_like(z))), F)
    probe = rms(other).unsqueeze(-1) * probe
    step, other = (out.z * size.unsqueeze(-1)).chunk(2)
    other = pick(rough, other, torch.zeros_like(other))
    return Examination(F, step, (other, probe), (), A, _kick(problem, z, down))


@dataclass(frozen=True)
class CurvedCG(CG):
    """Conjugate gradients whose last step may be along a direction of nonpositive curvature."""

    monotone: ClassVar[bool] = True

    def reach(self, alpha: Any, bad: Mask, rho: Any, curvature: Any) -> Any:
        """Go by the absolute value of the curvature; the whole direction where that is zero."""
        return pick(bad, pick(curvature < 0, divide(rho, abs(curvature)), 1.0), alpha)


class _Bend(CurvedCG):
    """Conjugate gradients that end with the direction of nonpositive curvature alone."""

    def step(self, problem: LinearProblem, state: CGState) -> CGState:
        """Return the last step where it ends so."""
        new = super().step(problem, state)
        return new._replace(z=pick(new.flag != 0, new.z - state.z, new.z))
