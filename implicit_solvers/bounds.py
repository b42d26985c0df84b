"""Bounds on unknowns: as they are given, and what they make of a slope.

Nothing here knows an equation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.structure import Structure, filled

__all__ = ["bounds_of", "held", "projected", "read_bounds"]


def bounds_of(z: Tensor, lo: Tensor, hi: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds among the operands."""
    return lo, hi


def projected(z: Tensor, slope: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """Return the slope of unknowns that are free, and how far others are from their bound."""
    low, high = held(z, slope, lo, hi)
    return torch.where(low, z - lo, torch.where(high, z - hi, slope))


def held(z: Tensor, slope: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which unknowns are held to their lower and to their upper bound, by their slope."""
    return (z <= lo) & ((slope > 0) | (lo == hi)), (z >= hi) & (slope < 0)


def read_bounds(bounds: Any, z0: Any, batch_dims: int) -> tuple[Tensor, Tensor]:
    """Return bounds, raveled as ``z0`` is: each a pytree like that, of tensors, numbers or None."""
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(
            f"bounds is a {type(bounds).__name__}: pass a pair (lo, hi), each a number, None, or "
            "a pytree like z0 of tensors, numbers and None"
        )
    if any(isinstance(side, (int, float)) and side != side for side in bounds):
        raise ValueError(f"bounds is {tuple(bounds)}: pass numbers, or None where there is none")
    structure = Structure.of(z0, "z0", batch_dims)
    if structure.dtype.is_complex:
        raise ValueError("bounds is given, and z0 is complex: complex numbers have no order")
    lower, upper = (
        filled(side, f"bounds[{i}]", z0, missing)
        for i, (side, missing) in enumerate(zip(bounds, (-math.inf, math.inf), strict=True))
    )
    if all(isinstance(side, (int, float)) for side in bounds) and not bounds[0] <= bounds[1]:
        raise ValueError(f"bounds is {tuple(bounds)}: the lower must be at most the upper")
    return structure.ravel(lower), structure.ravel(upper)
