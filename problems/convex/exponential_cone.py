"""The exponential cone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.projections.validation import check_cone_points

__all__ = ["linearize_exponential_projection", "project_exponential_cone"]

_STEPS = 100


def _slope(r: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Find the zero of ``h(rho) = x exp(rho) - y exp(-rho) - t``, which increases.

    The multipliers ``x`` and ``y`` depend on ``rho``, and are positive in the interval where
    Newton's method runs, on the equation between logarithms; where it leaves the bracket, or is
    slow, the interval is halved (doubled, while an end of it is infinite).
    """
    # NumPy: a hundred operations on a few numbers each take less time there
    rho = _find_slope(*(w.detach().numpy() for w in (r, s, t)))
    return torch.from_numpy(np.asarray(rho)).to(r)


@np.errstate(all="ignore")
def _find_slope(r: np.ndarray, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    low, high = np.where(r > 0, 1 - s / r, -np.inf), np.where(s > 0, r / s, np.inf)
    room = np.minimum((high - low) / 2, 1)
    rho = np.clip(0.5, low + room, high - room)
    eps = np.finfo(r.dtype).eps
    for _ in range(_STEPS):
        q = rho * rho - rho + 1
        x, y = ((rho - 1) * r + s) / q, (r - rho * s) / q
        dx, dy = (r - x * (2 * rho - 1)) / q, (-s - y * (2 * rho - 1)) / q
        up, down = np.exp(rho), np.exp(-rho)
        left, right = x * up - np.minimum(t, 0), y * down + np.maximum(t, 0)
        d_left, d_right = (dx + x) * up, (dy - y) * down
        below = left < right
        low, high = np.where(below, rho, low), np.where(below, high, rho)
        fast = rho - np.log(left / right) / (d_left / left - d_right / right)
        plain = rho - (left - right) / (d_left - d_right)
        half = np.where(np.isinf(high), 2 * rho - low, (low + high) / 2)
        half = np.where(np.isinf(low), 2 * rho - high, half)
        new = np.where((plain > low) & (plain < high), plain, half)
        new = np.where((fast > low) & (fast < high), fast, new)
        done = np.abs(fast - rho) <= 4 * eps * np.maximum(np.abs(rho), 1)
        rho = np.where(done, rho, new)
        if done.all():
            break
    return rho


def _slope_partials(rho: Tensor, r: Tensor, s: Tensor, t: Tensor) -> list[Callable[[], Tensor]]:
    """Differentiate ``g = (rho^2 - rho + 1) h = 0``, all terms divided by ``exp |rho|``."""
    size = rho.detach().abs()
    up, down, one = (rho - size).exp(), (-rho - size).exp(), (-size).exp()
    g_r = -(down + (1 - rho) * up)
    g_s = up + rho * down
    g_t = (rho - rho * rho - 1) * one
    g_rho = r * (down + rho * up) + s * (up + (1 - rho) * down) + t * (1 - 2 * rho) * one
    return [lambda: -g_r / g_rho, lambda: -g_s / g_rho, lambda: -g_t / g_rho]


slope = ims.elementwise_function(_slope, _slope_partials, name="project_exponential_cone")


def project_exponential_cone(v: Tensor) -> Tensor:
    r"""Project onto ``{(r, s, t) : s > 0, s exp(r / s) <= t}`` and its limits.

    Inside the cone it is ``v``, inside the polar cone zero, and ``(r, 0, max(t, 0))`` for other
    ``v`` with ``r <= 0`` and ``s <= 0``. Elsewhere it is the point ``a x`` of

    .. math:: v = x \, (\rho, 1, e^\rho) + y \, (1, 1 - \rho, -e^{-\rho}), \qquad x, y > 0,

    where ``rho`` is the zero of an increasing function, found by Newton's method and
    differentiated by its partial derivatives.

    Parameters
    ----------
    v
        ``(..., 3)``, floating, on the CPU; each row is projected.

    Returns
    -------
    Tensor
        Like ``v``, differentiable to any order off the boundaries between the cases; on them the
        derivative is that of one side.

    Raises
    ------
    TypeError, ValueError
        If ``v`` is not a floating tensor, its rows have not three entries, or it is not on the CPU.

    Notes
    -----
    Source: Friberg, "Projection onto the exponential cone: a univariate root-finding problem"
    (2023); Parikh and Boyd, "Proximal Algorithms" (2014), section 6.3.4.

    Examples
    --------
    >>> project_exponential_cone(torch.tensor([1.0, 1.0, 1.0]).double())
    tensor([0.4263, 0.7517, 1.3254], dtype=torch.float64)
    """
    v = check_cone_points(v, "(r, s, t)")
    inside, facet, smooth = _cases(v)
    w = torch.where(smooth.unsqueeze(-1), v, 1.0)
    return _point(v, w, slope(*w.unbind(-1)), inside, facet, smooth)


def _cases(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tell where ``v`` is inside the cone, next to its facet ``s = 0``, or next to its surface."""
    r, s, t = v.unbind(-1)
    inside = (s > 0) & (s * (r / torch.where(s > 0, s, 1.0)).exp() <= t)
    inside = inside | ((s == 0) & (r <= 0) & (t >= 0))
    polar = (r > 0) & (r * (s / torch.where(r > 0, r, 1.0)).exp() <= -math.e * t)
    polar = polar | ((r == 0) & (s <= 0) & (t <= 0))
    facet = (r <= 0) & (s <= 0) & ~inside & ~polar
    return inside, facet, ~(inside | polar | facet) & v.isfinite().all(-1)


def _point(
    v: Tensor, w: Tensor, rho: Tensor, inside: Tensor, facet: Tensor, smooth: Tensor
) -> Tensor:
    """Return the projection of ``v``, which is ``w`` in the smooth case."""
    R, S, T = w.unbind(-1)
    q = rho * rho - rho + 1
    x, y = ((rho - 1) * R + S) / q, (R - rho * S) / q
    # each of the two is accurate on its side
    decay = (-rho.abs()).exp()
    up = torch.where(rho > 0, T + y * decay, x * decay)
    curved = torch.stack([rho * x, x, up], -1)
    r, s, t = v.unbind(-1)
    edge = torch.stack([r, torch.zeros_like(s), t.clamp(min=0)], -1)
    flat = torch.where(inside.unsqueeze(-1), v, 0.0)
    flat = torch.where(facet.unsqueeze(-1), edge, flat)
    flat = torch.where(v.isfinite().all(-1, True), flat, torch.nan)
    return torch.where(smooth.unsqueeze(-1), curved, flat)


def linearize_exponential_projection(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return `project_exponential_cone` and its Jacobian ``(..., 3, 3)``, symmetric, written out.

    Next to the surface the projection is that onto the ray with the unit direction ``a(rho)``:
    ``p = a a^T v``, whose derivative is ``a a^T + (a'^T v a + a^T v a') (d rho / dv)^T``.

    Examples
    --------
    >>> linearize_exponential_projection(torch.tensor([-1.0, -1.0, 2.0]))[1].diagonal()
    tensor([1., 0., 1.])
    """
    inside, facet, smooth = _cases(v)
    w = torch.where(smooth.unsqueeze(-1), v, 1.0)
    rho = slope(*w.unbind(-1))
    gradient = torch.stack([partial() for partial in _slope_partials(rho, *w.unbind(-1))], -1)
    size, up = (-rho.clamp(min=0)).exp(), rho.clamp(max=0).exp()
    ray = torch.stack([rho * size, size, up], -1)
    turn = torch.stack([size, 0 * size, up], -1)
    length = torch.linalg.vector_norm(ray, dim=-1, keepdim=True)
    a = ray / length
    da = (turn - (turn * a).sum(-1, keepdim=True) * a) / length
    moved = (da * w).sum(-1, keepdim=True) * a + (a * w).sum(-1, keepdim=True) * da
    curved = a.unsqueeze(-1) * a.unsqueeze(-2) + moved.unsqueeze(-1) * gradient.unsqueeze(-2)
    same, up_to = inside.to(v), (facet & (v[..., 2] > 0)).to(v)
    flat = torch.stack([same + facet.to(v), same, same + up_to], -1)
    jacobian = torch.where(smooth[..., None, None], curved, torch.diag_embed(flat))
    return _point(v, w, rho, inside, facet, smooth), jacobian
