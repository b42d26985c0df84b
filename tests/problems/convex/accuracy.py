"""Classes of convex programs, and their derivatives by equations that CVXPY has no part in.

The active set is read off a solve by CVXPY; on it the optimality conditions are smooth equations
``F(z, *theta) = 0``, as one writes them by hand. Newton's method makes the solution exact, and the
implicit function theorem, with a Jacobian by autograd, its derivatives.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import torch
from torch.func import jacrev, jvp

from implicit_solvers.problems.convex import ConvexLayer
from tests.problems.convex import programs

KINK = 1e-3  # draws whose slacks and multipliers are not this far from zero are drawn again


class Class(NamedTuple):
    """A problem; how its parameters are drawn; what ``z`` begins with, and its equations."""

    problem: Any
    parameters: list
    variables: list
    draw: Callable
    # of the solution and the parameters: the start, the equations, and the distance to a kink
    equations: Callable


def of_program(made, equations):
    """A class of which the other tests have the problem."""
    program = programs.Program(*made)
    problem = cp.Problem(program.objective, program.constraints)
    return Class(problem, program.parameters, program.variables, program.draw, equations)


def linear():
    x, c, G, h = cp.Variable(6), cp.Parameter(6), cp.Parameter((15, 6)), cp.Parameter(15)

    def draw(rng):
        G = rng.normal(size=(15, 6))
        return -G.T @ rng.uniform(0, 1, 15), G, rng.uniform(0.5, 1.5, 15)

    def equations(x, c, G, h):
        slack = h - G @ x
        active = slack < 1e-6
        y = torch.linalg.lstsq(G[active].T, -c[:, None]).solution
        margin = min(float(slack[~active].min()), float(y.min()))
        return x, lambda z, c, G, h: (G @ z - h)[active], margin

    problem = cp.Problem(cp.Minimize(c @ x), [G @ x <= h])
    return Class(problem, [c, G, h], [x], draw, equations)


def dependent_rows():
    N, s = torch.tensor(programs.INCIDENCE[:4]), torch.tensor(programs.SUPPLY[:4])

    def equations(x, cost, capacity):
        low, high = x < 1e-6, x > capacity - 1e-6
        free = torch.minimum(x, capacity - x)[~low & ~high]
        duals = torch.linalg.lstsq(N[:, ~low & ~high].T, cost[~low & ~high, None]).solution
        reduced = (cost - N.T @ duals[:, 0]) * (low.double() - high.double())
        held = lambda z, capacity: torch.cat([z[low], (z - capacity)[high]])
        F = lambda z, cost, capacity: torch.cat([N @ z - s, held(z, capacity)])
        return x, F, min(float(free.min()), float(reduced[low | high].min()))

    return of_program(programs.minimum_cost_flow(), equations)


def quadratic():
    x, R, c = cp.Variable(6), cp.Parameter((6, 6)), cp.Parameter(6)
    G, h, A, b = cp.Parameter((8, 6)), cp.Parameter(8), cp.Parameter((2, 6)), cp.Parameter(2)

    def draw(rng):
        n, R = rng.normal, 0.3 * rng.normal(size=(6, 6)) + np.eye(6)
        x = n(size=6)
        G, A = n(size=(8, 6)), n(size=(2, 6))
        return R, 2 * n(size=6), G, G @ x + rng.uniform(0, 1, 8), A, A @ x

    def equations(x, R, c, G, h, A, b):
        slack = h - G @ x
        on = slack < 1e-6
        rows = torch.cat([G[on], A])
        y = torch.linalg.lstsq(rows.T, -(R.T @ R @ x + c)[:, None]).solution[:, 0]

        def F(z, R, c, G, h, A, b):
            x, y, rows = z[:6], z[6:], torch.cat([G[on], A])
            return torch.cat([R.T @ R @ x + c + rows.T @ y, rows @ x - torch.cat([h[on], b])])

        margin = torch.cat([slack[~on], y[: int(on.sum())]]).min()
        return torch.cat([x, y]), F, float(margin)

    goal = cp.Minimize(cp.sum_squares(R @ x) / 2 + c @ x)
    problem = cp.Problem(goal, [G @ x <= h, A @ x == b])
    return Class(problem, [R, c, G, h, A, b], [x], draw, equations)


def huber_lasso():
    x, A, b = cp.Variable(6), cp.Parameter((20, 6)), cp.Parameter(20)
    weight = cp.Parameter(nonneg=True)
    pull = lambda x, A, b: 2 * A.T @ (A @ x - b).clamp(-1, 1)

    def equations(x, A, b, weight):
        on, sign = x.abs() > 1e-6, x.sign()

        def F(z, A, b, weight):
            return torch.where(on, pull(z, A, b) + weight * sign, z)

        apart = ((A @ x - b).abs() - 1).abs().min()
        room = (weight - pull(x, A, b).abs())[~on]
        return x, F, float(torch.cat([room, x.abs()[on], apart[None]]).min())

    goal = cp.Minimize(cp.sum(cp.huber(A @ x - b, 1)) + weight * cp.norm1(x))
    draw = lambda rng: (rng.normal(size=(20, 6)), 2 * rng.normal(size=20), rng.uniform(2, 5))
    return Class(cp.Problem(goal), [A, b, weight], [x], draw, equations)


def second_order():
    x, c, R, q = cp.Variable(5), cp.Parameter(5), cp.Parameter((5, 5)), cp.Parameter(5)
    r, A, b = cp.Parameter(), cp.Parameter((1, 5)), cp.Parameter(1)

    def draw(rng):
        R, A = 0.3 * rng.normal(size=(5, 5)) + np.eye(5), rng.normal(size=(1, 5))
        return rng.normal(size=5), R, 0.3 * rng.normal(size=5), rng.uniform(2, 3), A, [0.3]

    def normals(x, R, q, A):
        arrow = R @ x + q
        return torch.cat([(R.T @ arrow / arrow.norm())[None], A])

    def equations(x, c, R, q, r, A, b):
        y = torch.linalg.lstsq(normals(x, R, q, A).T, -c[:, None]).solution[:, 0]

        def F(z, c, R, q, r, A, b):
            x, y = z[:5], z[5:]
            ends = torch.stack([(R @ x + q).norm() - r, *(A @ x - b)])
            return torch.cat([c + normals(x, R, q, A).T @ y, ends])

        return torch.cat([x, y]), F, float(y[0])

    problem = cp.Problem(cp.Minimize(c @ x), [cp.norm(R @ x + q) <= r, A @ x == b])
    return Class(problem, [c, R, q, r, A, b], [x], draw, equations)


def semidefinite_equations(X, C, b, matrices):
    """``(S X + X S) / 2 = 0``, ``<A_i, X> = b_i``, with ``S = C - sum_i y_i A_i``."""
    k = len(X)
    upper = torch.triu_indices(k, k)
    full = lambda z: torch.zeros(k, k).double().index_put((upper[0], upper[1]), z)
    symmetric = lambda z: full(z) + full(z).T - full(z).diagonal().diag()

    def F(z, C, b):
        X, y = symmetric(z[: upper.shape[1]]), z[upper.shape[1] :]
        S = C - torch.einsum("i,ijk->jk", y, matrices)
        both = (S @ X + X @ S) / 2
        return torch.cat([both[upper[0], upper[1]], (matrices * X).sum((-1, -2)) - b])

    y = torch.linalg.lstsq((matrices @ X).flatten(1).T, (C @ X).flatten()[:, None]).solution[:, 0]
    S = C - torch.einsum("i,ijk->jk", y, matrices)
    # strictly complementary: X and S have no null vector in common
    margin = torch.linalg.eigvalsh(X + S).min()
    return torch.cat([X[upper[0], upper[1]], y]), F, float(margin)


def semidefinite():
    X, C, b = cp.Variable((4, 4), symmetric=True), cp.Parameter((4, 4), symmetric=True), None
    rng = np.random.default_rng(5)
    matrices = np.stack([np.eye(4), *(M + M.T for M in rng.normal(size=(3, 4, 4)))])
    b = cp.Parameter(4)
    traces = [cp.trace(M @ X) == b[i] for i, M in enumerate(matrices)]

    def draw(rng):
        root, C = rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
        inside = root @ root.T / 4 + 0.1 * np.eye(4)
        return C + C.T, (matrices * inside).sum((-1, -2))

    A = torch.tensor(matrices)
    equations = lambda X, C, b: semidefinite_equations(X, C, b, A)
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), [*traces, X >> 0])
    return Class(problem, [C, b], [X], draw, equations)


def max_cut():
    A = torch.eye(5).double()[:, :, None] * torch.eye(5).double()[:, None, :]

    def equations(X, W):
        z, F, margin = semidefinite_equations(X, -W / 4, torch.ones(5).double(), A)
        return z, lambda z, W: F(z, -W / 4, torch.ones(5).double()), margin

    return of_program(programs.max_cut(5), equations)


def logistic():
    w, X, weight = cp.Variable(4), cp.Parameter((12, 4)), cp.Parameter(nonneg=True)
    labels = np.resize([1.0, -1.0, -1.0], 12)
    y = torch.tensor(labels)

    def F(w, X, weight):
        return 2 * weight * w - X.T @ (y * torch.sigmoid(-y * (X @ w)))

    goal = cp.sum(cp.logistic(-cp.multiply(labels, X @ w))) + weight * cp.sum_squares(w)
    draw = lambda rng: (rng.normal(size=(12, 4)), rng.uniform(0.1, 1))
    equations = lambda w, *values: (w, F, 1.0)
    return Class(cp.Problem(cp.Minimize(goal)), [X, weight], [w], draw, equations)


def entropy():
    B = np.random.default_rng(3).normal(size=(2, 7))
    rows = torch.tensor(np.vstack([B, np.ones(7)]))

    def F(z, moments):
        p, y = z[:7], z[7:]
        return torch.cat([p.log() + rows.T @ y, rows @ p - torch.cat([moments, torch.ones(1)])])

    def equations(p, moments):
        y = torch.linalg.lstsq(rows.T, -p.log()[:, None]).solution[:, 0]
        return torch.cat([p, y]), F, 1.0

    return of_program(programs.entropy_maximization(7), equations)


def power():
    x, p, total, parts = cp.Variable(5), cp.Parameter(5), cp.Parameter(), cp.Variable(5)

    def F(z, p, total):
        d = z[:5] - p
        return torch.cat([1.7 * d.sign() * d.abs() ** 0.7 + z[5], (z[:5].sum() - total)[None]])

    def equations(x, p, total):
        d = x - p
        return torch.cat([x, -(1.7 * d.sign() * d.abs() ** 0.7).mean()[None]]), F, float(abs(d[0]))

    constraints = [cp.PowCone3D(parts, np.ones(5), x - p, 1 / 1.7), cp.sum(x) == total]
    draw = lambda rng: (rng.normal(size=5), rng.uniform(2, 5))
    problem = cp.Problem(cp.Minimize(cp.sum(parts)), constraints)
    return Class(problem, [p, total], [x], draw, equations)


def power_norm():
    x, A, b = cp.Variable(4), cp.Parameter((9, 4)), cp.Parameter(9)
    parts, norm = cp.Variable(9), cp.Variable()

    def F(x, A, b):
        r = A @ x - b
        r = r / r.norm()
        return A.T @ (r.sign() * r.abs() ** 1.5)

    cone = cp.PowCone3D(parts, norm * np.ones(9), A @ x - b, 0.4)
    draw = lambda rng: (rng.normal(size=(9, 4)), rng.normal(size=9))
    problem = cp.Problem(cp.Minimize(norm), [cone, cp.sum(parts) == norm])
    equations = lambda x, A, b: (x, F, float((A @ x - b).abs().min()))
    return Class(problem, [A, b], [x], draw, equations)


def geometric_mean():
    x, mean, price, budget = cp.Variable(3), cp.Variable(), cp.Parameter(3), cp.Parameter()
    weights = np.array([0.2, 0.3, 0.5])
    shares = torch.tensor(weights)
    cone = cp.constraints.PowConeND(x, mean, weights)
    equations = lambda x, *values: (x, lambda z, p, b: z - shares * b / p, 1.0)
    draw = lambda rng: (rng.uniform(0.5, 2, 3), rng.uniform(0.5, 2))
    problem = cp.Problem(cp.Maximize(mean), [cone, price @ x <= budget])
    return Class(problem, [price, budget], [x], draw, equations)


def log_determinant():
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    upper = torch.triu_indices(3, 3)

    def draw(rng):
        root = rng.normal(size=(3, 3))
        return (root @ root.T / 3 + 0.5 * np.eye(3),)

    def equations(X, C):
        entries = lambda X: X[upper[0], upper[1]]
        return entries(X), lambda z, C: z - entries(torch.linalg.inv(C)), 1.0

    problem = cp.Problem(cp.Minimize(cp.trace(C @ X) - cp.log_det(X)))
    return Class(problem, [C], [X], draw, equations)


CLASSES = {
    make.__name__: make
    for make in (
        *(linear, dependent_rows, quadratic, huber_lasso, second_order, semidefinite, max_cut),
        *(logistic, entropy, power, power_norm, geometric_mean, log_determinant),
    )
}


def entries(X):
    """The entries of a variable that count: of matrices, the upper triangle."""
    if X.dim() < 2:
        return X
    upper = torch.triu_indices(*X.shape)
    return X[upper[0], upper[1]]


def exact(equations, start, values, moves):
    """The solution by Newton's method, and its derivative along the moves."""
    z = start
    for _ in range(20):
        step = torch.linalg.solve(jacrev(equations)(z, *values), -equations(z, *values))
        z = z + step
        if step.abs().max() <= 1e-15 * z.abs().max():
            break
    change = jvp(lambda *v: equations(z, *v), tuple(values), tuple(moves))[1]
    return z, torch.linalg.solve(jacrev(equations)(z, *values), -change)


