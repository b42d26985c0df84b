"""The Birkhoff polytope: matrices with given row and column sums, by entropy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.projections.balancing import Balancing, ShiftedLU, balance
from implicit_solvers.problems.projections.validation import check_array, read_positive

__all__ = ["TransportPlan", "entropic_transport", "sinkhorn"]


class TransportPlan(NamedTuple):
    """A matrix with given sums, and its potentials; each tensor has the batch dimensions in front.

    Attributes
    ----------
    plan
        ``P = exp((S + f_i + g_j) / T)``, ``(..., n, m)``.
    row_potentials, column_potentials
        ``f (..., n)`` and ``g (..., m)``, of the scores' units: the dual variables of the sums. A
        number may move from ``f`` to ``g``; their means are equal.

    Examples
    --------
    >>> entropic_transport(torch.eye(2)).value.row_potentials
    tensor([-0.6566, -0.6566])
    """

    plan: Tensor
    row_potentials: Tensor
    column_potentials: Tensor


def sinkhorn(
    scores: Tensor,
    row_sums: Tensor | None = None,
    column_sums: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    max_steps: int = 200,
    on_failure: Literal["raise", "warn", "mask"] = "raise",
) -> Tensor:
    """Find the matrix with given row and column sums that fits the scores best, less its entropy.

    It is the ``value.plan`` of `entropic_transport`, where all arguments are explained.

    Parameters
    ----------
    scores, row_sums, column_sums, temperature, max_steps, on_failure
        As there.

    Returns
    -------
    Tensor
        ``P``, like ``scores``.

    Raises
    ------
    implicit_solvers.ConvergenceError
        If a problem fails and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Source: Mena et al., "Learning Latent Permutations with Gumbel-Sinkhorn Networks" (2018).

    Examples
    --------
    >>> P = sinkhorn(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    >>> P.round(decimals=4)
    tensor([[0.8808, 0.1192],
            [0.1192, 0.8808]])
    """
    return entropic_transport(
        scores,
        row_sums,
        column_sums,
        temperature=temperature,
        max_steps=max_steps,
        on_failure=on_failure,
    ).value.plan


def entropic_transport(
    scores: Tensor,
    row_sums: Tensor | None = None,
    column_sums: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    max_steps: int = 200,
    on_failure: Literal["raise", "warn", "mask"] = "raise",
) -> ims.Solution:
    r"""Find a matrix with given row and column sums, and its potentials: transport, with entropy.

    .. math:: \max_{P \ge 0} \langle P, S \rangle - T \sum_{ij} P_{ij} (\log P_{ij} - 1)
              \quad\text{such that}\quad P 1 = r, \; P^\top 1 = c .

    It is the projection, in the sense of Kullback and Leibler, of ``exp(S / T)`` onto the
    transport polytope; with sums of one, onto the Birkhoff polytope, whose corners are the
    permutations. ``P_ij = exp((S_ij + f_i + g_j) / T)``: Newton's method in the log domain finds
    ``f``, with the columns always in balance, first at a temperature as large as the scores, and
    then at lower and lower ones. The equations of ``f`` and ``g`` give the derivatives. All is
    computed in float64.

    Parameters
    ----------
    scores
        ``S (..., n, m)``, floating; minus a cost, in optimal transport. ``-inf`` rules an entry
        out.
    row_sums, column_sums
        ``r (..., n)`` and ``c (..., m)``, positive, of the same total; by default equal, ones where
        neither is given. A problem with an entry that is not positive, or with totals that differ
        by more than ``sqrt(eps)``, fails (as NONFINITE).
    temperature
        ``T``, a number or a tensor ``(...)``; the smaller, the nearer to a corner. A problem where
        it is not positive fails (as NONFINITE).
    max_steps
        The number of Newton steps allowed.
    on_failure
        As in `implicit_solvers.root`.

    Returns
    -------
    implicit_solvers.Solution
        Its value is a `TransportPlan`, like ``scores``, differentiable in ``scores``, in both sums
        and in the temperature to any order. The derivatives are those of the sums as they are
        given: perturb rows and columns so that the totals stay equal. The ``residual`` is the
        largest relative error of a row's sum.

    Raises
    ------
    implicit_solvers.ConvergenceError
        If a problem fails and ``on_failure="raise"``; it tells totals that differ.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    At low temperatures the matrix may fall into blocks that exchange less than rounding. The
    matrix and its derivatives do not mind; the potentials are then determined up to a number for
    each block, and have the derivatives of the smallest change.

    Source: Cuturi, "Sinkhorn Distances" (2013); Schmitzer, "Stabilized sparse scaling algorithms
    for entropy regularized transport problems" (2019), for the temperatures.

    Examples
    --------
    >>> solution = entropic_transport(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), temperature=1e-3)
    >>> solution.value.plan
    tensor([[1., 0.],
            [0., 1.]])
    """
    scores = check_array("scores", scores, 2)
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
    T = read_positive("temperature", temperature, scores[..., 0, 0], "scores").double()
    T = T.expand(lanes)
    total, close = rows.sum(-1), torch.finfo(rows.dtype).eps ** 0.5
    same = (total - columns.sum(-1)).abs() <= close * total
    if on_failure == "raise" and not ims.transformed():
        _refuse_other_totals(total, columns.sum(-1), same)
    # a lane that cannot be solved has ones, without part in a gradient, and a sum that fails
    fit = same & (T > 0).reshape(count) & (scores < torch.inf).all(-1).all(-1).reshape(count)
    fit = fit & (rows > 0).all(-1) & (columns > 0).all(-1)
    lane = fit.reshape(lanes)
    T = torch.where(lane, T, 1.0)
    ruled_out = scores == -torch.inf
    scaled = torch.where(ruled_out | ~lane[..., None, None], 0.0, scores).double()
    scaled = torch.where(ruled_out, -torch.inf, scaled / T[..., None, None]).reshape(count, n, m)
    one, fit = torch.ones_like(rows[:, :1]), fit.unsqueeze(-1)
    log_rows, log_columns = (torch.where(fit, t, one).double().log() for t in (rows, columns))
    solution: ims.Solution = ims.root(
        balance,
        scaled.new_zeros(count, n + m),
        (scaled, torch.where(fit, log_rows, torch.nan), log_columns),
        solver=Balancing(max_steps=max_steps),
        adjoint=ims.ImplicitAdjoint(linear_solver=ShiftedLU()),
        batch_dims=1,
        in_dims=(0, 0, 0),
        on_failure=on_failure,
    )
    f, g = solution.value.split([n, m], -1)
    plan = (scaled + f.unsqueeze(-1) + g.unsqueeze(-2)).exp().reshape(scores.shape)
    T = T.unsqueeze(-1)
    parts: tuple[Tensor, ...] = plan, T * f.reshape(*lanes, n), T * g.reshape(*lanes, m)
    if on_failure == "mask":  # lanes that failed contribute to no gradient
        fine = (solution.status <= int(ims.Status.BUDGET)).reshape(lanes)
        parts = tuple(torch.where(_like(fine, t), t, t.detach()) for t in parts)
    parts = tuple(torch.where(_like(lane, t), t, torch.nan) for t in parts)
    return replace(
        solution,
        value=TransportPlan(*(part.to(scores.dtype) for part in parts)),
        converged=solution.converged.reshape(lanes),
        iterations=solution.iterations.reshape(lanes),
        residual=solution.residual.reshape(lanes).to(scores.dtype),
        status=solution.status.reshape(lanes),
    )


def _like(lanes: Tensor, part: Tensor) -> Tensor:
    return lanes.reshape(*lanes.shape, *(1,) * (part.dim() - lanes.dim()))


def _refuse_other_totals(rows: Tensor, columns: Tensor, same: Tensor) -> None:
    """Raise where the totals ``(N,)`` of rows and columns, both numbers, are not the same."""
    apart = ~same & rows.isfinite() & columns.isfinite()
    if bool(apart.any()):
        lane = int(apart.nonzero()[0])
        count = f" ({int(apart.sum())} of {len(apart)} problems differ)" if len(apart) > 1 else ""
        raise ims.ConvergenceError(
            f"sinkhorn is INFEASIBLE: row_sums add up to {rows[lane].item():.9g} and column_sums "
            f"to {columns[lane].item():.9g} in problem {lane}{count}, and no matrix has both; "
            "scale one of them"
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
