"""Products of cones: their sizes, the projection onto the dual cone, its Jacobian."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.problems.convex.exponential_cone import (
    linearize_exponential_projection,
    project_exponential_cone,
)
from implicit_solvers.problems.convex.power_cone import (
    linearize_power_projection,
    project_power_cone,
)
from implicit_solvers.problems.convex.symmetric_vectors import from_svec, svec, svec_basis
from implicit_solvers.problems.projections import project_psd_cone, project_second_order_cone
from implicit_solvers.problems.projections.psd_cone import to_inside

__all__ = ["Cones", "at_kink", "linearize_curved", "project_dual_cone"]

# how far in roundings a kink is looked for, and what no smooth projection turns by over these
_DOUBT, _TURN = 1e4, 1e-2


@dataclass(frozen=True)
class Cones:
    """A product of cones, in this order: ``K = {0}^z x R_+^l x ...``, a set of vectors ``(m,)``.

    Parameters
    ----------
    zero
        The number of equations: the cone ``{0}``, whose dual cone is everything.
    nonnegative
        The number of inequalities.
    second_order
        The dimensions of the cones ``{(t, x) : |x|_2 <= t}``.
    semidefinite
        The sizes ``k`` of the matrices; their entries are ``svec``, ``k (k + 1) / 2`` of them.
    exponential
        The number of cones ``{(r, s, t) : s exp(r / s) <= t}``.
    power
        The exponents of the cones ``{(x, y, z) : x^alpha y^(1 - alpha) >= |z|}``.

    Examples
    --------
    >>> Cones(zero=1, second_order=(3, 3), semidefinite=(2,), exponential=2, power=(0.3,)).size
    19
    """

    zero: int = 0
    nonnegative: int = 0
    second_order: tuple[int, ...] = ()
    semidefinite: tuple[int, ...] = ()
    exponential: int = 0
    power: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """The dimension."""
        triangles = sum(k * (k + 1) // 2 for k in self.semidefinite)
        flat = self.linear + sum(self.second_order) + triangles
        return flat + 3 * (self.exponential + len(self.power))

    @property
    def linear(self) -> int:
        """The number of equations and inequalities."""
        return self.zero + self.nonnegative

    @property
    def curved(self) -> bool:
        """Whether a projection has derivatives other than zero and one, known up to rounding."""
        return self.size > self.linear

    def blocks(self) -> Iterator[tuple[str, int, slice, int, int]]:
        """Yield runs of equal cones: kind, ``k``, place, how many, and of what dimension."""
        runs = [
            *(("second order", k, k) for k in self.second_order),
            *(("semidefinite", k, k * (k + 1) // 2) for k in self.semidefinite),
            *(("exponential", 3, 3) for _ in range(self.exponential)),
            *(("power", 3, 3) for _ in self.power),
        ]
        first = self.linear
        for (kind, k, size), run in groupby(runs):
            count = len(list(run))
            yield kind, k, slice(first, first + count * size), count, size
            first += count * size

    def shared(self, rows: np.ndarray, of: Any = np.max) -> np.ndarray:
        """Return what there is of rows ``(..., m)``, with one for all of each curved cone's."""
        shared = rows.copy()
        for _, _, place, count, size in self.blocks():
            block = rows[..., place].reshape(*rows.shape[:-1], count, size)
            shared[..., place] = np.repeat(of(block, -1), size, -1)
        return shared

    def block_places(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and columns of the entries of curved blocks, one block after another."""
        rows, columns = [], []
        for _, _, place, count, size in self.blocks():
            own = np.arange(place.start, place.stop).reshape(count, size, 1)
            rows.append(np.broadcast_to(own, (count, size, size)).ravel())
            columns.append(np.broadcast_to(own.swapaxes(1, 2), (count, size, size)).ravel())
        none = [np.zeros(0, dtype=np.int64)]
        return np.concatenate(none + rows), np.concatenate(none + columns)


def project_dual_cone(u: Tensor, cones: Cones) -> Tensor:
    """Project ``u (..., m)`` onto the dual of a product of cones, ``argmin_(y in K*) |y - u|``.

    Differentiable to any order, off the boundaries that the projections onto the factors name.

    Parameters
    ----------
    u
        ``(..., m)``, floating.
    cones
        The cones, of dimension ``m`` together, which is not checked.

    Returns
    -------
    Tensor
        Like ``u``.

    Notes
    -----
    Source: Agrawal, Barratt, Boyd, Busseti and Moursi, "Differentiating through a cone program"
    (2019); the duals of the exponential and the power cone by Moreau's decomposition.

    Examples
    --------
    >>> project_dual_cone(torch.tensor([-1.0, -1.0, 2.0]), Cones(zero=1, nonnegative=2))
    tensor([-1.,  0.,  2.])
    """
    z = cones.zero
    parts = [u[..., :z], torch.relu(u[..., z : cones.linear])]
    for kind, k, place, count, size in cones.blocks():
        v = u[..., place].unflatten(-1, (count, size))
        if kind == "second order":
            projected = project_second_order_cone(v)
        elif kind == "semidefinite":
            projected = svec(project_psd_cone(from_svec(v, k), on_failure="mask"))
        elif kind == "exponential":
            projected = v + project_exponential_cone(-v)
        else:
            projected = v + project_power_cone(-v, v.new_tensor(cones.power))
        parts.append(projected.flatten(-2))
    return torch.cat(parts, -1)


def linearize_curved(u: Tensor, cones: Cones) -> tuple[Tensor, Tensor]:
    """Return the curved part of `project_dual_cone`, and the entries of its Jacobian, by blocks.

    The entries ``(..., nnz)`` are those at `Cones.block_places`, made of closed forms, and not
    meant to be differentiated.
    """
    parts, entries = [], []
    for kind, k, place, count, size in cones.blocks():
        v = u[..., place].unflatten(-1, (count, size))
        if kind == "second order":
            y, block = project_second_order_cone(v), _second_order_jacobian(v)
        elif kind == "semidefinite":
            y, block = _linearize_semidefinite(v, k)
        else:
            if kind == "exponential":
                p, J = linearize_exponential_projection(-v)
            else:
                p, J = linearize_power_projection(-v, v.new_tensor(cones.power))
            y, block = v + p, torch.eye(3, dtype=u.dtype, device=u.device) - J
        parts.append(y.flatten(-2))
        entries.append(block.flatten(-3))
    return torch.cat(parts, -1), torch.cat(entries, -1)


def at_kink(u: Tensor, cones: Cones) -> Tensor:
    """Tell where `project_dual_cone` has two derivatives: where a multiplier and its slack vanish.

    An inequality has not more than a few roundings there, an eigenvalue not many. Around another
    cone, rounding of ``u`` changes the Jacobian.

    Examples
    --------
    >>> at_kink(torch.tensor([[-1.0, 0.0], [-1.0, 2.0]]), Cones(nonnegative=2))
    tensor([ True, False])
    """
    if u.shape[-1] == 0:
        return u.new_zeros(u.shape[:-1], dtype=torch.bool)
    rounding = torch.finfo(u.dtype).eps * u.abs().amax(-1, keepdim=True)
    kinks = (u[..., cones.zero : cones.linear].abs() <= 4 * rounding).any(-1)
    reach = _DOUBT * rounding
    for kind, k, place, count, size in cones.blocks():
        if kind == "semidefinite":
            values = torch.linalg.eigvalsh(from_svec(u[..., place].unflatten(-1, (count, size)), k))
            kinks = kinks | (values.abs().flatten(-2) <= reach).any(-1)
    if cones.curved:
        sign = torch.where(torch.arange(u.shape[-1], device=u.device) % 3 == 0, 1.0, -1.0).to(u)
        here, there, other = (
            linearize_curved(u + step * sign * reach, cones)[1] for step in (0.0, 1.0, -1.0)
        )
        moved = torch.maximum((there - here).abs(), (other - here).abs())
        kinks = kinks | (moved > _TURN).any(-1)
    return kinks


def _second_order_jacobian(v: Tensor) -> Tensor:
    t, x = v[..., :1], v[..., 1:]
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    outside = (norm > t.abs()).unsqueeze(-1)
    norm = torch.where(norm > 0, norm, 1.0)
    n, ratio = x / norm, (t / norm).unsqueeze(-1)
    eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
    inner = (1 + ratio) * eye[1:, 1:] - ratio * n.unsqueeze(-1) * n.unsqueeze(-2)
    top = torch.cat([torch.ones_like(t), n], -1).unsqueeze(-2)
    boundary = torch.cat([top, torch.cat([n.unsqueeze(-1), inner], -1)], -2) / 2
    rest = torch.where(t.unsqueeze(-1) < 0, torch.zeros_like(eye), eye)
    return torch.where(outside, boundary, rest)


def _linearize_semidefinite(v: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, V = torch.linalg.eigh(from_svec(v, k))
    y = svec((V * values.clamp(min=0).unsqueeze(-2)) @ V.mT)
    values = to_inside(values)
    sizes, positive = values.abs(), values.clamp(min=0)
    sums = sizes.unsqueeze(-1) + sizes.unsqueeze(-2)
    share = (positive.unsqueeze(-1) + positive.unsqueeze(-2)) / sums
    turned = (V.mT.unsqueeze(-3) @ svec_basis(k, v) @ V.unsqueeze(-3)).flatten(-2)
    return y, turned @ (share.flatten(-2).unsqueeze(-1) * turned.mT)
