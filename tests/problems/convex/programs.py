"""Convex programs, each with what the values of its parameters are drawn from."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cvxpy as cp
import numpy as np
import torch

from implicit_solvers.problems.convex import ConvexLayer


@dataclass(frozen=True)
class Program:
    objective: Any
    constraints: list
    parameters: list
    variables: list
    # by the place of a parameter: bounds, or a function of the generator
    drawn: dict = field(default_factory=dict)
    # values that make the constraints contradictory
    spoil: dict = field(default_factory=dict)
    duals: bool = True  # whether they are unique
    gp: bool = False

    def draw(self, rng):
        """Draw the parameters: normal numbers, where nothing else is said."""
        values = []
        for place, parameter in enumerate(self.parameters):
            how = self.drawn.get(place, lambda rng, shape=parameter.shape: rng.normal(size=shape))
            value = how(rng) if callable(how) else rng.uniform(*how, size=parameter.shape)
            symmetric = parameter.attributes["symmetric"]
            values.append(torch.as_tensor(value + value.T if symmetric else value).double())
        return values


def constrained_least_squares():
    x, A, b, total = cp.Variable(5), cp.Parameter((8, 5)), cp.Parameter(8), cp.Parameter()
    goal = cp.Minimize(cp.sum_squares(A @ x - b))
    return goal, [x >= 0, cp.sum(x) == total], [A, b, total], [x], {2: (0.5, 2)}, {2: -1.0}


def lasso():
    x, A, b = cp.Variable(5), cp.Parameter((8, 5)), cp.Parameter(8)
    weight = cp.Parameter(nonneg=True)
    goal = cp.Minimize(cp.sum_squares(A @ x - b) / 2 + weight * cp.norm1(x))
    return goal, [], [A, b, weight], [x], {2: (0.2, 1)}


def elastic_net():
    x, A, b = cp.Variable(5), cp.Parameter((8, 5)), cp.Parameter(8)
    one, two = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    fit = cp.sum_squares(A @ x - b) / 2
    goal = cp.Minimize(fit + one * cp.norm1(x) + two * cp.sum_squares(x))
    return goal, [], [A, b, one, two], [x], {2: (0.2, 1), 3: (0.1, 1)}


def logistic_regression():
    w, c, X = cp.Variable(3), cp.Variable(), cp.Parameter((10, 3))
    weight, labels = cp.Parameter(nonneg=True), np.resize([1.0, -1.0, -1.0], 10)
    loss = cp.sum(cp.logistic(-cp.multiply(labels, X @ w + c)))
    return cp.Minimize(loss + weight * cp.sum_squares(w)), [], [X, weight], [w, c], {1: (0.1, 1)}


def support_vector_machine():
    w, c, X = cp.Variable(3), cp.Variable(), cp.Parameter((12, 3))
    weight, labels = cp.Parameter(nonneg=True), np.resize([1.0, -1.0, -1.0], 12)
    loss = cp.sum(cp.pos(1 - cp.multiply(labels, X @ w + c)))
    drawn = {0: lambda rng: rng.normal(size=(12, 3)) + 0.3 * labels[:, None], 1: (0.1, 1)}
    return cp.Minimize(loss + weight * cp.sum_squares(w)), [], [X, weight], [w, c], drawn


def markowitz():
    x, mean, root = cp.Variable(5), cp.Parameter(5), cp.Parameter((5, 5))
    limit = cp.Parameter()
    goal = cp.Maximize(mean @ x - cp.sum_squares(root @ x))
    drawn = {1: lambda rng: rng.normal(size=(5, 5)) / 2 + 0.2 * np.eye(5), 2: (0.4, 0.8)}
    constraints = [cp.sum(x) == 1, x >= 0, x <= limit]
    return goal, constraints, [mean, root, limit], [x], drawn, {2: 0.1}


EDGES = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4)]
INCIDENCE = np.array([[(i == tail) - (i == head) for tail, head in EDGES] for i in range(5)]) * 1.0
SUPPLY = np.array([1.0, 0, 0, 0, -1])  # the five equations depend on one another


def minimum_cost_flow():
    flow, cost, capacity = cp.Variable(7), cp.Parameter(7), cp.Parameter(7)
    constraints = [INCIDENCE @ flow == SUPPLY, flow >= 0, flow <= capacity]
    drawn, spoil = {0: (1, 2), 1: (0.55, 0.9)}, {1: 0.07}
    return cp.Minimize(cost @ flow), constraints, [cost, capacity], [flow], drawn, spoil, False


def robust_linear_program():
    x, shape, bound = cp.Variable(4), cp.Parameter((4, 4)), cp.Parameter(6)
    fixed = np.random.default_rng(0)
    rows, gain = fixed.normal(size=(6, 4)), fixed.normal(size=4)
    spread = cp.norm(shape @ x)
    constraints = [*(row @ x + spread <= bound[i] for i, row in enumerate(rows)), cp.norm(x) <= 3]
    drawn = {0: lambda rng: 0.3 * (rng.normal(size=(4, 4)) + np.eye(4)), 1: (1, 2)}
    return cp.Maximize(gain @ x), constraints, [shape, bound], [x], drawn, {1: -30.0}


def max_cut(n=4):
    X, W = cp.Variable((n, n), PSD=True), cp.Parameter((n, n), symmetric=True)
    return cp.Maximize(cp.trace(W @ X) / 4), [cp.diag(X) == 1], [W], [X]


def entropy_maximization(n=6):
    p, moments = cp.Variable(n), cp.Parameter(2)
    B = np.random.default_rng(3).normal(size=(2, n))
    drawn = {0: lambda rng: B @ (0.5 * rng.dirichlet(np.ones(n)) + 0.5 / n)}
    constraints = [cp.sum(p) == 1, B @ p == moments]
    return cp.Maximize(cp.sum(cp.entr(p))), constraints, [moments], [p], drawn, {0: 100.0}


def linear_program():
    x, c = cp.Variable(3), cp.Parameter(3)
    G, h = cp.Parameter((5, 3)), cp.Parameter(5)
    drawn = {1: lambda rng: abs(rng.normal(size=(5, 3))), 2: (0.5, 1.5)}
    return cp.Minimize(c @ x), [G @ x <= h, x >= -1], [c, G, h], [x], drawn, {2: -100.0}


def inactive_parameter():
    x, A, b, upper = cp.Variable(4), cp.Parameter((6, 4)), cp.Parameter(6), cp.Parameter(4)
    goal = cp.Minimize(cp.sum_squares(A @ x - b))
    return goal, [x <= upper, x >= -50], [A, b, upper], [x], {2: (30, 40)}, {2: -60.0}


def nearest_in_box():
    x, p, low, total = cp.Variable(3), cp.Parameter(3), cp.Parameter(), cp.Parameter()
    constraints = [x >= low, x <= 1, cp.sum(x) == total]
    goal = cp.Minimize(cp.sum_squares(x - p) / 2)
    return goal, constraints, [p, low, total], [x], {1: (-0.1, 0.1), 2: (0.7, 1.5)}, {2: 4.0}


def power_norm():
    x, A, b, weight = cp.Variable(4), cp.Parameter((7, 4)), cp.Parameter(7), cp.Parameter()
    parts, norm = cp.Variable(7), cp.Variable()
    # cvxpy.pnorm(A @ x - b, 2.5, approx=False), which older CVXPY does not have
    cones = [cp.PowCone3D(parts, norm * np.ones(7), A @ x - b, 0.4), cp.sum(parts) == norm]
    limit = cp.sum(x) <= weight
    return cp.Minimize(norm), [*cones, limit], [A, b, weight], [x], {2: (-0.5, 0.5)}, {}, False


def geometric_mean():
    x, mean, price, budget = cp.Variable(3), cp.Variable(), cp.Parameter(3), cp.Parameter()
    constraints = [
        cp.constraints.PowConeND(x + 1, mean, np.array([0.2, 0.3, 0.5])),
        *(price @ x <= budget, x <= 0.8, x >= -0.95),
    ]
    drawn, spoil = {0: (0.5, 2), 1: (0.5, 2)}, {1: -20.0}
    return cp.Maximize(mean), constraints, [price, budget], [x], drawn, spoil


def powers():
    x, p, total = cp.Variable(4), cp.Parameter(4), cp.Parameter()
    parts = cp.Variable(4)
    constraints = [cp.PowCone3D(parts, np.ones(4), x - p, 0.6), cp.sum(x) == total, x <= 2]
    return cp.Minimize(cp.sum(parts)), constraints, [p, total], [x], {1: (-3, -2)}, {1: 9.0}


def box_design():
    h, w, d = (cp.Variable(pos=True) for _ in range(3))
    wall, floor, low, high = (cp.Parameter(pos=True) for _ in range(4))
    room = [2 * (h * w + h * d) <= wall, w * d <= floor]
    constraints = [*room, h / w >= low, h / w <= high, d / w <= high]
    drawn = {0: (90, 110), 1: (10, 12), 2: (0.4, 0.5), 3: (1.8, 2.2)}
    leaves = [wall, floor, low, high], [h, w, d]
    return cp.Maximize(h * w * d), constraints, *leaves, drawn, {2: 9.0}, True, True


def powers_of_powers():
    x, costs, exponent = cp.Variable(3, pos=True), cp.Parameter(4, pos=True), cp.Parameter(pos=True)
    terms = [x[0] ** exponent / x[1], exponent * x[1] * x[2] ** exponent, 1 / x[0], x[0] / x[2]]
    goal = cp.Minimize(cp.sum(cp.multiply(costs, cp.hstack(terms))))
    constraints, drawn = [cp.prod(x) <= costs[0]], {0: (0.5, 2), 1: (0.5, 1.5)}
    return goal, constraints, [costs, exponent], [x], drawn, {}, True, True


def every_cone():
    x, X, a = cp.Variable(3), cp.Variable((3, 3), symmetric=True), cp.Parameter(3)
    constraints = [
        cp.sum(x) == a[0],
        x <= a[1],
        cp.SOC(a[2] + x[0], x[1:] - 1),
        X - np.eye(3) >> np.diag([0, 1, 2]),
        cp.ExpCone(x[0], 1 + 0 * x[0], X[0, 1] + x[1] + 1),
        cp.PowCone3D(1 + x[2], 1 + 0 * x[0], X[0, 2] + 2, 0.3),
    ]
    target = np.array([[1.0, 2, -1], [2, 0, 3], [-1, 3, 4]])
    loss = cp.sum_squares(x - np.array([1, 2, 3])) + cp.sum_squares(X - a[0] * target)
    drawn = {0: lambda rng: [1.5, 0.8, 0.4] + 0.05 * rng.normal(size=3)}
    return cp.Minimize(loss), constraints, [a], [x, X], drawn, {0: -5.0}


PROGRAMS = {
    make.__name__: make
    for make in (
        *(constrained_least_squares, lasso, elastic_net, logistic_regression),
        *(support_vector_machine, markowitz, minimum_cost_flow, robust_linear_program, max_cut),
        *(entropy_maximization, linear_program, inactive_parameter, nearest_in_box),
        *(power_norm, geometric_mean, powers, box_design, powers_of_powers, every_cone),
    )
}


@cache
def made(name, **options):
    """A program, its problem and its layer, canonicalized once for all tests."""
    program = Program(*PROGRAMS[name]())
    problem = cp.Problem(program.objective, program.constraints)
    duals = program.constraints if program.duals else ()
    leaves = program.parameters, program.variables
    options |= {"duals": duals, "gp": program.gp, "on_failure": "mask"}
    layer = ConvexLayer(problem, *leaves, **options)
    return program, problem, layer


def parts(solution):
    """All variables and dual variables, and the optimal value."""
    duals = [d if isinstance(d, tuple) else (d,) for d in solution.value.duals]
    duals = [part for dual in duals for part in dual]
    return [*solution.value.variables, *duals, solution.value.objective]


def flat(solution):
    """All of these in one vector."""
    return torch.cat([p.reshape(*solution.status.shape, -1) for p in parts(solution)], -1)
