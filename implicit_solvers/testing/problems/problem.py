"""A problem: an equation, its start, and what is known of its solution.

It knows no concrete solver.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.solution import OnFailure, Solution
from implicit_solvers.testing.kinds import SOLVE, Kind

__all__ = ["Bound", "Kind", "Problem"]

Bound = Tensor | float | None


@dataclass(frozen=True, eq=False)
class Problem:
    """An equation in ``z`` with parameters ``theta``, and its solution.

    The solution and its derivative were computed with 50 digits, by formulas written a second
    time, and rounded to float64; NIST's certified solutions have 11 digits, and CUTEst's were
    computed in float64.

    Attributes
    ----------
    name
        A short name, unique among the problems.
    kind
        The function that solves it: ``"root"``, ``"fixed_point"``, ``"minimize"``,
        ``"least_squares"``.
    fn
        ``fn(z, theta)``: residuals, the next iterate, or the objective, of one problem; works in
        every floating dtype, on every device, and under ``torch.func`` transforms.
    z0
        The standard start: numbers, or one number for a 0-d unknown.
    parameters
        The standard ``theta``: numbers, differentiated in.
    source
        Where the problem comes from.
    regular
        Whether the Jacobian of the optimality condition is regular at the solution, and whether
        each constraint that is active there has a multiplier other than zero. Where not, the
        solution has no derivative.
    certified
        A solution given by the source, in the digits that it has there, or None.
    squares
        The least sum of squared residuals, in the same digits, or None.
    equalities, inequalities
        The constraints ``h(z, theta) = 0`` and ``g(z, theta) <= 0`` of a minimum, each a vector,
        or None.
    bounds
        ``bounds(theta)`` returns the lower and the upper bounds of a minimum, each a vector, one
        number, or None; None if there are none.

    Examples
    --------
    >>> from implicit_solvers.testing.problems import KEPLER
    >>> theta = KEPLER.theta().requires_grad_()
    >>> sol = KEPLER.solve(theta)
    >>> torch.testing.assert_close(sol.value, KEPLER.solution)
    >>> gradient = torch.autograd.grad(sol.value, theta)[0]
    >>> torch.testing.assert_close(gradient, KEPLER.derivative)
    """

    name: str
    kind: Kind
    fn: Callable[[Tensor, Tensor], Tensor]
    z0: tuple[float, ...] | float
    parameters: tuple[float, ...]
    source: str
    regular: bool = True
    certified: tuple[float, ...] | None = None
    squares: float | None = None
    equalities: Callable[[Tensor, Tensor], Tensor] | None = None
    inequalities: Callable[[Tensor, Tensor], Tensor] | None = None
    bounds: Callable[[Tensor], tuple[Bound, Bound]] | None = None

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    def start(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """Return the standard start, ``(n,)`` or 0-d."""
        return torch.tensor(self.z0, dtype=dtype, device=device)

    def theta(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """Return the standard parameters, ``(p,)``."""
        return torch.tensor(self.parameters, dtype=dtype, device=device)

    @property
    def solution(self) -> Tensor | None:
        """The solution at the standard parameters, float64; None if there is none."""
        if self.certified is not None:
            return torch.tensor(self.certified, dtype=torch.float64)
        return _reference(self.name, "solution")

    @property
    def derivative(self) -> Tensor | None:
        """Its derivative with respect to ``theta``, float64, ``(n, p)`` or ``(p,)``.

        None if there is no solution, none that is differentiable, or if it is not stored.
        """
        return _reference(self.name, "derivative")

    @property
    def multipliers(self) -> Tensor | None:
        """The multipliers of the equalities, then of the inequalities, of a minimum; float64.

        With them, the gradient of ``fn + multipliers @ [equalities, inequalities]`` vanishes but
        where a bound is active. None where there are none, or several.
        """
        return _reference(self.name, "multipliers")

    @property
    def multipliers_derivative(self) -> Tensor | None:
        """Their derivative with respect to ``theta``, float64, ``(m, p)``, or None."""
        stored = _reference(self.name, "multipliers_derivative")
        return None if stored is None else stored.reshape(-1, len(self.parameters))

    def constraints(self, z: Tensor, theta: Tensor) -> Tensor:
        """Return the equalities, then the inequalities, of a minimum, at ``z``: a vector."""
        given = [c for c in (self.equalities, self.inequalities) if c is not None]
        return torch.cat([z[:0], *(c(z, theta) for c in given)])

    def box(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lower and the upper bounds of a minimum, infinite where there are none."""
        lower, upper = (None, None) if self.bounds is None else self.bounds(theta)

        def full(bound: Bound, none: float) -> Tensor:
            bound = none if bound is None else bound
            tensor = bound if isinstance(bound, Tensor) else theta.new_tensor(bound)
            return tensor.expand(self.start().shape)

        return full(lower, -torch.inf), full(upper, torch.inf)

    def solve(
        self,
        theta: Tensor | None = None,
        *,
        start: Tensor | None = None,
        solver: Any = None,
        adjoint: Any = None,
        on_failure: OnFailure = "raise",
    ) -> Solution:
        """Solve it with the library.

        Parameters
        ----------
        theta
            The parameters ``(p,)``; the standard ones in float64 if left out.
        start
            Where to start, of the shape of ``z0``; the standard start, in the dtype of ``theta``,
            if left out.
        solver, adjoint, on_failure
            As in `root`.

        Returns
        -------
        Solution
            As `root`, `fixed_point`, `minimize`, `least_squares` return it.

        Raises
        ------
        ConvergenceError
            If the solver fails and ``on_failure="raise"``.
        ValueError
            If ``theta`` or ``start`` has another shape.
        """
        theta = self.theta() if theta is None else theta
        start = self.start(theta.dtype, theta.device) if start is None else start
        for what, given, standard in (
            ("theta", theta, self.theta()),
            ("start", start, self.start()),
        ):
            if given.shape != standard.shape:
                raise ValueError(
                    f"{what} has shape {tuple(given.shape)}, {self.name} needs "
                    f"{tuple(standard.shape)}: for many problems at once, use torch.func.vmap"
                )
        constraints: dict[str, Any] = {
            "bounds": None if self.bounds is None else self.bounds(theta),
            "equalities": self.equalities,
            "inequalities": self.inequalities,
        }
        constraints = {name: c for name, c in constraints.items() if c is not None}
        return SOLVE[self.kind](
            self.fn,
            start,
            (theta,),
            solver=solver,
            adjoint=adjoint,
            on_failure=on_failure,
            **constraints,
        )


@cache
def _references() -> dict[str, dict[str, Any]]:
    text = files(__package__).joinpath("references.json").read_text(encoding="utf-8")
    references: dict[str, dict[str, Any]] = json.loads(text)
    return references


def _reference(name: str, key: str) -> Tensor | None:
    value = _references()[name].get(key)
    return None if value is None else torch.tensor(value, dtype=torch.float64)
