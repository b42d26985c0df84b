"""Minima of a smooth function plus one that has a proximal operator. It knows no solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit_solvers.autodiff import rows, vjp
from implicit_solvers.curvature import by_tangents
from implicit_solvers.examination import Examination
from implicit_solvers.guarded_call import GuardedCall
from implicit_solvers.many_starts import Starts
from implicit_solvers.outcome import ROUNDINGS
from implicit_solvers.problem import Equation, EquationProblem
from implicit_solvers.rounding import patterns
from implicit_solvers.structure import Structure, split_tensors
from implicit_solvers.task import Task, check_task

__all__ = ["ProximalEquation", "ProximalTask"]

_BEND = 100.0


class ProximalEquation(Equation):
    """The condition ``z = p(z - t grad f(z), t)`` of a minimum of ``f + h``.

    ``p`` is the proximal operator of ``h``. The first operands are the step ``t (*native, 1)``, a
    length in units of ``z`` over those of the gradient, and a shift ``(*native, n)`` of where ``p``
    is evaluated, which is zero. The solutions do not depend on ``t``. ``fn`` returns ``[p | grad f
    | f]`` of one evaluation. Source: Parikh and Boyd, "Proximal Algorithms" (2014), section 4.2.
    """

    kind: ClassVar[str] = "minimize with prox"
    symmetric: ClassVar[bool] = False
    subtracts: ClassVar[bool] = True
    own: ClassVar[int] = 2

    def condition(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return ``z - p(z - t grad f(z), t)``."""
        return z - self.fn(z, *operands)[..., : z.shape[-1]]

    def slope(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return the gradient of ``f``."""
        n = z.shape[-1]
        return self.fn(z, *operands)[..., n : 2 * n]

    def examine(self, problem: EquationProblem, z: Tensor, direct: Any) -> Examination:
        """Return Newton's step, and a step down where the curvature along ``p`` is negative."""
        ahead, push = _pushed(problem, z)
        P = rows(push, ahead, z.shape[-1]).reshape(*z.shape, -1)
        return by_tangents(problem, z, direct, 0.5 * (P + P.mT), problem.own[0])

    def degenerate(self, problem: EquationProblem, z: Tensor, error: Tensor) -> Tensor:
        """Tell in which lanes ``p`` has a kink where it is evaluated.

        There rounding, or the ``error`` of ``z``, makes more of a difference to the derivative of
        ``p`` than a smooth one would show. Both are tried, along fixed patterns.
        """
        eps, step = torch.finfo(z.dtype).eps, problem.own[0]
        slope, size, known = problem.slope(z), problem.largest(z), error < torch.inf
        # (an error is an estimate)
        doubt = ROUNDINGS * (eps + torch.where(known & (size > 0), error / size, 0.0))
        terms = problem.linearize_slope(z).sizes(z) + slope.abs()
        reach = doubt.unsqueeze(-1) * (problem.reach(z) + step * terms)
        along, turn = patterns(z)[0], torch.clamp(_BEND * doubt, min=eps**0.25)
        along = along + 0.5 * along.sign()
        here, bent = _pushed(problem, z)[1](along), torch.zeros_like(error, dtype=torch.bool)
        for pattern in (torch.ones_like(along), *patterns(z)):
            for shift in (pattern * reach, -pattern * reach):
                there = _pushed(problem, z, shift)[1](along)
                bent = bent | ((there - here).abs().amax(-1) > turn)
        return bent


def _pushed(
    problem: EquationProblem, z: Tensor, shift: Tensor | None = None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return ``p`` where the equation at ``z`` evaluates it, and the product with its derivative.

    The derivative of a proximal operator is symmetric.
    """
    step, none = problem.own

    def ahead(shift: Tensor) -> Tensor:
        return problem.evaluate(z, step, shift)[:, : z.shape[-1]]

    value, pull = vjp(ahead, none if shift is None else shift)
    return value, lambda w: pull(w.expand(z.shape))[0]


@dataclass(frozen=True)
class ProximalTask(Task):
    """What `minimize` was asked for with a proximal operator, ``prox(v, step, *args)``."""

    prox: Any = None

    def flat(
        self, structure: Structure, join: Callable[[Sequence[Tensor]], Any]
    ) -> Callable[..., Tensor]:
        """Return what the equation's ``fn`` is."""
        objective = super().flat(structure, join)
        fix = "it is called as prox(v, step, *args)"
        call = GuardedCall(self.prox, f"prox of {self.label}", fix)

        def fn(z: Tensor, step: Tensor, shift: Tensor, *tensors: Tensor) -> Tensor:
            given = step, shift, *tensors
            value, pull = vjp(lambda u: objective(u, *given), z)
            slope = pull(torch.ones_like(value))[0]
            at = structure.unravel(z - step * slope + shift)
            out = call(at, (step.squeeze(-1), *join(given)))
            ahead = structure.check_like(out, z.shape[:-1], "prox", "z0")
            return torch.cat([ahead, slope, value.unsqueeze(-1)], -1)

        return fn

    def own(self, z0: Any, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Return the step, the inverse of the curvature along the gradient, and no shift.

        Where there is no gradient, the curvature is that along a fixed direction; where there is no
        curvature, the step leads as far as ``z0`` is large.
        """
        check_task(self, args)
        if not callable(self.prox) or isinstance(self.prox, type):
            given = f"a {type(self.prox).__name__}"
            if isinstance(self.prox, type):
                given = f"the class {self.prox.__name__}"
            raise TypeError(
                f"prox is {given}: pass a function prox(v, step, *args) that returns one like v"
            )
        if isinstance(z0, Starts):
            raise ValueError(
                "z0 is multistart(...) and prox is given, which does not tell the value of h, so "
                "that ends cannot be compared: pass one start, or make a batch of them"
            )
        structure = Structure.of(z0, "z0", self.batch_dims).as_real()
        tensors, join = split_tensors(args)
        objective = super().flat(structure, join)

        def gradient(u: Tensor) -> Tensor:
            value, pull = vjp(lambda v: objective(v, *tensors), u)
            slope: Tensor = pull(torch.ones_like(value))[0]
            return slope

        with torch.no_grad():
            z = structure.ravel(z0).detach()
            slope, pull = vjp(gradient, z)
            size, reach = (_length(t) for t in (slope, z))
            unit = torch.where(size > 0, slope / size, patterns(z)[0])
            bend = (unit * pull(unit)[0]).sum(-1, keepdim=True).abs() / unit.square().sum(-1, True)
            size = torch.where(size > 0, size, 1.0)
            step = torch.where(bend > 0, 1 / bend, torch.where(reach > 0, reach, 1.0) / size)
            step = torch.where((step > 0) & (step < torch.inf), step, 1.0)
        return step.detach(), torch.zeros_like(z)


def _length(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=-1, keepdim=True)
