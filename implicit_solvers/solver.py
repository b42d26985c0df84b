"""What a solver of equations is, for type checkers and for whoever writes one."""

from __future__ import annotations

from typing import ClassVar, Protocol

from implicit_solvers.iterate import IterativeSolver
from implicit_solvers.tolerance import Norm

__all__ = ["EquationSolver"]


class EquationSolver(IterativeSolver, Protocol):
    """What ``solver=`` of an equation takes: an instance, as ``Newton()``, of a class of this form.

    A frozen dataclass of hyperparameters (``rtol``, ``atol``, ``max_steps``, ``norm``,
    ``compact``) with two methods: ``init(problem, z)`` returns the state at the start, ``step(
    problem, state)`` that one step later. ``monotone`` tells whether the error never grows, and
    ``solves`` names the equations that it is for. Nothing need be inherited.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> def cube_root(a: torch.Tensor, solver: ims.EquationSolver) -> torch.Tensor:
    ...     return ims.root(lambda z: z**3 - a, torch.ones_like(a), solver=solver).value
    >>> cube_root(torch.tensor(8.0), ims.Newton())
    tensor(2.)
    """

    solves: ClassVar[tuple[str, ...]]

    @property
    def norm(self) -> Norm:
        """Map residuals ``(N, n)`` to their sizes ``(N,)``."""
