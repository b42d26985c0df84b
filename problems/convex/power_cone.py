"""The power cone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.projections.validation import check_cone_points

__all__ = ["linearize_power_projection", "project_power_cone"]

_STEPS = 100


def _logit(x: Tensor, y: Tensor, z: Tensor, alpha: Tensor) -> Tensor:
    """Find the ``t`` for which ``z sigmoid(t)`` is the projection's last entry; ``z > 0``.

    It is the zero of a function that decreases, and is nearly linear for large ``t`` of both
    signs. Newton's method finds it; where it leaves the bracket, the interval is halved.
    """
    # NumPy, as in the exponential cone
    t = _find_logit(*(w.detach().numpy() for w in (x, y, z, alpha)))
    return torch.from_numpy(np.asarray(t)).to(x)


@np.errstate(all="ignore")
def _find_logit(x: np.ndarray, y: np.ndarray, z: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    info = np.finfo(x.dtype)
    far = -0.9 * np.log(info.tiny)
    low, high = np.full_like(x, -far), np.full_like(x, far)
    t = np.zeros_like(x)
    for _ in range(_STEPS):
        log_s, log_rest = -np.logaddexp(0, -t), -np.logaddexp(0, t)
        s, w = np.exp(log_s), z * z * np.exp(log_s + log_rest)
        log_w = 2 * np.log(z) + log_s + log_rest
        value, against = -np.log(z) - log_s, 0.0
        for entry, a in ((x, alpha), (y, 1 - alpha)):
            root = np.sqrt(entry * entry + 4 * a * np.maximum(w, info.tiny))
            large = (np.abs(entry) + root) / 2
            upper = np.where(entry > 0, np.log(large), np.log(a) + log_w - np.log(large))
            value = value + a * upper
            share = np.maximum(1 - large / root, a * w / large / root)
            against = against + a * np.where(entry > 0, share, 1 - share)
        low, high = np.where(value > 0, t, low), np.where(value > 0, high, t)
        new = t + value / ((1 - against) * (1 - s) + against * s)
        new = np.where((new > low) & (new < high), new, (low + high) / 2)
        done = np.abs(new - t) <= 4 * info.eps * np.maximum(np.abs(t), 1)
        t = np.where(done, t, new)
        if done.all():
            break
    return t


class _Parts(NamedTuple):
    """What the projection and its derivatives are made of: ``w = r (z - r)`` for ``r = z s``.

    ``X`` is the projection's first entry, ``root_x = sqrt(x^2 + 4 alpha w)``, and ``mu`` and
    ``one_mu`` are ``(1 - x / root_x) / 2`` and ``(1 + x / root_x) / 2``. No difference of close
    numbers is among them.
    """

    s: Tensor
    rest: Tensor
    w: Tensor
    X: Tensor
    Y: Tensor
    root_x: Tensor
    root_y: Tensor
    mu: Tensor
    nu: Tensor
    one_mu: Tensor
    one_nu: Tensor


def _parts(t: Tensor, x: Tensor, y: Tensor, z: Tensor, alpha: Tensor) -> _Parts:
    s, rest = torch.sigmoid(t), torch.sigmoid(-t)
    w = (z * z * s * rest).clamp(min=torch.finfo(t.dtype).tiny)

    def entry(x: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
        root = (x * x + 4 * alpha * w).sqrt()
        positive = x > 0
        large = (torch.where(positive, x, -x) + root) / 2
        small = alpha * w / large
        X = torch.where(positive, large, small)
        return X, root, torch.where(positive, small, large) / root, X / root

    X, root_x, mu, one_mu = entry(x, alpha)
    Y, root_y, nu, one_nu = entry(y, 1 - alpha)
    return _Parts(s, rest, w, X, Y, root_x, root_y, mu, nu, one_mu, one_nu)


def _logit_partials(
    t: Tensor, x: Tensor, y: Tensor, z: Tensor, alpha: Tensor
) -> list[Callable[[], Tensor]]:
    """Differentiate ``alpha log X + (1 - alpha) log Y = log(z s)``."""
    p = _parts(t, x, y, z, alpha)
    m, D = _shares(p, alpha)
    return [
        lambda: alpha / p.root_x / D,
        lambda: (1 - alpha) / p.root_y / D,
        lambda: (2 * m - 1) / z / D,
        lambda: ((p.X / p.Y).log() + p.mu - p.nu) / D,
    ]


def _shares(p: _Parts, alpha: Tensor) -> tuple[Tensor, Tensor]:
    m, one_m = alpha * p.mu + (1 - alpha) * p.nu, alpha * p.one_mu + (1 - alpha) * p.one_nu
    return m, one_m * p.rest + m * p.s


logit = ims.elementwise_function(_logit, _logit_partials, name="project_power_cone")


def project_power_cone(v: Tensor, alpha: Tensor | float) -> Tensor:
    r"""Project onto ``{(x, y, z) : x, y >= 0, x^alpha y^(1 - alpha) >= |z|}``.

    Inside the cone it is ``v``, inside the polar cone zero, and ``(max(x, 0), max(y, 0), 0)`` for
    other ``v`` with ``z = 0``. Elsewhere it is, with ``r = |z| / (1 + exp(-t))``,

    .. math:: \tfrac12 \Big(x + \sqrt{x^2 + 4 \alpha r (|z| - r)}, \;
              y + \sqrt{y^2 + 4 (1 - \alpha) r (|z| - r)}, \; \pm 2 r\Big)

    where ``t`` is the zero of a decreasing function, found by Newton's method and differentiated
    by its partial derivatives.

    Parameters
    ----------
    v
        ``(..., 3)``, floating, on the CPU; each row is projected.
    alpha
        The exponent, between zero and one: a number, or a tensor ``(...)``.

    Returns
    -------
    Tensor
        Like ``v``, differentiable to any order off the boundaries between the cases; on them the
        derivative is that of one side.

    Raises
    ------
    TypeError, ValueError
        If ``v`` is not a floating tensor, its rows have not three entries, it is not on the CPU, or
        ``alpha`` is a number that is not between zero and one.

    Notes
    -----
    Source: Hien, "Differential properties of Euclidean projection onto power cone" (2015).

    Examples
    --------
    >>> project_power_cone(torch.tensor([1.0, -1.0, 2.0]).double(), 0.5)
    tensor([1.3333, 0.3333, 0.6667], dtype=torch.float64)
    """
    v = check_cone_points(v, "(x, y, z)")
    if not isinstance(alpha, Tensor) and not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}: pass an exponent between 0 and 1")
    alpha = torch.as_tensor(alpha, dtype=v.dtype, device=v.device)
    inside, smooth, edge = _cases(v, alpha)
    w = torch.where(smooth.unsqueeze(-1), v, 1.0)
    return _point(v, w, _parts_at(w, alpha), inside, smooth, edge)


def _cases(v: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tell where ``v`` is inside the cone, or next to its surface; and the slope where ``z = 0``.

    That is the slope of the last entry, if ``v`` is neither inside the cone nor the polar cone.
    """
    x, y, z = v.detach().unbind(-1)
    alpha = alpha.detach()
    up, down = x.clamp(min=0), y.clamp(min=0)
    inside = (x >= 0) & (y >= 0) & (up**alpha * down ** (1 - alpha) >= z.abs())
    out, over = (-x).clamp(min=0) / alpha, (-y).clamp(min=0) / (1 - alpha)
    polar = (x <= 0) & (y <= 0) & (out**alpha * over ** (1 - alpha) >= z.abs())
    free = ~inside & ~polar
    # of the larger exponent's entry the sign decides; for equal ones, its size too
    ratio = torch.maximum(x, y) / (torch.maximum(x, y) - 2 * torch.minimum(x, y))
    slope = ((x > 0) == (alpha > 0.5)).to(v)
    slope = torch.where(alpha == 0.5, ratio, slope)
    edge = torch.where(free & (z == 0), slope, 0.0)
    return inside, free & (z != 0) & v.detach().isfinite().all(-1), edge


