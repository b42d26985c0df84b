"""Programs drawn at random, degenerate ones among them, and Clarabel's word on each."""

from collections import namedtuple

import clarabel
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse
import torch
from hypothesis import strategies as st

Program = namedtuple("Program", "Q p G h A b")  # arrays


@st.composite
def programs(draw):
    """Small programs: rank-deficient objectives, active and redundant rows, empty feasible sets."""
    n, m = draw(st.integers(1, 8)), draw(st.integers(0, 12))
    k = draw(st.integers(0, n))
    rank = draw(st.sampled_from([n, n, n, (n + 1) // 2, 0]))
    whole = draw(st.booleans())  # small whole numbers: ties, dependent rows, exact degeneracy
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def entries(*shape):
        return rng.integers(-2, 3, shape).astype(float) if whole else rng.normal(size=shape)

    root = entries(n, rank)
    Q = root @ root.T + (0.1 * np.eye(n) if rank == n else 0)
    p, G, A, x = entries(n), entries(m, n), entries(k, n), entries(n)
    slack = np.maximum(entries(m), 0)  # about half of the rows are active at x
    h, b = G @ x + slack, A @ x
    if m and draw(st.booleans()):
        G, h = np.vstack([G, 2 * G[:1]]), np.append(h, 2 * h[0])
    if k and draw(st.booleans()):
        A, b = np.vstack([A, A.sum(0)]), np.append(b, b.sum())
    spoil = draw(st.sampled_from(["", "", "", "inequalities", "equalities"]))
    if spoil == "inequalities":
        h = h - draw(st.integers(1, 5))
    if spoil == "equalities" and k:
        b = b + np.eye(len(b))[0]
    return Program(Q, p, G, h, A, b)


def clarabel_solve(program):
    """Return Clarabel's status, ``x``, and the multipliers of ``G`` and of ``A``."""
    Q, p, G, h, A, b = program
    rows = scipy.sparse.csc_matrix(np.vstack([A, G]))
    cones = [clarabel.ZeroConeT(len(b)), clarabel.NonnegativeConeT(len(h))]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
    P = scipy.sparse.csc_matrix(np.triu(Q))
    solver = clarabel.DefaultSolver(P, p, rows, np.concatenate([b, h]), cones, settings)
    found = solver.solve()
    z = np.array(found.z)
    return str(found.status), np.array(found.x), z[len(b) :], z[: len(b)]


def feasible(program):
    """Ask HiGHS whether any point meets the constraints."""
    _, p, G, h, A, b = program
    found = scipy.optimize.linprog(0 * p, G, h, A, b, bounds=(None, None))
    return found.status == 0


def falls_without_end(program):
    """Ask HiGHS for a direction without curvature along which constraints allow a fall."""
    Q, p, G, h, A, _ = program
    level = np.vstack([Q, A])
    found = scipy.optimize.linprog(p, G, 0 * h, level, np.zeros(len(level)), bounds=(-1, 1))
    return found.status == 0 and found.fun < -1e-6


def objective(program, x):
    return 0.5 * x @ program.Q @ x + program.p @ x


def regular_programs(lanes, n, m, k, seed=0, dtype=torch.float64):
    """Programs with one solution each, some rows active, none weakly: differentiable."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*lanes, *shape, generator=generator, dtype=torch.float64)

    root = normal(n, n)
    Q = root @ root.mT / n + 0.2 * torch.eye(n, dtype=torch.float64)
    G, A, x = normal(m, n), normal(k, n), normal(n)
    h = (G @ x[..., None])[..., 0] + normal(m).abs()
    b = (A @ x[..., None])[..., 0]
    return tuple(t.to(dtype) for t in (Q, 2 * normal(n), G, h, A, b))


def inequalities(kind, lanes, n, m, seed=0):
    """Programs with a solution, of random data: linear ones, definite ones, and between."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(lanes, *shape, generator=generator, dtype=torch.float64)

    G, x = normal(m, n), normal(n)
    h = (G @ x[..., None])[..., 0] + normal(m).abs()
    root, prices = normal(n, {"linear": 0, "half": n // 2, "definite": n}[kind]), normal(m).abs()
    p = normal(n) if kind == "definite" else -(G.mT @ prices[..., None])[..., 0] / m
    return root @ root.mT / n, p, G, h


def on_active_set(program, active, weight):
    """Solve on a set of active rows, by elimination, refined in extended precision.

    Returns ``x``, multipliers, slack, and the gradients of ``weight @ x`` in ``p`` and ``h``.
    """
    Q, p, G, h = program
    n, rows = len(p), G[active]
    K = np.block([[Q, rows.T], [rows, np.zeros((len(rows), len(rows)))]])
    factors, exact = scipy.linalg.lu_factor(K), K.astype(np.longdouble)

    def solve(b):
        z = scipy.linalg.lu_solve(factors, b)
        for _ in range(3):
            z = z + scipy.linalg.lu_solve(factors, (b - exact @ z).astype(float))
        return z

    x, y = np.split(solve(np.concatenate([-p, h[active]])), [n])
    dx, dy = np.split(solve(np.concatenate([weight, 0 * y])), [n])
    duals, slope = np.zeros(len(h)), np.zeros(len(h))
    duals[active], slope[active] = y, dy
    return x, duals, h - G @ x, -dx, slope
