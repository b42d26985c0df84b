"""Programs whose solutions have formulas: structured leaves, and degenerate solutions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.func import grad, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.problems.convex import SCS, Clarabel, ConvexLayer
from implicit_solvers.problems.projections import project_psd_cone, project_simplex

x, y, low, X = cp.Variable(2), cp.Variable(3), cp.Variable(nonneg=True), cp.Variable((2, 3))
capped, positive = cp.Variable(2, bounds=[-1, 1]), cp.Variable((3, 3), PSD=True)
symmetric, diagonal = cp.Variable((2, 2), symmetric=True), cp.Variable((2, 2), diag=True)
p, q, total, M = cp.Parameter(2), cp.Parameter(3), cp.Parameter(), cp.Parameter((2, 3))
K, W = cp.Parameter((2, 2)), cp.Parameter((3, 3), symmetric=True)
where = (np.array([0, 1]), np.array([1, 1]))
sparse = cp.Variable((2, 2), sparsity=where), cp.Parameter((2, 2), sparsity=where)
LINES = np.array([[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]])
bend, other = cp.Parameter((3, 3), PSD=True), cp.Parameter((3, 3), PSD=True)
fall = cp.Parameter((3, 3), NSD=True)


def structured(kind):
    """A matrix of a kind, and the solution of its equations."""
    value = {"NSD": [[-2.0, 0.5], [0.5, -3.0]], "diag": [[2.0, 0.0], [0.0, 3.0]]}
    value = value.get(kind, [[2.0, 0.5], [0.5, 3.0]])
    matrix = cp.Parameter((2, 2), **{kind: True})
    part = (lambda A: A.diagonal().diag()) if kind == "diag" else (lambda A: (A + A.mT) / 2)
    solution = lambda A: torch.linalg.inv(part(A)).sum(1)
    return Form(x, matrix @ x - 1, {matrix: value}, solution)


class Form(NamedTuple):
    """The ``variable`` that makes ``|error|`` least, as a function of the parameters."""

    variable: Any
    error: Any
    values: dict
    formula: Callable
    constraints: tuple = ()


FORMS = {
    "no constraints": Form(
        x, cp.multiply(x, [1.0, 2.0]) + p, {p: [2.0, 4.0]}, lambda p: -p / torch.tensor([1.0, 2.0])
    ),
    "entries, not columns": Form(
        X, X - M, {M: [[0.0, 1, 2], [3, 4, 5]]}, lambda M: M.clamp(max=3.8), (X <= 3.8,)
    ),
    "a simplex": Form(
        *(y, y - q, {q: [0.9, 0.2, -0.7], total: 0.8}),
        *(lambda q, t: project_simplex(q, t), (y >= 0, cp.sum(y) == total)),
    ),
    "dependent equations": Form(
        *(x, x - p, {p: [1.0, 5.0], total: 2.0}, lambda p, t: p + (t - p.sum()) / 2),
        (np.array([1.0, 2.0, 1.0]) * total == LINES @ x,),
    ),
    "equal roots": Form(positive, positive - W, {W: np.diag([2.0, 2.0, -1.0])}, project_psd_cone),
    "symmetric": Form(symmetric, symmetric - K, {K: [[1.0, 2], [4, -3]]}, lambda K: (K + K.mT) / 2),
    "diag": Form(diagonal, diagonal - K, {K: [[1.0, 2], [4, -3]]}, lambda K: K.diagonal().diag()),
    "nonneg": Form(low, low + total, {total: 1.0}, lambda t: 0 * t),
    "bounds": Form(capped, capped - p, {p: [0.5, -2.0]}, lambda p: p.clamp(-1, 1)),
    "sparsity": Form(
        *(sparse[0], sparse[0] - sparse[1], {sparse[1]: [[0.0, 2], [0, 5]]}),
        lambda A: A * torch.tensor([0.0, 1.0]),
    ),
    **{f"a {kind} parameter": structured(kind) for kind in ("PSD", "NSD", "symmetric", "diag")},
}


def layer_of(objective, constraints, parameters, variables, **options):
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return ConvexLayer(problem, parameters, variables, **options)


@pytest.mark.parametrize("solver", [Clarabel(), SCS()], ids=["clarabel", "scs"])
@pytest.mark.parametrize("name", FORMS)
def test_values_and_both_jacobians_are_those_of_the_formula(name, solver):
    variable, error, given, formula, constraints = FORMS[name]
    goal = cp.sum_squares(error)
    layer = layer_of(goal, list(constraints), list(given), [variable], solver=solver)
    solve = lambda *values: layer(*values).value.variables[0]
    values = [torch.tensor(v, dtype=torch.float64) for v in given.values()]
    lanes = [torch.stack([v, 1.1 * v]) for v in values]
    torch.testing.assert_close(solve(*lanes), vmap(formula)(*lanes), check_dtype=False)
    places = tuple(range(len(values)))
    expected = jacrev(formula, places)(*values)
    for jacobian in (jacrev, jacfwd):
        torch.testing.assert_close(jacobian(solve, places)(*values), expected, check_dtype=False)
    twice = vmap(jacrev(solve, places))(*lanes)
    torch.testing.assert_close(twice, vmap(jacrev(formula, places))(*lanes), check_dtype=False)


# goals, their matrices, and the sign that makes the sum of these a curvature
HALVES = cp.quad_form(y, bend) / 2 + cp.quad_form(y, other) / 2
QUADRATIC = {
    "of a sum": (cp.Minimize(cp.quad_form(y, bend + other) / 2 + q @ y), [bend, other], 1),
    "in two": (cp.Minimize(HALVES + q @ y), [bend, other], 1),
    "negated": (cp.Minimize(cp.quad_form(y, -fall) / 2 + q @ y), [fall], -1),
    "maximized": (cp.Maximize(cp.quad_form(y, fall) / 2 - q @ y), [fall], -1),
}


@pytest.mark.skipif(not hasattr(cp.constraints, "SvecPSD"), reason="CVXPY is too old")
@pytest.mark.parametrize("name", QUADRATIC)
def test_quadratic_forms_whose_matrices_are_parameters(name):
    goal, matrices, sign = QUADRATIC[name]
    roots, tilt = torch.randn(len(matrices), 2, 3, 3).double(), torch.randn(2, 3).double()
    values = [sign * (root @ root.mT + torch.eye(3)) for root in roots]
    values = [v.requires_grad_() for v in (*values, tilt)]
    leaves = [*matrices, q], [y]
    (best,) = ConvexLayer(cp.Problem(goal), *leaves)(*values).value.variables
    expected = -torch.linalg.solve(sign * sum(values[:-1]), tilt.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(best, expected)
    near = ConvexLayer(cp.Problem(goal, [cp.abs(y) <= 0.2]), *leaves)
    alike = lambda *v: near(*((part + part.mT) / 2 for part in v[:-1]), v[-1]).value.variables[0]
    modes = {"check_forward_ad": True, "check_batched_grad": True, "fast_mode": True}
    assert gradcheck(alike, values, **modes)


OTHER_FORMS = {
    "of a matrix of any sign": (lambda: cp.quad_form(y, W), [W]),
    "of a product": (lambda: cp.quad_form(y, bend @ bend, assume_PSD=True), [bend]),
    "around a parameter": (lambda: cp.quad_form(y + q, bend), [q, bend]),
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_other_quadratic_forms_are_refused(name):
    form, parameters = OTHER_FORMS[name]
    with pytest.raises(ValueError, match="DCP|DPP"):
        layer_of(form(), [cp.sum(y) == 1], parameters, [y])


def test_a_batch_of_one_is_a_batch_and_no_graph_is_made_unless_asked_for():
    layer = layer_of(cp.sum_squares(x - p), [], [p], [x])
    value = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    (best,) = layer(value).value.variables
    best.sum().backward()
    assert best.shape == value.grad.shape == (1, 2)
    assert not layer(value.detach()).value.variables[0].requires_grad
    with torch.no_grad():
        assert not layer(value).value.variables[0].requires_grad


def test_a_problem_without_parameters_follows_the_default_dtype():
    layer = layer_of(cp.sum_squares(x - 1), [], [], [x])
    torch.testing.assert_close(layer().value.variables[0], torch.ones(2))


def test_a_value_that_matters_to_nothing_still_makes_lanes():
    layer = layer_of(cp.sum_squares(x - 1) + total, [], [total], [x])
    offsets = torch.randn(3, dtype=torch.float64, requires_grad=True)
    (best,) = layer(offsets).value.variables
    torch.testing.assert_close(best, torch.ones(3, 2, dtype=torch.float64))
    if best.requires_grad:
        (slope,) = torch.autograd.grad(best.sum(), offsets, materialize_grads=True)
        assert (slope == 0).all()
    mapped = vmap(lambda a: layer(a).value.variables[0])(offsets.detach())
    torch.testing.assert_close(mapped, best.detach())


def test_duals_are_the_slope_of_the_optimum():
    constraints = [y >= 0, cp.sum(y) == total]
    layer = layer_of(cp.sum_squares(y - q) / 2, constraints, [q, total], [y], duals=constraints[1:])
    values = torch.tensor([0.9, 0.2, -0.7]).double(), torch.tensor(0.8).double()
    (price,) = layer(*values).value.duals
    optimum = lambda t: (layer(values[0], t).value.variables[0] - values[0]).square().sum() / 2
    torch.testing.assert_close(grad(optimum)(values[1]), -price)
    # reading them has left the problem as it was
    assert all(leaf.value is None for leaf in (y, *(c.dual_variables[0] for c in constraints)))


def test_what_depends_on_the_choice_of_a_minimizer_raises():
    program = cp.sum(x), [x >= 0, cp.sum(x) >= total], [total], [x]
    value = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (best,) = layer_of(*program)(value).value.variables
    (slope,) = torch.autograd.grad(best.sum(), value, retain_graph=True)
    torch.testing.assert_close(slope, torch.ones((), dtype=torch.float64))
    optimum = layer_of(*program)(value).value.objective
    (slope,) = torch.autograd.grad(optimum, value)
    torch.testing.assert_close((optimum, slope), (value, torch.ones_like(value)))
    with pytest.raises(ims.ConvergenceError, match="SINGULAR"):
        torch.autograd.grad(best[0], value)
    (best,) = layer_of(*program, on_failure="mask")(value).value.variables
    with pytest.warns(ims.ConvergenceWarning, match="SINGULAR"):
        (slope,) = torch.autograd.grad(best[0], value)
    assert slope == 0


def test_at_a_kink_the_derivative_is_one_sided():
    free = cp.Variable()
    layer = layer_of(cp.square(free), [free >= total], [total], [free])
    lows = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    layer(lows).value.variables[0].sum().backward()
    assert lows.grad[0] == 0 and lows.grad[2] == 1 and lows.grad[1] in (0, 1)
