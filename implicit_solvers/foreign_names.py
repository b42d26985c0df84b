"""Keywords of other libraries: refused with the name that they have here. It knows names only."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar

__all__ = ["explains_names", "explains_names_of"]

F = TypeVar("F", bound=Callable[..., Any])

_TOLERANCES = {"tol", "tolerance", "eps", "epsilon", "ftol", "xtol", "gtol", "f_tol", "abs_tol"}
_STEPS = {"maxiter", "max_iter", "max_iters", "maxiters", "max_iterations", "maxsteps", "n_iter"}
_OF_SOLVERS = {"rtol", "atol", "max_steps"}


def explains_names(solver: str) -> Callable[[F], F]:
    """Decorate a function that takes a solver, for which ``solver`` is an example of one."""
    fix = (
        "the solver has the tolerances and the number of steps, as in "
        f"solver=ims.{solver}(rtol=1e-6, max_steps=50)"
    )

    def decorate(fn: F) -> F:
        return _refusing(fn, _TOLERANCES | _STEPS | _OF_SOLVERS, fix)

    return decorate


def explains_names_of(value: Any) -> None:
    """Let the class of an iterative solver explain its names; other values are left alone."""
    if not (isinstance(value, type) and is_dataclass(value)):
        return
    if "rtol" in inspect.signature(value).parameters:
        name = value.__name__
        fix = f"the tolerances are rtol and atol, as in {name}(rtol=1e-6, max_steps=50)"
        explaining = _refusing(value.__init__, _TOLERANCES | _STEPS, fix)
        value.__init__ = explaining  # type: ignore[method-assign]


def _refusing(fn: F, foreign: set[str], fix: str) -> F:
    refused = foreign - set(inspect.signature(fn).parameters)

    @functools.wraps(fn)
    def call(*args: Any, **options: Any) -> Any:
        for option in options:
            if option in refused:
                name = type(args[0]).__name__ if fn.__name__ == "__init__" else fn.__name__
                raise TypeError(f"{name}() has no {option}: {fix}")
        return fn(*args, **options)

    return call  # type: ignore[return-value]
