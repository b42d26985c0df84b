"""`Imaml` on quadratic tasks with closed forms, and against differences on curved ones."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from tests.problems.imaml.meta_tasks import (
    assert_same,
    curves,
    difference_and_slope,
    one,
    quadratic_criterion,
    quadratic_model,
    quadratics,
    ravel,
    unravel,
)

CG = ims.ImplicitAdjoint(ims.CG())
EXACT = imaml.Imaml(2.0, ims.NewtonCG(), CG)


def per_task(method, problem):
    """Return each task's meta-gradient (tasks, 5), and the results."""
    model, criterion, theta, supports, queries = problem.arguments
    results = [
        method.meta_gradient(
            model,
            criterion,
            theta,
            tuple(t[i : i + 1] for t in supports),
            tuple(t[i : i + 1] for t in queries),
        )
        for i in range(len(problem.A))
    ]
    return np.stack([ravel(r.gradient).numpy() for r in results]), results


def adapted(method, problem):
    """Return phi (tasks, 5), what the predictor sees at A = 0."""
    model, criterion, theta, supports, _ = problem.arguments
    zero = torch.zeros(5, 5, dtype=torch.float64)
    predictors = [
        method.adapt(model, criterion, theta, one(supports, i)) for i in range(len(problem.A))
    ]
    return np.stack([predict(zero)[0].numpy() for predict in predictors])


@given(seed=st.integers(0, 10**6), strength=st.floats(0.05, 20), tasks=st.integers(1, 4))
def test_the_closed_form_of_quadratic_tasks(seed, strength, tasks):
    problem = quadratics(seed, tasks)
    phi, slopes = problem.closed_form(strength)
    got = dataclasses.replace(EXACT, strength=strength).meta_gradient(*problem.arguments)
    # Newton and CG stop at 1.8e-12 (eps**0.75) relative, at condition numbers below 200
    np.testing.assert_allclose(ravel(got.gradient).numpy(), slopes.mean(0), atol=1e-8)
    np.testing.assert_allclose(got.loss, problem.query_loss(phi), atol=1e-8)
    assert not got.left_out.any()
    assert (got.inner_residual < 1e-8).all() and (got.adjoint_residual < 1e-8).all()


def scipys_minimum(objective, theta):
    """Let SciPy, which knows nothing of torch, minimize."""

    def value_and_slope(z):
        z = unravel(torch.from_numpy(z))
        return float(objective(z)), ravel(grad(objective)(z)).numpy()

    start = ravel(theta).numpy()
    found = scipy.optimize.minimize(
        value_and_slope, start, jac=True, method="BFGS", options={"gtol": 1e-12}
    )
    return unravel(torch.from_numpy(found.x))


INNER_SOLVERS = {
    "gradient descent to a tolerance": ims.GradientDescent(0.3, max_steps=500),
    "gradient descent with a budget": ims.GradientDescent(0.3, max_steps=150, rtol=None),
    "Newton-CG": ims.NewtonCG(),
    "L-BFGS": ims.LBFGS(),
    "SGD with momentum": ims.TorchOptimizer(torch.optim.SGD, lr=0.05, momentum=0.9, max_steps=2000),
    "Adam": ims.TorchOptimizer(torch.optim.Adam, lr=0.02, max_steps=5000),
    "RMSprop": ims.TorchOptimizer(torch.optim.RMSprop, lr=1e-2, momentum=0.5, max_steps=5000),
    "Adagrad": ims.TorchOptimizer(torch.optim.Adagrad, lr=0.5, max_steps=5000),
}


@pytest.mark.parametrize("name", INNER_SOLVERS)
def test_every_inner_solver_reaches_the_closed_form(name):
    problem = quadratics(3, 2)
    phi, slopes = problem.closed_form(2.0)
    method = imaml.Imaml(2.0, INNER_SOLVERS[name], CG)
    got = method.meta_gradient(*problem.arguments)
    assert not got.left_out.any()
    # judged by gradients of 1.8e-12 (relative); the sum of an objective's terms loses more
    np.testing.assert_allclose(adapted(method, problem), phi, atol=1e-7)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), slopes.mean(0), atol=1e-7)


