"""What would be silently wrong, or is meant otherwise, and is refused with its fix."""

import implicit_solvers as ims
from tests.refusals.row import Refusal

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
ADJOINTS = [
    Refusal(call, TypeError, "pass an instance, as ImplicitAdjoint()")
    for call in (
        "ims.root(f, z, (a,), adjoint=ims.ImplicitAdjoint)",
        "ims.minimize(lambda z: (z**2).sum(), z, adjoint='unrolled')",
        "ims.attach(f, 2 * z, (a,), adjoint=ims.OneStepAdjoint)",
        "ims.custom_root(f, adjoint='implicit')(lambda z0, a: a.sqrt())(z, a)",
        "ims.nn.FixedPoint(torch.cos, adjoint=ims.UnrolledAdjoint)",
    )
]
NAMES = [
    *(
        Refusal(
            f"ims.{equation}(f, z, (a,), {keyword})",
            TypeError,
            f"{equation}() has no {keyword.partition('=')[0]}: the solver has the tolerances and "
            f"the number of steps, as in solver=ims.{solver}(rtol=1e-6, max_steps=50)",
        )
        for equation, solver in EQUATIONS.items()
        for keyword in ("tol=1e-6", "maxiter=50", "rtol=1e-6")
    ),
    Refusal(
        "ims.linear_solve(matrix, z, tol=1e-6)",
        TypeError,
        "linear_solve() has no tol: the solver has the tolerances and the number of steps, as in "
        "solver=ims.CG(rtol=1e-6, max_steps=50)",
    ),
    Refusal("ims.nn.Root(f, max_iter=50)", TypeError, "Root() has no max_iter: the solver has"),
    *(
        Refusal(
            f"ims.{solver}({keyword})",
            TypeError,
            f"has no {keyword.partition('=')[0]}: the tolerances are rtol and atol, as in "
            f"{solver}(rtol=1e-6, max_steps=50)",
        )
        for solver, keyword in (
            ("Newton", "tol=1e-6"),
            ("Anderson", "maxiter=50"),
            ("LBFGS", "max_iter=50"),
            ("LevenbergMarquardt", "ftol=1e-6"),
            ("CG", "tol=1e-6"),
            ("GMRES", "maxiter=50"),
        )
    ),
    Refusal("ims.Newton(rotl=1e-6)", TypeError, "unexpected keyword argument 'rotl'"),
]
OTHERS = [
    Refusal(
        "ims.custom_root(f)(lambda z0, a: print(a))(z, a)",
        TypeError,
        "your solver <lambda> returned None: end it with return z",
    ),
    Refusal(
        "ims.custom_root(f)(lambda z0, a: 'solved')(z, a)",
        TypeError,
        "your solver returned a str: return tensors or NumPy arrays",
    ),
    Refusal(
        "ims.root(lambda z, a: z**2 - a - 0 * many, many, (many,), batch_dims=1, in_dims=0)",
        ValueError,
        "A tensor with an entry for each lane that it captures is not cut to those: pass it in "
        "args, with 0 in in_dims",
    ),
    Refusal(
        "ims.linear_solve(matrix.to_sparse_csr(), z)",
        TypeError,
        "pass SparseOperator(A.to_sparse_csr())",
    ),
    Refusal("ims.nn.FixedPoint(torch.nn.Linear)", TypeError, "pass an instance of it, as Linear("),
    Refusal(
        "ims.root(torch.nn.Linear, z)", TypeError, "fn is the class Linear: pass an instance of it"
    ),
    Refusal("ims.linear_solve(matrix.numpy(), z)", TypeError, "or pass a matrix that is a tensor"),
]
DEVICES = [
    Refusal(call, ValueError, words)
    for call, words in (
        ("ims.root(f, z, (elsewhere,))", "args[0] is on meta and z0 on cpu: move it"),
        ("ims.minimize(lambda z, a: f(z, a).sum(), z, (elsewhere,))", "args[0] is on meta"),
        ("ims.root(lambda z: f(z, elsewhere), z)", 'than z0, cpu: move it, as .to("cpu")'),
        ("ims.root(f, elsewhere, (a,))", "z0 is on the meta device, which holds no values"),
        (
            "ims.linear_solve(ims.FunctionOperator(lambda v: v * elsewhere, z), z)",
            'on another device than b, cpu: move it, as .to("cpu")',
        ),
        ("ims.linear_solve(matrix.to('meta'), elsewhere)", "b is on the meta device"),
    )
]
ARITHMETIC = [
    Refusal(call, error, "solution.value")
    for call, error in (
        ("solution.sum()", AttributeError),
        ("solution.shape", AttributeError),
        ("solution + 1", TypeError),
        ("2 * solution", TypeError),
        ("z - solution", TypeError),
        ("-solution", TypeError),
        ("solution > 0", TypeError),
        ("solution[0]", TypeError),
        ("float(solution)", TypeError),
        ("torch.sum(solution)", TypeError),
        ("torch.nn.functional.mse_loss(solution, z)", TypeError),
    )
]
LANES = [
    Refusal(f"ims.linear_solve({call})", ValueError, words)
    for call, words in (
        ("matrix, z, in_dims=0", "pass batch_dims, the number of lane dimensions of b"),
        (
            "matrix.expand(3, 2, 2), z.expand(3, 2), batch_dims=1, in_dims=(0, 0)",
            "for the 1 tensors of A: pass 0, or a tuple with 0 or None for each",
        ),
        (
            "matrix.expand(3, 2, 2), z.expand(3, 2), batch_dims=1, in_dims=(1,)",
            "lanes come first, use 0 or None",
        ),
        (
            "matrix, z.expand(3, 2), batch_dims=1, in_dims=0",
            "put None for it, or expand it",
        ),
        (
            "matrix.expand(3, 2, 2), z.expand(3, 2), batch_dims=1, in_dims=0, solver=ims.GMRES(), "
            "preconditioner=lambda v: v",
            "pass one that is made of tensors, as a MatrixOperator, or Jacobi()",
        ),
    )
]
FAILURES = [
    Refusal(
        "ims.root(lambda z, a: f(z, a) + 0.1 * torch.rand_like(z), z, (a,))",
        ims.ConvergenceError,
        "two evaluations at the same point differ",
    ),
    Refusal(
        "ims.fixed_point(lambda z: torch.nn.functional.dropout(z) + 1, many)",
        ims.ConvergenceError,
        "Draw outside of it and pass in args what was drawn; for dropout, call eval()",
    ),
    Refusal(
        "ims.root(f, z, (-a,))",
        ims.ConvergenceError,
        'on_failure="warn" keeps the best iterates, and "mask" also leaves what failed out of '
        "every gradient",
    ),
]
ROWS = [*ADJOINTS, *NAMES, *OTHERS, *DEVICES, *ARITHMETIC, *LANES, *FAILURES]
