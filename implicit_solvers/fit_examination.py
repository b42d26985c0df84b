"""What is known of a fit: Newton's step, in the basis of the Jacobian's singular vectors.

Forming ``J^T J`` would square the condition of ``J``. Source: Björck, "Numerical Methods for Least
Squares Problems" (1996), section 1.4. It knows no tolerance: `verdict` judges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from implicit_solvers.agreement import nowhere
from implicit_solvers.examination import ULPS, Examination
from implicit_solvers.outcome import DIGIT, ROUNDINGS
from implicit_solvers.rounding import patterns

__all__ = ["by_singular_values"]

_KNOWN = 100.0


def by_singular_values(problem: Any, z: Tensor) -> Examination:
    """Examine points of a fit by the full Hessian ``J^T J + B``, with ``B = sum_i r_i Hess(r_i)``.

    With ``J = U S V^T C``, where ``C`` holds the sizes of the columns, the Hessian is
    ``C V M V^T C``, ``M = S^2 + V^T C^-1 B C^-1 V``; nothing but ``M``, scaled, is factored.
    """
    eps, n = torch.finfo(z.dtype).eps, z.shape[-1]
    r, J, gradient, B = problem.to_second_order(z)
    free = problem.free(z)
    if free is not None:
        J, gradient = J * free.unsqueeze(-2), problem.projected(z, gradient)
        B = torch.where(free.unsqueeze(-1) & free.unsqueeze(-2), B, 0.0)
    c = vector_norm(J, dim=-2, keepdim=True)
    # one lane that is not finite would fail them all
    ruined = ~(c.sum((-2, -1), keepdim=True) + B.sum((-2, -1), keepdim=True) < torch.inf)
    J, B = J.masked_fill(ruined, 0.0), B.masked_fill(ruined, 0.0)
    c = c.masked_fill(ruined | (c == 0), 1.0)
    reach, (first, *_, last) = problem.reach(z), patterns(z)
    columns, rounding = _columns(problem, z, ULPS * eps * reach * last, r, J)
    A = J / c
    if (missing := n - J.shape[-2]) > 0:
        A, columns = (torch.nn.functional.pad(t, (0, 0, 0, missing)) for t in (A, columns))
    u, s, vh = torch.linalg.svd(A, full_matrices=False)
    s = (s * (s > max(A.shape[-2:]) * eps * s.amax(-1, keepdim=True))).unsqueeze(-1)
    images, squares, left = torch.bmm(u.mT, columns), s**2, vector_norm(r, dim=-1)
    size = vector_norm(c * reach.unsqueeze(-2), dim=-1, keepdim=True)
    back = vh / c
    B = torch.bmm(torch.bmm(back, B), back.mT)
    # smaller entries are rounding, which would hide that a direction has no curvature
    least = (10 * eps * vector_norm(B, dim=(-2, -1))).masked_fill(
        ~_bends(images[..., :1], s, left, rounding, size), torch.inf
    )
    B = B * (B.abs() > least.reshape(-1, 1, 1))
    if free is not None:
        apart = vh * ~free.unsqueeze(-2)
        B = B + torch.bmm(apart, apart.mT)
    diagonal = B.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    t = (diagonal.abs() + squares).sqrt()
    t = t.masked_fill(t == 0, 1.0)
    diagonal.add_(squares)
    values, q = torch.linalg.eigh(B / (t * t.mT))
    q, sizes = q / t, values.abs()
    top = sizes.amax(-1, keepdim=True)
    unknown = ruined.squeeze(-1) | (sizes <= n * eps * top)
    inverse = values.reciprocal().masked_fill(unknown, torch.nan).unsqueeze(-1)
    loads = s * images
    # rounding turns the columns of J, each by a part of its size, against the residuals
    turned = eps * left.reshape(-1, 1, 1) * (vh * first).sum(-1, keepdim=True)
    loads[..., 1:3] += turned
    answers = torch.bmm(back.mT, torch.bmm(q, inverse * torch.bmm(q.mT, loads)))
    answers = answers if free is None else answers * free.unsqueeze(-1)
    step, *noise = answers.unbind(-1)
    # what steps take from r, beside what roundings would
    taken, drowned, *_ = vector_norm((loads / s).masked_fill(s == 0, 0.0), dim=-2).unbind(-1)
    drowned = problem.number(taken <= ROUNDINGS * drowned)
    # r is known up to its rounding, and so is what it bends
    doubt = eps**0.5 * top.squeeze(-1) + ROUNDINGS * rounding / left
    bent = problem.number(values.amin(-1) < -doubt)
    if nowhere(bent):
        return Examination(gradient, step, noise, (), None, drowned)
    down = torch.bmm(back.mT, q[..., :1]).squeeze(-1)
    scaled = vector_norm(c * down.unsqueeze(-2), dim=-1)
    length = DIGIT * size.masked_fill(size == 0, 1.0).squeeze(-1) / scaled
    kick = down * torch.where((gradient * down).sum(-1, keepdim=True) > 0, -length, length)
    kick = torch.where(torch.as_tensor(bent, device=z.device).reshape(-1, 1), kick, 0.0)
    return Examination(gradient, step, noise, (), kick, drowned)


def _columns(problem: Any, z: Tensor, move: Tensor, r: Tensor, J: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residuals, two samples of their rounding, and what is seen of it, side by side.

    With them comes the size of the rounding. It is seen after a small ``move``.
    """
    signs = torch.stack(patterns(r)[:2], -1)
    r, there = r.unsqueeze(-1), z + move
    w = torch.bmm(J.abs(), z.abs().unsqueeze(-1)) + r.abs()
    w = torch.finfo(z.dtype).eps * w
    line = torch.baddbmm(r, J, (there - z).unsqueeze(-1))
    seen = problem.evaluate(there).unsqueeze(-1) - line
    return torch.cat([r, w * signs, seen], -1), vector_norm(w, dim=(-2, -1))


def _bends(image: Tensor, s: Tensor, left: Tensor, rounding: Tensor, size: Tensor) -> Tensor:
    """Tell where what steps leave of ``r`` is more than they take, and a hundred roundings.

    Only then are the residuals those of the fit, and their curvature counts. Steps count that
    change no unknown by more than a digit.
    """
    taken = vector_norm(image * (image.abs() <= DIGIT * size * s), dim=(-2, -1))
    return left > torch.maximum(2**0.5 * taken, _KNOWN * rounding)
