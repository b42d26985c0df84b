"""`Imaml`, `Maml` and `FirstOrderMaml` against closed forms, unrolled steps and differences."""

import dataclasses
import re

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import grad

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from tests.problems.imaml import meta_tasks
from tests.problems.imaml.meta_tasks import curves, loss_of, one, quadratics, ravel, unravel

CG = ims.ImplicitAdjoint(ims.CG())
EXACT = imaml.Imaml(2.0, ims.NewtonCG(), CG)
GD, Optimizer = ims.GradientDescent, ims.TorchOptimizer


def adapted(method, problem):
    """Return phi (tasks, 5), what the predictor sees at A = 0."""
    model, criterion, theta, supports, _ = problem.arguments
    zero = torch.zeros(5, 5, dtype=torch.float64)
    predictors = [
        method.adapt(model, criterion, theta, one(supports, i)) for i in range(len(problem.A))
    ]
    return np.stack([predict(zero)[0].numpy() for predict in predictors])


def descend(objective, theta):
    for _ in range(150):
        slope = grad(objective)(theta)
        theta = {name: theta[name] - 0.3 * slope[name] for name in theta}
    return theta


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


def stationary(objective, theta):
    """Newton's step from theta is the stationary point of a quadratic function."""
    flat = ravel(theta)
    slope = grad(lambda z: objective(unravel(z)))(flat)
    K = torch.func.hessian(lambda z: objective(unravel(z)))(flat)
    return unravel(flat - torch.linalg.inv(K) @ slope)


def indefinite(solver):
    return imaml.Imaml(1.0, stationary, ims.ImplicitAdjoint(solver))


def of_two(solver):
    return imaml.Imaml(2.0, solver, CG), 2.0, 0.2


ROWS = {"w": torch.tensor([[1.0], [2.0]]).double(), "b": torch.tensor(3.0).double()}
# Ways to solve both equations, the strength, and the lowest curvature.
SOLVED = {
    "gradient descent": of_two(GD(0.3, max_steps=500)),
    "with a budget": of_two(GD(0.3, max_steps=150, rtol=None)),
    "L-BFGS": of_two(ims.LBFGS()),
    "SGD with momentum": of_two(Optimizer(torch.optim.SGD, lr=0.1, momentum=0.8, max_steps=500)),
    "Adam": of_two(Optimizer(torch.optim.Adam, lr=0.02, max_steps=5000)),
    "RMSprop": of_two(Optimizer(torch.optim.RMSprop, lr=1e-2, momentum=0.5, max_steps=5000)),
    "Adagrad": of_two(Optimizer(torch.optim.Adagrad, lr=0.5, max_steps=5000)),
    "SciPy": of_two(scipys_minimum),
    "a loop in torch": of_two(descend),
    # five products span five dimensions
    "Hessian-free": (imaml.imaml_hf(0.5, steps=9, cg_steps=5), 0.5, 0.2),
    "strengths that broadcast": (dataclasses.replace(EXACT, strength=ROWS), [1, 1, 2, 2, 3], 0.2),
    "a tensor": (dataclasses.replace(EXACT, strength=torch.tensor(1.5).double()), 1.5, 0.2),
    "MINRES": (indefinite(ims.MINRES()), 1.0, -3.0),
    "GMRES": (indefinite(ims.GMRES()), 1.0, -3.0),
    "LU": (indefinite(ims.LU()), 1.0, -3.0),
}


@pytest.mark.parametrize("name", SOLVED)
def test_every_solver_reaches_the_closed_form(name):
    method, strength, lowest = SOLVED[name]
    problem = quadratics(5 if lowest < 0 else 3, 2, lowest)
    phi, slopes = problem.closed_form(strength)
    # SciPy sees one task at a time
    batching = imaml.Batching.LOOP if name == "SciPy" else imaml.Batching.VMAP
    got = method.meta_gradient(*problem.arguments, batching=batching)
    assert not got.left_out.any() and (got.inner_residual < 1e-8).all()
    # judged by gradients of 1.8e-12 (relative); the sum of an objective's terms loses more
    np.testing.assert_allclose(adapted(method, problem), phi, atol=1e-7)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), slopes.mean(0), atol=1e-7)
    if lowest < 0:  # CG has to notice
        ends = indefinite(ims.CG()).meta_gradient(*problem.arguments).adjoint_status
        assert (ends == ims.Status.INDEFINITE).all()


