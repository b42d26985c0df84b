"""`torch.export`: what it can hold, with batches of any size, and what is refused."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

import implicit_solvers as ims

# Said by torch of itself.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Equilibrium(nn.Module):
    def __init__(self, solver, adjoint=None, equation=ims.fixed_point):
        super().__init__()
        self.inner = nn.Linear(4, 4).double()
        nn.init.orthogonal_(self.inner.weight, 0.5)
        self.solver, self.adjoint, self.equation = solver, adjoint, equation

    def forward(self, x):
        sol = self.equation(
            lambda z, x: torch.tanh(self.inner(z) + x),
            torch.zeros_like(x),
            (x,),
            solver=self.solver,
            adjoint=self.adjoint,
            batch_dims=1,
            in_dims=(0,),
            on_failure="mask",
        )
        return sol.value, sol.status, sol.iterations


class System(nn.Module):
    def __init__(self, solver):
        super().__init__()
        R = drawn(4, 4)
        self.matrix = nn.Parameter(R @ R.T + torch.eye(4, dtype=torch.float64))
        self.solver = solver

    def forward(self, b):
        operator = ims.MatrixOperator(self.matrix, positive_definite=True)
        return ims.linear_solve(operator, b, solver=self.solver, on_failure="mask").value


X = drawn(5, 4)


@pytest.mark.parametrize("solver", [ims.FixedPointIteration(), ims.Anderson()])
def test_a_fixed_point_for_batches_of_any_size(solver):
    model = Equilibrium(solver)
    with torch.no_grad():
        program = export(model, (X,), dynamic_shapes=({0: Dim("batch", min=2)},), strict=True)
        for x in (X, drawn(9, 4, seed=1), X * torch.nan):
            for a, b in zip(program.module()(x), model(x), strict=True):
                torch.testing.assert_close(a, b, equal_nan=True)


class Cubic(nn.Module):
    def __init__(self, solver):
        super().__init__()
        self.solver = solver

    def forward(self, x):
        lanes = {"batch_dims": 1, "in_dims": (0,), "on_failure": "mask"}
        start = torch.zeros_like(x)
        fn = {"root": lambda z, x: z**3 + z - x, "fixed_point": lambda z, x: 0.5 * z.cos() + x}
        kind = self.solver.solves[0]
        return getattr(ims, kind)(fn[kind], start, (x,), solver=self.solver, **lanes).value


@pytest.mark.parametrize(
    "solver", [ims.Aitken(), ims.Steffensen(), ims.Chandrupatla(), ims.Bisection()]
)
def test_solvers_without_derivatives(solver):
    model, x = Cubic(solver), drawn(5, 1)
    with torch.no_grad():
        exported = export(model, (x,), strict=True).module()
        for value in (x, -3 * x):
            torch.testing.assert_close(exported(value), model(value))


def test_a_fixed_point_of_one_size_without_strict():
    model = Equilibrium(ims.FixedPointIteration())
    with torch.no_grad():
        exported = export(model, (X,), strict=False).module()
        torch.testing.assert_close(exported(X), model(X))


def test_an_exported_one_step_gradient():
    model = Equilibrium(ims.FixedPointIteration(), ims.OneStepAdjoint())
    exported = export(model, (X,), strict=True).module()
    gradients = [
        torch.autograd.grad((m(X)[0] ** 2).sum(), list(m.parameters())) for m in (exported, model)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_linear_system_with_its_gradient(strict):
    model = System(ims.LU())
    exported = export(model, (X[0],), strict=strict).module()
    gradients = [
        torch.autograd.grad((m(X[0]) ** 2).sum(), list(m.parameters())) for m in (exported, model)
    ]
    torch.testing.assert_close(*gradients)
    (first,) = torch.autograd.grad(exported(X[0]).sum(), exported.parameters(), create_graph=True)
    with pytest.raises(RuntimeError, match="first order"):
        first.sum().backward()


@pytest.mark.nightly
def test_exported_conjugate_gradients():
    model = System(ims.CG())
    with torch.no_grad():
        exported = export(model, (X[0],), strict=True).module()
        torch.testing.assert_close(exported(X[0]), model(X[0]))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "model, words",
    [
        (Equilibrium(ims.Newton()), "cannot trace derivatives"),
        (Equilibrium(ims.Anderson()), "torch.no_grad"),
        (System(ims.CG()), "cannot keep the adjoint|strict=True"),
        (System(ims.SVD()), "cannot keep the adjoint"),
    ],
    ids=["Newton", "adjoint", "CG", "SVD"],
)
def test_what_torch_cannot_export_is_refused(model, words, strict):
    x = X if isinstance(model, Equilibrium) else X[0]
    with pytest.raises(Exception, match=words):
        export(model, (x,), strict=strict)
