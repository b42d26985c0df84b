"""What cone solvers can be told, checked where they are made."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

__all__ = ["check_settings"]


def check_settings(method: Any) -> None:
    """Refuse settings of a `Clarabel` or an `SCS` that make no sense: tolerances, steps, threads.

    Examples
    --------
    >>> from implicit_solvers.problems.convex import SCS
    >>> SCS(polish=-1)
    Traceback (most recent call last):
    ValueError: SCS has polish=-1: pass a whole number >= 0
    """
    for name in ("rtol", "atol"):
        _check(method, name, Real, "a number", 0)
    for name, least in (("max_steps", 1), ("polish", 0)):
        _check(method, name, Integral, "a whole number", least)
    if method.workers is not None:
        _check(method, "workers", Integral, "a whole number", 1)


def _check(method: Any, name: str, kind: type, what: str, least: int) -> None:
    value = getattr(method, name)
    said = f"{type(method).__name__} has {name}={value!r}: pass {what} >= {least}"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(said)
    if not least <= value < float("inf"):  # type: ignore[operator]
        raise ValueError(said)
