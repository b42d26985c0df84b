"""What CONVERGED is worth: solvers on problems of the conditions 1 to 1e14 with known solutions.

    OMP_NUM_THREADS=1 python tests/benchmarks/honesty.py [--lanes 1000] [--seed 0] [--only roots]

It prints tables in Markdown. An answer is false if it is off by more than a hundred of its
estimates and a thousand tolerances.
"""

import argparse
import sys
from pathlib import Path

import torch

# (another package called "tests" may be installed)
sys.path.insert(0, str(Path(__file__).parents[1]))

from verdict.systems import F32, F64, SINGULAR, SOLVERS, measure, roots

HEAD = "| solver | CONVERGED | SINGULAR | others | false | off/error median, max | steps |"


def line(row, found):
    """Return a row of the table."""
    converged, singular = (int((found.status == s).sum()) for s in (0, SINGULAR))
    others = len(found.status) - converged - singular
    known = found.converged & found.error.isfinite() & (found.error > 0)
    ratio = (found.off / found.error)[known]
    spread = f"{float(ratio.median()):.2g}, {float(ratio.max()):.2g}" if len(ratio) else "–"
    steps = float(found.iterations.double().mean())
    counts = f"{converged} | {singular} | {others} | {int(found.false.sum())}"
    return f"| {row.name} | {counts} | {spread} | {steps:.1f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lanes", type=int, default=1000, help="systems; of other problems, 300")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="roots, minima, fixed_points or fits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for family in dict.fromkeys(row.problems for row in SOLVERS):
        name = family.__name__
        if options.only not in (None, name):
            continue
        lanes = options.lanes if family is roots else min(options.lanes, 300)
        for dtype in (F64, F32):
            problems = family(lanes, dtype, options.seed)
            print(f"\n{name}, {lanes}, {dtype}\n\n{HEAD}\n|---{'|--:' * 6}|")
            for row in SOLVERS:
                if row.problems is family:
                    print(line(row, measure(problems, row.solver)), flush=True)


if __name__ == "__main__":
    main()
