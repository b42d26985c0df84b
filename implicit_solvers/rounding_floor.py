"""What is known of a point at which a fixed-point iteration comes no nearer.

Where the terms of a map cancel, its rounding is more than that of its value: residuals stand at
that, however far it is above a rounding of ``z``, or are zero too soon. It knows no tolerance:
`verdict` judges.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.examination import Examination
from implicit_solvers.iterate import iterate
from implicit_solvers.linear.gmres import GMRES
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.outcome import ROUNDINGS
from implicit_solvers.rounding import patterns
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import safe_rms

__all__ = ["at_the_floor", "rounding_of"]

_NEARER, _STEEP, _PART, _PRODUCTS = 16, 12, 4, 200


def at_the_floor(problem: Any, z: Tensor) -> Examination:
    """Examine points by products with the Jacobian: from the residual, and from its rounding.

    They are ``drowned`` where the residual is that rounding, and wrong where no step is found.
    """
    eps = torch.finfo(z.dtype).eps
    F, A = problem.residual(z), problem.linearize(z)
    size, noise = safe_rms(F), rounding_of(problem, z, F, A)
    unit = torch.where(size > 0, size, 1.0).unsqueeze(-1)
    b = torch.cat([F / unit, patterns(z)[0].expand_as(z)])
    solver = GMRES(rtol=eps**0.5, max_steps=min(2 * z.shape[-1], _PRODUCTS))
    twice: Any = replace(A, columns=2)
    out = iterate(solver, LinearProblem(twice, b), torch.zeros_like(b))
    found = (out.status == int(Status.CONVERGED)).reshape(2, -1).all(0)
    step, other = torch.where(found.repeat(2).unsqueeze(-1), out.z, 0.0).chunk(2)
    rounding = noise.unsqueeze(-1) * other
    drowned, wrong = problem.number(size <= ROUNDINGS * noise), problem.number(~found)
    return Examination(F, unit * step, (rounding, rounding), (), drowned=drowned, wrong=wrong)


def rounding_of(problem: Any, z: Tensor, F: Tensor, A: Any) -> Tensor:
    """Return the size ``(N,)`` of what rounding does to ``F``, as seen about ``z``.

    It is how far ``F`` is from its linear model after a move of ``sqrt(eps)`` times the size of
    ``z``, where curvature is a rounding of ``z``. If ``F`` is not zero, what grows with the move is
    none of it: curvature and kinks do, and stairs that are longer than the move. So it may not be
    twelve times what is seen after a sixteenth of the move, and is at most four times that. A
    rounding of ``z`` is the least. Source: Moré and Wild, "Estimating computational noise" (2011).
    """
    eps = torch.finfo(z.dtype).eps
    size = torch.as_tensor(problem.scaled(problem.number(safe_rms(z)), 0.5)).to(z).reshape(-1, 1)
    reach = torch.maximum(z.abs(), size)

    def seen(part: float) -> Tensor:
        largest = torch.zeros_like(z[:, 0])
        for pattern in patterns(z):
            there = z + part * reach * pattern
            bent = problem.residual(there) - F - A.mv(there - z)
            largest = torch.maximum(largest, safe_rms(bent))
        return largest / 2**0.5

    wide, near = seen(eps**0.5), seen(eps**0.5 / _NEARER)
    sure = torch.where(_STEEP * near > wide, torch.minimum(wide, _PART * near), 0.0)
    return torch.maximum(torch.where(safe_rms(F) > 0, sure, wide), eps * safe_rms(z))
