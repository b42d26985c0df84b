"""Twelve textbook problems, each with a way to draw the values of its parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

__all__ = ["PROBLEMS", "TextbookProblem"]


@dataclass(frozen=True)
class TextbookProblem:
    problem: cp.Problem
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]
    draw: Callable[[np.random.Generator], list[Any]]
    spoil: Callable[[list[Any]], list[Any]] | None = None  # makes the constraints contradictory


def constrained_least_squares():
    x, A, b, total = cp.Variable(5), cp.Parameter((8, 5)), cp.Parameter(8), cp.Parameter()
    objective = cp.Minimize(cp.sum_squares(A @ x - b))
    return TextbookProblem(
        cp.Problem(objective, [x >= 0, cp.sum(x) == total]),
        [A, b, total],
        [x],
        lambda rng: [rng.normal(size=(8, 5)), rng.normal(size=8), rng.uniform(0.5, 2)],
        lambda values: [values[0], values[1], -1.0],
    )


def lasso():
    x, A, b = cp.Variable(5), cp.Parameter((8, 5)), cp.Parameter(8)
    weight = cp.Parameter(nonneg=True)
    objective = cp.Minimize(cp.sum_squares(A @ x - b) / 2 + weight * cp.norm1(x))
    return TextbookProblem(
        cp.Problem(objective),
        [A, b, weight],
        [x],
        lambda rng: [rng.normal(size=(8, 5)), rng.normal(size=8), rng.uniform(0.2, 1)],
    )


def elastic_net():
    x, A, b = cp.Variable(5), cp.Parameter((8, 5)), cp.Parameter(8)
    one, two = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    fit = cp.sum_squares(A @ x - b) / 2
    return TextbookProblem(
        cp.Problem(cp.Minimize(fit + one * cp.norm1(x) + two * cp.sum_squares(x))),
        [A, b, one, two],
        [x],
        lambda rng: [
            rng.normal(size=(8, 5)),
            rng.normal(size=8),
            rng.uniform(0.2, 1),
            rng.uniform(0.1, 1),
        ],
    )


def logistic_regression():
    w, c, X = cp.Variable(3), cp.Variable(), cp.Parameter((10, 3))
    weight, labels = cp.Parameter(nonneg=True), np.resize([1.0, -1.0, -1.0], 10)
    loss = cp.sum(cp.logistic(-cp.multiply(labels, X @ w + c)))
    return TextbookProblem(
        cp.Problem(cp.Minimize(loss + weight * cp.sum_squares(w))),
        [X, weight],
        [w, c],
        lambda rng: [rng.normal(size=(10, 3)), rng.uniform(0.1, 1)],
    )


def support_vector_machine():
    w, c, X = cp.Variable(3), cp.Variable(), cp.Parameter((12, 3))
    weight, labels = cp.Parameter(nonneg=True), np.resize([1.0, -1.0, -1.0], 12)
    loss = cp.sum(cp.pos(1 - cp.multiply(labels, X @ w + c)))
    return TextbookProblem(
        cp.Problem(cp.Minimize(loss + weight * cp.sum_squares(w))),
        [X, weight],
        [w, c],
        lambda rng: [
            rng.normal(size=(12, 3)) + 0.3 * labels[:, None],
            rng.uniform(0.1, 1),
        ],
    )


def markowitz():
    x, mean, root = cp.Variable(5), cp.Parameter(5), cp.Parameter((5, 5))
    limit = cp.Parameter()
    objective = cp.Maximize(mean @ x - cp.sum_squares(root @ x))
    return TextbookProblem(
        cp.Problem(objective, [cp.sum(x) == 1, x >= 0, x <= limit]),
        [mean, root, limit],
        [x],
        lambda rng: [
            rng.normal(size=5),
            rng.normal(size=(5, 5)) / 2 + 0.2 * np.eye(5),
            rng.uniform(0.4, 0.8),
        ],
        lambda values: [values[0], values[1], 0.1],
    )


def minimum_cost_flow():
    edges = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4)]
    incidence = np.zeros((5, 7))
    for j, (tail, head) in enumerate(edges):
        incidence[tail, j], incidence[head, j] = 1, -1
    flow, cost, capacity = cp.Variable(7), cp.Parameter(7), cp.Parameter(7)
    supply = np.array([1.0, 0, 0, 0, -1])  # the five equations depend on one another
    constraints = [incidence @ flow == supply, flow >= 0, flow <= capacity]
    return TextbookProblem(
        cp.Problem(cp.Minimize(cost @ flow), constraints),
        [cost, capacity],
        [flow],
        lambda rng: [rng.uniform(1, 2, size=7), rng.uniform(0.55, 0.9, size=7)],
        lambda values: [values[0], 0.1 * values[1]],
    )


def robust_linear_program():
    x, shape, bound = cp.Variable(4), cp.Parameter((4, 4)), cp.Parameter(6)
    fixed = np.random.default_rng(0)
    rows, gain = fixed.normal(size=(6, 4)), fixed.normal(size=4)
    spread = cp.norm(shape @ x)
    constraints = [rows[i] @ x + spread <= bound[i] for i in range(6)]
    return TextbookProblem(
        cp.Problem(cp.Maximize(gain @ x), [*constraints, cp.norm(x) <= 3]),
        [shape, bound],
        [x],
        lambda rng: [
            0.3 * rng.normal(size=(4, 4)) + 0.3 * np.eye(4),
            rng.uniform(1, 2, size=6),
        ],
        lambda values: [values[0], -20 * values[1]],
    )


def max_cut():
    X, W = cp.Variable((4, 4), PSD=True), cp.Parameter((4, 4), symmetric=True)

    def draw(rng):
        weights = rng.normal(size=(4, 4))
        return [weights + weights.T]

    objective = cp.Maximize(cp.trace(W @ X) / 4)
    return TextbookProblem(cp.Problem(objective, [cp.diag(X) == 1]), [W], [X], draw)


def entropy_maximization():
    p, moments = cp.Variable(6), cp.Parameter(2)
    B = np.random.default_rng(3).normal(size=(2, 6))
    constraints = [cp.sum(p) == 1, B @ p == moments]
    return TextbookProblem(
        cp.Problem(cp.Maximize(cp.sum(cp.entr(p))), constraints),
        [moments],
        [p],
        lambda rng: [B @ (0.5 * rng.dirichlet(np.ones(6)) + 0.5 / 6)],
        lambda values: [100 + 0 * values[0]],
    )


def linear_program():
    x, c = cp.Variable(3), cp.Parameter(3)
    G, h = cp.Parameter((5, 3)), cp.Parameter(5)
    return TextbookProblem(
        cp.Problem(cp.Minimize(c @ x), [G @ x <= h, x >= -1]),
        [c, G, h],
        [x],
        lambda rng: [
            rng.normal(size=3),
            abs(rng.normal(size=(5, 3))),
            rng.uniform(0.5, 1.5, size=5),
        ],
        lambda values: [values[0], values[1], -100 + 0 * values[2]],
    )


def inactive_parameter():
    x, A, b, upper = cp.Variable(4), cp.Parameter((6, 4)), cp.Parameter(6), cp.Parameter(4)
    return TextbookProblem(
        cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x <= upper, x >= -50]),
        [A, b, upper],
        [x],
        lambda rng: [rng.normal(size=(6, 4)), rng.normal(size=6), rng.uniform(30, 40, size=4)],
        lambda values: [values[0], values[1], -60 + 0 * values[2]],
    )


PROBLEMS = {
    make.__name__: make
    for make in (
        constrained_least_squares,
        lasso,
        elastic_net,
        logistic_regression,
        support_vector_machine,
        markowitz,
        minimum_cost_flow,
        robust_linear_program,
        max_cut,
        entropy_maximization,
        linear_program,
        inactive_parameter,
    )
}
