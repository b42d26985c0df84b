"""What a solver of equations is, for type checkers and for whoever writes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from implicit_solvers.hyperparameters import check_count, check_stopping
from implicit_solvers.iterate import IterativeSolver
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms

__all__ = ["EquationMethod", "EquationSolver", "LinearMethod"]


@dataclass(frozen=True, kw_only=True)
class _Method:
    """When an iterative method ends, and how its loop runs."""

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 1000
    compact: bool = True
    check_every: int = 1
    compile: bool = False
    monotone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_stopping(self)
        check_count(self, "check_every", least=1)


@dataclass(frozen=True, kw_only=True)
class LinearMethod(_Method):
    """The hyperparameters of all iterative methods for ``A x = b``; pass them by keyword.

    Parameters
    ----------
    rtol, atol
        A lane has converged when ``rms(b - A x) <= atol + rtol rms(b)``; by default ``rtol`` is
        ``eps**(2/3)`` and ``atol`` zero. ``rtol=None`` makes exactly ``max_steps`` steps and
        judges nothing.
    max_steps
        The number of steps allowed.
    compact, check_every, compile
        As in `EquationMethod`, with the operator in the place of the function.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> ims.CG(rtol=1e-3, max_steps=20)
    CG(rtol=0.001, atol=AUTO, max_steps=20, compact=True, check_every=1, compile=False)
    """

    symmetric_only: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class EquationMethod(_Method):
    """The hyperparameters of all iterative methods for equations; pass them by keyword.

    Parameters
    ----------
    rtol, atol
        A lane has converged when ``norm(F(z)) <= atol + rtol norm(z)``, where ``F`` is ``f`` for a
        root, ``z - g(z)`` for a fixed point, the gradient for a minimum, and ``J^T r`` for least
        squares; both default to ``eps**0.75``. ``rtol=None`` makes exactly ``max_steps`` steps
        and judges nothing.
    max_steps
        The number of steps allowed. One that is taken back, as it does not pay, does not count; of
        a budget, each does.
    max_trials
        The number of steps allowed with those that are taken back, ``4 max_steps`` if left out.
    norm
        Maps what ``F`` returns, ``(N, n)``, of a real floating dtype, to sizes ``(N,)``.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.
    check_every
        Every how many steps it is asked whether all lanes have ended. A GPU waits for the answer;
        lanes that ended keep what they have.
    compile
        Whether blocks of steps are compiled, for each function and dtype, and for few shapes.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> ims.Newton(rtol=1e-6, max_steps=20).rtol
    1e-06
    """

    norm: Norm = rms
    max_trials: int | None = None
    traceable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        if self.max_trials is not None:
            check_count(self, "max_trials")


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
