"""Hock and Schittkowski's problems, beside SciPy: docs/constrained_problems.md.

    OMP_NUM_THREADS=1 python tests/benchmarks/constrained.py

What counts as solved is told from the problem alone, without anybody's verdict. A row for each
problem and method goes to runs/constrained.tsv. ``--without-ours`` leaves the library out.
"""

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
import scipy.optimize
import torch
from comparison import Counted

import implicit_solvers as ims
from implicit_solvers.testing import problems

ROOT = Path(__file__).parents[2]
TORCH = torch.__version__.partition("+")[0]
OURS = {"default": lambda: None}
SCIPY = {
    "SciPy `SLSQP`": ("SLSQP", False, {}),
    "SciPy `SLSQP`, tight": ("SLSQP", False, {"ftol": 1e-12, "maxiter": 1000}),
    "SciPy `trust-constr`": ("trust-constr", False, {}),
    "SciPy `trust-constr`, tight": (
        "trust-constr",
        True,
        {"gtol": 0.0, "xtol": 1e-12, "barrier_tol": 1e-10},
    ),
}
GROUPS = ("bounds", "equalities", "inequalities", "both", "degenerate")


def group(problem):
    """Return what constrains it."""
    if not problem.regular:
        return "degenerate"
    if problem.equalities is None:
        return "bounds" if problem.inequalities is None else "inequalities"
    return "equalities" if problem.inequalities is problem.bounds is None else "both"


# -- what counts as solved ------------------------------------------------------------------------


@dataclass
class End:
    """Where a method ended, what it says of it, and what it took."""

    z: torch.Tensor
    claimed: bool
    how: str
    iterations: int = 0
    calls: int = 0
    seconds: float = 0.0
    gradient: float = float("nan")


def feasible(problem, z, tol):
    """Tell whether no constraint and no bound is missed by more than ``tol`` of its terms."""
    theta = problem.theta()
    c, (lower, upper) = problem.constraints(z, theta), problem.box(theta)
    terms = torch.func.jacrev(problem.constraints)(z, theta).abs() @ z.abs()
    equalities = 0 if problem.equalities is None else len(problem.equalities(z, theta))
    c = torch.where(torch.arange(len(c)) < equalities, c.abs(), c)
    outside = torch.maximum(lower - z, z - upper)
    return bool((c <= tol * (1 + terms)).all() and (outside <= tol * (1 + z.abs())).all())


def solved(problem, z, tol=1e-6):
    """Tell whether ``z`` is feasible, and its objective the least one known."""
    least = problem.fn(problem.solution, problem.theta())
    off = (problem.fn(z, problem.theta()) - least).abs()
    return bool(off <= tol * (1 + least.abs())) and feasible(problem, z, tol)


def stationary(problem, z, tol=1e-3):
    """Tell whether ``z`` is feasible, and multipliers of the right signs leave no gradient."""
    if not feasible(problem, z, 1e-6):
        return False
    theta = problem.theta()
    c, (lower, upper) = problem.constraints(z, theta), problem.box(theta)
    pull, eye = torch.func.jacrev(problem.constraints)(z, theta), torch.eye(len(z)).to(z)
    equalities = 0 if problem.equalities is None else len(problem.equalities(z, theta))
    near = 1e-4 * (1 + pull.abs() @ z.abs())
    close = 1e-4 * (1 + z.abs())
    rows = torch.cat([pull, -eye, eye])
    active = torch.cat([c >= -near, z - lower <= close, upper - z <= close])
    active[:equalities] = True
    least = torch.zeros(len(rows)).masked_fill(torch.arange(len(rows)) < equalities, -torch.inf)
    slope = torch.func.grad(problem.fn)(z, theta)
    if not bool(active.any()):
        return bool(slope.abs().max() <= tol * (1 + slope.abs().max()))
    fit = scipy.optimize.lsq_linear(
        rows[active].T.numpy(), -slope.numpy(), (least[active].numpy(), np.inf)
    )
    return bool(np.abs(fit.fun).max() <= tol * float(slope.abs().max()))


# -- runs -----------------------------------------------------------------------------------------


