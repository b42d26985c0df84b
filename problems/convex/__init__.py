"""Convex programs stated in CVXPY, as differentiable layers."""

from implicit_solvers.problems.convex.clarabel import Clarabel, ConeSolution
from implicit_solvers.problems.convex.cones import Cones, project_dual_cone
from implicit_solvers.problems.convex.exponential_cone import project_exponential_cone
from implicit_solvers.problems.convex.layer import ConvexLayer, ConvexProgramValue
from implicit_solvers.problems.convex.normal_map import ProgramPattern, normal_map
from implicit_solvers.problems.convex.normal_map_lu import NormalMapLU
from implicit_solvers.problems.convex.power_cone import project_power_cone
from implicit_solvers.problems.convex.scs import SCS

__all__ = [
    "ConvexLayer",
    "ConvexProgramValue",
    "Clarabel",
    "SCS",
    "ConeSolution",
    "Cones",
    "normal_map",
    "ProgramPattern",
    "NormalMapLU",
    "project_dual_cone",
    "project_exponential_cone",
    "project_power_cone",
]
