"""When is a lane solved: norms, default tolerances, and the two convergence criteria."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "AUTO",
    "Auto",
    "Norm",
    "equation_tolerance",
    "largest",
    "linear_tolerance",
    "longest",
    "patterns",
    "rms",
    "safe_rms",
]

Norm = Callable[[Tensor], Tensor]


class Auto(enum.Enum):
    """The type of `AUTO`: a tolerance left to the dtype."""

    AUTO = "AUTO"

    def __repr__(self) -> str:
        """Show what it stands for."""
        return "AUTO"


AUTO = Auto.AUTO
"""A tolerance that follows from ``torch.finfo(dtype).eps`` when the solve starts."""


def rms(lanes: Tensor) -> Tensor:
    """Return the root mean square of each lane, ``sqrt(sum_i v_i^2 / n)``.

    Parameters
    ----------
    lanes
        ``(N, n)``, floating or complex.

    Returns
    -------
    Tensor
        ``(N,)``, real.

    Raises
    ------
    RuntimeError
        If ``lanes`` holds integers (torch refuses).

    Examples
    --------
    >>> rms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([3.5355, 0.0000])
    """
    return torch.linalg.vector_norm(lanes, dim=-1) / math.sqrt(max(lanes.shape[-1], 1))


def largest(lanes: Tensor) -> Tensor:
    """Return the largest absolute entry of each lane, NaN where one is; by parts if complex.

    That all are finite, or zero, is told from it in a tenth of the time of ``all(-1)``.
    """
    if lanes.is_complex():
        lanes = torch.view_as_real(lanes.resolve_conj()).flatten(-2)
    return lanes.abs().amax(-1) if lanes.shape[-1] else lanes.sum(-1)


def safe_rms(lanes: Tensor) -> Tensor:
    """Return the root mean square of each lane, where squares may under- or overflow."""
    unit = largest(lanes).clamp(min=torch.finfo(lanes.dtype).tiny)
    return rms(lanes / unit.unsqueeze(-1)) * unit


def patterns(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return two fixed patterns ``(n,)`` of signs and sizes, for vectors like ``(N, n)``.

    Rounding errors are sampled with them. They are the parts of numbers of length one whose phases
    grow by no regular step, so that no entry is small in both. (Signs alone would cancel where a
    vector has the same ones.)
    """
    n, golden = like.shape[-1], math.sqrt(math.pi * (3 - math.sqrt(5)))
    roots = torch.linspace(golden, golden * n, n, dtype=torch.float64, device=like.device)
    phase = roots.square()
    return phase.cos().to(like.real.dtype), phase.sin().to(like.real.dtype)


def equation_tolerance(
    rtol: float | Auto, atol: float | Auto, z: Tensor, size: Any, longest: Any
) -> Any:
    """Return the largest ``norm(F(z))`` that counts as solved: ``atol + rtol norm(z)``.

    ``F`` is the optimality condition: ``f`` for a root, ``z - g(z)`` for a fixed point, the
    gradient for a minimum, ``J^T r`` for least squares. The default of both tolerances is
    ``eps**0.75``: 1.8e-12 in float64, 6.4e-6 in float32.

    ``size`` is ``norm(z)``, and counts up to ``longest`` only: where an iterate runs away,
    ``rtol norm(z)`` would come to accept any bounded residual.
    """
    eps = torch.finfo(z.dtype).eps
    relative = eps**0.75 if isinstance(rtol, Auto) else rtol
    absolute = eps**0.75 if isinstance(atol, Auto) else atol
    if isinstance(size, Tensor):
        if isinstance(longest, float):
            return absolute + relative * size.clamp(max=longest)
        return absolute + relative * torch.minimum(size, longest)
    # (what is no number stays so)
    return absolute + relative * (longest if size > longest else size)


def longest(z: Tensor, start: Tensor | None) -> Any:
    """Return what an iterate's norm counts at most: ``1/sqrt(eps)``.

    Given the norm of the ``start`` of each lane ``(N,)``, up to ten times that or ``eps**-0.25``.
    """
    eps = torch.finfo(z.dtype).eps
    return eps**-0.5 if start is None else (10 * start).clamp(eps**-0.25, eps**-0.5)


def linear_tolerance(
    rtol: float | Auto, atol: float | Tensor | Auto, b: Tensor, norm: Norm
) -> Tensor:
    """Return the largest ``norm(b - A x)`` that counts as solved: ``atol + rtol norm(b)``.

    The default of ``rtol`` is ``eps**(2/3)`` (3.7e-11 in float64, 2.4e-5 in float32), that of
    ``atol`` is zero.
    """
    relative = torch.finfo(b.dtype).eps ** (2 / 3) if isinstance(rtol, Auto) else rtol
    absolute = 0.0 if isinstance(atol, Auto) else atol
    return absolute + relative * norm(b)
