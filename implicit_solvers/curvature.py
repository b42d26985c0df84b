"""The curvature of an objective where a solve ends: that of a minimum is negative nowhere.

It knows the objective at one point, not the way there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, along, divide, either, larger, no, nowhere, pick
from implicit_solvers.examination import Examination, by_newton, roundings
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.cg import CG, CGState, inner
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.problem import ForcedProblem, LinearProblem
from implicit_solvers.linear.superlu import factored, solved_lanes
from implicit_solvers.rounding import patterns
from implicit_solvers.solution import Status
from implicit_solvers.solver import DENSE_LIMIT, DirectSolver, Factors
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.tolerance import rms

__all__ = [
    "AmongFree",
    "Convex",
    "CurvedCG",
    "SparseConvex",
    "WithinCG",
    "among",
    "by_cholesky",
    "by_conjugate_gradients",
    "by_tangents",
    "downhill",
    "kick",
    "eigenvalues",
]

_KICK, _FORCING, _PRODUCTS, _CLEAR = 0.1, 0.1, 60, 0.05
_SHIFTS = 0.0, 1e-3, 1e-2, 1e-1, 1.001


def by_cholesky(problem: Any, z: Tensor, direct: Any) -> Examination:
    """Examine points by the factors of the Hessian, and its curvature by Cholesky's.

    Where that breaks down, an eigenvalue below ``-sqrt(eps)`` times the largest is negative.
    """
    seen = by_newton(problem, z, direct)
    formed, n = seen.jacobian.formed, z.shape[-1]
    if formed is None or (formed.dim() == 2 and n > DENSE_LIMIT):
        return seen._replace(kick=by_conjugate_gradients(problem, z).kick)
    H, _ = _unscaled(among(problem.free(z), seen.jacobian.dense()))
    bends = torch.linalg.cholesky_ex(H).info != 0
    down = _inflected(problem, z, seen)
    (down,) = renew(None, bends, (down,), _most_negative, H, seen.residual)
    return seen._replace(kick=kick(problem, z, down))


def by_tangents(problem: Any, z: Tensor, direct: Any, P: Tensor, step: Tensor) -> Examination:
    """Examine points by the factors of the Jacobian, and the curvature along what ``P`` lets move.

    That is ``(I - P) + step P^(1/2) H P^(1/2)``, with the derivative ``P`` of a proximal operator.
    Where it is negative, so is ``P (I - P) + step P H P``.
    """
    seen, H = by_newton(problem, z, direct), problem.linearize_slope(z).dense()
    W, _ = _unscaled(P - P @ P + step.unsqueeze(-1) * (P @ H @ P))
    little = torch.full_like(z, torch.finfo(z.dtype).eps ** 0.5)
    bends = torch.linalg.cholesky_ex(W + torch.diag_embed(little)).info != 0
    down = _inflected(problem, z, seen)
    (down,) = renew(None, bends, (down,), _most_negative_along, P, W, seen.residual)
    return seen._replace(kick=kick(problem, z, down))


def _most_negative_along(P: Tensor, W: Tensor, residual: Tensor) -> tuple[Tensor]:
    (down,) = _most_negative(W, residual)
    return (torch.bmm(P, down.unsqueeze(-1)).squeeze(-1),)


def _inflected(problem: Any, z: Tensor, seen: Examination) -> Tensor:
    """Return the direction down where it leads down beyond the minimum too, and else zero.

    At ``sqrt(eps)`` of the size of ``z`` the slope has turned, if rounding lets it be seen.
    """
    little, known = torch.finfo(z.dtype).eps ** 0.5, rms(torch.stack([seen.step, *seen.noise]))
    size, length = known[0], little * problem.largest(z)
    steps = (length / torch.where(size > 0, size, 1.0)).unsqueeze(-1)
    beyond = problem.residual(problem.within(z - steps * seen.step))
    clear = (size <= length) & (known[1:].amax(0) <= _CLEAR * length)
    goes_on = clear & ((beyond * seen.step).sum(-1) > 0)
    return pick(goes_on, -seen.step, torch.zeros_like(z))


def among(free: Tensor | None, H: Tensor) -> Tensor:
    """Return the Hessian among unknowns that are free; the others stand apart, like the largest."""
    if free is None:
        return H
    across = free.unsqueeze(-1) & free.unsqueeze(-2)
    H = torch.where(across, H, 0.0)
    return H + torch.diag_embed((~free).to(H.dtype)) * H.abs().amax((-2, -1), keepdim=True)


class AmongFree:
    """The Hessian among unknowns that are free, of vectors that are zero elsewhere."""

    symmetric: ClassVar[bool] = True

    def __init__(self, hessian: LaneMap, free: Tensor) -> None:
        self.hessian, self.free = hessian, free

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.hessian.separable

    def mv(self, v: Tensor) -> Tensor:
        """Return the product."""
        return torch.where(self.free, self.hessian.mv(v), 0.0)

    def to_compile(self) -> None:
        """Return None: steps on it are compiled with those of the outer solver only."""

    def aliased(self) -> AmongFree:
        """Return the map as the body of a loop in a graph has to see it."""
        return AmongFree(self.hessian.aliased(), self.free)

    def take(self, index: Tensor) -> AmongFree:
        """Return the map of some of the lanes."""
        return AmongFree(self.hessian.take(index), self.free[index])


def _unscaled(H: Tensor) -> tuple[Tensor, Tensor]:
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
    """Return eigenvectors of negative curvature that lead down; zero where there is none."""
    values, vectors, little = eigenvalues(H)
    down = downhill(vectors[..., 0], gradient)
    return (pick(values[:, 0] < -little, down, torch.zeros_like(down)),)


def downhill(direction: Tensor, gradient: Tensor) -> Tensor:
    """Return the direction, or its opposite, that does not lead up."""
    return pick((direction * gradient).sum(-1) > 0, -direction, direction)


def kick(problem: Any, z: Tensor, down: Tensor) -> Tensor:
    """Return a tenth of the size of ``z`` along a direction, or zero."""
    size, full = rms(down), problem.largest(z)
    length = _KICK * torch.where(full > 0, full, 1.0) / torch.where(size > 0, size, 1.0)
    return length.unsqueeze(-1) * down


class Convex(DirectSolver):
    """Cholesky factors of a symmetric matrix; where it is not positive definite, of its ``|A|``.

    That has the same eigenvectors, and the absolute values of the eigenvalues, at least
    ``sqrt(eps)`` times the largest of them. Source: Nocedal and Wright, "Numerical Optimization",
    section 3.4.
    """

    symmetric_only: ClassVar[bool] = True

    def factor_dense(self, matrix: Tensor) -> Factors:
        """Return the triangles, and the sizes of the matrices."""
        H, size = _unscaled(matrix)
        triangle, info = torch.linalg.cholesky_ex(H)
        return *renew(None, info != 0, (triangle,), _by_absolute_values, H), size

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``|A|^-1 b``."""
        triangle, size = factors
        return torch.cholesky_solve(b / size, triangle)

    def status(self, factors: Factors) -> Tensor:
        """Return NONFINITE where a matrix is not finite."""
        finite = torch.isfinite(factors[1]).flatten(1).all(-1)
        return torch.where(finite, 0, int(Status.NONFINITE))


