"""The meta-objective of iMAML in one compiled graph."""

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from tests.problems.imaml.meta_tasks import curves

from .comparison import nightly_but

ADJOINT = ims.ImplicitAdjoint(ims.CG(max_steps=2, rtol=None))
DESCENT = ims.GradientDescent(0.1, max_steps=2, rtol=None)


def objective_of(supports, queries, **options):
    """Return the meta-objective as a function of the meta-parameters and the strength."""
    model, criterion, *_ = curves()

    def loss(phi, data):
        x, y = data
        return criterion(model(phi, x), y)

    def objective(theta, strength):
        return imaml.meta_objective(
            loss, theta, supports, queries, strength=strength, on_failure="mask", **options
        )

    return objective


def gradients(objective, theta, strength):
    leaves = {name: t.clone().requires_grad_() for name, t in theta.items()}
    strength = strength.clone().requires_grad_()
    value = objective(leaves, strength)
    return [value, *torch.autograd.grad(value, [*leaves.values(), strength])]


@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [(DESCENT, ADJOINT), (ims.GradientDescent(0.1, max_steps=1000), ims.ImplicitAdjoint(ims.CG()))],
    ids=["budget", "tolerance"],
)
def test_a_graph_gives_what_eager_steps_give(solver, adjoint):
    _, _, theta, supports, queries = curves()
    objective = objective_of(supports, queries, solver=solver, adjoint=adjoint)
    strength = torch.tensor(3.0, dtype=torch.float64)
    expected = gradients(objective, theta, strength)
    compiled = torch.compile(objective, fullgraph=True, backend="eager")
    # up to rounding; where steps are judged, up to the tolerance 1.8e-12 and the condition
    for got, value in zip(gradients(compiled, theta, strength), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("damping", nightly_but([0.0], [0.0, 0.5]))
def test_a_task_with_nan_has_no_part_in_the_gradient(damping):
    _, _, theta, (x, y), queries = curves(tasks=3)
    options = {"solver": DESCENT, "adjoint": ADJOINT, "damping": damping}
    strength = torch.tensor(3.0, dtype=torch.float64)
    broken, kept = x.clone(), [0, 2]
    broken[1] = torch.nan
    compiled = torch.compile(
        objective_of((broken, y), queries, **options), fullgraph=True, backend="eager"
    )
    _, *got = gradients(compiled, theta, strength)
    others = objective_of((x[kept], y[kept]), tuple(t[kept] for t in queries), **options)
    _, *expected = gradients(others, theta, strength)
    for slope, other in zip(got, expected, strict=True):
        # the mean is over three tasks, two of which have a gradient
        torch.testing.assert_close(slope, 2 / 3 * other, rtol=1e-9, atol=1e-9)
