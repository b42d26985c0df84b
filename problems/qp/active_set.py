"""The polish: solve on the set of constraints that seem active, and choose that set."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problems.qp.condensed import solve_condensed
from implicit_solvers.problems.qp.kkt import times
from implicit_solvers.problems.qp.standard_form import Program, largest

__all__ = ["choose", "depends", "nothing", "solve_on_active_set"]

_SHORTER = 0.02
_WEAK = 10.0
_INDEPENDENT = 0.45  # of the exponent of eps: what its square leaves of a Gram matrix


def solve_on_active_set(
    program: Program,
    z: Tensor,
    slope: Tensor,
    excess: Tensor,
    L: Tensor,
    weights: Tensor,
    thin: Tensor,
) -> tuple[Tensor, Tensor]:
    """Make the rows with a weight equalities, drop the others, and solve.

    Returns where it starts from, the present iterate without the multipliers dropped, and the
    move from there: two steps of the method of multipliers. Lanes are ``thin`` whose minimizer the
    rows leave free: these go little further than to the first row on the way.
    """
    Q, p, R = program.Q, program.p, program.R
    n = p.shape[-1]
    y = z[:, n:]
    kept = torch.where(weights > 0, y, 0.0)
    slope = slope + times(R.mT, kept - y)
    over, excess = excess, torch.where(weights > 0, excess, 0.0)

    def step(slope: Tensor, excess: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dx = -solve_condensed(L, slope + times(R.mT, weights * excess))
        excess = torch.where(weights > 0, excess + times(R, dx), 0.0)
        return dx, weights * excess, excess

    dx, dy, excess_left = step(slope, excess)
    more_x, more_y, _ = step(slope + times(Q, dx) + times(R.mT, dy), excess_left)
    move = torch.cat([dx + more_x, dy + more_y], -1)
    if R.shape[-2] and bool(thin.any()):
        change, eps = times(R, move[:, :n]), torch.finfo(z.dtype).eps
        room = 1.01 * (-over).clamp(min=0) + eps**0.5 * program.reach.clamp(min=1)
        blocks = (weights == 0) & (change > 0)
        most = torch.where(blocks, room / change, 1.0).amin(-1, keepdim=True)
        move = torch.where(thin.unsqueeze(-1), most.clamp(max=1) * move, move)
    return torch.cat([z[:, :n], kept], -1), move


def depends(L: Tensor, R: Tensor, weights: Tensor, m: int) -> Tensor:
    """Tell where rows with a weight, some of the ``m`` inequalities, may be dependent, ``(N,)``.

    With large weights ``V = L^-1 R^T W^(1/2)`` maps by all but an isometry what rows that are
    independent combine: probes get shorter by their part in the null space.
    """
    if m == 0:
        return torch.zeros_like(L[:, 0, 0], dtype=torch.bool)
    place = torch.arange(1.0, R.shape[-2] + 1, dtype=R.dtype, device=R.device).square()
    probes = 3 * torch.outer(place, place.new_tensor((97, 107, 117, 127))).sin()
    probes = probes * (weights > 0).unsqueeze(-1)
    half = R.mT @ (weights.sqrt().unsqueeze(-1) * probes)
    kept = torch.linalg.solve_triangular(L, half, upper=False).square().sum(-2)
    return (probes.square().sum(-2) - kept > _SHORTER).any(-1)


def choose(
    program: Program, w: Tensor, active: Tensor, weak: Tensor, near: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    """Return iterates and active rows, in some lanes those of a linearly independent choice.

    Where active rows depend on one another, multipliers move along that, the way that the dual
    objective ``-c^T y`` grows, until one vanishes, and so on. Rows that are ``weak`` have none; in
    lanes whose minimizer is not the only one without these, rows of those that are ``near`` follow,
    with multipliers that are next to nothing.

    Notes
    -----
    Source: Caratheodory's theorem, as in Nocedal and Wright, "Numerical Optimization", theorem
    13.2; the way is that of the dual simplex method.
    """
    if not bool(which.any()):
        return w, active
    lanes, n, m = which.nonzero().squeeze(-1), program.p.shape[-1], active.shape[-1]
    Q, R, c, y = (t[lanes] for t in (program.Q, program.R, program.c, w[:, n:]))
    near, free = near[lanes], (active & ~weak)[lanes] & (y[:, :m] > 0)
    tol = torch.finfo(y.dtype).eps ** _INDEPENDENT
    rest = torch.ones_like(y[:, m:], dtype=torch.bool)
    free, y = _move_apart(R, c, y, torch.cat([free, rest], -1), m, tol)
    chosen = free | _missing(
        Q, R[:, :m], R * torch.cat([free, rest], -1).unsqueeze(-1), near & ~free, tol
    )
    least = torch.finfo(y.dtype).eps ** 2
    duals = torch.where(chosen, torch.where(free, y[:, :m], 0.0).clamp(min=least), 0.0)
    other = (chosen != active[lanes]).any(-1, keepdim=True)
    new = torch.cat([w[lanes, :n], duals, y[:, m:]], -1)
    w = w.index_copy(0, lanes, torch.where(other, new, w[lanes]))
    return w, active.index_copy(0, lanes, chosen)


def _move_apart(
    R: Tensor, c: Tensor, y: Tensor, rows: Tensor, m: int, tol: float
) -> tuple[Tensor, Tensor]:
    """Return which inequalities keep their multipliers, and the multipliers."""
    R = R * rows.unsqueeze(-1)
    values, null = torch.linalg.eigh(R @ R.mT + torch.diag_embed((~rows).to(R.dtype)))
    none = values < 10 * tol**2
    null = (null * none.unsqueeze(-2))[..., : int(none.sum(-1).max())]
    free = torch.cat([rows[:, :m], torch.zeros_like(rows[:, m:])], -1)
    for _ in range(null.shape[-1]):
        reach, column = (null * free.unsqueeze(-1)).abs().amax(-2).max(-1)
        place = column[:, None, None].expand(-1, null.shape[-2], 1)
        d = null.gather(-1, place).squeeze(-1) / reach.clamp(min=tol).unsqueeze(-1)
        terms = c * d
        rise = terms.sum(-1, keepdim=True)
        d = torch.where(rise > 0, -d, d)
        steps = torch.where(free & (d < -tol), y / -d, torch.inf)
        either = rise.abs() <= tol * terms.abs().sum(-1, keepdim=True)
        back = either & (steps.amin(-1, keepdim=True) == torch.inf)
        d = torch.where(back, -d, d)
        steps = torch.where(back, torch.where(free & (d < -tol), y / -d, torch.inf), steps)
        step, leaves = steps.min(-1, keepdim=True)
        going = (reach > tol).unsqueeze(-1) & (step < torch.inf)
        if not bool(going.any()):
            break
        y = torch.where(going, y + torch.where(going, step, 0.0) * d, y)
        pivot = torch.where(going, d.gather(-1, leaves), 1.0)
        row = null.gather(-2, leaves.unsqueeze(-1).expand(-1, 1, null.shape[-1]))
        null = null - d.unsqueeze(-1) * (row / pivot.unsqueeze(-1))
        null = null.scatter(-1, place, 0.0) * going.unsqueeze(-1)
        gone = torch.zeros_like(free).scatter(-1, leaves, going)
        y, free = y.masked_fill(gone, 0.0), free & ~gone
    return free[:, :m], y


def _missing(Q: Tensor, G: Tensor, R: Tensor, spare: Tensor, tol: float) -> Tensor:
    """Return spare rows of ``G`` that take away the directions which ``Q`` and ``R`` leave free."""
    taken = torch.zeros_like(spare)
    if not bool(spare.any()):
        return taken
    values, free = torch.linalg.eigh(Q + R.mT @ R)
    none = values < 10 * tol**2
    free = (free * none.unsqueeze(-2))[..., : int(none.sum(-1).max())]
    parts = (G @ free) * spare.unsqueeze(-1)
    for _ in range(free.shape[-1]):
        size, row = parts.square().sum(-1).max(-1, keepdim=True)
        d = parts.gather(-2, row.unsqueeze(-1).expand(-1, 1, parts.shape[-1]))
        d = d / size.clamp(min=tol).sqrt().unsqueeze(-1)
        taken = taken | torch.zeros_like(taken).scatter(-1, row, size > tol)
        parts = parts - (parts @ d.mT) * d
    return taken


def nothing(y: Tensor) -> Tensor:
    """Return which multipliers are none, ``(N, 1)``."""
    return _WEAK * torch.finfo(y.dtype).eps ** 0.75 * (1 + largest(y))
