"""Clarabel, an interior-point solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import implicit_solvers as ims
from implicit_solvers.problems.convex.cones import Cones
from implicit_solvers.problems.convex.settings import check_settings

__all__ = ["Clarabel", "ConeSolution"]


class ConeSolution(NamedTuple):
    """What a solver found for one problem.

    Attributes
    ----------
    x
        The variables, ``(n,)``, float64.
    y, s
        The multipliers and the slack ``b - A x``, ``(m,)``, float64.
    status
        A `implicit_solvers.Status`.
    steps
        The steps that the solver made.

    Examples
    --------
    >>> import scipy.sparse
    >>> one = scipy.sparse.csc_array([[1.0]])  # minimize x^2 / 2 - 3 x, where x <= 1
    >>> cones = Cones(nonnegative=1)
    >>> found = Clarabel().solve(one, np.array([-3.0]), one, np.array([1.0]), cones, None)
    >>> found.x.round(4), found.y.round(4), found.status.name
    (array([1.]), array([2.]), 'CONVERGED')
    """

    x: np.ndarray
    y: np.ndarray
    s: np.ndarray
    status: ims.Status
    steps: int


_STATUS = {
    "Solved": ims.Status.CONVERGED,
    "AlmostSolved": ims.Status.STALLED,
    "PrimalInfeasible": ims.Status.INFEASIBLE,
    "AlmostPrimalInfeasible": ims.Status.INFEASIBLE,
    "DualInfeasible": ims.Status.UNBOUNDED,
    "AlmostDualInfeasible": ims.Status.UNBOUNDED,
    "MaxIterations": ims.Status.MAX_STEPS,
}


@dataclass(frozen=True)
class Clarabel:
    """Clarabel: a primal-dual interior-point method for quadratic objectives over cones.

    ``min x^T P x / 2 + c^T x`` such that ``A x + s = b``, ``s`` in ``K``, in float64, on the CPU,
    one problem at a time.

    Parameters
    ----------
    rtol, atol
        Clarabel's tolerances for the gap and feasibility, relative and absolute. Newton steps on
        the `normal_map` do the rest.
    max_steps
        The number of interior-point steps allowed.
    polish
        How many Newton steps on the `normal_map` may follow, until rounding is reached.
    workers
        How many threads solve the problems of a batch; by default one for each processor.

    Raises
    ------
    TypeError, ValueError
        If a setting is invalid; the message names it.

    Notes
    -----
    Source: Goulart and Chen, "Clarabel: An interior-point solver for conic programs with quadratic
    objectives" (2024).

    Examples
    --------
    >>> Clarabel(max_steps=50).rtol
    1e-06
    """

    rtol: float = 1e-6
    atol: float = 1e-6
    max_steps: int = 200
    polish: int = 10
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        check_settings(self)

    def solve(
        self, P: Any, c: np.ndarray, A: Any, b: np.ndarray, cones: Cones, start: Any
    ) -> ConeSolution:
        """Solve one program; ``P`` is the upper triangle, and the matrices are sparse.

        An interior-point method cannot use the start.
        """
        import clarabel  # type: ignore[import-untyped]

        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.max_iter = self.max_steps
        settings.tol_gap_abs = settings.tol_feas = self.atol
        settings.tol_gap_rel = self.rtol
        # the data are of order one already, and Newton's method refines the solution
        settings.iterative_refinement_enable = settings.equilibrate_enable = False
        solution = clarabel.DefaultSolver(P, c, A, b, _cones(cones), settings).solve()
        return ConeSolution(
            np.array(solution.x),
            np.array(solution.z),
            np.array(solution.s),
            _STATUS.get(str(solution.status), ims.Status.STALLED),
            solution.iterations,
        )


def _cones(cones: Cones) -> list[Any]:
    import clarabel

    return [
        *([clarabel.ZeroConeT(cones.zero)] if cones.zero else []),
        *([clarabel.NonnegativeConeT(cones.nonnegative)] if cones.nonnegative else []),
        *(clarabel.SecondOrderConeT(k) for k in cones.second_order),
        *(clarabel.PSDTriangleConeT(k) for k in cones.semidefinite),
        *(clarabel.ExponentialConeT() for _ in range(cones.exponential)),
        *(clarabel.PowerConeT(alpha) for alpha in cones.power),
    ]
