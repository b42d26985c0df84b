"""Proofs that a program has no solution, read off diverging iterates."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problems.qp.condensed import condense, penalties, solve_condensed
from implicit_solvers.problems.qp.kkt import times

__all__ = ["least_violation", "proves_infeasible", "proves_unbounded"]

_NEWTON_STEPS = 30


def proves_infeasible(R: Tensor, c: Tensor, y: Tensor, m: int, x: Tensor, tol: float) -> Tensor:
    """Tell whether multipliers prove that no ``x`` meets the constraints.

    With ``y >= 0`` on inequalities, a feasible ``u`` would have ``y^T R u <= c^T y``. If that is
    negative and ``R^T y`` is small, ``|u|_1`` must exceed ``-c^T y / |R^T y|_inf``: the constraints
    are called infeasible if nothing shorter than ``(1 + |x|_1) / tol`` can meet them.

    ``R (N, m + k, n)`` and ``c (N, m + k)`` have the ``m`` inequalities first, whose
    multipliers count as zero where they are negative; ``x (N, n)`` is the iterate.

    Source: Farkas's lemma; Todd, "Detecting infeasibility in infeasible-interior-point methods for
    optimization" (2003).

    Examples
    --------
    >>> import torch
    >>> R, c = torch.tensor([[[1.0], [-1.0]]]), torch.tensor([[0.0, -1.0]])  # x <= 0 and x >= 1
    >>> proves_infeasible(R, c, torch.tensor([[5.0, 5.0]]), 2, torch.zeros(1, 1), 1e-6)
    tensor([True])
    """
    y = y.clone()
    y[:, :m].clamp_(min=0)
    gap = -(c * y).sum(-1)
    slope = times(R.mT, y).abs().amax(-1)
    return (gap > _rounding(c * y)) & (slope * (1 + x.abs().sum(-1)) <= tol * gap)


def proves_unbounded(
    Q: Tensor, p: Tensor, R: Tensor, d: Tensor, m: int, y: Tensor, tol: float
) -> Tensor:
    """Tell whether a direction proves that the objective falls without end.

    ``Q d = 0``, ``G d <= 0``, ``A d = 0`` and ``p^T d < 0``, up to ``tol``: then no multipliers
    shorter than ``(1 + |y|_1) / tol`` meet the dual's constraints.

    ``R`` is ``G``, of ``m`` rows, above ``A``; ``y (N, m + k)`` are the multipliers at hand.

    Examples
    --------
    >>> import torch
    >>> Q, p, R = torch.zeros(1, 1, 1), torch.ones(1, 1), torch.ones(1, 1, 1)  # x, where x <= 1
    >>> proves_unbounded(Q, p, R, torch.tensor([[-9.0]]), 1, torch.zeros(1, 1), 1e-6)
    tensor([True])
    """
    fall = -(p * d).sum(-1)
    change = times(R, d)
    change[:, :m].clamp_(min=0)
    curvature = times(Q, d).abs().amax(-1)
    worst = curvature if change.shape[-1] == 0 else curvature.maximum(change.abs().amax(-1))
    return (fall > _rounding(p * d)) & (worst * (1 + y.abs().sum(-1)) <= tol * fall)


def least_violation(R: Tensor, c: Tensor, m: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Find where the constraints are violated least, and the multipliers that say so.

    ``f(x) = sum_i w_i v_i^2 / 2`` with the violations ``v = max(G x - h, 0)`` and ``A x - b`` and
    ``w_i`` the inverse square of the row's norm. At its minimum ``R^T y = 0`` for ``y = w v``, and
    ``c^T y = -2 f``: if the least violation is not zero, ``y`` proves the constraints infeasible.
    Newton's method with a choice of step lengths; ``f`` is piecewise quadratic.

    ``R`` is ``G``, of ``m`` rows, above ``A``, and ``c`` is ``h`` above ``b``; ``x`` is the start.

    Source: Mangasarian, "A finite Newton method for classification" (2002).

    Examples
    --------
    >>> import torch
    >>> R, c = torch.tensor([[[1.0], [-1.0]]]), torch.tensor([[0.0, -1.0]])  # x <= 0 and x >= 1
    >>> least_violation(R, c, 2, torch.zeros(1, 1))[0]
    tensor([[0.5000]])
    """
    zero = torch.zeros_like(R.mT @ R)
    scale = penalties(zero, R)
    lengths = 0.5 ** torch.arange(8, dtype=x.dtype, device=x.device)

    def violation(x: Tensor) -> Tensor:
        v = x @ R.mT - c.unsqueeze(-2)
        return torch.cat([v[..., :m].clamp(min=0), v[..., m:]], -1)

    for _ in range(_NEWTON_STEPS):
        v = violation(x.unsqueeze(-2)).squeeze(-2)
        weights = scale.masked_fill(v == 0, 0.0)
        L, _ = condense(zero, R, weights)
        step = -solve_condensed(L, times(R.mT, weights * v))
        tried = x.unsqueeze(-2) + lengths[:, None] * step.unsqueeze(-2)
        f = (scale.unsqueeze(-2) * violation(tried).square()).sum(-1)
        best = torch.where(torch.isfinite(f), f, torch.inf).argmin(-1)
        nearer = tried.gather(-2, best[:, None, None].expand(-1, 1, x.shape[-1])).squeeze(-2)
        x = torch.where(torch.isfinite(nearer), nearer, x)
    return x, scale * violation(x.unsqueeze(-2)).squeeze(-2)


def _rounding(terms: Tensor) -> Tensor:
    """Return what the rounding of the program's entries may do to a sum of terms."""
    return 100 * torch.finfo(terms.dtype).eps * terms.abs().sum(-1)
