"""The programs of many lanes in units of their own, as the solver works on them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.qp.condensed import penalties

__all__ = ["Program", "largest", "read_program", "semidefinite", "size_of"]


class Program(NamedTuple):
    """The programs of N lanes, in units in which all sizes are about one.

    Rows ``R`` are those of ``G``, then those of ``A``, and zero where the right-hand side is
    infinite, which ``rows`` are not. ``Q`` and ``R`` are parts of ``both``. ``z = (x, y)`` in the
    user's units times ``scale`` is the solution in these; ``ends`` are the units of its conditions,
    where all rows are active. All are powers of two. ``penalty`` are the weights of rows that hold
    nearly, ``weights`` those of an active set.
    """

    Q: Tensor
    p: Tensor
    R: Tensor
    c: Tensor
    penalty: Tensor
    weights: Tensor
    both: Tensor
    rows: Tensor
    reach: Tensor
    scale: Tensor
    ends: Tensor

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """What `CondensedKKT` takes beside the factorization."""
        return self.Q, self.rows, self.scale, self.ends

    def reach_at(self, x: Tensor) -> Tensor:
        """Return the size of what the slack of rows is a difference of."""
        return self.reach + largest(x).clamp(min=1)


def size_of(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """Return about how large ``x`` is, ``(...)``: a power of two.

    It is how far the constraints that zero violates are away; or, where there are none, the size of
    ``p`` over that of ``Q``, if that is less than the room that the constraints usually leave.
    """
    diagonal = Q.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    size = p.abs().amax(-1) / diagonal  # inf for a linear program
    if h.shape[-1]:
        room = h / torch.linalg.vector_norm(G, dim=-1)
        some = (room != 0) & (room.abs() < torch.inf)
        usual = torch.where(some, room.abs(), torch.nan).nanmedian(-1).values
        size = torch.where((size < usual) & (size > 0) | usual.isnan(), size, usual)
        size = size.maximum(torch.where(some, -room, 0.0).amax(-1))
    if b.shape[-1]:
        far = (b / torch.linalg.vector_norm(A, dim=-1)).abs()
        far = torch.where(far < torch.inf, far, 0.0).amax(-1)
        size = torch.where(size < torch.inf, size.maximum(far), far)
    return power_of_two(size)


def power_of_two(v: Tensor) -> Tensor:
    """Return the least powers of two above; one where an entry is zero or not finite."""
    v = torch.where((v > 0) & (v < torch.inf), v, 0.75)
    return v / torch.frexp(v).mantissa


def largest(v: Tensor) -> Tensor:
    """Return the size of the largest entry, ``(N, 1)``."""
    return torch.linalg.vector_norm(v, math.inf, -1, keepdim=True)


def read_program(problem: ims.EquationProblem, z: Tensor) -> tuple[Program, int]:
    """Return the programs of all lanes, and the number of inequalities."""
    lanes = len(z)
    if len(problem.shape) > 1:
        problem = problem.take(torch.arange(lanes, device=z.device))
    operands = problem.operands
    if len(operands) not in (6, 7) or operands[0].shape[-1] != operands[1].shape[-1]:
        raise TypeError(
            "solver=InteriorPoint() solves the equation of quadratic_program only: use Newton()"
        )
    n, m, k = (operands[i].shape[-1] for i in (1, 3, 5))
    shapes = [(n, n), (n,), (m, n), (m,), (k, n), (k,), ()]
    Q, p, G, h, A, b, *size = (
        t.reshape((lanes if t.dim() > len(shape) else 1, *shape)).expand(lanes, *shape)
        for t, shape in zip(operands, shapes, strict=False)
    )
    unit = (size[0] if size else size_of(Q, p, G, h, A, b)).unsqueeze(-1)
    rows = torch.cat([G, A], -2) if k else G
    c = torch.cat([h, b], -1) if k else h
    lengths = power_of_two(torch.linalg.vector_norm(rows, dim=-1))
    R = rows = rows / lengths.unsqueeze(-1)
    c, idle = c / (lengths * unit), c.isinf()
    idle[:, m:] = False
    if bool(idle.any()):  # no constraint, or one that nothing meets
        R, c = torch.where(idle.unsqueeze(-1), 0.0, R), torch.where(idle, c.sign(), c)
    diagonal = Q.diagonal(dim1=-2, dim2=-1)
    cost = power_of_two(torch.maximum(largest(diagonal) * unit, largest(p)))
    Q, p = Q * (unit / cost).unsqueeze(-1), p / cost
    scale = torch.cat([(1 / unit).expand_as(p), lengths / cost], -1)
    ends = torch.cat([cost.expand_as(p), lengths * unit], -1)
    penalty, linear = penalties(Q, R), (diagonal == 0).all(-1, keepdim=True)
    # without curvature, rows of any weight hold: the less, the clearer is what they leave free
    weights = torch.where(linear, torch.finfo(Q.dtype).eps ** 0.5 * penalty, penalty)
    both = torch.cat([Q, R], -2)
    Q, R = both.split([n, m + k], -2)
    return Program(Q, p, R, c, penalty, weights, both, rows, c.abs(), scale, ends), m


def semidefinite(Q: Tensor) -> Tensor:
    """Tell which matrices have no negative eigenvalue, up to rounding."""
    n, real = Q.shape[-1], torch.finfo(Q.dtype)
    shift = 10 * n * real.eps * Q.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    shifted = Q.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift.clamp(min=real.tiny).unsqueeze(-1))
    return torch.linalg.cholesky_ex(shifted).info == 0