def _parts_at(w: Tensor, alpha: Tensor) -> _Parts:
    x, y, z = w[..., 0], w[..., 1], w[..., 2].abs()
    return _parts(logit(x, y, z, alpha), x, y, z, alpha)


def _point(v: Tensor, w: Tensor, p: _Parts, inside: Tensor, smooth: Tensor, edge: Tensor) -> Tensor:
    """Return the projection of ``v``, which is ``w`` in the smooth case."""
    curved = torch.stack([p.X, p.Y, w[..., 2] * p.s], -1)
    facet = torch.cat([torch.relu(v[..., :2]), (edge * v[..., 2]).unsqueeze(-1)], -1)
    polar = (v <= 0)[..., :2].all(-1, True)
    flat = torch.where(inside.unsqueeze(-1), v, torch.where(polar, 0.0, facet))
    flat = torch.where(v.isfinite().all(-1, True), flat, torch.nan)
    return torch.where(smooth.unsqueeze(-1), curved, flat)


def linearize_power_projection(v: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return `project_power_cone` and its Jacobian ``(..., 3, 3)``, symmetric, written out.

    Examples
    --------
    >>> v = torch.tensor([1.0, -1.0, 0.0])
    >>> linearize_power_projection(v, torch.tensor(0.5))[1].diagonal()
    tensor([1.0000, 0.0000, 0.3333])
    """
    inside, smooth, edge = _cases(v, alpha)
    w = torch.where(smooth.unsqueeze(-1), v, 1.0)
    p = _parts_at(w, alpha)
    m, D = _shares(p, alpha)
    beta, one_m, z = 1 - alpha, 1 - m, w[..., 2]
    from_x, from_y = alpha / p.root_x, beta / p.root_y
    xx = p.one_mu * (p.rest * (one_m + alpha * p.mu) + p.s * beta * p.nu) / D
    yy = p.one_nu * (p.rest * (one_m + beta * p.nu) + p.s * alpha * p.mu) / D
    xy = from_x * from_y * p.w * (p.rest - p.s) / D
    both = z * p.s * p.rest / D
    xz, yz = from_x * both, from_y * both
    rows = [[xx, xy, xz], [xy, yy, yz], [xz, yz, p.s * m / D]]
    curved = torch.stack([torch.stack(row, -1) for row in rows], -2)
    same, facet = inside.to(v).unsqueeze(-1), (v[..., :2] > 0).to(v)
    flat = torch.cat([torch.maximum(same, facet), (inside.to(v) + edge).unsqueeze(-1)], -1)
    jacobian = torch.where(smooth[..., None, None], curved, torch.diag_embed(flat))
    return _point(v, w, p, inside, smooth, edge), jacobian
