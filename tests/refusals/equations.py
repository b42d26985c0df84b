"""What equations, adjoints and layers refuse."""

import implicit_solvers as ims
from tests.refusals.row import Refusal

SETUP = """
f = lambda z, *args: z - 1
g = lambda z, *args: 0.5 * z + 0.5
energy = lambda z, *args: ((z - 1) ** 2).sum()
by_hand = lambda z, *args: torch.ones_like(z)
z0 = torch.ones(2, dtype=torch.float64)
meta = z0.to("meta")
x = z0.clone().requires_grad_()
budget = ims.FixedPointIteration(max_steps=3, rtol=None)
one_step = lambda x: ims.fixed_point(
    lambda z, x: torch.cos(z + x) / 2, z0, (x,), adjoint=ims.OneStepAdjoint()
).value
unrolled = lambda x, solver, **options: ims.fixed_point(
    g, z0, (x,), solver=solver, adjoint=ims.UnrolledAdjoint(), **options
).value
product = ims.elementwise_function(torch.mul, lambda v, x, y: [y, x], name="product")
short = ims.elementwise_function(torch.mul, lambda v, x, y: [y], name="short")
"""


def table(starts, rows):
    """Return the rows for every call, of which each row fills the gap."""
    return [
        Refusal(call.format(gap), error, words) for gap, error, words in rows for call in starts
    ]


FOUR = [
    "ims.root(f, z0, {})",
    "ims.fixed_point(g, z0, {})",
    "ims.minimize(energy, z0, {})",
    "ims.least_squares(f, z0, {})",
]
OPTIONS = [*FOUR, "ims.attach(f, z0, {})"]
STARTS = [call.replace("z0, ", "") for call in OPTIONS] + ["ims.custom_root(f)(by_hand)({})"]
FUNCTIONS = [
    "ims.root({}, z0)",
    "ims.fixed_point({}, z0)",
    "ims.attach({}, z0)",
    "ims.custom_root({})(by_hand)(z0)",
]

