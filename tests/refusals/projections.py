"""What projections refuse."""

import implicit_solvers as ims
from tests.refusals.row import Refusal

SETUP = """
from implicit_solvers.problems.projections import *
v = torch.ones(2, 3)
bad = torch.zeros(2, 2, 2)
bad[1, 0, 0] = torch.nan
scores, r = torch.zeros(3, 2, 2), torch.tensor([[0.5, 0.5], [1.0, 0.5], [0.5, 0.5]])
c = torch.tensor([0.25, 0.75])
"""

ROWS = [
    Refusal("project_simplex([1.0])", TypeError, "v is a list: pass a tensor"),
    Refusal("project_simplex(v.long())", TypeError, "v is torch.int64"),
    Refusal("project_simplex(torch.tensor(1.0))", ValueError, "v has the shape ()"),
    Refusal("project_simplex(v[:, :0])", ValueError, "pass a vector with entries"),
    Refusal("project_simplex(v, 0.0)", ValueError, "radius is 0.0: pass a number above 0.0"),
    Refusal("project_l1_ball(v, -1)", ValueError, "radius is -1"),
    Refusal("project_l2_ball(v, '1')", TypeError, "radius is a str"),
    Refusal("project_l2_ball(v, torch.ones(3))", ValueError, "radius has the shape (3,)"),
    Refusal("project_l2_ball(v, torch.ones(2).double())", TypeError, "radius is torch.float64"),
    Refusal("soft_threshold(v, -1)", ValueError, "threshold is -1: pass a number >= 0.0"),
    Refusal("soft_threshold(v, torch.ones(2))", ValueError, "threshold has the shape (2,)"),
    Refusal("group_soft_threshold(v, v)", ValueError, "threshold has the shape (2, 3)"),
    Refusal("group_soft_threshold(v, None)", TypeError, "threshold is a NoneType"),
    Refusal("singular_value_threshold(v, v.double())", TypeError, "threshold is torch.float64"),
    Refusal("singular_value_threshold(v[0], 1.0)", ValueError, "pass a matrix"),
    Refusal("project_box(v, 1.0, 0.0)", ValueError, "pass lower <= upper"),
    Refusal("project_box(v, None, 0.0)", TypeError, "lower is a NoneType"),
    Refusal("project_box(v, torch.ones(2), 3.0)", ValueError, "lower has the shape (2,)"),
    Refusal("project_box(v, 0.0, v.double())", TypeError, "upper is torch.float64"),
    Refusal("project_second_order_cone(v.int())", TypeError, "v is torch.int32"),
    Refusal("project_psd_cone(v)", ValueError, "S has the shape (2, 3): pass square matrices"),
    Refusal("project_psd_cone(v[0])", ValueError, "pass a matrix"),
    Refusal("project_psd_cone(bad)", ims.ConvergenceError, "NONFINITE"),
    Refusal("entmax(v, 0.5)", ValueError, "alpha is 0.5: pass a number >= 1"),
    Refusal("entmax(v, torch.ones(3))", ValueError, "alpha has the shape (3,)"),
    Refusal("entmax(v, torch.ones(2).double())", TypeError, "alpha is torch.float64"),
    Refusal("entmax(bad)", ims.ConvergenceError, "NONFINITE"),
    Refusal("entmax(v, torch.tensor([1.5, 0.9]))", ims.ConvergenceError, "NONFINITE"),
    Refusal("sparsemax(None)", TypeError, "scores is a NoneType"),
    Refusal("sinkhorn(v, temperature=0.0)", ValueError, "temperature is 0.0"),
    Refusal("sinkhorn(v, temperature='1')", TypeError, "temperature is a str: pass a number or a"),
    Refusal("sinkhorn(v, temperature=torch.ones(2))", ValueError, "and scores has the batch ()"),
    Refusal("sinkhorn(v, temperature=c.double())", TypeError, "and scores is torch.float32"),
    Refusal("sinkhorn(v, torch.ones(3))", ValueError, "row_sums has the shape (3,)"),
    Refusal("sinkhorn(v, torch.ones(2).double())", TypeError, "row_sums is torch.float64"),
    Refusal("sinkhorn(v, [1, 1])", TypeError, "row_sums is a list"),
    Refusal("sinkhorn(bad)", ims.ConvergenceError, "NONFINITE"),
    Refusal("sinkhorn(scores, r, c)", ims.ConvergenceError, "and column_sums to 1 in problem 1"),
    Refusal("sinkhorn(scores[1], r[1], c)", ims.ConvergenceError, "INFEASIBLE"),
    # under a transform the numbers cannot be read, and NONFINITE is what remains to be said
    Refusal("torch.func.vmap(sinkhorn)(scores, r, r + 1)", ims.ConvergenceError, "NONFINITE"),
    Refusal("sinkhorn(scores[0], c - 0.5, c - 0.5)", ims.ConvergenceError, "NONFINITE"),
]
