"""What convex layers refuse."""

import implicit_solvers as ims
from tests.refusals.row import Refusal

SETUP = """
import cvxpy as cp
from implicit_solvers.problems.convex import (
    SCS, Clarabel, ConvexLayer, project_exponential_cone, project_power_cone
)
x, A, b = cp.Variable(2, name="x"), cp.Parameter((3, 2), name="A"), cp.Parameter(3, name="b")
p, t, below = cp.Parameter(2, name="p"), cp.Parameter(nonneg=True), cp.Parameter(nonpos=True)
whole, z = cp.Variable(2, integer=True), cp.Variable(2, complex=True, name="z")
form = cp.quad_form(x, np.diag([1.0, -1.0]))
v, q = cp.Variable(pos=True), cp.Parameter(pos=True, name="q")
wide = cp.Problem(cp.Minimize(v), [v >= (q + 1) ** q]), [q], [v]
S, T = cp.Parameter((2, 2), PSD=True), cp.Parameter((2, 2), diag=True)
def layer_of(objective, constraints, parameters, **options):
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return ConvexLayer(problem, parameters, problem.variables(), **options)
problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
own = problem, [A, b], [x]
layer = ConvexLayer(*own)
As, bs = torch.ones(3, 2), torch.ones(3)
length = cp.sum_squares(x)
bounded = layer_of(cp.sum(x), [x >= p, cp.sum(x) <= 4], [p])
"""

ROWS = [
    Refusal("ConvexLayer(problem.objective, [], [])", TypeError, "pass a cvxpy.Problem"),
    Refusal("layer_of(cp.norm(t * t * x - 1), [], [t])", ValueError, "Multiply parameters with"),
    Refusal("layer_of(form + p @ x, [], [p])", ValueError, "to be minimized. The objective"),
    Refusal("layer_of(p @ x, [cp.norm(x) >= 1], [p])", ValueError, "Constraint 1.0 <= "),
    Refusal("layer_of(cp.norm(whole - p), [], [p])", ValueError, "integer or boolean variables"),
    Refusal("layer_of(cp.norm(z - p), [], [p])", ValueError, "z is complex: write its real and"),
    Refusal("ConvexLayer(*own, gp=True)", ValueError, "problem.is_dgp() must hold"),
    Refusal("ConvexLayer(*wide, gp=True)", ValueError, 'problem.is_dpp("dgp") must hold'),
    Refusal("layer_of(v, [v >= q], [q], gp=True)(bs[0] - 1)", ValueError, "positive and holds 0"),
    Refusal("layer_of(cp.norm(S @ x - 1), [], [S])(-torch.eye(2))", ValueError, "eigenvalue -1"),
    Refusal("layer_of(cp.norm(T @ x - 1), [], [T])(As[:2])", ValueError, "1 elsewhere, which is"),
    Refusal("ConvexLayer(problem, [A], [x])", ValueError, "lacks b: name every one"),
    Refusal("ConvexLayer(problem, [A, b, p], [x])", ValueError, "p, which is not in the problem"),
    Refusal("ConvexLayer(problem, [A, A, b], [x])", ValueError, "parameters has A twice"),
    Refusal("ConvexLayer(problem, [A, x], [x])", TypeError, "parameters has a Variable"),
    Refusal("ConvexLayer(problem, A, [x])", TypeError, "a Parameter: pass a list"),
    Refusal("ConvexLayer(problem, [A, b], [z])", ValueError, "z, which is not in the problem"),
    Refusal("ConvexLayer(problem, [A, b], [A])", TypeError, "variables has a Parameter"),
    Refusal("ConvexLayer(*own, duals=[x >= 0])", ValueError, "no constraint of the problem: pass"),
    Refusal("ConvexLayer(*own, solver='ECOS')", TypeError, "'ECOS': pass Clarabel() or SCS()"),
    Refusal("ConvexLayer(*own, on_failure='ignore')", ValueError, "on_failure is 'ignore': use"),
    Refusal("ConvexLayer(*own, adjoint=ims.ImplicitAdjoint(ims.LU))(As, bs)", TypeError,
            "the class LU"),
    Refusal("layer(As)", ValueError, "given 1 tensors for 2 parameters: pass one for each of A, b"),
    Refusal("layer(As.numpy(), bs)", TypeError, "A is a ndarray: pass a tensor"),
    Refusal("layer(As, None)", TypeError, "b is a NoneType: pass a tensor"),
    Refusal("layer(As.long(), bs)", TypeError, "A is torch.int64: pass float32 or float64"),
    Refusal("layer(As.to(torch.complex64), bs)", TypeError, "A is torch.complex64"),
    Refusal("layer(As, bs.double())", TypeError, "b is torch.float64 on cpu, and A is"),
    Refusal("layer(As, bs.to('meta'))", TypeError, "b is torch.float32 on meta, and A is"),
    Refusal("layer(As.T, bs)", ValueError, "A has the shape (2, 3), and the parameter has (3, 2)"),
    Refusal("layer(As, bs[0])", ValueError, "b has the shape (), and the parameter has (3,)"),
    Refusal("layer(As.expand(2, 3, 2), bs.expand(5, 3))", ValueError, "broadcast: A (2,), b (5,)"),
    Refusal("layer(As, bs, start=[0.0])", TypeError, "start is no floating tensor"),
    Refusal("layer(As, bs, start=torch.zeros(3))", ValueError, "start has the shape (3,)"),
    Refusal("layer(As, bs / torch.eye(3))", ims.ConvergenceError, "problem 0: NONFINITE"),
    Refusal("bounded(9 * torch.eye(3)[:, 1:])", ims.ConvergenceError, "problem 1: INFEASIBLE"),
    Refusal("layer_of(t * length, [], [t])(-bs[0])", ValueError, "nonnegative and holds -1: with"),
    Refusal("layer_of(-below * length, [], [below])(bs[0])", ValueError, "nonpositive and holds 1"),
    Refusal("project_exponential_cone(torch.zeros(4))", ValueError, "pass rows (r, s, t)"),
    Refusal("project_exponential_cone(torch.zeros(3).long())", TypeError, "v is torch.int64"),
    Refusal("project_power_cone(torch.zeros(4), 0.5)", ValueError, "pass rows (x, y, z)"),
    Refusal("project_exponential_cone(bs.to('meta'))", ValueError, "on the CPU: pass v.cpu()"),
    Refusal("project_power_cone(bs.to('meta'), 0.5)", ValueError, "on the CPU: pass v.cpu()"),
    Refusal("project_power_cone(torch.zeros(3), 1)", ValueError, "an exponent between 0 and 1"),
    *(Refusal(f"{method}({option})", error, f"{method} has {option.partition('=')[0]}=")
      for method in ("Clarabel", "SCS") for error, *options in [
          (ValueError, "rtol=-1e-9", "atol=math.nan", "max_steps=0", "polish=-1", "workers=0"),
          (TypeError, "rtol='1e-9'", "atol=True", "max_steps=10.0", "workers=1.5"),
      ] for option in options),
]  # fmt: skip
