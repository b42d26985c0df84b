"""Preconditioned solves in one graph: a budget of steps tells whether, and how, they are."""

import pytest
import torch

import implicit_solvers as ims

from .comparison import agree

BUDGET = {"max_steps": 2, "rtol": None}
JACOBIS = {
    "Jacobi": ims.Jacobi(),
    "operator": lambda z, x, W: ims.DiagonalOperator(1 / (1 + W.diagonal() * (1 - 0.3))),
}


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


W = torch.diag(torch.linspace(1, 30, 5, dtype=torch.float64)) + 0.3 * drawn(5, 5)
CASES = [
    (ims.GMRES(**BUDGET), "Jacobi", (3,)),
    (ims.GMRES(**BUDGET), "operator", ()),
    (ims.BiCGStab(**BUDGET), "operator", (3,)),
    (ims.Neumann(max_steps=40, rtol=None), "Jacobi", ()),
]


@pytest.mark.parametrize("solver, name, lanes", CASES)
def test_adjoints(solver, name, lanes):
    x = drawn(*lanes, 5, seed=1)
    options = {"batch_dims": len(lanes), "in_dims": (0, None)} if lanes else {}

    def layer(preconditioner):
        def run(x, W):
            return ims.root(
                lambda z, x, W: z @ W.t() + 0.1 * torch.tanh(z) + z - x,
                torch.zeros_like(x),
                (x, W),
                solver=ims.Newton(),
                adjoint=ims.ImplicitAdjoint(solver, preconditioner=preconditioner),
                on_failure="mask",
                **options,
            )

        return run

    (_, gradients), _ = agree(layer(JACOBIS[name]), (x, W), steps=0, factor=10)
    if isinstance(solver, ims.Neumann):
        return
    leaves = [x.clone().requires_grad_(), W.clone().requires_grad_()]
    weights = torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).reshape(x.shape)
    plain = layer(None)(*leaves).value
    without = torch.autograd.grad((weights * plain**2).sum(), leaves)
    assert not torch.allclose(gradients[1], without[1], rtol=1e-6)


@pytest.mark.parametrize("preconditioner", [ims.Jacobi(), ims.DiagonalOperator(1 / W.diagonal())])
def test_linear_solves(preconditioner):
    """The adjoint of a linear solve is preconditioned as the solve is."""
    A = W + W.mT

    def run(A, b):
        return ims.linear_solve(
            ims.MatrixOperator(A, positive_definite=True),
            b,
            solver=ims.CG(max_steps=3, rtol=None),
            preconditioner=preconditioner,
            on_failure="mask",
        )

    agree(run, (A, drawn(5, seed=2)), steps=0, factor=10)
