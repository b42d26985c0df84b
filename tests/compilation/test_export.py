"""`torch.export`: what it can hold, with batches of any size."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

import implicit_solvers as ims

from .comparison import drawn, nightly_but

# Said by torch of itself.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
LANES = {"batch_dims": 1, "in_dims": (0,), "on_failure": "mask"}
X = drawn(5, 4)


class Equilibrium(nn.Module):
    def __init__(self, solver, adjoint=None):
        super().__init__()
        self.inner = nn.Linear(4, 4).double()
        nn.init.orthogonal_(self.inner.weight, 0.5)
        self.options = {"solver": solver, "adjoint": adjoint, **LANES}

    def forward(self, x):
        fn = lambda z, x: torch.tanh(self.inner(z) + x)
        sol = ims.fixed_point(fn, torch.zeros_like(x), (x,), **self.options)
        return sol.value, sol.status, sol.iterations


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4).double()
        nn.init.orthogonal_(self.inner.weight, 0.5)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + x)


def layer(**options):
    solver = ims.FixedPointIteration(**options)
    return ims.nn.FixedPoint(Cell(), solver=solver, batch_dims=1, on_failure="mask")


class Cubic(nn.Module):
    def __init__(self, solver):
        super().__init__()
        self.solver = solver

    def forward(self, x):
        fn = {"root": lambda z, x: z**3 + z - x, "fixed_point": lambda z, x: 0.5 * z.cos() + x}
        kind, start = self.solver.solves[0], torch.zeros_like(x)
        return getattr(ims, kind)(fn[kind], start, (x,), solver=self.solver, **LANES).value


class System(nn.Module):
    def __init__(self, solver):
        super().__init__()
        R = drawn(4, 4)
        self.matrix = nn.Parameter(R @ R.T + torch.eye(4, dtype=torch.float64))
        self.solver = solver

    def forward(self, b):
        operator = ims.MatrixOperator(self.matrix, positive_definite=True)
        return ims.linear_solve(operator, b, solver=self.solver, on_failure="mask").value


ANY_SIZE = {"dynamic_shapes": ({0: Dim("batch", min=2)},), "strict": True}
XS = (X, drawn(9, 4, seed=1), X * torch.nan)
VALUES = {
    "layer": (layer(), XS, ANY_SIZE),
    "layer, budget": (layer(max_steps=16, rtol=None), XS, ANY_SIZE),
    "FixedPointIteration": (Equilibrium(ims.FixedPointIteration()), XS, ANY_SIZE),
    "Anderson": (Equilibrium(ims.Anderson()), XS, ANY_SIZE),
    "not strict": (Equilibrium(ims.FixedPointIteration()), (X,), {"strict": False}),
    "CG": (System(ims.CG()), (X[0],), {"strict": True}),
    **{
        type(solver).__name__: (Cubic(solver), (X[:, :1], -3 * X[:, :1]), {"strict": True})
        for solver in (ims.Aitken(), ims.Steffensen(), ims.Chandrupatla(), ims.Bisection())
    },
}


@pytest.mark.parametrize("name", nightly_but(["layer"], VALUES))
def test_values(name):
    model, inputs, options = VALUES[name]
    with torch.no_grad():
        exported = export(model, inputs[:1], **options).module()
        for x in inputs:
            torch.testing.assert_close(exported(x), model(x), equal_nan=True)


GRADIENTS = {
    "one step": (Equilibrium(ims.FixedPointIteration(), ims.OneStepAdjoint()), X, True),
    "LU": (System(ims.LU()), X[0], True),
    "LU, not strict": (System(ims.LU()), X[0], False),
}


@pytest.mark.parametrize("name", nightly_but(["LU"], GRADIENTS))
def test_gradients(name):
    model, x, strict = GRADIENTS[name]
    exported = export(model, (x,), strict=strict).module()

    def loss(model):
        value = model(x)
        return ((value if torch.is_tensor(value) else value[0]) ** 2).sum()

    gradients = [torch.autograd.grad(loss(m), list(m.parameters())) for m in (exported, model)]
    torch.testing.assert_close(*gradients)
    if "LU" in name:
        value = exported(x).sum()
        (first,) = torch.autograd.grad(value, exported.parameters(), create_graph=True)
        with pytest.raises(RuntimeError, match="first order"):
            first.sum().backward()
