"""Several starts for each problem, of which the best end is taken. It knows no concrete solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from implicit_solvers.iterate import iterate
from implicit_solvers.outcome import Outcome, select
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status, failed
from implicit_solvers.tolerance import largest
from implicit_solvers.torch_internals import tree_flatten, tree_unflatten

__all__ = ["NO_USE", "FromStarts", "Starts", "multistart", "one_start"]

T = TypeVar("T")
NO_USE = (
    "z0 is multistart(...), of which a bracket, attach, a solver of your own and UnrolledAdjoint() "
    "have no use: pass one start"
)


@dataclass(frozen=True, eq=False)
class Starts:
    """The starts, each like an unknown."""

    each: tuple[Any, ...]


def multistart(starts: T) -> T:
    """Return a ``z0`` for `root`, `fixed_point`, `minimize` or `least_squares`: many starts.

    All starts of a problem are solved from at once, and the best result is the solution: of minima
    and fits the lowest that has converged (of equal ones, that of the first start), of roots and
    fixed points that of the first start that has converged. The solution has its status and its
    derivatives; the other starts have no influence. If none has converged, the problem has failed,
    and returns the result with the smallest residual.

    Parameters
    ----------
    starts
        As ``z0``, with a first dimension in front of all leaves: ``starts[i]`` is a start. With
        ``batch_dims``, the batch comes after it. It gets no gradient.

    Returns
    -------
    object
        To be passed as ``z0``; to a type checker it is what ``starts`` is.

    Raises
    ------
    TypeError, ValueError
        If a leaf is not a tensor, or leaves disagree on the number of starts. A solve refuses it
        with a ``bracket`` and with `UnrolledAdjoint`, which belong to one start.

    Notes
    -----
    ``fn`` is called for all starts under ``torch.func.vmap``, and memory grows with their number. A
    budget (``rtol=None``) ends at the lowest objective, or smallest residual. Source: Rinnooy Kan
    and Timmer, "Stochastic Global Optimization Methods" (1987), part I.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> def tilted(z, a):  # two minima
    ...     return (z**2 - 1) ** 2 + a * z
    >>> a = torch.tensor(0.2, requires_grad=True)
    >>> ims.minimize(tilted, torch.tensor(1.5), (a,)).value
    tensor(0.9740, grad_fn=<...>)
    >>> z = ims.minimize(tilted, ims.multistart(torch.tensor([-1.5, 0.3, 1.5])), (a,)).value
    >>> z, torch.autograd.grad(z, a)[0]
    (tensor(-1.0241, grad_fn=<...>), tensor(-0.1165))
    """
    leaves, tree = tree_flatten(starts)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"starts has a leaf of type {type(leaf).__name__}: every leaf must be a tensor"
            )
        if leaf.dim() == 0 or leaf.shape[0] != leaves[0].shape[0] or leaf.shape[0] == 0:
            raise ValueError(
                f"starts has a leaf of shape {tuple(leaf.shape)}: the first dimension of all "
                "leaves is the number of starts, at least one"
            )
    if not leaves:
        raise ValueError("starts is an empty pytree: pass at least one tensor")
    each = zip(*(leaf.unbind() for leaf in leaves), strict=True)
    return cast(T, Starts(tuple(tree_unflatten(list(one), tree) for one in each)))


def one_start(z0: T) -> T:
    """Return the first of many starts, and one start as it is."""
    return cast(T, z0.each[0]) if isinstance(z0, Starts) else z0


@dataclass(frozen=True)
class FromStarts:
    """Iterate from starts that lie side by side, ``(N, count n)``, and return the best ends."""

    solver: Any
    count: int

    @property
    def traceable(self) -> bool:
        """Whether it can be part of a graph: where the solver can."""
        return bool(self.solver.traceable)

    @property
    def exportable(self) -> bool:
        """Whether it can be exported: where the solver can."""
        return bool(self.solver.exportable)

    @property
    def linear_solver(self) -> Any:
        """What the solver solves linear systems with."""
        return getattr(self.solver, "linear_solver", None)

    def __call__(self, problem: EquationProblem, sides: Tensor) -> Outcome:
        """Iterate from all starts at once."""
        lanes, n = len(sides), sides.shape[-1] // self.count
        z = sides.reshape(lanes, self.count, n).transpose(0, 1).reshape(-1, n)
        every = problem.repeated(self.count, largest(problem.equation.measured(z)))
        found = iterate(self.solver, every, z)
        best = _best(every, found, self.count) * lanes + torch.arange(lanes, device=z.device)
        chosen: Outcome = select(found, best)
        return chosen


def _best(problem: EquationProblem, found: Outcome, count: int) -> Tensor:
    """Return which of ``count`` ends is the best of each problem ``(N,)``.

    It is the lowest, up to rounding and to what is left to go, of those that have not failed.
    """
    status, residual, error = found.status, found.residual, found.error
    if problem.fits or problem.kind.startswith("minimize"):
        value = problem.evaluate(found.z)
        value = value[:, 0] if problem.equation.multipliers else value
        value = value.square().sum(-1) / 2 if problem.fits else value
        left = found.z.shape[-1] * residual * error
        left = torch.where(left < torch.inf, left, 0.0)
        slack = 10 * (torch.finfo(value.dtype).eps * value.abs() + left)
    else:
        value = torch.where(status == int(Status.CONVERGED), 0.0, residual)
        slack = torch.zeros_like(value)
    good = ~failed(status)
    none = ~good.reshape(count, -1).any(0).repeat(count)
    value = torch.where(none, residual, torch.where(good, value, torch.inf))
    value = torch.where(value < torch.inf, value, torch.inf).reshape(count, -1)
    slack = torch.where(none | ~good, 0.0, slack).reshape(count, -1)
    near = value - slack <= (value + slack).amin(0)
    return near.to(torch.int8).argmax(0)