def cg_by_hand(K, v, steps):
    """Return the estimate of CG, which stops at negative curvature, and whether it did."""
    x, r, p = np.zeros(5), v, v
    for _ in range(steps):
        if p @ K @ p <= 0:
            return x, True
        a = (r @ r) / (p @ K @ p)
        x, r, old = x + a * p, r - a * K @ p, r
        p = r + (r @ r) / (old @ old) * p
    return x, False


THREE = ims.ImplicitAdjoint(ims.CG(max_steps=3, rtol=None))
BUDGETS = {
    "default": (imaml.Imaml(), 2.0, 0.1, 16, 5),
    "another": (imaml.Imaml(1.5, GD(0.2, max_steps=7, rtol=None), THREE), 1.5, 0.2, 7, 3),
}


@pytest.mark.parametrize("method, strength, lr, steps, products", BUDGETS.values(), ids=BUDGETS)
def test_the_budgets_of_algorithm_2_step_by_step(method, strength, lr, steps, products):
    problem = quadratics(4, 3)
    theta, As, cs, ys = problem.arrays()
    slopes, inner, outer = [], [], []
    for A, c, y in zip(As, cs, ys, strict=True):
        K, phi = A + strength * np.eye(5), theta
        for _ in range(steps):
            phi = phi - lr * (K @ phi - c - strength * theta)
        v = phi - y
        x, _ = cg_by_hand(K, v, products)
        slopes.append(strength * x)
        inner.append(np.sqrt(np.mean((K @ phi - c - strength * theta) ** 2)))
        outer.append(np.linalg.norm(v - K @ x) / np.linalg.norm(v))
    got = method.meta_gradient(*problem.arguments)
    # a few steps of gradient descent and CG, in float64; residuals are differences
    np.testing.assert_allclose(ravel(got.gradient).numpy(), np.mean(slopes, 0), rtol=1e-9)
    np.testing.assert_allclose(got.inner_residual, inner, rtol=1e-6)
    np.testing.assert_allclose(got.adjoint_residual, outer, rtol=1e-6, atol=1e-12)
    if products < 5:  # far from solved: the residual means something
        assert max(outer) > 1e-3


@pytest.mark.parametrize("terms", [1, 2, 7])
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("s", [8.0, [6.0, 7.0, 8.0, 9.0, 10.0]], ids=["one", "each"])
def test_neumann_series(terms, damping, s):
    problem = quadratics(6, 3)
    strength = s if s == 8.0 else unravel(torch.tensor(s).double())
    method = imaml.Imaml(strength, ims.NewtonCG(), imaml.neumann_adjoint(terms), damping)
    phi, _ = problem.closed_form(s)
    expected = []
    for A, v in zip(problem.A.numpy(), phi - problem.y.numpy(), strict=True):
        M = damping * np.eye(5) + A / s  # of the transposed system: (I + S^-1 A)^T = I + A S^-1
        expected.append(sum(np.linalg.matrix_power(-M, k) @ v for k in range(terms)))
    got = method.meta_gradient(*problem.arguments)
    # phi to 1.8e-12 (eps**0.75) relative
    np.testing.assert_allclose(ravel(got.gradient).numpy(), np.mean(expected, 0), atol=1e-8)


def test_one_term_of_the_series_is_the_first_order_gradient():
    arguments = curves()
    solver = GD(0.1, max_steps=5, rtol=None)
    # (above the curvature: a budget that is worse than zero has failed)
    one_term = imaml.Imaml(9.0, solver, imaml.neumann_adjoint(1)).meta_gradient(*arguments)
    first_order = imaml.FirstOrderMaml(0.1, 5, proximal=9.0).meta_gradient(*arguments)
    torch.testing.assert_close(one_term[:4], first_order[:4])


