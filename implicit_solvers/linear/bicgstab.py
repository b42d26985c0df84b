"""Stabilized biconjugate gradients. It knows ``A`` by its products alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.linear.inner_products import inner
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.ranks import norm
from implicit_solvers.solution import Status
from implicit_solvers.solver import LinearMethod
from implicit_solvers.tolerance import largest, power_of_two, rms

__all__ = ["BiCGStab"]

_RESTARTS = 2


class BiCGStabState(NamedTuple):
    """The state of `BiCGStab`; ``shadow`` is the vector that residuals are made orthogonal to.

    ``best`` is the least error so far that was a gain, ``since`` the steps after it, ``restarts``
    how often the recurrence began again. Residuals are measured in ``size``, and their products
    multiplied by ``scale``: powers of two, so that no square of them under- or overflows.
    """

    z: Tensor
    residual: Tensor
    shadow: Tensor
    direction: Tensor
    rho: Tensor
    best: Tensor
    since: Tensor
    restarts: Tensor
    size: Tensor
    scale: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class BiCGStab(LinearMethod):
    """Stabilized biconjugate gradients, for any regular operator, in memory of a few vectors.

    A step makes two products. Preconditioning is from the right, so that the residual is that of
    the system itself. Where the recurrence breaks down, or gains nothing in ``n`` steps, it begins
    again from the residual, twice; then the problem ends with status BREAKDOWN. Nearly
    skew-symmetric operators are hard for it (use `GMRES`). Source: van der Vorst, "Bi-CGSTAB: a
    fast and smoothly converging variant of Bi-CG for the solution of nonsymmetric linear systems",
    SIAM J. Sci. Stat. Comput. 13 (1992).

    For square operators ``(*batch, n, n)`` of every floating and complex dtype, known by their
    products.

    Parameters
    ----------
    rtol, atol, max_steps, compact, chunk_size, check_every, compile
        As in `LinearMethod`.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[2.0, 1.0], [0.0, 4.0]]))
    >>> ims.linear_solve(A, torch.tensor([3.0, 4.0]), solver=BiCGStab()).value
    tensor([1.0000, 1.0000])
    """

    spreads: ClassVar[bool] = True

    def init(self, problem: LinearProblem, x: Tensor) -> BiCGStabState:
        """Start at ``x``."""
        r = problem.first_residual(x)
        none, error = torch.zeros(len(x), dtype=torch.int64, device=x.device), rms(r)
        size = _power(r)
        r = r / size
        scale = 1 / _power(problem.A.mv(problem.precondition(r)))
        return BiCGStabState(x, r, r, r, inner(r, r), error, none, none, size, scale, error, none)

    def step(self, problem: LinearProblem, state: BiCGStabState) -> BiCGStabState:
        """Make a step of biconjugate gradients and one that minimizes the residual."""
        eps = torch.finfo(state.z.dtype).eps
        r, shadow = state.residual, state.shadow
        forward = problem.precondition(state.direction)
        v = problem.A.mv(forward) * state.scale
        along = inner(shadow, v)
        lost = along.abs() <= eps * _norm(shadow) * _norm(v)
        alpha = torch.where(lost, 0.0, state.rho / along)
        s = r - alpha * v
        ahead = problem.precondition(s)
        t = problem.A.mv(ahead) * state.scale
        square = inner(t, t)
        omega = torch.where(square == 0, 0.0, inner(t, s) / square)
        back = state.size * state.scale
        x = state.z + (alpha * back) * forward + (omega * back) * ahead
        residual = s - omega * t
        rho = inner(shadow, residual)
        beta = (rho / state.rho) * (alpha / omega)
        # a shadow that says nothing of the residual any more is replaced by it
        again = lost | (omega == 0) | (rho.abs() <= eps * _norm(shadow) * _norm(residual))
        error = rms(residual) * state.size.squeeze(-1)
        error = torch.where(torch.isfinite(along.abs().squeeze(-1)), error, torch.nan)
        gained = error < 0.99 * state.best
        since = torch.where(gained, 0, state.since + 1)
        again = again | (since > problem.entries(state.z)).unsqueeze(-1)
        direction = residual + beta * (state.direction - omega * v)
        direction = torch.where(again, residual, direction)
        shadow = torch.where(again, residual, shadow)
        rho = torch.where(again, inner(residual, residual), rho)
        fresh = again.squeeze(-1)
        stuck = (lost & (omega == 0)).squeeze(-1) | (fresh & (state.restarts == _RESTARTS))
        flag = torch.where(stuck & (error > eps * rms(problem.b)), int(Status.BREAKDOWN), 0)
        best, since = torch.where(gained, error, state.best), torch.where(fresh, 0, since)
        restarts = state.restarts + fresh
        end = best, since, restarts, state.size, state.scale, error, flag
        return BiCGStabState(x, residual, shadow, direction, rho, *end)


def _power(v: Tensor) -> Tensor:
    return power_of_two(largest(v)).unsqueeze(-1)


def _norm(v: Tensor) -> Tensor:
    return norm(v, keepdim=True)
