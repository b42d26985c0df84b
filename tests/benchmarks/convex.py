"""Time layers of convex problems, forward and backward, against cvxpylayers.

    OMP_NUM_THREADS=1 python tests/benchmarks/convex.py --cvxpylayers ENVIRONMENT/bin/python

A quadratic program, a lasso, a portfolio of 200 assets, a logistic regression (exponential cones),
a relaxed maximum cut (a semidefinite cone); one program and batches in float64 on one thread; the
gradient of a sum of squares. cvxpylayers is no dependency: make it an environment
of its own (``python -m venv ENVIRONMENT``, then ``ENVIRONMENT/bin/pip install cvxpylayers torch``).
Each side is a process; they take turns, and the CPU time of each turn counts. The errors, largest
entries relative to the largest entry of the truth, come first: against dense solves in NumPy on the
active set, against Newton's method in NumPy, and, for the semidefinite program, against SCS at
1e-12 and central differences of it (which are good to about 1e-7).
"""

import argparse
import os
import statistics
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cvxpy as cp
import numpy as np
import torch
from worker import Worker, in_turns, seconds_of, serve

LABELS = np.resize([1.0, -1.0, -1.0], 30)


def quadratic_program():
    """Draw 128 programs of 32 variables and 32 inequalities; about a quarter is active."""
    n = m = 32
    x, root, p = cp.Variable(n), cp.Parameter((n, n)), cp.Parameter(n)
    G, h = cp.Parameter((m, n)), cp.Parameter(m)
    loss = cp.sum_squares(root @ x) / 2 + p @ x
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(128, n, n)) / n**0.5 + 0.3 * np.eye(n)
    rows, inside = rng.normal(size=(128, m, n)), rng.normal(size=(128, n))
    right = np.einsum("lmn,ln->lm", rows, inside) + abs(rng.normal(size=(128, m)))
    values = [roots, rng.normal(size=(128, n)), rows, right]
    return cp.Problem(cp.Minimize(loss), [G @ x <= h]), [root, p, G, h], [x], values


def on_the_active_set(Q, p, G, h, A, b):
    """Find the active set by Clarabel; solve and differentiate on it: ``x`` and duals, adjoints."""
    n, k = len(p), len(b)
    x = cp.Variable(n)
    constraint = G @ x <= h
    goal = cp.Minimize(cp.quad_form(x, cp.psd_wrap(Q)) / 2 + p @ x)
    problem = cp.Problem(goal, [constraint, *([A @ x == b] if k else [])])
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    active = constraint.dual_value > 1e-6
    rows = np.concatenate([G[active], A])
    kkt = np.block([[Q, rows.T], [rows, np.zeros((len(rows),) * 2)]])
    z = np.linalg.solve(kkt, np.concatenate([-p, h[active], b]))
    x, duals = z[:n], z[n:]
    assert duals[: active.sum()].min(initial=1) > 0 and (G @ x - h).max() < 1e-9
    w = -np.linalg.solve(kkt, np.concatenate([2 * x, 0 * duals]))
    return x, duals, w[:n], w[n:], active


def exact_program(R, p, G, h):
    none = np.zeros((0, len(p)))
    x, duals, dx, dy, active = on_the_active_set(R.T @ R, p, G, h, none, none[:, 0])
    dG, dh = np.zeros_like(G), np.zeros_like(h)
    dG[active], dh[active] = np.outer(dy, x) + np.outer(duals, dx), -dy
    return [x], [R @ (np.outer(dx, x) + np.outer(x, dx)), dx, dG, dh]


def lasso():
    """Draw 128 regressions with 50 rows and 25 features."""
    x, A, b = cp.Variable(25), cp.Parameter((50, 25)), cp.Parameter(50)
    weight, rng = cp.Parameter(nonneg=True), np.random.default_rng(0)
    loss = cp.sum_squares(A @ x - b) + weight * cp.norm1(x)
    values = [rng.normal(size=(128, 50, 25)), rng.normal(size=(128, 50)), rng.uniform(1, 5, 128)]
    return cp.Problem(cp.Minimize(loss)), [A, b, weight], [x], values