def test_damping_chosen_by_itself_is_the_least_that_suffices():
    """Each task as with that damping alone: none, 0.5, and 2 where 1 is not enough."""
    problem, needed = quadratics(7, 3), [0.0, 0.5, 2.0]
    problem.A -= torch.tensor([0.0, 1.4, 2.5]).double()[:, None, None] * torch.eye(5).double()
    shared, solver = problem.arguments[:3], GD(0.1, max_steps=3, rtol=None)
    got = imaml.Imaml(1.0, solver, CG, "auto", "raise").meta_gradient(*problem.arguments)
    alone = [
        imaml.Imaml(1.0, solver, CG, damping).meta_gradient(*shared, *one(problem.data, [task]))
        for task, damping in enumerate(needed)
    ]
    for columns in zip(got[1:], *(a[1:] for a in alone), strict=True):
        torch.testing.assert_close(columns[0], torch.cat(columns[1:]))
    mean = sum(ravel(a.gradient) for a in alone) / 3
    torch.testing.assert_close(ravel(got.gradient), mean)
    less = imaml.Imaml(1.0, solver, CG, 1.0).meta_gradient(*problem.arguments)
    assert (less.adjoint_status == S.INDEFINITE).tolist() == [False, False, True]
    problem.A[2] -= 20 * torch.eye(5).double()
    with pytest.raises(ims.ConvergenceError, match="INDEFINITE") as failure:
        imaml.Imaml(1.0, solver, CG, "auto", "raise").meta_gradient(*problem.arguments)
    assert failure.value.__notes__ == ["The problems that were solved again are the tasks [2]."]


def test_hessian_free_descends_where_plain_steps_diverge():
    problem = quadratics(10, 3)
    stiff = dataclasses.replace(problem, A=100 * problem.A)
    plain = imaml.Imaml(2.0, GD(0.1, max_steps=16, rtol=None))
    free = imaml.imaml_hf(2.0, steps=15).meta_gradient(*stiff.arguments)
    assert (plain.meta_gradient(*stiff.arguments).inner_residual > 1e3).all()
    assert (free.inner_residual < 1e-6).all()
    # Hessians of order 100 times what is left of the inner residual
    np.testing.assert_allclose(
        ravel(free.gradient).numpy(), stiff.closed_form(2.0)[1].mean(0), atol=1e-6
    )
    gmres = ims.ImplicitAdjoint(ims.GMRES())
    own = imaml.imaml_hf(damping=0.5, adjoint=gmres)
    assert (own.damping, own.adjoint) == (0.5, gmres)


BUDGET = GD(0.1, max_steps=4, rtol=None)
MASK = {"on_failure": "mask"}
SERIES = imaml.Imaml(9.0, BUDGET, imaml.neumann_adjoint(20))
S = ims.Status


def shifted(A):
    return A - 5 * torch.eye(5).double()