def test_an_inner_solver_of_your_own():
    problem = quadratics(3, 3)
    phi, slopes = problem.closed_form(2.0)
    method = imaml.Imaml(2.0, scipys_minimum, CG)
    # SciPy sees one task at a time
    got = method.meta_gradient(*problem.arguments, batching=imaml.Batching.LOOP)
    np.testing.assert_allclose(adapted(method, problem), phi, atol=1e-8)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), slopes.mean(0), atol=1e-8)
    assert (got.inner_residual < 1e-8).all() and not got.left_out.any()


def test_an_inner_solver_in_torch_can_be_batched():
    problem = quadratics(3, 3)

    def descend(objective, theta):
        for _ in range(150):
            slope = grad(objective)(theta)
            theta = {name: theta[name] - 0.3 * slope[name] for name in theta}
        return theta

    got = imaml.Imaml(2.0, descend, CG).meta_gradient(*problem.arguments)
    expected = problem.closed_form(2.0)[1].mean(0)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), expected, atol=1e-8)


def test_the_budgets_of_algorithm_2_step_by_step():
    problem, steps, products, strength, lr = quadratics(4, 3), 7, 3, 1.5, 0.2
    method = imaml.Imaml(
        strength,
        ims.GradientDescent(lr, max_steps=steps, rtol=None),
        ims.ImplicitAdjoint(ims.CG(max_steps=products, rtol=None)),
    )
    theta, As, cs, ys = problem.arrays()
    slopes, inner, outer = [], [], []
    for A, c, y in zip(As, cs, ys, strict=True):
        K, phi = A + strength * np.eye(5), theta
        for _ in range(steps):
            phi = phi - lr * (K @ phi - c - strength * theta)
        v = phi - y
        x, r, p = np.zeros(5), v, v
        for _ in range(products):
            a = (r @ r) / (p @ K @ p)
            x, r, old = x + a * p, r - a * K @ p, r
            p = r + (r @ r) / (old @ old) * p
        slopes.append(strength * x)
        inner.append(np.sqrt(np.mean((K @ phi - c - strength * theta) ** 2)))
        outer.append(np.linalg.norm(v - K @ x) / np.linalg.norm(v))
    got = method.meta_gradient(*problem.arguments)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), np.mean(slopes, 0), rtol=1e-9)
    np.testing.assert_allclose(got.inner_residual, inner, rtol=1e-9)
    np.testing.assert_allclose(got.adjoint_residual, outer, rtol=1e-6)
    assert max(outer) > 1e-3  # far from solved: the residual means something


INDEFINITE = {"MINRES": ims.MINRES(), "GMRES": ims.GMRES(), "LU": ims.LU()}


@pytest.mark.parametrize("name", INDEFINITE)
def test_a_strength_below_the_most_negative_curvature(name):
    problem = quadratics(5, 3, lowest=-3.0)
    phi, slopes = problem.closed_form(1.0)

    def stationary(objective, theta):
        """Newton's step from theta is the stationary point of a quadratic function."""
        flat = ravel(theta)
        slope = grad(lambda z: objective(unravel(z)))(flat)
        K = torch.func.hessian(lambda z: objective(unravel(z)))(flat)
        return unravel(flat - torch.linalg.inv(K) @ slope)

    def method(solver):
        return imaml.Imaml(1.0, stationary, ims.ImplicitAdjoint(solver))

    got = method(INDEFINITE[name]).meta_gradient(*problem.arguments)
    np.testing.assert_allclose(adapted(method(ims.CG()), problem), phi, atol=1e-9)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), slopes.mean(0), atol=1e-9)
    assert not got.left_out.any()
    # CG has to notice
    assert method(ims.CG()).meta_gradient(*problem.arguments).left_out.all()


@pytest.mark.parametrize("terms", [1, 2, 7])
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("strength", [8.0, "of each parameter"])
def test_neumann_series(terms, damping, strength):
    problem = quadratics(6, 3)
    s = np.full(5, 8.0)
    if strength != 8.0:
        s = np.array([6.0, 7.0, 8.0, 9.0, 10.0])
        strength = unravel(torch.from_numpy(s))
    method = imaml.Imaml(strength, ims.NewtonCG(), imaml.neumann_adjoint(terms), damping)
    phi, _ = problem.closed_form(s)
    expected = []
    for A, v in zip(problem.A.numpy(), phi - problem.y.numpy(), strict=True):
        M = damping * np.eye(5) + A / s  # of the transposed system: (I + S^-1 A)^T = I + A S^-1
        expected.append(sum(np.linalg.matrix_power(-M, k) @ v for k in range(terms)))
    got = method.meta_gradient(*problem.arguments)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), np.mean(expected, 0), atol=1e-8)


