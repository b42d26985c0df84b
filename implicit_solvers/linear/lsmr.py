"""Least squares by minimal residuals of the normal equations.

It knows ``A`` by its products alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.ranks import norm, safe_norm
from implicit_solvers.solver import LinearMethod
from implicit_solvers.tolerance import power_of_two, rms

__all__ = ["LSMR"]


def _norm(v: Tensor) -> Tensor:
    return norm(v, keepdim=True)


def _unit(v: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
    length = _norm(v) if length is None else length
    return torch.where(length > 0, v / length, 0.0), length


def _safe_unit(v: Tensor) -> tuple[Tensor, Tensor]:
    return _unit(v, safe_norm(v).unsqueeze(-1))


def _rotation(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``c, s, r`` with ``c a + s b = r`` and ``c b = s a``."""
    r = torch.hypot(a, b)
    return torch.where(r > 0, a / r, 1.0), torch.where(r > 0, b / r, 0.0), r


class LSMRState(NamedTuple):
    """The state of `LSMR`, in the notation of its source.

    ``u, v, alpha`` are those of the bidiagonalization, the other scalars those of the two QR
    factorizations; ``h`` and ``bar`` are the directions, ``Ah`` and ``Abar`` their products, and
    ``size`` estimates the norm of the operator. The operator is multiplied by ``scale``, the
    inverse of a power of two near that.
    """

    z: Tensor
    residual: Tensor
    u: Tensor
    v: Tensor
    h: Tensor
    bar: Tensor
    Ah: Tensor
    Abar: Tensor
    alpha: Tensor
    alphabar: Tensor
    zetabar: Tensor
    rho: Tensor
    rhobar: Tensor
    theta: Tensor
    cbar: Tensor
    sbar: Tensor
    size: Tensor
    scale: Tensor
    error: Tensor
    flag: Tensor


@dataclass(frozen=True)
class LSMR(LinearMethod):
    """Least squares by products with ``A`` and ``A^T``, for any operator, rectangular or not.

    The solution is ``A^+ b``, of all ``x`` with least ``norm(b - A x)`` the one of least norm.
    Mathematically it is MINRES on the normal equations; the number of steps grows with the
    condition number of ``A``. A derivative solves twice more than that of a square system: with
    the pseudo-inverse's formula, on operators of the same rank. No start and no preconditioner,
    which would change the norm that is least. Source: Fong and Saunders, "LSMR: an iterative
    algorithm for sparse least-squares problems", SIAM J. Sci. Comput. 33 (2011).

    For operators ``(*batch, m, n)`` of every floating and complex dtype, known by their products.

    Parameters
    ----------
    rtol, atol, max_steps, compact, chunk_size, check_every, compile
        As in `LinearMethod`; a problem has converged too when ``|A^T r| / (s |r|) rms(b)`` is no
        more than its tolerance, with ``r = b - A x`` and the estimate ``s`` of the norm of ``A``
        from two steps of the power method.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it. A ValueError also when a solve
        begins with ``x0`` or a preconditioner.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]))
    >>> sol = ims.linear_solve(A, torch.tensor([1.0, 3.0, 5.0]), solver=LSMR())
    >>> sol.value, int(sol.iterations)
    (tensor([1.0000, 2.0000]), 2)
    """

    spreads: ClassVar[bool] = True

    def nullspaces(self, rows: int, columns: int) -> tuple[bool, bool]:
        """Whether ``A^T`` and ``A`` may have a null space."""
        return True, True

    def _size(self, problem: LinearProblem) -> Tensor:
        """Return an estimate of the norm of ``A`` from below."""
        v = _safe_unit(problem.A.rmv(_unit(problem.b)[0]))[0]
        v = _safe_unit(problem.A.rmv(_safe_unit(problem.A.mv(v))[0]))[0]
        return _safe_unit(problem.A.mv(v))[1]

    def _error(
        self, problem: LinearProblem, residual: Tensor, normal: Tensor, size: Tensor
    ) -> Tensor:
        cosine = torch.where(normal > 0, normal / (size * _norm(residual)), 0.0).squeeze(-1)
        return torch.minimum(rms(residual), cosine * rms(problem.b))

    starts: ClassVar[bool] = False

    def error_at(self, problem: LinearProblem, x: Tensor, error: Tensor) -> Tensor:
        """Return what is compared with the tolerance, from products with ``x``."""
        r = problem.residual(x)
        u, beta = _unit(r)
        size = self._size(problem)
        alpha = _safe_unit(problem.A.rmv(u))[1]
        return self._error(problem, r, alpha / size * beta, torch.ones_like(size))

    def init(self, problem: LinearProblem, x: Tensor) -> LSMRState:
        """Start at ``x``."""
        r = problem.residual(x)
        u, beta = _unit(r)
        size = self._size(problem)
        scale = 1 / power_of_two(size)
        v, alpha = _unit(problem.A.rmv(u) * scale)
        one, zero = torch.ones_like(beta), torch.zeros_like(beta)
        size = size * scale
        return LSMRState(
            x,
            r,
            u,
            v,
            v,
            torch.zeros_like(v),
            torch.zeros_like(u),
            torch.zeros_like(u),
            alpha,
            alpha,
            alpha * beta,
            one,
            one,
            zero,
            one,
            zero,
            size,
            scale,
            self._error(problem, r, alpha * beta, size),
            torch.zeros(len(x), dtype=torch.int64, device=x.device),
        )

    def step(self, problem: LinearProblem, state: LSMRState) -> LSMRState:
        """Bidiagonalize further, rotate twice, and follow the new direction."""
        st = state
        Av = problem.A.mv(st.v) * st.scale
        Ah = Av - (st.theta / st.rho) * st.Ah
        u, beta = _unit(Av - st.alpha * st.u)
        v, alpha = _unit(problem.A.rmv(u) * st.scale - beta * st.v)

        c, s, rho = _rotation(st.alphabar, beta)
        theta, alphabar = s * alpha, c * alpha
        thetabar = st.sbar * rho
        cbar, sbar, rhobar = _rotation(st.cbar * rho, theta)
        zeta = cbar * st.zetabar
        turn = thetabar * rho / (st.rho * st.rhobar)
        ended = (rho == 0) | (rhobar == 0)
        bar = st.h - turn * st.bar
        Abar = Ah - turn * st.Abar
        length = torch.where(ended, 0.0, zeta / (rho * rhobar))
        residual = st.residual - length * Abar
        zetabar = torch.where(ended, 0.0, -sbar * st.zetabar)
        error = self._error(problem, residual, zetabar.abs(), st.size)
        finite = torch.isfinite(alpha + beta).squeeze(-1)
        one = torch.ones_like(rho)
        return LSMRState(
            st.z + length * st.scale * bar,
            residual,
            u,
            v,
            v - torch.where(ended, 0.0, theta / rho) * st.h,
            bar,
            Ah,
            Abar,
            alpha,
            alphabar,
            zetabar,
            torch.where(ended, one, rho),
            torch.where(ended, one, rhobar),
            theta,
            cbar,
            sbar,
            st.size,
            st.scale,
            torch.where(finite, error, torch.nan),
            st.flag,
        )
