"""The definition against closed forms; many tasks against one at a time; how it is written."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, hessian, vmap
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from tests.problems.imaml.meta_tasks import curves, loss_of, one, quadratics, ravel, unravel

CG = ims.ImplicitAdjoint(ims.CG())
EXACT = {"solver": ims.NewtonCG(), "adjoint": CG}
TASKS = 3


# every example makes three solves with their adjoints
@settings(max_examples=settings().max_examples // 3)
@given(
    seed=st.integers(0, 10**6),
    s=st.floats(0.05, 20) | st.lists(st.floats(0.1, 10), min_size=5, max_size=5),
    damping=st.just(0.0) | st.floats(0.01, 5),
    tasks=st.integers(1, 4),
)
def test_the_closed_form_of_quadratic_tasks(seed, s, damping, tasks):
    """By `Imaml`, by a transform and by backward: all the same; damping leaves phi alone."""
    problem = quadratics(seed, tasks)
    phi, slopes = problem.closed_form(s, damping)
    strength = s if isinstance(s, float) else unravel(torch.tensor(s, dtype=torch.float64))
    options = {"strength": strength, "damping": damping, **EXACT}
    model, criterion, theta, supports, queries = problem.arguments

    def objective(theta):
        return imaml.meta_objective(loss_of(model, criterion), theta, supports, queries, **options)

    leaves = tree_map(lambda t: t.clone().requires_grad_(), theta)
    objective(leaves).backward()
    got = imaml.Imaml(**options).meta_gradient(*problem.arguments)
    gradients = (got.gradient, grad(objective)(theta), tree_map(lambda t: t.grad, leaves))
    for gradient in gradients:
        # Newton and CG stop at 1.8e-12 (eps**0.75) relative, at condition numbers below 200
        np.testing.assert_allclose(ravel(gradient).numpy(), slopes.mean(0), atol=1e-7)
    np.testing.assert_allclose(got.loss, problem.query_loss(phi), atol=1e-7)
    assert not got.left_out.any()
    assert (got.inner_residual < 1e-8).all() and (got.adjoint_residual < 1e-8).all()


def test_meta_hessian_of_a_quadratic():
    problem = quadratics(1, 1)
    loss, (support, query) = loss_of(*problem.arguments[:2]), one(problem.data, 0)

    def F(theta):
        return imaml.meta_loss(loss, unravel(theta), support, query, strength=0.5, **EXACT)

    dphi = 0.5 * torch.linalg.inv(problem.A[0] + 0.5 * torch.eye(5, dtype=torch.float64))
    # nested solves to 1.8e-12 relative, condition numbers below 100
    torch.testing.assert_close(hessian(F)(ravel(problem.theta)), dphi @ dphi, rtol=0, atol=1e-8)


def test_the_default_is_a_budget():
    problem = quadratics(2, 1)
    loss, (support, query) = loss_of(*problem.arguments[:2]), one(problem.data, 0)
    with ims.monitor() as log:
        leaves = tree_map(lambda t: t.clone().requires_grad_(), problem.theta)
        sol = imaml.adapt(loss, leaves, support)
        loss(sol.value, query).backward()
    assert (sol.iterations, sol.status) == (16, ims.Status.BUDGET)
    assert [int(record.iterations) for record in log.adjoints()] == [5]


@given(s=st.lists(st.floats(0.01, 100), min_size=5, max_size=5), seed=st.integers(0, 10**6))
def test_the_proximal_loss_and_its_derivatives(s, seed):
    g = torch.Generator().manual_seed(seed)
    phi, theta, x = torch.randn(3, 5, generator=g, dtype=torch.float64)
    s = torch.tensor(s, dtype=torch.float64)
    for strength, row in ((unravel(s), s), (s[0], s[:1]), (float(s[0]), s[:1])):

        def proximal(phi, strength=strength):
            return imaml.proximal_loss(lambda p, x: ravel(p) @ x, phi, unravel(theta), x, strength)

        expected = float((row * (phi - theta) ** 2).sum() / 2 + phi @ x)
        assert float(proximal(unravel(phi))) == pytest.approx(expected)
        slope = ravel(grad(proximal)(unravel(phi)))
        # a sum of two terms of order 100
        np.testing.assert_allclose(slope, row * (phi - theta) + x, rtol=1e-12, atol=1e-12)


def test_strengths_that_vmap_batches_cannot_be_read():
    """NaN is no error there; it is where the strength can be read (see the refusals)."""

    def lane(strength):
        return imaml.adapt(
            lambda phi, x: (phi - x).square().sum() / 2,
            torch.zeros(2),
            torch.ones(2),
            strength=strength,
            on_failure="mask",
        ).status

    status = vmap(lane)(torch.tensor([torch.nan, 1.0]))
    assert (status > ims.Status.BUDGET).tolist() == [True, False]


def test_negative_curvature_is_an_error_or_leaves_the_task_out():
    def saddle(phi, x):
        return x - 2 * phi.square().sum()

    theta, x = torch.ones(3, requires_grad=True), torch.tensor(0.0)
    with pytest.raises(ims.ConvergenceError, match="INDEFINITE"):
        imaml.meta_loss(saddle, theta, x, x, strength=2.0).backward()
    with pytest.warns(ims.ConvergenceWarning, match="INDEFINITE"):
        imaml.meta_loss(saddle, theta, x, x, strength=2.0, on_failure="mask").backward()
    assert (theta.grad == 0).all()
    theta.grad = None
    imaml.meta_loss(saddle, theta, x, x, strength=5.0).backward()
    assert (theta.grad != 0).all()


# ---- Many tasks ----

BUDGET = {
    "solver": ims.GradientDescent(0.1, max_steps=2, rtol=None),
    "adjoint": ims.ImplicitAdjoint(ims.CG(max_steps=2, rtol=None)),
}
JUDGED = {"solver": ims.GradientDescent(0.1, max_steps=1000), "adjoint": CG}


def descend(objective, phi):
    for _ in range(2):
        slope = grad(objective)(phi)
        phi = {name: phi[name] - 0.1 * slope[name] for name in phi}
    return phi


def strength_of(theta, kind):
    if kind == "number":
        return 8.0
    if kind == "tensor":
        return torch.tensor(8.0, dtype=torch.float64)
    return {name: 8 + torch.rand(value.shape[-1:]).double() for name, value in theta.items()}


def gradients(objective, theta, strength):
    """Return the objective and its gradients in the meta-parameters and the strength."""
    given = tree_map_only(
        torch.Tensor, lambda t: t.clone().requires_grad_(), {"theta": theta, "strength": strength}
    )
    value = objective(given["theta"], given["strength"])
    leaves = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
    return [value.detach(), *torch.autograd.grad(value, leaves)]


TOGETHER = [
    ("number", {}),
    ("number", EXACT),
    ("number", BUDGET),
    ("tensor", JUDGED),
    ("each", BUDGET),
    ("number", BUDGET | {"damping": 0.5}),
    ("each", JUDGED | {"damping": 0.5}),
    ("tensor", BUDGET | {"adjoint": imaml.neumann_adjoint(3)}),
    # (Neumann's series has to converge)
    ("each", BUDGET | {"adjoint": imaml.neumann_adjoint(2), "damping": 0.1}),
    ("number", BUDGET | {"solver": descend}),
    ("each", BUDGET | {"solver": descend, "damping": 0.5}),
]


@pytest.mark.parametrize(("kind", "options"), TOGETHER)
def test_many_tasks_equal_one_after_the_other(kind, options):
    model, criterion, theta, supports, queries = curves(tasks=TASKS)
    loss = loss_of(model, criterion)

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
    model, criterion, theta, supports, _ = curves(tasks=TASKS)

    def adapted(supports, **options):
        return imaml.adapt(loss_of(model, criterion), theta, supports, strength=3.0, **options)

    for sol in (
        adapted(supports, many_tasks=True, **JUDGED),
        vmap(lambda support: adapted(support, **EXACT))(supports),
    ):
        assert sol.converged.shape == sol.residual.shape == sol.iterations.shape == (TASKS,)
        assert sol.converged.all()
        assert all(sol.value[name].shape == (TASKS, *t.shape) for name, t in theta.items())


@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("failure", [ims.Status.NONFINITE, ims.Status.MAX_STEPS])
def test_a_failed_task_has_no_derivative(failure, damping):
    """NaN in the data; too slow for its steps. The others are as without it."""
    a, scale = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor(1.0).double().requires_grad_()
    curvature = torch.tensor([9.0, 9.0, 9.0]).double()
    if failure == ims.Status.NONFINITE:
        a[1] = torch.nan
    else:
        curvature[1] = 1e-3

    def loss(phi, data):
        a, curvature = data
        return curvature * (phi - scale * a) ** 2 / 2

    options = {"strength": 1.0, "damping": damping, "on_failure": "mask", "many_tasks": True}
    # one step where the curvature and the strength are 10
    solver, start = ims.GradientDescent(0.1, max_steps=5), torch.tensor(0.5).double()
    sol = imaml.adapt(loss, start, (a, curvature), solver=solver, adjoint=CG, **options)
    assert sol.status.tolist() == [0, failure, 0]
    torch.testing.assert_close(sol.value[[0, 2]], (9 * a[[0, 2]] + 0.5) / 10)
    if failure == ims.Status.NONFINITE:
        assert sol.value[1] == start
    slope = torch.autograd.grad(sol.value.sum(), scale)[0]
    torch.testing.assert_close(slope, torch.tensor(9 * 4 / (10 + damping)).double())
