"""Time a batch of quadratic programs, forward and backward, against qpth.

    OMP_NUM_THREADS=1 python tests/benchmarks/qp.py --qpth ENVIRONMENT/bin/python

128 programs of 32 variables and 32 inequalities in float64, on one thread; gradients of a sum of
squares in ``Q``, ``p``, ``G`` and ``h``. qpth needs versions of packages that nothing else here
does: make it an environment of its own (``python -m venv ENVIRONMENT``, then
``ENVIRONMENT/bin/pip install qpth torch``). Each side is a process; they take turns, and the CPU
time of each turn counts. Errors are those of the minimizers and of the gradients, the largest
entry, against a dense solve on the active set in NumPy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

LANES, VARIABLES, INEQUALITIES = 128, 32, 32
ROUNDS, REPEATS = 15, 5


def programs():
    """Draw programs with one solution each; about a quarter of the rows are active."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(LANES, *shape, generator=generator, dtype=torch.float64)

    root = normal(VARIABLES, VARIABLES)
    Q = root @ root.mT / VARIABLES + 0.1 * torch.eye(VARIABLES, dtype=torch.float64)
    G, x = normal(INEQUALITIES, VARIABLES), normal(VARIABLES)
    h = (G @ x[..., None])[..., 0] + normal(INEQUALITIES).abs()
    return Q, normal(VARIABLES), G, h


def ours():
    from implicit_solvers.problems.qp import quadratic_program

    return lambda *operands: quadratic_program(*operands).value.x


def qpth():
    from qpth.qp import QPFunction

    none = torch.zeros(0, dtype=torch.float64)
    solve = QPFunction(verbose=-1)
    return lambda Q, p, G, h: solve(Q, p, G, h, none, none)


SIDES = {"implicit_solvers": ours, "qpth": qpth}


def exact(Q, p, G, h, near):
    """Solve and differentiate on the active set of a point that is near the solution."""
    n = len(p)
    active = G @ near > h - 1e-6
    rows = G[active]
    zero = np.zeros((len(rows), len(rows)))
    kkt = np.block([[Q, rows.T], [rows, zero]])
    z = np.linalg.solve(kkt, np.concatenate([-p, h[active]]))
    x, duals = z[:n], z[n:]
    assert duals.min(initial=1) > 0 and (G @ x - h).max() < 1e-9
    w = np.linalg.solve(kkt, np.concatenate([2 * x, 0 * duals]))
    dx, dy = -w[:n], -w[n:]
    dQ = (np.outer(dx, x) + np.outer(x, dx)) / 2
    dG, dh = np.zeros_like(G), np.zeros_like(h)
    dG[active] = np.outer(dy, x) + np.outer(duals, dx)
    dh[active] = -dy
    return x, (dQ, dx, dG, dh)


def serve(side):
    """Answer ``time`` and ``error`` on the standard input with numbers."""
    torch.set_num_threads(1)
    solve = SIDES[side]()
    operands = [t.requires_grad_() for t in programs()]

    def both():
        x = solve(*operands)
        return x, torch.autograd.grad(x.square().sum(), operands)

    for line in sys.stdin:
        if line.strip() == "time":
            start = time.process_time()
            for _ in range(REPEATS):
                both()
            answer = 1e3 * (time.process_time() - start) / REPEATS
        else:
            x, gradients = both()
            value_error = gradient_error = 0.0
            for lane in range(LANES):
                own = [t[lane].detach().numpy() for t in operands]
                truth, slopes = exact(*own, x[lane].detach().numpy())
                value_error = max(value_error, abs(x[lane].detach().numpy() - truth).max())
                for g, slope in zip(gradients, slopes, strict=True):
                    found = g[lane].numpy()
                    if g.shape[1:] == (VARIABLES, VARIABLES) and g is gradients[0]:
                        found = (found + found.T) / 2
                    gradient_error = max(gradient_error, abs(found - slope).max())
            answer = [float(value_error), float(gradient_error)]
        print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qpth", metavar="PYTHON", help="an interpreter that has qpth and torch")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    interpreters = {"implicit_solvers": sys.executable}
    if options.qpth:
        interpreters["qpth"] = options.qpth
    processes = {
        side: subprocess.Popen(
            [python, __file__, "--serve", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side, python in interpreters.items()
    }

    def ask(side, what):
        process = processes[side]
        process.stdin.write(what + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    errors = {side: ask(side, "error") for side in processes}
    times = {side: [] for side in processes}
    for side in processes:
        ask(side, "time")
    for turn in range(ROUNDS):
        for side in list(processes)[:: 1 if turn % 2 else -1]:
            times[side].append(ask(side, "time"))
    print("| library | ms, median (least) | error of x | error of the gradients |")
    print("|---|---|---|---|")
    for side in processes:
        median, least = statistics.median(times[side]), min(times[side])
        x, gradient = errors[side]
        print(f"| {side} | {median:.1f} ({least:.1f}) | {x:.1e} | {gradient:.1e} |")
    if "qpth" in times:
        pairs = zip(times["qpth"], times["implicit_solvers"], strict=True)
        ratio = statistics.median(theirs / own for theirs, own in pairs)
        print(f"\nqpth takes {ratio:.2f} times as long (median of {ROUNDS} turns)")
    for process in processes.values():
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