ROWS = [
    *table(
        STARTS,
        [
            ("torch.ones(2, dtype=torch.int64)", TypeError, "z0 has dtype torch.int64: an unknown "
             "must be floating; pass z0.to(torch.float64)"),
            ("1.0", TypeError, "z0 has a leaf of type float: every leaf must be a tensor"),
            ("[1.0, 2.0]", TypeError, "z0 has a leaf of type float: every leaf must be a tensor"),
            ("{}", ValueError, "z0 is an empty pytree: pass at least one tensor"),
            ("[z0, z0.float()]", ValueError, "z0 mixes torch.float64 on cpu with torch.float32 on "
             "cpu: give all leaves one dtype and one device"),
            ("[z0, meta]", ValueError, "z0 mixes torch.float64 on cpu with torch.float64 on meta"),
        ],
    ),
    *table(
        [*FUNCTIONS, "ims.minimize({}, z0)", "ims.least_squares({}, z0)"],
        [("3", TypeError, "fn is a int: pass a function fn(z, *args)")],
    ),
    *table(
        FUNCTIONS,
        [
            ("lambda z: z[:1]", ValueError, "fn returned a tensor of shape (1,) where z0 has (2,): "
             "return one entry for each unknown"),
            ("lambda z: (z, z)", ValueError, "return one tensor for each leaf of z0, in the same "
             "containers"),
            ("lambda z: z.float()", TypeError, "fn returned torch.float32 where z0 has "
             "torch.float64: convert z0 or the tensors that the function uses"),
            ("lambda z: 1.0", TypeError, "fn returned a float: return a tensor"),
        ],
    ),
    Refusal("ims.minimize(lambda z: z**2, z0)", ValueError,
            "fn returned (2,): an objective is one number for each lane, a tensor of shape ()"),
    Refusal("ims.minimize(lambda z: (z**2).sum().float(), z0)", TypeError,
            "fn returned torch.float32 where z0 has torch.float64: convert z0"),
    Refusal("ims.least_squares(lambda z: z[:1], z0, solver=ims.GaussNewton())", ValueError,
            "fn returned 1 residuals for 2 unknowns: GaussNewton() needs at least as many "
            "residuals as unknowns; use LevenbergMarquardt()"),
    Refusal("ims.least_squares(lambda z: 1.0, z0)", TypeError,
            "fn returned a float: return tensors of residuals"),
    Refusal("ims.root(lambda z: z, z0, has_aux=True)", ValueError,
            "fn returned a Tensor with has_aux=True: return a pair (value, aux)"),
    *table(
        OPTIONS,
        [
            ("args=z0", TypeError, "args is a Tensor: pass a tuple, as args=(theta,)"),
            ("on_failure='ignore'", ValueError, "on_failure is 'ignore': use \"raise\""),
            ("batch_dims=-1", ValueError, "batch_dims is -1: pass the number of lane dimensions"),
            ("batch_dims=2", ValueError, "z0 has a leaf of shape (2,), which has fewer than "
             "batch_dims=2 dimensions"),
            ("args=(z0,), in_dims=(0,)", ValueError, "in_dims is (0,) and batch_dims is 0: pass "
             "batch_dims, the number of lane dimensions of z0, too"),
            ("args=(z0,), batch_dims=1, in_dims=(0, None)", ValueError, "in_dims is (0, None) for "
             "1 args: pass a tuple with 0 or None for each"),
            ("args=(z0,), batch_dims=1, in_dims=(1,)", ValueError, "in_dims has 1 for args[0]: "
             "lanes come first, use 0 or None"),
            ("args=(torch.ones(3),), batch_dims=1, in_dims=(0,)", ValueError, "in_dims says that "
             "args[0] carries lanes, and its shape is (3,) where z0 has lanes (2,): put None"),
            ("args=(z0,), batch_dims=1, in_dims=([0, 0],)", ValueError, "for args[0], which has *: "
             "use 0 or None for all of it, or the same structure"),
        ],
    ),
    *table(
        FOUR,
        [
            ("solver=ims.Newton", TypeError, "solver is the class Newton: pass an instance"),
            ("solver=ims.CG()", ValueError, "solver=CG() solves linear systems and was given to"),
        ],
    ),
    *table(
        FOUR[:2],
        [
            (f"adjoint=ims.ImplicitAdjoint(ims.{solver}())", ValueError, "not known to be "
             "symmetric: use LU() or GMRES(), or state the problem as minimize")
            for solver in ("CG", "Cholesky")
        ],
    ),
    *table(
        FOUR,
        [("adjoint=ims.ImplicitAdjoint(ims.Diagonal())", ValueError,
          "adjoint has linear_solver=Diagonal(), and the Jacobian of an equation is not known to "
          "be diagonal: use LU() or GMRES()")],
    ),
    *table(
        [FOUR[0], *FOUR[2:]],
        [("adjoint=ims.OneStepAdjoint()", ValueError, "adjoint=OneStepAdjoint() is for fixed "
          "points")],
    ),
    Refusal("torch.func.hessian(lambda x: one_step(x).sum())(z0)", RuntimeError,
            "of first order only"),
    *table(
        ["ims.UnrolledAdjoint(checkpoint={})"],
        [(value, error, f"UnrolledAdjoint has checkpoint={value}")
         for value, error in [("0", ValueError), ("-2", ValueError), ("1.5", TypeError),
                              ("True", TypeError)]],
    ),
    *(
        Refusal(f"{call}, adjoint=ims.UnrolledAdjoint())", ValueError, f"with solver={solver}: its "
                "steps cannot be differentiated through; use FixedPointIteration()")
        for call, solver in [("ims.root(f, z0", "Dogleg"),
                             ("ims.fixed_point(g, z0, solver=ims.Anderson()", "Anderson")]
    ),
    Refusal("ims.minimize(energy, z0, solver=ims.GradientDescent(0.1, momentum=0.5),\n"
            "             adjoint=ims.UnrolledAdjoint(2))", ValueError,
            "whose steps depend on earlier ones: leave checkpoint out"),
    Refusal("torch.func.vmap(lambda x: unrolled(x, ims.FixedPointIteration()))(torch.ones(3, 2))",
            ValueError, "pass rtol=None to the solver, or use batch_dims"),
    Refusal("torch.func.vmap(lambda x: unrolled(x, budget, on_failure='mask'))(torch.ones(3, 2))",
            ValueError, "use batch_dims and in_dims, or ImplicitAdjoint()"),
    Refusal("ims.custom_root(f)(lambda z: torch.ones(3, dtype=z.dtype))(z0)", ValueError,
            "your solver returned a tensor of shape (3,) where z0 has (2,)"),
    Refusal("ims.custom_root(f)(lambda z: 2 * z)(z0)", ims.ConvergenceError,
            "REJECTED: the point given, or returned by your solver, does not solve the equation"),
    Refusal("ims.custom_root(f, vmap_method='parallel')", ValueError,
            "vmap_method is 'parallel': use \"loop\" or \"batched\""),
    Refusal("ims.root(lambda z: z - torch.func.grad(lambda u: (u**2).sum() / 2)(x), z0)",
            RuntimeError, "where it cannot be told apart: pass it in args instead"),
    Refusal("ims.gradient_error(ims.root(f, z0), f, equation=ims.linear_solve)", ValueError,
            "equation is linear_solve: pass root, fixed_point, minimize or least_squares"),
    *table(
        [f"ims.nn.{kind}({{}})" for kind in ("FixedPoint", "Root", "Minimize")],
        [
            ("3", TypeError, "cell is a int: pass a function or a module cell(z, x, *more)"),
            ("None", TypeError, "cell is a NoneType: pass a function or a module"),
            ("torch.nn.Linear", TypeError, "cell is the class Linear: pass an instance of it"),
            ("g, init=z0", TypeError, "init is a Tensor: pass a function of the input that returns "
             "the start, as torch.zeros_like"),
            ("g, init=None", TypeError, "init is a NoneType: pass a function of the input"),
        ],
    ),
    *table(
        ["ims.nn.FixedPoint(lambda z, x: 0.5 * x, {})(z0)"],
        [
            ("init=lambda x: None", TypeError, "init(x) has a leaf of type NoneType: every leaf "
             "must be a tensor"),
            ("init=lambda x: 0.0", TypeError, "init(x) has a leaf of type float"),
            ("init=lambda x: {}", ValueError, "init(x) is an empty pytree: pass at least one"),
            ("init=lambda x: x.long()", TypeError, "init(x) has dtype torch.int64: an unknown must "
             "be floating; pass init(x).to(torch.float64)"),
            ("init=lambda x: (x, x.float())", ValueError, "init(x) mixes torch.float64 on cpu with "
             "torch.float32 on cpu: give all leaves one dtype"),
            ("init=lambda x: x[:1]", ValueError, "shape (2,) where z0 has (1,): return one entry"),
            ("init=lambda x: x[0]", ValueError, "shape (2,) where z0 has (): return one entry"),
            ("solver=ims.Anderson", TypeError, "solver is the class Anderson: pass an instance of "
             "a solver for fixed_point"),
            ("solver=ims.GradientDescent()", ValueError, "choose a solver for fixed_point"),
            ("in_dims=0", ValueError, "in_dims is 0 and batch_dims is 0: pass batch_dims"),
            ("batch_dims=-1", ValueError, "batch_dims is -1: pass the number of lane dimensions"),
            ("batch_dims=3", ValueError, "which has fewer than batch_dims=3 dimensions"),
            ("batch_dims=1, in_dims=(0, 0)", ValueError, "in_dims is (0, 0) for 1 args: pass a "
             "tuple with 0 or None for each"),
            ("on_failure='ignore'", ValueError, "on_failure is 'ignore': use \"raise\""),
        ],
    ),
    Refusal("ims.nn.FixedPoint(g, batch_dims=1)(z0, torch.tensor(0.5))", ValueError,
            "in_dims says that args[1] carries lanes, and its shape is ()"),
    Refusal("product(1.0, 2.0)", TypeError, "product: at least one argument must be a tensor"),
    Refusal("product(torch.ones(()), torch.tensor(3))", TypeError,
            "product: argument 1 has dtype torch.int64; pass a real floating dtype"),
    Refusal("product(torch.tensor(1j), torch.tensor(3.0))", TypeError,
            "product: argument 0 has dtype torch.complex64; pass a real floating dtype"),
    Refusal("product([1.0], torch.ones(1))", TypeError,
            "product: argument 0 is a list; pass a tensor"),
    Refusal("torch.func.grad(short)(torch.ones(()), torch.ones(()))", ValueError,
            "short: partials returned 1 entries for 2 arguments"),
    *(
        Refusal(f"ims.retain_freed_memory({limit})", ValueError,
                "pass a number of bytes, from 1 to 2**31 - 1")
        for limit in ("0", "-1", "2**31")
    ),
]  # fmt: skip
