"""The meta-objective of iMAML in one compiled graph."""

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from tests.problems.imaml.meta_tasks import curves

ADJOINT = ims.ImplicitAdjoint(ims.CG(max_steps=2, rtol=None))
DESCENT = ims.GradientDescent(0.1, max_steps=2, rtol=None)
CASES = {
    "budget": {"solver": DESCENT, "adjoint": ADJOINT},
    "damping": {"solver": DESCENT, "adjoint": ADJOINT, "damping": 0.5},
    "tolerance": {
        "solver": ims.GradientDescent(0.1, max_steps=1000),
        "adjoint": ims.ImplicitAdjoint(ims.CG()),
    },
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_a_graph_gives_what_eager_steps_give(name):
    """And a task with NaN has no part in the gradient."""
    model, criterion, theta, (x, y), queries = curves(tasks=3)

    def loss(phi, data):
        inputs, targets = data
        return criterion(model(phi, inputs), targets)

    def objective(theta, strength, x, kept=slice(None)):
        supports, others = (x[kept], y[kept]), tuple(t[kept] for t in queries)
        options = {"strength": strength, "on_failure": "mask", **CASES[name]}
        return imaml.meta_objective(loss, theta, supports, others, **options)

    def gradients(objective, *arguments):
        leaves = {name: t.clone().requires_grad_() for name, t in theta.items()}
        strength = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        value = objective(leaves, strength, *arguments)
        return [value, *torch.autograd.grad(value, [*leaves.values(), strength])]

    compiled = torch.compile(objective, fullgraph=True)
    # up to rounding; where steps are judged, up to the tolerance 1.8e-12 and the condition
    close = {"rtol": 1e-9, "atol": 1e-9}
    for got, value in zip(gradients(compiled, x), gradients(objective, x), strict=True):
        torch.testing.assert_close(got, value, **close)
    broken = x.clone()
    broken[1] = torch.nan
    _, *got = gradients(compiled, broken)
    _, *expected = gradients(objective, x, [0, 2])
    for slope, other in zip(got, expected, strict=True):
        # the mean is over three tasks, two of which have a gradient
        torch.testing.assert_close(slope, 2 / 3 * other, **close)
