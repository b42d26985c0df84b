"""What would be silently wrong, or is meant otherwise, and is refused with its fix."""

import implicit_solvers as ims
from tests.refusals.row import alike

SETUP = """
f = lambda z, a: z**2 - a
z, a = torch.ones(2, dtype=torch.float64), torch.full((2,), 4.0, dtype=torch.float64)
elsewhere = torch.ones(2, dtype=torch.float64, device="meta")
many = torch.linspace(1, 900, 120, dtype=torch.float64).unsqueeze(-1)
matrix = torch.eye(2, dtype=torch.float64)
solution = ims.root(f, z, (a,))
"""
# what stands for the solve of an equation, and the example of a solver in what is said
EQUATIONS = {
    "root": "Newton",
    "fixed_point": "Anderson",
    "minimize": "LBFGS",
    "least_squares": "LevenbergMarquardt",
}
SOLVERS = {
    "Newton": "tol=1e-6",
    "Anderson": "maxiter=50",
    "LBFGS": "max_iter=50",
    "LevenbergMarquardt": "ftol=1e-6",
    "CG": "tol=1e-6",
    "GMRES": "maxiter=50",
}
KIND, WRONG, FAILED = TypeError, ValueError, ims.ConvergenceError
# fmt: off
# an exception, words, and calls
TABLE = [
    (KIND, "pass an instance, as ImplicitAdjoint()",
     "ims.root(f, z, (a,), adjoint=ims.ImplicitAdjoint)",
     "ims.minimize(lambda z: (z**2).sum(), z, adjoint='unrolled')",
     "ims.attach(f, 2 * z, (a,), adjoint=ims.OneStepAdjoint)",
     "ims.custom_root(f, adjoint='implicit')(lambda z0, a: a.sqrt())(z, a)",
     "ims.nn.FixedPoint(torch.cos, adjoint=ims.UnrolledAdjoint)"),
    *((KIND, f"{equation}() has no {name}: the solver has the tolerances and the number of steps, "
       f"as in solver=ims.{solver}(rtol=1e-6, max_steps=50)",
       f"ims.{equation}(f, z, (a,), {name}={value})")
      for equation, solver in EQUATIONS.items()
      for name, value in (("tol", "1e-6"), ("maxiter", 50), ("rtol", "1e-6"))),
    (KIND, "linear_solve() has no tol: the solver has the tolerances and the number of steps, as "
     "in solver=ims.CG(rtol=1e-6, max_steps=50)", "ims.linear_solve(matrix, z, tol=1e-6)"),
    (KIND, "Root() has no max_iter: the solver has", "ims.nn.Root(f, max_iter=50)"),
    *((KIND, f"has no {keyword.partition('=')[0]}: the tolerances are rtol and atol, as in "
       f"{solver}(rtol=1e-6, max_steps=50)", f"ims.{solver}({keyword})")
      for solver, keyword in SOLVERS.items()),
    (KIND, "Newton() has no rotl: it has linear_solver, reuse, preconditioner, rtol, atol",
     "ims.Newton(rotl=1e-6)"),
    (KIND, "your solver <lambda> returned None: end it with return z",
     "ims.custom_root(f)(lambda z0, a: print(a))(z, a)"),
    (KIND, "your solver returned a str: return tensors or NumPy arrays",
     "ims.custom_root(f)(lambda z0, a: 'solved')(z, a)"),
    (WRONG, "A tensor with an entry for each problem that it captures is not cut to those: pass it "
     "in args, with 0 in in_dims",
     "ims.root(lambda z, a: z**2 - a - 0 * many, many**0, (many,), batch_dims=1, in_dims=0)"),
    (KIND, "pass an instance of it, as Linear(", "ims.nn.FixedPoint(torch.nn.Linear)"),
    (KIND, "fn is the class Linear: pass an instance of it", "ims.root(torch.nn.Linear, z)"),
    (KIND, "or pass a matrix that is a tensor", "ims.linear_solve(matrix.numpy(), z)"),
    # devices
    (WRONG, "args[0] is on meta and z0 on cpu: move it", "ims.root(f, z, (elsewhere,))"),
    (WRONG, "args[0] is on meta", "ims.minimize(lambda z, a: f(z, a).sum(), z, (elsewhere,))"),
    (WRONG, 'than z0, cpu: move it, as .to("cpu")', "ims.root(lambda z: f(z, elsewhere), z)"),
    (WRONG, "z0 is on the meta device, which holds no values", "ims.root(f, elsewhere, (a,))"),
    (WRONG, 'on another device than b, cpu: move it, as .to("cpu")',
     "ims.linear_solve(ims.FunctionOperator(lambda v: v * elsewhere, z), z)"),
    (WRONG, "b is on the meta device", "ims.linear_solve(matrix.to('meta'), elsewhere)"),
    # a solution is no tensor
    (AttributeError, "solution.value", "solution.sum()", "solution.shape"),
    (KIND, "solution.value", "solution + 1", "2 * solution", "z - solution", "-solution",
     "solution > 0", "solution[0]", "float(solution)", "torch.sum(solution)",
     "torch.nn.functional.mse_loss(solution, z)"),
    (RuntimeError, "outside, or return the Solution",
     "torch.func.vmap(lambda a: ims.root(f, a, (a,)).status_names())(a)"),
    # lanes
    (WRONG, "pass batch_dims, the number of batch dimensions of b",
     "ims.linear_solve(matrix, z, in_dims=0)"),
    (WRONG, "for the 1 tensors of A: pass 0, or a tuple with 0 or None for each",
     "ims.linear_solve(matrix.expand(3, 2, 2), z.expand(3, 2), batch_dims=1, in_dims=(0, 0))"),
    (WRONG, "the batch comes first, use 0 or None",
     "ims.linear_solve(matrix.expand(3, 2, 2), z.expand(3, 2), batch_dims=1, in_dims=(1,))"),
    (WRONG, "put None for it, or expand it",
     "ims.linear_solve(matrix, z.expand(3, 2), batch_dims=1, in_dims=0)"),
    (WRONG, "pass one that is made of tensors, as a MatrixOperator, or Jacobi()",
     "ims.linear_solve(matrix.expand(3, 2, 2), z.expand(3, 2), batch_dims=1, in_dims=0, "
     "solver=ims.GMRES(), preconditioner=lambda v: v)"),
    # failures
    (FAILED, "two evaluations at the same point differ",
     "ims.root(lambda z, a: f(z, a) + 0.1 * torch.rand_like(z), z, (a,))"),
    (FAILED, "Draw outside of it and pass in args what was drawn; for dropout, call eval()",
     "ims.fixed_point(lambda z: torch.nn.functional.dropout(z) + 1, many)"),
    (WRONG, "dropout in training mode (1), and a random function has no solution",
     *(f"{solve}(torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Dropout()), many)"
       for solve in ("ims.fixed_point", "ims.root", "ims.minimize"))),
    (WRONG, "(Dropout), and a random function has no solution",
     "ims.nn.FixedPoint(torch.nn.Dropout(0.1), solver=ims.FixedPointIteration(rtol=None))(many)"),
    (FAILED, 'on_failure="warn" keeps the best iterates, and "mask" also leaves what failed out of '
     "every gradient", "ims.root(f, z, (-a,))"),
]
# fmt: on
ROWS = [row for group in TABLE for row in alike(*group)]
