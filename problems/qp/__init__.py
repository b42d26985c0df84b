"""Batched convex quadratic programs, differentiable in all six inputs."""

from implicit_solvers.problems.qp.condensed import CondensedKKT
from implicit_solvers.problems.qp.interior_point import InteriorPoint
from implicit_solvers.problems.qp.kkt import QuadraticProgramValue, kkt_residual
from implicit_solvers.problems.qp.program import quadratic_program

__all__ = [
    "quadratic_program",
    "QuadraticProgramValue",
    "InteriorPoint",
    "CondensedKKT",
    "kkt_residual",
]
