"""What a solver is: iterative ones, of equations and of linear systems, and direct ones.

Whoever writes one subclasses `EquationMethod`, `LinearMethod` or `DirectSolver`: what the library
asks of a solver is a method or an attribute here, mostly with a default. Nothing here knows a
concrete solver, nor who calls one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_count, check_flag, check_number, check_stopping
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.tolerance import AUTO, Auto, Norm, rms, safe_rms

__all__ = [
    "DENSE_LIMIT",
    "DirectSolver",
    "EquationMethod",
    "Factors",
    "IterativeSolver",
    "LaneProblem",
    "LinearMethod",
    "LinearSolver",
    "check_linear_solver",
    "refuse_other_solvers",
]

Factors = tuple[Tensor, ...]

DENSE_LIMIT = 512
"""Up to this many unknowns a matrix is formed and factored when no solver is named."""


class LaneProblem(Protocol):
    """N problems of one shape, as a solver's `init` and `step` see them."""

    @property
    def separable(self) -> bool:
        """Whether `take` can select lanes."""

    def tolerance(self, solver: Any, z: Any) -> Tensor:
        """Return the error at or below which each lane has converged."""

    def take(self, index: Tensor) -> Any:
        """Return the problem of some of the lanes."""


@dataclass(frozen=True, kw_only=True)
class IterativeSolver:
    """A method: when it ends, how its loop runs, a start, and a step.

    What is carried from step to step, its state, is a named tuple of tensors ``(N, ...)`` and
    numbers. ``z`` is the iterate ``(N, n)`` and ``error`` the norm of its residual ``(N,)``. An
    ``estimate (N,)`` is that of the error of ``z``, in its units; left out, the loop makes one of
    the last step and what it left of the residual. What is estimated in another ``unit`` than
    ``norm(z)`` has that beside it, 1 for a relative error. ``error_bound (N,)`` is what
    `Solution.error` is to say where no Jacobian is factored at the end; left out, that is infinite.
    ``flag`` is a
    `Status` ``(N,)`` that ends a lane which has not converged (0: go on); left out, none does. The
    loop gives lanes that have ended a ``flag`` other than 0: whatever a step does in them is not
    looked at. A state made by steps of its own, before the first, says in ``steps_before (N,)`` how
    many to count.

    A solver whose error never grows says ``monotone = True``, so that the loop need not remember
    the best iterate of a lane that fails. One that comes nearer at a steady rate has a
    ``steps(problem, state, count)``, which measures after the last step only: the loop calls it
    while lanes are far from their ends. One whose steps are little work beside a question to a GPU
    says ``light = True``. A solver whose state must change its form between steps
    (to grow, to start again) does so in ``refresh(problem, state)``, for all lanes, those that
    have ended included, without moving their iterates. One that says ``spreads = True`` knows
    vectors by products, and by sums over their entries that all go through the library's, so that
    rows of vectors may be spread over ranks of ``torch.distributed``.
    """

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 1000
    compact: bool = True
    chunk_size: int | None = None
    check_every: int | None = None
    compile: bool = False
    monotone: ClassVar[bool] = False
    light: ClassVar[bool] = False
    traceable: ClassVar[bool] = True
    spreads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_stopping(self)
        for count in ("chunk_size", "check_every"):
            if getattr(self, count) is not None:
                check_count(self, count, least=1)
        for flag in ("compact", "compile"):
            check_flag(self, flag)

    def init(self, problem: Any, z: Tensor) -> Any:
        """Return the state at ``z (N, n)``."""
        raise NotImplementedError

    def step(self, problem: Any, state: Any) -> Any:
        """Return the state one step later."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class EquationMethod(IterativeSolver):
    """What iterative methods for equations have in common; pass hyperparameters by keyword.

    Your own solver is a frozen dataclass that inherits this, with two methods: ``init(problem, z)``
    returns the state at the start, ``step(problem, state)`` the state one step later; ``problem``
    is an `EquationProblem`. Attributes: ``solves`` names the equations that the solver is for;
    ``monotone`` says whether the error never grows; ``traceable`` and ``exportable``, whether it
    can be part of a graph; ``unrollable`` and ``remembers``, whether steps can be unrolled and
    whether they depend on earlier ones; ``brackets``, whether it brackets roots of one unknown; and
    ``keeps``, whether it keeps factorizations that are not tensors in the problem's ``memory``.

    Parameters
    ----------
    rtol, atol
        A problem has converged when the estimated error ``e`` of ``z`` is small: ``e <= max(atol +
        rtol s, 20 e0)`` and ``e + e0 <= 0.1 s``, all in units of ``z``. ``s`` is ``norm(z)``, or
        the size of the start where ``z`` is negligible compared with it; ``e0`` is the error that
        the rounding of the function causes. So the units of the function do not matter. ``rtol``
        defaults to ``eps**0.75``, 1.8e-12 in float64 and 6.4e-6 in float32, and ``atol`` to zero.
        ``rtol=None`` makes exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of steps allowed. A rejected step does not count, except in a budget.
    max_trials
        The number of steps allowed with rejected ones, ``4 max_steps`` by default.
    f_atol
        A problem whose residual, ``norm(F(z))``, is at most this large has converged too, in units
        of ``F``; 0 by default.
    norm
        Maps ``z``, steps of it and what ``F`` returns, ``(N, n)``, of a real floating dtype, to
        sizes ``(N,)``.
    compact
        Whether problems that ended leave the computation; False keeps shapes static.
    chunk_size
        How many problems are solved at a time, as in ``torch.func.vmap``; all by default. Less
        memory, the same results.
    check_every
        After how many steps to ask whether all problems have ended, for which the host waits for a
        GPU. Ended problems keep their values. By default 1, and on a GPU 4 for solvers whose steps
        are ``light``.
    compile
        Whether blocks of steps are compiled, for each function and dtype, and for few shapes.
    autocast
        Whether the function is called with the ``torch.autocast`` that is on around the solve; by
        default it is off inside. ``rtol`` then defaults to ``eps**0.75`` of its dtype, 0.026 in
        bfloat16 and 0.0055 in float16, and is that of an iterative adjoint, too.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> ims.Newton(rtol=1e-6, max_steps=20).rtol
    1e-06
    """

    f_atol: float = 0.0
    norm: Norm = rms
    max_trials: int | None = None
    autocast: bool = False
    solves: ClassVar[tuple[str, ...]] = ()
    brackets: ClassVar[bool] = False
    exportable: ClassVar[bool] = False
    unrollable: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    keeps: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_number(self, "f_atol", least=0)
        if self.max_trials is not None:
            check_count(self, "max_trials")

    def examined(self, n: int) -> bool:
        """Tell whether the Jacobian is formed and factored where a solve of ``n`` unknowns ends.

        One step of Newton's method then tells how far the solution is. Else the solver's own
        ``estimate`` of the error, which may be infinite, is all that is known of it.
        """
        return n <= DENSE_LIMIT

    def factorization(self, n: int) -> DirectSolver | None:
        """Return what factors it, or has made the ``factors`` in the state; None for `LU`."""
        return None


class LinearSolver:
    """What solves ``A x = b``: a `LinearMethod` or a `DirectSolver`.

    ``symmetric_only`` and ``diagonal_only`` tell for which operators. Solvers that begin at a start
    and can be preconditioned say ``starts``; ``biased`` ones return an estimate by design.
    ``traceable`` ones can be part of a compiled graph.
    """

    spreads: ClassVar[bool] = False
    symmetric_only: ClassVar[bool] = False
    diagonal_only: ClassVar[bool] = False
    starts: ClassVar[bool] = False
    traceable: ClassVar[bool] = True

    @property
    def biased(self) -> bool:
        """Whether the solution is an estimate by design."""
        return False

    def nullspaces(self, rows: int, columns: int) -> tuple[bool, bool]:
        """Tell whether ``A^T`` and ``A`` may map something to zero: then ``x = A^+ b``."""
        return False, False


@dataclass(frozen=True, kw_only=True)
class LinearMethod(IterativeSolver, LinearSolver):
    """What iterative methods for ``A x = b`` have in common; pass hyperparameters by keyword.

    Your own solver is a frozen dataclass that inherits this, with ``init(problem, x)`` and
    ``step(problem, state)`` as in `EquationMethod`; ``problem`` is a `LinearProblem`. Attributes:
    ``symmetric_only`` and ``diagonal_only``, which operators it is for; ``starts``, whether it
    takes a start and a preconditioner; ``traceable``, whether it can be part of a graph.

    Parameters
    ----------
    rtol, atol
        A problem has converged when ``rms(b - A x) <= atol + rtol rms(b)``; by default ``rtol`` is
        ``eps**(2/3)`` and ``atol`` zero. ``rtol=None`` makes exactly ``max_steps`` steps and
        judges nothing.
    max_steps
        The number of steps allowed.
    compact, chunk_size, check_every, compile
        As in `EquationMethod`, with the operator in place of the function.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> ims.CG(rtol=1e-3, max_steps=20)
    CG(rtol=0.001, atol=AUTO, max_steps=20, ...)
    """

    starts: ClassVar[bool] = True
    light: ClassVar[bool] = True

    def error_at(self, problem: LinearProblem, x: Tensor, error: Tensor) -> Tensor:
        """Return what is compared with the tolerance at ``x``, where the state has an ``error``.

        A recursion may promise more than is true: here is what is true.
        """
        return rms(problem.residual(x))


class DirectSolver(LinearSolver):
    """A solver that factors the operators once and then solves any number of systems.

    ``factor`` takes the operators of a grid of lanes, or ``factor_dense`` their matrices; ``solve``
    takes the factors and right-hand sides ``(grid, n, columns)``, and ``status`` tells which
    operators it could not factor, as a pivot is zero or not finite. How good a solution is, the
    library finds out. Factors that are ``keepable`` may be of an earlier step in some lanes and of
    a later one in others. What it returns need not solve the system if it is not ``exact``, as a
    pseudo-inverse. One that knows the Jacobian otherwise has no use for a dense one, which then
    ``forms`` none. A subclass says how to factor, to solve, and to judge; one that
    asks for values of tensors says ``traceable = False``.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> class Inverse(ims.DirectSolver):
    ...     def factor_dense(self, matrix):
    ...         inverse, info = torch.linalg.inv_ex(matrix)
    ...         return inverse, info
    ...
    ...     def solve(self, factors, b, transposed):
    ...         return (factors[0].mH if transposed else factors[0]) @ b
    ...
    ...     def status(self, factors):
    ...         return torch.where(factors[1] == 0, 0, int(ims.Status.SINGULAR))
    >>> ims.root(
    ...     lambda z: z**2 - 4, torch.tensor(1.0), solver=ims.Newton(linear_solver=Inverse())
    ... ).value
    tensor(2.)
    """

    keepable: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    forms: ClassVar[bool] = True

    @property
    def backup(self) -> DirectSolver | None:
        """What solves where these factors turn out to be too inexact, if anything does."""
        return None

    def factor(self, A: LaneMap) -> Factors:
        """Return the factors of each operator, tensors ``(grid, ...)``."""
        return self.factor_dense(A.dense())

    def factor_dense(self, matrix: Tensor) -> Factors:
        """Return the factors of matrices ``(grid, m, n)``."""
        raise NotImplementedError

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b`` or ``A^-T b``."""
        raise NotImplementedError

    def solve_with(self, memory: Any, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return `solve`, with what the solve keeps in its ``memory`` beside the factors."""
        return self.solve(factors, b, transposed)

    def solve_lanes(self, A: LaneMap, factors: Factors, b: Tensor) -> Tensor:
        """Return the solution in all lanes ``(N, n)`` of ``A``, by the factors of its operators.

        ``b`` may hold several right-hand sides for each lane, one after another.
        """
        if len(b) == A.grid:
            one = b.unsqueeze(-1)
            return self.solve_with(A.memory, factors, one, A.transposed).squeeze(-1)
        columns = b.reshape(-1, A.grid, b.shape[-1]).permute(1, 2, 0)
        x = self.solve_with(A.memory, factors, columns, A.transposed)
        return x.permute(2, 0, 1).reshape(len(b), -1)

    def sizes(self, A: LaneMap, factors: Factors, x: Tensor) -> Tensor:
        """Return ``|A| |x|`` in all lanes."""
        return A.sizes(x)

    def accepts(self, factors: Factors, r: Tensor, b: Tensor, transposed: bool) -> Tensor:
        """Tell where ``r = b - A x`` is that of a solution, if the solver is not `exact`."""
        return safe_rms(r) <= torch.finfo(b.dtype).eps ** 0.25 * safe_rms(b)

    def unfit(self, factors: Factors) -> Tensor:
        """Tell which factors are of no use, for little; `status` says why."""
        return self.status(factors) != 0

    def status(self, factors: Factors) -> Tensor:
        """Return a `Status` for each operator."""
        raise NotImplementedError


def check_linear_solver(
    owner: Any, field: str = "linear_solver", kind: type[LinearSolver] = LinearSolver
) -> None:
    """Refuse a field that is no linear solver of a kind; None is the owner's choice."""
    value = getattr(owner, field)
    if value is not None:
        refuse_other_solvers(value, f"{field} of {type(owner).__name__}", kind)


def refuse_other_solvers(
    value: Any, name: str = "solver", kind: type[LinearSolver] = LinearSolver
) -> None:
    """Refuse what is no linear solver of a kind."""
    if isinstance(value, kind):
        return
    what = "the class" if isinstance(value, type) else "an object of type"
    wanted = {
        LinearSolver: " linear solver, as LU() or CG() (your own: of DirectSolver or LinearMethod)",
        LinearMethod: "n iterative linear solver, as CG() (your own: of LinearMethod)",
        DirectSolver: " direct linear solver, as LU() (your own: of DirectSolver)",
    }[kind]
    raise TypeError(
        f"{name} is {what} {getattr(value, '__name__', type(value).__name__)}: pass an instance of "
        f"a{wanted}, or leave it out"
    )
