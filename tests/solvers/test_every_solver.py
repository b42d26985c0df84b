"""Every solver and adjoint passes the library's own check of implicit gradients."""

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.testing import assert_implicit_gradients

F64 = torch.float64
MIX = torch.tensor([[0.2, -0.1], [0.3, 0.1]], dtype=F64)


def system(z, a):
    return z + 0.5 * torch.tanh(MIX @ z) * a[0] - a


def scalar(z, a):
    return z + 0.3 * torch.sin(z) * a[0] - a[1]


def cell(z, a):
    return torch.tanh(MIX @ z * a[0] + a)


def scalar_cell(z, a):
    return 0.4 * torch.cos(z) * a[0] + a[1]


def objective(z, a):
    return 0.25 * (z**4).sum() + (1 + a[0] ** 2) * (z**2).sum() + torch.sin(z.sum()) - (z * a).sum()


def residuals(z, a):
    return torch.cat([system(z, a), 0.3 * (z.sum(-1, keepdim=True) - a[1])])


EQUATIONS = {
    "root": system,
    "fixed_point": cell,
    "minimize": objective,
    "least_squares": residuals,
}
SCALAR = {"root": scalar, "fixed_point": scalar_cell}
ROOT = [ims.Newton(), ims.Newton(reuse=0.5), ims.Newton(linear_solver=ims.GMRES())]
ROOT += [ims.Chord(), ims.Broyden(), ims.Dogleg(), ims.LevenbergMarquardt()]
ONE = [ims.Bisection(), ims.Chandrupatla(), ims.Steffensen()]
SOLVERS = {
    "root": ROOT + ONE,
    "fixed_point": [ims.FixedPointIteration(), ims.Anderson(), ims.Aitken(), ims.Dogleg(), *ONE],
    "minimize": [
        ims.NewtonCG(),
        ims.Newton(),
        ims.LBFGS(),
        ims.GradientDescent(0.2),
        ims.GradientDescent(line_search=ims.Backtracking()),
        ims.GradientDescent(line_search=ims.StrongWolfe()),
        ims.TorchOptimizer(torch.optim.SGD, lr=0.2, max_steps=500),
    ],
    "least_squares": [ims.GaussNewton(), ims.LevenbergMarquardt(), ims.Dogleg(), ims.LBFGS()],
}
CASES = [
    pytest.param(kind, solver, id=f"{kind}-{i}-{type(solver).__name__}")
    for kind, solvers in SOLVERS.items()
    for i, solver in enumerate(solvers)
]
A = torch.tensor([0.7, -0.4], dtype=F64)


@pytest.mark.parametrize("kind, solver", CASES)
def test_gradients(kind, solver):
    one = solver in ONE
    fn = SCALAR[kind] if one else EQUATIONS[kind]
    z0 = torch.tensor(0.1, dtype=F64) if one else torch.tensor([0.1, -0.2], dtype=F64)
    assert_implicit_gradients(fn, z0, (A,), kind=kind, solver=solver)


@pytest.mark.parametrize(
    "kind, adjoint",
    [
        ("root", ims.ImplicitAdjoint(ims.GMRES())),
        ("fixed_point", ims.ImplicitAdjoint(ims.Neumann(max_steps=500))),
        ("minimize", ims.ImplicitAdjoint(ims.CG())),
        ("minimize", ims.ImplicitAdjoint(ims.Cholesky())),
        ("least_squares", ims.ImplicitAdjoint(ims.CG(), preconditioner=ims.Jacobi())),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v.linear_solver).__name__,
)
def test_adjoints(kind, adjoint):
    z0 = torch.tensor([0.1, -0.2], dtype=F64)
    assert_implicit_gradients(EQUATIONS[kind], z0, (A,), kind=kind, adjoint=adjoint)


def test_every_solver_is_here():
    tested = {type(solver).__name__ for solvers in SOLVERS.values() for solver in solvers}
    assert tested == {name for name in ims.__all__ if hasattr(getattr(ims, name), "solves")}