def test_one_term_of_the_series_is_the_first_order_gradient():
    _, *_ = arguments = curves()
    solver = ims.GradientDescent(0.1, max_steps=5, rtol=None)
    one_term = imaml.Imaml(2.0, solver, imaml.neumann_adjoint(1)).meta_gradient(*arguments)
    first_order = imaml.FirstOrderMaml(0.1, 5, proximal=2.0).meta_gradient(*arguments)
    torch.testing.assert_close(one_term.gradient, first_order.gradient)
    torch.testing.assert_close(one_term.loss, first_order.loss)
    torch.testing.assert_close(one_term.inner_residual, first_order.inner_residual)


@given(seed=st.integers(0, 10**6), damping=st.floats(0.01, 5), strength=st.floats(0.5, 10))
def test_damping_is_added_to_the_linear_system_alone(seed, damping, strength):
    problem = quadratics(seed, 2)
    phi, _ = problem.closed_form(strength)
    damped = [
        np.linalg.solve((1 + damping) * np.eye(5) + A / strength, v)
        for A, v in zip(problem.A.numpy(), phi - problem.y.numpy(), strict=True)
    ]
    method = dataclasses.replace(EXACT, strength=strength, damping=damping)
    got = method.meta_gradient(*problem.arguments)
    np.testing.assert_allclose(got.loss, problem.query_loss(phi), atol=1e-8)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), np.mean(damped, 0), atol=1e-8)


def test_damping_makes_cg_applicable_at_negative_curvature():
    problem = quadratics(7, 2, lowest=-1.2)
    budget = ims.GradientDescent(0.1, max_steps=3, rtol=None)
    assert imaml.Imaml(1.0, budget, CG).meta_gradient(*problem.arguments).left_out.all()
    damped = imaml.Imaml(1.0, budget, CG, damping=0.5).meta_gradient(*problem.arguments)
    assert not damped.left_out.any()
    assert (damped.adjoint_residual < 1e-8).all()


@given(seed=st.integers(0, 10**6), s=st.lists(st.floats(0.1, 10), min_size=5, max_size=5))
def test_a_strength_for_each_parameter(seed, s):
    problem = quadratics(seed, 2)
    phi, slopes = problem.closed_form(np.array(s))
    strength = unravel(torch.tensor(s, dtype=torch.float64))
    method = dataclasses.replace(EXACT, strength=strength)
    got = method.meta_gradient(*problem.arguments)
    np.testing.assert_allclose(got.loss, problem.query_loss(phi), atol=1e-7)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), slopes.mean(0), atol=1e-7)


