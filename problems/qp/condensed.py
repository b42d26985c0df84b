"""The Jacobian of the optimality conditions, condensed to the variables and factored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import implicit_solvers as ims

__all__ = ["CondensedKKT", "condense", "solve_condensed", "solve_kkt"]

_REFINEMENTS = 8
# in units of the right-hand side's rounding: what is left then is that of the products
_ENOUGH = 32


def condense(Q: Tensor, R: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower Cholesky factors of ``H = Q + R^T diag(weights) R``, and if each is fit.

    ``Q (N, n, n)`` is positive semidefinite, ``weights (N, r)`` are nonnegative. Eight rounding
    errors of its largest entry are added to the diagonal of ``H``, more if it takes more.
    """
    H = torch.baddbmm(Q, R.mT, R * weights.unsqueeze(-1)) if R.shape[-2] else Q.clone()
    diagonal = H.diagonal(dim1=-2, dim2=-1)
    largest = diagonal.amax(-1, keepdim=True)
    shift = 8 * torch.finfo(Q.dtype).eps * torch.where(largest > 0, largest, 1.0)
    diagonal.add_(shift)
    L, info = torch.linalg.cholesky_ex(H)
    for _ in range(2):
        bad = info > 0
        if not bool(bad.any()):
            break
        shift = 100 * shift
        diagonal.add_(torch.where(bad.unsqueeze(-1), shift, 0.0))
        again, info = torch.linalg.cholesky_ex(H)
        L = torch.where(bad[:, None, None], again, L)
    return L, info == 0


def solve_condensed(L: Tensor, r: Tensor) -> Tensor:
    """Return ``H^-1 r`` for rows ``r (N, n)`` or ``(N, columns, n)``."""
    # torch.cholesky_solve would copy the factors
    half = torch.linalg.solve_triangular(L, r.unsqueeze(-1) if r.dim() == 2 else r.mT, upper=False)
    x = torch.linalg.solve_triangular(L.mT, half, upper=True)
    return x.squeeze(-1) if r.dim() == 2 else x.mT


def penalties(Q: Tensor, R: Tensor) -> Tensor:
    """Return for each row a weight so large that its constraint holds nearly, ``(N, r)``.

    It is ``eps**-0.5`` times what makes the row's part of ``H`` as large as ``Q``.
    """
    squares = R.square().sum(-1)
    return curvature(Q) * torch.finfo(Q.dtype).eps ** -0.5 / torch.where(squares > 0, squares, 1.0)


def curvature(Q: Tensor) -> Tensor:
    """Return the mean of the diagonal, ``(N, 1)``; one where there is none."""
    size = Q.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    return torch.where(size > 0, size, 1.0)


def leaves_free(L: Tensor, Q: Tensor) -> Tensor:
    """Tell where rows and curvature seem to leave a direction free, ``(N,)``."""
    least = L.diagonal(dim1=-2, dim2=-1).amin(-1).square()
    return least <= 16 * torch.finfo(Q.dtype).eps ** 0.5 * curvature(Q).squeeze(-1)


def solve_kkt(
    L: Tensor,
    weights: Tensor,
    Q: Tensor,
    R: Tensor,
    r: Tensor,
    c: Tensor,
    rounds: int = _REFINEMENTS,
) -> tuple[Tensor, Tensor]:
    """Solve ``Q x + R^T y = r``, ``R x = c`` on the rows with a positive weight.

    The weights ``w`` are penalties: the factored system has ``-1/w`` in the place of the zero
    block, so that rows may depend on one another, and steps of refinement (the method of
    multipliers) take the error away. Where rows contradict each other, what is nearest is
    returned; ``y`` is zero in rows without weight.

    ``L`` is what `condense` returned; ``r`` and ``c`` are ``(N, columns, ...)``, and ``weights``
    have a place for the columns.

    Source: Rockafellar, "Augmented Lagrangians and applications of the proximal point algorithm in
    convex programming" (1976); Golub and Van Loan, "Matrix Computations", section 3.5.
    """
    w = weights
    c = torch.where(w > 0, c, 0.0)
    x, y = torch.zeros_like(r), torch.zeros_like(c)
    r_left, c_left = r, c
    left = _size(r, c)
    goal = _ENOUGH * torch.finfo(r.dtype).eps * left
    for place in range(rounds):
        dx = solve_condensed(L, r_left + (w * c_left) @ R)
        new_x, new_y = x + dx, y + w * (dx @ R.mT - c_left)
        r_left = r - new_x @ Q - new_y @ R
        c_left = torch.where(w > 0, c - new_x @ R.mT, 0.0)
        size = _size(r_left, c_left)
        better = (size < left) | (place == 0)  # small weights take a second round to pay
        if not bool(better.any()):
            break
        keep = better.unsqueeze(-1)
        x, y = torch.where(keep, new_x, x), torch.where(keep, new_y, y)
        # where a round did not halve what is left, rounding is
        again = ((size < 0.5 * left) | (place == 0)) & (size > goal)
        left = torch.where(better, size, left)
        if not bool(again.any()):
            break
    return x, y


