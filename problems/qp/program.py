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
from implicit_solvers.problems.qp.kkt import QuadraticProgramValue, kkt_residual, times

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
    solver: Any = None,
    adjoint: ims.ImplicitAdjoint | None = None,
    on_failure: Literal["raise", "warn", "mask"] = "raise",
) -> ims.Solution:
    r"""Solve convex quadratic programs, with derivatives in all six inputs.

    .. math:: \min_x \tfrac12 x^\top Q x + p^\top x
              \quad\text{such that}\quad G x \le h, \; A x = b

    The derivatives are those of `kkt_residual`, in every mode of torch and to any order. Leading
    dimensions are lanes, and so is every ``torch.func.vmap``; inputs without them are shared by
    the lanes, and get the sum of the lanes' gradients.

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
    solver
        `InteriorPoint`, by default; any solver for `implicit_solvers.root` is accepted.
    adjoint
        How to differentiate; without a linear solver in it, by `CondensedKKT`.
    on_failure
        As in `implicit_solvers.root`. A lane fails as INFEASIBLE, UNBOUNDED, INDEFINITE (``Q`` is
        not positive semidefinite), NONFINITE, STALLED or MAX_STEPS.

    Returns
    -------
    implicit_solvers.Solution
        Its value is a `QuadraticProgramValue`: the minimizer, the multipliers, the slack.

    Raises
    ------
    implicit_solvers.ConvergenceError
        If a lane fails and ``on_failure="raise"``; out of ``backward()`` too, where the minimizer
        is not unique and a derivative in need of that was asked for.
    TypeError, ValueError
        If an input is unfit; the message names it.

    Notes
    -----
    Where an active constraint has the multiplier zero, the minimizer has a kink; the derivative
    returned there is the one without that constraint. Where active rows depend on one another,
    the minimizer has derivatives and the multipliers, not being unique, have none: those of the
    nearest consistent system are used.

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
    elif isinstance(solver, InteriorPoint):
        solver = replace(solver, keep_factors=False)
    lanes, batched = math.prod(grid), len(grid) > 0
    args, dims = [], []
    for tensor, rank in zip(((Q + Q.mT) / 2, *operands[1:]), _RANKS, strict=True):
        shared = tensor.dim() == rank
        if not shared:
            own = tensor.shape[tensor.dim() - rank :]
            tensor = tensor.expand(*grid, *own).reshape(lanes, *own)
        args.append(tensor)
        dims.append(None if shared else 0)
    solution: ims.Solution[Any] = ims.root(
        kkt_residual,
        p.new_zeros((lanes,) * batched + (n + m + k,)),
        tuple(args),
        solver=solver,
        adjoint=adjoint,
        batch_dims=int(batched),
        in_dims=tuple(dims) if batched else None,
        on_failure=on_failure,
    )
    z = solution.value.reshape(*grid, n + m + k)
    x, duals, multipliers = z.split([n, m, k], -1)
    return replace(
        solution,
        value=QuadraticProgramValue(x, duals, multipliers, h - times(G, x)),
        converged=solution.converged.reshape(grid),
        iterations=solution.iterations.reshape(grid),
        residual=solution.residual.reshape(grid),
        status=solution.status.reshape(grid),
    )


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
            raise ValueError(f"{name} has the shape {tuple(t.shape)}: pass {what}, lanes in front")
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
        raise ValueError(f"the lanes do not broadcast: {shown}") from None
