"""Thresholds: the proximal operators of norms that make solutions sparse, or of low rank."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problems.projections.psd_cone import project_psd_cone
from implicit_solvers.problems.projections.row_norms import norm_beyond
from implicit_solvers.problems.projections.validation import check_array, read_threshold

__all__ = ["group_soft_threshold", "singular_value_threshold", "soft_threshold"]


def soft_threshold(v: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Move entries towards zero: the proximal operator of ``threshold sum_i |x_i|``.

    The result is ``sign(v_i) max(|v_i| - threshold, 0)``.

    Parameters
    ----------
    v
        Floating, of any shape.
    threshold
        A number that is not negative, or a tensor that broadcasts to ``v``; where one is negative
        the result is NaN.

    Returns
    -------
    Tensor
        Like ``v``, differentiable in both. At the threshold there is a kink; the entry counts as
        zero.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Source: Parikh and Boyd, "Proximal Algorithms" (2014), section 6.5.2.

    Examples
    --------
    >>> soft_threshold(torch.tensor([3.0, -0.5, -2.0]), 1.0)
    tensor([ 2.,  0., -1.])
    """
    v = check_array("v", v, 0)
    least = read_threshold(threshold, v)
    held = (v.abs() <= least) & (least > 0)
    return torch.where(held, 0.0, v - v.sign() * least)


def group_soft_threshold(v: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Shorten rows: the proximal operator of ``threshold |x|_2`` of each.

    The result is ``max(1 - threshold / |v|, 0) v``: a row as long as the threshold vanishes.

    Parameters
    ----------
    v
        ``(..., n)``, floating; each row is a group.
    threshold
        A number that is not negative, or a tensor that broadcasts to the batch; where it is
        negative, the result is NaN.

    Returns
    -------
    Tensor
        Like ``v``, differentiable in both. At the threshold there is a kink; the row counts as
        zero.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Source: Parikh and Boyd, "Proximal Algorithms" (2014), section 6.5.4.

    Examples
    --------
    >>> group_soft_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    v = check_array("v", v)
    least = read_threshold(threshold, v[..., 0]).unsqueeze(-1)
    held, size = norm_beyond(v, least)
    return torch.where(held & (least > 0), 0.0, v - least * (v / size))


def singular_value_threshold(V: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Move singular values towards zero: the proximal operator of ``threshold |X|_*``.

    The result is ``U max(S - threshold, 0) W^T`` of ``V = U S W^T``, where ``|X|_*``, the nuclear
    norm, is the sum of the singular values.

    Parameters
    ----------
    V
        ``(..., m, n)``, floating.
    threshold
        A number that is not negative, or a tensor that broadcasts to the batch.

    Returns
    -------
    Tensor
        Like ``V``, differentiable in both, also where singular values coincide. Where one is the
        threshold, and that is not zero, there is a kink. A problem that is not finite, or whose
        threshold is negative, comes out as NaN.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    The eigenvalues of ``[[0, V], [V^T, 0]]`` are the singular values, and minus these. So the
    result is twice a block of the projection of that matrix, less the threshold, onto the positive
    semidefinite ones. Source: Cai, Candes and Shen, "A Singular Value Thresholding Algorithm for
    Matrix Completion", SIAM J. Optim. 20 (2010).

    Examples
    --------
    >>> singular_value_threshold(torch.diag(torch.tensor([3.0, 0.5])), 1.0).round(decimals=4)
    tensor([[2., 0.],
            [0., 0.]])
    """
    V = check_array("V", V, 2)
    least = read_threshold(threshold, V[..., 0, 0]).reshape(-1, 1, 1)
    m, n = V.shape[-2:]
    flat = V.reshape(-1, m, n)
    zeros = flat.new_zeros(len(flat), m, m), flat.new_zeros(len(flat), n, n)
    top = torch.cat([zeros[0], flat], -1)
    both = torch.cat([top, torch.cat([flat.mT, zeros[1]], -1)], -2)
    # without a threshold this is V itself, also where singular values are zero
    both = torch.where(least > 0, both, both.detach())
    moved = both - least * torch.eye(m + n, dtype=V.dtype, device=V.device)
    kept = 2 * project_psd_cone(moved, on_failure="mask")[:, :m, m:]
    kept = torch.where(least > 0, kept, flat + (kept - kept.detach()))
    finite = moved.detach().isfinite().flatten(1).all(-1).reshape(-1, 1, 1)
    return torch.where(finite, kept, torch.nan).reshape(V.shape)