def errors(name, draws, seed=0):
    """Relative errors of the solutions and of their derivatives, of both modes, draw by draw.

    Those of the derivatives are relative to the larger of derivative and solution: the solution of
    a maximum cut may be a vertex, which does not move.
    """
    row, rng = CLASSES[name](), np.random.default_rng(seed)
    layer = ConvexLayer(row.problem, row.parameters, row.variables)
    found = []
    while len(found) < draws:
        values = [torch.as_tensor(np.asarray(v)).double() for v in row.draw(rng)]
        for parameter, value in zip(row.parameters, values, strict=True):
            parameter.value = value.numpy()
        tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-12)
        with warnings.catch_warnings():
            # so it calls what misses 1e-12 by a little; Newton's method goes on from there
            warnings.filterwarnings("ignore", "Solution may be inaccurate")
            row.problem.solve(solver="CLARABEL", **tight)
        solution = torch.as_tensor(row.variables[0].value)
        start, equations, margin = row.equations(solution, *values)
        if margin < KINK:
            continue
        moves = [torch.tensor(rng.normal(size=v.shape)) for v in values]
        symmetric = [p.attributes["symmetric"] for p in row.parameters]
        moves = [m + m.mT if s else m for m, s in zip(moves, symmetric, strict=True)]
        z, slope = exact(equations, start, values, moves)
        solve = lambda *v: entries(layer(*v).value.variables[0])
        x, pushed = jvp(solve, tuple(values), tuple(moves))
        weights, truth, slope = torch.tensor(rng.normal(size=x.shape)), z[: len(x)], slope[: len(x)]
        leaves = [v.clone().requires_grad_() for v in values]
        pulled = torch.autograd.grad(weights @ solve(*leaves), leaves)
        pulled = sum((g * m).sum() for g, m in zip(pulled, moves, strict=True))
        size = truth.abs().max()
        off = torch.stack([(pushed - slope).abs().max(), (pulled - weights @ slope).abs()]).max()
        own = (x - truth).abs().max() / size, off / torch.maximum(size, slope.abs().max())
        found.append([float(error) for error in own])
    return np.array(found)
