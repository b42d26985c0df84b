"""Linear systems in many lanes, as an iterative solver sees them.

It knows no concrete solver, and nothing of derivatives.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit_solvers.autodiff import unwatched
from implicit_solvers.compiling import compiling
from implicit_solvers.history import History
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.preconditioners import DiagonalMap
from implicit_solvers.ranks import alone, entries, some
from implicit_solvers.tolerance import Auto, linear_tolerance, rms

__all__ = ["ForcedProblem", "LinearProblem"]


class LinearProblem:
    """``A x = b`` in each of N lanes, with a preconditioner ``M`` that approximates the inverse.

    A linear solver of your own gets one in ``init(problem, x)`` and ``step(problem, state)``: see
    `LinearMethod`. The library makes it.

    Parameters
    ----------
    A
        The operators; ``A.mv(v)`` and ``A.rmv(v)`` are products with vectors ``(N, n)``, of a
        floating or complex dtype.
    b
        The right-hand sides ``(N, m)``.
    M
        The preconditioners.
    unit
        What ``b`` and ``x`` are measured in, ``(N,)``, and an absolute tolerance is not; 1 if left
        out.
    traced
        Whether steps are compiled: then no branch may depend on values.

    Examples
    --------
    The relative residual of some steps of Richardson's iteration, ``x <- x + (b - A x)``:

    >>> from dataclasses import dataclass
    >>> from typing import Any, NamedTuple
    >>> import implicit_solvers as ims
    >>> class State(NamedTuple):
    ...     z: torch.Tensor
    ...     error: torch.Tensor
    ...     flag: torch.Tensor
    >>> @dataclass(frozen=True)
    ... class Richardson(ims.LinearMethod):
    ...     def init(self, problem: LinearProblem, x):
    ...         error = ims.rms(problem.residual(x))
    ...         return State(x, error, torch.zeros(len(x), dtype=torch.int64))
    ...
    ...     def step(self, problem: LinearProblem, state):
    ...         return self.init(problem, state.z + problem.residual(state.z))
    >>> A = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    >>> ims.linear_solve(A, torch.tensor([2.0, 2.0]), solver=Richardson()).value
    tensor([1., 2.])
    """

    linear: ClassVar[bool] = True
    history: History | None = None

    def __init__(
        self,
        A: LaneMap,
        b: Tensor,
        M: LaneMap | DiagonalMap | None = None,
        unit: Tensor | None = None,
        traced: bool = False,
    ) -> None:
        self.A, self.b, self.M, self.unit, self.traced = A, b, M, unit, traced
        self._goal: tuple[Any, Any] | None = None
        self._entries: int | None = None
        # scalars of one real system on a CPU are numbers of Python
        one = len(b) == 1 and not b.is_complex() and b.device.type == "cpu"
        self.on_host = one and not traced and unwatched()

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.A.separable and (self.M is None or self.M.separable)

    @property
    def branches(self) -> bool:
        """Whether a step may ask for values: not in what is compiled."""
        return not (self.traced or compiling())

    def tolerance(self, solver: Any, z: Tensor | None) -> Any:
        """Return the largest ``rms(b - A x)`` that counts as solved, whatever ``z``."""
        if compiling():
            return self._tolerance(solver)
        if self._goal is None or self._goal[0] is not solver:
            goal = self._tolerance(solver)
            self._goal = solver, goal.item() if self.on_host else goal
        return self._goal[1]

    def _tolerance(self, solver: Any) -> Tensor:
        """Return ``atol + rtol norm(b)``."""
        rtol = 0.0 if solver.rtol is None else solver.rtol
        atol = solver.atol
        if self.unit is not None and not isinstance(atol, Auto):
            atol = (atol / self.unit).clamp(max=torch.finfo(self.unit.dtype).max ** 0.5)
        return linear_tolerance(rtol, atol, self.b, rms)

    def take(self, index: Tensor) -> LinearProblem:
        """Return the problem of some of the lanes."""
        M = None if self.M is None else self.M.take(index)
        unit = None if self.unit is None else self.unit[index]
        taken = LinearProblem(self.A.take(index), self.b[index], M, unit, self.traced)
        taken.history = None if self.history is None else self.history.take(index)
        return taken

    def aliased(self) -> LinearProblem:
        """Return the problem as the body of a loop in a graph has to see it."""
        M = None if self.M is None else self.M.aliased()
        return LinearProblem(self.A.aliased(), self.b, M, self.unit, self.traced)

    @property
    def source(self) -> Any:
        """What the operator was written as."""
        return self.A.template.source

    def to_compile(self, x: Tensor) -> LinearProblem | None:
        """Return the problem as steps are compiled for it; None if they cannot be."""
        A = self.A.to_compile()
        M = None if self.M is None else self.M.to_compile()
        if A is None or (self.M is not None and M is None):
            return None
        return LinearProblem(A, self.b, M, self.unit, True)

    def size(self, r: Tensor) -> Any:
        """Return the root mean square of each lane ``(N,)``; a float for one system on a CPU."""
        return rms(r).item() if self.on_host else rms(r)

    def entries(self, r: Tensor) -> int:
        """Return the number of entries of ``r``, which is like ``b``."""
        if alone():
            return r.shape[-1]
        if self._entries is None:
            self._entries = entries(r)
        return self._entries

    def residual(self, x: Tensor) -> Tensor:
        """Return ``b - A x``."""
        return self.b - self.A.mv(x)

    def first_residual(self, x: Tensor) -> Tensor:
        """Return ``b - A x``, without the product at the usual start, zero."""
        if not self.branches or some(x != 0):
            return self.residual(x)
        return self.b.clone()

    def next_term(self, r: Tensor) -> Tensor:
        """Return ``r - A M r``, the residual that the step ``M r`` leaves."""
        return self.A.remainder(r) if self.M is None else r - self.A.mv(self.M.mv(r))

    def precondition(self, r: Tensor) -> Tensor:
        """Return ``M r``."""
        return r if self.M is None else self.M.mv(r)


class ForcedProblem(LinearProblem):
    """``A x = b`` to a relative residual of its own in each lane: ``norm(b - A x) <= eta norm(b)``.

    The steps of inexact Newton methods solve it; the ``forcing`` terms ``eta (N,)`` take the place
    of the solver's tolerances.
    """

    def __init__(self, linear: LinearProblem, forcing: Tensor) -> None:
        super().__init__(linear.A, linear.b, linear.M, traced=linear.traced)
        self.forcing = forcing

    def _tolerance(self, solver: Any) -> Tensor:
        """Return ``eta norm(b)``."""
        return self.forcing * rms(self.b)

    def to_compile(self, x: Tensor) -> ForcedProblem | None:
        """Return the problem as steps are compiled for it; None if they cannot be."""
        linear = super().to_compile(x)
        return None if linear is None else ForcedProblem(linear, self.forcing)

    def aliased(self) -> ForcedProblem:
        """Return the problem as the body of a loop in a graph has to see it."""
        return ForcedProblem(super().aliased(), self.forcing)

    def take(self, index: Tensor) -> ForcedProblem:
        """Return the problem of some of the lanes."""
        return ForcedProblem(super().take(index), self.forcing[index])
