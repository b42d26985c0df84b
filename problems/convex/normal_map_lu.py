"""The linear solver for the Jacobian of the normal map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import implicit_solvers as ims

__all__ = ["NormalMapLU"]


@dataclass(frozen=True)
class NormalMapLU(ims.DirectSolver):
    """LU factorization of the Jacobian of `normal_map`, sparse or dense, for each problem.

    Equations that depend on one another leave the multipliers undetermined, and the Jacobian
    singular, while ``x`` has derivatives: the system for them has solutions, of which one is found.
    Where a system has none, because what was asked for has no derivative, the problem ends as
    SINGULAR.

    Parameters
    ----------
    jacobian
        What makes and factors the matrices; `ConvexLayer` fills it in.

    Notes
    -----
    Source: Rockafellar, "Augmented Lagrangians and applications of the proximal point algorithm in
    convex programming" (1976), for singular systems; Demmel, Eisenstat, Gilbert, Li and Liu, "A
    supernodal approach to sparse partial pivoting" (1999).

    Examples
    --------
    >>> ims.ImplicitAdjoint(NormalMapLU()).linear_solver
    NormalMapLU()
    """

    jacobian: Any = None
    exact: ClassVar[bool] = False
    traceable: ClassVar[bool] = False
    keepable: ClassVar[bool] = False
    forms: ClassVar[bool] = False

    def __repr__(self) -> str:
        return "NormalMapLU()"

    def factor(self, A: Any) -> tuple[Tensor, ...]:
        """Return the number of each factorization among those kept, and its status."""
        if self.jacobian is None:
            raise ValueError(
                "NormalMapLU() solves with the Jacobian of a ConvexLayer only: use LU()"
            )

        def read(like: Tensor, z: Tensor, P: Tensor, c: Tensor, A: Tensor, b: Tensor) -> Tensor:
            return torch.cat([z[..., c.shape[-1] :], P, A], -1)

        pattern, kept = self.jacobian.pattern, A.memory.factorizations
        m, entries = pattern.cones.size, len(pattern.P.rows)
        lanes = A.on_grid(read)
        lanes = lanes.reshape(A.grid, lanes.shape[-1]).numpy()
        numbers = torch.arange(A.grid) + len(kept) if A.places is None else A.places
        fine = np.isfinite(lanes).all(-1)
        for number, lane, ok in zip(numbers.tolist(), lanes, fine, strict=True):
            if ok:
                u, P, values = np.split(lane, [m, m + entries])
                kept[number] = self.jacobian.factor(P, values, self.jacobian.slope(u))
        return numbers, torch.from_numpy(np.where(fine, 0, int(ims.Status.NONFINITE)))

    def solve_with(
        self, memory: Any, factors: tuple[Tensor, ...], b: Tensor, transposed: bool
    ) -> Tensor:
        """Return ``J^-1 b`` or ``J^-T b``, for ``b (grid, n, columns)``."""
        rhs = b.numpy()
        x = np.full_like(rhs, np.nan)
        for lane, (number, how) in enumerate(zip(*(t.tolist() for t in factors), strict=True)):
            J = memory.factorizations.get(number)
            if J is None:  # of a lane that failed
                x[lane] = 0.0
            elif how == 0:
                x[lane] = J.solve(rhs[lane], transposed)
        return torch.from_numpy(x)

    def accepts(
        self, factors: tuple[Tensor, ...], r: Tensor, b: Tensor, transposed: bool
    ) -> Tensor:
        """Tell where ``r = b - J x`` is that of a solution."""
        return ims.rms(r) <= torch.finfo(b.dtype).eps ** 0.5 * ims.rms(b)

    def status(self, factors: tuple[Tensor, ...]) -> Tensor:
        """Return NONFINITE where the matrix is not finite."""
        return factors[1]