def _size(r: Tensor, c: Tensor) -> Tensor:
    return ims.rms(torch.cat([r, c], -1))


@dataclass(frozen=True)
class CondensedKKT(ims.DirectSolver):
    """Solve with the Jacobian of `kkt_residual`, or its transpose, by one Cholesky factorization.

    At the solution the Jacobian is that of an equality-constrained program, the active
    inequalities being equalities: with ``R`` the rows of ``G`` and ``A``, ``a`` the active ones
    and ``i`` the others,

    ``Q dx + R^T dy = r``, ``R_a dx = c_a``, ``dy_i = c_i``.

    The blocks are ``Q (..., n, n)`` and ``R (..., m + k, n)``, in float32 or float64. The
    transposed system has the same core. Active rows may depend on one another: then there is a
    solution for the cotangents of ``x``, and the problem fails only if there is none for those
    asked for. The factors of the last step of `InteriorPoint` serve here.

    Parameters
    ----------
    variables, inequalities
        The lengths ``n`` and ``m`` of ``x`` and ``lambda``; `quadratic_program` fills them in. They
        are not checked.

    Notes
    -----
    Source: Amos and Kolter, "OptNet: Differentiable Optimization as a Layer in Neural Networks"
    (2017), section 3.1; the regularized system: Friedlander and Orban, "A primal-dual regularized
    interior-point method for convex quadratic programs" (2012).

    Examples
    --------
    >>> from implicit_solvers.problems.qp import quadratic_program
    >>> Q, p, one = torch.eye(2), torch.tensor([-1.0, -3.0]), torch.ones(1)
    >>> adjoint = ims.ImplicitAdjoint(CondensedKKT())
    >>> quadratic_program(Q, p, A=one.expand(1, 2), b=one, adjoint=adjoint).value.x
    tensor([-0.5000,  1.5000])
    """

    variables: int = 0
    inequalities: int = 0
    exact: ClassVar[bool] = False
    traceable: ClassVar[bool] = False

    def factor_dense(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Factor the Jacobian from its blocks, ``(grid, n + m + k, n + m + k)``."""
        n, m = self.variables, self.inequalities
        Q, R = matrix[:, :n, :n], matrix[:, :n, n:].mT.contiguous()
        inactive = matrix.diagonal(dim1=-2, dim2=-1)[:, n : n + m] != 0
        weights = penalties(Q, R)
        weights[:, :m].masked_fill_(inactive, 0.0)
        L, fit = condense(Q, R, weights)
        one = torch.ones_like(matrix[..., 0])
        return torch.where(fit[:, None, None], L, torch.nan), weights, Q, R, one, one

    def solve(self, factors: tuple[Tensor, ...], b: Tensor, transposed: bool) -> Tensor:
        """Return ``J^-1 b`` or ``J^-T b`` for ``b (grid, n + m + k, columns)``."""
        L, weights, Q, R, scale, ends = (t.unsqueeze(1) if t.dim() == 2 else t for t in factors)
        n, idle = Q.shape[-1], weights == 0
        given, b = b.mT[..., n:], b.mT / ends
        r, c = b[..., :n], b[..., n:]
        if transposed:
            x, y = solve_kkt(L, weights, Q, R, r, c)
            free = (c - x @ R.mT) * ends[..., n:]
        else:
            free = given
            shift = torch.where(idle, given * scale[..., n:], 0.0)
            x, y = solve_kkt(L, weights, Q, R, r - shift @ R, c)
        x, y = x / scale[..., :n], torch.where(idle, free, y / scale[..., n:])
        return torch.cat([x, y], -1).mT

    def accepts(
        self, factors: tuple[Tensor, ...], r: Tensor, b: Tensor, transposed: bool
    ) -> Tensor:
        """Tell where ``r`` is small beside ``b``, in the units of the factors."""
        _, weights, Q, _, scale, unit = factors
        if not transposed:
            n = Q.shape[-1]
            own = torch.where(weights == 0, 1 / scale[:, n:], unit[:, n:])
            unit = torch.cat([unit[:, :n], own], -1)
        unit = unit if len(r) == len(unit) else unit.repeat(len(r) // len(unit), 1)
        return super().accepts(factors, r / unit, b / unit, transposed)

    def status(self, factors: tuple[Tensor, ...]) -> Tensor:
        """Return SINGULAR where the factorization broke down."""
        fit = torch.isfinite(factors[0]).flatten(1).all(-1)
        return torch.where(fit, 0, int(ims.Status.SINGULAR))
