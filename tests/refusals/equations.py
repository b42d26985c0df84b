"""What equations, adjoints and layers refuse."""

import implicit_solvers as ims
from tests.refusals.row import Refusal

SETUP = """
f = lambda z, *args: z - 1
g = lambda z, *args: 0.5 * z + 0.5
energy = lambda z, *args: ((z - 1) ** 2).sum()
by_hand = lambda z, *args: torch.ones_like(z)
z0 = torch.ones(2, dtype=torch.float64)
meta, x = z0.to("meta"), z0.clone().requires_grad_()
one_step, steps = ims.OneStepAdjoint(), ims.UnrolledAdjoint()
one_step_layer = ims.nn.FixedPoint(lambda z, x: torch.cos(z + x) / 2, adjoint=one_step)
layer = ims.nn.FixedPoint(g, solver=ims.FixedPointIteration(), adjoint=steps)
budget = ims.FixedPointIteration(max_steps=3, rtol=None)
masked = ims.nn.FixedPoint(g, solver=budget, adjoint=steps, on_failure="mask")
stencil, next = ims.SparsityPattern(torch.eye(2)), lambda z: z**2 + z.roll(1)
product = ims.elementwise_function(torch.mul, lambda v, x, y: [y, x], name="product")
proximal = lambda v, step, *args: v
many = ims.multistart(torch.ones(3, 2, dtype=torch.float64))
short = ims.elementwise_function(torch.mul, lambda v, x, y: [y], name="short")
"""
KIND, WRONG = TypeError, ValueError
FOUR = [
    "ims.root(f, z0, {})",
    "ims.fixed_point(g, z0, {})",
    "ims.minimize(energy, z0, {})",
    "ims.least_squares(f, z0, {})",
]
OPTIONS = [*FOUR, "ims.attach(f, z0, {})"]
STARTS = [call.replace("z0, ", "") for call in OPTIONS] + ["ims.custom_root(f)(by_hand)({})"]
EQUATIONS = ["ims.root({}, z0)", "ims.fixed_point({}, z0)", "ims.attach({}, z0)"]
EQUATIONS += ["ims.custom_root({})(by_hand)(z0)"]
FUNCTIONS = [*EQUATIONS, "ims.minimize({}, z0)", "ims.least_squares({}, z0)"]
LANES = [call.format("{}, batch_dims=1, in_dims={}") for call in OPTIONS]
PROXIMAL = ["ims.minimize(energy, z0, prox={})"]
CELLS = ["ims.nn.FixedPoint({})", "ims.nn.Root({})", "ims.nn.Minimize({})"]
CALLED = ["ims.nn.FixedPoint(lambda z, x: 0.5 * x, {})(z0)"]
# calls, and what fills their gap
TABLE = [
    (STARTS, "torch.ones(2, dtype=torch.int64)", KIND, "floating; pass z0.to(torch.float64)"),
    (STARTS, "1.0", KIND, "z0 has a leaf of type float: every leaf must be a tensor ("),
    (STARTS, "[1.0, 2.0]", KIND, "z0 has a leaf of type float: every leaf must be a tensor"),
    (STARTS, "{}", WRONG, "z0 is an empty pytree: pass at least one tensor"),
    (STARTS, "[z0, z0.float()]", WRONG, "z0 mixes torch.float64 on cpu with torch.float32 on cpu"),
    (STARTS, "[z0.half(), z0.float()]", WRONG, "z0 mixes torch.float16 on cpu with torch.float32"),
    (STARTS, "[z0, meta]", WRONG, "torch.float64 on meta: give all leaves one dtype and one"),
    (FUNCTIONS, "3", KIND, "fn is a int: pass a function fn(z, *args)"),
    (EQUATIONS, "lambda z: z[:1]", WRONG, "(1,) where z0 has (2,): return one entry for each"),
    (EQUATIONS, "lambda z: (z, z)", WRONG, "return one tensor for each leaf of z0, in the same"),
    (EQUATIONS, "lambda z: z.float()", KIND, "float32 where z0 has torch.float64: convert z0 or"),
    (EQUATIONS, "lambda z: 1.0", KIND, "fn returned a float: return a tensor"),
    (PROXIMAL, "3", KIND, "prox is a int: pass a function prox(v, step, *args) that returns one"),
    (PROXIMAL, "list", KIND, "prox is the class list: pass a function prox(v, step, *args)"),
    (PROXIMAL, "lambda v: v", KIND, "takes 1 positional argument but 2 were given"),
    (PROXIMAL, "lambda v, step: v[:1]", WRONG, "prox returned a tensor of shape (1,) where z0 has"),
    (PROXIMAL, "lambda v, step: [v]", WRONG, "prox returned the structure"),
    (PROXIMAL, "lambda v, step: v.float()", KIND, "prox returned torch.float32 where z0 has"),
    (PROXIMAL, "lambda v, step: None", KIND, "prox returned"),
    (PROXIMAL, "proximal, bounds=(0, 1)", WRONG, "prox is given with bounds: leave bounds out"),
    (["ims.minimize(energy, {}, prox=proximal)"], "many", WRONG, "ends cannot be compared: pass"),
    (PROXIMAL, "proximal, solver=ims.NewtonCG()", WRONG, "was given to minimize with prox"),
    (
        ["ims.minimize(energy, z0, solver={})"],
        "ims.FISTA()",
        WRONG,
        "was given to minimize: choose",
    ),
    (OPTIONS, "args=z0", KIND, "args is a Tensor: pass a tuple, as args=(theta,)"),
    (OPTIONS, "on_failure='ignore'", WRONG, 'on_failure is \'ignore\': use "raise", "warn"'),
    (OPTIONS, "batch_dims=-1", WRONG, "batch_dims is -1: pass the number of batch dimensions"),
    (OPTIONS, "batch_dims=2", WRONG, "shape (2,), which has fewer than batch_dims=2 dimensions"),
    (OPTIONS, "(z0,), in_dims=(0,)", WRONG, "in_dims is (0,) and batch_dims is 0: pass batch_dims"),
    (LANES, ("(z0,)", "(0, None)"), WRONG, "in_dims is (0, None) for 1 args: pass a tuple"),
    (LANES, ("(z0,)", "(1,)"), WRONG, "in_dims has 1 for args[0]: the batch comes first, use 0"),
    (LANES, ("(torch.ones(3),)", "(0,)"), WRONG, "(3,) where z0 has the batch (2,): put"),
    (LANES, ("(z0,)", "([0, 0],)"), WRONG, "use 0 or None for all of it, or the same structure"),
    (FOUR, "solver=ims.Newton", KIND, "solver is the class Newton: pass an instance of a solver"),
    (FOUR, "solver='newton'", KIND, "solver is the object str: pass an instance of a solver"),
    (FOUR, "solver=torch.optim.SGD", KIND, "solver is the class SGD: pass an instance of a"),
    (FOUR, "solver=ims.LU()", KIND, "solver is the object LU: pass an instance of a solver"),
    (FOUR, "solver=ims.CG()", KIND, "solver is the object CG: pass an instance of a solver"),
    (FOUR[:2], "adjoint=ims.ImplicitAdjoint(ims.CG())", WRONG, "linear_solver=CG(...), which"),
    (FOUR[:2], "adjoint=ims.ImplicitAdjoint(ims.Cholesky())", WRONG, "use LU() or GMRES(), or"),
    (FOUR, "adjoint=ims.ImplicitAdjoint(ims.Diagonal())", WRONG, "diagonal: use LU() or GMRES()"),
    ([FOUR[0], *FOUR[2:]], "adjoint=one_step", WRONG, "OneStepAdjoint() is for fixed points"),
    (CELLS, "3", KIND, "cell is a int: pass a function or a module cell(z, x, *more)"),
    (CELLS, "None", KIND, "cell is a NoneType: pass a function or a module"),
    (CELLS, "torch.nn.Linear", KIND, "cell is the class Linear: pass an instance of it"),
    (CELLS, "g, init=z0", KIND, "init is a Tensor: pass a function of the input that returns"),
    (CELLS, "g, init=None", KIND, "init is a NoneType: pass a function of the input"),
    (CALLED, "init=lambda x: None", KIND, "init(x) has a leaf of type NoneType: every leaf must"),
    (CALLED, "init=lambda x: 0.0", KIND, "init(x) has a leaf of type float: every leaf must be"),
    (CALLED, "init=lambda x: {}", WRONG, "init(x) is an empty pytree: pass at least one tensor"),
    (CALLED, "init=lambda x: x.long()", KIND, "floating; pass init(x).to(torch.float64)"),
    (CALLED, "init=lambda x: (x, x.float())", WRONG, "init(x) mixes torch.float64 on cpu with"),
    (CALLED, "init=lambda x: x[:1]", WRONG, "(2,) where z0 has (1,): return one entry"),
    (CALLED, "init=lambda x: x[0]", WRONG, "(2,) where z0 has (): return one entry"),
    (CALLED, "solver=ims.Anderson", KIND, "solver is the class Anderson: pass an instance of"),
    (CALLED, "solver=ims.GradientDescent()", WRONG, "choose a solver for fixed_point"),
    (CALLED, "in_dims=0", WRONG, "in_dims is 0 and batch_dims is 0: pass batch_dims"),
    (CALLED, "batch_dims=-1", WRONG, "batch_dims is -1: pass the number of batch dimensions"),
    (CALLED, "batch_dims=3", WRONG, "which has fewer than batch_dims=3 dimensions"),
    (CALLED, "batch_dims=1, in_dims=(0, 0)", WRONG, "in_dims is (0, 0) for 1 args: pass a tuple"),
    (CALLED, "on_failure='ignore'", WRONG, 'on_failure is \'ignore\': use "raise", "warn" or'),
]
TABLE += [
    (["ims.UnrolledAdjoint({})"], value, error, f"UnrolledAdjoint has checkpoint={value}{fix}")
    for fix, error, *values in [
        (": pass a whole number >= 1", WRONG, "0", "-2"),
        (", of type", KIND, "1.5", "True"),
    ]
    for value in values
]
TABLE += [
    (["ims.retain_freed_memory({})"], limit, WRONG, "pass a number of bytes, from 1 to 2**31 - 1")
    for limit in ("0", "-1", "2**31")
]
FIT = ["ims.least_squares(f, z0, {})"]
TABLE += [
    (FIT, "loss='l1'", WRONG, 'loss is \'l1\': pass "linear", "soft_l1", "huber", "cauchy",'),
    (FIT, "loss=1.0", KIND, "loss is a float: pass"),
    (FIT, "loss=torch.nn.Softplus", KIND, "or a function rho(s) of the squares"),
    (FIT, "loss=lambda s: s.sum()", WRONG, "shape (2,): return rho(s), a tensor like s, one entry"),
    (FIT, "loss=lambda s: 1.0", WRONG, "loss returned a float for squares that are torch.float64"),
    (FIT, "loss='huber', f_scale=0", WRONG, "f_scale is 0: pass a number > 0"),
    (FIT, "loss='huber', f_scale=-1.0", WRONG, "f_scale is -1.0: pass a number > 0"),
    (FIT, "loss='huber', f_scale=math.nan", WRONG, "f_scale is nan: pass a number > 0"),
    (FIT, "loss='huber', f_scale='1'", KIND, "f_scale is a str: pass a number > 0, or a floating"),
    (FIT, "loss='huber', f_scale=torch.tensor(1)", KIND, "f_scale is torch.int64: pass a number"),
    (FIT, "loss='huber', f_scale=z0", WRONG, "or one for each problem of batch_dims"),
    (FIT, "loss='huber', f_scale=torch.ones(3), batch_dims=1", WRONG, "one for each problem (2,)"),
]
TABLE += [
    (["ims.multistart({})"], "1.0", KIND, "starts has a leaf of type float: every leaf must be a"),
    (["ims.multistart({})"], "()", WRONG, "starts is an empty pytree: pass at least one tensor"),
    (["ims.multistart({})"], "torch.ones(())", WRONG, "of shape (): the first dimension of all"),
    (["ims.multistart({})"], "z0[:0]", WRONG, "of shape (0,): the first dimension of all leaves"),
    (["ims.multistart({})"], "[z0, z0[:1]]", WRONG, "is the number of starts, at least one"),
    (["ims.fixed_point(g, many, {})"], "adjoint=steps", WRONG, "have no use: pass one start"),
    (["ims.attach(f, {})"], "many", WRONG, "z0 is multistart(...), of which a bracket, attach, a"),
    (["ims.root(f, {}, bracket=(0.0, 2.0))"], "many", WRONG, "have no use: pass one start"),
]
PATHS = ["ims.continuation(lambda z, t: z - t, {})"]
TABLE += [
    (PATHS, "1.0", KIND, "z0 has a leaf of type float: every leaf must be a tensor"),
    (PATHS, "torch.tensor(1j)", KIND, "z0 is torch.complex64: pass its real and imaginary parts"),
    (PATHS, "z0, z0", KIND, "args is a Tensor: pass a tuple, as args=(theta,)"),
    (PATHS, "z0, solver=ims.Newton()", WRONG, "was given to continuation: choose a solver for"),
    (PATHS, "z0, solver=ims.Continuation", KIND, "solver is the class Continuation: pass an"),
    (PATHS, "z0, adjoint=steps", WRONG, "Continuation: its steps cannot be differentiated through"),
    (PATHS, "many", KIND, "z0 has a leaf of type Starts: every leaf must be a tensor"),
    (FOUR, "solver=ims.Continuation()", WRONG, "Continuation() solves continuation and was given"),
    (["ims.continuation({}, z0)"], "3", KIND, "fn is a int: pass a function fn(z, *args)"),
    (["ims.continuation({}, z0)"], "lambda z, t: z[:1]", WRONG, "of shape (1,) where z0 has (2,)"),
    (["ims.Continuation({})"], "first_step=0", WRONG, "first_step=0: pass a number > 0"),
    (["ims.Continuation({})"], "max_length=-1", WRONG, "max_length=-1: pass a number > 0"),
    (["ims.Continuation({})"], "arclength='yes'", KIND, "of type str: pass True or False"),
]
SPARSE = [
    "ims.root(next, z0, jac_sparsity={})",
    "ims.fixed_point(next, z0, jac_sparsity={})",
    "ims.minimize(lambda z: next(z) @ z, z0, jac_sparsity={})",
]
TABLE += [
    (SPARSE, "stencil", WRONG, "jac_sparsity misses the entry (1, 0) of the Jacobian, which"),
    (SPARSE[2:], "stencil, bounds=(0, 1)", WRONG, "jac_sparsity is given with bounds, whose"),
    (SPARSE[2:], "stencil, prox=proximal", WRONG, "jac_sparsity is given with prox, whose"),
    (SPARSE, "True", KIND, "jac_sparsity is a bool: pass a SparsityPattern, a tensor (sparse, or"),
    (SPARSE, "torch.ones(2)", WRONG, "jac_sparsity has shape (2,): pass one matrix (m, n), which"),
    (SPARSE, "np.eye(3)", WRONG, "jac_sparsity has shape (3, 3) and z0 has 2 unknowns (real"),
    (
        SPARSE[:1],
        "torch.ones(2, 2), solver=ims.Newton(compile=True)",
        WRONG,
        "and Newton has compile=True: SciPy factors sparse Jacobians, which is not compiled; leave",
    ),
    (["ims.Newton(preconditioner={})"], "ims.ILU()", WRONG, "name an iterative one, as GMRES(), "),
    (["ims.Newton(None, preconditioner={})"], "z0", KIND, "pass Jacobi(), ILU() or a Sparse"),
]
BETWEEN = ["ims.minimize(energy, z0, {})", "ims.least_squares(f, z0, {})"]
BETWEEN += [f"ims.attach(energy, z0, equation=ims.{name}, {{}})" for name in ("minimize",)]
CROSSED = "bounds=(torch.tensor([0.0, 2.0]).double(), torch.tensor([1.0, 1.0]).double())"
UNKNOWN = "bounds=(torch.tensor([0.0, math.nan]).double(), None)"
TABLE += [
    (BETWEEN, "bounds=3.0", KIND, "bounds is a float: pass a pair (lo, hi), each a number, None"),
    (BETWEEN, "bounds=(0.0,)", KIND, "bounds is a tuple: pass a pair (lo, hi)"),
    (BETWEEN, "bounds=(1.0, 0.0)", WRONG, "bounds is (1.0, 0.0): the lower must be at most the"),
    (BETWEEN, "bounds=(math.nan, 0.0)", WRONG, "bounds is (nan, 0.0): pass numbers, or None"),
    (BETWEEN, "bounds=('0', None)", KIND, "bounds[0] has a str: pass numbers or tensors"),
    (BETWEEN, "bounds=(z0.float(), None)", KIND, "bounds[0] is torch.float32 on cpu where z0 is"),
    (BETWEEN, "bounds=(None, meta)", KIND, "float64 on meta where z0 is torch.float64 on cpu"),
    (BETWEEN, "bounds=(None, torch.ones(3).double())", WRONG, "bounds[1] has the shape (3,) where"),
    (BETWEEN, "bounds=([0.0, 0.0], None)", WRONG, "give it the same, or one number"),
    (BETWEEN[:2], CROSSED, ims.ConvergenceError, "INFEASIBLE: the bounds or constraints contra"),
    (BETWEEN[:2], UNKNOWN, ims.ConvergenceError, "NONFINITE after 0 steps"),
    (BETWEEN[:1], "bounds=(0.0, 2.0), solver=ims.NewtonCG()", WRONG, "choose a solver for minimize "
     "with bounds, or leave it out"),
    (BETWEEN[:1], "bounds=(0.0, 2.0), solver=ims.GradientDescent(line_search=ims.StrongWolfe())",
     WRONG, "is for lines, and bounds bend them: use Backtracking()"),
    (BETWEEN[:1], "solver=ims.ProjectedNewton()", WRONG, "solves minimize with bounds and was"),
    (BETWEEN[1:2], "bounds=(0.0, 2.0), solver=ims.Dogleg()", WRONG, "for least_squares with"),
    (BETWEEN[:1], "bounds=(0.0, 2.0), adjoint=ims.ImplicitAdjoint(ims.CG())", WRONG, "GMRES()"),
]  # fmt: skip
MOMENTUM = "ims.GradientDescent(0.1, momentum=0.5)"
SINGLE = [
    ("ims.minimize(energy, z0, equalities=1.0)", KIND, "equalities is a float: pass a function"),
    ("ims.minimize(energy, z0, inequalities=lambda z: 1.0)", KIND,
     "inequalities returned a float: return tensors"),
    ("ims.minimize(energy, z0, inequalities=lambda z: z.float())", KIND,
     "inequalities returned torch.float32 where z0 has torch.float64: convert z0"),
    ("ims.minimize(energy, z0, equalities=lambda z: z[:0])", WRONG,
     "equalities returned no number: return constraints, or leave equalities out"),
    ("ims.minimize(lambda z: (z**2).sum(-1), z0.expand(3, *z0.shape), batch_dims=1,\n"
     "             inequalities=lambda z: z.sum().reshape(1))", WRONG,
     "they must begin with the batch (3,)"),
    ("ims.minimize(energy, z0.to(torch.complex128), equalities=lambda z: z)", WRONG,
     "pass its real and imaginary parts"),
    ("ims.minimize(energy, z0, equalities=lambda z: z, solver=ims.LBFGS())", WRONG,
     "was given to minimize with constraints: choose a solver for minimize with constraints"),
    ("ims.minimize(energy, z0, solver=ims.FilterInteriorPoint())", WRONG,
     "solves minimize with constraints and was given to minimize"),
    ("ims.minimize(energy, z0, prox=lambda v, t: v, equalities=lambda z: z)", WRONG,
     "prox is given with constraints: leave one of them out"),
    ("ims.Solution.unjudged({})", WRONG, "value has no tensor: pass a tensor or a pytree"),
    ("ims.Solution.unjudged(torch.tensor([1, 2]))", KIND, "value has a tensor of torch.int64"),
    ("ims.attach_kkt(energy, z0, ((), ()))", WRONG, "use attach(..., equation=minimize)"),
    ("ims.attach_kkt(energy, z0, 1.0, equalities=lambda z: z)", KIND, "multipliers is a float"),
    ("ims.attach_kkt(energy, z0, (z0[:1].expand(9), ()), equalities=lambda z: z)", WRONG,
     "the multipliers of equalities have shapes (9,): pass tensors like what equalities returns"),
    ("ims.minimize(lambda z: z**2, z0)", WRONG, "an objective is one number for each problem"),
    ("ims.minimize(lambda z: (z**2).sum().float(), z0)", KIND, "torch.float64: convert z0"),
    ("ims.least_squares(lambda z: z[:1], z0, solver=ims.GaussNewton())", WRONG, "1 residuals for 2 "
     "unknowns: GaussNewton() needs at least as many residuals as unknowns; use"),
    ("ims.least_squares(lambda z: 1.0, z0)", KIND, "fn returned a float: return tensors of"),
    ("ims.root(lambda z: z, z0, has_aux=True)", WRONG, "return a pair (value, aux)"),
    ("torch.func.hessian(lambda x: one_step_layer(x).sum())(z0)", RuntimeError, "first order only"),
    ("ims.root(f, z0, adjoint=steps)", WRONG, "NewtonDogleg: its steps cannot be differentiated"),
    ("ims.fixed_point(g, z0, solver=ims.Anderson(), adjoint=steps)", WRONG, "through; use"),
    (f"ims.minimize(energy, z0, solver={MOMENTUM},\n             adjoint=ims.UnrolledAdjoint(2))",
     WRONG, "whose steps depend on earlier ones: leave checkpoint out"),
    ("torch.func.vmap(layer)(torch.ones(3, 2))", WRONG, "pass rtol=None to the solver, or use"),
    ("torch.func.vmap(masked)(torch.ones(3, 2))", WRONG, "use batch_dims and in_dims, or"),
    ("ims.custom_root(f)(lambda z: z.new_ones(3))(z0)", WRONG, "your solver returned a tensor of "
     "shape (3,) where z0 has (2,): return one entry for each"),
    ("ims.custom_root(f)(lambda z: 2 * z)(z0)", ims.ConvergenceError, "solve more accurately, or"),
    ("ims.attach(energy, 3 * z0, equation=ims.minimize)", ims.ConvergenceError, "solve more accur"),
    ("ims.attach(energy, z0, equation=ims.linear_solve)", WRONG, "pass root, fixed_point, minim"),
    ("ims.attach(f, ims.root(f, z0), rtol=1e-3)", WRONG, "which was judged: pass its value"),
    ("ims.attach(energy, ims.minimize(energy, z0, bounds=(0.0, 2.0)), equation=ims.minimize)",
     WRONG, "the Solution has bounds, constraints or a prox, and bounds is None: pass bounds"),
    ("ims.custom_root(f, vmap_method='parallel')", WRONG, "use \"loop\" or \"batched\""),
    ("inner = torch.func.grad(lambda u: (u**2).sum() / 2)\n"
     "torch.func.grad(lambda x: ims.root(lambda z: z - inner(x), z0).value.sum())(z0)",
     RuntimeError, "where it cannot be told apart: pass it in args"),
    ("ims.gradient_error(ims.root(f, z0), f, equation=ims.linear_solve)", WRONG, "pass root,"),
    ("ims.minimize(lambda z: (z.abs() ** 2).sum(), z0 + 0j, bounds=(0.0, 1.0))", WRONG, "no order"),
    ("ims.attach(f, z0, bounds=(0.0, 2.0))", WRONG, "bounds is given with equation=root: leave it"),
    ("ims.gradient_error(ims.minimize(energy, z0, bounds=(0.0, 2.0)), energy, "
     "equation=ims.minimize)", WRONG, "lies between bounds, and bounds is None: pass them"),
    ("ims.nn.FixedPoint(g, batch_dims=1)(z0, torch.tensor(0.5))", WRONG, "args[1] has the batch, "
     "and its shape is () where z0 has the batch (2,): put None for it"),
    ("torch.func.vmap(lambda z: ims.jacobian_sparsity(f, z))(z0)", WRONG, "call it before"),
    ("ims.jacobian_sparsity(f, z0, equation=ims.linear_solve)", WRONG, "pass root, fixed_point,"),
    ("ims.jacobian_sparsity(lambda z: z * z.sum(), torch.ones(3000))", WRONG, "is not sparse, more "
     "than 1300000 entries were found: leave jac_sparsity out"),
    ("scripted = torch.jit.script(torch.nn.Linear(2, 2).half())\n"
     "ims.fixed_point(lambda z: scripted(z) / 9, z0.half())", KIND, "a scripted module in the "
     "function is given tensors of torch.float32, in which unknowns of half precision are solved"),
    ("ims.root(lambda z: z.half() - 1, z0.float())", KIND, "fn returned torch.float16 where z0"),
    ("ims.in_full_precision('y')(f)", WRONG, "has no argument y: it has ['z', 'args'], name"),
    ("product(1.0, 2.0)", KIND, "product: at least one argument must be a tensor"),
    ("product(torch.ones(()), torch.tensor(3))", KIND, "int64; pass a real floating dtype"),
    ("product(torch.tensor(1j), torch.tensor(3.0))", KIND, "64; pass a real floating dtype"),
    ("product([1.0], torch.ones(1))", KIND, "product: argument 0 is a list; pass a tensor"),
    ("torch.func.grad(short)(torch.ones(()), torch.ones(()))", WRONG, "1 entries for 2 arguments"),
]  # fmt: skip
ROWS = [
    Refusal(call.format(*(gap if isinstance(gap, tuple) else (gap,))), error, words)
    for calls, gap, error, words in TABLE
    for call in calls
]
ROWS += [Refusal(*row) for row in SINGLE]
