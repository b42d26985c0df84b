"""`Maml` and `FirstOrderMaml` on quadratics, and against steps that autograd unrolls."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from implicit_solvers.problems import imaml
from implicit_solvers.problems.live_memory import LiveMemory
from tests.problems.imaml.meta_tasks import (
    assert_same,
    curves,
    difference_and_slope,
    one,
    quadratics,
    ravel,
)


def unrolled(arguments, lr, steps, proximal, first_order=False):
    """Return the mean gradient and the losses, through steps that autograd records."""
    model, criterion, theta, supports, queries = arguments
    gradients, losses = [], []
    for task in range(len(supports[0])):
        (x, y), (query_x, query_y) = one(supports, task), one(queries, task)
        start = {name: value.clone().requires_grad_() for name, value in theta.items()}
        phi = dict(start)
        for _ in range(steps):
            loss = criterion(model(phi, x), y)
            pull = sum((phi[name] - start[name]).square().sum() for name in phi)
            slopes = torch.autograd.grad(
                loss + proximal / 2 * pull, list(phi.values()), create_graph=not first_order
            )
            phi = {name: phi[name] - lr * s for name, s in zip(phi, slopes, strict=True)}
        loss = criterion(model(phi, query_x), query_y)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(ravel({name: value.grad for name, value in start.items()}))
    return torch.stack(gradients).mean(0), torch.stack(losses)


@pytest.mark.parametrize("proximal", [0.0, 0.7])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_maml_is_what_autograd_unrolls(steps, proximal):
    arguments = curves(tasks=2)
    gradient, losses = unrolled(arguments, 0.2, steps, proximal)
    got = imaml.Maml(0.2, steps, proximal=proximal).meta_gradient(*arguments)
    torch.testing.assert_close(ravel(got.gradient), gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.loss, losses)


@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(0, 6),
    lr=st.floats(0.01, 0.3),
    proximal=st.floats(0, 2),
)
def test_the_closed_forms_of_quadratic_tasks(seed, steps, lr, proximal):
    problem = quadratics(seed, 2)
    theta, As, cs, ys = problem.arrays()
    exact, first_order, residuals, iterates = [], [], [], []
    for A, c, y in zip(As, cs, ys, strict=True):
        K, phi, D = A + proximal * np.eye(5), theta, np.eye(5)
        for _ in range(steps):
            phi = phi - lr * (K @ phi - c - proximal * theta)
            D = D - lr * (K @ D - proximal * np.eye(5))
        exact.append(D.T @ (phi - y))
        # the start counts as theta, the centre of the proximal term does not
        first_order.append(phi - y)
        residuals.append(np.sqrt(np.mean((K @ phi - c - proximal * theta) ** 2)))
        iterates.append(phi)
    for method, expected in (
        (imaml.Maml(lr, steps, proximal=proximal), exact),
        (imaml.Maml(lr, steps, checkpoint=True, proximal=proximal), exact),
        (imaml.FirstOrderMaml(lr, steps, proximal=proximal), first_order),
    ):
        got = method.meta_gradient(*problem.arguments)
        np.testing.assert_allclose(ravel(got.gradient), np.mean(expected, 0), atol=1e-12)
        np.testing.assert_allclose(got.loss, problem.query_loss(np.stack(iterates)), atol=1e-11)
        np.testing.assert_allclose(got.inner_residual, residuals, atol=1e-12)
        assert got.adjoint_residual.isnan().all()


@pytest.mark.parametrize("method", [imaml.Maml(0.3, 3), imaml.Maml(0.1, 4, True, 0.5)])
def test_the_gradient_is_the_slope_of_the_loss(method):
    difference, slope = difference_and_slope(method, curves())
    # truncation h² = 1e-10 times a third derivative of order 1, rounding 1e-16 / h = 1e-11
    torch.testing.assert_close(difference, slope, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("checkpoint", [True, 1, 2, 3, 7, 20])
def test_checkpoints_change_nothing(checkpoint):
    arguments = curves()
    plain = imaml.Maml(0.1, 7, proximal=0.3).meta_gradient(*arguments)
    got = imaml.Maml(0.1, 7, checkpoint, 0.3).meta_gradient(*arguments)
    assert_same(got, plain, rtol=1e-10, atol=1e-12)


def test_checkpoints_save_memory():
    arguments = curves()

    def peak(steps, checkpoint):
        with LiveMemory() as memory:
            imaml.Maml(0.01, steps, checkpoint).meta_gradient(*arguments)
        return memory.peak

    # linear in the steps; with checkpoints, in their square root
    assert 3.5 < peak(64, False) / peak(16, False) < 4.5
    assert peak(64, True) < peak(64, False) / 2
    assert peak(64, True) / peak(16, True) < 2.5


def test_the_first_order_gradient_takes_the_steps_to_be_constant():
    arguments = curves()
    got = imaml.FirstOrderMaml(0.2, 4).meta_gradient(*arguments)
    expected, losses = unrolled(arguments, 0.2, 4, 0.0, first_order=True)
    torch.testing.assert_close(got.loss, losses)
    torch.testing.assert_close(ravel(got.gradient), expected, rtol=1e-10, atol=1e-12)
    exact = imaml.Maml(0.2, 4).meta_gradient(*arguments)
    assert (ravel(exact.gradient) - expected).norm() > 0.01 * expected.norm()


def test_a_task_that_overflows_is_left_out():
    problem = quadratics(1, 3)
    problem.A[1] *= 1e200
    for checkpoint in (False, True):
        got = imaml.Maml(0.1, 4, checkpoint).meta_gradient(*problem.arguments)
        assert got.left_out.tolist() == [False, True, False]
        assert ravel(got.gradient).isfinite().all()


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"lr": -0.1}, {"strength": -1.0}], ids=str)
def test_unrolled_meta_loss_refuses_what_makes_no_sense(wrong):
    one = torch.tensor(1.0)
    options = {"steps": 1, "lr": 0.5, "strength": 0.0} | wrong
    with pytest.raises(ValueError, match="unrolled_meta_loss has"):
        imaml.unrolled_meta_loss(lambda phi, x: (phi - x) ** 2, one, one, one, **options)


def test_unrolled_meta_loss_is_maml():
    model, criterion, theta, supports, queries = curves(tasks=1)

    def loss(phi, data):
        x, y = data
        return criterion(model(phi, x), y)

    got = imaml.Maml(0.1, 3, proximal=0.5).meta_gradient(model, criterion, theta, supports, queries)
    options = {"steps": 3, "lr": 0.1, "strength": 0.5}
    gradient, value = torch.func.grad_and_value(
        lambda t: imaml.unrolled_meta_loss(loss, t, one(supports, 0), one(queries, 0), **options)
    )(theta)
    torch.testing.assert_close(got.gradient, gradient)
    torch.testing.assert_close(got.loss[0], value)


@pytest.mark.parametrize("kind", [imaml.Maml, imaml.FirstOrderMaml, imaml.Reptile])
@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan"), float("inf")])
def test_the_step_length_must_be_positive(kind, lr):
    with pytest.raises(ValueError, match=f"{kind.__name__} has lr"):
        kind(lr, 1)


@pytest.mark.parametrize("kind", [imaml.Maml, imaml.FirstOrderMaml, imaml.Reptile])
@pytest.mark.parametrize("steps", [-1, 1.5])
def test_steps_must_be_a_number_of_steps(kind, steps):
    with pytest.raises(ValueError, match=f"{kind.__name__} has steps"):
        kind(0.1, steps)


@pytest.mark.parametrize("kind", [imaml.Maml, imaml.FirstOrderMaml])
@pytest.mark.parametrize("proximal", [-1.0, float("nan"), float("inf")])
def test_the_proximal_term_must_not_be_negative(kind, proximal):
    with pytest.raises(ValueError, match=f"{kind.__name__} has proximal"):
        kind(0.1, 1, proximal=proximal)


@pytest.mark.parametrize("checkpoint", [-1, 2.5, None])
def test_checkpoint_must_be_a_number_of_steps(checkpoint):
    with pytest.raises(ValueError, match="checkpoint"):
        imaml.Maml(0.1, 1, checkpoint)
