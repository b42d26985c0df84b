"""The optimality conditions of a cone program, as one equation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.convex.cones import (
    Cones,
    linearize_dual_projection,
    project_dual_cone,
)

__all__ = ["Linearization", "linearize", "normal_map"]


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    """Return ``M v`` for ``M (..., m, n)`` and ``v (..., n)``."""
    if matrix.dim() == 2:
        return v @ matrix.mT
    return (v.unsqueeze(-2) @ matrix.mT).squeeze(-2)


def normal_map(z: Tensor, P: Tensor, c: Tensor, A: Tensor, b: Tensor, *, cones: Cones) -> Tensor:
    r"""Evaluate the optimality conditions of a cone program at ``z = (x, u)``.

    .. math:: \min_x \tfrac12 x^\top P x + c^\top x
              \quad\text{such that}\quad A x + s = b, \; s \in K

    With ``y`` the projection of ``u`` onto the dual cone, ``s = y - u`` is in ``K`` and orthogonal
    to ``y`` (Moreau), whatever ``u`` is. What is left of the conditions is

    .. math:: F(x, u) = (P x + c + A^\top y, \; A x + y - u - b) .

    A zero of ``F`` is a solution of the program and of its dual, and each such pair is one,
    ``u = y - s``.

    Parameters
    ----------
    z
        ``(..., n + m)``.
    P, c, A, b
        The program: ``(..., n, n)``, symmetric and positive semidefinite, ``(..., n)``,
        ``(..., m, n)``, ``(..., m)``, of the floating dtype of ``z``.
    cones
        ``K``, of dimension ``m``.

    Returns
    -------
    Tensor
        Like ``z``.

    Raises
    ------
    RuntimeError
        If shapes or dtypes do not fit (torch refuses; `ConvexLayer` makes them fit).

    Notes
    -----
    Source: Robinson, "Normal maps induced by linear transformations" (1992); Busseti, Moursi and
    Boyd, "Solution refinement at regular points of conic problems" (2019), for the homogeneous
    embedding, of which this is the part with ``tau = 1``.

    Examples
    --------
    >>> one = torch.ones(1)  # minimize x^2 / 2 - 3 x, where x <= 1: the multiplier is 2
    >>> program = (one[:, None], -3 * one, one[:, None], one)
    >>> normal_map(torch.tensor([1.0, 2.0]), *program, cones=Cones(nonnegative=1))
    tensor([0., 0.])
    """
    n = c.shape[-1]
    x, u = z[..., :n], z[..., n:]
    y = project_dual_cone(u, cones)
    return torch.cat([_times(P, x) + c + _times(A.mT, y), _times(A, x) + y - u - b], -1)


class Linearization(NamedTuple):
    """The `normal_map` at a point: its value, how large it is, and its Jacobian."""

    residual: Tensor
    error: Tensor
    jacobian: Callable[[], Tensor]


def linearize(z: Tensor, P: Tensor, c: Tensor, A: Tensor, b: Tensor, cones: Cones) -> Linearization:
    """Evaluate the `normal_map` and its Jacobian, ``[[P, A^T D], [A, D - I]]``.

    Parameters
    ----------
    z, P, c, A, b, cones
        As there; ``D`` is the Jacobian of the projection.

    Returns
    -------
    Linearization
        The residual ``(..., n + m)``; its relative error ``(...,)``: each part is divided by one
        plus the sizes (root mean squares) of the terms that it is a sum of; a function that
        returns the Jacobian ``(..., n + m, n + m)``.

    Examples
    --------
    >>> one = torch.ones(1)
    >>> program = (one[:, None], -3 * one, 3 * one[:, None], 3 * one)
    >>> linearize(torch.tensor([1.0, 2.0]), *program, Cones(nonnegative=1)).jacobian()
    tensor([[1., 3.],
            [3., 0.]])
    """
    n, lanes = c.shape[-1], z.shape[:-1]
    x, u = z[..., :n], z[..., n:]
    y, D = linearize_dual_projection(u, cones)
    curvature, prices, rows = _times(P, x), _times(A.mT, y), _times(A, x)
    slope, excess = curvature + c + prices, rows + y - u - b
    dual = 1 + ims.rms(curvature) + ims.rms(c) + ims.rms(prices)
    primal = 1 + ims.rms(rows) + ims.rms(y - u) + ims.rms(b)
    scaled = torch.cat([slope / dual.unsqueeze(-1), excess / primal.unsqueeze(-1)], -1)

    def jacobian() -> Tensor:
        J = z.new_empty(*lanes, z.shape[-1], z.shape[-1])
        J[..., :n, :n], J[..., :n, n:] = P, A.mT @ D
        J[..., n:, :n], J[..., n:, n:] = A, D
        J.diagonal(dim1=-2, dim2=-1)[..., n:] -= 1
        return J

    return Linearization(torch.cat([slope, excess], -1), ims.rms(scaled), jacobian)
