"""The programs of many lanes, as the solver works on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.qp.condensed import penalties

__all__ = ["Program", "read_program", "semidefinite"]


class Program(NamedTuple):
    """The programs of N lanes.

    Rows ``R`` are those of ``G``, then those of ``A``, of length one; ``z`` times ``scale`` is the
    solution in these units.
    """

    Q: Tensor
    p: Tensor
    R: Tensor
    c: Tensor
    penalty: Tensor
    scale: Tensor


def read_program(problem: ims.EquationProblem, z: Tensor) -> tuple[Program, int]:
    """Return the programs of all lanes, and the number of inequalities."""
    lanes = len(z)
    if len(problem.shape) > 1:
        problem = problem.take(torch.arange(lanes, device=z.device))
    operands = problem.operands
    if len(operands) != 6 or operands[0].shape[-1] != operands[1].shape[-1]:
        raise TypeError(
            "solver=InteriorPoint() solves the equation of quadratic_program only: use Newton()"
        )
    n, m, k = (operands[i].shape[-1] for i in (1, 3, 5))
    shapes = [(n, n), (n,), (m, n), (m,), (k, n), (k,)]
    Q, p, G, h, A, b = (
        t.reshape((lanes if t.dim() > len(shape) else 1, *shape)).expand(lanes, *shape)
        for t, shape in zip(operands, shapes, strict=True)
    )
    R = torch.cat([G, A], -2) if k else G
    c = torch.cat([h, b], -1) if k else h
    lengths = torch.linalg.vector_norm(R, dim=-1)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    R, c = R / lengths.unsqueeze(-1), c / lengths
    return Program(Q, p, R, c, penalties(Q, R), torch.cat([torch.ones_like(p), lengths], -1)), m


def semidefinite(Q: Tensor) -> Tensor:
    """Tell which matrices have no negative eigenvalue, up to rounding."""
    n, real = Q.shape[-1], torch.finfo(Q.dtype)
    shift = 10 * n * real.eps * Q.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    shifted = Q.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift.clamp(min=real.tiny).unsqueeze(-1))
    return torch.linalg.cholesky_ex(shifted).info == 0
