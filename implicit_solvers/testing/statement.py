"""An equation in plain torch: nothing here runs a rule of the library.

It is what solutions and derivatives are compared with, so that it has its own optimality
conditions, Jacobians and Newton steps. So it knows no solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.bounds import projected
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import tree_flatten

__all__ = ["DENSE_LIMIT", "Linearization", "Statement", "slopes"]

DENSE_LIMIT = 256
"""The largest number of unknowns, of all lanes together, for which Jacobians are formed."""


@dataclass(frozen=True)
class Linearization:
    """The condition ``F`` at a point, ``A = dF/dz (m, m)``, and ``B = dF/dtheta (m, p)`` each."""

    F: Tensor
    A: Tensor
    B: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Statement:
    """``fn(z, *args)`` and the condition that ``kind`` makes of it, for a raveled ``z (m,)``.

    ``z`` is raveled with all of its lanes, and so are ``bounds``, where there are any. ``join``
    makes the arguments of their floating tensors.
    """

    fn: Callable[..., Any]
    kind: str
    structure: Structure
    join: Callable[[Sequence[Tensor]], tuple[Any, ...]]
    has_aux: bool = False
    bounds: tuple[Tensor, Tensor] | None = None

    def evaluate(self, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Return what the function returns, raveled."""
        out = self.fn(self.structure.unravel(z), *self.join(tensors))
        if self.has_aux:
            out = out[0]
        leaves = [leaf.reshape(-1) for leaf in tree_flatten(out)[0]]
        return leaves[0] if len(leaves) == 1 else torch.cat(leaves)

    def condition(self, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Return ``F(z)``: ``f``, ``z - g``, ``grad f``, or ``J^T r``; needs ``enable_grad``.

        Between bounds, of an unknown that one holds it is the distance from there.
        """
        if self.kind == "root":
            return self.evaluate(z, tensors)
        if self.kind == "fixed_point":
            return z - self.evaluate(z, tensors)
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        out = self.evaluate(z, tensors)
        total = out.sum() if self.kind == "minimize" else 0.5 * (out**2).sum()
        slope = slopes(total, [z], create_graph=True)[0]
        return slope if self.bounds is None else projected(z, slope, *self.bounds)

    @property
    def size(self) -> int:
        """The number of unknowns, of all lanes together."""
        return self.structure.size

    @property
    def dense(self) -> bool:
        """Whether there are few enough unknowns to form Jacobians."""
        return self.size <= DENSE_LIMIT

    def linearize(
        self, z: Tensor, tensors: Sequence[Tensor], wrt: Sequence[Tensor] = ()
    ) -> Linearization:
        """Return ``F`` and its Jacobians in ``z`` and in the tensors of ``wrt``, row by row."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            F = self.condition(point, tensors)
            rows = [slopes(entry, [point, *wrt], retain=True) for entry in F.reshape(-1)]
        A, *B = (torch.stack([g.reshape(-1) for g in column]) for column in zip(*rows, strict=True))
        return Linearization(F.detach(), A, tuple(B))

    def gauss_newton(self, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Return ``J^T J`` of the residuals."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            r = self.evaluate(point, tensors)
            J = torch.stack([slopes(entry, [point], retain=True)[0] for entry in r])
        return J.mT @ J

    def settle(self, z: Tensor, tensors: Sequence[Tensor], A: Tensor) -> tuple[Tensor, float]:
        """Iterate ``z <- z - A^-1 F(z)`` until rounding stops it; return also the last step.

        ``A`` is the Jacobian at a point nearby. If that gets nowhere, Newton steps follow.
        """
        z, step = self._chord(z.detach(), tensors, A, 25)
        goal = torch.finfo(z.dtype).eps ** 0.75 * (1 + float(z.abs().max()))
        for _ in range(8):
            if step <= goal:
                break
            z, step = self._chord(z, tensors, self.linearize(z, tensors).A, 3)
        return z, step

    def _chord(
        self, z: Tensor, tensors: Sequence[Tensor], A: Tensor, most: int
    ) -> tuple[Tensor, float]:
        lu, pivots, _ = torch.linalg.lu_factor_ex(A)
        least = torch.finfo(z.dtype).eps
        last = float("inf")
        for _ in range(most):
            with torch.enable_grad():
                F = self.condition(z, tensors).detach()
            d = torch.linalg.lu_solve(lu, pivots, F.unsqueeze(-1)).squeeze(-1)
            step = float(d.abs().max())
            if not step < last:
                break
            z, last = z - d, step
            if step <= least * float(z.abs().max()):
                break
        return z, last


def slopes(
    out: Tensor, wrt: Sequence[Tensor], *, create_graph: bool = False, retain: bool = False
) -> list[Tensor]:
    """Return the gradient of a 0-d tensor, with zeros where it does not depend on a tensor."""
    if not out.requires_grad:
        return [torch.zeros_like(t) for t in wrt]
    found = torch.autograd.grad(
        out, list(wrt), create_graph=create_graph, retain_graph=retain or None, allow_unused=True
    )
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wrt, found, strict=True)]
