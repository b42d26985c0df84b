"""Every solver on every test problem: the tables of docs/solver_table.md.

    OMP_NUM_THREADS=1 python tests/benchmarks/solver_table.py

First from the standard start, then from random ones. A solver appears by itself: every class in
`implicit_solvers.solvers` that says what it `solves` and has a default for everything is tried.
"""

import argparse
import dataclasses
import importlib
import inspect
import itertools
import multiprocessing
import os
import pkgutil
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import scipy
import scipy.optimize
import torch

import implicit_solvers as ims
from implicit_solvers import solvers
from implicit_solvers.testing import problems

DOCS = Path(__file__).parents[2] / "docs" / "solver_table.md"
SCIPY = ("hybr", "lm", "broyden1", "krylov")
SLOW = ("broyden1", "krylov")  # written in Python: they get fewer random starts
FROM_NEAR = ("Chord",)  # not globalized: no random starts
# Solvers that need arguments, or deserve another column: {"root": {"Name(option)": solver}}.
VARIANTS = {}


def our_solvers(kind):
    """Return the solvers for a kind of equation, by name."""
    found = {}
    for info in pkgutil.iter_modules(solvers.__path__):
        module = importlib.import_module(f"{solvers.__name__}.{info.name}")
        for name in module.__all__:
            cls = getattr(module, name)
            if kind in getattr(cls, "solves", ()) and not needs_arguments(cls):
                found[name] = cls()
    return found | VARIANTS.get(kind, {})


def needs_arguments(cls):
    parameters = inspect.signature(cls).parameters.values()
    return any(p.default is p.empty for p in parameters)


def default_solver(kind):
    """Return the class name of the solver that ``solver=None`` means."""
    problem = next(p for p in problems.ALL if p.kind == kind and p.regular)
    with ims.monitor() as log:
        problem.solve()
    return log.records[0].solver


# -- what counts as solved ------------------------------------------------------------------------


def condition(problem, z):
    """Return the optimality condition at ``z``, a vector."""
    theta = problem.theta()

    def energy(u):
        out = problem.fn(u, theta)
        return (out**2).sum() / 2 if problem.kind == "least_squares" else out

    if problem.kind == "root":
        return problem.fn(z, theta).reshape(-1)
    if problem.kind == "fixed_point":
        return (z - problem.fn(z, theta)).reshape(-1)
    return torch.func.grad(energy)(z).reshape(-1)


def solved(problem, z):
    """Tell whether ``rms F(z) <= 1e-8 (1 + rms z)``; NaN does not."""
    residual, size = condition(problem, z), z.reshape(-1)
    return residual.square().mean().sqrt() <= 1e-8 * (1 + size.square().mean().sqrt())


# -- from the standard start ----------------------------------------------------------------------


def standard(problem, solver):
    """Return a cell: how it ended, steps and calls of fn; None if the solver refuses it.

    A star marks another solution than the reference.
    """
    calls = 0

    def counted(z, theta):
        nonlocal calls
        calls += 1
        return problem.fn(z, theta)

    try:
        sol = dataclasses.replace(problem, fn=counted).solve(solver=solver, on_failure="mask")
    except (TypeError, ValueError):
        return None
    status = ims.Status(int(sol.status))
    end = "" if status == ims.Status.CONVERGED else f"{status.name} "
    if status == ims.Status.CONVERGED and problem.solution is not None:
        far = (sol.value - problem.solution).abs() > 1e-3 * (1 + problem.solution.abs())
        end = "* " if far.any() else ""
    return f"{end}{int(sol.iterations)} / {calls}"


def scipy_function(problem):
    """Return the condition as SciPy wants it."""
    theta, shape = problem.theta(), problem.start().shape

    @torch.inference_mode()
    def function(x):
        return problem.fn(torch.from_numpy(x).reshape(shape), theta).reshape(-1).numpy()

    return function


def scipy_jacobian(problem):
    """Return MINPACK's forward differences, all columns in one call."""
    theta, shape = problem.theta(), problem.start().shape
    many = torch.func.vmap(lambda z: problem.fn(z.reshape(shape), theta).reshape(-1))
    eps = torch.finfo(torch.float64).eps

    @torch.inference_mode()
    def jacobian(x):
        z = torch.from_numpy(x)
        h = eps**0.5 * torch.where(z == 0, 1.0, z.abs())
        values = many(torch.cat([z.unsqueeze(0), z + torch.diag(h)]))
        return ((values[1:] - values[0]) / h.unsqueeze(1)).T.numpy()

    return jacobian


def scipy_solves(problem, start, method, jac=None):
    """Return whether SciPy solves it from a start, and the calls."""
    options = {"maxiter": 100} if method in SLOW else {}
    tol = 1e-10 if method in SLOW else 1e-12
    try:
        x = start.reshape(-1).numpy()
        out = scipy.optimize.root(
            scipy_function(problem), x, method=method, jac=jac, tol=tol, options=options
        )
    except (ValueError, ZeroDivisionError, OverflowError, np.linalg.LinAlgError):
        return False, None
    z = torch.from_numpy(np.asarray(out.x, dtype=float)).reshape(start.shape)
    return bool(solved(problem, z)), out.nfev


def scipy_cell(problem, method):
    done, calls = scipy_solves(problem, problem.start(), method)
    return f"{'' if done else 'failed '}{'-' if calls is None else calls}"


def standard_table(kind, chosen):
    """Return the lines of a table: a row for each problem, a column for each solver."""
    columns = {name: [standard(p, s) for p in chosen] for name, s in our_solvers(kind).items()}
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    if kind == "root":
        columns |= {f"SciPy {m}": [scipy_cell(p, m) for p in chosen] for m in SCIPY}
    return table(chosen, {n: [c or "refused" for c in cells] for n, cells in columns.items()})


