"""Convex programs end on the right active set, in all units, or say that they did not."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.problems.convex import Clarabel, ConvexLayer
from tests.problems.qp.drawn_programs import on_active_set

DOUBLE = torch.float64


def layer_of(objective, constraints, parameters, x, **options):
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return ConvexLayer(problem, parameters, [x], **{"on_failure": "mask", **options})


def slopes(layer, values, weights):
    """The solution, and the gradients of its inner product with weights."""
    leaves = [torch.as_tensor(v).clone().requires_grad_() for v in values]
    solution = layer(*leaves)
    best = solution.value.variables[0]
    return solution, best.detach(), torch.autograd.grad((best * weights).sum(), leaves)


def test_a_box_of_any_width():
    y, top = cp.Variable(), cp.Parameter()
    layer = layer_of(cp.square(y - 3), [y >= 1, y <= top], [top], y)
    tops = 1 + 10.0 ** -torch.arange(12, dtype=DOUBLE)
    solution, best, (slope,) = slopes(layer, [tops], torch.ones(12, dtype=DOUBLE))
    assert not solution.degenerate.any()
    assert torch.equal(best, tops) and (slope == 1).all()
    # where the width is rounding, both sides hold it
    assert layer(torch.tensor(1 + 1e-14, dtype=DOUBLE)).degenerate


@pytest.mark.parametrize("power", range(10))
def test_a_trust_region_of_any_radius(power):
    x, center, goal, radius = cp.Variable(4), cp.Parameter(4), cp.Parameter(4), cp.Parameter()
    region = [cp.norm(x - center) <= radius]
    layer = layer_of(cp.sum_squares(x - goal), region, [center, goal, radius], x)
    generator = torch.Generator().manual_seed(power)
    center, goal, weights = torch.randn(3, 50, 4, dtype=DOUBLE, generator=generator)
    radius = torch.full((50,), 10.0**-power, dtype=DOUBLE)

    def nearest(center, goal, radius):
        far = goal - center
        length = torch.linalg.vector_norm(far, dim=-1, keepdim=True)
        share = (radius.unsqueeze(-1) / length).clamp(max=1)
        return center + share * far

    leaves = [t.clone().requires_grad_() for t in (center, goal, radius)]
    expected = torch.autograd.grad((nearest(*leaves) * weights).sum(), leaves)
    solution, best, found = slopes(layer, (center, goal, radius), weights)
    fine = solution.converged
    assert fine.sum() >= 47  # (the others say so)
    torch.testing.assert_close(best[fine], nearest(center, goal, radius)[fine])
    for own, truth in zip(found, expected, strict=True):
        # the data say how far the goal is from the center in units of the radius to eps / radius
        torch.testing.assert_close(own[fine], truth[fine], rtol=1e-8, atol=1e-8)


def drawn(kind, n, lanes):
    """Programs with ``3 n`` rows that have a solution, and layers for them."""
    rng, m = np.random.default_rng(n), 3 * n
    x, c, G, h = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
    rows = rng.normal(size=(lanes, m, n))
    inside = np.einsum("lmn,ln->lm", rows, rng.normal(size=(lanes, n)))
    prices = np.maximum(rng.normal(size=(lanes, m)), 0)
    values = [
        -np.einsum("lmn,lm->ln", rows, prices),
        rows,
        inside + rng.exponential(size=(lanes, m)),
    ]
    parameters, goal = [c, G, h], c @ x
    if kind == "quadratic":
        root = cp.Parameter((n, n))
        parameters, goal = [*parameters, root], goal + cp.sum_squares(root @ x) / 2
        values.append(rng.normal(size=(lanes, n, n)) / n**0.5 + 0.1 * np.eye(n))
    bounds = G @ x <= h
    layer = layer_of(goal, [bounds], parameters, x, duals=[bounds])
    return layer, values, rng.normal(size=(lanes, n))


def on_the_active_set(values, active, weights):
    """Return the gradients, and tell by how much the choice is the right one."""
    c, G, h, *root = values
    Q = root[0].T @ root[0] if root else np.zeros((len(c),) * 2)
    x, y, slack, dx, dh = on_active_set((Q, c, G, h), active, weights)
    curved = [R @ (np.outer(dx, x) + np.outer(x, dx)) for R in root]
    margin = min(y[active].min(initial=1), slack[~active].min(initial=1))
    return [dx, np.outer(y, dx) - np.outer(dh, x), dh, *curved], margin


@pytest.mark.parametrize("lanes", [40, pytest.param(500, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("n", [10, 30])
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_derivatives_are_those_of_the_active_set(kind, n, lanes):
    layer, values, weights = drawn(kind, n, lanes)
    solution, _, found = slopes(layer, values, torch.as_tensor(weights))
    assert solution.converged.all()
    active = (solution.value.duals[0] > 0).numpy()
    for lane in range(lanes):
        own = [v[lane] for v in values]
        truths, margin = on_the_active_set(own, active[lane], weights[lane])
        assert margin > 0
        size = max(abs(truth).max() for truth in truths)
        for slope, truth in zip(found, truths, strict=True):
            assert abs(slope[lane].numpy() - truth).max() <= 1e-10 * size


UNITS = {
    "the objective": lambda u: {"root": u**0.5, "c": u},
    "everything": lambda u: dict.fromkeys(NAMES, u) | {"root": u**0.5},
    "the variables": lambda u: {"c": u, "h": u, "b": u, "g": u, "t": u},
    "inequalities": lambda u: {"G": u, "h": u},
    "an equation": lambda u: {"A": u, "b": u},
    "a cone": lambda u: {"F": u, "g": u, "t": u},
}
NAMES = "root", "c", "G", "h", "A", "b", "F", "g", "t"


@pytest.fixture(scope="module")
def in_units():
    """A layer with all kinds of constraints, and values for it."""
    x, shapes = cp.Variable(4), ((4, 4), 4, (6, 4), 6, (1, 4), 1, (3, 4), 3, ())
    p = dict(zip(NAMES, map(cp.Parameter, shapes), strict=True))
    constraints = [
        p["G"] @ x <= p["h"],
        p["A"] @ x == p["b"],
        cp.norm(p["F"] @ x + p["g"]) <= p["t"],
    ]
    goal = cp.sum_squares(p["root"] @ x) / 2 + p["c"] @ x
    layer, rng = layer_of(goal, constraints, list(p.values()), x), np.random.default_rng(0)
    value = {name: rng.normal(size=(6, *p[name].shape)) for name in NAMES}
    inside = rng.normal(size=(6, 4, 1))
    value["h"] = (value["G"] @ inside).squeeze(-1) + rng.exponential(size=(6, 6))
    value["b"] = (value["A"] @ inside).squeeze(-1)
    reach = np.linalg.norm((value["F"] @ inside).squeeze(-1) + value["g"], axis=-1)
    value["t"] = reach + rng.exponential(size=6)
    return layer, value, torch.as_tensor(rng.normal(size=(6, 4)))


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("what", UNITS)
def test_no_unit_of_the_data_matters(in_units, what, unit):
    layer, value, weights = in_units
    scale = dict.fromkeys(NAMES, 1.0) | UNITS[what](unit)
    length = unit if what == "the variables" else 1.0
    _, plain, expected = slopes(layer, value.values(), weights)
    scaled = [scale[name] * value[name] for name in NAMES]
    solution, best, found = slopes(layer, scaled, weights)
    assert solution.converged.all() and not solution.degenerate.any()
    torch.testing.assert_close(best / length, plain, rtol=1e-9, atol=1e-9)
    for name, own, truth in zip(NAMES, found, expected, strict=True):
        torch.testing.assert_close(own * (scale[name] / length), truth, rtol=1e-8, atol=1e-8)


def test_a_huge_right_hand_side_is_no_constraint():
    x, c, h = cp.Variable(2), cp.Parameter(2), cp.Parameter(3)
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    layer = layer_of(cp.sum_squares(x) + c @ x, [rows @ x <= h], [c, h], x)
    c, h = torch.tensor([-4.0, -4.0]).double(), torch.tensor([1.0, 3.0, 1e12]).double()
    solution, best, (_, slope) = slopes(layer, [c, h], torch.ones(2, dtype=DOUBLE))
    assert solution.converged
    torch.testing.assert_close(best, torch.tensor([1.0, 2.0], dtype=DOUBLE))
    torch.testing.assert_close(slope, torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE))


def test_a_degenerate_vertex_has_the_derivative_of_one_side_and_says_so():
    x, h = cp.Variable(2), cp.Parameter(3)
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    program = cp.sum(-x), [rows @ x <= h], [h], x
    h = torch.tensor([1.0, 1.0, 2.0], dtype=DOUBLE)
    layer = layer_of(*program)
    slope = torch.autograd.functional.jacobian(lambda h: layer(h).value.variables[0], h)
    assert layer(h).converged and layer(h).degenerate
    sides = []
    for pair in ([0, 1], [0, 2], [1, 2]):  # of the rows, which make a vertex
        side = torch.zeros(2, 3, dtype=DOUBLE)
        side[:, pair] = torch.linalg.inv(torch.as_tensor(rows[pair]))
        sides.append(side)
    assert any(torch.allclose(slope, side) for side in sides)
    with pytest.warns(ims.ConvergenceWarning, match="degenerate"):
        layer_of(*program, on_failure="warn")(h)


def test_one_bad_lane_in_64_changes_no_bit_of_the_others(in_units):
    layer, value, weights = in_units
    many = {name: np.resize(v, (64, *v.shape[1:])) for name, v in value.items()}
    weights = torch.as_tensor(np.resize(weights, (64, 4)))
    _, plain, expected = slopes(layer, many.values(), weights)
    many["t"][7] = -1.0
    solution, best, found = slopes(layer, many.values(), weights)
    assert solution.status[7] == ims.Status.INFEASIBLE
    others = torch.arange(64) != 7
    for own, truth in zip((best, *found), (plain, *expected), strict=True):
        assert torch.equal(own[others], truth[others])
    assert all((slope[7] == 0).all() for slope in found)


def test_a_certificate_that_proves_nothing_is_not_believed():
    class Wrong:
        polish, workers = 10, 1

        def solve(self, *program):
            return Clarabel().solve(*program)._replace(status=ims.Status.INFEASIBLE)

    x, b = cp.Variable(2), cp.Parameter(2)
    layer = layer_of(cp.sum_squares(x - b), [x >= 0], [b], x, solver=Wrong())
    assert layer(torch.tensor([1.0, -1.0], dtype=DOUBLE)).status == ims.Status.STALLED


def test_without_an_objective_a_feasible_point_is_a_solution():
    x, h = cp.Variable(2), cp.Parameter(3)
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    layer = layer_of(0, [rows @ x <= h], [h], x)
    solution = layer(torch.tensor([1.0, -1.0, 2.0], dtype=DOUBLE))  # x_1 = 1 has no room
    assert solution.converged and solution.degenerate


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("third", [-1.0, 2.0])
@pytest.mark.parametrize("small", [0.0, 1e-13, -1e-13, 1e-9, -1e-9, 1e-5])
def test_an_eigenvalue_of_zero_is_degenerate_and_a_small_one_is_not(small, third, turned):
    X, C = (kind((3, 3), symmetric=True) for kind in (cp.Variable, cp.Parameter))
    layer = ConvexLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0]), [C], [X], on_failure="mask"
    )
    basis = torch.linalg.qr(torch.arange(9.0).reshape(3, 3).double().sin())[0]
    basis = basis if turned else torch.eye(3, dtype=DOUBLE)
    values = torch.tensor([1.0, small, third], dtype=DOUBLE)
    C, move = ((basis * values) @ basis.mT).requires_grad_(), torch.outer(basis[:, 1], basis[:, 1])
    solution = layer(C)
    assert solution.converged and bool(solution.degenerate) == (abs(small) < 1e-12)
    if not solution.degenerate:
        slope = torch.autograd.grad((solution.value.variables[0] * move).sum(), C)[0]
        expected = float(small > 0) * move
        torch.testing.assert_close(slope, expected, rtol=0, atol=1e-15 / abs(small) + 1e-9)