class SparseConvex(DirectSolver):
    """Sparse factors of a symmetric matrix; where it is not positive definite, of ``A + t I``.

    Of ``t = |A| (0, 1/1000, 1/100, 1/10, 1)``, with the largest sum of a row as ``|A|``, it is the
    first for which all pivots on the diagonal are positive. Source: Nocedal and Wright, "Numerical
    Optimization", section 3.4.
    """

    symmetric_only: ClassVar[bool] = True
    traceable: ClassVar[bool] = False
    keepable: ClassVar[bool] = False

    def factor(self, A: LaneMap) -> Factors:
        """Return the number of each factorization among those kept, and its status."""
        return factored(A, _shifted)

    def solve_with(self, memory: Any, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``(A + t I)^-1 b``."""
        return solved_lanes(memory, factors, b, transposed)

    def status(self, factors: Factors) -> Tensor:
        """Return NONFINITE where a matrix is not finite."""
        return factors[1]


def _shifted(matrix: Any) -> tuple[Any, int]:
    import scipy.sparse.linalg

    if not np.isfinite(matrix.data).all():
        return None, int(Status.NONFINITE)
    size = abs(matrix).sum(0).max()
    eye = scipy.sparse.eye_array(matrix.shape[0], format="csc", dtype=matrix.dtype)
    for shift in _SHIFTS:
        try:
            factors = scipy.sparse.linalg.splu(
                matrix + shift * size * eye,
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
        except RuntimeError:
            continue
        if np.array_equal(factors.perm_r, factors.perm_c) and factors.U.diagonal().min() > 0:
            return factors, 0
    return None, int(Status.SINGULAR)


def _by_absolute_values(H: Tensor) -> tuple[Tensor]:
    values, vectors, little = eigenvalues(H)
    values = torch.maximum(values.abs(), little.unsqueeze(-1))
    values = torch.where(values > 0, values, 1.0).unsqueeze(-2)
    return (torch.linalg.cholesky_ex((vectors * values) @ vectors.mT).L,)


def by_conjugate_gradients(problem: Any, z: Tensor) -> Examination:
    """Examine points by a few products with the Hessian: from the gradient, and from noise."""
    n, eps = z.shape[-1], torch.finfo(z.dtype).eps
    F, A, free = problem.residual(z), problem.linearize_slope(z), problem.free(z)
    w, pattern = A.sizes(z) + F.abs(), patterns(z)[0].expand_as(z)
    twice: Any = replace(A, columns=2)
    if free is not None:
        w, pattern = w * free, pattern * free
        A, twice = AmongFree(A, free), AmongFree(twice, free.repeat(2, 1))
    noise, _, probe = roundings(problem, z, F, A, w)
    size = rms(F).unsqueeze(-1)
    b = torch.cat([F / torch.where(size > 0, size, 1.0), pattern])
    # a direction may be little of what is random
    forcing = torch.cat([torch.full_like(F[:, 0], _FORCING), torch.full_like(F[:, 0], eps**0.5)])
    forced = ForcedProblem(LinearProblem(twice, b), forcing)
    out = iterate(_Bend(max_steps=min(_PRODUCTS, 2 * n)), forced, torch.zeros_like(b))
    image = twice.mv(out.z)
    bent = (out.z * image).sum(-1) < -(eps**0.5) * n * rms(out.z) * rms(image)
    bent = (out.status == int(Status.INDEFINITE)) & bent
    (step, other), (first, second) = out.z.chunk(2), bent.chunk(2)
    down = downhill(pick(first, step, pick(second, other, torch.zeros_like(z))), F)
    noises = rms(noise).unsqueeze(-1) * other, rms(other).unsqueeze(-1) * probe
    return Examination(F, size * step, noises, (), kick(problem, z, down), coarse=True)


@dataclass(frozen=True)
class CurvedCG(CG):
    """Conjugate gradients whose last step may be along a direction of nonpositive curvature."""

    monotone: ClassVar[bool] = True

    def reach(self, alpha: Any, bad: Mask, rho: Any, curvature: Any) -> Any:
        """Go by the absolute value of the curvature; the whole direction where that is zero."""
        return pick(bad, pick(curvature < 0, divide(rho, abs(curvature)), 1.0), alpha)


class _Bend(CurvedCG):
    """Conjugate gradients that end with the direction of nonpositive curvature alone."""

    def reach(self, alpha: Any, bad: Mask, rho: Any, curvature: Any) -> Any:
        """Go by the absolute value of the curvature, and out of sight where that is zero."""
        return pick(bad, divide(rho, abs(curvature)), alpha)

    def step(self, problem: LinearProblem, state: CGState) -> CGState:
        """Return the last step where it ends so."""
        new = super().step(problem, state)
        return new._replace(z=pick(new.flag != 0, new.z - state.z, new.z))


class WithinCG(CG):
    """Conjugate gradients from zero in a ball of radius one: they end at its edge.

    They go there along a direction of nonpositive curvature too. Source: Steihaug, "The conjugate
    gradient method and trust regions in large scale optimization", SIAM J. Numer. Anal. 20 (1983).
    """

    monotone: ClassVar[bool] = True

    def step(self, problem: LinearProblem, state: CGState) -> CGState:
        """Return the last step where it would leave the ball."""
        new = super().step(problem, state)
        leaves = either(new.flag != 0, no(inner(problem, new.z, new.z) < 1))
        if nowhere(leaves):
            return new
        z, d = state.z, state.direction
        a, b, c = inner(problem, d, d), inner(problem, z, d), 1 - inner(problem, z, z)
        root = larger(b * b + a * c, 0.0) ** 0.5
        length = pick(b > 0, divide(c, b + root), divide(root - b, a))
        flag = pick(leaves, int(Status.INDEFINITE), new.flag)
        return new._replace(z=pick(leaves, along(z, length, d), new.z), flag=flag)
