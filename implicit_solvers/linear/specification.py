"""What a linear solve is, its tensors aside. It knows no concrete solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.adjoint_start import AdjointMemory
from implicit_solvers.linear.preconditioners import Preconditioner
from implicit_solvers.linear.solve_memory import SolveMemory
from implicit_solvers.linear.template import Template
from implicit_solvers.masking import lane_gradient
from implicit_solvers.monitoring import Monitor
from implicit_solvers.solution import OnFailure
from implicit_solvers.solver import LinearSolver

__all__ = ["LinearSolveSpec"]


@dataclass(frozen=True)
class LinearSolveSpec:
    """What a linear solve is, its tensors aside.

    Its operands are, in this order, ``hints`` factors that a direct solver has of this very
    operator (the last is the matrix, or an empty vector if none was formed), the tensors of the
    preconditioner, and those of the operator. If the operator is a Jacobian, ``graph`` may be a
    point and the value there, with its graph. ``monitors`` were open when what is differentiated
    was solved, and the ``memory`` is the solve's and its derivatives'.
    """

    template: Template
    solver: LinearSolver
    lanes: Lanes
    label: str
    on_failure: OnFailure
    adjoint: bool = False
    hints: int = 0
    preconditioner: Template | Preconditioner | None = None
    preconditioner_tensors: int = 0
    transposed: bool = False
    adjoint_start: AdjointMemory | None = None
    graph: tuple[Tensor, Tensor] | None = None
    monitors: tuple[Monitor, ...] = ()
    memory: SolveMemory | None = None

    @property
    def operator_lanes(self) -> Lanes:
        """The lanes of the operator's tensors."""
        first = self.hints + self.preconditioner_tensors
        return self.lanes.keep(range(first, len(self.lanes.carried)))

    def operator_tensors(self, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the operands that the operator is made of."""
        return operands[self.hints + self.preconditioner_tensors :]

    @property
    def masked(self) -> bool:
        """Whether lanes that failed are left out of every derivative."""
        return self.on_failure == "mask"

    @property
    def nullspaces(self) -> tuple[bool, bool]:
        """Whether ``A^T`` and ``A`` may map something to zero: then ``x = A^+ b``."""
        shape = self.template.shape
        left, right = self.solver.nullspaces(*(shape or (1, 1)))
        return (right, left) if self.transposed else (left, right)

    def size(self, b: Tensor) -> int:
        """Return the number of unknowns of a lane."""
        shape = self.template.shape
        return b.shape[-1] if shape is None else shape[0 if self.transposed else 1]

    def one_lane(self, x: Tensor, *phi: Tensor) -> Tensor:
        """Return ``A(phi) x`` (or ``A(phi)^T x``) of one lane."""
        product = self.template.rmv if self.transposed else self.template.mv
        return product(x, *phi)

    def times(self, x: Tensor, w: Tensor, phi: Sequence[Tensor], keep: Tensor | None) -> Tensor:
        """Return ``A(phi) x``, like ``w``, and zero in lanes not to keep if lanes are left out."""
        lanes = self.operator_lanes
        if keep is None:
            return lanes.over(self.one_lane)(x, *phi)
        return lane_gradient(self.one_lane, lanes, keep, (x, torch.zeros_like(w), *phi), [1])[0]

    def kept(self, bad: Tensor) -> Tensor | None:
        """Return the lanes that have a part in derivatives, if some may have none."""
        return ~bad if self.masked else None

    def flipped(self) -> LinearSolveSpec:
        """Return the spec of the transpose."""
        return replace(self, transposed=not self.transposed and not self.template.symmetric)

    def derived(self, transposed: bool) -> LinearSolveSpec:
        """Return the spec of a solve that a derivative asks for."""
        return replace(
            self,
            transposed=transposed and not self.template.symmetric,
            adjoint=True,
            adjoint_start=None,
            label=self.label if self.adjoint else f"adjoint of {self.label}",
        )
