"""What is often written at first, and what to write."""

import implicit_solvers as ims
from tests.refusals.row import Refusal, alike

SETUP = """
from torch import nn
from implicit_solvers.testing import check_implicit_gradients

f = lambda z, a: z**2 - a
cell = lambda z, a: torch.cos(z) * a / 8
energy = lambda z, a: ((z - a) ** 2).sum()
z0, a = torch.ones(3), torch.full((3,), 4.0)
A, b = 2 * torch.eye(3), torch.ones(3)
linear = nn.Linear(3, 3)
solution = ims.root(f, z0, (a,))
"""
KIND, WRONG, FAILED, NAME = TypeError, ValueError, ims.ConvergenceError, AttributeError
# options of other libraries, and what is said of them
OPTIONS = {
    "method='newton'": "pass an instance as solver, as in solver=ims.Newton()",
    "optimizer=torch.optim.Adam": "pass an instance as solver",
    "options={'maxiter': 50}": "the solver has them as fields, as in solver=ims.Newton(max_steps",
    "max_nfev=50": "the solver has the tolerances and the number of steps",
    "jac=True": "leave it out, torch differentiates fn",
    "fprime=lambda z, a: 2 * z": "leave it out, torch differentiates fn",
    "argnums=1": "leave it out, every argument is differentiable",
    "implicit_diff=True": "leave it out, derivatives are implicit by default",
    "unroll=True": "pass adjoint=ims.UnrolledAdjoint()",
    "b_solver='anderson'": "pass adjoint=ims.ImplicitAdjoint(ims.GMRES())",
    "params=a": "args is the tuple of what fn takes after the unknown, as in args=(theta,)",
    "kwargs={'a': a}": "args is the tuple of what fn takes after the unknown",
    "callback=print": "ims.monitor() logs the steps and errors of solves",
    "verbose=True": "ims.monitor() logs the steps and errors of solves",
    "full_output=True": "the Solution has all of it, as solution.iterations",
    "throw=False": 'pass on_failure="raise", "warn" or "mask"',
    "dtype=torch.float64": "a solve has those of z0, as in z0.to(torch.float64)",
    "batch_size=3": "pass batch_dims, the number of leading dimensions of z0 that are problems",
    "compile=True": "the solver has it, as in solver=ims.Newton(compile=True)",
    "lr=0.1": "it is a field of some solvers, as in solver=ims.GradientDescent(lr=0.1)",
    "linear_solver=ims.CG()": "it is a field of some solvers, as in solver=ims.Newton(linear",
    "bounds=(0, 1)": "minimize and least_squares take bounds; bracket=(lo, hi) of root is for",
    "a=a": "it has fn, z0, args, bracket, solver, adjoint",
}
# names of other libraries
NAMES = {
    "minimise": "write ims.minimize",
    "solve": "choose by what is solved: root, fixed_point, minimize, least_squares, linear_solve",
    "fsolve": "write ims.root",
    "curve_fit": "write ims.least_squares",
    "FixedPoint": "write ims.nn.FixedPoint",
    "LM": "write ims.LevenbergMarquardt()",
    "Adam": "write ims.TorchOptimizer(torch.optim.Adam, lr=0.1)",
    "Brent": "write ims.Chandrupatla(), or ims.root(..., bracket=(lo, hi))",
    "Picard": "write ims.FixedPointIteration()",
    "implicit_diff": "write ims.attach(fn, z, args), or ims.custom_root(fn)",
    "quadratic_program": "write from implicit_solvers.problems.qp import quadratic_program",
    "assert_implicit_gradients": "write from implicit_solvers.testing import assert_implicit",
}
# fields of other libraries' results
FIELDS = {
    "x": "it has value",
    "params": "it has value",
    "success": "it has converged",
    "nit": "it has iterations",
    "nfev": "it has evaluations.function",
    "message": "it has status_names(), and Status.help",
    "stats": "it has iterations and evaluations",
    "loss": "it has value, converged, iterations",
}
# fields of other libraries' solvers
OF_SOLVERS = {
    "Anderson(m=5)": "it has window, damping",
    "LBFGS(history_size=10)": "it has memory",
    "GradientDescent(stepsize=0.1)": "it has lr, momentum",
    "Newton(damping=0.5)": "it has linear_solver, reuse",
    "CG(symmetric=True)": "it has rtol, atol",
    "ImplicitAdjoint(solver=ims.CG())": "it has linear_solver, preconditioner",
    "UnrolledAdjoint(steps=5)": "it has checkpoint",
}
# fmt: off
ROWS = [
    *(Refusal(f"ims.root(f, z0, (a,), {option})", KIND, f"has no {option.partition('=')[0]}: {fix}")
      for option, fix in OPTIONS.items()),
    *(Refusal(f"ims.{name}", NAME, f"has no attribute '{name}': {fix}")
      for name, fix in NAMES.items()),
    *(Refusal(f"solution.{name}", NAME, f"a Solution has no {name}: {fix}")
      for name, fix in FIELDS.items()),
    *(Refusal(f"ims.{call}", KIND, fix) for call, fix in OF_SOLVERS.items()),
    Refusal("ims.root(f, x0=z0, args=(a,))", KIND, "has no x0: z0 is the start, and the second"),
    Refusal("ims.root(fun=f, z0=z0)", KIND, "has no fun: fn is the function, and the first"),
    Refusal("ims.minimize(energy, z0, (a,), constraints=[])", KIND, "has no constraints: pass "
            "equalities=h and inequalities=g"),
    Refusal("ims.minimize(energy, z0, (a,), bounds=[(0, 1), (0, 1), (0, 1)])", KIND,
            "bounds is a list: pass a pair (lo, hi)"),
    Refusal("ims.minimize(energy, z0, (a,), equalities=lambda z: z.sum() - 1)", KIND,
            "it is called as equalities(z, *args), with all of args"),
    Refusal("ims.least_squares(f, z0, (a,), sigma=0.1)", KIND, "has no sigma: multiply the "
            "residuals in fn by what they are to count"),
    Refusal("ims.linear_solve(A, b, symmetric=True)", KIND, "has no symmetric: the operator has "
            "it, as in ims.MatrixOperator(A, positive_definite=True)"),
    Refusal("ims.nn.FixedPoint(cell, f_max_iter=30)", KIND, "has no f_max_iter: the solver has"),
    # arguments
    *alike(KIND, "so args has what comes after z, as in args=(theta,)",
           "ims.root(f, z0)", "ims.root(f, z0, (a, a))", "ims.nn.FixedPoint(linear)(z0)",
           "ims.minimize(lambda z, a, b: energy(z, a), z0, (a,))"),
    Refusal("ims.nn.FixedPoint(cell, init=lambda: z0)(a)", KIND, "it is called as init(x)"),
    Refusal("ims.root(f, z0, a)", KIND, "args is a Tensor: pass a tuple, as args=(theta,)"),
    Refusal("ims.root(f, z0, {'a': a})", KIND, "args is a dict: pass a tuple, as args=(theta,)"),
    Refusal("ims.root(f(z0, a), z0)", KIND, "fn is a Tensor: pass a function fn(z, *args)"),
    Refusal("ims.root(f, np.ones(3), (a,))", KIND, "z0 has a leaf of type ndarray: every leaf "
            "must be a tensor (torch.as_tensor makes one)"),
    Refusal("ims.root(f, (z0, z0), (a,))", KIND, "is given z as z0 is, a tuple: take it apart"),
    Refusal("ims.root(lambda z, a: z['x'] - a, {'x': z0}, (a,))", WRONG, "fn returned the "
            "structure tensor, and z0 has {'x': tensor}: return one tensor for each leaf"),
    Refusal("ims.root(f, z0, (a,), batch_dims=True)", WRONG, "batch_dims is True: pass the number"),
    Refusal("ims.continuation(f, z0, (a,))", KIND, "it is called as fn(z, t, *args), with t from"),
    Refusal("ims.Newton(compile='inductor')", KIND, "of type str: pass True or False"),
    # inside of the function
    *alike(RuntimeError, "calls NumPy: write it in torch, with arguments that are tensors",
           "ims.root(lambda z, a: z - a.numpy() * np.sin(z.numpy()), z0, (a,))",
           "ims.root(f, z0, (np.ones(3),))"),
    *alike(FAILED, "The derivative is exactly zero there: start elsewhere, or look for what cuts",
           "ims.root(lambda z, a: f(z.detach(), a), z0, (a,))",
           "ims.root(f, 0 * z0, (a,), solver=ims.Newton())",
           "ims.root(lambda z, a: torch.tensor(z.tolist()) - a, z0, (a,))"),
    Refusal("ims.least_squares(energy, z0, (a,))", FAILED, "return all residuals, not the sum of "
            "their squares, or pass that to minimize"),
    *alike(FAILED, "The objective seems to fall without end: to maximize, minimize its",
           "ims.minimize(lambda z: -(z**2).sum(), z0)", "ims.minimize(lambda z: z.sum(), z0)"),
    # solvers of one's own
    *alike(KIND, "it decorates your solver, as in solve = custom_root(fn)(solver)",
           "ims.custom_root(f)(z0, a)", "ims.custom_root(f)(z0)"),
    Refusal("ims.custom_root(f)(lambda z0: z0)(z0, a)", KIND, "it is called as solver(z0, *args)"),
    Refusal("ims.gradient_error(solution.value, f, (a,))", KIND, "pass the Solution that the "
            "solve returned"),
]
# fmt: on
