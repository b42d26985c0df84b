"""Newton's method on the potentials of a matrix with given sums, from a warm problem to a cold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

import implicit_solvers as ims

__all__ = ["Balancing", "BalancingState", "ShiftedLU", "balance"]

_COOLING = 4.0
_NEAR = 0.5


def balance(z: Tensor, scores: Tensor, log_rows: Tensor, log_columns: Tensor) -> Tensor:
    r"""Evaluate the equations of the potentials ``z = (f, g)``.

    ``P = exp(S + f_i + g_j)`` does not change when a number is added to ``f`` and taken from
    ``g``: the sums alone have a singular Jacobian. With ``t = mean(f) - mean(g)`` added to the
    rows' equations and taken from the columns', a root has row sums ``r e^-t`` and column sums
    ``c e^t``; as both add up to the same mass, ``t = 0``, and the root is unique and regular.
    """
    f, g = z.split([scores.shape[-2], scores.shape[-1]], -1)
    logs = scores + f.unsqueeze(-1) + g.unsqueeze(-2)
    gauge = f.mean(-1, keepdim=True) - g.mean(-1, keepdim=True)
    rows, columns = logs.logsumexp(-1) - log_rows, logs.logsumexp(-2) - log_columns
    return torch.cat([rows + gauge, columns - gauge], -1)


@dataclass(frozen=True)
class ShiftedLU(ims.DirectSolver):
    """LU factorization of the Jacobian of `balance`, with a little added to its diagonal.

    Where the matrix falls into blocks that exchange less than rounding, what is added keeps their
    potentials apart.
    """

    exact: ClassVar[bool] = False

    def factor(self, A: ims.LinearOperator) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Factor the Jacobian, written out."""

        def jacobian(like: Tensor, z: Tensor, S: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
            n, m = S.shape[-2:]
            logs = S + z[..., :n].unsqueeze(-1) + z[..., n:].unsqueeze(-2)
            gauge = torch.cat([z.new_full((n,), 1 / n), z.new_full((m,), -1 / m)])
            signs = torch.cat([z.new_ones(n), -z.new_ones(m)])
            J = (signs.unsqueeze(-1) * gauge).expand(*z.shape[:-1], n + m, n + m).clone()
            J[..., :n, n:] += logs.softmax(-1)
            J[..., n:, :n] += logs.softmax(-2).mT
            eye = torch.eye(n + m, dtype=z.dtype, device=z.device)
            return torch.stack([J + eye, J + (1 + _rounding(S)[..., None, None]) * eye], -3)

        both = A.on_grid(jacobian)  # type: ignore[attr-defined]
        plain, moved = both.reshape(-1, *both.shape[-3:]).unbind(1)
        return plain, *ims.LU().factor_dense(moved)

    def solve(self, factors: tuple[Tensor, ...], b: Tensor, transposed: bool) -> Tensor:
        """Return ``J^-1 b`` or ``J^-T b``, refined once: what was added costs no digits then."""
        J, *moved = factors
        x = ims.LU().solve(tuple(moved), b, transposed)
        return x + ims.LU().solve(tuple(moved), b - (J.mT if transposed else J) @ x, transposed)

    def status(self, factors: tuple[Tensor, ...]) -> Tensor:
        """Return NONFINITE where the matrix is not finite."""
        return ims.LU().status(factors[1:])


def _rounding(scores: Tensor) -> Tensor:
    """Return the relative error that rounding allows the sums of each lane."""
    sizes = torch.where(scores == -torch.inf, 0.0, scores).abs()
    return 10 * torch.finfo(scores.dtype).eps * (1 + sizes.amax((-1, -2)))


class BalancingState(NamedTuple):
    """The state of `Balancing`: the columns of the ``plan`` have their sums."""

    z: Tensor
    error: Tensor
    estimate: Tensor
    unit: float
    flag: Tensor
    warmth: Tensor
    plan: Tensor
    scores: Tensor
    log_rows: Tensor
    log_columns: Tensor


@dataclass(frozen=True)
class Balancing(ims.EquationMethod):
    """Solve `balance` by Newton's method on the row potentials, the columns always in balance.

    The objective whose gradient the row sums are is convex, and of logarithms of sums: a step
    ``d`` is shortened to ``log(1 + R) / R``, where ``R`` is twice its largest entry, and then makes
    progress from wherever. Each lane begins at a temperature as large as its scores, which is
    quartered whenever its sums are nearly right, down to its own.

    Source: Bach, "Self-concordant analysis for logistic regression" (2010), for the length of a
    step; Kosowsky and Yuille, "The invisible hand algorithm" (1994), for the temperatures.
    """

    rtol: float = field(default=0.0, kw_only=True)
    atol: float = field(default=0.0, kw_only=True)
    max_steps: int = field(default=200, kw_only=True)
    solves: ClassVar[tuple[str, ...]] = ("root",)

    def examined(self, n: int) -> bool:
        """Tell that the solver judges for itself, by the sums."""
        return False

    def init(self, problem: ims.EquationProblem, z: Tensor) -> BalancingState:
        """Begin at a temperature as large as the scores."""
        ranks, lanes = (2, 1, 1), len(z)
        scores, log_rows, log_columns = (
            t.reshape(-1, *t.shape[t.dim() - k :]).expand(lanes, *t.shape[t.dim() - k :])
            for t, k in zip(problem.operands, ranks, strict=True)
        )
        most = scores.amax((-1, -2))
        least = torch.where(scores == -torch.inf, most[:, None, None], scores).amin((-1, -2))
        warmth = ((most - least) / 2).clamp(min=1)
        flag = torch.zeros_like(warmth, dtype=torch.int64)
        f = torch.zeros_like(log_rows)
        return _evaluated(f, warmth, flag, scores, log_rows, log_columns)

    def step(self, problem: ims.EquationProblem, state: BalancingState) -> BalancingState:
        """Make a step at this temperature; lower it where the sums are nearly right."""
        S, plan, warmth = state.scores, state.plan, state.warmth
        rows, columns = plan.sum(-1), plan.sum(-2)
        # in units of the square roots of the sums; the constant has no curvature, and no slope
        side, other = rows.sqrt(), columns.sqrt()
        scaled = plan / side.unsqueeze(-1) / other.unsqueeze(-2)
        constant = side / torch.linalg.vector_norm(side, dim=-1, keepdim=True)
        eye = torch.eye(S.shape[-2], dtype=S.dtype, device=S.device)
        H = (1 + _rounding(S))[:, None, None] * eye - scaled @ scaled.mT
        H = H + constant.unsqueeze(-1) * constant.unsqueeze(-2)
        L = torch.linalg.cholesky_ex(H).L
        slope = (state.log_rows.exp() - rows) / side
        d = torch.cholesky_solve(slope.unsqueeze(-1), L).squeeze(-1) / side
        size = 2 * d.abs().amax(-1)
        length = torch.where(size > 0, torch.log1p(size) / size, 1.0)
        f = state.z[:, : S.shape[-2]] + (warmth * length).unsqueeze(-1) * d
        cooler = torch.where(state.error <= _NEAR, (warmth / _COOLING).clamp(min=1), warmth)
        return _evaluated(f, cooler, state.flag, S, state.log_rows, state.log_columns)


def _evaluated(
    f: Tensor, warmth: Tensor, flag: Tensor, S: Tensor, log_rows: Tensor, log_columns: Tensor
) -> BalancingState:
    """Balance the columns, and tell by how much the rows are off.

    The potentials are those of `balance` for totals that differ by rounding, too.
    """
    apart = (log_rows.logsumexp(-1) - log_columns.logsumexp(-1)).unsqueeze(-1) / 2
    log_rows, log_columns = log_rows - apart, log_columns + apart
    h = warmth.unsqueeze(-1)
    logs = (S + f.unsqueeze(-1)) / h.unsqueeze(-1)
    g = h * (log_columns - logs.logsumexp(-2))
    plan = (logs + (g / h).unsqueeze(-2)).exp()
    error = (plan.sum(-1) / log_rows.exp() - 1).abs().amax(-1)
    rounding = 2 * _rounding(S)
    estimate = torch.where(error <= rounding, 0.0, error)
    estimate = torch.where(warmth > 1, torch.inf, estimate)
    shift = (f.mean(-1, keepdim=True) - g.mean(-1, keepdim=True) - apart) / 2
    z = torch.cat([f - shift, g + shift], -1)
    log_rows, log_columns = log_rows + apart, log_columns - apart
    return BalancingState(z, error, estimate, 1.0, flag, warmth, plan, S, log_rows, log_columns)
