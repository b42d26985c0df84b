"""The point at which everything is compared: the solution, settled, and its linearization.

It knows no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from implicit_solvers.testing.captured import placed
from implicit_solvers.testing.statement import Linearization
from implicit_solvers.testing.subject import Solved, Subject

__all__ = ["Point", "point_at"]


@dataclass(frozen=True)
class Point:
    """A solution, as the layer returned it and as far as rounding lets it be settled.

    ``z`` is the settled one, as accurate as the last step was long (``settled``); it is the layer's
    where the equation is not known, or too large. ``exact`` and ``given`` are the linearizations at
    ``z`` and at the point returned, None without a dense equation; ``broken`` are the tensors in
    which the equation's own derivative is wrong.
    """

    subject: Subject
    returned: Solved
    z: Tensor
    exact: Linearization | None
    given: Linearization | None
    settled: float
    generator: torch.Generator
    broken: frozenset[str] = frozenset()

    @property
    def eps(self) -> float:
        """The rounding unit of the solution's dtype."""
        return torch.finfo(self.z.dtype).eps

    @cached_property
    def condition(self) -> float:
        """The condition number of ``A`` after its rows, then its columns, are scaled alike."""
        if self.exact is None or not self.exact.A.numel():
            return 1.0
        A = self.exact.A
        for dim in (-1, -2):
            largest = A.abs().amax(dim, keepdim=True)
            A = A / torch.where(largest > 0, largest, 1.0)
        sizes = torch.linalg.svdvals(A)
        return float(sizes[0] / sizes[-1]) if float(sizes[-1]) > 0 else float("inf")

    @cached_property
    def off(self) -> tuple[Tensor, Tensor]:
        """How far the point returned is from a solution, by Newton's step, and what rounding makes.

        Entry by entry, of a known equation: ``A^-1 F`` and ``|A^-1| w`` with the terms' roundings
        ``w = eps (|A| |z| + |F|)``. If ``A`` is too large to be formed, ``F`` is compared with what
        moves along random signs change.
        """
        z = self.returned.z.detach()
        if self.given is None:
            return self._by_signs(z), torch.zeros_like(z)
        A, F = self.given.A, self.given.F
        w = self.eps * (A.abs() @ z.abs() + F.abs())
        lu, pivots, _ = torch.linalg.lu_factor_ex(A)
        solved = torch.linalg.lu_solve(lu, pivots, torch.cat([F.unsqueeze(-1), w.diag()], -1))
        return solved[:, 0], solved[:, 1:].abs().sum(-1)

    def _by_signs(self, z: Tensor) -> Tensor:
        subject, index = self.subject, self.subject.lane_index
        assert subject.statement is not None
        signs = torch.randn(z.shape, generator=self.generator, dtype=torch.float64).sign().to(z)
        move = torch.zeros_like(z)
        move[index] = self.eps**0.5 * subject.size(z[index]).unsqueeze(-1) * signs[index]
        condition, tensors = subject.statement.condition, subject.arguments()
        with torch.enable_grad():
            F, there = (condition(at, tensors).detach() for at in (z, z + move))
        step = torch.zeros_like(z)
        part = subject.norm(move[index]) / subject.norm((there - F)[index])
        step[index] = torch.where(F[index] == 0, 0.0, F[index] * part.unsqueeze(-1))
        return step

    @cached_property
    def accuracy(self) -> float:
        """How far the layer's solutions may be from the exact ones, entry by entry."""
        size = 1 + float(self.z.abs().max()) if self.z.numel() else 1.0
        if self.exact is None:
            return self.eps**0.5 * size
        tolerance = self.subject.tolerance(self.z[self.subject.lane_index])
        off = float((self.returned.z - self.z).abs().max()) if self.z.numel() else 0.0
        return max(4 * off, float(tolerance.max()), 4 * self.eps * size)

    def values(self) -> list[Tensor]:
        """Return the values of all inputs."""
        return [i.tensor.detach().clone() for i in self.subject.inputs]

    def solution(self, values: Sequence[Tensor]) -> Tensor:
        """Return the solution for other values of the inputs, near this one.

        With a dense equation it comes from Newton steps of plain torch, else from the layer; NaN
        where neither gets there.
        """
        subject, count = self.subject, len(self.subject.in_args)
        with placed([i.tensor for i in subject.captured], values[count:]):
            if subject.statement is not None and self.exact is not None:
                z, step = subject.statement.settle(self.z, values[:count], self.exact.A)
                if step <= self.eps**0.6 * (1 + float(z.abs().max())):
                    return z
                if "z" not in self.broken:
                    return torch.full_like(z, float("nan"))
            try:
                with torch.no_grad():
                    return subject.value(values[:count]).detach()
            except Exception:  # whatever the layer raises where it fails
                return torch.full_like(self.z, float("nan"))

    def along(self, position: int, direction: Tensor, t: float) -> Tensor:
        """Return the solution with one input moved by ``t`` times its scale along a direction."""
        values, given = self.values(), self.subject.inputs[position]
        values[position] = values[position] + t * given.scale * direction
        return self.solution(values)


def point_at(
    subject: Subject,
    returned: Solved,
    generator: torch.Generator,
    broken: frozenset[str] = frozenset(),
) -> Point:
    """Settle what a layer returned."""

    def point(
        z: Tensor,
        exact: Linearization | None = None,
        given: Linearization | None = None,
        settled: float = 0.0,
    ) -> Point:
        return Point(subject, returned, z, exact, given, settled, generator, broken)

    z, tensors = returned.z.detach(), subject.arguments()
    statement = subject.statement
    if statement is None or not statement.dense or not bool(torch.isfinite(z).all()):
        return point(z)
    wrt = [*(t.requires_grad_() for t in tensors), *(i.tensor for i in subject.captured)]
    given = statement.linearize(z, tensors, wrt)
    if not bool(torch.isfinite(given.A).all()):
        return point(z, given, given)
    fixed = [t.detach() for t in tensors]
    settled, step = statement.settle(z, fixed, given.A)
    if not step <= 1e-2 * (1 + float(z.abs().max())) or not bool(torch.isfinite(settled).all()):
        return point(z, given, given)
    exact = statement.linearize(settled, tensors, wrt)
    return point(settled, exact, given, step)
