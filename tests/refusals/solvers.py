"""What solvers refuse: equations that they do not solve, and hyperparameters without sense."""

from implicit_solvers import ConvergenceError
from tests.refusals.row import Refusal

SETUP = """
from torch.optim import Optimizer

f = lambda z: z - 1
x = torch.zeros(())
fit = lambda z, y: torch.stack([z.sum(), z.sum(), z.sum()]) - y
two, y = torch.zeros(2), torch.ones(3)
descent = ims.GradientDescent(rtol=None, max_steps=3)

def elementwise(rule):
    class Mine(Optimizer):
        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr})
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(group["lr"] * rule(p.grad, self.state[p]))
    return Mine

Normalized = elementwise(lambda g, state: g / g.norm())
Centered = elementwise(lambda g, state: g + g.mean(-1, keepdim=True))
RowState = elementwise(lambda g, state: state.update(rows=g.sum(-1)) or g)
Adam, SGD = torch.optim.Adam, torch.optim.SGD
"""

WEIGHT_DECAY, LEFT_OUT = "weight_decay=0", "leave it out"
ROWS = [
    # brackets
    Refusal("ims.root(f, x, bracket=1.0)", TypeError, "bracket is 1.0: pass a pair"),
    Refusal("ims.root(f, None, bracket=(0.0, 1.0))", TypeError, "bracket[0] is no tensor"),
    Refusal("ims.root(f, x, bracket=(torch.tensor(0), 1))", TypeError, "bracket[0] is torch.int64"),
    Refusal("ims.root(f, x, bracket=(torch.zeros(1).double(), 1))", TypeError, "convert it"),
    Refusal("ims.root(f, x, bracket=(torch.zeros(3), 1.0))", ValueError, "shape (3,) where z0"),
    Refusal("ims.root(f, x, bracket=([0.0], 1.0))", ValueError, "bracket[0] has the structure"),
    Refusal(
        "ims.root(f, x, bracket=(0.0, 9.0), solver=ims.Newton())",
        ValueError, "choose Chandrupatla()",
    ),
    Refusal(
        "ims.root(f, two, bracket=(0.0, 9.0))",
        ValueError, "lanes of them, with batch_dims or vmap",
    ),
    Refusal("ims.root(f, torch.tensor(1), bracket=(0, 1))", TypeError, "z0 has dtype torch.int64"),
    Refusal(
        "ims.root(lambda z: z**2 + 1, x, bracket=(-1.0, 1.0))",
        ConvergenceError, "pass bracket=(lo, hi)",
    ),
    # one unknown
    Refusal(
        "ims.root(f, two, solver=ims.Steffensen())",
        ValueError, "each element a lane by torch.func.vmap or batch_dims",
    ),
    # hyperparameters
    *(
        Refusal(f"ims.Newton(reuse={value})", ValueError, "pass a number in [0, 1), or use Chord()")
        for value in ("-0.1", "1.0", "2.0", "math.nan")
    ),
    Refusal("ims.Dogleg(reuse=-1)", ValueError, "reuse=-1: pass a whole number >= 0"),
    Refusal("ims.Broyden(growth=0.5)", ValueError, "growth=0.5: pass a number >= 1"),
    Refusal("ims.LBFGS(memory=0)", ValueError, "GradientDescent(line_search=StrongWolfe())"),
    Refusal("ims.StrongWolfe(decrease=0.3, curvature=0.2)", ValueError, "pass a number > 0.3"),
    Refusal("ims.Backtracking(max_steps=0)", ValueError, "max_steps=0: pass a whole number >= 1"),
    Refusal("ims.StrongWolfe(max_steps=0)", ValueError, "max_steps=0: pass a whole number >= 1"),
    Refusal(
        "ims.GradientDescent(momentum=0.5, line_search=ims.Backtracking())",
        ValueError, "momentum=0.5 and a line_search",
    ),
    # their linear solvers
    Refusal("ims.Dogleg(linear_solver=ims.LU())", TypeError, "CG(), or leave it out"),
    Refusal("ims.LevenbergMarquardt(linear_solver=ims.LU())", TypeError, "CG(), or leave it out"),
    Refusal("ims.GaussNewton(linear_solver=ims.LU())", TypeError, "CG(), or leave it out"),
    Refusal("ims.Chord(linear_solver=ims.GMRES())", TypeError, "pass LU()"),
    Refusal("ims.Broyden(linear_solver=ims.CG())", TypeError, "pass LU()"),
    Refusal(
        "ims.root(f, two, solver=ims.Newton(reuse=0.5, linear_solver=ims.GMRES()))",
        ValueError, "pass linear_solver=LU()",
    ),
    Refusal(
        "ims.root(f, torch.zeros(600), solver=ims.Newton(reuse=0.5))",
        ValueError, "solves for 600 unknowns",
    ),
    # fits
    Refusal(
        "ims.least_squares(lambda z: z.sum(), two, solver=ims.GaussNewton())",
        ValueError, "LevenbergMarquardt",
    ),
    Refusal(
        "ims.least_squares(lambda z: z.sum(), two, "
        "solver=ims.GaussNewton(linear_solver=ims.CG()))",
        ValueError, "1 residuals for 2 unknowns",
    ),
    Refusal(
        "ims.least_squares(fit, two, (y,), gauss_newton=True, solver=descent, "
        "adjoint=ims.UnrolledAdjoint())",
        ValueError, "gauss_newton=True with adjoint=UnrolledAdjoint",
    ),
    Refusal(
        "ims.least_squares(fit, two, (y,), gauss_newton='yes')", TypeError, "gauss_newton is a str"
    ),
    # steps that cannot be unrolled
    Refusal(
        "ims.minimize(torch.cos, x, adjoint=ims.UnrolledAdjoint(), solver=ims.GradientDescent("
        "line_search=ims.Backtracking(), rtol=None, max_steps=3))",
        ValueError, "GradientDescent() without a line search, or ImplicitAdjoint()",
    ),
    Refusal(
        "ims.minimize(torch.cos, x, adjoint=ims.UnrolledAdjoint(), "
        "solver=ims.TorchOptimizer(SGD, lr=0.1, rtol=None, max_steps=3))",
        ValueError, "TorchOptimizer",
    ),
    # optimizers of torch
    Refusal("ims.TorchOptimizer(torch.optim.LBFGS)", ValueError, "steps from dense gradients"),
    Refusal("ims.TorchOptimizer(torch.optim.SparseAdam)", ValueError, "dense gradients"),
    *(
        Refusal(f"ims.TorchOptimizer({kind})", ValueError, "not elementwise")
        for kind in ("torch.optim.Adafactor", "Normalized", "Centered", "RowState")
    ),
    Refusal(
        "ims.TorchOptimizer(SGD, lr=0.1, maximize=True)",
        ValueError, "leave out maximize=True",
    ),
    Refusal("ims.TorchOptimizer(Adam, maximize=True)", ValueError, "against the gradient"),
    Refusal("ims.TorchOptimizer(SGD, lr=0.0)", ValueError, "positive lr"),
    Refusal("ims.TorchOptimizer(torch.optim.AdamW)", ValueError, WEIGHT_DECAY),
    Refusal("ims.TorchOptimizer(Adam, weight_decay=0.1)", ValueError, WEIGHT_DECAY),
    Refusal("ims.TorchOptimizer(SGD, weight_decay=0.1)", ValueError, WEIGHT_DECAY),
    Refusal("ims.TorchOptimizer(torch.optim.ASGD)", ValueError, "lambd=0"),
    *(
        Refusal(f"ims.TorchOptimizer(Adam, {option}=True)", ValueError, LEFT_OUT)
        for option in ("foreach", "fused", "capturable", "differentiable")
    ),
    Refusal("ims.TorchOptimizer(Adam, lr=-1.0)", ValueError, "Invalid learning rate"),
    Refusal("ims.TorchOptimizer(Adam, lr=torch.tensor(0.1))", TypeError, "lr=0.1"),
    Refusal("ims.TorchOptimizer(Adam, betas={})", TypeError, "betas of the type dict"),
    Refusal("ims.TorchOptimizer(Adam, speed=1.0)", TypeError, "speed"),
    *(
        Refusal(f"ims.TorchOptimizer({wrong})", TypeError, "subclass of torch.optim.Optimizer")
        for wrong in ("Adam([torch.zeros(1)])", "torch.nn.Linear", "'adam'", "None")
    ),
]  # fmt: skip
