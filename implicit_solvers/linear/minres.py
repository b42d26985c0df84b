"""Minimal residuals. It knows ``A`` by its products alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.linear.inner_products import real_inner
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import LinearMethod
from implicit_solvers.tolerance import rms

__all__ = ["MINRES"]


class MINRESState(NamedTuple):
    """The state of `MINRES`: the last two Lanczos vectors and the QR factorization's last column.

    ``old`` and ``new`` are the Lanczos vectors times their ``beta``s, ``y`` is ``M new``.
    """

    z: Tensor
    residual: Tensor
    old: Tensor
    new: Tensor
    y: Tensor
    old_beta: Tensor
    beta: Tensor
    above: Tensor
    diagonal: Tensor
    c: Tensor
    s: Tensor
    phi: Tensor
    direction: Tensor
    old_direction: Tensor
    size: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class MINRES(LinearMethod):
    """Minimal residuals, for symmetric operators, definite or not.

    Step ``k`` minimizes ``norm(b - A x)`` over a Krylov space of dimension ``k``, by short
    recurrences. A preconditioner must be symmetric positive definite; with one, the norm is that
    of the preconditioner, and convergence is still judged by the residual itself. A singular
    system that has a solution is solved; one that has none ends with status BREAKDOWN where
    ``|A r| <= sqrt(eps) |A| |r|`` for the residual ``r``, which is then the least. Source:
    Paige and Saunders, "Solution of sparse indefinite systems of linear equations", SIAM J. Numer.
    Anal. 12 (1975); the residual's recurrence: Choi, Paige and Saunders, "MINRES-QLP", SIAM J.
    Sci. Comput. 33 (2011).

    For square operators ``(*batch, n, n)`` of every floating and complex dtype, known by their
    products.

    Parameters
    ----------
    rtol, atol, max_steps, compact, chunk_size, check_every, compile
        As in `LinearMethod`.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it. A ValueError also when a solve
        begins with an operator that is not known to be symmetric.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), symmetric=True)
    >>> sol = ims.linear_solve(A, torch.tensor([3.0, 0.0]), solver=MINRES())
    >>> sol.value.round(decimals=3), int(sol.iterations)
    (tensor([-1.,  2.]), 2)
    """

    spreads: ClassVar[bool] = True
    symmetric_only: ClassVar[bool] = True

    def init(self, problem: LinearProblem, x: Tensor) -> MINRESState:
        """Start at ``x``."""
        if not problem.A.symmetric:
            raise ValueError(
                "solver=MINRES() needs a symmetric operator, and this one is not known to be "
                "symmetric: pass symmetric=True to the operator if it is, or use GMRES() or LU()"
            )
        r = problem.residual(x)
        y = problem.precondition(r)
        squared = real_inner(r, y)
        beta = squared.clamp(min=0).sqrt()
        zero, nothing = torch.zeros_like(beta), torch.zeros_like(x)
        flag = torch.where(squared.squeeze(-1) < 0, int(Status.INDEFINITE), 0)
        return MINRESState(
            x,
            r,
            nothing,
            r,
            y,
            zero,
            beta,
            zero,
            zero,
            -torch.ones_like(beta),
            zero,
            beta,
            nothing,
            nothing,
            zero,
            rms(r),
            flag,
        )

    def step(self, problem: LinearProblem, state: MINRESState) -> MINRESState:
        """Add a Lanczos vector, rotate its column of the tridiagonal matrix, and follow it."""
        st, eps = state, torch.finfo(state.z.dtype).eps
        ended = st.beta == 0
        inverse = torch.where(ended, 0.0, 1 / st.beta)
        v = inverse * st.y
        w = problem.A.mv(v)
        w = w - torch.where(st.old_beta == 0, 0.0, st.beta / st.old_beta) * st.old
        alpha = real_inner(v, w)
        w = w - (alpha * inverse) * st.new
        y = problem.precondition(w)
        squared = real_inner(w, y)
        beta = squared.clamp(min=0).sqrt()
        # the largest entry seen of the tridiagonal matrix: what rounding is measured by
        size = torch.maximum(st.size, torch.maximum(alpha.abs(), st.beta * (st.old_beta != 0)))
        exhausted = beta <= 10 * eps * size
        beta = torch.where(exhausted, 0.0, beta)

        delta = st.c * st.diagonal + st.s * alpha
        gbar = st.s * st.diagonal - st.c * alpha
        gamma = torch.hypot(gbar, beta)
        # what is left is nearly orthogonal to all columns: nothing makes it smaller
        least = torch.hypot(gbar, st.c * beta) <= eps**0.5 * size
        singular = least | (gamma <= 10 * eps * size)
        c = torch.where(singular, 0.0, gbar / gamma)
        s = torch.where(singular, 1.0, beta / gamma)
        phi = torch.where(singular, 0.0, c * st.phi)
        direction = torch.where(
            singular, 0.0, (v - st.above * st.old_direction - delta * st.direction) / gamma
        )
        # the part of the residual along the next Lanczos vector
        rest = torch.where(beta == 0, 0.0, st.phi * s * c / beta)
        residual = torch.where(singular, st.residual, s**2 * st.residual - rest * w)
        error = torch.where(torch.isfinite(alpha.squeeze(-1)), rms(residual), torch.nan)
        stuck = (least | (exhausted & (ended | singular))).squeeze(-1)
        flag = torch.where(stuck & (error > eps * rms(problem.b)), int(Status.BREAKDOWN), 0)
        flag = torch.where((squared < 0).squeeze(-1) & ~stuck, int(Status.INDEFINITE), flag)
        return MINRESState(
            st.z + phi * direction,
            residual,
            st.new,
            w,
            y,
            st.beta,
            beta,
            st.s * beta,
            -st.c * beta,
            c,
            s,
            s * st.phi,
            direction,
            st.direction,
            size,
            error,
            flag,
        )