def ours(problem, solver):
    """Return where the library ended, and how far its derivative is from the stored one."""
    theta = problem.theta().requires_grad_()
    counted, began = Counted(problem.fn), time.perf_counter()
    bounds = None if problem.bounds is None else problem.bounds(theta)
    sol = ims.minimize(
        counted,
        problem.start(),
        (theta,),
        bounds=bounds,
        equalities=problem.equalities,
        inequalities=problem.inequalities,
        solver=solver,
        on_failure="mask",
    )
    seconds, calls, gradient = time.perf_counter() - began, counted.calls, float("nan")
    z = sol.value.detach()
    near = ((z - problem.solution).abs() <= 1e-4 * (1 + problem.solution.abs())).all()
    if problem.regular and bool(sol.converged & near):
        rows = [torch.autograd.grad(v, theta, retain_graph=True)[0] for v in sol.value]
        off = (torch.stack(rows) - problem.derivative).abs().amax(0)
        size = problem.derivative.abs().amax(0)
        gradient = float((off / torch.where(size > 0, size, 1.0)).max())
    how = ims.Status(int(sol.status)).name
    return End(z, bool(sol.converged), how, int(sol.iterations), calls, seconds, gradient)


def scipys(problem, method, curved, options):
    """Return the same of SciPy, with exact first, and where ``curved`` second, derivatives."""
    theta = problem.theta()
    counted = Counted(problem.fn)
    of = lambda fn, sign=1: lambda x: (sign * fn(torch.from_numpy(x.copy()), theta)).numpy()
    hessian = lambda fn: (
        lambda x, v: torch.func.hessian(lambda z: torch.from_numpy(np.asarray(v)) @ fn(z, theta))(
            torch.from_numpy(x.copy())
        ).numpy()
    )
    second = {"hess": of(torch.func.hessian(problem.fn))} if curved else {}
    rows = []
    for fn, equal in ((problem.equalities, True), (problem.inequalities, False)):
        if fn is None:
            continue
        if method == "SLSQP":
            sign, slope = (1, "eq") if equal else (-1, "ineq"), torch.func.jacrev(fn)
            fun, jac = of(fn, sign[0]), of(slope, sign[0])
            rows.append({"type": sign[1], "fun": fun, "jac": jac})
        else:
            curvature = {"hess": hessian(fn)} if curved else {}
            low, jac = 0.0 if equal else -np.inf, of(torch.func.jacrev(fn))
            rows.append(scipy.optimize.NonlinearConstraint(of(fn), low, 0.0, jac, **curvature))
    began = time.perf_counter()
    out = scipy.optimize.minimize(
        of(counted),
        problem.start().numpy(),
        jac=of(torch.func.grad(counted)),
        **second,
        bounds=scipy.optimize.Bounds(*(b.numpy() for b in problem.box(theta))),
        constraints=rows,
        method=method,
        options=options,
    )
    seconds = time.perf_counter() - began
    # trust-constr says 1 and 2 where a tolerance was met, 0 where the steps ran out
    claimed = out.status in (1, 2) if method == "trust-constr" else bool(out.success)
    z, how = torch.from_numpy(np.asarray(out.x)), f"status {out.status}"
    return End(z, claimed, how, int(out.nit), counted.calls, seconds)


def run(problem, without_ours):
    """Return the ends of all methods, by name."""
    ends = {} if without_ours else {name: ours(problem, make()) for name, make in OURS.items()}
    for name, how in SCIPY.items():
        ends[name] = scipys(problem, *how)
    return ends


def kind(problem, end):
    """Return whether it is solved, nearly solved, ended elsewhere, or failed."""
    if not bool(torch.isfinite(end.z).all()):
        return "failed"
    if solved(problem, end.z):
        return "solved"
    if solved(problem, end.z, 1e-3):
        return "near"
    return "elsewhere" if stationary(problem, end.z) else "failed"


# -- the page -------------------------------------------------------------------------------------


PAGE = rf"""# Hock and Schittkowski's problems, compared with SciPy

`python tests/benchmarks/constrained.py` makes this page, here with torch {TORCH}, SciPy
{scipy.__version__}, in float64, from the standard starts. The problems are `HOCK_SCHITTKOWSKI` of
`implicit_solvers.testing.problems`: minima with bounds, equalities and inequalities. SciPy has
exact gradients and Jacobians, and its defaults, or *tight* options: `SLSQP` with `ftol=1e-12`;
`trust-constr` with exact Hessians, `gtol=0`, `xtol=1e-12`, `barrier_tol=1e-10`.

- *Solved*: the objective is within 1e-6 (1 + |f*|) of the least known one, f*, and no constraint is
  violated by more than 1e-6 of its terms, $1 + \sum_j |J_{{ij}}| |z_j|$.
- *Near*: the same with 1e-3 instead of 1e-6.
- *Elsewhere*: a local minimum or a saddle. The point is feasible, and multipliers of the right
  signs leave at most 1e-3 of the gradient.
- *False*: reported as converged, but none of these.
- *Missed*: solved, but reported as failed.

Calls are those of the objective, for its value or a derivative.
"""


