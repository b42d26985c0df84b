"""The proximal term, its strengths, and minima that were found elsewhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from implicit_solvers.problems.imaml.attachment import attach_minimum, detached
from implicit_solvers.problems.imaml.inner_loop import (
    check_inner_loop,
    gradient_steps,
    rms_norm,
)
from implicit_solvers.problems.imaml.proximal import (
    check_damping,
    check_proximal,
    check_strength,
    proximal_term,
    strength_of_each_leaf,
)
from tests.problems.imaml.meta_tasks import quadratics, ravel, unravel

CG = ims.ImplicitAdjoint(ims.CG())


@given(
    s=st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
    seed=st.integers(0, 10**6),
)
def test_the_term_and_its_derivatives(s, seed):
    g = torch.Generator().manual_seed(seed)
    phi, theta = torch.randn(2, 5, generator=g, dtype=torch.float64)
    s = torch.tensor(s, dtype=torch.float64)
    expected = float((s * (phi - theta) ** 2).sum() / 2)
    pair = unravel(phi), unravel(theta)
    assert float(proximal_term(*pair, unravel(s))) == pytest.approx(expected)
    slope = grad(proximal_term)(*pair, unravel(s))
    np.testing.assert_allclose(ravel(slope), s * (phi - theta), rtol=1e-12)
    for same in (float(s[0]), s[0]):
        expected = float(s[0] * (phi - theta).square().sum() / 2)
        assert float(proximal_term(*pair, same)) == pytest.approx(expected)
        assert float(imaml.proximal_loss(lambda p, x: ravel(p) @ x, *pair, s, same)) == (
            pytest.approx(expected + float(phi @ s))
        )


def test_strengths_of_leaves():
    theta = unravel(torch.zeros(5))
    assert strength_of_each_leaf(3.0, theta) == [3.0, 3.0]
    number = torch.tensor(3.0)
    assert strength_of_each_leaf(number, theta) == [number, number]
    with pytest.raises(ValueError, match="structure"):
        strength_of_each_leaf(torch.ones(5), theta)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_unfit_strengths(bad):
    theta = unravel(torch.zeros(5))
    with pytest.raises(ValueError, match="positive and finite"):
        check_strength(bad, theta)
    with pytest.raises(ValueError, match="positive and finite"):
        check_proximal(bad, 0.0, theta)
    with pytest.raises(ValueError, match="not positive and finite: keep"):
        check_strength(torch.tensor(bad), theta)
    rows = {"w": torch.tensor([[1.0, bad]]), "b": torch.tensor(1.0)}
    with pytest.raises(ValueError, match="not positive and finite: keep"):
        check_strength(rows, theta)
    # what vmap batches cannot be read
    vmap(lambda s: check_strength(s, theta) or s)(torch.tensor([bad, 1.0]))


def test_strengths_of_another_kind_or_shape():
    theta = unravel(torch.zeros(5))
    for unfit in (True, "2.0", None):
        with pytest.raises((TypeError, ValueError), match="strength"):
            check_strength(unfit, theta)
    with pytest.raises(TypeError, match=r"strength has torch.int64"):
        check_strength({"w": torch.ones(2, 2, dtype=torch.int64), "b": torch.ones(())}, theta)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\) where theta has \(2, 2\)"):
        check_strength({"w": torch.ones(2, 2, 2), "b": torch.ones(())}, theta)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        check_strength({"w": torch.ones(3), "b": torch.ones(())}, theta)


@pytest.mark.parametrize("theta", [{}, {"w": 1.0}, [torch.zeros(2), None]])
def test_theta_of_no_tensors(theta):
    with pytest.raises(TypeError, match="theta"):
        check_proximal(1.0, 0.0, theta)


@pytest.mark.parametrize("damping", [-1e-9, float("nan"), float("inf"), torch.tensor(0.1), None])
def test_unfit_damping(damping):
    with pytest.raises(ValueError, match="damping"):
        check_damping(damping)
    with pytest.raises(ValueError, match="damping"):
        imaml.adapt(lambda p, x: (p - x).square().sum(), torch.zeros(2), 0.0, damping=damping)


@pytest.mark.parametrize("terms", [0, -1, 1.0, None])
def test_the_series_needs_a_number_of_terms(terms):
    with pytest.raises(ValueError, match="terms"):
        imaml.neumann_adjoint(terms)


def parabola(phi, a):
    return (phi - a).square().sum() * 1.5


def test_a_minimum_found_elsewhere_has_its_derivatives():
    problem = quadratics(1, 1)
    A, c = problem.A[0], problem.c[0]

    def objective(z, c):
        return z @ A @ z / 2 - c @ z

    inverse = torch.linalg.inv(A)
    jacobian = torch.func.jacrev(
        lambda c: attach_minimum(objective, inverse @ c.detach(), (c,), adjoint=CG).value
    )(c)
    torch.testing.assert_close(jacobian, inverse, rtol=1e-8, atol=1e-9)


def test_a_distance_damps_the_hessian():
    a = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def distance(phi, center):
        return 2.5 * (phi - center).square().sum()

    found = attach_minimum(parabola, a.detach(), (a,), distance=distance, adjoint=CG)
    torch.testing.assert_close(found.value, a)
    # the Hessian is 3, and 3 + 5 with the distance
    torch.testing.assert_close(
        torch.autograd.grad(found.value.sum(), a)[0], torch.full_like(a, 3 / 8)
    )
    assert found.residual == 0


def test_failures_stay_failures():
    a = torch.tensor([1.0, float("nan"), 3.0], dtype=torch.float64)
    shared = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def lane(a):
        def objective(phi, scale):
            return (phi - scale * a) ** 2

        found = ims.minimize(
            objective, torch.zeros_like(a), (shared,), solver=ims.NewtonCG(), on_failure="mask"
        )
        attached = attach_minimum(objective, found, (shared,), adjoint=CG, on_failure="mask")
        return attached.value, found.status, attached.status

    values, before, after = vmap(lane)(a)
    assert before.tolist() == after.tolist()
    assert (before > ims.Status.BUDGET).tolist() == [False, True, False]
    torch.testing.assert_close(values[[0, 2]], a[[0, 2]])
    slope = torch.autograd.grad(values[[0, 2]].sum() + 0 * values[1].nan_to_num(), shared)[0]
    torch.testing.assert_close(slope, torch.tensor(4.0).double())


def test_a_minimum_that_was_not_reached_has_no_derivative():
    a = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    curvatures = torch.tensor([10.0, 1e-3, 10.0], dtype=torch.float64)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def lane(a, curvature):
        def objective(phi, scale):
            return curvature * (phi - scale * a) ** 2 / 2

        solver = ims.GradientDescent(0.1, max_steps=5)  # one step where the curvature is 10
        found = ims.minimize(
            objective, torch.zeros_like(a), (scale,), solver=solver, on_failure="mask"
        )
        attached = attach_minimum(objective, found, (scale,), adjoint=CG, on_failure="mask")
        return attached.value, attached.status

    values, statuses = vmap(lane)(a, curvatures)
    assert statuses.tolist() == [0, ims.Status.MAX_STEPS, 0]
    torch.testing.assert_close(values[[0, 2]], a[[0, 2]])
    assert values[1].isfinite()
    slope = torch.autograd.grad(values.sum(), scale)[0]
    torch.testing.assert_close(slope, torch.tensor(4.0).double())


def test_a_point_that_is_not_finite_is_an_error():
    a = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(ims.ConvergenceError, match="parabola"):
        attach_minimum(parabola, torch.tensor(float("nan")), (a,))


def test_detached():
    t = torch.ones(2, requires_grad=True)
    out, text, more = detached((t, "text", {"t": t}))
    assert not out.requires_grad and not more["t"].requires_grad and text == "text"
    assert t.requires_grad


@given(lr=st.floats(0.01, 0.3), steps=st.integers(0, 8), a=st.floats(-3, 3))
def test_gradient_steps(lr, steps, a):
    start = torch.tensor(1.0, dtype=torch.float64)
    goal = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    phi = gradient_steps(lambda phi: parabola(phi, goal), start, lr, steps)
    share = (1 - 3 * lr) ** steps
    assert phi.item() == pytest.approx(share + (1 - share) * a, abs=1e-12)
    if steps:
        assert torch.autograd.grad(phi, goal)[0].item() == pytest.approx(1 - share, abs=1e-12)
    cut = gradient_steps(lambda phi: parabola(phi, goal), start, lr, steps, detach=True)
    assert not cut.requires_grad
    assert cut.item() == pytest.approx(phi.item())


def test_rms_norm():
    tree = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "b": torch.tensor(5.0)}
    assert float(rms_norm(tree)) == pytest.approx(np.sqrt(10))


def test_check_inner_loop():
    check_inner_loop("Maml", 0.1, 0)
    for unfit in ((0.0, 1, 0.0), (0.1, -1, 0.0), (0.1, 1, -1.0), (float("nan"), 1, 0.0)):
        with pytest.raises(ValueError, match="Maml has"):
            check_inner_loop("Maml", *unfit)
