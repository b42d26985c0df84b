"""What is known of a fit: its Newton step, computed in the basis of the Jacobian's singular vectors.

Forming ``J^T J`` would square the condition of ``J``. Sources: Björck, "Numerical Methods for Least
Squares Problems" (1996), section 1.4; Moré, Garbow and Hillstrom, "User Guide for MINPACK-1" (1980).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from implicit_solvers.examination import ULPS, Examination
from implicit_solvers.outcome import DIGIT, ROUNDINGS
from implicit_solvers.rounding import patterns

__all__ = ["by_singular_values"]


def by_singular_values(problem: Any, z: Tensor) -> Examination:
    """Examine points of a fit by the full Hessian ``J^T J + B``, with ``B = sum_i r_i Hess(r_i)``.

    With ``J = U S V^T C``, where ``C`` holds the sizes of the columns, the Hessian is
    ``C V (S^2 + V^T C^-1 B C^-1 V) V^T C``; nothing is solved with but its middle, scaled.
    """
    eps, n = torch.finfo(z.dtype).eps, z.shape[-1]
    r, J, gradient, B = problem.to_second_order(z)
    finite = torch.isfinite(J).flatten(1).all(-1) & torch.isfinite(B).flatten(1).all(-1)
    # one lane that is not finite would fail them all
    known = finite.reshape(-1, 1, 1)
    reach, (first, second) = problem.reach(z), patterns(r)[:2]
    w = eps * ((J.abs() @ z.abs().unsqueeze(-1)).squeeze(-1) + r.abs())
    there = torch.addcmul(z, reach, patterns(z)[2], value=ULPS * eps)
    seen = problem.evaluate(there) - r - (J @ (there - z).unsqueeze(-1)).squeeze(-1)
    columns = torch.stack([r, w * first, w * second, seen], -1)
    J = torch.where(known, J, 0.0)
    c = torch.linalg.vector_norm(J, dim=-2)
    c = torch.where(c > 0, c, 1.0)
    A = J / c.unsqueeze(-2)
    size = _length(c * reach)
    if len(A[0]) < n:
        missing = (0, 0, 0, n - len(A[0]))
        A, columns = (torch.nn.functional.pad(t, missing) for t in (A, columns))
    u, s, vh = torch.linalg.svd(A, full_matrices=False)
    s = torch.where(s > max(A.shape[-2:]) * eps * s[:, :1], s, 0.0)
    images = u.mT @ columns
    B = torch.where(known & _bends(r, w, s, images[..., 0], size), B, 0.0)
    B = vh @ (B / (c.unsqueeze(-1) * c.unsqueeze(-2))) @ vh.mT
    # smaller entries are rounding, which would hide that a direction has no curvature
    B = torch.where(B.abs() > 10 * eps * torch.linalg.matrix_norm(B, keepdim=True), B, 0.0)
    t = (s**2 + B.diagonal(dim1=-2, dim2=-1).abs()).sqrt()
    t = torch.where(t > 0, t, 1.0)
    middle = (torch.diag_embed(s**2) + B) / (t.unsqueeze(-1) * t.unsqueeze(-2))
    values, q = torch.linalg.eigh(middle)
    top = values.abs().amax(-1, keepdim=True)
    # rounding turns the columns of J, each by a part of its size, against the residuals
    turned = (vh * first[:n] if len(first) >= n else vh * patterns(z)[0]).sum(-1)
    turned = eps * _length(r).unsqueeze(-1) * turned
    loads = s.unsqueeze(-1) * images
    loads = torch.cat([loads[..., :1], loads[..., 1:3] + turned.unsqueeze(-1), loads[..., 3:]], -1)
    sure = finite.unsqueeze(-1) & (values.abs() > n * eps * top)
    inverse = torch.where(sure, 1 / values, torch.nan)
    back = vh.mT @ (q / t.unsqueeze(-1)) / c.unsqueeze(-1)
    answers = back @ (inverse.unsqueeze(-1) * (q.mT @ (loads / t.unsqueeze(-1))))
    step, *noise = answers.unbind(-1)
    # residuals are known up to their rounding, and so is what they bend
    least = (q[..., :1] / t.unsqueeze(-1)).abs()
    doubt = ROUNDINGS * _length(w) / _length(r) * (least.mT @ B.abs() @ least).flatten()
    bent = values[:, 0] < -(eps**0.5 * top[:, 0] + torch.where(doubt > 0, doubt, 0.0))
    down = back[..., 0]
    along = DIGIT * torch.where(size > 0, size, 1.0) / _length(c * down)
    along = torch.where((gradient * down).sum(-1) > 0, -along, along)
    kick = torch.where(bent.unsqueeze(-1), along.unsqueeze(-1) * down, 0.0)
    # what a step takes from r, beside what roundings would
    taken = torch.where((s > 0).unsqueeze(-1), loads / s.unsqueeze(-1), 0.0).square().sum(-2).sqrt()
    drowned = taken[:, 0] <= ROUNDINGS * taken[:, 1:3].amax(-1)
    return Examination(gradient, step, noise, (), kick, drowned)


def _bends(r: Tensor, w: Tensor, s: Tensor, image: Tensor, size: Tensor) -> Tensor:
    """Tell where what steps leave of ``r`` is more than they take, and than rounding.

    Only then are the residuals those of the fit, and their curvature counts. Steps count that
    change no unknown by more than a digit.
    """
    near = image.abs() <= DIGIT * s * size.unsqueeze(-1)
    taken = torch.where(near, image, 0.0).square().sum(-1)
    left = (r.square().sum(-1) - taken).clamp(min=0)
    counts = (left > taken) & (left > (ROUNDINGS * _length(w)) ** 2)
    return counts.reshape(-1, 1, 1)


def _length(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=-1)
