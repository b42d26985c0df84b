"""The default backend of ``torch.compile``, which needs a C++ compiler."""

import shutil

import pytest
import torch
from torch import nn

import implicit_solvers as ims

from .comparison import agree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    # said by torch of itself
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]

LANES = {"batch_dims": 1, "in_dims": (0, None)}


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def system(z, x, W):
    return torch.tanh(z @ W.T) + z - x


def test_newton_in_a_graph():
    def run(x, W):
        start = torch.zeros_like(x)
        return ims.root(system, start, (x, W), solver=ims.Newton(), on_failure="mask", **LANES)

    x = drawn(5, 4)
    x[2] = torch.nan
    agree(run, (x, 0.3 * drawn(4, 4, seed=1)), backend="inductor")


@pytest.mark.nightly
def test_a_module_of_equilibria_in_a_graph():
    cell = nn.Linear(4, 4).double()
    nn.init.orthogonal_(cell.weight, 0.5)
    layer = ims.nn.FixedPoint(
        lambda z, x: torch.tanh(cell(z) + x),
        batch_dims=1,
        on_failure="mask",
        return_solution=True,
    )
    agree(layer, (drawn(5, 4),), list(cell.parameters()), backend="inductor", factor=1e3)


@pytest.mark.nightly
def test_conjugate_gradients_in_a_graph():
    R = drawn(6, 6)

    def run(A, b):
        operator = ims.MatrixOperator(A, positive_definite=True)
        return ims.linear_solve(operator, b, solver=ims.CG(), on_failure="mask")

    A = R @ R.T + torch.eye(6, dtype=torch.float64)
    agree(run, (A, drawn(6, seed=1)), backend="inductor", factor=1e2)


def test_a_compiled_step():
    x, W = drawn(40, 4), (0.3 * drawn(4, 4, seed=1)).requires_grad_()
    solutions = [
        ims.root(system, 0 * x, (x, W), solver=ims.Newton(compile=compiled), **LANES)
        for compiled in (True, False)
    ]
    a, b = solutions
    assert torch.equal(a.status, b.status)
    torch.testing.assert_close(a.value, b.value, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(s.value.sum(), W)[0] for s in solutions]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
