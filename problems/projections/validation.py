"""What the projections require of their inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_array",
    "check_cone_points",
    "check_lanes",
    "check_number",
    "read_positive",
    "read_radius",
    "read_threshold",
]


def check_array(name: str, value: Any, dims: int = 1) -> Tensor:
    """Return a floating tensor of at least ``dims`` dimensions, none of the last empty."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}: pass a tensor")
    if not value.is_floating_point():
        raise TypeError(f"{name} is {value.dtype}: pass float32 or float64")
    what = "a vector" if dims == 1 else "a matrix"
    if value.dim() < dims or 0 in value.shape[value.dim() - dims :]:
        raise ValueError(
            f"{name} has the shape {tuple(value.shape)}: pass {what} with entries, with the "
            "batch in front"
        )
    return value


def check_cone_points(v: Any, entries: str) -> Tensor:
    """Return a floating tensor of rows of three, on the CPU, where NumPy finds projections."""
    v = check_array("v", v)
    if v.shape[-1] != 3:
        raise ValueError(f"v has the shape {tuple(v.shape)}: pass rows {entries}")
    if v.device.type != "cpu":
        raise ValueError(
            f"v is on {v.device}, and the projection is found by NumPy, on the CPU: pass v.cpu()"
        )
    return v


def check_number(name: str, value: float, least: float, strict: bool = True) -> float:
    """Return a number above (or at) a bound."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a {type(value).__name__}: pass a number or a tensor")
    if not (value > least or (value == least and not strict)):
        raise ValueError(f"{name} is {value}: pass a number {'above' if strict else '>='} {least}")
    return float(value)


def read_radius(radius: float | Tensor, like: Tensor) -> Tensor:
    """Return radii ``(..., 1)`` for rows ``(..., n)``, NaN where one is not positive."""
    return read_positive("radius", radius, like[..., 0]).unsqueeze(-1)


def read_positive(name: str, value: float | Tensor, like: Tensor, of: str = "v") -> Tensor:
    """Return numbers that broadcast to ``like``, NaN where one is not positive."""
    if not isinstance(value, Tensor):
        return like.new_tensor(check_number(name, value, 0.0))
    check_lanes(name, value, like, of)
    return torch.where(value > 0, value, torch.nan)


def read_threshold(threshold: float | Tensor, like: Tensor) -> Tensor:
    """Return thresholds that broadcast to ``like``, NaN where one is negative."""
    if not isinstance(threshold, Tensor):
        return like.new_tensor(check_number("threshold", threshold, 0.0, strict=False))
    check_lanes("threshold", threshold, like)
    return torch.where(threshold >= 0, threshold, torch.nan).expand(like.shape)


def check_lanes(name: str, value: Tensor, like: Tensor, of: str = "v") -> None:
    """Refuse what has not the dtype and device of ``like``, or does not broadcast to it."""
    if value.dtype != like.dtype or value.device != like.device:
        raise TypeError(
            f"{name} is {value.dtype} on {value.device}, and {of} is {like.dtype} on "
            f"{like.device}: use one dtype and device"
        )
    lanes = tuple(like.shape)
    try:
        fits = tuple(torch.broadcast_shapes(value.shape, lanes)) == lanes
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has the shape {tuple(value.shape)}, and {of} has the batch {lanes}: pass a "
            "number, or a tensor that broadcasts to the batch"
        )
