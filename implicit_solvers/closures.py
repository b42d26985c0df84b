"""What a function reads of the scopes that it was written in.

A solve evaluates its function again when it is differentiated, and may not find there what the next
turn of a loop has written. This file knows of functions only.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["bound", "globals_read", "graphs_held", "parts_held"]

F = TypeVar("F")


def bound(fn: F) -> F:
    """Return a function that goes on reading what the variables around it are now.

    Those that it writes itself, by ``nonlocal``, stay shared. So are globals, whose values
    `globals_read` tells.
    """
    return _bound(fn, {})


def _bound(fn: Any, made: dict[int, Any]) -> Any:
    if type(fn) is functools.partial:
        fixed = [_bound(arg, made) for arg in fn.args]
        return functools.partial(_bound(fn.func, made), *fixed, **fn.keywords)
    if not isinstance(fn, types.FunctionType) or not fn.__closure__:
        return fn
    if "<locals>" not in fn.__qualname__:  # decorated
        return fn
    if id(fn) in made:
        return made[id(fn)]
    written = _written(fn.__code__, "STORE_DEREF")
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__, strict=True))
    ours = {n: types.CellType() for n, c in cells.items() if not (n in written or _is_empty(c))}
    closure = tuple({**cells, **ours}.values())
    new = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, closure)
    made[id(fn)] = functools.update_wrapper(new, fn)
    new.__kwdefaults__, new.__dict__ = fn.__kwdefaults__, dict(fn.__dict__)
    for name, cell in ours.items():
        cell.cell_contents = _bound(cells[name].cell_contents, made)
    return new


@functools.lru_cache(maxsize=256)
def _written(code: types.CodeType, operation: str) -> frozenset[str]:
    """Return the variables that a function, or one inside of it, assigns to."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == operation}
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return frozenset(names.union(*(_written(c, operation) for c in inner)))


def globals_read(fn: Any, depth: int = 3) -> list[tuple[dict[str, Any], str, Any]]:
    """Return the numbers and tensors that a function reads as globals: scope, name and value."""
    found: list[tuple[dict[str, Any], str, Any]] = []
    if isinstance(fn, types.FunctionType):
        names = set(_names(fn.__code__)) - _written(fn.__code__, "STORE_GLOBAL")
        scope = fn.__globals__
        values = [(name, scope[name]) for name in sorted(names & scope.keys())]
        found = [(scope, n, v) for n, v in values if isinstance(v, (int, float, complex, Tensor))]
    parts = [part for part in parts_held(fn) if callable(part)]
    return found + [entry for part in parts if depth for entry in globals_read(part, depth - 1)]


def parts_held(fn: Any) -> list[Any]:
    """Return what a function reads by name, or was bound to; nothing of what is no function."""
    if isinstance(fn, types.FunctionType):
        cells = (cell for cell in fn.__closure__ or () if not _is_empty(cell))
        parts = [cell.cell_contents for cell in cells]
        parts += [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
        parts += [fn.__globals__.get(name) for name in _names(fn.__code__)]
        return [part for part in parts if not isinstance(part, types.ModuleType)]
    if isinstance(fn, types.MethodType):
        return [fn.__self__, fn.__func__]
    if isinstance(fn, functools.partial):
        return [fn.func, *fn.args, *fn.keywords.values()]
    return []


def graphs_held(fn: Any, depth: int = 3) -> list[Tensor]:
    """Return the tensors with a graph that a function holds, as far as they are seen from outside.

    What is overlooked costs time, and changes no result.
    """
    if isinstance(fn, Tensor):
        return [fn]
    parts = fn if isinstance(fn, (tuple, list)) and len(fn) <= 16 else parts_held(fn)
    return [t for part in parts if depth for t in graphs_held(part, depth - 1)]


def _is_empty(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
