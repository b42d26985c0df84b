"""Steffensen's method, for one unknown a lane. It knows values, no slope."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, both, no, nowhere, pick
from implicit_solvers.hyperparameters import check_number
from implicit_solvers.problem import EquationProblem
from implicit_solvers.solution import Status
from implicit_solvers.solvers.damped import Aim, DampedState, Halving

__all__ = ["Steffensen"]


class SteffensenMemory(NamedTuple):
    """What bounds the increment, the difference quotient, and whether a step can be made of it."""

    reach: Any
    quotient: Any
    usable: Mask


@dataclass(frozen=True)
class Steffensen(Halving):
    """Steffensen's method with memory: ``z <- z - t F(z) / d`` with ``d = (F(z + h) - F(z)) / h``.

    Newton's method with a difference quotient in place of the derivative. Its increment
    vanishes at the solution: so convergence is quadratic or better, with two evaluations a step.
    For a root the increment is the step that the last quotient would make, ``h = -F(z) / d``, which
    has the units of ``z``. For a fixed point, ``F = z - g(z)`` and ``h = -F(z)``: a full step is
    Aitken's delta-squared of ``z, g(z), g(g(z))``. The step length ``t`` is halved until the
    residual's norm falls by ``1e-4 t`` of itself. Source: Steffensen, "Remarks on iteration"
    (1933); Quarteroni, Sacco and Saleri, "Numerical Mathematics", section 6.6; memory: Traub,
    "Iterative Methods for the Solution of Equations" (1964), section 8.6.

    For problems of one unknown only: elements of a tensor are problems under ``torch.func.vmap`` or
    with ``batch_dims``. For a bracketed root, `Chandrupatla` and `Bisection` cannot miss.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    reach
        The increment is at most ``reach`` times as long as ``z`` or the start (1 if both are zero),
        and at least ``sqrt(eps)`` times. The first of a root is the longest. A problem in which no
        step reduces the residual tries again with a hundredth of it, and ends as STALLED at
        ``sqrt(eps)``.
    halvings
        How many times the step length may be halved; 0 always takes full steps.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it. A ValueError also when a solve begins
        with a problem of more than one unknown.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> ims.fixed_point(torch.cos, torch.tensor(1.0), solver=Steffensen()).value
    tensor(0.7391)
    >>> a = torch.tensor([2.0, 9.0])
    >>> ims.root(lambda z: z**2 - a, a, solver=Steffensen(), batch_dims=1).value
    tensor([1.4142, 3.0000])
    """

    max_steps: int = field(default=100, kw_only=True)
    reach: float = 0.1
    solves: ClassVar[tuple[str, ...]] = ("root", "fixed_point")
    exportable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_number(self, "reach", above=0)

    def begin(self, problem: EquationProblem, z: Tensor, residual: Tensor) -> SteffensenMemory:
        """Begin with the whole reach."""
        if z.shape[-1] != 1:
            raise ValueError(
                f"solver=Steffensen() is for one unknown, and z0 has {z.shape[-1]} in a problem: "
                "make each element a problem by torch.func.vmap or batch_dims, or use Newton() or "
                "Broyden()"
            )
        one = torch.ones_like(residual)
        return SteffensenMemory(self.reach * one.squeeze(-1), 0 * one, one.squeeze(-1) > 0)

    def hopeless(self, state: DampedState) -> Mask:
        """Tell where the quotient gives no step."""
        return no(state.memory.usable)

    def aim(self, problem: EquationProblem, state: DampedState, tired: Mask) -> Aim:
        """Divide by the difference quotient."""
        z, residual, memory, flag = state.z, state.residual, state.memory, state.flag
        smallest = torch.finfo(z.dtype).eps ** 0.5
        reach = pick(tired, 0.01 * memory.reach, memory.reach)
        if self.rtol is not None and not nowhere(tired):
            flag = pick(both(tired, reach < smallest), int(Status.STALLED), flag)
        whole = torch.where(z == 0, problem.reach(z), z.abs())
        whole = torch.where(whole == 0, 1.0, whole)
        longest = reach.unsqueeze(-1) * whole
        step = residual
        if problem.kind == "root":
            step = torch.where(memory.quotient == 0, longest, residual / memory.quotient)
        size = torch.minimum(step.abs().clamp(min=smallest * whole), longest)
        increment = -torch.sign(step) * size
        quotient = (problem.residual(z + increment) - residual) / increment
        direction = torch.where(residual == 0, 0.0, residual / quotient)
        usable = torch.isfinite(direction).squeeze(-1)
        direction = torch.where(usable.unsqueeze(-1), direction, 0.0)
        return Aim(direction, SteffensenMemory(reach, quotient, usable), flag)