def test_strengths_broadcast():
    problem = quadratics(8, 2)
    rows = {"w": torch.tensor([[1.0], [2.0]]).double(), "b": torch.tensor(3.0).double()}
    got = dataclasses.replace(EXACT, strength=rows).meta_gradient(*problem.arguments)
    expected = problem.closed_form(np.array([1.0, 1.0, 2.0, 2.0, 3.0]))[1].mean(0)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), expected, atol=1e-8)
    for same in (1.5, torch.tensor(1.5, dtype=torch.float64)):
        got = dataclasses.replace(EXACT, strength=same).meta_gradient(*problem.arguments)
        expected = problem.closed_form(1.5)[1].mean(0)
        np.testing.assert_allclose(ravel(got.gradient).numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("per_parameter", [False, True])
def test_a_learned_strength(per_parameter):
    problem, s = quadratics(9, 3), 0.7
    model, criterion, theta, *data = problem.arguments
    method = dataclasses.replace(EXACT, strength=None)
    extended = method.extend(theta, s, per_parameter=per_parameter)
    got = method.meta_gradient(model, criterion, extended, *data).gradient

    phi, slopes = problem.closed_form(s)
    start = problem.arrays()[0]
    by_strength = np.mean(
        [
            -s * (p - start) * np.linalg.solve(A + s * np.eye(5), p - y)
            for A, y, p in zip(problem.A.numpy(), problem.y.numpy(), phi, strict=True)
        ],
        0,
    )
    learned = {name: value for name, value in got.items() if name not in theta}
    np.testing.assert_allclose(
        ravel({name: got[name] for name in theta}).numpy(), slopes.mean(0), atol=1e-8
    )
    if per_parameter:
        expected = {"w": by_strength[:4].sum(), "b": by_strength[4]}
        assert set(learned) == {f"imaml.log_strength.{name}" for name in theta}
        for name, value in expected.items():
            assert float(learned[f"imaml.log_strength.{name}"]) == pytest.approx(value, abs=1e-8)
    else:
        assert float(learned["imaml.log_strength"]) == pytest.approx(by_strength.sum(), abs=1e-8)


@pytest.mark.parametrize("per_parameter", [None, False, True])
def test_the_meta_gradient_is_the_slope_of_the_meta_loss(per_parameter):
    model, criterion, theta, *data = curves()
    method = dataclasses.replace(EXACT, strength=0.5)
    if per_parameter is not None:
        method = dataclasses.replace(EXACT, strength=None)
        theta = method.extend(theta, 0.5, per_parameter=per_parameter)
    difference, slope = difference_and_slope(method, (model, criterion, theta, *data))
    # truncation h² = 1e-10 times a third derivative of order 1, solves 1e-12 / h = 1e-7 at worst
    torch.testing.assert_close(difference, slope, rtol=1e-6, atol=1e-6)


def test_the_method_and_the_definition_agree():
    model, criterion, theta, supports, queries = curves()

    def loss(phi, data):
        x, y = data
        return criterion(model(phi, x), y)

    got = imaml.Imaml(2.0).meta_gradient(model, criterion, theta, supports, queries)
    value, expected = torch.func.grad_and_value(
        lambda t: imaml.meta_objective(loss, t, supports, queries, strength=2.0)
    )(theta)[::-1]
    torch.testing.assert_close(got.gradient, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.loss.mean(), value)


def test_hessian_free():
    problem = quadratics(10, 3)
    method = imaml.imaml_hf(0.5, steps=9, cg_steps=5)
    assert method.solver == ims.NewtonCG(rtol=None, max_steps=9, max_products=5)
    assert method.adjoint == ims.ImplicitAdjoint(ims.CG(max_steps=5, rtol=None))
    # five products span five dimensions
    phi, slopes = problem.closed_form(0.5)
    got = method.meta_gradient(*problem.arguments)
    np.testing.assert_allclose(adapted(method, problem), phi, atol=1e-8)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), slopes.mean(0), atol=1e-8)
    assert imaml.imaml_hf(damping=0.5).damping == 0.5
    gmres = ims.ImplicitAdjoint(ims.GMRES())
    assert imaml.imaml_hf(adjoint=gmres).adjoint == gmres


def test_hessian_free_descends_where_plain_steps_diverge():
    problem = quadratics(10, 3)
    stiff = dataclasses.replace(problem, A=100 * problem.A)
    plain = imaml.Imaml(2.0, ims.GradientDescent(0.1, max_steps=16, rtol=None))
    free = imaml.imaml_hf(2.0, steps=15).meta_gradient(*stiff.arguments)
    assert (plain.meta_gradient(*stiff.arguments).inner_residual > 1e3).all()
    assert (free.inner_residual < 1e-6).all()
    expected = stiff.closed_form(2.0)[1].mean(0)
    np.testing.assert_allclose(ravel(free.gradient).numpy(), expected, atol=1e-6)


def test_a_task_that_its_inner_solver_fails_is_left_out():
    problem = quadratics(11, 3)
    problem.A[1] *= 50  # gradient descent diverges there, and only there
    method = imaml.Imaml(2.0, ims.GradientDescent(0.1, max_steps=500), CG)
    got = method.meta_gradient(*problem.arguments)
    assert got.left_out.tolist() == [False, True, False]
    assert got.loss.isnan().tolist() == [False, True, False]
    slopes = problem.closed_form(2.0)[1]
    expected = (slopes[0] + slopes[2]) / 2
    np.testing.assert_allclose(ravel(got.gradient).numpy(), expected, atol=1e-8)


