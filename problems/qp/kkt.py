"""The optimality conditions of a quadratic program, as one equation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SLIGHT", "QuadraticProgramValue", "kkt_residual", "slack_rounding", "times"]

SLIGHT = 10.0
"""So many tolerances, ``eps**0.75``, are nothing."""


class QuadraticProgramValue(NamedTuple):
    """The solution of a quadratic program and its multipliers; each has the batch in front.

    ``Q x + p + G^T lambda + A^T nu = 0``, ``lambda >= 0``, ``slack >= 0``, ``lambda_i slack_i = 0``
    and ``A x = b``, up to rounding. All are of the dtype and on the device of the program.

    Attributes
    ----------
    x
        The minimizer, ``(..., n)``.
    inequality_duals
        The multipliers ``lambda >= 0`` of ``G x <= h``, ``(..., m)``: the objective's rate of fall
        with ``h``.
    equality_duals
        The multipliers ``nu`` of ``A x = b``, ``(..., k)``, either sign: the objective's rate of
        fall with ``b``.
    slack
        ``h - G x``, ``(..., m)``; nonnegative up to rounding.
    objective
        The optimal value ``x^T Q x / 2 + p^T x``, ``(...)``.

    Examples
    --------
    >>> from implicit_solvers.problems.qp import quadratic_program
    >>> one = torch.ones(1)  # minimize x^2 / 2 - 3 x, where x <= 1
    >>> quadratic_program(one[:, None], -3 * one, G=one[:, None], h=one).value.inequality_duals
    tensor([2.])
    """

    x: Tensor
    inequality_duals: Tensor
    equality_duals: Tensor
    slack: Tensor
    objective: Tensor


def times(matrix: Tensor, v: Tensor) -> Tensor:
    """Return ``M v`` for ``M (..., m, n)`` and ``v (..., n)``."""
    # a row times the transpose is several times faster than a batch of columns
    if matrix.dim() == 3 and matrix.shape[:1] == v.shape[:-1]:
        return torch.bmm(v.unsqueeze(-2), matrix.mT).squeeze(-2)  # what matmul takes longer to find
    return (v.unsqueeze(-2) @ matrix.mT).squeeze(-2)


def kkt_residual(
    z: Tensor,
    Q: Tensor,
    p: Tensor,
    G: Tensor,
    h: Tensor,
    A: Tensor,
    b: Tensor,
    size: Tensor | None = None,
) -> Tensor:
    r"""Evaluate the Karush-Kuhn-Tucker conditions at ``z = (x, lambda, nu)``.

    .. math:: F(z) = (Q x + p + G^T \lambda + A^T \nu, \;
              c(\lambda, h - G x), \; A x - b)

    Complementarity is ``c(lambda, s) = -s`` where ``lambda > s`` (the constraint is active) and
    ``lambda`` elsewhere, in size ``min(lambda, s)``: it vanishes exactly if both are nonnegative
    and one is zero. A slack that is nothing beside its terms counts as zero: then the sign of the
    multiplier says which constraints are active.

    Parameters
    ----------
    z
        Unknowns ``(..., n + m + k)``.
    Q, p, G, h, A, b
        The program: ``(..., n, n)``, symmetric, ``(..., n)``, ``(..., m, n)``, ``(..., m)``,
        ``(..., k, n)``, ``(..., k)``, of one floating dtype. Where ``h`` is infinite there is no
        constraint.
    size
        About how large ``x`` is, ``(...)``, if it is not what it is in ``z``.

    Returns
    -------
    Tensor
        Like ``z``.

    Raises
    ------
    RuntimeError
        If shapes or dtypes do not fit (torch refuses; `quadratic_program` checks them).

    Notes
    -----
    Source: Facchinei and Pang, "Finite-Dimensional Variational Inequalities and Complementarity
    Problems" (2003), section 1.5, the natural map.

    Examples
    --------
    >>> one = torch.ones(1)  # minimize x^2 / 2 - 3 x, where x <= 1
    >>> program = (one[:, None], -3 * one, one[:, None], one, one[:0, None], one[:0])
    >>> kkt_residual(torch.tensor([1.0, 2.0]), *program)
    tensor([0., 0.])
    """
    x, duals, multipliers = z.split([p.shape[-1], h.shape[-1], b.shape[-1]], -1)
    over = times(G, x) - h
    stationarity = times(Q, x) + p + times(G.mT, duals) + times(A.mT, multipliers)
    active = duals > -torch.where(over.abs() <= slack_rounding(x, G, h, size), 0.0, over)
    complementarity = torch.where(active, over, duals)
    return torch.cat([stationarity, complementarity, times(A, x) - b], -1)


def slack_rounding(x: Tensor, G: Tensor, h: Tensor, size: Tensor | None) -> Tensor:
    """Return which slack ``(..., m)`` is nothing beside the terms that it is a difference of."""
    with torch.no_grad():
        reach = torch.linalg.vector_norm(x, dim=-1)
        reach = reach if size is None else torch.maximum(reach, size)
        terms = h.abs() + torch.linalg.vector_norm(G, dim=-1) * reach.unsqueeze(-1)
        return torch.where(
            terms < torch.inf, SLIGHT * torch.finfo(x.dtype).eps ** 0.75 * terms, 0.0
        )
