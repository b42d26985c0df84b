"""When is a lane solved: norms, default tolerances, and the two convergence criteria.

It knows no solver.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from implicit_solvers import ranks
from implicit_solvers.ranks import peak

__all__ = [
    "AUTO",
    "Auto",
    "Norm",
    "equation_tolerance",
    "largest",
    "linear_tolerance",
    "power_of_two",
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
    return ranks.rms(lanes)


def largest(lanes: Tensor) -> Tensor:
    """Return the largest absolute entry of each lane, NaN where one is; by parts if complex.

    That all are finite, or zero, is told from it in a tenth of the time of ``all(-1)``.
    """
    if lanes.is_complex():
        lanes = torch.view_as_real(lanes.resolve_conj()).flatten(-2)
    return peak(lanes.abs().amax(-1) if lanes.shape[-1] else lanes.sum(-1))


def safe_rms(lanes: Tensor) -> Tensor:
    """Return the root mean square of each lane, where squares may under- or overflow."""
    unit = largest(lanes).clamp(min=torch.finfo(lanes.dtype).tiny)
    return rms(lanes / unit.unsqueeze(-1)) * unit


def power_of_two(sizes: Tensor) -> Tensor:
    """Return the power of two next to each size; 1 where that is zero or not finite."""
    info = torch.finfo(sizes.dtype)
    exponent = sizes.log2().round().clamp(math.log2(info.tiny), math.log2(info.max) - 1)
    return torch.where((sizes > 0) & (sizes < torch.inf), exponent.exp2(), 1.0)


def equation_tolerance(rtol: float | Auto, atol: float | Auto, eps: float, size: Any) -> Any:
    """Return the largest error of ``z`` that counts as solved, in its units: ``atol + rtol size``.

    The default of ``rtol`` is ``eps**0.75``, 1.8e-12 in float64 and 6.4e-6 in float32; that of
    ``atol`` is zero.
    """
    relative = eps**0.75 if isinstance(rtol, Auto) else rtol
    tolerance = relative * size
    return tolerance if isinstance(atol, Auto) or atol == 0 else atol + tolerance


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
