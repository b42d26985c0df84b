"""NIST's fits, square systems of CUTEst and MGH's problems, beside SciPy: docs/nist_and_cutest.md.

    OMP_NUM_THREADS=1 python tests/benchmarks/nist_and_cutest.py

What counts as solved is told from the problem alone, without the library's verdict. A row for
each start and method goes to runs/nist_and_cutest.tsv.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import scipy
import scipy.optimize
import torch

import implicit_solvers as ims
from implicit_solvers.testing import problems

ROOT = Path(__file__).parents[2]
TORCH = torch.__version__.partition("+")[0]
OURS = {
    "default": lambda fit: None,
    "`Newton`, `GaussNewton`": lambda fit: ims.GaussNewton() if fit else ims.Newton(),
    "`LevenbergMarquardt`": lambda fit: ims.LevenbergMarquardt(),
    "`Dogleg`": lambda fit: ims.Dogleg(),
}
SCIPY = {"SciPy `hybr`": "hybr", "SciPy `lm`": "lm", "SciPy `trf`": "trf"}


def sets():
    """Return the sets: a name, and pairs of a problem and a start."""
    mgh = [p for p in problems.ALL if p.source.startswith("Moré, Garbow")]
    roots = [p for p in mgh if p.kind == "root" and p.solution is not None]
    fits = [p for p in mgh if p.kind == "least_squares"]
    standard = lambda chosen: [(p, p.start()) for p in chosen]
    return {
        "NIST, first start": standard(problems.NIST[::2]),
        "NIST, second start": standard(problems.NIST[1::2]),
        "CUTEst": standard(problems.CUTEST),
        **{f"MGH, {c} × the start": [(p, far(p, c)) for p in roots] for c in (1, 10, 100)},
        **{f"MGH fits, {c} × the start": [(p, far(p, c)) for p in fits] for c in (1, 10, 100)},
    }


def far(problem, factor):
    """Return a multiple of the start, as MINPACK's tests do: of ones where it is zero."""
    z0 = problem.start()
    return z0 * factor if factor == 1 or bool(z0.any()) else torch.full_like(z0, factor)


# -- what counts as solved ------------------------------------------------------------------------


def solved(problem, z):
    """Tell whether ``z`` is a solution: a root in the units of its residuals, a certified fit."""
    theta, z0 = problem.theta(), problem.start()
    f = problem.fn(z, theta)
    if problem.kind == "least_squares":
        least = problem.squares or (problem.fn(problem.solution, theta) ** 2).sum()
        # (data that the model fits exactly, but for their rounding)
        return bool((f**2).sum() <= (1 + 1e-6) * least + 1e-20 * (theta**2).sum())
    # (an unknown that is zero is as large as rounding in the others makes it)
    size = torch.maximum(z.abs(), z0.abs()).clamp(min=1e-6 * z.abs().max())
    terms = torch.func.jacfwd(problem.fn)(z, theta).abs() @ size
    # where terms cancel far away, their size says nothing
    small = rms(f) <= 1e-6 * rms(problem.fn(z0, theta))
    return bool(small and (f.abs() <= 1e-8 * terms).all()) or near_the_solution(problem, z)


def near_the_solution(problem, z):
    """Tell whether ``z`` is the known root, to half of the digits if this is singular."""
    if problem.solution is None:
        return False
    size = torch.maximum(problem.solution.abs(), problem.start().abs())
    size = torch.where(size > 0, size, size.max())
    error = ((z - problem.solution).abs() / size).max()
    return bool(error <= (1e-8 if problem.regular else 1e-4))


def rms(v):
    return v.square().mean().sqrt()


# -- runs -----------------------------------------------------------------------------------------


def ours(problem, start, solver):
    """Return where the library ended, whether it claims success, and how."""
    sol = problem.solve(start=start, solver=solver, on_failure="mask")
    return sol.value, bool(sol.converged), ims.Status(int(sol.status)).name, int(sol.iterations)


