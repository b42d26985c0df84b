"""Many tasks as lanes of one solve, against one task after the other."""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from tests.problems.imaml.meta_tasks import curves, one

TASKS = 3
BUDGET = {
    "solver": ims.GradientDescent(0.1, max_steps=2, rtol=None),
    "adjoint": ims.ImplicitAdjoint(ims.CG(max_steps=2, rtol=None)),
}
EXACT = {
    "solver": ims.GradientDescent(0.1, max_steps=1000),
    "adjoint": ims.ImplicitAdjoint(ims.CG()),
}


def descend(objective, phi):
    for _ in range(2):
        slope = torch.func.grad(objective)(phi)
        phi = {name: phi[name] - 0.1 * slope[name] for name in phi}
    return phi


def problem():
    """Return a loss, meta-parameters, supports and queries."""
    model, criterion, *rest = curves(tasks=TASKS)
    return lambda phi, data: criterion(model(phi, data[0]), data[1]), *rest


def strength_of(theta, kind):
    if kind == "number":
        return 3.0
    if kind == "tensor":
        return torch.tensor(3.0, dtype=torch.float64)
    return {name: 3 + torch.rand(value.shape[-1:]).double() for name, value in theta.items()}


def gradients(objective, theta, strength):
    """Return the objective and its gradients in the meta-parameters and the strength."""
    given = tree_map_only(
        torch.Tensor, lambda t: t.clone().requires_grad_(), {"theta": theta, "strength": strength}
    )
    value = objective(given["theta"], given["strength"])
    leaves = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("number", BUDGET),
        ("tensor", EXACT),
        ("each", BUDGET),
        ("number", BUDGET | {"damping": 0.5}),
        ("each", EXACT | {"damping": 0.5}),
        ("tensor", BUDGET | {"adjoint": imaml.neumann_adjoint(3)}),
        ("each", BUDGET | {"adjoint": imaml.neumann_adjoint(2), "damping": 0.5}),
        ("number", BUDGET | {"solver": descend}),
        ("each", BUDGET | {"solver": descend, "damping": 0.5}),
    ],
)
def test_many_tasks_equal_one_after_the_other(kind, options):
    loss, theta, supports, queries = problem()

    def together(theta, strength):
        return imaml.meta_objective(loss, theta, supports, queries, strength=strength, **options)

    def by_turns(theta, strength):
        losses = [
            imaml.meta_loss(
                loss, theta, one(supports, task), one(queries, task), strength=strength, **options
            )
            for task in range(TASKS)
        ]
        return sum(losses) / TASKS

    strength = strength_of(theta, kind)
    expected = gradients(by_turns, theta, strength)
    # up to rounding; where steps are judged, up to the tolerance 1.8e-12 and the condition
    for got, value in zip(gradients(together, theta, strength), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-9, atol=1e-9)


def test_solutions_have_the_tasks_in_front():
    loss, theta, supports, _ = problem()
    sol = imaml.adapt(loss, theta, supports, strength=3.0, many_tasks=True, **EXACT)
    assert sol.converged.shape == sol.residual.shape == (TASKS,)
    assert sol.converged.all()
    assert all(sol.value[name].shape == (TASKS, *t.shape) for name, t in theta.items())


def test_a_failed_task_keeps_its_start_with_damping_too():
    loss, theta, (x, y), _ = problem()
    x = x.clone()
    x[1] = torch.nan
    options = BUDGET | {"on_failure": "mask", "many_tasks": True, "strength": 3.0}
    for damping in (0.0, 0.5):
        sol = imaml.adapt(loss, theta, (x, y), damping=damping, **options)
        assert (sol.status == int(ims.Status.NONFINITE)).tolist() == [False, True, False]
        for name, start in theta.items():
            torch.testing.assert_close(sol.value[name][1], start)
