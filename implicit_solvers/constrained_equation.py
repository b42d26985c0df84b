"""Minima under constraints: the conditions of Karush, Kuhn and Tucker.

It knows a solution, not the method that found it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit_solvers.agreement import pick
from implicit_solvers.autodiff import vjp
from implicit_solvers.bounded_equation import Bounded
from implicit_solvers.bounds import bounds_of, held, projected
from implicit_solvers.curvature import downhill, kick
from implicit_solvers.examination import Examination, by_newton
from implicit_solvers.lanes import Lanes
from implicit_solvers.outcome import ROUNDINGS
from implicit_solvers.solvers.renewal import renew
from implicit_solvers.tolerance import largest

__all__ = ["ConstrainedEquation", "bordered"]


class ConstrainedEquation(Bounded):
    """The conditions of a minimum of ``f`` with ``lo <= (z, c(z)) <= hi``, the first two operands.

    The unknown is ``(z, y)`` with a multiplier for each entry of ``c``; ``fn`` returns ``f`` and
    ``c`` in one. The slope of ``L = f + y c`` vanishes for unknowns that are free. A row of ``c``
    whose bounds are equal meets them; of another, the sign of its multiplier tells at which bound
    it is, and a multiplier of zero stays zero. So no units enter. Source: Nocedal and Wright,
    "Numerical Optimization", section 12.3.
    """

    kind: ClassVar[str] = "minimize with constraints"

    def slope(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return the slope of the Lagrangian in ``z``, and ``c``: its slope in ``y``."""
        n = z.shape[-1] - self.multipliers
        value, pull = vjp(lambda u: self.fn(u, *operands), z)
        weights = torch.cat([torch.ones_like(value[..., :1]), z[..., n:]], -1)
        return torch.cat([pull(weights)[0][..., :n], value[..., 1:]], -1)

    def condition(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return the conditions."""
        return self._met(z, self.slope(z, *operands), *operands[:2])

    def condition_over(self, lanes: Lanes) -> Callable[..., Tensor]:
        """Return `condition` as a function of all lanes."""
        slope, bounds = self.slope_over(lanes), lanes.over(bounds_of)

        def condition(z: Tensor, *operands: Tensor) -> Tensor:
            return self._met(z, slope(z, *operands), *bounds(z, *operands))

        return condition

    def _met(self, u: Tensor, slope: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        n = u.shape[-1] - self.multipliers
        sides = [t.split((n, self.multipliers), -1) for t in (u, slope, lo, hi)]
        (z, y), (slope, c), (lo, low), (hi, high) = sides
        # (on its way, a multiplier may have the sign of a bound that is none)
        above, below = (y > 0) & (high < torch.inf), (y < 0) & (low > -torch.inf)
        at = torch.where(above | (low == high), c - high, torch.where(below, c - low, y))
        return torch.cat([projected(z, slope, lo, hi), at], -1)

    def held(self, z: Tensor, slope: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Tell which unknowns are held to their lower and to their upper bound."""
        n = z.shape[-1] - self.multipliers
        mine = torch.arange(z.shape[-1], device=z.device) < n
        low, high = held(z, slope, lo, hi)
        return low & mine, high & mine

    def examine(self, problem: Any, z: Tensor, direct: Any) -> Examination:
        """Return Newton's step, whether the multipliers are known, and a step off a saddle.

        At a minimum the Hessian of the Lagrangian is positive where no active constraint changes:
        with ``J^T J`` of these added, as often as it takes, it is positive definite.
        """
        eps, n = torch.finfo(z.dtype).eps, z.shape[-1] - self.multipliers
        seen = by_newton(problem, z, direct)
        lo, hi = (t[:, n:] for t in problem.bounds)
        matrix = seen.jacobian.formed
        free, on = problem.free(z)[:, :n], (z[:, n:] != 0) | (lo == hi)
        slope = problem.slope(z)
        H, J = matrix[:, :n, :n], problem.linearize_slope(z).dense()[:, n:, :n]
        A, t, _ = bordered(H, J, free, torch.zeros_like(z[:, n:]).masked_fill(~on, torch.inf))
        bends = torch.linalg.cholesky_ex(A).info != 0
        (down,) = renew(None, bends, (torch.zeros_like(t),), _most_bent, A, t * slope[:, :n])
        step = torch.cat([kick(problem, z, t * down), torch.zeros_like(z[:, n:])], -1)
        # of constraints that are idle and of multipliers the size of a step in z says nothing
        c = slope[:, n:]
        terms = torch.bmm(J.abs(), problem.reach(z)[:, :n].unsqueeze(-1)).squeeze(-1) + c.abs()
        over = torch.maximum(lo - c, c - hi)
        broken = (~on & (over > eps**0.5 * terms)).any(-1)
        size = torch.bmm(matrix[:, :n].abs() * free.unsqueeze(-1), z.abs().unsqueeze(-1))
        row = J.abs().amax(-1)
        noise = torch.stack(list(seen.noise)).abs().amax(0)[:, n:]
        off = seen.step[:, n:].abs()
        # they need not be known better than the unknowns, by much
        part = largest(seen.step[:, :n]) / problem.largest(z)
        part = part.nan_to_num(torch.inf).clamp(min=0.01 * eps**0.5).unsqueeze(-1)
        unknown = (off * row > 100 * part * size.amax(1)) & (off > ROUNDINGS * noise)
        wrong = problem.number(broken | unknown.any(-1))
        return seen._replace(kick=step, wrong=wrong)

    def snapped(self, problem: Any, u: Tensor, rtol: float) -> Tensor:
        """Return points with unknowns and multipliers exactly on the active set that they are near.

        Distances up to ``rtol`` of the terms that they are differences of count for none.
        """
        n, slope = u.shape[-1] - self.multipliers, problem.slope(u)
        (lo, low), (hi, high) = (t.split((n, self.multipliers), -1) for t in problem.bounds)
        z, y, c = u[:, :n], u[:, n:], slope[:, n:]
        near = rtol * torch.maximum(z.abs(), problem.largest(u).unsqueeze(-1))
        z = torch.where((z - lo <= near) & (slope[:, :n] > 0), lo, z)
        z = torch.where((hi - z <= near) & (slope[:, :n] < 0), hi, z)
        J = problem.linearize_slope(u).dense()[:, n:, :n].abs()
        near = rtol * (torch.bmm(J, z.abs().unsqueeze(-1)).squeeze(-1) + c.abs())
        active = ((high - c <= near) & (y > 0)) | ((c - low <= near) & (y < 0)) | (low == high)
        return torch.cat([torch.clamp(z, lo, hi), torch.where(active, y, 0.0)], -1)

    def degenerate(self, problem: Any, z: Tensor, error: Tensor) -> Tensor:
        """Tell in which lanes a bound or a constraint is active without a multiplier, or nearly."""
        eps, n, (lo, hi) = torch.finfo(z.dtype).eps, z.shape[-1] - self.multipliers, problem.bounds
        slope, K = problem.slope(z), problem.linearize_slope(z).dense().abs()
        size, known = problem.largest(z), error < torch.inf
        doubt = ROUNDINGS * eps + torch.where(known & (size > 0), error / size, 0.0)
        doubt, x, y = doubt.unsqueeze(-1), z[:, :n], z[:, n:]
        terms = torch.bmm(K, z.abs().unsqueeze(-1)).squeeze(-1) + slope.abs()
        flat = slope[:, :n].abs() <= doubt * terms[:, :n]
        weak = (K[:, n:, :n].amax(-1) * y.abs()) <= doubt * terms[:, :n].amax(-1, keepdim=True)
        reach = torch.maximum(x.abs(), size.unsqueeze(-1))
        at = torch.cat([(x <= lo[:, :n]) | (x >= hi[:, :n]), y != 0], -1)
        w = torch.cat([x, slope[:, n:]], -1)
        near = torch.minimum(w - lo, hi - w) <= doubt * torch.cat([reach, terms[:, n:]], -1)
        idle = torch.cat([flat, weak], -1)
        return ((lo < hi) & ((at & idle) | (~at & near))).any(-1)


def _most_bent(A: Tensor, gradient: Tensor) -> tuple[Tensor]:
    """Return eigenvectors of clearly negative curvature that lead down; zero where there is none.

    The entries of ``A`` but for large squares are at most one.
    """
    values, vectors = torch.linalg.eigh(A)
    bent = values[:, 0] < -100 * torch.finfo(A.dtype).eps ** 0.5
    down = downhill(vectors[..., 0], gradient)
    return (pick(bent, down, torch.zeros_like(down)),)


def bordered(
    H: Tensor, J: Tensor, free: Tensor, give: Tensor, damping: Tensor | float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``H + J^T D J`` among free unknowns, scaled; the scales ``(N, n)``; and ``H``, scaled.

    The weights ``D`` are so large that it is positive definite where ``H`` is so among steps that
    ``J`` maps to zero; rows ``give`` way by that much, and count for less. Source: Nocedal and
    Wright, "Numerical Optimization", theorem 17.5.
    """
    keep = free.to(H.dtype)
    H, J = H * keep.unsqueeze(-1) * keep.unsqueeze(-2), J * keep.unsqueeze(-2)
    t = equilibrated(H)
    H = H * t.unsqueeze(-1) * t.unsqueeze(-2)
    H = H + torch.diag_embed(1 - keep + torch.as_tensor(damping).unsqueeze(-1) * keep)
    J = J * t.unsqueeze(-2)
    squares = J.square().sum(-1)
    give = give + torch.finfo(H.dtype).eps ** 0.5 * torch.where(squares > 0, squares, 1.0)
    A = H + torch.bmm(J.mT, J / give.unsqueeze(-1))
    sound = torch.isfinite(A).flatten(1).all(-1)
    return pick(sound, A, torch.ones_like(t).diag_embed()), t, H


def equilibrated(H: Tensor) -> Tensor:
    """Return scales ``t (N, n)`` with which no entry of ``t_i H_ij t_j`` is larger than one."""
    rows = H.abs().amax(-1)
    top = rows.amax(-1, keepdim=True)
    top = torch.where(top > 0, top, 1.0)
    return torch.where(rows > 1e-10 * top, rows, top).rsqrt()
