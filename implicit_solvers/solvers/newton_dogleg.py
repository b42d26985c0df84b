"""Newton's method, which hands over to the dogleg method. It knows neither's formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from implicit_solvers.solvers.dogleg import Dogleg

__all__ = ["NewtonDogleg"]


@dataclass(frozen=True)
class NewtonDogleg(Dogleg):
    """Newton's damped steps, and the dogleg method where these do not pay.

    Each problem begins as in `Newton`: a step ``t p`` is judged by the step that would follow it,
    so the units of ``F`` and of its rows do not matter. Where ``t`` would be less than a
    thousandth, steps of `Dogleg` take over. They are full Newton steps where these halve ``|F|``,
    and otherwise stay within a region in which ``|F|`` falls. A problem ends when its step is no
    larger than its rounding.

    Beyond 512 unknowns, or with a ``linear_solver``, it is `Dogleg`. Source: Deuflhard, "Newton
    Methods for Nonlinear Problems" (2004), section 3.3; Powell, "A hybrid method for nonlinear
    equations" (1970).

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    linear_solver, first_radius, shrinks
        As in `Dogleg`.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> f = lambda z: torch.stack([z[0] * z[1] - 6, z[0] + z[1] ** 2 - 7])
    >>> start = torch.tensor([2.0, 1.0])  # where the Jacobian is singular
    >>> ims.root(f, start, solver=NewtonDogleg()).value
    tensor([3., 2.])
    """

    damps: ClassVar[bool] = True
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point")
