"""The family of maps between softmax and sparsemax."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.projections.validation import check_array, check_lanes, check_number
from implicit_solvers.problems.special_functions.relative import log1prel

__all__ = ["entmax"]


def probabilities(tau: Tensor, scores: Tensor, alpha: Tensor) -> Tensor:
    """Return ``[1 + (alpha - 1) (s - tau)]_+^(1 / (alpha - 1))``, smooth towards ``alpha = 1``."""
    rise = scores - tau
    positive = (alpha - 1) * rise > -1
    # of what is not positive neither the power nor its derivative may be formed
    rise = torch.where(positive, rise, 0.0)
    return torch.where(positive, (rise * log1prel((alpha - 1) * rise)).exp(), 0.0)


def excess(tau: Tensor, scores: Tensor, alpha: Tensor) -> Tensor:
    """Evaluate the equation of ``tau (N, 1)``: what the probabilities sum to, less one."""
    return probabilities(tau, scores, alpha).sum(-1, keepdim=True) - 1


def entmax(
    scores: Tensor,
    alpha: float | Tensor = 1.5,
    *,
    on_failure: Literal["raise", "warn", "mask"] = "raise",
) -> Tensor:
    r"""Turn scores into probabilities that are the sparser the larger ``alpha`` is.

    .. math:: p_i = \max(1 + (\alpha - 1) (s_i - \tau), 0)^{1/(\alpha - 1)}, \quad
              \sum_i p_i = 1 .

    ``alpha = 1`` is softmax, ``alpha = 2`` is `sparsemax`. ``tau`` is found as a root, and
    differentiated as one.

    Parameters
    ----------
    scores
        ``(..., n)``, floating; minus infinity rules an entry out.
    alpha
        A number of at least 1, or a tensor above 1 that broadcasts to the batch; it may be trained.
    on_failure
        As in `implicit_solvers.root`; a problem with NaN fails.

    Returns
    -------
    Tensor
        Like ``scores``, differentiable in ``scores`` and ``alpha`` to any order, kinks aside.

    Raises
    ------
    implicit_solvers.ConvergenceError
        If a problem fails and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Source: Peters, Niculae and Martins, "Sparse Sequence-to-Sequence Models" (2019); the learned
    ``alpha``: Correia, Niculae and Martins, "Adaptively Sparse Transformers" (2019).

    Examples
    --------
    >>> entmax(torch.tensor([1.0, 0.5, -2.0]))
    tensor([0.6740, 0.3260, 0.0000])
    """
    scores = check_array("scores", scores)
    lanes, n = scores.shape[:-1], scores.shape[-1]
    if not isinstance(alpha, Tensor):
        if check_number("alpha", alpha, 1.0, strict=False) == 1:
            return scores.softmax(-1)
        alpha = scores.new_tensor(alpha)
    check_lanes("alpha", alpha, scores[..., 0], "scores")
    count = math.prod(lanes)
    # the largest score is moved to zero: large scores cost no digits
    rows = (scores - scores.detach().amax(-1, keepdim=True)).reshape(count, n)
    # minus infinity times the zero slope of an entry ruled out would be NaN
    rows = torch.where(rows.isneginf(), torch.finfo(rows.dtype).min / 1e6, rows)
    powers = alpha.expand(lanes).reshape(count, 1)
    with torch.no_grad():
        # with the largest score at zero, tau is between 0 and that of n equal scores
        fit = (powers > 1) & rows.isfinite().all(-1, True)
        least = torch.where(fit, 0.0, torch.nan).to(rows)
        most = -torch.expm1((1 - powers) * math.log(n)) / (powers - 1)
        most = least + most + 8 * torch.finfo(rows.dtype).eps * (1 + most)
    tau = ims.root(
        excess,
        least,
        (rows, powers),
        bracket=(least, most),
        batch_dims=1,
        in_dims=(0, 0),
        on_failure=on_failure,
    ).value
    return probabilities(tau, rows, powers).reshape(scores.shape)