def test_a_task_that_cg_fails_is_left_out():
    problem = quadratics(12, 3)
    problem.A[2] -= 5 * torch.eye(5, dtype=torch.float64)
    budget = ims.GradientDescent(0.1, max_steps=4, rtol=None)
    got = imaml.Imaml(2.0, budget, CG).meta_gradient(*problem.arguments)
    assert got.left_out.tolist() == [False, False, True]
    without, _ = per_task(imaml.Imaml(2.0, budget, CG), problem)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), without[:2].mean(0), atol=1e-10)


def test_float32_stays_float32():
    problem = quadratics(13, 2)
    low = dataclasses.replace(
        problem,
        theta={name: t.float() for name, t in problem.theta.items()},
        A=problem.A.float(),
        c=problem.c.float(),
        y=problem.y.float(),
    )
    got = EXACT.meta_gradient(*low.arguments)
    assert {t.dtype for t in got if torch.is_tensor(t)} == {torch.float32, torch.bool}
    expected = problem.closed_form(2.0)[1].mean(0)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("strength", [0.0, -2.0, float("nan"), float("inf")])
def test_strength_must_be_positive_and_finite(strength):
    with pytest.raises(ValueError, match=r"strength.*positive and finite"):
        imaml.Imaml(strength)
    with pytest.raises(ValueError, match=r"strength.*positive and finite"):
        imaml.Imaml(strength=None).extend({"w": torch.zeros(2)}, strength)
    problem = quadratics()
    tensor = torch.tensor(strength, dtype=torch.float64)
    with pytest.raises(ValueError, match="strength has entries"):
        imaml.Imaml(tensor).meta_gradient(*problem.arguments)
    with pytest.raises(ValueError, match="strength has entries"):
        imaml.Imaml({**problem.theta, "w": tensor}).meta_gradient(*problem.arguments)


def test_strengths_must_fit_theta():
    problem = quadratics()
    with pytest.raises(ValueError, match="structure"):
        imaml.Imaml({"w": torch.ones(2, 2)}).meta_gradient(*problem.arguments)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        wrong = {"w": torch.ones(3).double(), "b": torch.ones(()).double()}
        imaml.Imaml(wrong).meta_gradient(*problem.arguments)
    with pytest.raises(TypeError, match="int64"):
        wrong = {"w": torch.ones(2, 2, dtype=torch.int64), "b": torch.ones(()).double()}
        imaml.Imaml(wrong).meta_gradient(*problem.arguments)
    with pytest.raises(TypeError, match="strength"):
        imaml.Imaml(True).meta_gradient(*problem.arguments)


def test_a_learned_strength_has_to_be_in_theta():
    with pytest.raises(ValueError, match="extend"):
        imaml.Imaml(strength=None).meta_gradient(*quadratics().arguments)
    trained = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="strength=None"):
        imaml.Imaml(trained).meta_gradient(*quadratics().arguments)


def test_a_learned_strength_that_is_nan_leaves_all_tasks_out():
    problem = quadratics()
    theta = {**problem.theta, "imaml.log_strength": torch.tensor(torch.nan).double()}
    got = imaml.Imaml(None).meta_gradient(
        quadratic_model, quadratic_criterion, theta, *problem.data
    )
    assert got.left_out.all()
    assert (ravel(got.gradient) == 0).all()


@pytest.mark.parametrize("damping", [-0.1, float("nan"), float("inf"), "0.1"])
def test_damping_must_be_a_number_of_at_least_zero(damping):
    with pytest.raises(ValueError, match="damping"):
        imaml.Imaml(damping=damping)


@pytest.mark.parametrize("adjoint", [ims.UnrolledAdjoint(), ims.OneStepAdjoint(), ims.CG()])
def test_the_adjoint_must_be_implicit(adjoint):
    with pytest.raises(TypeError, match="adjoint"):
        imaml.Imaml(adjoint=adjoint)


def test_batched_and_looped_agree():
    arguments = curves()
    for method in (imaml.Imaml(0.5), imaml.imaml_hf(0.5), dataclasses.replace(EXACT, damping=0.1)):
        looped = method.meta_gradient(*arguments, batching=imaml.Batching.LOOP)
        assert_same(method.meta_gradient(*arguments), looped, rtol=1e-7, atol=1e-8)
