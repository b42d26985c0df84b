"""Quadratic programs as a differentiable function of their six inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.qp.condensed import CondensedKKT
from implicit_solvers.problems.qp.interior_point import InteriorPoint
from implicit_solvers.problems.qp.kkt import (
    SLIGHT,
    QuadraticProgramValue,
    kkt_residual,
    slack_rounding,
    times,
)
from implicit_solvers.problems.qp.standard_form import size_of

__all__ = ["quadratic_program"]

_NAMES = ("Q", "p", "G", "h", "A", "b")
_RANKS = (2, 1, 2, 1, 2, 1)


def quadratic_program(
    Q: Tensor,
    p: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    *,
    start: ims.Solution | QuadraticProgramValue | None = None,
    solver: Any = None,
    adjoint: ims.ImplicitAdjoint | None = None,
    on_failure: Literal["raise", "warn", "mask"] = "raise",
) -> ims.Solution:
    r"""Solve convex quadratic programs, with derivatives in all six inputs.

    .. math:: \min_x \tfrac12 x^\top Q x + p^\top x
              \quad\text{such that}\quad G x \le h, \; A x = b

    The derivatives are those of `kkt_residual`, in every mode of torch and to any order. Leading
    dimensions are a batch, as are those of ``torch.func.vmap``; inputs without them are shared, and
    get the sum of the gradients.

    Parameters
    ----------
    Q
        ``(..., n, n)``, positive semidefinite; its symmetric part is used. Zeros make a linear
        program.
    p
        ``(..., n)``, of the same floating dtype and device, like all that follow.
    G, h
        The inequalities, ``(..., m, n)`` and ``(..., m)``; both or neither.
    A, b
        The equalities, ``(..., k, n)`` and ``(..., k)``; both or neither. Rows may depend on one
        another.
    start
        What an earlier call returned, or its value. The solver first tries the constraints that are
        active there. If they still are, a solve takes one factorization; if not, it finds the same
        solution. It gets no gradient.
    solver
        `InteriorPoint`, by default; any solver for `implicit_solvers.root` is accepted.
    adjoint
        How to differentiate; without a linear solver in it, by `CondensedKKT`.
    on_failure
        As in `implicit_solvers.root`. A problem fails as INFEASIBLE, UNBOUNDED, INDEFINITE (``Q``
        is not positive semidefinite), NONFINITE, STALLED or MAX_STEPS.

    Returns
    -------
    implicit_solvers.Solution
        Its value is a `QuadraticProgramValue`: the minimizer, the multipliers, the slack, the
        optimal value. ``degenerate`` says in which problems a multiplier and its slack are both
        zero.

    Raises
    ------
    implicit_solvers.ConvergenceError
        If a problem fails and ``on_failure="raise"``; out of ``backward()`` too, where the
        minimizer is not unique and a derivative in need of that was asked for.
    TypeError, ValueError
        If an input is invalid; the message names it.

    Notes
    -----
    Where a constraint without slack has the multiplier zero, the minimizer has a kink, and a
    derivative to each side. So it has where active rows depend on one another: then rows of a
    linearly independent choice have multipliers, nonnegative ones, and the others zero. The
    derivative returned is the one with the rows active that have multipliers; if the minimizer
    would not be unique without some of the others, with these too. Such problems are
    ``degenerate``, which ``on_failure="warn"`` warns about. Equalities may depend on one another:
    the multipliers, not being unique, have no derivatives then; those of the nearest consistent
    system are used.

    Source: Amos and Kolter, "OptNet: Differentiable Optimization as a Layer in Neural Networks"
    (2017); Nocedal and Wright, "Numerical Optimization", chapter 16.

    Examples
    --------
    The point nearest to ``v`` whose entries sum to one, none above 0.6:

    >>> v = torch.tensor([0.9, 0.5, -0.2], dtype=torch.float64, requires_grad=True)
    >>> I, one = torch.eye(3).double(), torch.ones(1).double()
    >>> sol = quadratic_program(I, -v, G=I, h=0.6 * one.expand(3), A=one.expand(1, 3), b=one)
    >>> sol.value.x.detach()
    tensor([ 0.6000,  0.5500, -0.1500], dtype=torch.float64)
    >>> torch.autograd.grad(sol.value.x[1], v)[0].round(decimals=6).abs()
    tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    G, h = _pair(("G", G), ("h", h), p)
    A, b = _pair(("A", A), ("b", b), p)
    operands = (Q, p, G, h, A, b)
    grid = _check(operands)
    n, m, k = p.shape[-1], h.shape[-1], b.shape[-1]
    solver = InteriorPoint() if solver is None else solver
    adjoint = ims.ImplicitAdjoint() if adjoint is None else adjoint
    if adjoint.linear_solver is None or isinstance(adjoint.linear_solver, CondensedKKT):
        adjoint = replace(adjoint, linear_solver=CondensedKKT(n, m))
    operands = ((Q + Q.mT) / 2, *operands[1:])
    with torch.no_grad():
        size = size_of(*operands)
    lanes, batched = math.prod(grid), len(grid) > 0
    args, dims = [], []
    for tensor, rank in zip((*operands, size), (*_RANKS, 0), strict=True):
        shared = tensor.dim() == rank
        if not shared:
            own = tensor.shape[tensor.dim() - rank :]
            tensor = tensor.expand(*grid, *own).reshape(lanes, *own)
        args.append(tensor)
        dims.append(None if shared else 0)
    z0 = p.new_zeros((lanes,) * batched + (n + m + k,))
    if start is not None:
        z0 = _read_start(start, p, grid, (n, m, k)).reshape(z0.shape)
    solution: ims.Solution[Any] = ims.root(
        kkt_residual,
        z0,
        tuple(args),
        solver=solver,
        adjoint=adjoint,
        batch_dims=int(batched),
        in_dims=tuple(dims) if batched else None,
        on_failure=on_failure,
    )
    z = solution.value.reshape(*grid, n + m + k)
    status = solution.status.reshape(grid)
    x, duals, multipliers = z.split([n, m, k], -1)
    slack, objective = _slack_and_objective(x, operands[0], p, G, h)
    if on_failure == "mask":  # lanes that failed contribute to no gradient, not zero times NaN
        failed = status > int(ims.Status.BUDGET)
        kept = _slack_and_objective(*(t.detach() for t in (x, operands[0], p, G, h)))
        safe = torch.where(failed.unsqueeze(-1), 0.0, x)
        slack, objective = _slack_and_objective(safe, operands[0], p, G, h)
        slack = torch.where(failed.unsqueeze(-1), kept[0], slack)
        objective = torch.where(failed, kept[1], objective)
    degenerate = _degenerate(z.detach(), operands, size, slack.detach())
    if on_failure == "warn":
        ims.warn_degenerate("quadratic_program", degenerate)
    return replace(
        solution,
        value=QuadraticProgramValue(x, duals, multipliers, slack, objective),
        converged=solution.converged.reshape(grid),
        iterations=solution.iterations.reshape(grid),
        residual=solution.residual.reshape(grid),
        error=solution.error.reshape(grid),
        status=status,
        degenerate=degenerate,
    )


