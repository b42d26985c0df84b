"""What solvers refuse: equations that they do not solve, and hyperparameters without sense."""

import implicit_solvers as ims
from tests.refusals.row import alike

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
KIND, WRONG, FAILED = TypeError, ValueError, ims.ConvergenceError
# fmt: off
# an exception, words, and calls
TABLE = [
    (KIND, "bracket is 1.0: pass a pair", "ims.root(f, x, bracket=1.0)"),
    (KIND, "bracket[0] is no tensor", "ims.root(f, None, bracket=(0.0, 1.0))"),
    (KIND, "bracket[0] is torch.int64", "ims.root(f, x, bracket=(torch.tensor(0), 1))"),
    (KIND, "convert it", "ims.root(f, x, bracket=(torch.zeros(1).double(), 1))"),
    (WRONG, "shape (3,) where z0", "ims.root(f, x, bracket=(torch.zeros(3), 1.0))"),
    (WRONG, "bracket[0] has the structure", "ims.root(f, x, bracket=([0.0], 1.0))"),
    (WRONG, "choose Chandrupatla()", "ims.root(f, x, bracket=(0.0, 9.0), solver=ims.Newton())"),
    (WRONG, "a batch of them, with batch_dims or vmap", "ims.root(f, two, bracket=(0.0, 9.0))"),
    (KIND, "z0 has dtype torch.int64", "ims.root(f, torch.tensor(1), bracket=(0, 1))"),
    (FAILED, "pass bracket=(lo, hi)", "ims.root(lambda z: z**2 + 1, x, bracket=(-1.0, 1.0))"),
    (WRONG, "each element a problem by torch.func.vmap or batch_dims",
     "ims.root(f, two, solver=ims.Steffensen())"),
    (WRONG, "pass a number in [0, 1), or use Chord()",
     "ims.Newton(reuse=-0.1)", "ims.Newton(reuse=1.0)", "ims.Newton(reuse=2.0)",
     "ims.Newton(reuse=math.nan)"),
    (WRONG, "Newton has f_atol=-1.0: pass a number >= 0", "ims.Newton(f_atol=-1.0)"),
    (KIND, "f_atol='1', of type str: pass a number >= 0", "ims.Newton(f_atol='1')"),
    (WRONG, "growth=0.5: pass a number >= 1", "ims.Broyden(growth=0.5)"),
    (WRONG, "GradientDescent(line_search=StrongWolfe())", "ims.LBFGS(memory=0)"),
    (WRONG, "GradientDescent(line_search=Backtracking())", "ims.LBFGSB(memory=0)"),
    (WRONG, "pass a number > 0.3", "ims.StrongWolfe(decrease=0.3, curvature=0.2)"),
    (WRONG, "first_radius=0.0: pass a number > 0", "ims.TrustRegion(first_radius=0.0)"),
    (WRONG, "max_products=0: pass a whole number >= 1", "ims.TrustRegion(max_products=0)"),
    (WRONG, "max_steps=0: pass a whole number >= 1",
     "ims.Backtracking(max_steps=0)", "ims.StrongWolfe(max_steps=0)"),
    (WRONG, "momentum=0.5 and a line_search",
     "ims.GradientDescent(momentum=0.5, line_search=ims.Backtracking())"),
    (KIND, "pass an instance of an iterative linear solver, as CG() (",
     "ims.Dogleg(linear_solver=ims.LU())", "ims.LevenbergMarquardt(linear_solver=ims.LU())",
     "ims.GaussNewton(linear_solver=ims.LU())"),
    (KIND, "pass an instance of a direct linear solver, as LU() (",
     "ims.Chord(linear_solver=ims.GMRES())", "ims.Broyden(linear_solver=ims.CG())"),
    (WRONG, "pass linear_solver=LU()",
     "ims.root(f, two, solver=ims.Newton(reuse=0.5, linear_solver=ims.GMRES()))"),
    (WRONG, "solves for 600 unknowns",
     "ims.root(f, torch.zeros(600), solver=ims.Newton(reuse=0.5))"),
    (WRONG, "LevenbergMarquardt",
     "ims.least_squares(lambda z: z.sum(), two, solver=ims.GaussNewton())"),
    (WRONG, "1 residuals for 2 unknowns",
     "ims.least_squares(lambda z: z.sum(), two, solver=ims.GaussNewton(linear_solver=ims.CG()))"),
    (WRONG, "gauss_newton=True with adjoint=UnrolledAdjoint",
     "ims.least_squares(fit, two, (y,), gauss_newton=True, solver=descent, "
     "adjoint=ims.UnrolledAdjoint())"),
    (KIND, "gauss_newton is a str", "ims.least_squares(fit, two, (y,), gauss_newton='yes')"),
    (WRONG, "GradientDescent() without a line search, or ImplicitAdjoint()",
     "ims.minimize(torch.cos, x, adjoint=ims.UnrolledAdjoint(), "
     "solver=ims.GradientDescent(line_search=ims.Backtracking(), rtol=None, max_steps=3))"),
    (WRONG, "TorchOptimizer",
     "ims.minimize(torch.cos, x, adjoint=ims.UnrolledAdjoint(), solver=ims.TorchOptimizer(SGD, "
     "lr=0.1, rtol=None, max_steps=3))"),
    (WRONG, "steps from dense gradients", "ims.TorchOptimizer(torch.optim.LBFGS)"),
    (WRONG, "dense gradients", "ims.TorchOptimizer(torch.optim.SparseAdam)"),
    (WRONG, "not elementwise",
     "ims.TorchOptimizer(torch.optim.Adafactor)", "ims.TorchOptimizer(Normalized)",
     "ims.TorchOptimizer(Centered)", "ims.TorchOptimizer(RowState)"),
    (WRONG, "leave out maximize=True", "ims.TorchOptimizer(SGD, lr=0.1, maximize=True)"),
    (WRONG, "against the gradient", "ims.TorchOptimizer(Adam, maximize=True)"),
    (WRONG, "positive lr", "ims.TorchOptimizer(SGD, lr=0.0)"),
    (WRONG, "weight_decay=0",
     "ims.TorchOptimizer(torch.optim.AdamW)", "ims.TorchOptimizer(Adam, weight_decay=0.1)",
     "ims.TorchOptimizer(SGD, weight_decay=0.1)"),
    (WRONG, "lambd=0", "ims.TorchOptimizer(torch.optim.ASGD)"),
    (WRONG, "leave it out",
     "ims.TorchOptimizer(Adam, foreach=True)", "ims.TorchOptimizer(Adam, fused=True)",
     "ims.TorchOptimizer(Adam, capturable=True)", "ims.TorchOptimizer(Adam, differentiable=True)"),
    (WRONG, "Invalid learning rate", "ims.TorchOptimizer(Adam, lr=-1.0)"),
    (KIND, "lr=0.1", "ims.TorchOptimizer(Adam, lr=torch.tensor(0.1))"),
    (KIND, "betas of the type dict", "ims.TorchOptimizer(Adam, betas={})"),
    (KIND, "speed", "ims.TorchOptimizer(Adam, speed=1.0)"),
    (KIND, "subclass of torch.optim.Optimizer",
     "ims.TorchOptimizer(Adam([torch.zeros(1)]))", "ims.TorchOptimizer(torch.nn.Linear)",
     "ims.TorchOptimizer('adam')", "ims.TorchOptimizer(None)"),
    (WRONG, "chunk_size=2 has to select problems of the batch: pass in_dims",
     "ims.root(torch.sin, torch.ones(4), solver=ims.Newton(chunk_size=2), batch_dims=1)"),
    (WRONG, "pass how many records to keep", "ims.monitor(last=0).__enter__()"),
]
# fmt: on
ROWS = [row for group in TABLE for row in alike(*group)]
