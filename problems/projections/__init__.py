"""Projections onto convex sets, and the sparse maps that are made of them, with derivatives."""

from implicit_solvers.problems.projections.balls import (
    project_box,
    project_l1_ball,
    project_l2_ball,
)
from implicit_solvers.problems.projections.entmax import entmax
from implicit_solvers.problems.projections.psd_cone import project_psd_cone
from implicit_solvers.problems.projections.second_order_cone import project_second_order_cone
from implicit_solvers.problems.projections.simplex import project_simplex, sparsemax
from implicit_solvers.problems.projections.sinkhorn import (
    TransportPlan,
    entropic_transport,
    sinkhorn,
)
from implicit_solvers.problems.projections.thresholds import (
    group_soft_threshold,
    singular_value_threshold,
    soft_threshold,
)

__all__ = [
    "project_simplex",
    "project_box",
    "project_l1_ball",
    "project_l2_ball",
    "project_second_order_cone",
    "project_psd_cone",
    "sinkhorn",
    "entropic_transport",
    "TransportPlan",
    "sparsemax",
    "entmax",
    "soft_threshold",
    "group_soft_threshold",
    "singular_value_threshold",
]