def scipys(problem, start, method):
    """Return the same of SciPy, with exact Jacobians and the units of MINPACK."""
    theta = problem.theta()

    def f(x):
        return problem.fn(torch.from_numpy(x.copy()), theta).numpy()

    def jac(x):
        return torch.func.jacfwd(problem.fn)(torch.from_numpy(x.copy()), theta).numpy()

    x = start.numpy()
    try:
        if method == "hybr":
            out = scipy.optimize.root(f, x, jac=jac, tol=1e-12)
        else:
            most = 2000 if problem.kind == "least_squares" else 1200
            tight = {"xtol": 1e-12, "ftol": 1e-12, "gtol": 1e-12, "max_nfev": most}
            out = scipy.optimize.least_squares(f, x, jac, method=method, x_scale="jac", **tight)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        return start, False, type(error).__name__, 0
    return torch.from_numpy(out.x), bool(out.success), f"status {out.status}", out.nfev


def run(problem, start):
    """Return a row of each method: its name, solved, claimed, how it ended, steps."""
    fit = problem.kind == "least_squares"
    ends = {name: ours(problem, start, make(fit)) for name, make in OURS.items()}
    for name, method in SCIPY.items():
        if not (fit and method == "hybr"):
            ends[name] = scipys(problem, start, method)
    return [(name, solved(problem, z), *end) for name, (z, *end) in ends.items()]


# -- the page -------------------------------------------------------------------------------------


PAGE = rf"""# NIST, CUTEst and MGH, compared with SciPy

`python tests/benchmarks/nist_and_cutest.py` makes this page, here with torch {TORCH}, SciPy
{scipy.__version__}, in float64. The problems are `NIST`, `CUTEST`, and those of Moré, Garbow and
Hillstrom (MGH) in `ALL`, of `implicit_solvers.testing.problems`. The solvers of this library have
their defaults. SciPy has exact Jacobians, tolerances of 1e-12, `x_scale="jac"`, and up to 2,000
evaluations for a fit, 1,200 for a root.

- *Solved*, for a fit: its sum of squares is the least known one, to six digits. For a root: each
  residual is at most 1e-8 of $\sum_j |J_{{ij}}| \max(|z_j|, |z_{{0j}}|)$, or *z* is the known root
  to 1e-8 (1e-4 if the Jacobian is singular there).
- *False*: reported as converged, but not solved. SciPy's `lm` and `trf` minimize the squares of a
  system, so that this may be a local minimum of them.
- *Missed*: solved, but reported as failed.
"""


def cell(rows):
    """Return how many are solved, falsely said to be, and not said to be."""
    if not rows:
        return "-"
    text = str(sum(done for done, _ in rows))
    for count, word in (
        (sum(claimed and not done for done, claimed in rows), "false"),
        (sum(done and not claimed for done, claimed in rows), "missed"),
    ):
        text += f", {count} {word}" if count else ""
    return text


def page(results):
    """Return the page, in Markdown; ``results`` are rows of `run` with the set and the problem."""
    names = [*OURS, *SCIPY]
    lines = [
        PAGE,
        "| starts | of | " + " | ".join(names) + " | any of SciPy's |",
        "|---" * (len(names) + 3) + "|",
    ]
    for title in (*dict.fromkeys(row[0] for row in results), "all"):
        of_set = [row for row in results if title in (row[0], "all")]
        cells = [cell([row[3:5] for row in of_set if row[2] == name]) for name in names]
        count = len({row[:2] for row in of_set})
        best = len({row[:2] for row in of_set if row[2] in SCIPY and row[3]})
        lines.append(f"| {title} | {count} | {' | '.join(cells)} | {best} |")
    lines += ["", "## Solved by SciPy alone", "", "| solver | starts |", "|---|---|"]
    done = {(*row[:2], row[2]) for row in results if row[3]}
    by_scipy = dict.fromkeys(row[:2] for row in results if row[2] in SCIPY and row[3])
    for name in OURS:
        lost = [at for at in by_scipy if (*at, name) not in done]
        starts = "; ".join(
            f"{title}: {', '.join(p for t, p in lost if t == title)}"
            for title in dict.fromkeys(t for t, _ in lost)
        )
        lines.append(f"| {name} | {starts or 'none'} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="PROBLEM", help="some problems, by name")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "nist_and_cutest.md")
    parser.add_argument("--rows", type=Path, default=ROOT / "runs" / "nist_and_cutest.tsv")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # failures are what the table is about
    results = [
        (title, problem.name, *row)
        for title, starts in sets().items()
        for problem, start in starts
        if not options.only or problem.name in options.only
        for row in run(problem, start)
    ]
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    header = ("set", "problem", "method", "solved", "claimed", "end", "steps")
    options.rows.write_text("".join("\t".join(map(str, r)) + "\n" for r in (header, *results)))
    text = page(results)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
