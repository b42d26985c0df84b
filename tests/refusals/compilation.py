"""What compilation refuses."""

from torch._dynamo.exc import (
    FailOnRecompileLimitHit,
    UncapturedHigherOrderOpError,
    Unsupported,
    UserError,
)

from tests.refusals.row import Refusal

SETUP = """
import pytest
from torch.export import export

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
    pytest.skip("needs torch 2.13 or later")
torch._dynamo.reset()

A = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
x = torch.tensor([0.3, -0.2], dtype=torch.float64)
cubic = lambda z, x: z**3 + z - x
half = lambda z, x: 0.5 * torch.tanh(z) + x
compiled = lambda fn: torch.compile(fn, fullgraph=True, backend="eager")

def root(x, **options):
    options = {"solver": ims.Newton(), "on_failure": "mask", **options}
    return ims.root(cubic, torch.zeros_like(x), (x,), **options).value

def once(x):
    with torch._dynamo.config.patch(recompile_limit=1):
        return at_most_once(x)
at_most_once = compiled(root)

def branching(x):
    fn = lambda z, x: z - x if float(z.sum()) > 1 else z - 2 * x
    options = {"solver": ims.Newton(), "on_failure": "mask"}
    return ims.root(fn, torch.zeros_like(x), (x,), **options).value

# a graph is easier to make with solvers that are made outside of it
sgd, structured = ims.TorchOptimizer(torch.optim.SGD, lr=0.1), ims.Structured()
ilu, mixed = ims.ILU(), ims.GMRES(inner_dtype=torch.float32)
adjoint, newton = ims.ImplicitAdjoint(structured), ims.Newton(linear_solver=structured)
steffensen, bisection, chandrupatla = ims.Steffensen(), ims.Bisection(), ims.Chandrupatla()

def minimum(x):
    norm = lambda z, x: (z - x).square().sum()
    return ims.minimize(norm, torch.zeros_like(x), (x,), solver=sgd, on_failure="mask").value

def system(x, **options):
    options = {"on_failure": "mask", **options}
    return ims.linear_solve(ims.MatrixOperator(A), x, **options).value

def one_residual(x):
    fn = lambda z, x: z.sum(-1, keepdim=True) - x[:1]
    options = {"solver": ims.GaussNewton(), "on_failure": "mask"}
    return ims.least_squares(fn, x.new_zeros(2), (x,), **options).value

class Branching(ims.FixedPointIteration):
    "It decides by values, and says so."
    traceable = False

def fixed(x, solver):
    return ims.fixed_point(half, torch.zeros_like(x), (x,), solver=solver, on_failure="mask").value

class Exported(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.weight, self.layer = torch.nn.Parameter(A.clone()), layer

    def forward(self, x):
        return self.layer(x, self.weight)

def equilibrium(solver):
    def layer(x, w):
        fn = lambda z, x: 0.2 * torch.tanh(w @ z) + x
        options = {"solver": solver, "on_failure": "mask"}
        return ims.fixed_point(fn, torch.zeros_like(x), (x,), **options).value

    return Exported(layer)

def exported_system(solver):
    def layer(x, w):
        operator = ims.MatrixOperator(w @ w.T, positive_definite=True)
        return ims.linear_solve(operator, x, solver=solver, on_failure="mask").value

    return Exported(layer)
"""
TRACED = [
    ("lambda x: root(x, on_failure='raise')", 'needs on_failure="mask", and it is "raise"'),
    ("minimum", "cannot use TorchOptimizer(), which is not traceable: use Newton()"),
    ("lambda x: root(x, solver=newton)", "cannot use Structured()"),
    ("lambda x: root(x, solver=ims.Newton(linear_solver=ims.Structured()))",
     "cannot use Structured()"),
    ("lambda x: root(x, adjoint=adjoint)",
     "the adjoint in a compiled graph cannot use Structured()"),
    ("lambda x: root(x, jac_sparsity=torch.eye(2))", "cannot use jac_sparsity, as SciPy factors"),
    ("lambda x: system(x, solver=ims.GMRES(), preconditioner=ilu)", "cannot use ILU(), which is"),
    ("lambda x: system(x, on_failure='warn')", 'needs on_failure="mask", and it is "warn"'),
    ("lambda x: system(x, solver=structured)", "cannot use Structured()"),
    ("lambda x: system(x, solver=ims.Structured())", "cannot use Structured()"),
    ("lambda x: system(x, check=True)", "cannot check=True"),
    ("lambda x: system(x, solver=mixed)", "cannot use GMRES(), which is not traceable"),
    ("lambda x: system(torch.stack([x, x], 1))", "make a batch of them"),
    ("torch.func.vmap(root)", "use batch_dims"),
    ("one_residual", "GaussNewton() needs at least as many residuals"),
    ("lambda x: fixed(x, Branching())", "Branching"),
    ("lambda x: root(x, solver=steffensen)", "is for one unknown"),
    ("lambda x: root(x, solver=bisection)", "2 unknowns"),
    ("lambda x: root(x, solver=chandrupatla)", "2 unknowns"),
]  # fmt: skip
EXPORTED = [
    ("equilibrium(ims.Newton())", "cannot trace derivatives", "cannot trace derivatives"),
    ("equilibrium(ims.Anderson())", "torch.no_grad", "torch.no_grad"),
    ("exported_system(ims.CG())", "cannot keep the adjoint", "strict=True"),
    ("exported_system(ims.SVD())", "cannot keep the adjoint", "cannot keep the adjoint"),
]
ROWS = [
    *(Refusal(f"compiled({fn})(x)", (Unsupported, UncapturedHigherOrderOpError), words)
      for fn, words in TRACED),
    *(Refusal(f"export({model}, (x,), strict={strict})", Exception, words)
      for model, *both in EXPORTED
      for strict, words in zip((True, False), both, strict=True)),
    Refusal("compiled(branching)(x)", UserError, "data-dependent expression"),
    Refusal("[once(x.new_ones(k, 2)) for k in (2, 3)]", FailOnRecompileLimitHit, "fullgraph=True"),
    # with breaks, the solve runs as ever
    Refusal("torch.compile(lambda x: root(x, solver=bisection), backend='eager')(x)", ValueError,
            "z0 has 2 unknowns, and solver=Bisection() is for one"),
    Refusal("ims.GMRES(compile=True, inner_dtype=torch.float32)", ValueError,
            "compile=True and inner_dtype=torch.float32: leave one"),
    Refusal("ims.Newton(check_every=0)", ValueError, "check_every"),
    Refusal("ims.Newton(check_every=1.5)", TypeError, "check_every"),
]  # fmt: skip
