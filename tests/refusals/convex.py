"""What convex layers refuse."""

import implicit_solvers as ims
from tests.refusals.row import Refusal

SETUP = """
import cvxpy as cp
from implicit_solvers.problems.convex import SCS, Clarabel, ConvexLayer, project_exponential_cone
x, A, b = cp.Variable(2, name="x"), cp.Parameter((3, 2), name="A"), cp.Parameter(3, name="b")
p, weight = cp.Parameter(2, name="p"), cp.Parameter(nonneg=True, name="weight")
def layer_of(objective, constraints, parameters, **options):
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return ConvexLayer(problem, parameters, problem.variables(), **options)
problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
layer = ConvexLayer(problem, [A, b], [x])
As, bs = torch.ones(3, 2), torch.ones(3)
bounded = layer_of(cp.sum(x), [x >= p, cp.sum(x) <= 4], [p])
"""

ROWS = [
    Refusal("ConvexLayer(problem.objective, [], [])", TypeError, "pass a cvxpy.Problem"),
    Refusal(
        "layer_of(cp.sum_squares(weight * weight * x - 1), [], [weight])",
        ValueError,
        "not affine in the parameters. Multiply parameters with variables only",
    ),
    Refusal(
        "layer_of(cp.quad_form(x, np.diag([1.0, -1.0])) + p @ x, [], [p])",
        ValueError,
        "quadratic forms must be positive semidefinite, to be minimized. The objective",
    ),
    Refusal("layer_of(p @ x, [cp.norm(x) >= 1], [p])", ValueError, "Constraint 1.0 <= "),
    Refusal(
        "n = cp.Variable(2, integer=True); layer_of(cp.sum_squares(n - p), [], [p])",
        ValueError,
        "integer or boolean variables",
    ),
    Refusal(
        "z = cp.Variable(2, complex=True, name='z'); layer_of(cp.norm(z - p), [], [p])",
        ValueError,
        "z is complex: write its real and imaginary parts",
    ),
    Refusal(
        "layer_of(p @ x, [cp.PowCone3D(x[0], x[1], x[0], 0.3), x <= 2], [p])",
        NotImplementedError,
        "power cones",
    ),
    Refusal("ConvexLayer(problem, [A], [x])", ValueError, "lacks b: name every one"),
    Refusal("ConvexLayer(problem, [A, b, p], [x])", ValueError, "p, which is not in the problem"),
    Refusal("ConvexLayer(problem, [A, A, b], [x])", ValueError, "parameters has A twice"),
    Refusal("ConvexLayer(problem, [A, x], [x])", TypeError, "parameters has a Variable"),
    Refusal("ConvexLayer(problem, A, [x])", TypeError, "a Parameter: pass a list"),
    Refusal(
        "ConvexLayer(problem, [A, b], [cp.Variable(name='y')])",
        ValueError,
        "variables has y, which is not in the problem",
    ),
    Refusal("ConvexLayer(problem, [A, b], [A])", TypeError, "variables has a Parameter"),
    Refusal(
        "ConvexLayer(problem, [A, b], [x], duals=[x >= 0])",
        ValueError,
        "which is no constraint of the problem: pass the very objects",
    ),
    Refusal(
        "ConvexLayer(problem, [A, b], [x], solver='ECOS')",
        TypeError,
        "solver is 'ECOS': pass Clarabel() or SCS()",
    ),
    Refusal(
        "ConvexLayer(problem, [A, b], [x], on_failure='ignore')",
        ValueError,
        "on_failure is 'ignore'",
    ),
    Refusal(
        "ConvexLayer(problem, [A, b], [x], adjoint=ims.ImplicitAdjoint(ims.LU))(As, bs)",
        TypeError,
        "linear_solver=LU",
    ),
    Refusal("layer(As)", ValueError, "given 1 tensors for 2 parameters: pass one for each of A, b"),
    Refusal("layer(As.numpy(), bs)", TypeError, "A is a ndarray: pass a tensor"),
    Refusal("layer(As.long(), bs)", TypeError, "A is torch.int64: pass float32 or float64"),
    Refusal("layer(As.to(torch.complex64), bs)", TypeError, "A is torch.complex64"),
    Refusal(
        "layer(As, bs.double())", TypeError, "b is torch.float64 on cpu, and A is torch.float32"
    ),
    Refusal("layer(As, bs.to('meta'))", TypeError, "b is torch.float32 on meta, and A is"),
    Refusal("layer(As.T, bs)", ValueError, "A has the shape (2, 3), and the parameter has (3, 2)"),
    Refusal("layer(As, bs[0])", ValueError, "b has the shape (), and the parameter has (3,)"),
    Refusal(
        "layer(As.expand(2, 3, 2), bs.expand(5, 3))", ValueError, "do not broadcast: A (2,), b (5,)"
    ),
    Refusal("layer(As, bs, start=[0.0])", TypeError, "start is no floating tensor"),
    Refusal("layer(As, bs, start=torch.zeros(3))", ValueError, "start has the shape (3,)"),
    Refusal(
        "layer(As, torch.stack([bs, bs * math.nan]))", ims.ConvergenceError, "lane 1: NONFINITE"
    ),
    Refusal(
        "bounded(torch.tensor([[0.0, 0.0], [3.0, 3.0]]))",
        ims.ConvergenceError,
        "lane 1: INFEASIBLE",
    ),
    Refusal(
        "layer_of(weight * cp.sum_squares(x), [], [weight])(torch.tensor([1.0, -3.0]))",
        ValueError,
        "weight was declared nonnegative and holds -3: with another sign the problem need not be",
    ),
    Refusal(
        "below = cp.Parameter(nonpos=True)\n"
        "layer_of(below * -cp.sum_squares(x), [], [below])(torch.tensor(2.0))",
        ValueError,
        "declared nonpositive and holds 2",
    ),
    Refusal("project_exponential_cone(torch.zeros(4))", ValueError, "pass rows (r, s, t)"),
    Refusal("project_exponential_cone(torch.zeros(3).long())", TypeError, "v is torch.int64"),
    *(
        Refusal(f"{method}({name}={value})", error, f"{method} has {name}=")
        for method in ("Clarabel", "SCS")
        for name, value, error in [
            ("rtol", "-1e-9", ValueError),
            ("rtol", "'1e-9'", TypeError),
            ("atol", "math.nan", ValueError),
            ("atol", "True", TypeError),
            ("max_steps", "0", ValueError),
            ("max_steps", "10.0", TypeError),
            ("polish", "-1", ValueError),
            ("workers", "0", ValueError),
            ("workers", "1.5", TypeError),
        ]
    ),
]
