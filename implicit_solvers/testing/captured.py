"""The tensors that a function reads without being given them.

It knows nothing of how the library finds them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from implicit_solvers.closures import globals_named, is_foreign

__all__ = ["captured_tensors", "placed", "prepared"]

_DEPTH = 6
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def captured_tensors(*functions: Any) -> dict[str, Tensor]:
    """Find the real and complex tensors that functions hold: name and tensor.

    Looked through are closures, defaults and the globals that the code names, parameters, buffers
    and attributes of modules, attributes of objects that own a method, arguments of a
    ``functools.partial``, and containers of these.
    """
    found: dict[str, Tensor] = {}
    seen: dict[int, Any] = {}
    for fn in functions:
        for name, tensor in _walk(fn, "", seen, 0):
            found[f"{name} ({len(found)})" if name in found else name] = tensor
    return found


def _walk(value: Any, name: str, seen: dict[int, Any], depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > _DEPTH or id(value) in seen:
        return
    if isinstance(value, (types.ModuleType, type, str, int, float, bool, type(None))):
        return
    seen[id(value)] = value  # held: the next object could have the id of one that is gone
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield name or "tensor", value
        return
    for part, inner in _parts(value, name):
        yield from _walk(inner, part, seen, depth + 1)


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    def attribute(part: str) -> str:
        return f"{name}.{part}" if name else part

    if isinstance(value, nn.Module):
        for part, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield attribute(part), tensor
        for part, module in value.named_modules():
            at = attribute(part) if part else name
            yield at, type(module).forward
            for key, inner in vars(module).items():
                if key not in _OF_EVERY_MODULE:
                    yield f"{at}.{key}" if at else key, inner
    elif isinstance(value, functools.partial):
        yield name, value.func
        yield from ((f"{name}[{i}]", inner) for i, inner in enumerate(value.args))
        yield from value.keywords.items()
    elif inspect.ismethod(value):
        yield name, value.__self__
        yield name, value.__func__
    elif inspect.isfunction(value):
        yield from _closure(value)
    elif isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"{name}[{i}]", inner) for i, inner in enumerate(value))
    elif dataclasses.is_dataclass(value):
        yield from (
            (attribute(field.name), getattr(value, field.name))
            for field in dataclasses.fields(value)
        )
    elif hasattr(value, "__dict__") and not is_foreign(type(value).__module__):
        yield from ((attribute(key), inner) for key, inner in vars(value).items())
        if callable(value):
            yield name, value.__call__


def _closure(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if is_foreign(fn.__module__):
        return
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a cell that is still empty
            yield name, cell.cell_contents
    yield from globals_named(fn).items()
    yield from ((f"{fn.__name__} default", value) for value in fn.__defaults__ or ())
    yield from (fn.__kwdefaults__ or {}).items()


@contextlib.contextmanager
def prepared(
    tensors: Sequence[Tensor], inputs: Sequence[Tensor], dtype: torch.dtype | None
) -> Iterator[None]:
    """Give real captured tensors the dtype of the check, and let its inputs require gradients.

    Values, dtypes and flags are put back afterwards.
    """
    values = [tensor.data for tensor in tensors]
    flags = [tensor.requires_grad for tensor in inputs]
    try:
        for tensor, flag in zip(inputs, flags, strict=True):
            if not flag:
                tensor.requires_grad_(True)
        for tensor, value in zip(tensors, values, strict=True):
            real = value.is_floating_point()
            tensor.data = value.clone().to(dtype if dtype and real else value.dtype)
        yield
    finally:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data = value
        for tensor, flag in zip(inputs, flags, strict=True):
            if not flag:
                tensor.requires_grad_(False)


@contextlib.contextmanager
def placed(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Give captured tensors other values inside the block."""
    kept = [tensor.data for tensor in tensors]
    try:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data = value.detach()
        yield
    finally:
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.data = value
