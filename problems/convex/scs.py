"""SCS, a first-order solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import implicit_solvers as ims
from implicit_solvers.problems.convex.clarabel import ConeSolution
from implicit_solvers.problems.convex.cones import Cones
from implicit_solvers.problems.convex.settings import check_settings

__all__ = ["SCS"]

_STATUS = {
    1: ims.Status.CONVERGED,
    2: ims.Status.MAX_STEPS,
    -1: ims.Status.UNBOUNDED,
    -2: ims.Status.INFEASIBLE,
    -6: ims.Status.UNBOUNDED,
    -7: ims.Status.INFEASIBLE,
}


@dataclass(frozen=True)
class SCS:
    """SCS: operator splitting on the homogeneous embedding, for large programs.

    ``min x^T P x / 2 + c^T x`` such that ``A x + s = b``, ``s`` in ``K``, in float64, on the CPU,
    one problem at a time.

    Parameters
    ----------
    rtol, atol
        SCS's tolerances, relative and absolute. Newton steps on the `normal_map` do the rest.
    max_steps
        The number of iterations allowed.
    polish
        How many Newton steps may follow, until rounding is reached.
    workers
        How many threads solve the problems of a batch; by default one for each processor.

    Raises
    ------
    TypeError, ValueError
        If a setting is invalid; the message names it.

    Notes
    -----
    Source: O'Donoghue, "Operator splitting for a homogeneous embedding of the linear
    complementarity problem" (2021).

    Examples
    --------
    >>> SCS(atol=1e-9).max_steps
    100000
    """

    rtol: float = 1e-7
    atol: float = 1e-7
    max_steps: int = 100_000
    polish: int = 20
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        check_settings(self)

    def solve(
        self, P: Any, c: np.ndarray, A: Any, b: np.ndarray, cones: Cones, start: Any
    ) -> ConeSolution:
        """Solve one program from a start ``(x, y, s)``, or None."""
        import scipy.sparse
        import scs  # type: ignore[import-untyped]

        order = _lower_triangles(cones)
        m = max(len(b), 1)
        rows = A[order] if len(b) else scipy.sparse.csc_array((1, len(c)))
        data = {"P": P, "A": scipy.sparse.csc_matrix(rows), "c": c}
        data["b"] = b[order] if len(b) else np.zeros(1)
        names = {
            "z": cones.zero if len(b) else 1,
            "l": cones.nonnegative,
            "q": list(cones.second_order),
            "s": list(cones.semidefinite),
            "ep": cones.exponential,
            "p": list(cones.power),
        }
        if start is not None and len(b):
            data |= {"x": start[0], "y": start[1][order], "s": start[2][order]}
        found = scs.solve(
            data,
            names,
            verbose=False,
            eps_abs=self.atol,
            eps_rel=self.rtol,
            max_iters=self.max_steps,
        )
        y, s = np.zeros(m), np.zeros(m)
        if len(b):
            y[order], s[order] = found["y"], found["s"]
        status = _STATUS.get(found["info"]["status_val"], ims.Status.STALLED)
        return ConeSolution(found["x"], y[: len(b)], s[: len(b)], status, found["info"]["iter"])


def _lower_triangles(cones: Cones) -> np.ndarray:
    """Return the order of rows with the lower triangles of matrices by columns, as SCS has them."""
    order = list(range(cones.linear + sum(cones.second_order)))
    for k in cones.semidefinite:
        first = len(order)
        order += [first + j + i * (i + 1) // 2 for j in range(k) for i in range(j, k)]
    return np.array([*order, *range(len(order), cones.size)], dtype=np.int64)
