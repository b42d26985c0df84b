"""The Birkhoff polytope: matrices with given row and column sums, by entropy."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.projections.validation import check_array, check_number

__all__ = ["sinkhorn"]


def log_sums(
    z: Tensor, scores: Tensor, log_rows: Tensor, log_columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Return by how much the logarithms of row and column sums are off."""
    f, g = z.split([scores.shape[-2], scores.shape[-1]], -1)
    logs = scores + f.unsqueeze(-1) + g.unsqueeze(-2)
    return logs.logsumexp(-1) - log_rows, logs.logsumexp(-2) - log_columns


def balance(z: Tensor, scores: Tensor, log_rows: Tensor, log_columns: Tensor) -> Tensor:
    r"""Evaluate the equations of the potentials ``z = (f, g)``.

    ``P = exp(S + f_i + g_j)`` does not change when a number is added to ``f`` and taken from
    ``g``: the sums alone have a singular Jacobian. With ``t = mean(f) - mean(g)`` added to the
    rows' equations and taken from the columns', a root has row sums ``r e^-t`` and column sums
    ``c e^t``; as both add up to the same mass, ``t = 0``, and the root is unique and regular.
    """
    rows, columns = log_sums(z, scores, log_rows, log_columns)
    f, g = z.split([scores.shape[-2], scores.shape[-1]], -1)
    gauge = f.mean(-1, keepdim=True) - g.mean(-1, keepdim=True)
    return torch.cat([rows + gauge, columns - gauge], -1)


def sinkhorn(
    scores: Tensor,
    row_sums: Tensor | None = None,
    column_sums: Tensor | None = None,
    *,
    temperature: float = 1.0,
    sweeps: int = 30,
    solver: Any = None,
    on_failure: Literal["raise", "warn", "mask"] = "raise",
) -> Tensor:
    r"""Find the matrix with given row and column sums that fits the scores best, less its entropy.

    .. math:: \max_{P \ge 0} \langle P, S \rangle - T \sum_{ij} P_{ij} (\log P_{ij} - 1)
              \quad\text{such that}\quad P 1 = r, \; P^\top 1 = c .

    It is the projection, in the sense of Kullback and Leibler, of ``exp(S / T)`` onto the
    transport polytope; with sums of one, onto the Birkhoff polytope, whose corners are the
    permutations. ``P_ij = exp(S_ij / T + f_i + g_j)``: some sweeps of Sinkhorn's iteration in the
    log domain, then a root solver on the equations of ``f`` and ``g``, which also give the
    derivatives.

    Parameters
    ----------
    scores
        ``S (..., n, m)``, floating; minus a cost, in optimal transport.
    row_sums, column_sums
        ``r (..., n)`` and ``c (..., m)``, positive, of the same total; by default equal, ones where
        neither is given. A lane with an entry that is not positive, or with totals that differ by
        more than ``sqrt(eps)``, fails (as NONFINITE).
    temperature
        ``T``; the smaller, the nearer to a corner, and the harder.
    sweeps
        The number of sweeps before the root solver begins.
    solver
        A solver for `implicit_solvers.root`; its default, if left out.
    on_failure
        As in `implicit_solvers.root`.

    Returns
    -------
    Tensor
        ``P``, like ``scores``, differentiable in ``scores`` and in both sums to any order. The
        derivatives are those of the sums as they are given: perturb rows and columns so that the
        totals stay equal.

    Raises
    ------
    implicit_solvers.ConvergenceError
        If a lane fails and ``on_failure="raise"``; it tells totals that differ.
    TypeError, ValueError
        If an argument is unfit; the message names it.

    Notes
    -----
    Source: Cuturi, "Sinkhorn Distances" (2013); Mena et al., "Learning Latent Permutations with
    Gumbel-Sinkhorn Networks" (2018).

    Examples
    --------
    >>> P = sinkhorn(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    >>> P.round(decimals=4)
    tensor([[0.8808, 0.1192],
            [0.1192, 0.8808]])
    """
    scores = check_array("scores", scores, 2) / check_number("temperature", temperature, 0.0)
    lanes, (n, m) = scores.shape[:-2], scores.shape[-2:]
    count = math.prod(lanes)
    if row_sums is None:
        row_sums = scores.new_ones(n)
        if column_sums is not None:
            mass = check_array("column_sums", column_sums).sum(-1, keepdim=True)
            row_sums = mass.to(scores) * scores.new_ones(n) / n
    if column_sums is None:
        mass = check_array("row_sums", row_sums).sum(-1, keepdim=True)
        column_sums = mass.to(scores) * scores.new_ones(m) / m
    rows = _sums("row_sums", row_sums, scores, n).reshape(count, n)
    columns = _sums("column_sums", column_sums, scores, m).reshape(count, m)
    flat = scores.reshape(count, n, m)
    total, close = rows.sum(-1), torch.finfo(rows.dtype).eps ** 0.5
    same = (total - columns.sum(-1)).abs() <= close * total
    if on_failure == "raise" and not ims.transformed():
        _refuse_other_totals(total, columns.sum(-1), same)
    log_rows = torch.where(same.unsqueeze(-1), rows.log(), torch.nan)
    log_columns = columns.log()
    with torch.no_grad():
        g = torch.zeros_like(log_columns)
        f = torch.zeros_like(log_rows)
        for _ in range(sweeps):
            f = log_rows - (flat + g.unsqueeze(-2)).logsumexp(-1)
            g = log_columns - (flat + f.unsqueeze(-1)).logsumexp(-2)
        shift = (f.mean(-1, keepdim=True) - g.mean(-1, keepdim=True)) / 2
        start = torch.cat([f - shift, g + shift], -1)
    z = ims.root(
        balance,
        start,
        (flat, log_rows, log_columns),
        solver=solver,
        batch_dims=1,
        in_dims=(0, 0, 0),
        on_failure=on_failure,
    ).value
    f, g = z.split([n, m], -1)
    return (flat + f.unsqueeze(-1) + g.unsqueeze(-2)).exp().reshape(scores.shape)


def _refuse_other_totals(rows: Tensor, columns: Tensor, same: Tensor) -> None:
    """Raise where the totals ``(N,)`` of rows and columns, both numbers, are not the same."""
    apart = ~same & rows.isfinite() & columns.isfinite()
    if bool(apart.any()):
        lane = int(apart.nonzero()[0])
        count = f" ({int(apart.sum())} of {len(apart)} lanes differ)" if len(apart) > 1 else ""
        raise ims.ConvergenceError(
            f"sinkhorn is INFEASIBLE: row_sums add up to {rows[lane].item():.6g} and column_sums "
            f"to {columns[lane].item():.6g} in lane {lane}{count}, and no matrix has both; scale "
            "one of them"
        )


def _sums(name: str, sums: Tensor, scores: Tensor, n: int) -> Tensor:
    """Return the sums of every lane."""
    sums = check_array(name, sums)
    if sums.dtype != scores.dtype or sums.device != scores.device:
        raise TypeError(
            f"{name} is {sums.dtype} on {sums.device}, and scores is {scores.dtype} on "
            f"{scores.device}: use one dtype and device"
        )
    shape = (*scores.shape[:-2], n)
    try:
        if sums.shape[-1] == n:
            return sums.expand(shape)
    except RuntimeError:
        pass
    raise ValueError(
        f"{name} has the shape {tuple(sums.shape)}, which does not broadcast to {shape}"
    )