# A method, what is done to the Hessian of the second task, and how its solves end.
FAILING = {
    "inner solver": (imaml.Imaml(2.0, GD(0.1, max_steps=500), CG), lambda A: 50 * A, S.NONFINITE),
    "CG": (imaml.Imaml(2.0, BUDGET, CG, **MASK), shifted, S.BUDGET, S.INDEFINITE),
    "series": (SERIES, lambda A: 20 * A, S.BUDGET, S.MAX_STEPS),
    "overflow": (imaml.Maml(0.1, 4), lambda A: 1e200 * A, S.NONFINITE),
    "overflow between checkpoints": (imaml.Maml(0.1, 4, True), lambda A: 1e200 * A, S.NONFINITE),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_task_that_fails_is_left_out(name):
    method, harm, *ends = FAILING[name]
    problem = quadratics(11, 3)
    problem.A[1] = harm(problem.A[1])
    got = method.meta_gradient(*problem.arguments)
    assert got.left_out.tolist() == got.loss.isnan().tolist() == [False, True, False]
    assert [int(got.inner_status[1]), int(got.adjoint_status[1])][: len(ends)] == ends
    *shared, supports, queries = problem.arguments
    others = method.meta_gradient(*shared, *(one(data, [0, 2]) for data in (supports, queries)))
    # where a solver stops may differ by a step
    torch.testing.assert_close(got.gradient, others.gradient, rtol=1e-8, atol=1e-8)


# what a policy says in each step, and whether the task is left out
POLICIES = {None: (None, False), "warn": ("adjoint .* failed .*INDEFINITE", False)}
POLICIES |= {"mask": (None, True)}


@pytest.mark.parametrize("policy", POLICIES)
def test_where_cg_meets_negative_curvature(policy, recwarn):
    """By default the estimate counts that CG had."""
    problem, (words, left_out) = quadratics(0, 2, lowest=-1.2), POLICIES[policy]
    phis = problem.closed_form(1.0)[0]
    pairs = zip(problem.A.numpy(), phis - problem.y.numpy(), strict=True)
    estimates, stopped = zip(*(cg_by_hand(A + np.eye(5), v, 3) for A, v in pairs), strict=True)
    assert stopped == (True, False) and estimates[0].any()
    got = imaml.Imaml(1.0, stationary, THREE, on_failure=policy).meta_gradient(*problem.arguments)
    assert got.left_out.tolist() == [left_out, False]
    assert got.adjoint_status.tolist() == [S.INDEFINITE, S.BUDGET]
    # three steps of CG, in float64
    expected = np.mean(estimates[left_out:], 0)
    np.testing.assert_allclose(ravel(got.gradient).numpy(), expected, rtol=1e-9)
    said = [str(w.message) for w in recwarn if w.category is ims.ConvergenceWarning]
    assert [bool(re.match(words, text)) for text in said] == [True] if words else said == []


@pytest.mark.parametrize("policy, first", [("mask", 2), (None, 21)])
def test_a_run_in_which_many_tasks_fail_is_warned_of_once(policy, first, recwarn):
    """Of one failure in each two tasks: when they are two, or 21 if they are kept."""
    problem = quadratics(0, 2, lowest=-1.2)
    method = imaml.Imaml(1.0, stationary, THREE, on_failure=policy)
    said = []
    for _ in range(first + 2):
        method.meta_gradient(*problem.arguments)
        said.append([str(w.message) for w in recwarn.list if "so far" in str(w.message)])
    assert [len(texts) for texts in said] == [0] * (first - 1) + [1, 1, 1]
    words = "were left out of" if policy else "have an estimate of a solve that failed in"
    words = rf"{first} of {2 * first} tasks so far {words} Imaml's .*: {first} INDEFINITE "
    assert re.match(words + r"\(linear solve\)\. .*raise strength.*MINRES", said[-1][0])
    other = imaml.Imaml(1.0, stationary, THREE, on_failure="mask")
    with pytest.warns(ims.ConvergenceWarning, match="2 of 4 tasks"):
        for _ in range(2):
            other.meta_gradient(*problem.arguments)


def test_a_learned_strength_that_is_nan_leaves_all_tasks_out():
    problem = quadratics()
    theta = {**problem.theta, "imaml.log_strength": torch.tensor(torch.nan).double()}
    model, criterion, *_ = problem.arguments
    with pytest.warns(ims.ConvergenceWarning, match="3 of 3 tasks so far"):
        got = imaml.Imaml(None).meta_gradient(model, criterion, theta, *problem.data)
    assert got.left_out.all()
    assert (ravel(got.gradient) == 0).all()


# ---- Steps that autograd unrolls ----


def unrolled(arguments, lr, steps, proximal, first_order):
    """Return the mean gradient, losses and inner residuals, through steps that autograd records."""
    model, criterion, theta, supports, queries = arguments
    gradients, losses, residuals = [], [], []
    for task in range(len(supports[0])):
        (x, y), (query_x, query_y) = one(supports, task), one(queries, task)
        start = {name: value.clone().requires_grad_() for name, value in theta.items()}
        phi = dict(start)
        for step in range(steps + 1):
            loss = criterion(model(phi, x), y)
            # the start counts as theta, the centre of the proximal term does not
            pull = sum((phi[name] - start[name]).square().sum() for name in phi)
            slopes = torch.autograd.grad(
                loss + proximal / 2 * pull, list(phi.values()), create_graph=not first_order
            )
            if step < steps:
                phi = {name: phi[name] - lr * s for name, s in zip(phi, slopes, strict=True)}
        residuals.append(ravel(slopes).detach().square().mean().sqrt())
        loss = criterion(model(phi, query_x), query_y)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(ravel({name: value.grad for name, value in start.items()}))
    return torch.stack(gradients).mean(0), torch.stack(losses), torch.stack(residuals)


UNROLLED = [
    *(imaml.Maml(0.2, steps, proximal=p) for steps in (0, 1, 4) for p in (0.0, 0.7)),
    *(imaml.Maml(0.1, 7, checkpoint, 0.3) for checkpoint in (True, 1, 2, 3, 7, 20)),
    *(imaml.FirstOrderMaml(0.2, steps, proximal=p) for steps in (0, 4) for p in (0.0, 0.7)),
]


@pytest.mark.parametrize("method", UNROLLED, ids=str)
def test_maml_is_what_autograd_unrolls(method):
    arguments, first_order = curves(tasks=2), isinstance(method, imaml.FirstOrderMaml)
    gradient, losses, residuals = unrolled(
        arguments, method.lr, method.steps, method.proximal, first_order
    )
    got = method.meta_gradient(*arguments)
    # the same steps, in float64
    torch.testing.assert_close(ravel(got.gradient), gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.loss, losses)
    torch.testing.assert_close(got.inner_residual, residuals)
    assert got.adjoint_residual.isnan().all()
    if first_order and method.steps:
        exact = imaml.Maml(method.lr, method.steps, proximal=method.proximal)
        exact = ravel(exact.meta_gradient(*arguments).gradient)
        assert (exact - gradient).norm() > 0.01 * gradient.norm()


# ---- Differences, and the definitions ----


LEARNED = {
    False: {"imaml.log_strength"},
    True: {f"imaml.log_strength.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")},
}