def _slack_and_objective(
    x: Tensor, Q: Tensor, p: Tensor, G: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    return h - times(G, x), ((times(Q, x) / 2 + p) * x).sum(-1)


def _read_start(start: Any, p: Tensor, grid: tuple[int, ...], sizes: Sequence[int]) -> Tensor:
    """Return the unknowns of an earlier solution, or refuse it."""
    value = start.value if isinstance(start, ims.Solution) else start
    if not isinstance(value, QuadraticProgramValue):
        raise TypeError(
            f"start is a {type(start).__name__}: pass what quadratic_program returned, or its value"
        )
    parts = value[:3]
    if [t.shape[-1] for t in parts] != list(sizes) or value.x.dtype != p.dtype:
        raise ValueError(
            f"start has the sizes {[t.shape[-1] for t in parts]} in {value.x.dtype}, and the "
            f"program n = {sizes[0]}, m = {sizes[1]}, k = {sizes[2]} in {p.dtype}: pass the "
            "solution of a program of the same sizes"
        )
    z = torch.cat(parts, -1).detach()
    try:
        z = z.expand(*grid, z.shape[-1])
    except RuntimeError:
        raise ValueError(
            f"start has the batch {tuple(z.shape[:-1])}, and the program {grid}: pass as many, "
            "or one"
        ) from None
    return torch.where(z.isfinite().all(-1, keepdim=True), z, 0.0)


def _degenerate(z: Tensor, operands: Sequence[Tensor], size: Tensor, slack: Tensor) -> Tensor:
    """Tell in which lanes a multiplier and its slack are both nothing beside their terms."""
    Q, p, G, h, A, b = (t.detach() for t in operands)
    x, duals, multipliers = z.split([p.shape[-1], h.shape[-1], b.shape[-1]], -1)
    parts = times(Q, x), p, times(G.mT, duals), times(A.mT, multipliers)
    terms = sum(part.abs().amax(-1, keepdim=True) for part in parts)
    least = SLIGHT * torch.finfo(z.dtype).eps ** 0.75 * terms
    idle = duals * torch.linalg.vector_norm(G, dim=-1) <= least
    return (idle & (slack.abs() <= slack_rounding(x, G, h, size))).any(-1)


def _pair(
    matrix: tuple[str, Tensor | None], bound: tuple[str, Tensor | None], p: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the constraints, none where they were left out."""
    (name, rows), (other, right) = matrix, bound
    if rows is None and right is None:
        like = p if isinstance(p, Tensor) and p.dim() > 0 else torch.zeros(1)
        return like.new_zeros(0, like.shape[-1]), like.new_zeros(0)
    if rows is None or right is None:
        given, lacking = (other, name) if rows is None else (name, other)
        raise ValueError(f"{given} was given without {lacking}: pass both, or neither")
    return rows, right


def _check(operands: Sequence[Any]) -> tuple[int, ...]:
    """Return the shape of the grid of lanes, or raise what is wrong with the inputs."""
    p = operands[1]
    for name, t, rank in zip(_NAMES, operands, _RANKS, strict=True):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is a {type(t).__name__}: pass a tensor")
        if not t.is_floating_point():
            raise TypeError(f"{name} is {t.dtype}: pass float32 or float64")
        if t.dim() < rank:
            what = "a matrix" if rank == 2 else "a vector"
            raise ValueError(
                f"{name} has the shape {tuple(t.shape)}: pass {what}, with the batch in front"
            )
    n, m, k = p.shape[-1], operands[3].shape[-1], operands[5].shape[-1]
    if n == 0:
        raise ValueError(f"p has the shape {tuple(p.shape)}: pass at least one variable")
    fit = ((n, n), (n,), (m, n), (m,), (k, n), (k,))
    for name, t, shape in zip(_NAMES, operands, fit, strict=True):
        if t.dtype != p.dtype or t.device != p.device:
            raise TypeError(
                f"{name} is {t.dtype} on {t.device}, and p is {p.dtype} on {p.device}: use one "
                "dtype and device"
            )
        if tuple(t.shape[t.dim() - len(shape) :]) != shape:
            sizes = f"p has n = {n}, h has m = {m}, b has k = {k}"
            raise ValueError(
                f"{name} has the shape {tuple(t.shape)}, and should end in {shape}: {sizes}"
            )
    leading = [t.shape[: t.dim() - r] for t, r in zip(operands, _RANKS, strict=True)]
    try:
        return tuple(torch.broadcast_shapes(*leading))
    except RuntimeError:
        shown = ", ".join(
            f"{name} {tuple(s)}" for name, s in zip(_NAMES, leading, strict=True) if len(s)
        )
        raise ValueError(f"the batches do not broadcast: {shown}") from None
