"""The optimality conditions of a cone program, as one equation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.convex.cones import Cones, project_dual_cone

__all__ = ["ProgramPattern", "normal_map"]


@dataclass(frozen=True, eq=False)
class ProgramPattern:
    """Which entries the matrices of a cone program may have, and its cones.

    Parameters
    ----------
    P, A
        The patterns ``(n, n)``, of both triangles, and ``(m, n)``.
    cones
        The cones, of dimension ``m``.

    Examples
    --------
    >>> ProgramPattern.dense(2, Cones(nonnegative=3)).A
    SparsityPattern(3 x 2, 6 entries, 2 colors)
    """

    P: ims.SparsityPattern
    A: ims.SparsityPattern
    cones: Cones
    _whole: tuple[Tensor, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Note where the entries of ``[[P, A^T], [A, 0]]`` are."""
        (P, A), n = (self.P, self.A), self.A.shape[1]
        rows, columns = (P.rows, A.columns, n + A.rows), (P.columns, n + A.rows, A.columns)
        object.__setattr__(self, "_whole", (torch.cat(rows), torch.cat(columns)))

    def times(self, P: Tensor, A: Tensor, v: Tensor) -> Tensor:
        """Return ``(P x + A^T y, A x)`` for ``v = (x, y)``."""
        rows, columns = self._whole
        entries = torch.cat([t.expand(*v.shape[:-1], t.shape[-1]) for t in (P, A, A)], -1)
        terms = entries * v[..., columns]
        return torch.zeros_like(v).index_add(-1, rows, terms)

    @staticmethod
    def dense(n: int, cones: Cones) -> ProgramPattern:
        """Return the pattern of programs of ``n`` variables with all entries, row by row."""
        P, A = (ims.SparsityPattern(torch.ones(rows, n)) for rows in (n, cones.size))
        return ProgramPattern(P, A, cones)


def normal_map(
    z: Tensor, P: Tensor, c: Tensor, A: Tensor, b: Tensor, *, pattern: ProgramPattern
) -> Tensor:
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
        The program: the entries ``(..., nnz)`` of a symmetric, positive semidefinite matrix,
        ``(..., n)``, the entries of the other matrix, ``(..., m)``, of the floating dtype of ``z``.
    pattern
        Where the entries are, and ``K``.

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
    >>> pattern = ProgramPattern.dense(1, Cones(nonnegative=1))
    >>> normal_map(torch.tensor([1.0, 2.0]), one, -3 * one, one, one, pattern=pattern)
    tensor([0., 0.])
    """
    n = c.shape[-1]
    x, u = z[..., :n], z[..., n:]
    y = project_dual_cone(u, pattern.cones)
    rest = torch.cat([c.expand(*z.shape[:-1], n), y - u - b], -1)
    return pattern.times(P, A, torch.cat([x, y], -1)) + rest
