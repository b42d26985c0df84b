"""What cvxpylayers tests of its layers for torch, in our words: one test for each of its tests."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import implicit_solvers as ims
from implicit_solvers.problems.convex import Clarabel, ConvexLayer

DOUBLE = torch.float64
x = cp.Variable(3)
A, b = cp.Parameter((6, 3)), cp.Parameter(6)
one, two = cp.Parameter(1, nonneg=True), cp.Parameter(1, nonneg=True)


def layer_of(objective, constraints=(), **options):
    problem = cp.Problem(cp.Minimize(objective), list(constraints))
    leaves = problem.parameters(), problem.variables()
    return ConvexLayer(problem, *(sorted(v, key=lambda leaf: leaf.id) for v in leaves), **options)


def ridge():
    return layer_of(cp.sum_squares(A @ x - b) + cp.sum_squares(x))


def drawn(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=DOUBLE)
    return [draw(shape).requires_grad_() for shape in shapes]


def first(layer, *values):
    return layer(*values).value.variables[0]


def solved(A, b):
    return torch.cholesky_solve(
        A.mT @ b.unsqueeze(-1), torch.linalg.cholesky(A.mT @ A + torch.eye(3))
    )


MODES = {"check_forward_ad": True, "check_batched_grad": True, "fast_mode": True}


def test_a_norm_of_residuals():
    layer = layer_of(0.5 * cp.norm1(A @ x - b), [x >= 0])
    values = [v.detach().float().requires_grad_() for v in drawn((6, 3), 6)]
    first(layer, *values).sum().backward()
    assert all(v.grad.isfinite().all() for v in values)


def test_a_batch_of_second_order_cones():
    y, q = cp.Variable((3, 1)), cp.Parameter((3, 1))
    root, row, right = cp.Parameter((3, 3)), cp.Parameter((1, 3)), cp.Parameter((1, 1))
    loss = 0.5 * cp.sum_squares(root @ y) + q.T @ y
    problem = cp.Problem(cp.Minimize(loss), [row @ y == right, cp.norm(y) <= 1])
    layer = ConvexLayer(problem, [root, q, row, right], [y])
    values = drawn((2, 3, 3), (2, 3, 1), (2, 1, 3), (2, 1, 1), seed=3)
    values[3] = (0.3 * values[3]).detach().requires_grad_()
    assert gradcheck(lambda *v: first(layer, *v), values, **MODES)


def test_least_squares():
    values = drawn((6, 3), 6)
    found = torch.autograd.grad(first(ridge(), *values).sum(), values)
    expected = torch.autograd.grad(solved(*values).sum(), values)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_solver_of_ones_own():
    class Counted:
        polish, workers, calls = 5, 1, 0

        def solve(self, *program):
            self.calls += 1
            return Clarabel().solve(*program)

    own = Counted()
    layer = layer_of(cp.sum_squares(A @ x - b) + cp.sum_squares(x), solver=own)
    values = drawn((6, 3), 6)
    torch.testing.assert_close(first(layer, *values), solved(*values).squeeze(-1))
    assert own.calls == 1


def test_logistic_regression():
    w, X, labels = cp.Variable((2, 1)), cp.Parameter((5, 2)), np.array([1.0, 0, 0, 1, 1])[:, None]
    pairs = cp.hstack([np.zeros((5, 1)), X @ w])
    likelihood = cp.sum(cp.multiply(labels, X @ w) - cp.log_sum_exp(pairs, axis=1, keepdims=True))
    problem = cp.Problem(cp.Minimize(-likelihood + one * cp.sum_squares(w)))
    layer = ConvexLayer(problem, [X, one], [w])
    strength = torch.tensor([0.1], dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda *v: first(layer, *v), (*drawn((5, 2)), strength), **MODES)


def test_entropy_under_equations_and_inequalities():
    p, G, h = cp.Variable(5), cp.Parameter((2, 5)), cp.Parameter(2)
    C, d = cp.Parameter((2, 5)), cp.Parameter(2)
    goal = cp.Maximize(cp.sum(cp.entr(p)) - 0.01 * cp.sum_squares(p))
    layer = ConvexLayer(cp.Problem(goal, [C @ p == d, G @ p <= h]), [C, d, G, h], [p])
    rows, sides = drawn((2, 5), (2, 5))
    inside = torch.tensor([0.2, 0.5, 0.1, 0.7, 0.4], dtype=DOUBLE)
    room = torch.tensor([0.01, 2.0], dtype=DOUBLE)
    values = [rows, rows.detach() @ inside, sides, sides.detach() @ inside + room]
    values = [v.detach().requires_grad_() for v in values]
    assert gradcheck(lambda *v: first(layer, *v), values, **MODES)


def test_a_limited_multilabel_projection():
    scores, y = cp.Parameter(4), cp.Variable(4)
    loss = -scores @ y - cp.sum(cp.entr(y)) - cp.sum(cp.entr(1 - y))
    layer = ConvexLayer(cp.Problem(cp.Minimize(loss), [cp.sum(y) == 2]), [scores], [y])
    value = torch.tensor([1.0, -1, -1, -1], dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda v: first(layer, v), value, **MODES)


def test_a_semidefinite_program():
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    layer = ConvexLayer(
        cp.Problem(cp.Minimize(cp.trace(C @ X)), [X >> 0, cp.trace(X) == 1]), [C], [X]
    )
    value = [[2.0, 0.5, 0.1], [0.5, 3.0, 0.2], [0.1, 0.2, 1.5]]
    value = torch.tensor(value, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda v: first(layer, v), value, **MODES)
    v = torch.linalg.eigh(value.detach())[1][:, 0]  # of the least eigenvalue
    torch.testing.assert_close(first(layer, value).detach(), v.outer(v))


WRONG = {
    "too few parameters": (lambda: ConvexLayer(PENALTIES, [one], [x]), "lacks"),
    "a variable of another": (
        lambda: ConvexLayer(PENALTIES, [one, two], [x, cp.Variable(1)]),
        "is not in",
    ),
    "too few values": (
        lambda: ConvexLayer(PENALTIES, [one, two], [x])(torch.ones(1)),
        "1 tensors for 2",
    ),
    "None for a value": (
        lambda: ConvexLayer(PENALTIES, [one, two], [x])(torch.ones(1), None),
        "NoneType",
    ),
    "lanes that differ": (lambda: ridge()(*drawn((32, 6, 3), (20, 6))), "do not broadcast"),
    "another shape": (lambda: ridge()(*drawn((32, 6, 3), (32, 12))), "has the shape"),
    "another shape, no lanes": (lambda: ridge()(*drawn((6, 3), 12)), "has the shape"),
    "lanes of lanes that differ": (
        lambda: ridge()(*drawn((32, 6, 3), (32, 31, 6))),
        "not broadcast",
    ),
}
PENALTIES = cp.Problem(cp.Minimize(one * cp.norm1(x) + two * cp.sum_squares(x)))


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused(name):
    call, said = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=said):
        call()


@pytest.mark.parametrize("kind", ["INFEASIBLE", "UNBOUNDED"])
def test_what_has_no_solution_raises(kind):
    y, p = cp.Variable(1), cp.Parameter(1)
    ends = [y >= 1, y <= -1] if kind == "INFEASIBLE" else [y <= p]
    layer = layer_of(y + p, ends)
    with pytest.raises(ims.ConvergenceError, match=kind):
        layer(torch.ones(1))


def test_a_shared_value_gets_the_sum():
    A_value, b_value = drawn((6, 3), 6)
    twice = torch.stack([b_value, b_value])
    found = torch.autograd.grad(first(ridge(), A_value, twice).sum(), [A_value, b_value])
    expected = torch.autograd.grad(2 * solved(A_value, b_value).sum(), [A_value, b_value])
    torch.testing.assert_close(found, expected)


def test_two_layers_share_a_value():
    layers = [layer_of(cp.sum_squares(A @ x - v.detach().numpy())) for v in drawn(6, 6, seed=1)]
    assert gradcheck(lambda v: torch.cat([first(own, v) for own in layers]), drawn((6, 3)), **MODES)


def test_equations():
    right = cp.Parameter(3)
    layer = layer_of(cp.sum_squares(x), [np.eye(3) @ x == right])
    assert gradcheck(lambda v: first(layer, v), drawn(3), **MODES)


class TestGeometricPrograms:
    h, w, d = (cp.Variable(pos=True) for _ in range(3))
    price, budget, power = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter()
    faces = h * w + h * d + w * d
    problem = cp.Problem(cp.Minimize(1 / (h * w * d)), [price * faces <= budget, h >= w**power])
    values = torch.tensor([[2.0, 1.5, 2.5], [1.0, 1.2, 0.8], [0.5, 0.6, 0.4]]).double().unbind()

    def layer(self):
        return ConvexLayer(
            self.problem, [self.price, self.budget, self.power], [self.h, self.w, self.d], gp=True
        )

    @pytest.mark.parametrize("batched", [False, True])
    def test_values_and_derivatives(self, batched):
        assert all(p.value is None for p in self.problem.parameters())
        layer = self.layer()
        values = [v.clone() if batched else v[:1].clone() for v in self.values]
        solution = layer(*values)
        for lane in range(len(values[0])):
            for parameter, value in zip(layer.declared, values, strict=True):
                parameter.value = float(value[lane])
            self.problem.solve(solver="CLARABEL", gp=True, tol_gap_abs=1e-11, tol_gap_rel=1e-11)
            found = [float(v[lane]) for v in solution.value.variables]
            np.testing.assert_allclose(
                found, [v.value for v in (self.h, self.w, self.d)], rtol=1e-5
            )
        for parameter in layer.declared:
            parameter.value = None
        leaves = [v.requires_grad_() for v in values]
        assert gradcheck(lambda *v: layer(*v).value.variables, leaves, **MODES)


@pytest.mark.parametrize("how", ["no_grad", "no leaf"])
def test_no_graph_is_made_where_none_is_asked_for(how):
    values = drawn((6, 3), 6)
    if how == "no leaf":
        best = first(ridge(), *(v.detach() for v in values))
    else:
        with torch.no_grad():
            best = first(ridge(), *values)
    assert not best.requires_grad


def test_a_batch_of_one_is_a_batch():
    (value,) = drawn((1, 3))
    right = cp.Parameter(3)
    best = first(layer_of(cp.sum_squares(x - right)), value)
    best.sum().backward()
    assert best.shape == value.grad.shape == (1, 3)


def test_settings_reach_the_solver():
    values = [v.detach() for v in drawn((6, 3), 6)]
    options = {"solver": Clarabel(max_steps=1, polish=0), "on_failure": "mask"}
    loss = cp.norm1(A @ x - b)
    short, full = layer_of(loss, **options)(*values), layer_of(loss)(*values)
    assert short.status == ims.Status.MAX_STEPS
    of = lambda solution: (values[0] @ solution.value.variables[0] - values[1]).abs().sum()
    assert of(full) < of(short) - 1e-3


def test_a_matrix_of_unknowns():
    X, B = cp.Variable((3, 4)), cp.Parameter((6, 4))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ X - B) + cp.sum_squares(X)))
    layer = ConvexLayer(problem, [A, B], [X])
    A_value, B_value = drawn((6, 3), (6, 4))
    expected = torch.linalg.inv(A_value.mT @ A_value + torch.eye(3)) @ A_value.mT @ B_value
    torch.testing.assert_close(first(layer, A_value, B_value), expected)


point, tilt = cp.Variable(3), cp.Parameter(3)
bend1, bend2 = cp.Parameter((3, 3), PSD=True), cp.Parameter((3, 3), PSD=True)
fall, symmetric = cp.Parameter((3, 3), NSD=True), cp.Parameter((3, 3), symmetric=True)
FORMS = {
    "of a sum": (
        cp.Minimize(cp.quad_form(point, bend1 + bend2) / 2 + tilt @ point),
        [bend1, bend2],
        1,
    ),
    "in two": (
        cp.Minimize(cp.quad_form(point, bend1) / 2 + cp.quad_form(point, bend2) / 2 + tilt @ point),
        *([bend1, bend2], 1),
    ),
    "negated": (cp.Minimize(cp.quad_form(point, -fall) / 2 + tilt @ point), [fall], -1),
    "maximized": (cp.Maximize(cp.quad_form(point, fall) / 2 + tilt @ point), [fall], 1),
}


@pytest.mark.skipif(not hasattr(cp.constraints, "SvecPSD"), reason="CVXPY is too old")
@pytest.mark.parametrize("name", FORMS)
def test_quadratic_forms_whose_matrices_are_parameters(name):
    goal, matrices, sign = FORMS[name]
    size = 1.0 if len(matrices) == 2 else -1.0
    roots = drawn((2, 3, 3), (2, 3, 3))[: len(matrices)]
    values = [size * (r.detach() @ r.detach().mT + torch.eye(3)) for r in roots]
    values = [v.requires_grad_() for v in (*values, *drawn((2, 3)))]
    free = ConvexLayer(cp.Problem(goal), [*matrices, tilt], [point])
    expected = torch.linalg.solve(-sign * sum(values[:-1]), values[-1].unsqueeze(-1))
    torch.testing.assert_close(first(free, *values), expected.squeeze(-1))
    near = ConvexLayer(cp.Problem(goal, [cp.abs(point) <= 0.2]), [*matrices, tilt], [point])
    alike = lambda *v: first(near, *((part + part.mT) / 2 for part in v[:-1]), v[-1])
    assert gradcheck(alike, values, **MODES)


@pytest.mark.parametrize(
    ("goal", "parameters"),
    [
        (lambda: cp.quad_form(point, symmetric), [symmetric]),
        (lambda: cp.quad_form(point, bend1 @ bend1, assume_PSD=True), [bend1]),
        (lambda: cp.quad_form(point + tilt, bend1), [tilt, bend1]),
    ],
)
def test_other_quadratic_forms_are_refused(goal, parameters):
    with pytest.raises(ValueError, match="DCP|DPP"):
        ConvexLayer(cp.Problem(cp.Minimize(goal()), [cp.sum(point) == 1]), parameters, [point])
