"""Checks of what a cell or a layer is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_cell_input", "check_floating", "check_size", "check_state"]


def check_size(name: str, value: Any) -> None:
    """Raise unless ``value`` is a positive integer.

    Examples
    --------
    >>> check_size("hidden_size", 0)
    Traceback (most recent call last):
    ValueError: hidden_size=0 is no positive integer
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} is no positive integer")


def check_floating(name: str, tensor: Any, dtype: torch.dtype) -> None:
    """Raise unless ``tensor`` is a tensor of the parameters' dtype.

    Examples
    --------
    >>> check_floating("input", torch.tensor([1]), torch.float32)
    Traceback (most recent call last):
    TypeError: input is torch.int64 where the parameters are torch.float32: convert one of them...
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}: pass a tensor")
    if tensor.dtype != dtype:
        raise TypeError(
            f"{name} is {tensor.dtype} where the parameters are {dtype}: convert one of them, with "
            ".to(dtype)"
        )


def check_state(name: str, state: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise unless ``state`` is a tensor of that shape and dtype.

    Examples
    --------
    >>> check_state("hx", torch.zeros(3), (1, 3), torch.float32)
    Traceback (most recent call last):
    ValueError: hx has the shape (3,) where (1, 3) is needed
    """
    check_floating(name, state, dtype)
    if tuple(state.shape) != shape:
        raise ValueError(f"{name} has the shape {tuple(state.shape)} where {shape} is needed")


def check_cell_input(
    input: Any, hx: Any, input_size: int, hidden_size: int, dtype: torch.dtype
) -> None:
    """Raise unless a cell can take a step with ``input`` and ``hx`` (None: zero).

    Examples
    --------
    >>> check_cell_input(torch.zeros(2, 3), None, 4, 5, torch.float32)
    Traceback (most recent call last):
    ValueError: input has the shape (2, 3): pass (batch, 4) or (4,)
    """
    check_floating("input", input, dtype)
    if input.dim() not in (1, 2) or input.shape[-1] != input_size:
        raise ValueError(
            f"input has the shape {tuple(input.shape)}: pass (batch, {input_size}) or "
            f"({input_size},)"
        )
    if hx is not None:
        check_state("hx", hx, (*input.shape[:-1], hidden_size), dtype)