@pytest.mark.parametrize("per_parameter", [None, False, True])
def test_imamls_gradient_is_the_slope_of_its_loss(per_parameter):
    """Also in the strength, where it is learned; its start is what `extend` is given."""
    model, criterion, theta, *data = curves()
    fixed = dataclasses.replace(EXACT, strength=0.5)
    method, extended = fixed, theta
    if per_parameter is not None:
        method = dataclasses.replace(EXACT, strength=None)
        extended = method.extend(theta, 0.5, per_parameter=per_parameter)
    got = meta_tasks.assert_slope(method, (model, criterion, extended, *data))
    assert set(got.gradient) - set(theta) == LEARNED.get(per_parameter, set())
    torch.testing.assert_close(got.loss, fixed.meta_gradient(model, criterion, theta, *data).loss)


DEFINITIONS = {
    "iMAML": (imaml.Imaml(2.0), imaml.meta_loss, {"strength": 2.0}),
    "MAML": (
        imaml.Maml(0.1, 3, proximal=0.5),
        imaml.unrolled_meta_loss,
        {"steps": 3, "lr": 0.1, "strength": 0.5},
    ),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_method_and_the_definition_agree(name):
    method, meta_loss, options = DEFINITIONS[name]
    model, criterion, theta, supports, queries = curves()

    def mean(theta):
        loss = loss_of(model, criterion)
        each = [
            meta_loss(loss, theta, one(supports, i), one(queries, i), **options) for i in (0, 1, 2)
        ]
        return sum(each) / 3

    got = method.meta_gradient(model, criterion, theta, supports, queries)
    expected, value = torch.func.grad_and_value(mean)(theta)
    # the same steps
    torch.testing.assert_close(got.gradient, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.loss.mean(), value)
