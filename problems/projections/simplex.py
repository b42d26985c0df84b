"""The probability simplex, and sparsemax."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problems.projections.validation import check_array, read_radius

__all__ = ["project_simplex", "sparsemax", "shrink"]


def shrink(v: Tensor, radius: Tensor) -> Tensor:
    r"""Return ``max(v - tau, 0)`` with the ``tau (..., 1)`` at which its sum is ``radius``.

    The support is found on sorted values; ``tau`` is its linear function of ``v`` and ``radius``,
    and has the derivatives of that. Lanes with NaN or infinite entries, or a radius that is not
    positive, come out as NaN; entries of minus infinity as zero.
    """
    # the largest entry becomes zero, so that the radius is not lost beside large entries
    v = v - v.detach().amax(-1, keepdim=True)
    fixed, size = v.detach(), radius.detach()
    ordered = fixed.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - size
    counts = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype, device=v.device)
    count = (ordered * counts > excess).sum(-1, keepdim=True).clamp(min=1)
    support = fixed > excess.gather(-1, count - 1) / count
    kept = support.sum(-1, keepdim=True).clamp(min=1)
    tau = (torch.where(support, v, 0.0).sum(-1, keepdim=True) - radius) / kept
    x = torch.where(support, (v - tau).clamp(min=0), 0.0)
    fit = ordered[..., :1].isfinite() & ~fixed.isnan().any(-1, True) & (size > 0)
    return torch.where(fit, x, torch.nan)


def project_simplex(v: Tensor, radius: float | Tensor = 1.0) -> Tensor:
    r"""Project onto the simplex ``{x : x >= 0, sum_i x_i = radius}``.

    The nearest point is ``x = max(v - tau, 0)`` with the ``tau`` that makes the sum right.

    Parameters
    ----------
    v
        ``(..., n)``, floating; each row is projected.
    radius
        Positive; a number, or a tensor that broadcasts to the batch. Where it is not positive, the
        result is NaN.

    Returns
    -------
    Tensor
        Like ``v``, differentiable in ``v`` and ``radius`` to any order and in every mode. Where
        an entry of ``v`` equals ``tau`` there is a kink; the entry counts as zero.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Source: Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions"
    (2008).

    Examples
    --------
    >>> project_simplex(torch.tensor([0.75, 0.5, -1.0]))
    tensor([0.6250, 0.3750, 0.0000])
    """
    v = check_array("v", v)
    return shrink(v, read_radius(radius, v))


def sparsemax(scores: Tensor) -> Tensor:
    r"""Turn scores into probabilities, exact zeros among them.

    It is the point of the probability simplex nearest to the scores, as softmax is the one of
    greatest ``p^T scores`` plus entropy.

    Parameters
    ----------
    scores
        ``(..., n)``, floating; minus infinity rules an entry out.

    Returns
    -------
    Tensor
        Like ``scores``.

    Raises
    ------
    TypeError, ValueError
        If ``scores`` is not a floating tensor, or has no entries.

    Notes
    -----
    Source: Martins and Astudillo, "From Softmax to Sparsemax" (2016).

    Examples
    --------
    >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    scores = check_array("scores", scores)
    return shrink(scores, scores.new_ones(1))
