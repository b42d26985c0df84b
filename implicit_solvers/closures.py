"""What a function reads of the scopes that it was written in.

A solve evaluates its function again when it is differentiated, and may not find there what the next
turn of a loop has written. This file knows of functions only.
"""

from __future__ import annotations

import dis
import functools
import types
from typing import Any, TypeVar

from torch import Tensor

__all__ = [
    "bound",
    "globals_named",
    "globals_read",
    "graphs_held",
    "is_foreign",
    "parts_held",
]

F = TypeVar("F")

_FOREIGN = ("torch.", "numpy.", "scipy.", "implicit_solvers.")


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
    if hasattr(fn, "__wrapped__") and is_foreign(fn.__module__):  # one of ours, decorated
        return fn
    if id(fn) in made:
        return made[id(fn)]
    written = names_in(fn.__code__, "STORE_DEREF")
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__, strict=True))
    ours = {n: types.CellType() for n, c in cells.items() if not (n in written or _is_empty(c))}
    closure = tuple({**cells, **ours}.values())
    new = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, closure)
    made[id(fn)] = functools.update_wrapper(new, fn)
    new.__kwdefaults__, new.__dict__ = fn.__kwdefaults__, dict(fn.__dict__)
    for name, cell in ours.items():
        cell.cell_contents = _bound(cells[name].cell_contents, made)
    return new


@functools.lru_cache(maxsize=1024)
def names_in(code: types.CodeType, *operations: str) -> tuple[str, ...]:
    """Return the names in operations of a function's code, or of the code of one inside of it."""
    names = [str(i.argval) for i in dis.get_instructions(code) if i.opname in operations]
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(dict.fromkeys([*names, *(n for c in inner for n in names_in(c, *operations))]))


def globals_named(fn: types.FunctionType) -> dict[str, Any]:
    """Return the globals that the code of a function names, and their values."""
    names = names_in(fn.__code__, "LOAD_GLOBAL", "LOAD_NAME")
    return {name: fn.__globals__[name] for name in names if name in fn.__globals__}


def is_foreign(module: str | None) -> bool:
    """Tell whether a module is torch's, NumPy's, SciPy's or this library's, its problems aside."""
    name = f"{module}."
    return name.startswith(_FOREIGN) and ".problems." not in name and ".testing." not in name


def globals_read(fn: Any, depth: int = 3) -> list[tuple[dict[str, Any], str, Any]]:
    """Return the numbers and tensors that a function reads as globals: scope, name and value."""
    found: list[tuple[dict[str, Any], str, Any]] = []
    if isinstance(fn, types.FunctionType):
        written = names_in(fn.__code__, "STORE_GLOBAL")
        found = [
            (fn.__globals__, name, value)
            for name, value in globals_named(fn).items()
            if isinstance(value, (int, float, complex, Tensor)) and name not in written
        ]
    parts = [part for part in _own_parts(fn) if callable(part)]
    return found + [entry for part in parts if depth for entry in globals_read(part, depth - 1)]


def parts_held(fn: Any) -> list[Any]:
    """Return what a function reads by name, or was bound to; nothing of what is no function."""
    if isinstance(fn, types.FunctionType):
        cells = (cell for cell in fn.__closure__ or () if not _is_empty(cell))
        parts = [cell.cell_contents for cell in cells]
        parts += [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
        parts += globals_named(fn).values()
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
    parts = fn if isinstance(fn, (tuple, list)) and len(fn) <= 16 else _own_parts(fn)
    return [t for part in parts if depth for t in graphs_held(part, depth - 1)]


def _is_empty(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def _own_parts(fn: Any) -> list[Any]:
    """Return what a function holds, without the functions of torch and other libraries."""
    return [
        part
        for part in parts_held(fn)
        if not (isinstance(part, types.FunctionType) and is_foreign(part.__module__))
    ]