# -- from random starts ---------------------------------------------------------------------------


def random_starts(problem, count, seed):
    """Return ``z0 + (1 + |z0|) normal``, a start in each lane."""
    z0 = problem.start()
    noise = torch.randn(count, *z0.shape, generator=torch.Generator().manual_seed(seed)).to(z0)
    return z0 + (1 + z0.abs()) * noise


def share(problem, solver, starts):
    """Return the share of starts, lanes of one batch, from which a solver solves it."""
    theta = problem.theta()

    def solve(z0):
        return problem.solve(theta, start=z0, solver=solver, on_failure="mask").value

    try:
        values = torch.func.vmap(solve)(starts)
    except (TypeError, ValueError):
        return None
    done = torch.func.vmap(lambda z: solved(problem, z))(values)
    return float(done.double().mean())


def scipy_share(problem, method, starts):
    jac = None if method in SLOW else scipy_jacobian(problem)
    return sum(scipy_solves(problem, z0, method, jac)[0] for z0 in starts) / len(starts)


def random_row(problem, count, slow_count, seed):
    """Return the share of every solver on one problem; None where it refuses."""
    starts = random_starts(problem, count, seed)
    ours = {name: s for name, s in our_solvers("root").items() if name not in FROM_NEAR}
    row = {name: share(problem, solver, starts) for name, solver in ours.items()}
    for method in SCIPY:
        few = starts[:slow_count] if method in SLOW else starts
        row[f"SciPy {method}"] = scipy_share(problem, method, few)
    print(f"{problem}: done", file=sys.stderr)
    return row


def random_table(chosen, count, slow_count, seed, jobs):
    """Return the lines of a table of shares in percent, with their means."""
    fixed = [itertools.repeat(value) for value in (count, slow_count, seed)]
    if jobs == 1:
        rows = list(map(random_row, chosen, *fixed))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, warnings.simplefilter, ("ignore",)) as pool:
            rows = list(pool.map(random_row, chosen, *fixed))
    shown = {}
    for name in rows[0]:
        cells = [row[name] for row in rows]
        if None not in cells:  # a method for one unknown refuses the systems
            shown[name] = [f"{100 * c:.1f}" for c in (*cells, sum(cells) / len(cells))]
    return table([*chosen, "mean"], shown)


# -- the page -------------------------------------------------------------------------------------


def table(rows, columns):
    names = [name if name.startswith("SciPy") else f"`{name}`" for name in columns]
    lines = ["| problem | " + " | ".join(names) + " |", "|---" * (len(columns) + 1) + "|"]
    for i, row in enumerate(rows):
        lines.append(f"| {row} | " + " | ".join(cells[i] for cells in columns.values()) + " |")
    return lines


TITLES = {
    "root": "Roots",
    "fixed_point": "Fixed points",
    "minimize": "Minima",
    "least_squares": "Least squares",
}


def page(chosen, count, slow_count, seed, jobs=1):
    """Return the page, in Markdown."""
    lines = [
        "# Solvers on the test problems",
        "",
        "`python tests/benchmarks/solver_table.py` makes this page, here with torch "
        f"{torch.__version__.partition('+')[0]} and SciPy {scipy.__version__},",
        "in float64. Solvers have their defaults. The problems are those of",
        "`implicit_solvers.testing.problems`.",
        "",
        "## From the standard start",
        "",
        "Each cell has steps / calls of the function, and the status if the solve did not",
        "converge. A star marks another solution than that of the problem. A call with its",
        "Jacobian counts as one. SciPy's `hybr` and `lm` compute Jacobians by differences, and",
        "these calls count. SciPy's `tol` is 1e-12 (`broyden1` and `krylov`: 1e-10, and at most",
        "100 steps). It failed if rms *F* > 1e-8 (1 + rms *z*) at its result. `no-root` and",
        "`chebyquad-8` have no solution. The Jacobian is singular at the solution of",
        "`double-root` and `powell-singular`.",
    ]
    for kind, title in TITLES.items():
        of_kind = [p for p in chosen if p.kind == kind]
        if of_kind:
            lines += ["", f"### {title}", "", f"The default is `{default_solver(kind)}`.", ""]
            lines += standard_table(kind, of_kind)
    if count:
        lines += random_section(chosen, count, slow_count, seed, jobs)
    return "\n".join(lines) + "\n"


def random_section(chosen, count, slow_count, seed, jobs):
    """Return the lines of the part on random starts."""
    roots = [p for p in chosen if p.kind == "root" and p.solution is not None]
    if not roots:
        return []
    return [
        "",
        "## From random starts",
        "",
        f"Percent of {count} starts *z*0 + (1 + |*z*0|) N(0, 1), seed {seed}, from which",
        "rms *F* ≤ 1e-8 (1 + rms *z*) is reached. All solvers have the same starts (`broyden1` and",
        f"`krylov`: the first {slow_count} of them). This library solves them as one batch.",
        "Methods for one unknown are left out, and `Chord`, which converges only from near.",
        "",
        *random_table(roots, count, slow_count, seed, jobs),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=1000, help="random starts; 0 for none")
    parser.add_argument("--slow-starts", type=int, default=50, help="those of SciPy's slow ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--only", nargs="+", metavar="PROBLEM", help="some problems, by name")
    parser.add_argument("--out", type=Path, default=DOCS, help="where to write the page")
    options = parser.parse_args()
    chosen = [p for p in problems.ALL if not options.only or p.name in options.only]
    if not chosen:
        parser.error(f"no problem is called {' or '.join(options.only)}")
    warnings.simplefilter("ignore")  # failures are what the tables are about
    text = page(chosen, options.starts, options.slow_starts, options.seed, options.jobs)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