def exact_lasso(A, b, weight):
    """Find the support by Clarabel; solve and differentiate on it."""
    x = cp.Variable(A.shape[1])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + weight * cp.norm1(x)))
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    support = abs(x.value) > 1e-6
    some, sign = A[:, support], np.sign(x.value[support])
    gram = 2 * some.T @ some
    best = np.linalg.solve(gram, 2 * some.T @ b - weight * sign)
    w, rest = np.linalg.solve(gram, 2 * best), b - some @ best
    x, dA = np.zeros(A.shape[1]), np.zeros_like(A)
    x[support] = best
    dA[:, support] = 2 * np.outer(rest, w) - 2 * np.outer(some @ w, best)
    return [x], [dA, 2 * some @ w, -sign @ w]


def portfolio():
    """Draw 16 markets of 200 assets."""
    x, mean, root = cp.Variable(200), cp.Parameter(200), cp.Parameter((200, 200))
    goal = cp.Maximize(mean @ x - cp.sum_squares(root @ x))
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(16, 200)), rng.normal(size=(16, 200, 200)) / 200**0.5]
    return cp.Problem(goal, [cp.sum(x) == 1, x >= 0]), [mean, root], [x], values


def exact_portfolio(mean, R):
    none, one = -np.eye(len(mean)), np.ones((1, len(mean)))
    x, _, dx, *_ = on_the_active_set(2 * R.T @ R, -mean, none, 0 * mean, one, one[:, 0])
    return [x], [-dx, 2 * R @ (np.outer(dx, x) + np.outer(x, dx))]


def logistic_regression():
    """Draw 64 data sets of 30 rows and 6 features."""
    w, c, X = cp.Variable(6), cp.Variable(), cp.Parameter((30, 6))
    weight = cp.Parameter(nonneg=True)
    loss = cp.sum(cp.logistic(-cp.multiply(LABELS, X @ w + c)))
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(64, 30, 6)), rng.uniform(0.1, 1, size=64)]
    problem = cp.Problem(cp.Minimize(loss + weight * cp.sum_squares(w)))
    return problem, [X, weight], [w, c], values


def exact_regression(X, weight):
    """Run Newton's method and differentiate the vanishing gradient."""
    rows = np.hstack([X, np.ones((30, 1))]) * -LABELS[:, None]
    penalty = 2 * weight * np.diag([1.0] * 6 + [0.0])
    v = np.zeros(7)
    for _ in range(30):
        share = 1 / (1 + np.exp(-rows @ v))
        hessian = rows.T @ (rows * (share * (1 - share))[:, None]) + penalty
        v = v - np.linalg.solve(hessian, rows.T @ share + penalty @ v)
    u = np.linalg.solve(hessian, 2 * v)
    d_rows = -np.outer(share, u) - np.outer(share * (1 - share) * (rows @ u), v)
    return [v[:6], v[6]], [-LABELS[:, None] * d_rows[:, :6], -2 * u[:6] @ v[:6]]


def maximum_cut():
    """Draw 128 weighted graphs of 10 nodes."""
    X, W = cp.Variable((10, 10), PSD=True), cp.Parameter((10, 10), symmetric=True)
    weights = np.random.default_rng(0).normal(size=(128, 10, 10))
    problem = cp.Problem(cp.Maximize(cp.trace(W @ X) / 4), [cp.diag(X) == 1])
    return problem, [W], [X], [weights + weights.transpose(0, 2, 1)]


def exact_cut(W):
    """Solve by SCS; the slope along one direction, by central differences."""
    problem, (parameter,), (X,), _ = maximum_cut()

    def solve(value):
        parameter.value = value
        problem.solve(solver="SCS", eps=1e-12, max_iters=100_000)
        return X.value

    step, move = 1e-5, _cut_direction()
    ahead, behind = (np.sum(solve(W + s * move) ** 2) for s in (step, -step))
    return [solve(W)], [(ahead - behind) / (2 * step)]


def _cut_direction():
    move = np.random.default_rng(1).normal(size=(10, 10))
    return move + move.T


PROBLEMS = {
    "quadratic program": (quadratic_program, exact_program),
    "lasso": (lasso, exact_lasso),
    "portfolio": (portfolio, exact_portfolio),
    "logistic regression": (logistic_regression, exact_regression),
    "maximum cut": (maximum_cut, exact_cut),
}


