"""Hyperparameters that make no sense are refused where a solver is made.

It knows no concrete solver.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from implicit_solvers.tolerance import Auto

__all__ = ["check_count", "check_flag", "check_number", "check_stopping"]


def check_stopping(solver: Any) -> None:
    """Refuse tolerances and numbers of steps that are none."""
    budget = ", or None for exactly max_steps steps"
    for name, hint in (("rtol", budget), ("atol", "")):
        value = getattr(solver, name)
        if isinstance(value, Auto) or (value is None and hint):
            continue
        _check_kind(solver, name, Real, f"pass a number >= 0, leave it out{hint}")
        if not value >= 0:
            raise ValueError(
                f"{_owner(solver)} has {name}={value!r}: pass a number >= 0, leave it out{hint}"
            )
    check_count(solver, "max_steps")


def check_count(solver: Any, name: str, least: int = 0) -> None:
    """Refuse what is no whole number, or below the least."""
    _check_kind(solver, name, Integral, f"pass a whole number >= {least}")
    value = getattr(solver, name)
    if value < least:
        raise ValueError(f"{_owner(solver)} has {name}={value!r}: pass a whole number >= {least}")


def check_flag(solver: Any, name: str) -> None:
    """Refuse what is neither True nor False."""
    value = getattr(solver, name)
    if not isinstance(value, bool):
        raise TypeError(
            f"{_owner(solver)} has {name}={value!r}, of type {type(value).__name__}: pass True or "
            "False"
        )


def check_number(
    solver: Any,
    name: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Refuse what is no number, or lies outside of the bounds."""
    value = getattr(solver, name)
    bounds = ((">", above), (">=", least), ("<", below), ("<=", most))
    wanted = "pass a number " + " and ".join(f"{sign} {b:g}" for sign, b in bounds if b is not None)
    _check_kind(solver, name, Real, wanted)
    inside = (
        (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    )
    if not inside:
        raise ValueError(f"{_owner(solver)} has {name}={value!r}: {wanted}")


def _check_kind(solver: Any, name: str, kind: type, wanted: str) -> None:
    value = getattr(solver, name)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(
            f"{_owner(solver)} has {name}={value!r}, of type {type(value).__name__}: {wanted}"
        )


def _owner(solver: Any) -> str:
    return type(solver).__name__