def cell(rows):
    """Return how many are solved, near, elsewhere, falsely said to be, and not said to be."""
    text = str(sum(what == "solved" for what, _ in rows))
    for count, word in (
        (sum(what == "near" for what, _ in rows), "near"),
        (sum(what == "elsewhere" for what, _ in rows), "elsewhere"),
        (sum(end.claimed and what == "failed" for what, end in rows), "false"),
        (sum(not end.claimed and what == "solved" for what, end in rows), "missed"),
    ):
        text += f", {count} {word}" if count else ""
    return text


def table(header, rows):
    lines = [header, "---".join("|" * (header.count("|"))), *rows]
    return "\n".join(lines) + "\n"


def page(results):
    """Return the page, in Markdown; ``results`` are problems, and ends by method."""
    names, heads = [*OURS, *SCIPY], " | ".join([*OURS, *SCIPY])

    def cells(make, chosen):
        there = [[(p, ends[name]) for p, ends in chosen if name in ends] for name in names]
        return " | ".join(make(rows) if rows else "-" for rows in there)

    count = lambda rows: cell([(kind(p, end), end) for p, end in rows])
    lines = []
    for title in (*GROUPS, "all"):
        of_group = [r for r in results if title in (group(r[0]), "all")]
        lines.append(f"| {title} | {len(of_group)} | {cells(count, of_group)} |")
    digits = lambda rows: str(sum(solved(p, end.z, 1e-8) for p, end in rows))
    lines.append(f"| all, with 1e-8 for 1e-6 | {len(results)} | {cells(digits, results)} |")
    regular = [r for r in results if r[0].regular]
    good = lambda rows: str(sum(end.gradient <= 1e-7 for _, end in rows))
    gradients = " | ".join(good([(p, e[n]) for p, e in regular if n in e]) for n in OURS)
    gradients = gradients if any(n in e for n in OURS for _, e in regular) else "-"
    none = " | ".join("-" for _ in SCIPY)
    lines.append(f"| gradients to 1e-7 | {len(regular)} | {gradients} | {none} |")
    median = lambda what: lambda rows: f"{np.median([what(end) for _, end in rows]):.3g}"
    for title, what in (
        ("iterations, median", lambda end: end.iterations),
        ("calls, median", lambda end: end.calls),
        ("ms, median", lambda end: 1e3 * end.seconds),
    ):
        lines.append(f"| {title} | | {cells(median(what), results)} |")
    text = [PAGE, table(f"| problems | of | {heads} |", lines)]

    missed = []
    for name in names:
        of_method = [(p, ends[name]) for p, ends in results if name in ends]
        for what in ("near", "elsewhere", "failed"):
            which = [p.name.removeprefix("hs") for p, end in of_method if kind(p, end) == what]
            if which:
                missed.append(f"| {name} | {what} | {', '.join(which)} |")
    text += ["## Not solved\n", table("| method | how | problems |", missed)]

    each = []
    for p, ends in results:
        shown = [
            f"{ends[n].iterations} / {ends[n].calls}"
            + ("" if kind(p, ends[n]) == "solved" else f" {kind(p, ends[n])}")
            if n in ends
            else "-"
            for n in names
        ]
        m = len(p.constraints(p.start(), p.theta()))
        least = float(p.fn(p.solution, p.theta()))
        sizes = f"{len(p.z0)} | {m} | {least:.8g}"
        each.append(f"| {p.name.removeprefix('hs')} | {sizes} | {' | '.join(shown)} |")
    text.append("## Each problem: iterations and calls\n")
    text.append(table(f"| problem | unknowns | constraints | f* | {heads} |", each))
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="PROBLEM", help="some problems, by name")
    parser.add_argument("--without-ours", action="store_true", help="SciPy alone")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "constrained_problems.md")
    parser.add_argument("--rows", type=Path, default=ROOT / "runs" / "constrained.tsv")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # failures are what the table is about
    results = [
        (problem, run(problem, options.without_ours))
        for problem in problems.HOCK_SCHITTKOWSKI
        if not options.only or problem.name in options.only
    ]
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        (p.name, name, kind(p, e), e.claimed, e.how, e.iterations, e.calls, e.seconds, e.gradient)
        for p, ends in results
        for name, e in ends.items()
    ]
    header = ("problem", "method", "end", "claimed", "how", "iterations", "calls", "s", "gradient")
    options.rows.write_text("".join("\t".join(map(str, r)) + "\n" for r in (header, *rows)))
    text = page(results)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