def ours(problem, parameters, variables):
    from implicit_solvers.problems.convex import ConvexLayer

    layer = ConvexLayer(problem, parameters, variables)
    return lambda *values: layer(*values).value.variables


def theirs(**solver_args):
    def make(problem, parameters, variables):
        from cvxpylayers.torch import CvxpyLayer

        layer = CvxpyLayer(problem, parameters, variables)
        return lambda *values: layer(*values, solver_args=solver_args)

    return make


SIDES = {
    "implicit_solvers": ours,
    "cvxpylayers, Clarabel, dense": theirs(solve_method="Clarabel", mode="dense"),
    "cvxpylayers, SCS at 1e-10, dense": theirs(
        mode="dense", eps_abs=1e-10, eps_rel=1e-10, max_iters=100_000
    ),
    "cvxpylayers, as it comes": theirs(),
}


def worst(found, truth):
    """Return the largest error over all lanes, relative to the largest entry, of all arrays."""
    errors = []
    for own, right in zip(zip(*found, strict=True), zip(*truth, strict=True), strict=True):
        own, right = (np.reshape(part, (len(own), -1)) for part in (own, right))
        errors.append(abs(own - right).max() / abs(right).max())
    return float(max(errors))


def answers(name, side, lanes):
    """Return the functions that answer ``seconds`` and ``errors``."""
    torch.set_num_threads(1)
    make, exact = PROBLEMS[name]
    problem, parameters, variables, values = make()
    solve = SIDES[side](problem, parameters, variables)
    values = [v[: int(lanes)] for v in values]
    given = values if int(lanes) > 1 else [v[0] for v in values]
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in given]

    def both():
        found = solve(*leaves)
        return found, torch.autograd.grad(sum(v.square().sum() for v in found), leaves)

    def errors():
        arrays = [[t.detach().numpy().reshape(int(lanes), -1) for t in part] for part in both()]
        found, slopes = (list(zip(*part, strict=True)) for part in arrays)
        if name == "maximum cut":
            slopes = [[np.sum(own * _cut_direction().ravel())] for (own,) in slopes]
        truth, right = zip(*(exact(*own) for own in zip(*values, strict=True)), strict=True)
        return worst(found, truth), worst(slopes, right)

    return {"seconds": lambda: seconds_of(both), "errors": errors}


def compare(name, lanes, interpreters, rounds):
    """Print the rows of one problem; return how much longer each of the others takes."""
    workers = {
        side: Worker(python, __file__, f"{name}: {side}: {lanes}")
        for side, python in interpreters.items()
    }
    errors = {side: worker.ask("errors") for side, worker in workers.items()}
    times = in_turns(workers, rounds)
    for side in workers:
        median, least = 1e3 * statistics.median(times[side]), 1e3 * min(times[side])
        value, gradient = errors[side]
        numbers = f"{median:.0f} ({least:.0f}) | {value:.0e} | {gradient:.0e}"
        print(f"| {name} | {lanes} | {side} | {numbers} |", flush=True)
    for worker in workers.values():
        worker.close()
    own = times["implicit_solvers"]
    return {
        f"{name}, {lanes} at a time: {side}": statistics.median(
            a / b for a, b in zip(times[side], own, strict=True)
        )
        for side in list(workers)[1:]
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cvxpylayers", metavar="PYTHON", help="an interpreter that has it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds, one side of theirs")
    parser.add_argument("--serve", metavar="PROBLEM: SIDE: LANES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(answers(*options.serve.split(": ")))
        return
    interpreters = {"implicit_solvers": sys.executable}
    if options.cvxpylayers:
        others = list(SIDES)[1 : 2 if options.quick else None]
        interpreters |= dict.fromkeys(others, options.cvxpylayers)
    print(
        "| problem | lanes | library | ms, median (least) | error of the values, of the gradients |"
    )
    print("|---|---|---|---|---|---|")
    ratios = {}
    for name, (make, _) in PROBLEMS.items():
        most = len(make()[-1][0])
        for lanes in [16] if options.quick else [1, 16, *([most] if most > 16 else [])]:
            ratios |= compare(name, lanes, interpreters, 2 if options.quick else options.rounds)
    for name, ratio in ratios.items():
        print(f"\n{name} takes {ratio:.2f} times as long")


if __name__ == "__main__":
    main()
