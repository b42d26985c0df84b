"""The kinds of equations, and what solves them. It knows no check and no problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from implicit_solvers.fixed_points import fixed_point
from implicit_solvers.minimization import minimize
from implicit_solvers.nonlinear_least_squares import least_squares
from implicit_solvers.root_finding import root
from implicit_solvers.solution import Solution

__all__ = ["SOLVE", "Kind"]

Kind = Literal["root", "fixed_point", "minimize", "least_squares"]

SOLVE: dict[str, Callable[..., Solution]] = {
    "root": root,
    "fixed_point": fixed_point,
    "minimize": minimize,
    "least_squares": least_squares,
}
